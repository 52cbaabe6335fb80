"""Threat models: the set of perturbations that an attacker may use, as a ball in a norm and the
box of valid images.

A perturbation ``delta`` has the shape of the images (N, C, *S); ``eps``, a number or one per
image (N,), is in units of the box. Everything works for any number of spatial axes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from feathide.data.noise import Noise
from feathide.errors import expected
from feathide.types import Box, Rows, per_sample

__all__ = ["L2", "Linf", "ThreatModel", "check_threat", "into_box", "over_norm"]


class ThreatModel(ABC):
    """A ball of radius ``eps`` around the clean image, in one norm.

    Attributes:
        eps: The radius in box units: a number, or one per image (N,); 0 or more.
    """

    eps: Tensor | float

    @abstractmethod
    def start(self, x: Tensor, noise: Noise, *, draw: object) -> Tensor:
        """A random perturbation in the ball, the shape of ``x``."""

    @abstractmethod
    def steepest(self, grad: Tensor) -> Tensor:
        """The direction of unit norm along which a linear function with gradient ``grad`` grows
        fastest.
        """

    @abstractmethod
    def project(self, delta: Tensor, x: Tensor, box: Box) -> Tensor:
        """``delta`` brought into the ball, then ``x + delta`` into the box."""

    @abstractmethod
    def whole(self, delta: Tensor, step: float) -> Tensor:
        """``delta`` in whole steps that stay in the ball: whole numbers, the shape of
        ``delta``.
        """

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation, (N,)."""

    @abstractmethod
    def at(self, rows: Rows) -> Self:
        """The same for some of the images: matters where ``eps`` is one number per image."""

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """The same ball, ``factor`` times as large."""


def check_threat(threat: object) -> None:
    """Refuse what is no threat model, a bare number above all."""
    if isinstance(threat, ThreatModel):
        return
    number = isinstance(threat, int | float | str)
    raise expected(
        "the threat model must be a ball of perturbations, such as Linf(4 / 255) or L2(1.0)",
        got=repr(threat) if number else f"a {type(threat).__name__}",
        do=f"say Linf({threat})" if number else "give one of them",
    )


@dataclass(frozen=True)
class Linf(ThreatModel):
    """The ball of the maximum norm: max_i |delta_i| <= eps.

    The steepest direction is the sign of the gradient.

    Args:
        eps: The largest change of a pixel in box units: a number, or one per image (N,).

    Examples:
        >>> Linf(4 / 255).size(torch.tensor([[0.01, -0.02]]))
        tensor([0.0200])
    """

    eps: Tensor | float

    def start(self, x: Tensor, noise: Noise, *, draw: object) -> Tensor:
        u = noise.uniform(tuple(x.shape[1:]), draw=draw).to(x)
        return (2 * u - 1) * per_sample(self.eps, x)

    def steepest(self, grad: Tensor) -> Tensor:
        return grad.sign()

    def project(self, delta: Tensor, x: Tensor, box: Box) -> Tensor:
        eps = per_sample(self.eps, x)
        return into_box(torch.clamp(delta, -eps, eps), x, box)

    def whole(self, delta: Tensor, step: float) -> Tensor:
        """The nearest whole steps, cut to the whole steps that fit in eps."""
        most = torch.floor(per_sample(self.eps, delta) / step + 1e-4)
        return torch.clamp((delta / step).round(), -most, most)

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def at(self, rows: Rows) -> Self:
        return replace(self, eps=_some(self.eps, rows))

    def scaled(self, factor: float) -> Self:
        return replace(self, eps=self.eps * factor)


@dataclass(frozen=True)
class L2(ThreatModel):
    """The ball of the Euclidean norm: sqrt(sum_i delta_i^2) <= eps.

    The steepest direction is the gradient divided by its Euclidean norm.

    Args:
        eps: The largest norm of the change in box units: a number, or one per image (N,).

    Examples:
        >>> L2(1.0).size(torch.tensor([[3.0, 4.0]]))
        tensor([5.])
    """

    eps: Tensor | float

    def start(self, x: Tensor, noise: Noise, *, draw: object) -> Tensor:
        """Uniform in the ball: a normal direction, at radius eps * u^(1/d) in d dimensions."""
        z = noise.normal(tuple(x.shape[1:]), draw=draw).to(x)
        u = noise.uniform((), draw=("radius", draw)).to(x)
        radius = per_sample(self.eps, x) * per_sample(u ** (1 / z[0].numel()), x)
        return radius * self.steepest(z)

    def steepest(self, grad: Tensor) -> Tensor:
        # so that squares of small gradients do not vanish
        scaled = over_norm(grad, grad.flatten(1).abs().amax(1))
        return over_norm(scaled, self.size(scaled))

    def project(self, delta: Tensor, x: Tensor, box: Box) -> Tensor:
        shrink = over_norm(per_sample(self.eps, delta).expand_as(delta), self.size(delta))
        return into_box(delta * shrink.clamp_max(1), x, box)

    def whole(self, delta: Tensor, step: float) -> Tensor:
        """All cut towards zero, then those that lost most raised to the next step, as many as the
        norm of ``delta`` has room for.
        """
        levels = (delta / step).flatten(1).double()
        size = levels.abs()
        low = torch.floor(size + 1e-6)
        lost, order = (size - low).sort(dim=1, descending=True, stable=True)
        room = size.square().sum(1, keepdim=True) - low.square().sum(1, keepdim=True)
        price = (2 * low + 1).gather(1, order).cumsum(1)
        up = torch.zeros_like(low).scatter(1, order, ((price <= room) & (lost > 0)).to(low))
        return ((low + up) * levels.sign()).to(delta).view_as(delta)

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def at(self, rows: Rows) -> Self:
        return replace(self, eps=_some(self.eps, rows))

    def scaled(self, factor: float) -> Self:
        return replace(self, eps=self.eps * factor)


def into_box(delta: Tensor, x: Tensor, box: Box) -> Tensor:
    """``delta`` cut so that ``x + delta`` lies in the box; what needs no cut is not touched, not
    even by rounding.
    """
    return torch.clamp(delta, box[0] - x, box[1] - x)


def over_norm(value: Tensor, norm: Tensor) -> Tensor:
    """``value`` (N, ...) over ``norm`` (N,); 0 / 0 is 0."""
    return value / per_sample(norm.clamp_min(torch.finfo(value.dtype).tiny), value)


def _some(eps: Tensor | float, rows: Rows) -> Tensor | float:
    if not isinstance(eps, Tensor) or eps.ndim == 0:
        return eps
    return eps[rows] if isinstance(rows, slice) else eps[rows.to(eps.device)]
