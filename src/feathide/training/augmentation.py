"""Augmentation of training images, for any number of axes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathide.types import per_sample

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """Harmless changes, drawn anew for every image and epoch.

    A shift by up to ``shift`` of each axis (edges repeated), a contrast factor 1 +- ``contrast``,
    a brightness of +- ``brightness`` standard deviations (the images are normalised), and along
    each axis in ``flips`` (0 is the first spatial one) a mirror image half of the time: off by
    default, since the body is not symmetric."""

    shift: float = 0.06
    contrast: float = 0.15
    brightness: float = 0.15
    flips: tuple[int, ...] = ()

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, axes = len(x), x.ndim - 2

        def draw() -> Tensor:
            return torch.rand(n, generator=generator) * 2 - 1  # (N,) in [-1, 1)

        for axis in range(2, 2 + axes):
            size = x.shape[axis]
            move = (draw() * self.shift * size).round().long()
            index = (torch.arange(size) + move[:, None]).clamp(0, size - 1)  # (N, S_axis)
            if axis - 2 in self.flips:
                index = torch.where(draw()[:, None] < 0, index.flip(1), index)
            index = index.reshape(
                n, 1, *[size if a == axis else 1 for a in range(2, 2 + axes)]
            )
            x = x.gather(axis, index.expand_as(x))
        return x * per_sample(1 + self.contrast * draw(), x) + per_sample(
            self.brightness * draw(), x
        )
