"""Purifiers: what a product does to an image before its network sees it. Some are random.

A purifier maps images in [0, 1], (N, C, *S), to images of the same shape. What has no slope passes
the gradient on as the identity would: the backward-pass differentiable approximation (BPDA) of
Athalye et al. (2018), which an attacker who knows the purifier takes. What is random draws from a
generator once for all images, so that no image's draw depends on its batch."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.detectors.squeezing import BitDepth, Median
from feathide.errors import expected, unknown

__all__ = [
    "PURIFIERS",
    "VERSION",
    "Cushion",
    "Jpeg",
    "NoiseAdded",
    "Purifier",
    "Resized",
    "Steps",
    "purifier_named",
]

# change it with any number below: what is stored is then computed again
VERSION = "purifiers 1"
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Purifier(Protocol):
    """What a product does to images in [0, 1] before its network sees them."""

    @property
    def random(self) -> bool: ...
    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Fixed:
    """A function of the image as a purifier that draws nothing."""

    change: Callable[[Tensor], Tensor]
    random: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.change(x)


@dataclass(frozen=True)
class Jpeg:
    """Images as a JPEG file of ``quality`` 1 to 95 gives them back: 8 bit, one or three channels.
    The gradient is that of the identity.
    """

    quality: int = 75

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise expected(
                "the quality of a JPEG must be 1 to 95", got=self.quality, do="correct it"
            )

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise expected(
                "JPEG files hold pictures (N, C, H, W) of 1 or 3 channels",
                got=f"shape {tuple(x.shape)}",
                do="choose another purifier",
            )
        with torch.no_grad():
            levels = (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
            back = np.stack([self._through(image) for image in levels])
            found = torch.from_numpy(back).to(x) / 255
        return x + (found - x).detach()

    def _through(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=self.quality)
        read = np.asarray(Image.open(file))
        return read[None] if read.ndim == 2 else read.transpose(2, 0, 1)


@dataclass(frozen=True)
class Cushion:
    """The lowest frequencies of an image: along each axis those up to ``share`` of the highest.

    Built after the summary of Cushion in Medical Aegis (Yao et al., arXiv 2111.10969), which
    removes high frequencies before the network. Our choices: a sharp cut, the same on each axis,
    of the image mirrored at its borders. It is linear, and its gradient exact."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise expected(
                "the share of frequencies must lie in (0, 1]", got=self.share, do="say 0.5"
            )

    def __call__(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        mirrored = x
        for axis in axes:
            mirrored = torch.cat([mirrored, mirrored.flip(axis)], axis)
        waves = torch.fft.fftn(mirrored, dim=axes)
        for axis in axes:
            each = torch.fft.fftfreq(mirrored.shape[axis], device=x.device).abs() * 2
            shape = [-1 if a == axis else 1 for a in range(x.ndim)]
            waves = waves * (each <= self.share + 1e-6).reshape(shape)
        found = torch.fft.ifftn(waves, dim=axes).real
        for axis in axes:
            found = found.narrow(axis, 0, x.shape[axis])
        return found


@dataclass(frozen=True)
class NoiseAdded:
    """Normal noise of standard deviation ``sigma`` added: averaged over draws it is the noise
    voting of MedRDF (arXiv 2111.14564), with probabilities in place of votes.
    """

    sigma: float = 0.05
    random: bool = True

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(x.shape[1:], generator=generator, dtype=torch.float32)
        return (x + self.sigma * noise.to(x)).clamp(0, 1)


@dataclass(frozen=True)
class Resized:
    """Images shrunk to between ``least`` and all of their size and zero-padded back at a random
    place (Xie et al. 2018), for any number of spatial axes.
    """

    least: float = 0.8
    random: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise expected(
                "the least size must be a share in (0, 1]", got=self.least, do="say 0.8"
            )

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(x.ndim - 1, generator=generator).tolist()
        share = self.least + (1 - self.least) * drawn[0]
        size = [max(1, round(share * side)) for side in x.shape[2:]]
        small = F.interpolate(x, size=size, mode=LINEAR[x.ndim - 2], align_corners=False)
        # F.pad counts from the last axis
        pads: list[int] = []
        for side, new, place in zip(x.shape[:1:-1], size[::-1], drawn[:0:-1], strict=True):
            before = math.floor(place * (side - new + 1))
            pads += [before, side - new - before]
        return F.pad(small, pads)


@dataclass(frozen=True)
class Steps:
    """Purifiers one after the other; draw j of seed s is always the same."""

    steps: Sequence[Purifier]
    seed: int = 0

    @property
    def random(self) -> bool:
        return any(step.random for step in self.steps)

    def __call__(self, x: Tensor, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        for step in self.steps:
            x = step(x, generator)
        return x


def _whole(
    make: Callable[[int], Callable[[Tensor], Tensor]],
) -> Callable[[float], Purifier]:
    return lambda value: Fixed(make(int(value)))


# name: what makes it of its number, and the number that is usual
PURIFIERS: dict[str, tuple[Callable[[float], Purifier], float]] = {
    "bits": (_whole(BitDepth), 5),
    "median": (_whole(Median), 3),
    "jpeg": (_whole(Jpeg), 75),
    "cushion": (lambda share: Fixed(Cushion(share)), 0.5),
    "noise": (NoiseAdded, 0.05),
    "resize": (Resized, 0.8),
}


def purifier_named(name: str) -> Purifier:
    """The purifier of a plan's ``jpeg 75``: a name of ``PURIFIERS`` and its number.

    Raises:
        InputError: An unknown name, or a number that it does not take.

    Example:
        >>> purifier_named("noise 0.1")
        NoiseAdded(sigma=0.1, random=True)
    """
    kind, _, value = name.strip().partition(" ")
    if kind not in PURIFIERS:
        raise unknown("purifier", kind, PURIFIERS)
    make, usual = PURIFIERS[kind]
    try:
        number = float(value) if value.strip() else usual
    except ValueError:
        raise expected(
            f"{kind} takes one number", got=repr(value), do=f"say {kind} {usual:g}"
        ) from None
    return make(number)
