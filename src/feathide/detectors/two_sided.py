"""Two-sided versions of densities: who hides makes features more normal than any clean image's,
and that shows as well.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from feathide.detectors.base import Detector, Layered, fitted
from feathide.detectors.density import KernelDensity
from feathide.detectors.head import Head
from feathide.errors import expected
from feathide.types import Evidence, Outputs

__all__ = ["TwoSided"]


@dataclass(frozen=True)
class Middle:
    """The median of each column over clean images, and the median deviation below and above it,
    all (L,).
    """

    median: Tensor
    below: Tensor
    above: Tensor

    def distance(self, columns: Tensor) -> Tensor:
        """How far each column lies from its median, in the median deviation of its side, (N,
        L).
        """
        away = columns - self.median.to(columns)
        return torch.maximum(away / self.above.to(columns), -away / self.below.to(columns))

    @staticmethod
    def fit(columns: Tensor) -> "Middle":
        """From the columns (N, L) of clean images; a side on which most are equal takes the unit
        of the other, or one.
        """
        median = columns.quantile(0.5, 0)
        away = columns - median
        below, above = (
            torch.stack([a[a >= 0].quantile(0.5) for a in side.T]) for side in (-away, away)
        )
        least = 1e-9 * columns.abs().amax(0).clamp_min(1e-9)
        sides = [
            torch.where(a > least, a, torch.where(b > least, b, 1.0))
            for a, b in ((below, above), (above, below))
        ]
        return Middle(median, *sides)


@dataclass(frozen=True)
class TwoSided(Detector):
    """The distance of the scores of ``inner`` from their clean medians, whichever side they lie
    on.

    Of each layer's score s, with m its median over the clean images of the detector-training
    split,

        column_l = (s - m) / above where s > m, (m - s) / below elsewhere,

    ``above`` and ``below`` the median deviations of the clean scores on each side; logistic
    regression over layers. s is what ``inner.columns`` gives: minus the log density of KD, the
    logarithm of a Mahalanobis distance or of an energy, which has two tails where the distance
    itself has one and ends at 0."""

    name: str = "kd-two-sided"
    inner: Layered = field(default_factory=KernelDensity)
    learnt_: tuple[Layered, Middle, Head] | None = field(
        default=None, repr=False, compare=False
    )

    def fit(self, evidence: Evidence) -> "TwoSided":
        if len(evidence.clean) < 2:
            raise expected(
                "two or more clean images are needed to know both sides of a score",
                got=len(evidence.clean),
                do="give more images to the detector-training split",
            )
        inner = self.inner.fit(evidence)
        middle = Middle.fit(inner.columns(evidence.clean.detach()).double())
        head = Head.fit(
            "logistic", lambda out: middle.distance(inner.columns(out)), evidence
        )
        return replace(self, learnt_=(inner, middle, head))

    def score(self, out: Outputs) -> Tensor:
        inner, middle, head = fitted(self.learnt_, self)
        return head(middle.distance(inner.columns(out)))
