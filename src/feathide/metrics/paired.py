"""The difference between two methods on the same images, with its interval."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from feathide.errors import expected
from feathide.metrics.by_patient import draw, patients_of
from feathide.metrics.intervals import Interval, Statistic, replicates, z_of
from feathide.metrics.scores import scores_of
from feathide.metrics.uncertain_threshold import UncertainThreshold, crossing

__all__ = [
    "difference_at",
    "paired_difference",
]


def paired_difference(
    statistic: Statistic,
    a: tuple[ArrayLike, ...],
    b: tuple[ArrayLike, ...],
    *,
    groups: tuple[ArrayLike, ...] | ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The difference of a statistic between two methods on the same images.

    "A beats B" if the interval lies above 0. The interval is that of Bonett and Price (2012), which
    adds one case in favour of either side and so does not shrink to a point when the methods agree
    on all images. With d the difference, s^2 the variance of its draws and G patients:

        d G / (G + 2)  +-  z sqrt(s^2 G^2 + 2) / (G + 2)

    Args:
        statistic: A function of the arrays, with values in [0, 1].
        a: The arrays of one method.
        b: The arrays of the other; row i of ``a[j]`` and of ``b[j]`` is the same image.
        groups: The patient of each row, as for ``bootstrap``.
        seed: The seed of the draws, which are the same for both.
        draws: The number of draws.
        level: The confidence level, in (0, 1).

    Returns:
        ``statistic(*a) - statistic(*b)`` with its interval.
    """
    left, right = [np.asarray(v) for v in a], [np.asarray(v) for v in b]
    if [len(v) for v in left] != [len(v) for v in right]:
        raise expected(
            "both sides must have the same cases",
            got=f"{[len(v) for v in left]} and {[len(v) for v in right]} rows",
            do="compare the cases that both have",
        )
    rows, count = patients_of(left, groups)
    drawn = draw(rows, count, draws, seed)
    spread = (
        replicates(statistic, left, rows, drawn) - replicates(statistic, right, rows, drawn)
    ).var()
    value = float(statistic(*left)) - float(statistic(*right))
    centre, half = (
        value * count / (count + 2),
        z_of(level) * np.sqrt(spread * count**2 + 2) / (count + 2),
    )
    return Interval(
        value,
        max(-1.0, float(centre - half)),
        min(1.0, float(centre + half)),
        sum(map(len, left)),
    )


def difference_at(
    thresholds: tuple[UncertainThreshold, UncertainThreshold],
    a: Callable[[float], ArrayLike],
    b: Callable[[float], ArrayLike],
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The difference of two shares on the same images, each at its own uncertain threshold.

    This is ``paired_difference``, averaged over the drawn thresholds as in ``share_at``. Draw i of
    both sides belongs together: it is of the same calibration images, where the seeds agree.

    Args:
        thresholds: The threshold of each side, with its uncertainty.
        a: A function from a threshold to true or false for each row (N,).
        b: The same for the other side.
        groups: The patient of each row (N,); each row is its own by default.
        seed: The seed of the draws.
        draws: The number of draws.
        level: The confidence level, in (0, 1).

    Returns:
        The share of ``a`` less that of ``b``, with its interval.
    """
    pairs, times = np.unique(
        np.stack([threshold.drawn for threshold in thresholds]), axis=1, return_counts=True
    )
    tried = [(thresholds[0].value, thresholds[1].value), *pairs.T]
    told = np.array([[scores_of(a(left)), scores_of(b(right))] for left, right in tried])
    at, value = told[:, 0] - told[:, 1], float(told[0, 0].mean() - told[0, 1].mean())
    rows, count = patients_of([at[0]], groups)
    weights = draw(rows, count, draws, seed)[:, rows[0]].astype(np.float64)
    spread = (at[1:] @ weights.T / weights.sum(1)).var(1)
    centre, scale = (
        at[1:].mean(1) * count / (count + 2),
        np.sqrt(spread * count**2 + 2) / (count + 2),
    )
    low, high = (
        2
        * crossing(
            lambda q: float(times / times.sum() @ norm.cdf((2 * q - 1 - centre) / scale)),
            (1 + side * level) / 2,
        )
        - 1
        for side in (-1, 1)
    )
    return Interval(value, min(low, value), max(high, value), len(at[0]))
