"""What a metric may look at: one view for each scope. ``pipeline/views.py`` builds them from what
a run has stored, each part when it is first asked for.

n is the number of images; ``groups`` (n,) names the patient of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from feathide.metrics.uncertain_threshold import UncertainThreshold

__all__ = ["Answers", "AttackView", "DetectorView", "LeastChange", "PastView", "RunView"]


@dataclass(frozen=True)
class Answers:
    """What the classifier says of some images.

    Args:
        probabilities: (n, K), the softmax of the logits.
        labels: (n,), the true classes.
        right: (n,), whether the image is taken for its true class.
        groups: (n,), patients.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class LeastChange:
    """The smallest change of each image that succeeds.

    Args:
        values: (n,), in box units; infinity where none up to ``largest`` succeeds.
        largest: the largest change that was tried.
    """

    values: np.ndarray
    largest: float


class RunView(Protocol):
    """Scope "run": the classifier on images that nobody attacked."""

    seed: int
    train: Answers
    calibration: Answers
    test: Answers

    def shifted(self, shift: str) -> Answers:
        """The test images under a harmless shift."""


class DetectorView(Protocol):
    """Scope "detector": one detector on all clean test images, at one budget."""

    # a threshold for each rate of ``RATES``, from the calibration split
    thresholds: Mapping[str, UncertainThreshold]
    groups: np.ndarray
    # (n,), whether the classifier is right
    right: np.ndarray
    # (n,), scores of the images as they are, and with random noise of the budget
    clean: np.ndarray
    noisy: np.ndarray

    def shifted(self, shift: str) -> np.ndarray:
        """The scores (n,) of the images under a harmless shift."""


class AttackView(Protocol):
    """Scope "attack": one attack, its objective and its budget. Row i is one attacked image."""

    seed: int
    groups: np.ndarray
    # (n,), whether the stored image, read back, is taken for the attacker's class
    fooled: np.ndarray
    # (n,), whether the attack itself says so
    claimed: np.ndarray
    # (n,), the largest change of a pixel, in box units
    linf: np.ndarray
    # (n,), passes through the network
    gradients: np.ndarray
    forwards: np.ndarray
    # of all images together
    seconds: float
    # the share of the layers that HFC constrains, and how many the detectors read; None: no HFC
    constrained: tuple[float, int] | None
    # (m,) each: of successes in floating point, which rounding loses, and their patients
    rounded: tuple[np.ndarray, np.ndarray] | None
    # (n, D), whether an image fools at each of D fresh draws; None: nothing is random
    by_draw: np.ndarray | None
    # the least change of each image that fools; None: not looked for
    smallest: LeastChange | None


class PastView(Protocol):
    """Scope "attack x detector": one attack past one detector. Row i is one attacked image."""

    seed: int
    thresholds: Mapping[str, UncertainThreshold]
    groups: np.ndarray
    fooled: np.ndarray
    # (n,), scores of the attacked images
    score: np.ndarray
    # (2 n,), scores of the same images before the attack: all clean, then all noisy
    negatives: np.ndarray
    # (m,), patients of all test images that were chosen, misclassified ones, too
    all_groups: np.ndarray
    # by threshold ("fpr10", "own"), the least change of each image that fools and passes
    smallest: Mapping[str, LeastChange]

    def slips(self, threshold: float) -> np.ndarray:
        """Which images (n,) fool the classifier and pass the detector at a threshold."""

    def slips_of_all(self, threshold: float) -> np.ndarray:
        """Which images (m,) are misread, attacked or not, and pass at a threshold."""
