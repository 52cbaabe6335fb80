"""Shifts of an image, harmless or harmful (``SHIFTS``, ``HARMLESS``): what else a detector's
score may see.

A shift is a function ``(x, ids, seed, box) -> x`` of images (N, C, *S); lesions also take
``mask``."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv1d, grid_sample, pad

from feathide.data.lesions import SIZES, Lesions
from feathide.data.noise import Noise
from feathide.types import Box

__all__ = [
    "HARMLESS",
    "SHIFTS",
    "Shift",
    "blur",
    "contrast",
    "gamma",
    "lesions",
    "noise",
    "rotation",
]

Shift = Callable[..., Tensor]


# --- shifts -------------------------------------------------------------------------------------


def lesions(size: str, count: tuple[int, int] = (1, 6)) -> Shift:
    """So many generated lesions of a size of ``SIZES``; inside ``mask`` (N or 1, *S), where the
    shift is given one.
    """
    spots = Lesions(radius=SIZES[size], count=count)

    def change(
        x: Tensor, ids: Sequence[str], seed: int, box: Box, mask: Tensor | None = None
    ) -> Tensor:
        return spots(x, ids, seed=seed, box=box, mask=mask)

    return change


def noise(sigma: float) -> Shift:
    """Gaussian noise of standard deviation ``sigma``, as a share of the box."""

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box) -> Tensor:
        drawn = Noise(seed, tuple(ids)).normal(tuple(x.shape[1:]), draw="noise shift").to(x)
        return (x + sigma * (box[1] - box[0]) * drawn).clamp(*box)

    return change


def blur(sigma: float) -> Shift:
    """A Gaussian of ``sigma`` pixels along every axis; the border is repeated."""

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box) -> Tensor:
        reach = max(1, round(3 * sigma))
        t = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        kernel = torch.exp(-(t**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).reshape(1, 1, -1)
        for axis in range(2, x.ndim):
            lines = x.movedim(axis, -1)
            padded = pad(
                lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate"
            )
            x = conv1d(padded, kernel).reshape(lines.shape).movedim(-1, axis)
        return x.clamp(*box)

    return change


def contrast(factor: float) -> Shift:
    """Each image's distance to its own mean, times ``factor``."""

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box) -> Tensor:
        mean = x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
        return (mean + factor * (x - mean)).clamp(*box)

    return change


def gamma(power: float) -> Shift:
    """Grey levels in [0, 1] of the box to the ``power``, as another scanner or film would show
    them.
    """
    return lambda x, ids, seed, box: (
        box[0] + (box[1] - box[0]) * ((x - box[0]) / (box[1] - box[0])).clamp(0, 1) ** power
    )


def rotation(degrees: float) -> Shift:
    """A turn in the plane of the last two axes about the centre, in pixels; the border is
    repeated. For images and volumes.
    """

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box) -> Tensor:
        angle, axes = torch.deg2rad(torch.tensor(degrees)), x.ndim - 2
        # rows and columns run from the last axis to the first
        turn = torch.eye(axes, axes + 1)
        wide = x.shape[-2] / x.shape[-1]
        turn[0, 0] = turn[1, 1] = angle.cos()
        turn[0, 1], turn[1, 0] = -angle.sin() * wide, angle.sin() / wide
        grid = affine_grid(
            turn.expand(len(x), -1, -1).to(x), list(x.shape), align_corners=False
        )
        return grid_sample(x, grid, padding_mode="border", align_corners=False).clamp(*box)

    return change


HARMLESS: Mapping[str, Shift] = {  # what a guard should not mind
    "noise": noise(0.01),
    "contrast": contrast(0.9),
    "gamma": gamma(1.1),
    "rotation": rotation(3),
}
SHIFTS: Mapping[str, tuple[str, Shift]] = {
    **{f"{size} lesions": ("lesion", lesions(size)) for size in SIZES},
    **{f"{n} medium": ("lesion", lesions("medium", (n, n))) for n in (1, 6)},
    **{f"noise {s:g}": ("acquisition", noise(s)) for s in (0.02, 0.05, 0.1)},
    **{f"blur {s:g} px": ("acquisition", blur(s)) for s in (0.7, 1.5)},
    **{f"contrast {c:g}": ("acquisition", contrast(c)) for c in (0.6, 1.4)},
    **{f"gamma {g:g}": ("acquisition", gamma(g)) for g in (0.7, 1.4)},
}
