"""Other libraries' detectors as ours: scikit-learn estimators and pytorch-ood detectors on pooled
features or logits.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import clone, is_classifier
from torch import Tensor

from feathide.detectors.base import Detector, Layers, features, fitted, layer_names, trials
from feathide.errors import expected
from feathide.types import Evidence, Outputs, Space

__all__ = ["PytorchOODDetector", "SklearnDetector"]


@dataclass(frozen=True, eq=False)
class SklearnDetector(Detector):
    """A scikit-learn estimator as a detector, on the features of some layers side by side.

    An outlier detector (``IsolationForest()``, ``OneClassSVM()``,
    ``LocalOutlierFactor(novelty=True)``, or a pipeline that ends in one) learns from the clean
    training images, and score = -score_samples(f). A classifier (``RandomForestClassifier()``)
    learns clean and noisy (0) against adversarial (1), and score = its probability of 1. Scores
    have no gradient: such a detector can be audited, but attacks cannot aim at it.

    Args:
        estimator: The unfitted estimator.
        name: What tables call it; the estimator's class by default.
        layers: "last", "all", or names of layers.
        learnt_: What ``fit`` learnt; leave it out.
    """

    differentiable: ClassVar[bool] = False
    estimator: Any
    name: str = ""
    layers: Layers = "last"
    learnt_: tuple[tuple[str, ...], Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not is_classifier(self.estimator) and not callable(
            getattr(self.estimator, "score_samples", None)
        ):
            raise expected(
                "a scikit-learn outlier detector with score_samples, or a classifier",
                got=repr(self.estimator),
                do="for LocalOutlierFactor pass novelty=True",
            )
        object.__setattr__(self, "name", self.name or type(self.estimator).__name__.lower())

    def fit(self, evidence: Evidence) -> "SklearnDetector":
        names = layer_names(evidence.train, self.layers)
        if is_classifier(self.estimator):
            parts = [_side_by_side(part, names) for part in trials(evidence)]
            labels = np.repeat([0, 1], [len(part) for part in parts])
            learnt = clone(self.estimator).fit(np.concatenate(parts), labels)
        else:
            learnt = clone(self.estimator).fit(_side_by_side(evidence.train, names))
        return replace(self, learnt_=(names, learnt))

    def score(self, out: Outputs) -> Tensor:
        names, learnt = fitted(self.learnt_, self)
        x = _side_by_side(out, names)
        values = (
            learnt.predict_proba(x)[:, 1]
            if is_classifier(learnt)
            else -learnt.score_samples(x)
        )
        return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(out.logits)


@dataclass(frozen=True, eq=False)
class PytorchOODDetector(Detector):
    """A pytorch-ood detector that reads logits or the features of one layer.

    Detectors with ``predict_features`` see the features of ``layer``, the others the logits. They
    are fitted on the clean training images and their labels, in float32. Higher is more suspicious
    there, too. The gradient is whatever pytorch-ood passes on.

    Args:
        detector: The unfitted detector, such as ``KNN(None, k=5)`` or ``MaxSoftmax(None)``.
        name: What tables call it; the detector's class by default.
        layer: "last", or the name of a layer.
        learnt_: What ``fit`` learnt; leave it out.
    """

    differentiable: ClassVar[bool] = False  # not of all of them
    detector: Any
    name: str = ""
    layer: str = "last"
    learnt_: tuple[str | None, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self._reads("features") and not self._reads("logits"):
            raise expected(
                "a pytorch-ood detector that reads pooled features or logits",
                got=type(self.detector).__name__,
                do=(
                    "choose one with predict_features or predict_logits; our outputs hold no "
                    "feature maps and no images"
                ),
            )
        object.__setattr__(self, "name", self.name or type(self.detector).__name__.lower())

    def _reads(self, what: str) -> bool:
        return callable(getattr(self.detector, f"predict_{what}", None))

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("features",) if self._reads("features") else ("logits",)

    def fit(self, evidence: Evidence) -> "PytorchOODDetector":
        layer = (
            layer_names(evidence.train, self.layer)[0] if self._reads("features") else None
        )
        learnt, labels = deepcopy(self.detector), evidence.train_labels
        x = _column(evidence.train, layer).detach().float()
        if learnt.requires_fit:
            (learnt.fit_logits if layer is None else learnt.fit_features)(x, labels)
        return replace(self, learnt_=(layer, learnt))

    def score(self, out: Outputs) -> Tensor:
        layer, learnt = fitted(self.learnt_, self)
        x = _column(out, layer)
        return (learnt.predict_logits if layer is None else learnt.predict_features)(
            x.float()
        ).to(x)


def _column(out: Outputs, layer: str | None) -> Tensor:
    if layer is not None:
        return features(out, [layer])[0]
    if not bool(out.logits.isfinite().all()):
        raise expected(
            "logits must be finite",
            got="NaN or infinity",
            do="check the images and weights",
        )
    return out.logits


def _side_by_side(out: Outputs, names: tuple[str, ...]) -> np.ndarray:
    return torch.cat(features(out, names), 1).detach().cpu().double().numpy()
