"""Images as a file holds them: whole grey levels above the floor of the range of values."""

import numpy as np
import torch
from torch import Tensor

from feathide.attacks.grid import Grid
from feathide.types import Box

__all__ = ["decode", "encode"]


def encode(x: Tensor, grid: Grid | None, box: Box) -> np.ndarray:
    """The images as whole grey levels above the box's floor, in the smallest type that holds
    them; floats where there is no grid.
    """
    if grid is None:
        return x.cpu().numpy()
    top = round((box[1] - box[0]) / grid.step)
    kind = np.uint8 if top < 2**8 else np.uint16 if top < 2**16 else np.uint32
    return ((x.double() - box[0]) / grid.step).round().cpu().numpy().astype(kind)


def decode(image: np.ndarray, grid: Grid | None, box: Box) -> Tensor:
    """The images that the stored levels stand for, in box units."""
    if grid is None:
        return torch.from_numpy(image)
    return torch.from_numpy(box[0] + image.astype(np.float64) * grid.step).float()
