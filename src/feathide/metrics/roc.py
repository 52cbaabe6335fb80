"""How well scores tell attacked images from harmless ones, whatever the threshold: AUC, average
precision, false alarms at 95 % caught. Higher scores are more suspicious.
"""

import numpy as np
from numpy.typing import ArrayLike

from feathide.metrics.scores import Floats, scores_of

__all__ = [
    "auc",
    "aupr",
    "fpr95",
]


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
    neg, pos = scores_of(negatives), scores_of(positives)
    return float(weighted_auc(neg, pos, np.ones((1, len(neg))), np.ones((1, len(pos))))[0])


def weighted_auc(neg: Floats, pos: Floats, w_neg: Floats, w_pos: Floats) -> Floats:
    """One AUC per row of the weights (B, n) and (B, m): sums of whole numbers, so exact."""
    order = np.argsort(neg)
    # (B, n + 1)
    below = np.concatenate(
        [np.zeros((len(w_neg), 1)), np.cumsum(w_neg[:, order], axis=1)], axis=1
    )
    low, high = (np.searchsorted(neg[order], pos, side) for side in ("left", "right"))
    wins = (w_pos * (below[:, low] + below[:, high])).sum(1)
    return wins / (2 * below[:, -1] * w_pos.sum(1))


def fpr95(negatives: ArrayLike, positives: ArrayLike) -> float:
    """The share of negatives above the highest threshold that still catches 95 % of the positives.

    Args:
        negatives: Scores of harmless images (n,).
        positives: Scores of attacked images (m,).

    Returns:
        A number in [0, 1]; lower is better.
    """
    neg, pos = scores_of(negatives), np.sort(scores_of(positives))
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
    neg, pos = np.sort(scores_of(negatives)), np.sort(scores_of(positives))
    cuts, gained = np.unique(pos, return_counts=True)
    caught = len(pos) - np.searchsorted(pos, cuts)
    alarms = len(neg) - np.searchsorted(neg, cuts)
    return float((gained * (caught / (caught + alarms))).sum() / len(pos))
