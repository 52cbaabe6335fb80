"""Detectors of other libraries, and of the user's own code, by the names that plans use:
``sklearn:IsolationForest(n_estimators=50)``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.discovery import all_estimators
from torch import Tensor, nn

from feathide.detectors.base import Detector, features, fitted, layer_names, spread, trials
from feathide.errors import choose
from feathide.integrations.foreign_attacks import borrowed_seed
from feathide.integrations.foreign_detectors import PytorchOODDetector, SklearnDetector
from feathide.integrations.named_attacks import classes_of
from feathide.integrations.shipped_guards import SHIPPED, guard_named
from feathide.registry.specs import parsed
from feathide.registry.user_code import called, load_object
from feathide.types import Evidence, Outputs

__all__ = ["DETECTOR_LIBRARIES", "ArtFeatureDetector", "detector_named"]


def detector_named(name: str) -> Callable[[], Detector]:
    """What makes the detector ``name``: ``sklearn:Name``, ``pytorch_ood:Name`` or ``art:Name``,
    with the arguments in brackets; ``guard:WHAT`` is a guard as it is shipped.

    Among the arguments, ``layers`` (scikit-learn) or ``layer`` says what it reads. scikit-learn's
    estimators get ``random_state=0`` where they take one. Other names are the user's own code,
    which is imported: what makes a ``Detector`` or a scikit-learn estimator. Raises
    ``InputError`` for unknown names and arguments."""
    base, options = parsed(name)
    library, _, what = base.partition(":")
    if library == SHIPPED:
        return partial(guard_named, name)
    if library not in DETECTOR_LIBRARIES:
        return partial(_own, base, name, options)
    make, table = DETECTOR_LIBRARIES[library]
    cls = choose(f"detector of {library}", what, table())
    return partial(make, cls, name, options)


def _own(base: str, name: str, options: Mapping[str, Any]) -> Detector:
    entry = load_object(base, trust=True)
    found = (
        called(entry, base, options)
        if callable(entry) and not isinstance(entry, Detector)
        else entry
    )
    return found if isinstance(found, Detector) else SklearnDetector(found, name=name)


def _sklearn(cls: type, name: str, options: Mapping[str, Any]) -> Detector:
    arguments = {k: v for k, v in options.items() if k != "layers"}
    if "random_state" in inspect.signature(cls).parameters:
        arguments = {"random_state": 0, **arguments}
    return SklearnDetector(
        called(cls, name, arguments), name=name, layers=options.get("layers", "last")
    )


def _pytorch_ood(cls: type, name: str, options: Mapping[str, Any]) -> Detector:
    arguments = {k: v for k, v in options.items() if k != "layer"}
    return PytorchOODDetector(
        called(cls, name, arguments, None), name=name, layer=options.get("layer", "last")
    )


def _art(cls: type, name: str, options: Mapping[str, Any]) -> Detector:
    return called(partial(ArtFeatureDetector, cls, name), name, options)


@dataclass(frozen=True, eq=False)
class ArtFeatureDetector(Detector):
    """A detector of ART that works on the activations of a layer, here the features (N, C) of
    ``layer``, each channel standardised by the training images.

    ``BinaryActivationDetector`` learns clean and noisy against adversarial with a network of one
    hidden layer of ``width``, score = the difference of its two logits.
    ``SubsetScanningDetector`` sees clean training images only, score = that of the most anomalous
    subset of channels, each of which stands there twice, with both signs, since ART looks at
    large activations only. Scores have no gradient."""

    differentiable: ClassVar[bool] = False
    kind: type
    name: str = ""
    layer: str = "last"
    width: int = 32
    nb_epochs: int = 20
    scoring_function: str = "BerkJones"
    learnt_: tuple[str, Tensor, Tensor, Any] | None = field(default=None, repr=False)

    @property
    def _binary(self) -> bool:
        return self.kind.__name__ == "BinaryActivationDetector"

    def fit(self, evidence: Evidence) -> "ArtFeatureDetector":
        layer = layer_names(evidence.train, self.layer)[0]
        x = features(evidence.train, [layer])[0].detach().double()
        mean, std = x.mean(0), spread(x, layer)
        std = std.where(std > 0, 1.0)

        def shown(out: Outputs) -> np.ndarray:
            return self._shown(features(out, [layer])[0], mean, std)

        with borrowed_seed(0):
            if self._binary:
                parts = [shown(part) for part in trials(evidence)]
                labels = np.repeat([0, 1], [len(part) for part in parts])
                learnt: Any = self.kind(
                    _Given(), self._network(x.shape[1]), layer="features"
                )
                learnt.fit(np.concatenate(parts), labels, nb_epochs=self.nb_epochs)
            else:
                scoring = self.scoring_function
                learnt = self.kind(
                    _Given(),
                    shown(evidence.train),
                    "features",
                    scoring_function=scoring,
                    verbose=False,
                )
        return replace(self, learnt_=(layer, mean, std, learnt))

    def score(self, out: Outputs) -> Tensor:
        layer, mean, std, learnt = fitted(self.learnt_, self)
        # ART draws from the global generator even where nothing is random
        with borrowed_seed(0):
            report, _ = learnt.detect(self._shown(features(out, [layer])[0], mean, std))
        values = (
            report["scores"]
            if "scores" in report
            else np.diff(report["predictions"], axis=1)[:, 0]
        )
        return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(out.logits)

    def _shown(self, f: Tensor, mean: Tensor, std: Tensor) -> np.ndarray:
        z = ((f.detach().double().cpu() - mean.cpu()) / std.cpu()).float().numpy()
        return z if self._binary else np.concatenate([z, -z], 1)

    def _network(self, channels: int) -> Any:
        from art.estimators.classification import PyTorchClassifier

        network = nn.Sequential(
            nn.Linear(channels, self.width), nn.ReLU(), nn.Linear(self.width, 2)
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
        return PyTorchClassifier(
            network,
            nn.CrossEntropyLoss(),
            (channels,),
            2,
            optimizer=optimiser,
            device_type="cpu",
        )


class _Given:
    """What ART asks of a classifier, where the activations are given: they are the input."""

    layer_names: ClassVar[Sequence[str]] = ("features",)

    def get_activations(self, x: np.ndarray, *_: object) -> np.ndarray:
        return x


# the others look at images, and outputs hold none
ART = ("BinaryActivationDetector", "SubsetScanningDetector")

DETECTOR_LIBRARIES: dict[
    str, tuple[Callable[..., Detector], Callable[[], dict[str, type]]]
] = {
    "sklearn": (
        _sklearn,
        lambda: {
            n: c
            for n, c in all_estimators()
            if "score_samples" in dir(c) or issubclass(c, ClassifierMixin)
        },
    ),
    "pytorch_ood": (
        _pytorch_ood,
        lambda: classes_of(
            "pytorch_ood.detector",
            lambda c: "predict_features" in dir(c) or "predict_logits" in dir(c),
            install="pytorch-ood",
        ),
    ),
    "art": (
        _art,
        lambda: classes_of(
            "art.defences.detector.evasion",
            lambda c: c.__name__ in ART,
            install="adversarial-robustness-toolbox",
        ),
    ),
}
