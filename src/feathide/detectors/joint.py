"""Guards of our own: made to feel a large shift along one direction, which a mean over channels
and layers averages away.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from feathide.detectors.base import (
    Detector,
    Layers,
    class_features,
    features,
    fitted,
    layer_names,
    per_class,
)
from feathide.types import Evidence, Outputs

__all__ = ["JointGaussian", "RandomSubsets"]

ROWS = 2000  # about so many images of a class decide its axes
TOP = 5  # deviations that count


@dataclass(frozen=True)
class ClassAxes:
    """The principal axes of one class over some channels of all layers together.

    ``centre`` (C,), ``scale`` (C,) of the channels, ``axes`` (C, R) with ``deviation`` (R,) along
    them, and ``rest``, the root mean square of what the axes leave over."""

    centre: Tensor
    scale: Tensor
    axes: Tensor
    deviation: Tensor
    rest: Tensor

    @staticmethod
    def fit(x: Tensor, share: float, shrinkage: float) -> "ClassAxes":
        """From the joint features of a class (N, C): as many axes as hold the ``share`` of the
        variance, at most N / 4.
        """
        scale = x.std(0, correction=0)
        scale = scale.clamp_min((1e-3 * scale.max()).clamp_min(1e-12))
        z = ((x - x.mean(0)) / scale)[:: max(1, len(x) // ROWS)]
        _, singular, axes = torch.linalg.svd(z, full_matrices=False)  # descending
        values, axes = singular.square() / len(z), axes.T
        held = values.cumsum(0) / values.sum().clamp_min(1e-12)
        r = max(1, min(int((held < share).sum()) + 1, len(z) // 4))
        deviation = (
            ((1 - shrinkage) * values[:r] + shrinkage * values.mean())
            .sqrt()
            .clamp_min(1e-6)
        )
        rest = values[r:].sum().sqrt().clamp_min(1e-3 * math.sqrt(x.shape[1]))
        return ClassAxes(x.mean(0), scale, axes[:, :r], deviation, rest)

    def suspicion(self, x: Tensor) -> Tensor:
        """log(1 + sum of the ``TOP`` largest of the squared deviations along the axes and of what
        is left over), (N,).
        """
        z = (x - self.centre.to(x)) / self.scale.to(x)
        along = z @ self.axes.to(x)
        left = (z - along @ self.axes.to(x).T).square().sum(1) / self.rest.to(x).square()
        # (N, R + 1)
        u = torch.cat([(along / self.deviation.to(x)).square(), left[:, None]], 1)
        return torch.log1p(u.topk(min(TOP, u.shape[1]), 1).values.sum(1))


@dataclass(frozen=True)
class JointGaussian(Detector):
    """One-class: the largest deviations from the predicted class, over all layers taken together.

    With u_r the deviation of the joint features (all layers side by side, each channel in its own
    standard deviation) along the r-th principal axis of the predicted class, in standard
    deviations of that axis, and u_0 the residual outside the axes in units of its root mean
    square,

        score = log(1 + sum of the five largest u^2 of {u_0, u_1, ...}).

    A mean over channels, as in HFC's energy, hardly feels a shift of many deviations along a
    single axis; a sum of the largest does. The axes hold ``share`` of the variance and are at
    most a quarter as many as images; their variances are shrunk by ``shrinkage`` towards the mean
    over channels."""

    name: str = "joint"
    layers: Layers = "all"
    share: float = 0.95
    shrinkage: float = 0.05
    learnt_: tuple[tuple[str, ...], tuple[ClassAxes, ...]] | None = field(
        default=None, repr=False, compare=False
    )

    def fit(self, evidence: Evidence) -> "JointGaussian":
        names = layer_names(evidence.train, self.layers)
        groups = zip(*[class_features(evidence, name) for name in names], strict=True)
        return replace(
            self,
            learnt_=(
                names,
                tuple(
                    ClassAxes.fit(torch.cat(g, 1), self.share, self.shrinkage)
                    for g in groups
                ),
            ),
        )

    def score(self, out: Outputs) -> Tensor:
        names, axes = fitted(self.learnt_, self)
        x = torch.cat(features(out, names), 1)

        return per_class(out.normal_class, lambda c, rows: axes[c].suspicion(x[rows]))


@dataclass(frozen=True)
class RandomSubsets(Detector):
    """One-class: the mean score of ``members`` joint Gaussians, each over its own random
    ``share`` of the channels of all layers.

    The channels are drawn from ``seed``. Who does not know the seed cannot tell which directions
    are watched; who does can differentiate through all."""

    name: str = "ensemble"
    members: int = 8
    share: float = 0.5
    seed: int = 0
    learnt_: (
        tuple[tuple[str, ...], tuple[tuple[Tensor, tuple[ClassAxes, ...]], ...]] | None
    ) = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "RandomSubsets":
        names = layer_names(evidence.train, "all")
        groups = [
            torch.cat(g, 1)
            for g in zip(*[class_features(evidence, n) for n in names], strict=True)
        ]
        channels = groups[0].shape[1]
        random = torch.Generator().manual_seed(self.seed)
        members = []
        for _ in range(self.members):
            chosen = (
                torch.randperm(channels, generator=random)[
                    : max(1, round(self.share * channels))
                ]
                .sort()
                .values
            )
            members.append(
                (chosen, tuple(ClassAxes.fit(g[:, chosen], 0.95, 0.05) for g in groups))
            )
        return replace(self, learnt_=(names, tuple(members)))

    def score(self, out: Outputs) -> Tensor:
        names, members = fitted(self.learnt_, self)
        x = torch.cat(features(out, names), 1)

        def of_class(c: int, rows: Tensor) -> Tensor:
            return torch.stack(
                [
                    axes[c].suspicion(x[rows][:, chosen.to(x.device)])
                    for chosen, axes in members
                ]
            ).mean(0)

        return per_class(out.normal_class, of_class)
