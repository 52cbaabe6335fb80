"""How sure the classifier is of its answer: dropout, softmax, energy."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from feathide.detectors.base import Detector, fitted
from feathide.detectors.density import KernelDensity
from feathide.detectors.head import Head
from feathide.errors import expected
from feathide.types import Evidence, Outputs, Space

__all__ = [
    "DensityAndDropout",
    "DropoutUncertainty",
    "FreeEnergy",
    "LogitUncertainty",
    "MaxSoftmax",
]


def dropout_draws(out: Outputs) -> Tensor:
    """The logits of two or more dropout draws, (N, S, K), finite."""
    if out.stochastic is None or out.stochastic.shape[1] < 2:
        raise expected(
            "outputs must hold the logits of two or more dropout draws (N, S, K)",
            got="none" if out.stochastic is None else f"{out.stochastic.shape[1]}",
            do="make the FeatureClassifier with dropout_samples=50",
        )
    if not out.stochastic.detach().isfinite().all():
        raise expected(
            "the logits of dropout draws must be finite, they are",
            got="NaN or infinity",
            do="check images and weights",
        )
    return out.stochastic


def log_variance(out: Outputs) -> Tensor:
    """log( 1/K sum_k ( E[p_k^2] - E[p_k]^2 ) ) over the dropout draws, (N,).

    A probability that rounds to one varies as the sum of the others does, which keeps its digits;
    each class is brought to its largest draw before its variance is taken, so that none
    underflows."""
    log_p = dropout_draws(out).log_softmax(2)
    top = (
        log_p.detach().exp().mean(1).argmax(1)[:, None, None].expand(-1, log_p.shape[1], 1)
    )
    log_p = log_p.scatter(
        2, top, log_p.scatter(2, top, -torch.inf).logsumexp(2, keepdim=True)
    )
    unit = log_p.detach().amax(1, keepdim=True)
    least = torch.finfo(log_p.dtype).eps ** 2  # draws that agree
    variance = (log_p - unit).exp().var(1, correction=0).clamp_min(least)
    return (variance.log() + 2 * unit.squeeze(1)).logsumexp(1) - math.log(log_p.shape[2])


def disagreement(out: Outputs) -> Tensor:
    """What BU reads (N, 1): ``log_variance``, or of a dense network that of its voxels' mean."""
    if not out.dense:
        return log_variance(out)[:, None]
    if out.uncertainty is None:
        raise expected(
            "outputs must hold the uncertainty of dropout draws",
            got="none",
            do="make the FeatureClassifier with dropout_samples=10",
        )
    return out.uncertainty[:, :1]


def over_voxels(values: Tensor) -> Tensor:
    """One number an image (N,): the mean over the voxels of (N, *S)."""
    return values if values.ndim == 1 else values.flatten(1).mean(1)


def logit_deviation(out: Outputs, logit: int) -> Tensor:
    """The standard deviation of one logit over the dropout draws, (N,)."""
    z = dropout_draws(out)[:, :, logit]
    # the root has no slope at 0
    return z.var(1, correction=0).clamp_min(torch.finfo(z.dtype).tiny).sqrt()


def must_vary(draws: Tensor, what: str) -> None:
    """An error where no draw differs from another: nothing is uncertain then, and nothing could
    be learnt.
    """
    if (draws == draws[:, :1]).all():
        raise expected(
            f"{what} must differ between dropout draws",
            got="the same in all draws of all images",
            do="give the network a dropout that is not 0, or leave BU out",
        )


def draws_must_vary(clean: Outputs) -> None:
    """An error where dropout changes nothing."""
    if clean.dense:
        u = disagreement(clean)
        least = 2 * math.log(torch.finfo(u.dtype).eps)
        must_vary((u > least).float()[:, None].repeat(1, 2, 1).cumsum(1), "probabilities")
    else:
        must_vary(dropout_draws(clean).softmax(2), "probabilities")


