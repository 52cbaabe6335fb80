"""MAHA: the distance to the nearest class mean in units of the common covariance of all classes
(Lee et al. 2018).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from feathide.detectors.base import (
    Layered,
    Layers,
    class_features,
    features,
    fitted,
    layer_names,
)
from feathide.detectors.distance import log_of, squared
from feathide.detectors.head import Combine, Head
from feathide.types import Evidence, Outputs

__all__ = ["Mahalanobis", "TiedGaussian", "input_step"]


@dataclass(frozen=True)
class TiedGaussian:
    """One layer: class means and the whitening of the common covariance, W W^T = Sigma^-1.

    ``centre`` (C,), ``whiten`` W (C, C), ``means`` (K, C) of the classes, centred and whitened.
    """

    centre: Tensor
    whiten: Tensor
    means: Tensor

    def distance(self, x: Tensor) -> Tensor:
        """min_c (x - mu_c)^T Sigma^-1 (x - mu_c), (N,)."""
        z = (x - self.centre.to(x)) @ self.whiten.to(x)
        return squared(z, self.means.to(x)).amin(1)

    @staticmethod
    def fit(
        groups: tuple[Tensor, ...], shrinkage: float | Literal["auto"]
    ) -> "TiedGaussian":
        """From the features of each class, ``groups`` (N_c, C)."""
        means = torch.stack([g.mean(0) for g in groups])
        residual = torch.cat([g - m for g, m in zip(groups, means, strict=True)])
        scale = residual.std(0, correction=0)
        scale = scale.clamp_min(1e-3 * scale.max())
        z = residual / scale
        covariance = z.T @ z / len(z)
        if shrinkage == "auto":
            shrinkage = (
                ledoit_wolf_shrinkage(z.cpu().numpy(), assume_centered=True)
                if len(z) < 2 * z.shape[1]
                else 0.0
            )
        target = covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        values, vectors = torch.linalg.eigh(
            (1 - shrinkage) * covariance + shrinkage * target
        )
        whiten = vectors / values.clamp_min(1e-6 * values[-1]).sqrt() / scale[:, None]
        centre = means.mean(0)
        return TiedGaussian(centre, whiten, (means - centre) @ whiten)


@dataclass(frozen=True)
class Mahalanobis(Layered):
    """MAHA: per layer, the squared Mahalanobis distance to the nearest class mean, combined over
    layers by a ``Head``.

    column_l = min_c (f_l - mu_lc)^T Sigma_l^-1 (f_l - mu_lc), Sigma_l the covariance within
    classes of the training features. The square is that of the reference. Channels are brought to
    unit variance, then the covariance is shrunk towards a multiple of the identity by
    ``shrinkage`` in [0, 1]; "auto" is 0 (the plain estimate of the reference) from two samples
    per channel on, and Ledoit and Wolf's weight below. Variances under 1e-6 of the largest are
    raised to it, so constant or repeated channels do no harm. ``combine="mean"`` is the one-class
    version that never sees an adversarial example. For the input step see ``input_step``."""

    name: str = "maha"
    layers: Layers = "all"
    shrinkage: float | Literal["auto"] = "auto"
    combine: Combine = "logistic"
    learnt_: tuple[dict[str, TiedGaussian], Head] | None = field(
        default=None, repr=False, compare=False
    )

    def fit(self, evidence: Evidence) -> "Mahalanobis":
        names = layer_names(evidence.train, self.layers)
        gaussians = {
            name: TiedGaussian.fit(class_features(evidence, name), self.shrinkage)
            for name in names
        }
        return replace(
            self,
            learnt_=(
                gaussians,
                Head.fit(self.combine, lambda out: distances(gaussians, out), evidence),
            ),
        )

    def score(self, out: Outputs) -> Tensor:
        gaussians, head = fitted(self.learnt_, self)
        return head(distances(gaussians, out))

    def columns(self, out: Outputs) -> Tensor:
        """The logarithm of the distance in each layer, (N, L)."""
        gaussians, _ = fitted(self.learnt_, self)
        return log_of(distances(gaussians, out))


def distances(gaussians: dict[str, TiedGaussian], out: Outputs) -> Tensor:
    """The distance of each sample in each layer, (N, L)."""
    pairs = zip(features(out, list(gaussians)), gaussians.values(), strict=True)
    return torch.stack([gaussian.distance(x) for x, gaussian in pairs], 1)


def input_step(
    classifier: Callable[[Tensor], Outputs],
    detector: Mahalanobis,
    x: Tensor,
    magnitude: float,
) -> Tensor:
    """Lee et al.'s input step: ``x - magnitude * sign(grad_x distance)``, towards the nearest
    class.

    Clean images come much closer by it, others less. The distance is the sum over the detector's
    layers in units of their spread over the detector-training split; the reference takes one step
    per layer, which is ``layers=(name,)``. ``magnitude`` is in units of the box, which may be
    left by as much; the reference has 0.0005 among its values."""
    gaussians, head = fitted(detector.learnt_, detector)
    x = x.detach().requires_grad_()
    total = (distances(gaussians, classifier(x)) / head.scale.to(x)).sum()
    return (x - magnitude * torch.autograd.grad(total, x)[0].sign()).detach()
