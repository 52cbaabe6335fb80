"""How sure the classifier is of its answer: dropout, softmax, energy."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from feathide.detectors.base import Detector, fitted
from feathide.detectors.density import KernelDensity
from feathide.detectors.head import Head
from feathide.errors import expected
from feathide.types import Evidence, Outputs

__all__ = ["DensityAndDropout", "DropoutUncertainty", "FreeEnergy", "MaxSoftmax"]


def dropout_deviation(out: Outputs) -> Tensor:
    """The standard deviation over the dropout draws of the predicted class's probability, (N,)."""
    if out.stochastic is None or out.stochastic.shape[1] < 2:
        raise expected(
            "outputs must hold the logits of two or more dropout draws (N, S, K)",
            got="none" if out.stochastic is None else f"{out.stochastic.shape[1]}",
            do="make the FeatureClassifier with dropout_samples=50",
        )
    draws = out.stochastic.softmax(2)
    p = draws.gather(2, out.predicted[:, None, None].expand(-1, draws.shape[1], 1)).squeeze(2)  # (N, S)
    return p.var(1, correction=0).clamp_min(torch.finfo(p.dtype).tiny).sqrt()  # the root has no slope at 0


@dataclass(frozen=True)
class DropoutUncertainty(Detector):
    """BU (Feinman et al. 2017): the standard deviation of the predicted class's probability over dropout draws.

    The class is that of the plain logits. Nothing is learnt. The gradient is that of ``out.stochastic``.
    """

    needs_dropout: ClassVar[bool] = True
    name: str = "bu"

    def fit(self, evidence: Evidence) -> "DropoutUncertainty":
        return self

    def score(self, out: Outputs) -> Tensor:
        return dropout_deviation(out)


@dataclass(frozen=True)
class DensityAndDropout(Detector):
    """KD+BU (Feinman et al. 2017): logistic regression on the scores of ``density`` and of the dropout uncertainty."""

    needs_dropout: ClassVar[bool] = True
    name: str = "kd+bu"
    density: KernelDensity = field(default_factory=KernelDensity)
    learnt_: tuple[KernelDensity, Head] | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "DensityAndDropout":
        density = self.density.fit(evidence)
        return replace(self, learnt_=(density, Head.fit("logistic", lambda out: both(density, out), evidence)))

    def score(self, out: Outputs) -> Tensor:
        density, head = fitted(self.learnt_, self)
        return head(both(density, out))


def both(density: KernelDensity, out: Outputs) -> Tensor:
    """The two columns of KD+BU, (N, 2)."""
    return torch.stack([density.score(out), dropout_deviation(out)], 1)


@dataclass(frozen=True)
class MaxSoftmax(Detector):
    """Max-softmax (Hendrycks and Gimpel 2017): the log-odds log((1 - p) / p), p that of the predicted class.

    It orders samples as 1 - p does, without the ties of a p that rounds to 1. Nothing is learnt.
    """

    name: str = "msp"

    def fit(self, evidence: Evidence) -> "MaxSoftmax":
        return self

    def score(self, out: Outputs) -> Tensor:
        top = out.logits.gather(1, out.predicted[:, None])
        others = out.logits.scatter(1, out.predicted[:, None], -torch.inf)
        return others.logsumexp(1) - top.squeeze(1)


@dataclass(frozen=True)
class FreeEnergy(Detector):
    """Energy (Liu et al. 2020) at temperature 1: -log sum_j exp(z_j); small logits are suspicious. Nothing is learnt.

    A network with one sigmoid output z is shown as the logits (0, z), for which this is -log(1 + exp(z)).
    """

    name: str = "energy"

    def fit(self, evidence: Evidence) -> "FreeEnergy":
        return self

    def score(self, out: Outputs) -> Tensor:
        return -out.logits.logsumexp(1)
