"""Squeezers: what makes an image poorer and should leave its class as it is. For any number of
spatial axes and channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from feathide.errors import expected

__all__ = ["SQUEEZERS", "VERSION", "BitDepth", "Median", "Squeezer"]

# change it with any number below: what is stored is then computed again
VERSION = "squeezers 1"
Squeezer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BitDepth:
    """Images in [0, 1] rounded to 2^``bits`` grey levels.

    Rounding has no slope; the gradient is that of the identity, as an attacker who knows the
    squeezer takes it (Athalye et al. 2018)."""

    bits: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise expected(
                "bits must be 1 to 16",
                got=self.bits,
                do="give fewer bits than the images have",
            )

    def __call__(self, x: Tensor) -> Tensor:
        most = 2**self.bits - 1
        return x + ((x.clamp(0, 1) * most).round() / most - x).detach()


@dataclass(frozen=True)
class Median:
    """Each pixel as the median of the window of ``size`` pixels along each spatial axis around
    it; of an even number the upper of the two in the middle.

    Beyond its border an image goes on mirrored, as ``scipy.ndimage.median_filter`` has it. An
    axis of one pixel stays as it is. The gradient goes to the pixel that is the median."""

    size: int = 2

    def __post_init__(self) -> None:
        if self.size < 2:
            raise expected(
                "the window of a median must be 2 pixels or more wide",
                got=self.size,
                do="give 2 or 3",
            )

    def __call__(self, x: Tensor) -> Tensor:
        windows = x[..., None]
        for axis in (a for a in range(2, x.ndim) if x.shape[a] > 1):
            n, before = x.shape[axis], self.size // 2
            at = torch.arange(-before, n + self.size - 1 - before, device=x.device) % (
                2 * n
            )
            mirrored = windows.index_select(axis, torch.minimum(at, 2 * n - 1 - at))
            windows = mirrored.unfold(axis, self.size, 1).flatten(-2)
        return windows.sort(-1).values[..., windows.shape[-1] // 2]


SQUEEZERS: tuple[Squeezer, ...] = (BitDepth(5), Median(2))
