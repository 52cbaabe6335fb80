"""Augmentation of training images, for any number of axes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.errors import expected
from feathide.types import per_sample

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """Harmless changes, drawn anew for every image and epoch.

    A shift by up to ``shift`` of each axis (edges repeated), a contrast factor 1 +- ``contrast``,
    a brightness of +- ``brightness`` standard deviations (the images are normalised), and along
    each axis in ``flips`` (0 is the first spatial one) a mirror image half of the time: off by
    default, since the body is not symmetric. ``crop``: up to this share of each axis is cut away
    and what is left enlarged to the size of the image. ``rotate``: a turn by up to so many
    degrees; of volumes in the plane of a pair of axes, drawn for each image, in voxels. Both are
    for images of two or three axes, interpolate linearly and repeat the edges; off by default."""

    shift: float = 0.06
    contrast: float = 0.15
    brightness: float = 0.15
    flips: tuple[int, ...] = ()
    crop: float = 0.0
    rotate: float = 0.0

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
        if self.crop or self.rotate:
            x = self._moved(x, draw)
        return x * per_sample(1 + self.contrast * draw(), x) + per_sample(
            self.brightness * draw(), x
        )

    def _moved(self, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """The images enlarged about a random point and turned about their middle."""
        n, size = len(x), x.shape[2:]
        if len(size) not in (2, 3):
            raise expected(
                "crop and rotate are for images of two or three axes",
                got=f"images of {len(size)}",
                do="leave them out",
            )
        kept = 1 - self.crop * (draw() + 1) / 2  # (N,) of each axis
        turn = draw() * math.radians(self.rotate)
        # the pair of axes that is turned, of the three of a volume
        pair = ((draw() + 1) / 2 * 3).long() if len(size) == 3 else torch.zeros(n).long()
        places = torch.stack(
            [draw() for _ in size], 1
        )  # (N, axes) of the middle of what is kept
        matrix = torch.stack(
            [_turn(size, float(a), int(p)) for a, p in zip(turn, pair, strict=True)]
        )
        where = places * (1 - kept)[:, None]
        theta = torch.cat([kept[:, None, None] * matrix, where[:, :, None]], 2)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _turn(size: Sequence[int], angle: float, pair: int) -> Tensor:
    """The matrix that turns points by ``angle`` in the plane of two axes, in coordinates from -1
    to 1 of each axis, the last axis first, as torch's grids have them.
    """
    i, j = ((0, 1), (0, 2), (1, 2))[pair]
    matrix = torch.eye(len(size))
    c, s = math.cos(angle), math.sin(angle)
    length = size[::-1]
    matrix[i, i], matrix[i, j] = c, -s * length[j] / length[i]
    matrix[j, i], matrix[j, j] = s * length[i] / length[j], c
    return matrix
