"""The numbers that are reported, each with its interval. Scores: higher = more suspicious.

Negatives are images that should pass (clean, noisy), positives are those that should be caught.
Everything is float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from feathide.errors import expected

__all__ = [
    "Cut",
    "Interval",
    "above",
    "auc",
    "aupr",
    "bootstrap",
    "brier_score",
    "calibration_error",
    "cases_needed",
    "cut",
    "difference_at",
    "enough",
    "fpr95",
    "independent",
    "paired_difference",
    "proportion",
    "share_at",
    "slipping",
    "slips_through",
    "spearman",
    "success",
    "threshold",
    "tpr_at",
]

Floats = NDArray[np.float64]
Counts = NDArray[np.intp]
Arrays = list[NDArray[Any]]
Statistic = Callable[..., Any]


def auc(negatives: ArrayLike, positives: ArrayLike) -> float:
    """The area under the ROC curve: P(positive > negative) + 1/2 P(equal), from ranks alone.

    Args:
        negatives: Scores of harmless images (n,).
        positives: Scores of attacked images (m,).

    Returns:
        A number in [0, 1]; 0.5 is a coin toss.

    References:
        Mann and Whitney: On a test of whether one of two random variables is stochastically larger
            than the other. Annals of Mathematical Statistics 1947.

    Examples:
        >>> auc([0.0, 1.0], [1.0, 2.0])
        0.875
    """
    neg, pos = _scores(negatives), _scores(positives)
    return float(_weighted_auc(neg, pos, np.ones((1, len(neg))), np.ones((1, len(pos))))[0])


def _weighted_auc(neg: Floats, pos: Floats, w_neg: Floats, w_pos: Floats) -> Floats:
    """One AUC per row of the weights (B, n) and (B, m): sums of whole numbers, so exact."""
    order = np.argsort(neg)
    # (B, n + 1)
    below = np.concatenate(
        [np.zeros((len(w_neg), 1)), np.cumsum(w_neg[:, order], axis=1)], axis=1
    )
    low, high = (np.searchsorted(neg[order], pos, side) for side in ("left", "right"))
    wins = (w_pos * (below[:, low] + below[:, high])).sum(1)
    return wins / (2 * below[:, -1] * w_pos.sum(1))


def threshold(negatives: ArrayLike, fpr: float) -> float:
    """The smallest threshold that flags at most a given share of the calibration negatives.

    It is the (k + 1)-largest score, k = floor(fpr n); flagged means score > threshold. Ties are
    never split: scores equal to the threshold pass, so fewer than k may be flagged. Of *new*
    negatives from the same source a share (k + 1) / (n + 1) is flagged on average, and the share
    varies as Beta(k + 1, n - k): see ``enough``.

    Args:
        negatives: Scores of harmless calibration images (n,).
        fpr: The share of false alarms, in [0, 1).

    Returns:
        The threshold, one of the scores.

    Raises:
        InputError: ``fpr`` is out of range, or there is no score.

    Examples:
        >>> threshold(range(10), 0.1)
        8.0
    """
    scores = np.sort(_scores(negatives))
    if not 0 <= fpr < 1:
        raise expected(
            "fpr must lie in [0, 1)",
            got=fpr,
            do="pass the share of false alarms, such as 0.1",
        )
    k = int(np.floor(fpr * len(scores) + 1e-9))  # 0.29 * 100 is 28.999999999999996
    return float(scores[len(scores) - 1 - k])


def enough(n: int, fpr: float) -> bool:
    """True if ``n`` independent calibration negatives are enough for the rate ``fpr``: n fpr >=
    10.

    The false alarms among new negatives then lie within a factor of two of ``fpr`` 19 times in 20
    (the Beta check of ``threshold``). The scores of one image as it is and with noise are not
    independent, nor are the images of a patient: count patients, not scores."""
    return n * fpr >= 10 - 1e-9


def cases_needed(fpr: float) -> int:
    """The smallest number of calibration cases that is ``enough`` for the rate ``fpr``."""
    return int(np.ceil(10 / fpr - 1e-9))


def independent(part: str, images: int, patients: int) -> tuple[int, str]:
    """How many independent cases ``images`` of so many ``patients`` are, for ``enough``, and what
    to call them: images of one patient are alike.
    """
    if patients < images:
        return patients, f"{images} {part} images of {patients} patients"
    return images, f"{images} {part} images"


def tpr_at(scores: ArrayLike, threshold: float) -> float:
    """The share of scores above a threshold.

    Args:
        scores: Scores (n,).
        threshold: The threshold.

    Returns:
        Of positives, the true positive rate; of negatives, the false positive rate.
    """
    return float(np.mean(_scores(scores) > threshold))


def success(pred: ArrayLike, target: ArrayLike) -> float:
    """The share of attacked images that the classifier takes for the wanted class.

    Args:
        pred: The predicted classes (n,).
        target: The wanted classes (n,).

    Returns:
        A number in [0, 1].
    """
    return float(np.mean(np.asarray(pred) == np.asarray(target)))


def slips_through(fooled: ArrayLike, scores: ArrayLike, threshold: float) -> float:
    """The share of *all* attacked images that fool the classifier and pass the detector.

    Args:
        fooled: Whether each image fools the classifier (n,), bool.
        scores: The detector's scores (n,); images pass with score <= threshold.
        threshold: The detector's threshold.

    Returns:
        A number in [0, 1].

    Examples:
        >>> slips_through([True, True, False], [0.1, 0.9, 0.1], 0.5)
        0.3333333333333333
    """
    return float(np.mean(np.asarray(fooled, dtype=bool) & (_scores(scores) <= threshold)))


def fpr95(negatives: ArrayLike, positives: ArrayLike) -> float:
    """The share of negatives above the highest threshold that still catches 95 % of the positives.

    Args:
        negatives: Scores of harmless images (n,).
        positives: Scores of attacked images (m,).

    Returns:
        A number in [0, 1]; lower is better.
    """
    neg, pos = _scores(negatives), np.sort(_scores(positives))
    weakest = pos[len(pos) - int(np.ceil(0.95 * len(pos) - 1e-9))]
    return float(np.mean(neg >= weakest))


def aupr(negatives: ArrayLike, positives: ArrayLike) -> float:
    """The average precision: sum over distinct thresholds of (recall gained) x (precision there).

    Args:
        negatives: Scores of harmless images (n,).
        positives: Scores of attacked images (m,).

    Returns:
        A number in [0, 1]; higher is better.
    """
    neg, pos = np.sort(_scores(negatives)), np.sort(_scores(positives))
    cuts, gained = np.unique(pos, return_counts=True)
    caught = len(pos) - np.searchsorted(pos, cuts)
    alarms = len(neg) - np.searchsorted(neg, cuts)
    return float((gained * (caught / (caught + alarms))).sum() / len(pos))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """The correlation of the ranks of ``a`` and ``b`` (mean ranks for ties); NaN if one of them
    is constant.
    """
    ranks = [rankdata(_scores(v)) for v in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


def calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15
) -> float:
    """The expected calibration error (Guo et al. 2017).

        sum_m |B_m| / N * | accuracy(B_m) - confidence(B_m) |

    B_m are the images whose largest probability lies in ((m - 1) / bins, m / bins].

    Args:
        probabilities: Probabilities (N, K), rows that add up to 1.
        labels: The classes (N,).
        bins: The number of bins.

    Returns:
        A number in [0, 1]; 0 is calibrated. On few images it is above 0 even for a calibrated
        classifier.

    References:
        Guo et al.: On calibration of modern neural networks. ICML 2017.
    """
    p, y = _forecasts(probabilities, labels)
    top = p.max(1)
    # the upper edge belongs to a bin, in spite of rounding
    bin_of = np.ceil(top * bins - 1e-9).astype(int)
    gaps = np.bincount(bin_of, (p.argmax(1) == y) - top)
    return float(np.abs(gaps).sum() / len(p))


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The Brier score: the mean squared error of the probabilities.

        1 / (2 N) sum_i sum_k (p_ik - [y_i = k])^2

    This is half of Brier's own sum, so that it is the usual mean of (p - y)^2 for two classes.

    Args:
        probabilities: Probabilities (N, K), rows that add up to 1.
        labels: The classes (N,).

    Returns:
        From 0 (sure and right) to 1 (sure and wrong).

    References:
        Brier: Verification of forecasts expressed in terms of probability. Monthly Weather Review
            1950.
    """
    p, y = _forecasts(probabilities, labels)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum() / (2 * len(p)))


