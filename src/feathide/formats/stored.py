"""One image as its file holds it: whole numbers on a grid, and the line that turns them into
values.

N samples, C channels, S the spatial axes; an image is (C, *S).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from feathide.errors import expected
from feathide.types import Box

__all__ = ["StoredImage", "content_hash", "grid_of", "resize", "to_values", "with_channels"]

# bytes: unsigned pictures up to 16 bit are shown in [0, 1], everything else in its native units
MAX_SCALED = 2


@dataclass(frozen=True)
class StoredImage:
    """The numbers of one file (C, *S) and what they mean: value = slope * stored + intercept.

    ``legal`` is the range of values that the format allows, or None where only the data can tell
    (clinical files in native units, floats). A negative slope is a picture stored inverted
    (MONOCHROME1)."""

    stored: np.ndarray
    slope: float
    intercept: float
    legal: Box | None
    unit: str
    spacing: tuple[float, ...] | None = None
    orientation: str = ""

    @property
    def values(self) -> np.ndarray:
        """The image in box units, (C, *S) float32."""
        return to_values(self.stored, self.slope, self.intercept)

    @property
    def step(self) -> float:
        """The distance of two neighbouring stored grey levels, 0 for stored floats."""
        return abs(self.slope) if np.issubdtype(self.stored.dtype, np.integer) else 0.0

    def on(self, size: int | Sequence[int] | None, channels: int | None) -> "StoredImage":
        """The same image with other spatial sizes and channels, rounded to the stored type."""
        stored = resize(with_channels(self.stored, channels), size)
        if self.spacing is None:
            return replace(self, stored=stored)
        shapes = zip(self.spacing, self.stored.shape[1:], stored.shape[1:], strict=True)
        return replace(
            self, stored=stored, spacing=tuple(mm * old / new for mm, old, new in shapes)
        )


def to_values(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """slope * stored + intercept, computed in float64 and returned as float32."""
    return (stored * np.float64(slope) + np.float64(intercept)).astype(np.float32)


def grid_of(dtype: np.dtype, box: Box | None) -> tuple[float, Box | None, str]:
    """(slope, legal range, unit) of a plain array: unsigned 8 and 16 bit are pictures in [0, 1],
    the rest stays.

    With an explicit ``box`` the stored numbers are the values.
    """
    if box is None and dtype.kind == "u" and dtype.itemsize <= MAX_SCALED:
        return 1 / np.iinfo(dtype).max, (0.0, 1.0), "grey level"
    if box is None and dtype.kind == "f":
        return 1.0, (0.0, 1.0), "unit"
    if dtype.kind not in "uif":
        raise expected(
            "images must be numbers",
            got=str(dtype),
            do="store them as uint8, uint16, int16 or float32",
        )
    return 1.0, box, "grey level" if dtype.kind in "ui" else "unit"


def content_hash(stored: np.ndarray) -> str:
    """sha256 of shape, type and numbers of one stored image: equal for two files of the same
    picture.
    """
    sha = hashlib.sha256(f"{stored.shape}{stored.dtype.newbyteorder('<').str}".encode())
    sha.update(np.ascontiguousarray(stored, stored.dtype.newbyteorder("<")).tobytes())
    return sha.hexdigest()


def with_channels(stored: np.ndarray, channels: int | None) -> np.ndarray:
    """An image (C, *S) with one channel (ITU-R BT.601 luma of colour) or three (grey
    repeated).
    """
    c = len(stored)
    if channels is None or channels == c:
        return stored
    if channels == 3 and c == 1:
        return np.repeat(stored, 3, axis=0)
    if channels == 1 and c == 3:
        # (1, *S)
        return _cast(np.tensordot([[0.299, 0.587, 0.114]], stored, axes=1), stored.dtype)
    raise expected(
        "channels must be 1 or 3",
        got=f"{channels} for images of {c}",
        do="leave channels out",
    )


def resize(stored: np.ndarray, size: int | Sequence[int] | None) -> np.ndarray:
    """An image (C, *S) on another grid of pixels, rounded to its type.

    Separable linear interpolation, with the kernel widened where it shrinks (antialiasing), for
    any number of axes."""
    if size is None:
        return stored
    axes = stored.shape[1:]
    new = (size,) * len(axes) if isinstance(size, int) else tuple(size)
    if len(new) != len(axes) or min(new) < 1:
        raise expected(
            f"size must be {len(axes)} positive numbers",
            got=str(size),
            do="give one number per spatial axis",
        )
    if new == axes:
        return stored
    x = stored.astype(np.float64)
    for axis, n in enumerate(new, start=1):
        x = np.moveaxis(
            np.tensordot(_triangle(x.shape[axis], n), x, axes=(1, axis)), 0, axis
        )
    return _cast(x, stored.dtype)


def _triangle(old: int, new: int) -> np.ndarray:
    """The (new, old) matrix of antialiased linear interpolation between voxel centres."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(centres[:, None] - (np.arange(old) + 0.5)[None, :]) / max(scale, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(1, keepdims=True)


def _cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (np.rint(x) if np.issubdtype(dtype, np.integer) else x).astype(dtype)


def box_of(ranges: np.ndarray, legal: Box | None, name: str) -> Box:
    """The box of images whose lowest and highest values are ``ranges`` (N, 2): the legal one,
    else the data's.
    """
    low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())
    box = (low, high) if legal is None else (float(legal[0]), float(legal[1]))
    if low < box[0] or high > box[1]:
        what = f"images of {name} must lie in the box [{box[0]:g}, {box[1]:g}]"
        raise expected(
            what,
            got=f"[{low:g}, {high:g}]",
            do="pass box=(low, high) in their own units, or rescale them",
        )
    if not box[0] < box[1]:
        raise expected(
            f"images of {name} must not all be of one grey level",
            got=f"{low:g} everywhere",
            do="check the data",
        )
    return box