@dataclass(frozen=True)
class DropoutUncertainty(Detector):
    """BU (Feinman et al. 2017): the variance of the softmax vector over dropout draws, oriented
    on the detector-training split.

    score = a + b log u with u = 1/K sum_k ( E[p_k^2] - E[p_k]^2 ), a and b from a logistic
    regression of adversarial against clean and noisy: which way is suspicious is learnt, since
    plain attacks can make a network surer than it is of clean images. The logarithm keeps the
    order of u, and its digits where the network is certain. The gradient is that of
    ``out.stochastic``."""

    needs_dropout: ClassVar[bool] = True
    name: str = "bu"
    head_: Head | None = field(default=None, repr=False, compare=False)

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("logits",)

    def fit(self, evidence: Evidence) -> "DropoutUncertainty":
        draws_must_vary(evidence.clean)
        return replace(self, head_=Head.fit("logistic", disagreement, evidence))

    def score(self, out: Outputs) -> Tensor:
        return fitted(self.head_, self)(disagreement(out))


@dataclass(frozen=True)
class LogitUncertainty(Detector):
    """BU as the scripts of Yao et al. 2023 compute it: the standard deviation of the raw logit of
    class 0 over dropout draws, oriented by a logistic regression of adversarial against clean and
    noisy.

    A network with one sigmoid output z is shown as the logits (0, z): its raw logit is z, that of
    class 1."""

    needs_dropout: ClassVar[bool] = True
    takes_dense: ClassVar[bool] = False
    name: str = "bu-logit"
    learnt_: tuple[int, Head] | None = field(default=None, repr=False, compare=False)

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("logits",)

    def fit(self, evidence: Evidence) -> "LogitUncertainty":
        draws = dropout_draws(evidence.clean)
        logit = 0 if draws.shape[2] > 2 or draws[:, :, 0].any() else 1
        must_vary(draws[:, :, logit], f"the logit of class {logit}")
        head = Head.fit(
            "logistic", lambda out: logit_deviation(out, logit)[:, None], evidence
        )
        return replace(self, learnt_=(logit, head))

    def score(self, out: Outputs) -> Tensor:
        logit, head = fitted(self.learnt_, self)
        return head(logit_deviation(out, logit)[:, None])


@dataclass(frozen=True)
class DensityAndDropout(Detector):
    """KD+BU (Feinman et al. 2017): logistic regression on the score of ``density`` and on the log
    variance of ``bu``.
    """

    needs_dropout: ClassVar[bool] = True
    name: str = "kd+bu"
    density: KernelDensity = field(default_factory=KernelDensity)
    learnt_: tuple[KernelDensity, Head] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("features", "logits")

    def fit(self, evidence: Evidence) -> "DensityAndDropout":
        draws_must_vary(evidence.clean)
        density = self.density.fit(evidence)
        return replace(
            self,
            learnt_=(
                density,
                Head.fit("logistic", lambda out: both(density, out), evidence),
            ),
        )

    def score(self, out: Outputs) -> Tensor:
        density, head = fitted(self.learnt_, self)
        return head(both(density, out))


def both(density: KernelDensity, out: Outputs) -> Tensor:
    """The two columns of KD+BU, (N, 2)."""
    return torch.cat([density.score(out)[:, None], disagreement(out)], 1)


@dataclass(frozen=True)
class MaxSoftmax(Detector):
    """Max-softmax (Hendrycks and Gimpel 2017): the log-odds log((1 - p) / p), p that of the
    predicted class.

    It orders samples as 1 - p does, without the ties of a p that rounds to 1. Nothing is learnt.
    """

    name: str = "msp"

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("logits",)

    def fit(self, evidence: Evidence) -> "MaxSoftmax":
        return self

    def score(self, out: Outputs) -> Tensor:
        found = out.predicted.unsqueeze(1)
        top = out.logits.gather(1, found)
        others = out.logits.scatter(1, found, -torch.inf)
        return over_voxels(others.logsumexp(1) - top.squeeze(1))


@dataclass(frozen=True)
class FreeEnergy(Detector):
    """Energy (Liu et al. 2020) at temperature 1: -log sum_j exp(z_j); small logits are
    suspicious. Nothing is learnt.

    A network with one sigmoid output z is shown as the logits (0, z), for which this is -log(1 +
    exp(z))."""

    name: str = "energy"

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("logits",)

    def fit(self, evidence: Evidence) -> "FreeEnergy":
        return self

    def score(self, out: Outputs) -> Tensor:
        return over_voxels(-out.logits.logsumexp(1))
