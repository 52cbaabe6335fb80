"""Detectors of the image itself: a perturbation that hides in the features still stands in the
pixels.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from feathide.detectors.base import Detector, fitted, spread, trials
from feathide.detectors.head import Head
from feathide.detectors.learned import Machine, Search
from feathide.errors import expected
from feathide.types import Evidence, Outputs, Space

__all__ = ["FeatureSqueezing", "PixelRegression", "PixelStatistics"]


def statistics_of(out: Outputs) -> Tensor:
    """The statistics of the images (N, F), there and finite."""
    if out.statistics is None:
        raise expected(
            "outputs must hold statistics of the image",
            got="none",
            do=(
                "make the FeatureClassifier with "
                "statistics=feathide.detectors.residuals.statistics"
            ),
        )
    if not out.statistics.detach().isfinite().all():
        raise expected(
            "statistics of the image must be finite",
            got="NaN or infinity",
            do="check the images",
        )
    return out.statistics


@dataclass(frozen=True)
class PixelStatistics(Detector):
    """Pixel: the decision value of an RBF support-vector machine on standardised statistics of
    the image (``feathide.detectors.residuals``).

    score = sum_v a_v exp(-gamma || z - z_v ||^2) + b, z the local variances, gradients, high-pass
    residuals and Haar bands of the image: steganalysis (Fridrich and Kodovsky 2012), for which a
    perturbation is a hidden message. The network is not asked, so that it does not matter in
    which of its layers an attacker hides. Adversarial against clean and noisy, with cost and
    gamma chosen as for ``SupportVectors``. The gradient is exact, down to the pixels."""

    needs_statistics: ClassVar[bool] = True
    name: str = "pixel"
    search: Search = field(default_factory=Search)
    machine_: Machine | None = field(default=None, repr=False, compare=False)

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("image",)

    def fit(self, evidence: Evidence) -> "PixelStatistics":
        parts = [statistics_of(part) for part in trials(evidence, least=3)]
        spread(parts[0], "of the image")
        return replace(self, machine_=Machine.fit(parts, self.search))

    def score(self, out: Outputs) -> Tensor:
        return fitted(self.machine_, self)(statistics_of(out))


@dataclass(frozen=True)
class PixelRegression(Detector):
    """Pixel, linear: logistic regression on the statistics that ``PixelStatistics`` reads,
    adversarial against clean and noisy.
    """

    needs_statistics: ClassVar[bool] = True
    name: str = "pixel-linear"
    head_: Head | None = field(default=None, repr=False, compare=False)

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("image",)

    def fit(self, evidence: Evidence) -> "PixelRegression":
        return replace(self, head_=Head.fit("logistic", statistics_of, evidence))

    def score(self, out: Outputs) -> Tensor:
        return fitted(self.head_, self)(statistics_of(out))


@dataclass(frozen=True)
class FeatureSqueezing(Detector):
    """Feature squeezing (Xu et al. 2018): how far the answer moves when the image is made poorer.

    score = max_q sum_k | softmax(z)_k - softmax(z_q)_k |, in [0, 2], z the logits of the image
    and z_q those of its q-th squeezed version: five bits of grey levels, and a median over two
    pixels along each axis. Nothing is learnt. Rounding passes the gradient on as it is, the
    median to the pixel that it takes."""

    needs_squeezed: ClassVar[bool] = True
    takes_dense: ClassVar[bool] = False
    name: str = "squeeze"

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("image", "logits")

    def fit(self, evidence: Evidence) -> "FeatureSqueezing":
        return self

    def score(self, out: Outputs) -> Tensor:
        if out.squeezed is None:
            raise expected(
                "outputs must hold the logits of squeezed images (N, Q, K)",
                got="none",
                do=(
                    "make the FeatureClassifier with "
                    "squeezers=feathide.detectors.squeezing.SQUEEZERS"
                ),
            )
        if (
            not out.squeezed.detach().isfinite().all()
            or not out.logits.detach().isfinite().all()
        ):
            raise expected(
                "logits must be finite",
                got="NaN or infinity",
                do="check the images and weights",
            )
        # in float64: near 1, float32 has no digits left
        moved = out.logits.double().softmax(1)[:, None] - out.squeezed.double().softmax(2)
        return moved.abs().sum(2).amax(1).to(out.logits.dtype)
