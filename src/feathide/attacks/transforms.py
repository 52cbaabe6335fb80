"""Views and smoothing: what the network is shown of an iterate (DIM), what becomes of its
gradient (TIM), and perturbations without high frequencies, for any number of spatial axes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.data.noise import Noise
from feathide.errors import expected

__all__ = ["GaussianSmooth", "LowPass", "ResizeAndPad"]

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class ResizeAndPad:
    """DI-FGSM's view (Xie et al. 2019): with probability ``p`` an image is shrunk to between
    ``least`` and 100 % of its size on every axis and zero-padded back at a random place. Each
    image draws its own size and place, in pixels or voxels of each axis, whatever their spacing;
    the last axis draws first, so that a volume of depth 1 is treated as an image.
    """

    p: float = 0.5
    least: float = 0.9

    def __call__(self, x: Tensor, noise: Noise, k: int) -> Tensor:
        if x.ndim not in (4, 5):
            raise expected(
                "DIM needs images with 2 or 3 spatial axes",
                got=x.ndim - 2,
                do="use another attack",
            )
        # whether, how much, and the place on each axis
        u = noise.uniform((x.ndim,), draw=("view", k))
        rows = [
            self._one(x[i : i + 1], u[i]) if u[i, 0] < self.p else x[i : i + 1]
            for i in range(len(x))
        ]
        return torch.cat(rows)

    def _one(self, x: Tensor, u: Tensor) -> Tensor:
        factor = self.least + (1 - self.least) * float(u[1])
        size = [max(1, round(s * factor)) for s in x.shape[2:]]
        small = F.interpolate(x, size=size, mode=LINEAR[x.ndim - 2], align_corners=False)
        pad: list[int] = []
        for full, now, r in zip(
            reversed(x.shape[2:]), reversed(size), u[2:].tolist(), strict=True
        ):
            before = min(int(r * (full - now + 1)), full - now)
            pad += [before, full - now - before]  # F.pad, too, counts axes from the last
        return F.pad(small, pad)


@dataclass(frozen=True)
class GaussianSmooth:
    """TI-FGSM's smoothing (Dong et al. 2019): the gradient convolved with a Gaussian of ``taps``
    taps on each spatial axis, which reaches ``reach`` standard deviations; separable, each
    channel on its own, in pixels or voxels of each axis.
    """

    taps: int = 7
    reach: float = 3.0

    def __post_init__(self) -> None:
        if self.taps < 1 or self.taps % 2 == 0:
            raise expected(
                "taps must be odd",
                got=self.taps,
                do="give an odd number, so that the Gaussian has a middle",
            )

    def __call__(self, grad: Tensor) -> Tensor:
        t = torch.linspace(
            -self.reach, self.reach, self.taps, dtype=grad.dtype, device=grad.device
        )
        kernel = torch.exp(-t * t / 2)
        kernel = kernel / kernel.sum()
        axes, channels = grad.ndim - 2, grad.shape[1]
        if axes not in CONV:
            raise expected(
                "TIM needs images with 1 to 3 spatial axes",
                got=axes,
                do="use another attack",
            )
        for axis in range(axes):
            shape, padding = [1] * axes, [0] * axes
            shape[axis], padding[axis] = self.taps, self.taps // 2
            weight = kernel.reshape(1, 1, *shape).expand(channels, 1, *shape)
            grad = CONV[axes](grad, weight, padding=padding, groups=channels)
        return grad


@dataclass(frozen=True)
class LowPass:
    """The part of a perturbation (N, C, *S) in the lowest ``share`` of the frequencies of each
    spatial axis (cosine transform), as in Guo et al. 2020 and Sharma et al. 2019: the orthogonal
    projection, at least one frequency an axis.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise expected(
                "the share of frequencies must lie in (0, 1]",
                got=self.share,
                do="give 1 for all of them",
            )

    def __call__(self, delta: Tensor) -> Tensor:
        for axis in range(2, delta.ndim):
            n = delta.shape[axis]
            at = (torch.arange(n, dtype=delta.dtype, device=delta.device) + 0.5) * (
                math.pi / n
            )
            k = torch.arange(
                max(1, math.ceil(self.share * n)), dtype=delta.dtype, device=delta.device
            )
            # orthonormal rows
            waves = (
                torch.cos(k[:, None] * at)
                * torch.where(k == 0, 1.0, 2.0)[:, None].sqrt()
                / n**0.5
            )
            delta = (delta.movedim(axis, -1) @ (waves.T @ waves)).movedim(-1, axis)
        return delta
