"""A number with its confidence interval: Wilson's for a share, a bootstrap over patients for the
rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from feathide.errors import expected
from feathide.metrics.by_patient import draw, effective, patients_of
from feathide.metrics.calibration import calibration_error
from feathide.metrics.roc import auc, aupr, fpr95, weighted_auc
from feathide.metrics.scores import Arrays, Counts, Floats, scores_of

__all__ = [
    "Interval",
    "bootstrap",
    "proportion",
]

Statistic = Callable[..., Any]


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval.

    Args:
        value: The number.
        low: The lower end.
        high: The upper end.
        n: The number of rows that it rests on.
    """

    value: float
    low: float
    high: float
    n: int


def proportion(
    hits: ArrayLike, *, groups: ArrayLike | None = None, level: float = 0.95
) -> Interval:
    """A share with Wilson's interval (1927), for rows that may come in groups.

    Wilson's interval, unlike the bootstrap, does not shrink to a point when all hits agree. With
    x_g hits among the n_g rows of patient g, p the share and G patients, the effective number of
    rows is n / d with the design effect

        d = [ G / (G - 1) sum_g (x_g - p n_g)^2 ] / [ n p (1 - p) ],
        kept within 1 and sum_g n_g^2 / n,

    and d is that upper end (patients agree with themselves entirely) where p is 0 or 1 and nothing
    can be estimated. Simulated coverage of the 95 % interval: 92 to 98 %, for n = 50 to 300, p =
    0.05 to 0.95, 1 to 5 rows per patient, any correlation within a patient.

    Args:
        hits: True or false for each row (N,).
        groups: The patient of each row (N,); each row is its own by default.
        level: The confidence level, in (0, 1).

    Returns:
        The share with its interval.

    Examples:
        >>> proportion([True] * 8 + [False] * 2).value
        0.8
    """
    x = scores_of(hits)
    if not np.isin(x, (0, 1)).all():
        raise expected(
            "hits must be true or false",
            got=f"values from {x.min():g} to {x.max():g}",
            do="use bootstrap(np.mean, ...)",
        )
    (rows,), _ = patients_of([x], groups)
    p, size = effective(x, rows)
    return Interval(p, *_wilson(p, size, level), len(x))


def bootstrap(
    statistic: Statistic,
    *arrays: ArrayLike,
    groups: tuple[ArrayLike, ...] | ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """A statistic with the interval of a bootstrap that draws patients, not rows.

    Draws that leave an array empty are left out. The interval holds the middle ``level`` of the
    draws (percentiles), with three exceptions:

    For ``aupr`` and ``fpr95``, which crowd at 0 and 1, it is Wilson's with the effective number v
    (1 - v) / variance of the draws, and with the number of patients in the smaller array where all
    draws agree. For shares, use ``proportion``.

    ``auc`` needs no draws. With a_g the sum over patient g of the placements of DeLong et al.
    (1988), less their mean and divided by their number, and G patients, its variance is V = G / (G
    - 1) sum a_g^2 (Obuchowski 1997). Near 1 this rests on the few patients who overlap, nu = (sum
    a_g^2)^2 / sum a_g^4 of them, and is too small by chance too often. So V counts nu times, and
    the largest variance that any scores can have, v (1 - v) / S, once, with S the patients of the
    smaller array. The interval is Wilson's, corrected by half a case, with the effective number v
    (1 - v) / variance. Simulated coverage: 93 % and more, 98 % on average, for 20 to 300 patients,
    1 to 30 rows per patient, AUCs from 0.5 to 0.995, scores of seven kinds.

    ``calibration_error`` grows with the noise that drawing adds, so its percentiles are mirrored at
    the value (Davison and Hinkley 1997, 5.2) and widened to hold it. Simulated coverage with 250
    images of 3 classes: 88 to 90 % where the error is 0.05 to 0.11 (plain percentiles: 15 to 78 %),
    but 47 % for a calibrated classifier: the lower end then stays above 0.

    Args:
        statistic: A function of the arrays that returns a number.
        *arrays: The arrays, each with one row per image.
        groups: The patient of each row: one array if row i of every array is the same image, else a
            tuple with one per array, as for the negatives and positives of ``auc`` (a patient who
            is in both is drawn in both). By default each row is its own patient, the same one in
            arrays of equal length.
        seed: The seed of the draws.
        draws: The number of draws.
        level: The confidence level, in (0, 1).

    Returns:
        The statistic with its interval; ``n`` counts all rows.
    """
    values = [np.asarray(a) for a in arrays]
    rows, count = patients_of(values, groups)
    value, n = float(statistic(*values)), sum(map(len, values))
    if statistic is auc:
        size = _effective_auc(scores_of(values[0]), scores_of(values[1]), rows)
        low, high = (_wilson(value + side / (2 * size), size, level) for side in (-1, 1))
        return Interval(value, min(low[0], value), max(high[1], value), n)
    found = replicates(statistic, values, rows, draw(rows, count, draws, seed))
    if statistic not in (aupr, fpr95):
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        if statistic is calibration_error:
            low, high = max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low)
        return Interval(value, float(low), float(high), n)
    size = float(min(len(np.unique(r)) for r in rows))
    if found.min() < found.max() and 0 < value < 1:
        size = value * (1 - value) / float(found.var())
    return Interval(value, *_wilson(value, size, level), n)


