"""The numbers that are reported, each with its interval. Scores: higher = more suspicious.

Negatives are images that should pass (clean, noisy), positives are those that should be caught. Everything is float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from feathide.errors import expected

__all__ = [
    "Interval",
    "auc",
    "aupr",
    "bootstrap",
    "enough",
    "fpr95",
    "paired_difference",
    "proportion",
    "slips_through",
    "spearman",
    "success",
    "threshold",
    "tpr_at",
]

Floats = NDArray[np.float64]


def auc(negatives: ArrayLike, positives: ArrayLike) -> float:
    """The area under the ROC curve: P(positive > negative) + 1/2 P(equal), from ranks alone (Mann and Whitney 1947)."""
    neg, pos = _scores(negatives), _scores(positives)
    return float(_weighted_auc(neg, pos, np.ones((1, len(neg))), np.ones((1, len(pos))))[0])


def _weighted_auc(neg: Floats, pos: Floats, w_neg: Floats, w_pos: Floats) -> Floats:
    """One AUC per row of the weights (B, n) and (B, m): sums of whole numbers, so exact."""
    order = np.argsort(neg)
    below = np.concatenate([np.zeros((len(w_neg), 1)), np.cumsum(w_neg[:, order], axis=1)], axis=1)  # (B, n + 1)
    low, high = (np.searchsorted(neg[order], pos, side) for side in ("left", "right"))
    wins = (w_pos * (below[:, low] + below[:, high])).sum(1)
    return wins / (2 * below[:, -1] * w_pos.sum(1))


def threshold(negatives: ArrayLike, fpr: float) -> float:
    """The smallest threshold that flags at most a share ``fpr`` of the (calibrate) negatives; flagged means score > threshold.

    It is the (k + 1)-largest score, k = floor(fpr n). Ties are never split: scores equal to the threshold pass, so fewer than k may be
    flagged. Of *new* negatives from the same source a share (k + 1) / (n + 1) is flagged on average, and
    it varies as Beta(k + 1, n - k): see ``enough``.
    """
    scores = np.sort(_scores(negatives))
    if not 0 <= fpr < 1:
        raise expected("fpr must lie in [0, 1)", got=fpr, do="pass the share of false alarms, such as 0.1")
    k = int(np.floor(fpr * len(scores) + 1e-9))  # 0.29 * 100 is 28.999999999999996
    return float(scores[len(scores) - 1 - k])


def enough(n: int, fpr: float) -> bool:
    """True if ``n`` calibrate negatives hold the false alarms within a factor of two of ``fpr`` (19 times in 20): n fpr >= 10."""
    return n * fpr >= 10 - 1e-9


def tpr_at(scores: ArrayLike, threshold: float) -> float:
    """The share of ``scores`` that is flagged, score > threshold: of positives the rate caught, of negatives the false alarms."""
    return float(np.mean(_scores(scores) > threshold))


def success(pred: ArrayLike, target: ArrayLike) -> float:
    """The share of attacked images that the classifier takes for the class that the attacker wanted."""
    return float(np.mean(np.asarray(pred) == np.asarray(target)))


def slips_through(fooled: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """The share of *all* attacked images that fool the classifier and are not flagged (score <= threshold)."""
    return float(np.mean(np.asarray(fooled, dtype=bool) & (_scores(scores) <= threshold)))


def fpr95(negatives: ArrayLike, positives: ArrayLike) -> float:
    """The share of negatives flagged by the highest threshold that still catches 95 % of the positives."""
    neg, pos = _scores(negatives), np.sort(_scores(positives))
    weakest = pos[len(pos) - int(np.ceil(0.95 * len(pos) - 1e-9))]
    return float(np.mean(neg >= weakest))


def aupr(negatives: ArrayLike, positives: ArrayLike) -> float:
    """Average precision: sum over distinct thresholds of (recall gained) x (precision there)."""
    neg, pos = np.sort(_scores(negatives)), np.sort(_scores(positives))
    cuts, gained = np.unique(pos, return_counts=True)
    caught = len(pos) - np.searchsorted(pos, cuts)
    alarms = len(neg) - np.searchsorted(neg, cuts)
    return float((gained * (caught / (caught + alarms))).sum() / len(pos))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """The correlation of the ranks of ``a`` and ``b`` (mean ranks for ties); NaN if one of them is constant."""
    ranks = [rankdata(_scores(v)) for v in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


@dataclass(frozen=True)
class Interval:
    """A number with its confidence interval and the number of rows that it stands on."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Callable[..., Any],
    *arrays: ArrayLike,
    groups: Sequence[ArrayLike] | ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The percentile bootstrap interval of ``statistic(*arrays)``, with patients drawn instead of rows."""
    values = [np.asarray(a) for a in arrays]
    members, count = _members(values, groups)
    rng = np.random.default_rng(seed)
    drawn = _draw(rng, count, draws)
    fast = {auc: _weighted_auc, np.mean: _weighted_mean}.get(statistic)
    if fast is not None:
        found = fast(*[_scores(v) for v in values], *[drawn[:, m] for m in members])
    else:
        found = np.array(
            [statistic(*[np.repeat(v, w[m], axis=0) for v, m in zip(values, members, strict=True)]) for w in drawn]
        )
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(*values)), float(low), float(high), sum(len(v) for v in values))


def proportion(hits: ArrayLike, *, groups: ArrayLike | None = None, level: float = 0.95) -> Interval:
    """The share of ``hits`` with Wilson's interval on an effective number of rows."""
    x = np.asarray(hits, dtype=np.float64)
    return _wilson(float(x.mean()), len(x), len(x), level)


