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

__all__ = ["L2", "Grid", "Linf", "Noise", "ThreatModel", "into_box"]

TINY = 1e-12


@dataclass(frozen=True)
class Noise:
    """Random numbers as a function of (seed, sample id, draw): the same for an image wherever it stands in whatever batch."""

    seed: int
    ids: tuple[str, ...]

    def __getitem__(self, rows: Rows) -> "Noise":
        if isinstance(rows, slice):
            return Noise(self.seed, self.ids[rows])
        return Noise(self.seed, tuple(self.ids[i] for i in rows.tolist()))

    def uniform(self, shape: tuple[int, ...], *, draw: object) -> Tensor:
        """Uniform on [0, 1), (N, *shape), float32, on the CPU."""
        return self._rows(lambda g: torch.rand(shape, generator=g), draw)

    def normal(self, shape: tuple[int, ...], *, draw: object) -> Tensor:
        """Standard normal, (N, *shape), float32, on the CPU."""
        return self._rows(lambda g: torch.randn(shape, generator=g), draw)

    def _rows(self, make, draw: object) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.stack([make(self._generator(name, draw)) for name in self.ids])

    def _generator(self, name: str, draw: object) -> torch.Generator:
        key = sha256(f"{self.seed}|{name}|{draw}".encode()).digest()
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
        return grad / per_sample(self.size(grad).clamp_min(TINY), grad)

    def project(self, delta: Tensor, x: Tensor, box: Box) -> Tensor:
        shrink = per_sample(self.eps, x) / per_sample(self.size(delta).clamp_min(TINY), x)
        return into_box(delta * shrink.clamp_max(1), x, box)

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def at(self, rows: Rows) -> Self:
        return replace(self, eps=_some(self.eps, rows))

    def scaled(self, factor: float) -> Self:
        return replace(self, eps=self.eps * factor)


@dataclass(frozen=True)
class Grid:
    """The values that a file can hold: lo + k * step. ``Grid(1 / 255)`` is an 8-bit picture in [0, 1].

    ``store`` gives the image as it will be read back from the file, without leaving the ball: the perturbation is rounded to whole
    steps, then cut to the whole steps that fit in eps (L-infinity) or towards the clean image (other norms). The clean
    image must lie on the grid.
    """

    step: float

    def store(self, x: Tensor, delta: Tensor, threat: ThreatModel, box: Box) -> Tensor:
        levels = delta / self.step
        if isinstance(threat, Linf):
            most = torch.floor(per_sample(threat.eps, x) / self.step + 1e-4)
            levels = torch.clamp(levels.round(), -most, most)
        else:
            levels = levels.trunc()
        base = torch.round((x - box[0]) / self.step)
        top = round((box[1] - box[0]) / self.step)
        return box[0] + (base + levels).clamp(0, top) * self.step

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


def into_box(delta: Tensor, x: Tensor, box: Box) -> Tensor:
    """``delta`` cut so that ``x + delta`` lies in the box."""
    return torch.clamp(x + delta, *box) - x


def _some(eps: Tensor | float, rows: Rows) -> Tensor | float:
    return eps[rows] if isinstance(eps, Tensor) and eps.ndim else eps
