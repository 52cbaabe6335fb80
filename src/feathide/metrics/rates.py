"""Thresholds and shares: who is flagged, who fools, who slips through; and how many cases a
threshold needs.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from feathide.errors import expected
from feathide.metrics.scores import scores_of

__all__ = [
    "above",
    "cases_needed",
    "enough",
    "independent",
    "slipping",
    "slips_through",
    "success",
    "threshold",
    "tpr_at",
]


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
    scores = np.sort(scores_of(negatives))
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
    return float(np.mean(scores_of(scores) > threshold))


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
    return float(np.mean(np.asarray(fooled, dtype=bool) & (scores_of(scores) <= threshold)))


def above(score: np.ndarray) -> Callable[[float], np.ndarray]:
    """Which images are caught, at a threshold."""
    return lambda t: score > t


def slipping(fooled: np.ndarray, score: np.ndarray) -> Callable[[float], np.ndarray]:
    """Which images fool the classifier and pass, at a threshold."""
    return lambda t: fooled & (score <= t)
