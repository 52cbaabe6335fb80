"""Detectors of the image itself: what an attacker cannot hide in the features, since he had to write it into the pixels."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from feathide.detectors.base import Detector, fitted, spread, trials
from feathide.detectors.learned import Machine, Search
from feathide.errors import expected
from feathide.types import Evidence, Outputs

__all__ = ["PixelStatistics"]


def statistics_of(out: Outputs) -> Tensor:
    """The statistics of the images (N, F), there and finite."""
    if out.statistics is None:
        raise expected(
            "outputs must hold statistics of the image",
            got="none",
            do="make the FeatureClassifier with statistics=feathide.residuals.statistics",
        )
    if not out.statistics.detach().isfinite().all():
        raise expected("statistics of the image must be finite", got="NaN or infinity", do="check the images")
    return out.statistics


@dataclass(frozen=True)
class PixelStatistics(Detector):
    """Pixel: the decision value of an RBF support-vector machine on standardised statistics of the image (``feathide.residuals``).

    score = sum_v a_v exp(-gamma || z - z_v ||^2) + b, z the local variances, gradients, high-pass residuals and Haar bands of the image: steganalysis (Fridrich
    and Kodovsky 2012), for which a perturbation is a hidden message. The network is not asked, so that it does not matter in which of its layers an
    attacker hides. Adversarial against clean and noisy, with cost and gamma chosen as for ``SupportVectors``. The gradient is exact, down to the pixels.
    """

    needs_image: ClassVar[bool] = True
    reads = "image"
    name: str = "pixel"
    search: Search = field(default_factory=Search)
    machine_: Machine | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "PixelStatistics":
        parts = [statistics_of(part) for part in trials(evidence, least=3)]
        spread(parts[0], "of the image")
        return replace(self, machine_=Machine.fit(parts, self.search))

    def score(self, out: Outputs) -> Tensor:
        return fitted(self.machine_, self)(statistics_of(out))
