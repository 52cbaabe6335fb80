"""Many comparisons at once: a permutation test by patient, and Holm's correction."""

import numpy as np
from numpy.typing import ArrayLike

from feathide.errors import expected
from feathide.metrics.scores import Floats

__all__ = ["DIFFERS", "PERMUTATIONS", "differs", "holm"]

PERMUTATIONS = 9999
# a group differs where its corrected p-value is at most this
DIFFERS = 0.05
AT_ONCE = 1000  # permutations, for memory


def holm(p: ArrayLike) -> Floats:
    """P-values, corrected for their number by Holm's step-down method.

    With p sorted, the i-th smallest of m becomes max over j <= i of min(1, (m - j + 1) p_j): the
    chance that any true hypothesis of the family is rejected at a level is at most that level,
    whatever the dependence.

    Args:
        p: P-values (m,), in [0, 1].

    Returns:
        The corrected ones (m,), in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]

    References:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    given = np.asarray(p, dtype=np.float64)
    if given.size and not ((given >= 0) & (given <= 1)).all():
        raise expected("p-values must lie in [0, 1]", got=given, do="correct them")
    order = np.argsort(given, kind="stable")
    scaled = given[order] * (len(given) - np.arange(len(given)))
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return corrected


def differs(
    hits: ArrayLike, inside: ArrayLike, *, groups: ArrayLike, seed: int = 0
) -> float:
    """The p-value of a permutation test: has a group of images another share than the rest?

    The statistic is the difference of the two shares. What is permuted is which patients are in
    the group; a patient with images on both sides counts once on each.

    Args:
        hits: True or false for each image (N,).
        inside: Whether each image is in the group (N,); both sides have images.
        groups: The patient of each image (N,).
        seed: The seed of the permutations.

    Returns:
        (1 + how many of ``PERMUTATIONS`` differ as much) / (1 + ``PERMUTATIONS``).
    """
    x, side = np.asarray(hits, dtype=np.float64), np.asarray(inside, dtype=bool)
    if side.all() or not side.any():
        raise expected(
            "a group and its rest must have images", got="one empty", do="leave it out"
        )
    _, patient = np.unique(np.asarray(groups), return_inverse=True)
    _, block = np.unique(2 * patient + side, return_inverse=True)
    size = np.bincount(block, np.ones(len(x)))
    count = np.bincount(block, x)
    chosen = np.zeros(len(size), dtype=bool)
    chosen[block[side]] = True
    seen = abs(_difference(chosen[None], count, size)[0])
    rng, many = np.random.default_rng(seed), int(chosen.sum())
    beyond = 0
    for start in range(0, PERMUTATIONS, AT_ONCE):
        draws = rng.random((min(AT_ONCE, PERMUTATIONS - start), len(size)))
        # the patients with the smallest numbers are the group
        drawn = draws.argsort(1).argsort(1) < many
        beyond += int((abs(_difference(drawn, count, size)) >= seen - 1e-12).sum())
    return (1 + beyond) / (1 + PERMUTATIONS)


def _difference(chosen: np.ndarray, count: np.ndarray, size: np.ndarray) -> Floats:
    """The share among the chosen blocks less that among the others, for each row (R, B)."""
    inside, of_inside = chosen @ count, chosen @ size
    found: Floats = inside / of_inside - (count.sum() - inside) / (size.sum() - of_inside)
    return found