def _forecasts(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Counts]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or not len(p) or not (np.abs(p.sum(1) - 1) < 1e-6).all() or p.min() < 0:
        do = "pass the softmax of the logits"
        raise expected(
            "probabilities must be (N, K), rows that add up to 1",
            got=f"an array {p.shape}",
            do=do,
        )
    if y.shape != (len(p),) or y.min() < 0 or y.max() >= p.shape[1]:
        got = f"an array {y.shape} from {y.min()} to {y.max()}" if y.size else "none"
        raise expected(
            f"labels must be {len(p)} of the classes 0 to {p.shape[1] - 1}",
            got=got,
            do="align them",
        )
    return p, y


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
    x = _scores(hits)
    if not np.isin(x, (0, 1)).all():
        raise expected(
            "hits must be true or false",
            got=f"values from {x.min():g} to {x.max():g}",
            do="use bootstrap(np.mean, ...)",
        )
    (rows,), _ = _patients([x], groups)
    p, size = _effective(x, rows)
    return Interval(p, *_wilson(p, size, level), len(x))


def _effective(x: Floats, rows: Counts) -> tuple[float, float]:
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


@dataclass(frozen=True)
class Cut:
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


def cut(
    negatives: ArrayLike,
    fpr: float,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> Cut:
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
    scores = _scores(negatives)
    (rows,), count = _patients([scores], groups)
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
    return Cut(threshold(negatives, fpr), scores[order][(above > allowed).argmax(1)])


def share_at(
    limit: Cut,
    hits: Callable[[float], ArrayLike],
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """A share at a threshold that is itself uncertain.

    With C(q; t) the confidence that Wilson's interval of ``proportion`` at the threshold t gives to
    shares up to q, the interval holds the middle ``level`` of the mean of C over the thresholds of
    ``limit``: both the calibration images and these rows might have been others. Where all
    thresholds agree it is that of ``proportion``. Simulated coverage of the share at the true
    threshold: 93 % and more for 16 to 200 calibration images.

    Args:
        limit: The threshold with its uncertainty.
        hits: A function from a threshold to true, false or NaN (the row does not count) for each
            row (N,).
        groups: The patient of each row (N,); each row is its own by default.
        level: The confidence level, in (0, 1).

    Returns:
        The share at ``limit.value`` with its interval.
    """
    at = [
        np.asarray(hits(t), dtype=np.float64).reshape(-1)
        for t in (limit.value, *limit.others)
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
        for x, t, w in zip(at[1:], told[1:], limit.shares, strict=True)
        if t.any()
    ]
    if not parts:
        return whole
    weights = np.array([w for *_, w in parts])
    p, size = np.array([_effective(x, rows) for x, rows, _ in parts]).T

    def confidence(q: float) -> float:
        spread = np.sqrt(q * (1 - q) / size)
        return float(weights @ norm.cdf((q - p) / spread)) / float(weights.sum())

    low, high = (_crossing(confidence, (1 + side * level) / 2) for side in (-1, 1))
    return Interval(whole.value, min(low, whole.value), max(high, whole.value), whole.n)


def above(score: np.ndarray) -> Callable[[float], np.ndarray]:
    """Which images are caught, at a threshold."""
    return lambda t: score > t


def slipping(fooled: np.ndarray, score: np.ndarray) -> Callable[[float], np.ndarray]:
    """Which images fool the classifier and pass, at a threshold."""
    return lambda t: fooled & (score <= t)


def _crossing(rising: Callable[[float], float], level: float) -> float:
    """Where a function that rises on (0, 1) reaches ``level``; the end where it does not."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return 0.0 if low == 0.0 else 1.0 if high == 1.0 else (low + high) / 2


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
    rows, count = _patients(values, groups)
    value, n = float(statistic(*values)), sum(map(len, values))
    if statistic is auc:
        size = _effective_auc(_scores(values[0]), _scores(values[1]), rows)
        low, high = (_wilson(value + side / (2 * size), size, level) for side in (-1, 1))
        return Interval(value, min(low[0], value), max(high[1], value), n)
    found = _replicates(statistic, values, rows, _draw(rows, count, draws, seed))
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
    rows, count = _patients(left, groups)
    drawn = _draw(rows, count, draws, seed)
    spread = (
        _replicates(statistic, left, rows, drawn)
        - _replicates(statistic, right, rows, drawn)
    ).var()
    value = float(statistic(*left)) - float(statistic(*right))
    centre, half = (
        value * count / (count + 2),
        _z(level) * np.sqrt(spread * count**2 + 2) / (count + 2),
    )
    return Interval(
        value,
        max(-1.0, float(centre - half)),
        min(1.0, float(centre + half)),
        sum(map(len, left)),
    )


def difference_at(
    limits: tuple[Cut, Cut],
    a: Callable[[float], ArrayLike],
    b: Callable[[float], ArrayLike],
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The difference of two shares on the same images, each at its own uncertain threshold.

    This is ``paired_difference``, averaged over the thresholds of ``limits`` as in ``share_at``.
    Draw i of both limits belongs together: it is of the same calibration images, where the seeds
    agree.

    Args:
        limits: The threshold of each side, with its uncertainty.
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
        np.stack([limit.drawn for limit in limits]), axis=1, return_counts=True
    )
    tried = [(limits[0].value, limits[1].value), *pairs.T]
    told = np.array([[_scores(a(left)), _scores(b(right))] for left, right in tried])
    at, value = told[:, 0] - told[:, 1], float(told[0, 0].mean() - told[0, 1].mean())
    rows, count = _patients([at[0]], groups)
    weights = _draw(rows, count, draws, seed)[:, rows[0]].astype(np.float64)
    spread = (at[1:] @ weights.T / weights.sum(1)).var(1)
    centre, scale = (
        at[1:].mean(1) * count / (count + 2),
        np.sqrt(spread * count**2 + 2) / (count + 2),
    )
    low, high = (
        2
        * _crossing(
            lambda q: float(times / times.sum() @ norm.cdf((2 * q - 1 - centre) / scale)),
            (1 + side * level) / 2,
        )
        - 1
        for side in (-1, 1)
    )
    return Interval(value, min(low, value), max(high, value), len(at[0]))


def _replicates(
    statistic: Statistic, values: Arrays, rows: list[Counts], drawn: Counts
) -> Floats:
    """The statistic of each draw, (draws,)."""
    weights = [drawn[:, r] for r in rows]
    if statistic is auc:
        return _weighted_auc(*[_scores(v) for v in values], *weights)
    if statistic is np.mean:
        return (weights[0] @ _scores(values[0])) / weights[0].sum(1)
    return np.array(
        [
            statistic(*[np.repeat(v, w, axis=0) for v, w in zip(values, each, strict=True)])
            for each in zip(*weights, strict=True)
        ]
    )


def _draw(rows: list[Counts], count: int, draws: int, seed: int) -> Counts:
    """How often each patient is drawn, (draws, count), without the draws that leave one of the
    arrays empty.
    """
    picked = (
        np.random.default_rng(seed).integers(count, size=(draws, count))
        + count * np.arange(draws)[:, None]
    )
    drawn = np.bincount(picked.ravel(), minlength=draws * count).reshape(draws, count)
    return drawn[np.all([drawn[:, np.unique(r)].any(1) for r in rows], axis=0)]


def _patients(
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


def _wilson(p: float, size: float, level: float) -> tuple[float, float]:
    z2, p = _z(level) ** 2, min(max(p, 0.0), 1.0)
    half = np.sqrt(z2 * p * (1 - p) / size + (z2 / (2 * size)) ** 2)
    low, high = ((p + z2 / (2 * size) + sign * half) / (1 + z2 / size) for sign in (-1, 1))
    return max(0.0, float(low)), min(1.0, float(high))


def _z(level: float) -> float:
    return float(norm.ppf((1 + level) / 2))


def _scores(values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(scores):
        raise expected(
            "there must be at least one score",
            got="none",
            do="check which images were selected",
        )
    if np.isnan(scores).any():
        raise expected(
            "scores must be numbers",
            got=f"{int(np.isnan(scores).sum())} NaN of {len(scores)}",
            do="find the image that causes it",
        )
    return scores
