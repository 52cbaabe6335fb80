"""Whether probabilities say how often the classifier is right."""

import numpy as np
from numpy.typing import ArrayLike

from feathide.errors import expected
from feathide.metrics.scores import Counts, Floats

__all__ = [
    "brier_score",
    "calibration_error",
]


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
