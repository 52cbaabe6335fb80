"""A share at a threshold that is itself uncertain: calibration images might have been others."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from feathide.metrics.by_patient import effective, patients_of
from feathide.metrics.intervals import Interval, proportion
from feathide.metrics.rates import threshold
from feathide.metrics.scores import Floats, scores_of

__all__ = [
    "UncertainThreshold",
    "share_at",
    "uncertain_threshold",
]


@dataclass(frozen=True)
class UncertainThreshold:
    """A threshold, and those that other calibration images might have given.

    Args:
        value: The threshold.
        drawn: The thresholds of the bootstrap (draws,).
    """

    value: float
    drawn: Floats

    @property
    def others(self) -> Floats:
        return np.unique(self.drawn)

    @property
    def shares(self) -> Floats:
        return np.unique(self.drawn, return_counts=True)[1] / len(self.drawn)


def uncertain_threshold(
    negatives: ArrayLike,
    fpr: float,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> UncertainThreshold:
    """The threshold of ``threshold``, with those of a bootstrap over calibration patients.

    A draw may also take a patient who was not sampled and whose scores lie above all others: the
    largest of a few scores is not the largest possible one. From ``enough`` patients on this hardly
    changes anything; with fewer it says that the true threshold may lie above all scores.

    Args:
        negatives: Scores of harmless calibration images (n,).
        fpr: The share of false alarms, in [0, 1).
        groups: The patient of each row (n,); each row is its own by default.
        seed: The seed of the draws.
        draws: The number of draws.

    Returns:
        The threshold and the drawn ones.
    """
    scores = scores_of(negatives)
    (rows,), count = patients_of([scores], groups)
    unseen = -(-len(scores) // count)
    scores, rows = (
        np.append(scores, np.full(unseen, np.inf)),
        np.append(rows, np.full(unseen, count)),
    )
    picked = (
        np.random.default_rng(seed).integers(count + 1, size=(draws, count))
        + (count + 1) * np.arange(draws)[:, None]
    )
    weights = np.bincount(picked.ravel(), minlength=draws * (count + 1)).reshape(
        draws, count + 1
    )
    order = np.argsort(-scores, kind="stable")
    above = np.cumsum(weights[:, rows[order]], axis=1)
    allowed = np.floor(fpr * above[:, -1:] + 1e-9)
    return UncertainThreshold(
        threshold(negatives, fpr), scores[order][(above > allowed).argmax(1)]
    )


def share_at(
    threshold: UncertainThreshold,
    hits: Callable[[float], ArrayLike],
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """A share at a threshold that is itself uncertain.

    With C(q; t) the confidence that Wilson's interval of ``proportion`` at the threshold t gives to
    shares up to q, the interval holds the middle ``level`` of the mean of C over the thresholds of
    ``threshold``: both the calibration images and these rows might have been others. Where all
    thresholds agree it is that of ``proportion``. Simulated coverage of the share at the true
    threshold: 93 % and more for 16 to 200 calibration images.

    Args:
        threshold: The threshold with its uncertainty.
        hits: A function from a threshold to true, false or NaN (the row does not count) for each
            row (N,).
        groups: The patient of each row (N,); each row is its own by default.
        level: The confidence level, in (0, 1).

    Returns:
        The share at ``threshold.value`` with its interval.
    """
    at = [
        np.asarray(hits(t), dtype=np.float64).reshape(-1)
        for t in (threshold.value, *threshold.others)
    ]
    names = (
        np.arange(len(at[0]))
        if groups is None
        else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    told = [~np.isnan(x) for x in at]
    whole = proportion(at[0][told[0]], groups=names[told[0]], level=level)
    parts = [
        (x[t], names[t], w)
        for x, t, w in zip(at[1:], told[1:], threshold.shares, strict=True)
        if t.any()
    ]
    if not parts:
        return whole
    weights = np.array([w for *_, w in parts])
    p, size = np.array([effective(x, rows) for x, rows, _ in parts]).T

    def confidence(q: float) -> float:
        spread = np.sqrt(q * (1 - q) / size)
        return float(weights @ norm.cdf((q - p) / spread)) / float(weights.sum())

    low, high = (crossing(confidence, (1 + side * level) / 2) for side in (-1, 1))
    return Interval(whole.value, min(low, whole.value), max(high, whole.value), whole.n)


def crossing(rising: Callable[[float], float], level: float) -> float:
    """Where a function that rises on (0, 1) reaches ``level``; the end where it does not."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return 0.0 if low == 0.0 else 1.0 if high == 1.0 else (low + high) / 2
