"""Images must lie in their valid range."""

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.types import Box

__all__ = ["check_images", "check_tensor"]


def check_tensor(what: str, value: object) -> None:
    """Refuse what is no tensor, an array of numpy above all."""
    if not isinstance(value, Tensor):
        raise expected(
            f"{what} must be a torch tensor",
            got=type(value).__name__,
            do="convert with torch.as_tensor(...)",
        )


def check_images(x: Tensor, box: Box) -> None:
    """Refuse images that are not finite floating-point numbers of the box."""
    check_tensor("images", x)
    if not x.is_floating_point():
        raise expected(
            "images must be floating-point numbers",
            got=x.dtype,
            do="convert them, and scale them to the box",
        )
    if not bool(torch.isfinite(x).all()):
        raise expected(
            "images must be finite",
            got="NaN or infinity",
            do="repair or leave out these images",
        )
    if x.numel() == 0:
        raise expected(
            "at least one image",
            got=f"shape {tuple(x.shape)}",
            do="give images (N, C, ...)",
        )
    lo, hi, slack = float(x.amin()), float(x.amax()), 1e-6 * (box[1] - box[0])
    if lo < box[0] - slack or hi > box[1] + slack:
        raise expected(
            f"x must lie in [{box[0]:g}, {box[1]:g}]",
            got=f"[{lo:g}, {hi:g}]",
            do="pass box=... or rescale",
        )