def _effective_auc(neg: Floats, pos: Floats, rows: list[Counts]) -> float:
    """The number of cases of which a share has the uncertainty of this AUC: see ``bootstrap``."""
    placed = []
    for own, other in ((neg, pos), (pos, neg)):
        below = [np.searchsorted(np.sort(other), own, side) for side in ("left", "right")]
        placed.append((below[0] + below[1]) / (2 * len(other)))
    placed[0] = 1 - placed[0]
    value, count = float(placed[1].mean()), int(max(r.max() for r in rows)) + 1
    shares = [
        np.bincount(r, (p - value) / len(p), minlength=count)
        for r, p in zip(rows, placed, strict=True)
    ]
    least = min(len(r) ** 2 / float((np.bincount(r) ** 2).sum()) for r in rows)
    moved = (shares[0] + shares[1]) ** 2
    if not 0 < value < 1 or not moved.any():
        return least
    known = float(moved.sum() ** 2 / (moved**2).sum())
    variance = (
        known * count / max(count - 1, 1) * float(moved.sum()) + value * (1 - value) / least
    )
    return value * (1 - value) * (known + 1) / variance


def replicates(
    statistic: Statistic, values: Arrays, rows: list[Counts], drawn: Counts
) -> Floats:
    """The statistic of each draw, (draws,)."""
    weights = [drawn[:, r] for r in rows]
    if statistic is auc:
        return weighted_auc(*[scores_of(v) for v in values], *weights)
    if statistic is np.mean:
        return (weights[0] @ scores_of(values[0])) / weights[0].sum(1)
    return np.array(
        [
            statistic(*[np.repeat(v, w, axis=0) for v, w in zip(values, each, strict=True)])
            for each in zip(*weights, strict=True)
        ]
    )


def _wilson(p: float, size: float, level: float) -> tuple[float, float]:
    """Wilson's interval of the share ``p`` of ``size`` cases."""
    z2, p = z_of(level) ** 2, min(max(p, 0.0), 1.0)
    half = np.sqrt(z2 * p * (1 - p) / size + (z2 / (2 * size)) ** 2)
    low, high = ((p + z2 / (2 * size) + sign * half) / (1 + z2 / size) for sign in (-1, 1))
    return max(0.0, float(low)), min(1.0, float(high))


def z_of(level: float) -> float:
    """z such that ``level`` of a normal distribution lies within z standard deviations."""
    return float(norm.ppf((1 + level) / 2))
