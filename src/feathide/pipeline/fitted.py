"""What is fitted to stored outputs: the mixtures of the clean features, and the detectors."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from feathide.detectors import Detector
from feathide.execution.packing import scored, taught
from feathide.execution.store import Store
from feathide.mixtures import MixtureBank
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.outputs import StoredOutputs
from feathide.pipeline.steps import Steps
from feathide.types import Evidence

__all__ = ["Fitted"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Mixtures and detectors of one plan; the detectors learn anew at each budget."""

    store: Store
    steps: Steps
    outputs: StoredOutputs

    def bank(self) -> MixtureBank:
        """The mixtures, from their file."""
        return _bank(self)

    def evidence(self, eps: float) -> Evidence:
        """What the detectors learn from: rows of the detector-training split that the classifier
        gets right, as they are, noisy and attacked.
        """
        part = "detector-training"
        train, labels = self.outputs.train()
        attack = self.steps.condition(self.steps.taught_by(eps))
        adversarial, rows = self.outputs.of(attack, part)
        clean = self.outputs.at("clean", part, rows)
        noisy = self.outputs.at(noisy_at(eps), part, rows)
        return Evidence(train, labels, clean, noisy, adversarial)

    def detector(self, name: str, eps: float) -> Detector:
        """A detector that has learnt."""
        return _detector(self, name, eps)

    def calibration(self, name: str, eps: float) -> np.ndarray:
        """Scores of the calibration split, clean and noisy, misclassified cases included."""
        parts = [self.outputs.of(c, "calibration")[0] for c in ("clean", noisy_at(eps))]
        return np.concatenate([scored(self.detector(name, eps), p) for p in parts])


@lru_cache(maxsize=1)
def _bank(fitted: Fitted) -> MixtureBank:
    arrays = fitted.store.load(fitted.steps.mixtures.key)
    content = str(arrays.pop("content"))
    tensors = {k: torch.from_numpy(v) for k, v in arrays.items()}
    return MixtureBank.unpacked(tensors, content)


@lru_cache(maxsize=64)
def _detector(fitted: Fitted, name: str, eps: float) -> Detector:
    return taught(name, _evidence(fitted, eps))


@lru_cache(maxsize=2)
def _evidence(fitted: Fitted, eps: float) -> Evidence:
    return fitted.evidence(eps)
