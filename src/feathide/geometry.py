"""Threat models: the set of perturbations that an attacker may use, as a ball in a norm and the box of valid images.

A perturbation ``delta`` has the shape of the images (N, C, *S); ``eps``, a number or one per image (N,), is in units of the box.
Everything works for any number of spatial axes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Self

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.types import Box, Rows, per_sample

__all__ = ["L2", "Grid", "Linf", "Noise", "ThreatModel", "check_images", "into_box", "over_norm"]


@dataclass(frozen=True)
class Noise:
    """Random numbers as a function of (seed, sample id, draw): the same for an image wherever it stands in whatever batch.

    ``scope`` sets apart the draws of one run from those of another, such as a restart.
    """

    seed: int
    ids: tuple[str, ...]
    scope: str = ""

    def __getitem__(self, rows: Rows) -> "Noise":
        ids = self.ids[rows] if isinstance(rows, slice) else tuple(self.ids[i] for i in rows.tolist())
        return replace(self, ids=ids)

    def within(self, scope: object) -> "Noise":
        """Other random numbers for the same images: those of run ``scope``."""
        return replace(self, scope=f"{self.scope}/{scope}")

    def uniform(self, shape: tuple[int, ...], *, draw: object) -> Tensor:
        """Uniform on [0, 1), (N, *shape), float32, on the CPU."""
        return self._rows(lambda g: torch.rand(shape, generator=g), draw)

    def normal(self, shape: tuple[int, ...], *, draw: object) -> Tensor:
        """Standard normal, (N, *shape), float32, on the CPU."""
        return self._rows(lambda g: torch.randn(shape, generator=g), draw)

    def _rows(self, make, draw: object) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.stack([make(self._generator(name, draw)) for name in self.ids])

    def _generator(self, name: str, draw: object) -> torch.Generator:
        key = sha256(f"{self.seed}{self.scope}|{name}|{draw}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


class ThreatModel(ABC):
    """A ball of radius ``eps`` around the clean image, in one norm."""

    eps: Tensor | float

    @abstractmethod
    def start(self, x: Tensor, noise: Noise, *, draw: object) -> Tensor:
        """A random perturbation in the ball, the shape of ``x``."""

    @abstractmethod
    def steepest(self, grad: Tensor) -> Tensor:
        """The direction of unit norm along which a linear function with gradient ``grad`` grows fastest."""

    @abstractmethod
    def project(self, delta: Tensor, x: Tensor, box: Box) -> Tensor:
        """``delta`` brought into the ball, then ``x + delta`` into the box."""

    @abstractmethod
    def whole(self, delta: Tensor, step: float) -> Tensor:
        """``delta`` in whole steps that stay in the ball: whole numbers, the shape of ``delta``."""

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation, (N,)."""

    @abstractmethod
    def at(self, rows: Rows) -> Self:
        """The same for some of the images: matters where ``eps`` is one number per image."""

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """The same ball, ``factor`` times as large."""


@dataclass(frozen=True)
class Linf(ThreatModel):
    """max |delta_i| <= eps. The steepest direction is the sign of the gradient."""

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
    """sqrt(sum delta_i^2) <= eps. The steepest direction is the gradient over its Euclidean norm."""

    eps: Tensor | float

    def start(self, x: Tensor, noise: Noise, *, draw: object) -> Tensor:
        """Uniform in the ball: a normal direction, at radius eps * u^(1/d) in d dimensions."""
        z = noise.normal(tuple(x.shape[1:]), draw=draw).to(x)
        u = noise.uniform((), draw=("radius", draw)).to(x)
        radius = per_sample(self.eps, x) * per_sample(u ** (1 / z[0].numel()), x)
        return radius * self.steepest(z)

    def steepest(self, grad: Tensor) -> Tensor:
        scaled = over_norm(grad, grad.flatten(1).abs().amax(1))  # so that squares of small gradients do not vanish
        return over_norm(scaled, self.size(scaled))

    def project(self, delta: Tensor, x: Tensor, box: Box) -> Tensor:
        shrink = over_norm(per_sample(self.eps, delta).expand_as(delta), self.size(delta))
        return into_box(delta * shrink.clamp_max(1), x, box)

    def whole(self, delta: Tensor, step: float) -> Tensor:
        """All cut towards zero, then those that lost most raised to the next step, as many as the norm of ``delta`` has room for."""
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


@dataclass(frozen=True)
class Grid:
    """The values that a file can hold: lo + k * step. ``Grid(1 / 255)`` is an 8-bit picture in [0, 1].

    ``store`` gives the image as it will be read back from the file, without leaving the ball (see ``ThreatModel.whole``). The clean
    image must lie on the grid.
    """

    step: float

    def store(self, x: Tensor, delta: Tensor, threat: ThreatModel, box: Box) -> Tensor:
        base = torch.round((x - box[0]) / self.step)
        top = round((box[1] - box[0]) / self.step)
        levels = (base + threat.whole(delta, self.step)).clamp(0, top)
        return (box[0] + levels * self.step).clamp(*box)

    def check(self, x: Tensor, box: Box) -> None:
        """Refuse clean images that are not on the grid."""
        off = (x - box[0]) / self.step
        gap = float((off - off.round()).abs().amax())
        if gap > 0.02:
            raise expected(
                f"clean images must lie on the storage grid of step {self.step:g}",
                got=f"values up to {gap:.2f} of a step off",
                do="give the step of the stored images, or grid=None to keep floating-point images",
            )


def check_images(x: Tensor, box: Box) -> None:
    """Refuse images that are not finite floating-point numbers of the box."""
    if not x.is_floating_point():
        raise expected(
            "images must be floating-point numbers", got=x.dtype, do="convert them, and scale them to the box"
        )
    if not bool(torch.isfinite(x).all()):
        raise expected("images must be finite", got="NaN or infinity", do="repair or leave out these images")
    if x.numel() == 0:
        raise expected("at least one image", got=f"shape {tuple(x.shape)}", do="give images (N, C, ...)")
    lo, hi, slack = float(x.amin()), float(x.amax()), 1e-6 * (box[1] - box[0])
    if lo < box[0] - slack or hi > box[1] + slack:
        raise expected(f"x must lie in [{box[0]:g}, {box[1]:g}]", got=f"[{lo:g}, {hi:g}]", do="pass box=... or rescale")


def into_box(delta: Tensor, x: Tensor, box: Box) -> Tensor:
    """``delta`` cut so that ``x + delta`` lies in the box; what needs no cut is not touched, not even by rounding."""
    return torch.clamp(delta, box[0] - x, box[1] - x)


def over_norm(value: Tensor, norm: Tensor) -> Tensor:
    """``value`` (N, ...) over ``norm`` (N,); 0 / 0 is 0."""
    return value / per_sample(norm.clamp_min(torch.finfo(value.dtype).tiny), value)


def _some(eps: Tensor | float, rows: Rows) -> Tensor | float:
    if not isinstance(eps, Tensor) or eps.ndim == 0:
        return eps
    return eps[rows] if isinstance(rows, slice) else eps[rows.to(eps.device)]