def _wilson(p: float, size: float, n: int, level: float) -> Interval:
    z = float(norm.ppf((1 + level) / 2))
    centre, half = p + z**2 / (2 * size), z * np.sqrt(p * (1 - p) / size + z**2 / (4 * size**2))
    return Interval(p, float((centre - half) / (1 + z**2 / size)), float((centre + half) / (1 + z**2 / size)), n)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The mean of a - b over the same cases, with its interval: "A beats B" holds if it excludes 0."""
    return bootstrap(np.mean, _scores(a) - _scores(b), groups=groups, seed=seed, draws=draws, level=level)


def _weighted_mean(values: Floats, weights: Floats) -> Floats:
    return (weights @ values) / weights.sum(1)


def _draw(rng: np.random.Generator, count: int, draws: int) -> NDArray[np.int64]:
    """How often each of ``count`` patients is drawn, (draws, count)."""
    picked = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    return np.bincount(picked.ravel(), minlength=draws * count).reshape(draws, count)


def _members(values: list[NDArray[Any]], groups: Any) -> tuple[list[NDArray[np.int64]], int]:
    """For each array the number of each row's patient, and the number of patients."""
    if groups is None:
        same = len({len(v) for v in values}) == 1
        named = [
            np.arange(len(v)) if same else np.arange(len(v)) + sum(map(len, values[:i])) for i, v in enumerate(values)
        ]
    elif len(values) > 1 and isinstance(groups, Sequence) and len(groups) == len(values):
        named = [np.asarray(g) for g in groups]
    else:
        named = [np.asarray(groups)] * len(values)
    if any(len(g) != len(v) for g, v in zip(named, values, strict=True)):
        raise expected(
            "groups must name a patient for each row",
            got=[len(g) for g in named],
            do=f"pass {[len(v) for v in values]}",
        )
    unique, index = np.unique(np.concatenate(named), return_inverse=True)
    return np.split(index, np.cumsum([len(g) for g in named])[:-1]), len(unique)


def _scores(values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(scores):
        raise expected("there must be at least one score", got="none", do="check which images were selected")
    if np.isnan(scores).any():
        raise expected(
            "scores must be numbers",
            got=f"{int(np.isnan(scores).sum())} NaN of {len(scores)}",
            do="look for the image that makes it",
        )
    return scores
