"""Generated lesions: soft, textured, irregular spots blended into pictures and volumes, to see
whether a score notices what was never trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from feathide.errors import expected
from feathide.types import Box

__all__ = ["SIZES", "Lesions"]

# of the image's side: 4, 8, 16, 32 of 256
SIZES = {"tiny": 1 / 64, "small": 1 / 32, "medium": 1 / 16, "large": 1 / 8}


@dataclass(frozen=True)
class Lesions:
    """Ellipsoids with elastic deformation and smoothed random texture (Yao et al. 2023), for any
    number of spatial axes.

    With a(p) in [0, 1] the soft mask of a lesion, c its contrast and n a smoothed noise of unit
    variance

        x'(p) = clip( x(p) + a(p) (c + texture |c| n(p)),  box ).

    ``radius``: as a share of the image's mean side (see ``SIZES``), at least one pixel; each
    half-axis varies by up to 30 % and the axes are turned at random. ``count``: the least and the
    most lesions of an image. ``contrast``: the least and the most |c| as a share of the box,
    brighter or darker with equal chance. ``deformation``: how far the border is moved, and
    ``edge``: the width of the soft border, as shares of the radius."""

    radius: float = SIZES["medium"]
    count: tuple[int, int] = (1, 6)
    contrast: tuple[float, float] = (0.2, 0.5)
    texture: float = 0.4
    deformation: float = 0.35
    edge: float = 0.25

    def __call__(
        self,
        x: Tensor,
        ids: Sequence[str],
        *,
        seed: int = 0,
        box: Box = (0.0, 1.0),
        mask: Tensor | None = None,
    ) -> Tensor:
        """The images ``x`` (N, C, *S) with lesions, the same in all channels. An image's lesions
        are a function of ``seed`` and its id alone.

        ``mask`` (N or 1, *S): lesions have their centres where it is true and stay inside. Raises
        ``InputError`` for shapes that do not fit and for a mask without any room."""
        self._check(x, ids, mask)
        places = None if mask is None else mask.bool().cpu().numpy()
        images = []
        for i, name in enumerate(ids):
            inside = (
                np.ones(x.shape[2:], bool)
                if places is None
                else places[i if len(places) > 1 else 0]
            )
            images.append(self._change(inside, _generator(seed, name)))
        change = torch.from_numpy(np.stack(images)).to(x) * (box[1] - box[0])  # (N, *S)
        return (x + change[:, None]).clamp(*box)

    def _change(self, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What all lesions of one image add, as a share of the box, (*S)."""
        total = np.zeros(inside.shape)
        room = np.argwhere(inside)
        for _ in range(rng.integers(self.count[0], self.count[1] + 1)):
            contrast = rng.uniform(*self.contrast) * rng.choice((-1, 1))
            soft = self._soft(inside.shape, room[rng.integers(len(room))], rng)
            noise = _smooth_noise(
                inside.shape, max(0.35 * self._pixels(inside.shape), 0.7), rng
            )
            total = np.where(
                soft * abs(contrast) > abs(total),
                soft * contrast * (1 + self.texture * noise),
                total,
            )
        return total * inside

    def _soft(
        self, shape: tuple[int, ...], centre: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The mask of one lesion, (*S): 1 inside, 0 outside, a smooth step at the deformed
        border.
        """
        axes, r = len(shape), self._pixels(shape)
        turn, _ = np.linalg.qr(rng.standard_normal((axes, axes)))
        # (*S, axes)
        offset = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - centre
        shift = [
            self.deformation * r * _smooth_noise(shape, max(0.6 * r, 1.0), rng)
            for _ in range(axes)
        ]
        half = r * rng.uniform(0.7, 1.3, axes)
        distance = np.linalg.norm((offset + np.stack(shift, -1)) @ turn / half, axis=-1)
        step = np.clip((1 - distance) / self.edge + 0.5, 0, 1)
        return step * step * (3 - 2 * step)

    def _pixels(self, shape: tuple[int, ...]) -> float:
        return max(self.radius * float(np.mean(shape)), 1.0)

    def _check(self, x: Tensor, ids: Sequence[str], mask: Tensor | None) -> None:
        if x.ndim < 3 or len(ids) != len(x):
            raise expected(
                "images (N, C, *S) with one id each",
                got=f"{tuple(x.shape)} and {len(ids)} ids",
                do="align them",
            )
        if not (self.radius > 0 and self.edge > 0 and 1 <= self.count[0] <= self.count[1]):
            got = f"radius {self.radius:g}, edge {self.edge:g}, count {self.count}"
            raise expected(
                "a positive radius and edge, and 1 <= least <= most lesions",
                got=got,
                do="correct them",
            )
        if mask is not None:
            if mask.shape[1:] != x.shape[2:] or len(mask) not in (1, len(x)):
                got = f"{tuple(mask.shape)} for images {tuple(x.shape)}"
                raise expected(
                    "a mask (N or 1, *S)", got=got, do="leave out the channel axis"
                )
            if not bool(mask.bool().flatten(1).any(1).all()):
                raise expected(
                    "a mask with room for a lesion",
                    got="an empty one",
                    do="leave out these images",
                )


def _smooth_noise(
    shape: tuple[int, ...], sigma: float, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian-filtered white noise with mean 0 and variance 1 over the image."""
    noise = gaussian_filter(rng.standard_normal(shape), sigma)
    return (noise - noise.mean()) / max(noise.std(), 1e-12)


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(
        int.from_bytes(sha256(f"{seed}|lesions|{name}".encode()).digest()[:8], "little")
    )
