"""What an attacker may know of an audit (``catalog.Known``)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from feathide.detectors import Detector
from feathide.metrics.statistics import threshold
from feathide.mixtures import MixtureBank
from feathide.types import Outputs

if TYPE_CHECKING:
    from feathide.pipeline.context import Context

__all__ = ["Attacker"]


@dataclass(frozen=True)
class Attacker:
    """What an attacker at one budget may know (``catalog.Known``)."""

    context: "Context"
    eps: float

    def bank(self) -> MixtureBank:
        return self.context.fitted.bank()

    def train(self) -> tuple[Outputs, Tensor]:
        return self.context.outputs.train()

    def detectors(
        self, names: Sequence[str] | None
    ) -> tuple[Sequence[Detector], Sequence[float], Sequence[float]]:
        """Detectors, by default all of the plan, their thresholds at 10 % false alarms, or their
        own where that is lower, and the standard deviations of their scores.
        """
        names, fitted = tuple(names or self.context.plan.detectors), self.context.fitted
        found = [fitted.detector(n, self.eps) for n in names]
        scores = [fitted.calibration(n, self.eps) for n in names]
        return (
            found,
            [_lower(threshold(s, 0.10), d) for d, s in zip(found, scores, strict=True)],
            [float(max(np.std(s), 1e-12)) for s in scores],
        )


def _lower(calibrated: float, detector: Detector) -> float:
    """The threshold below which an image passes, whichever of the two is used."""
    own = detector.own_threshold
    return calibrated if own is None else min(calibrated, own)
