"""Images of one patient are alike: the bootstrap draws patients, and effective numbers count
them.
"""

import numpy as np
from numpy.typing import ArrayLike

from feathide.errors import expected
from feathide.metrics.scores import Arrays, Counts, Floats


def effective(x: Floats, rows: Counts) -> tuple[float, float]:
    """The share of ``x`` (N,) and the effective number of rows, those of patient g being where
    ``rows`` is g: see ``proportion``.
    """
    _, rows = np.unique(rows, return_inverse=True)
    n, p, size = len(x), float(x.mean()), np.bincount(rows)
    count, most = len(size), float((size**2).sum()) / n
    if 0 < p < 1 and count > 1:
        spread = count / (count - 1) * ((np.bincount(rows, x) - p * size) ** 2).sum()
        return p, n / float(np.clip(spread / (n * p * (1 - p)), 1, most))
    return p, n / most


def draw(rows: list[Counts], count: int, draws: int, seed: int) -> Counts:
    """How often each patient is drawn, (draws, count), without the draws that leave one of the
    arrays empty.
    """
    picked = (
        np.random.default_rng(seed).integers(count, size=(draws, count))
        + count * np.arange(draws)[:, None]
    )
    drawn = np.bincount(picked.ravel(), minlength=draws * count).reshape(draws, count)
    return drawn[np.all([drawn[:, np.unique(r)].any(1) for r in rows], axis=0)]


def patients_of(
    values: Arrays, groups: tuple[ArrayLike, ...] | ArrayLike | None
) -> tuple[list[Counts], int]:
    """The number of the patient of each row, array by array, and how many patients there are."""
    sizes = [len(v) for v in values]
    if groups is None:
        starts = [0] * len(sizes) if len(set(sizes)) == 1 else np.cumsum([0, *sizes[:-1]])
        named = [start + np.arange(size) for start, size in zip(starts, sizes, strict=True)]
    else:
        named = (
            [np.asarray(g) for g in groups]
            if isinstance(groups, tuple)
            else [np.asarray(groups)] * len(sizes)
        )
    if [len(g) for g in named] != sizes:
        raise expected(
            f"groups must name the patient of each of {sizes} rows",
            got=[len(g) for g in named],
            do="pass one array per array",
        )
    names, number = np.unique(np.concatenate(named), return_inverse=True)
    return np.split(number, np.cumsum(sizes)[:-1]), len(names)
