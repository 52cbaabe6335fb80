"""Our detectors as scikit-learn outlier detectors, on arrays of features."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from feathide.detectors import Detector, MixtureEnergy
from feathide.errors import expected
from feathide.types import Evidence, Outputs

__all__ = ["OutlierDetector", "one_class_evidence"]


class OutlierDetector(OutlierMixin, BaseEstimator):
    """A detector that never sees an adversarial example, as a scikit-learn outlier detector.

    As elsewhere in scikit-learn, higher ``score_samples`` are more normal. ``predict`` is -1 below
    ``offset_``, the score under which the share ``contamination`` of the training rows lies. ``y``,
    the classes, is ignored, as in every outlier detector of scikit-learn: to model classes apart,
    fit one detector for each. Every fourth row is set aside for what must not be learnt from the
    same rows, such as a bandwidth.

    Args:
        detector: ``MixtureEnergy()`` (the energy that HFC lowers) by default, ``KernelDensity()``,
            ``NearestNeighbours()``, ``Mahalanobis(combine="mean")`` or
            ``LocalDimension(combine="mean")``.
        contamination: The share of outliers in the training rows, in (0, 0.5].
    """

    def __init__(
        self, detector: Detector | None = None, *, contamination: float = 0.1
    ) -> None:
        self.detector = detector
        self.contamination = contamination

    def fit(self, X: Any, y: object = None) -> "OutlierDetector":
        """Learn the normal range of the rows of ``X`` (N, C), N >= 8."""
        if not 0 < self.contamination <= 0.5:
            raise expected(
                "contamination must be in (0, 0.5]",
                got=self.contamination,
                do="give the share of outliers in X",
            )
        x = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=8)
        self.detector_ = (self.detector or MixtureEnergy()).fit(
            one_class_evidence(_outputs(x))
        )
        self.offset_ = float(np.percentile(self._normality(x), 100 * self.contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """How normal each row is, (N,): minus the detector's score."""
        check_is_fitted(self)
        return self._normality(
            validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        )

    def decision_function(self, X: Any) -> np.ndarray:
        """``score_samples`` less ``offset_``: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for normal rows, -1 for outliers."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _normality(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return -self.detector_.score(_outputs(x)).numpy().astype(np.float64)


def one_class_evidence(out: Outputs, labels: Tensor | None = None) -> Evidence:
    """Evidence of a detector that sees clean images only: every fourth row is held out as the
    clean part, the others are for training.
    """
    held = torch.arange(len(out)) % 4 == 3
    labels = torch.zeros(len(out), dtype=torch.long) if labels is None else labels
    return Evidence(
        out[~held], labels[~held], clean=out[held], noisy=out[:0], adversarial=out[:0]
    )


def _outputs(x: np.ndarray) -> Outputs:
    """Features as the outputs of a network with one class."""
    f = torch.tensor(x, dtype=torch.float64)
    return Outputs(f.new_zeros(len(f), 1), {"features": f})
