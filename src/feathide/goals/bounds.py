"""Bound: a read-out with the value from which on an attack counts. A read-out is a number of one
image's prediction, with a name and a unit.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.metrics.readouts import dice, hausdorff95_mm, landmark_distance_mm, volume_ml
from feathide.types import Rows

__all__ = [
    "Bound",
    "Dice",
    "Farthest",
    "Moved",
    "ReadOut",
    "SurfaceDistance",
    "Volume",
    "spacing_of",
]

# reaching a bound is crossing it, whatever the rounding
TOLERANCE = 1e-6


class ReadOut(ABC):
    """A number of each image's prediction. Its tensors have one row an image."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """Such as ml or mm; empty for a share."""

    @abstractmethod
    def measure(self, found: Tensor, rows: Rows) -> Tensor:
        """The number (n,) of the predictions ``found`` of the images ``rows``: labels (n, *S), or
        positions (n, P, D) in voxels.
        """


@dataclass(frozen=True, eq=False)
class Volume(ReadOut):
    """The volume of a structure in ml, or of its part within ``place``.

    Args:
        label: The label of the structure.
        spacing: The size of a voxel (N, D) in mm.
        place: Where it is measured (N, *S), bool; None for everywhere.
    """

    label: int
    spacing: Tensor
    place: Tensor | None = None

    @property
    def name(self) -> str:
        return f"volume of {self.label}"

    @property
    def unit(self) -> str:
        return "ml"

    def measure(self, found: Tensor, rows: Rows) -> Tensor:
        mask = found == self.label
        if self.place is not None:
            mask = mask & self.place[rows]
        return volume_ml(mask, self.spacing[rows])


@dataclass(frozen=True, eq=False)
class Dice(ReadOut):
    """The Dice coefficient of a structure and a mask (N, *S), bool."""

    label: int
    true: Tensor

    @property
    def name(self) -> str:
        return f"Dice of {self.label}"

    @property
    def unit(self) -> str:
        return ""

    def measure(self, found: Tensor, rows: Rows) -> Tensor:
        return dice(found == self.label, self.true[rows])


@dataclass(frozen=True, eq=False)
class SurfaceDistance(ReadOut):
    """The 95 % Hausdorff distance in mm between a structure and a mask (N, *S), bool."""

    label: int
    true: Tensor
    spacing: Tensor

    @property
    def name(self) -> str:
        return f"surface distance of {self.label}"

    @property
    def unit(self) -> str:
        return "mm"

    def measure(self, found: Tensor, rows: Rows) -> Tensor:
        far = hausdorff95_mm(found == self.label, self.true[rows], self.spacing[rows])
        return far.to(found.device)


@dataclass(frozen=True, eq=False)
class Moved(ReadOut):
    """How far a landmark is from where it was, in mm; ``before`` (N, P, D) in voxels."""

    point: int
    before: Tensor
    spacing: Tensor

    @property
    def name(self) -> str:
        return f"landmark {self.point} moved"

    @property
    def unit(self) -> str:
        return "mm"

    def measure(self, found: Tensor, rows: Rows) -> Tensor:
        far = landmark_distance_mm(found, self.before[rows], self.spacing[rows])
        return far[:, self.point]


@dataclass(frozen=True, eq=False)
class Farthest(ReadOut):
    """How far the other landmarks are from where they were, in mm: the farthest of them."""

    point: int
    before: Tensor
    spacing: Tensor

    @property
    def name(self) -> str:
        return f"others than landmark {self.point} moved"

    @property
    def unit(self) -> str:
        return "mm"

    def measure(self, found: Tensor, rows: Rows) -> Tensor:
        far = landmark_distance_mm(found, self.before[rows], self.spacing[rows])
        others = [q for q in range(far.shape[1]) if q != self.point]
        return far[:, others].amax(1) if others else far.new_zeros(len(far))


@dataclass(frozen=True, eq=False)
class Bound:
    """A read-out and from where on it counts.

    Args:
        readout: What is measured.
        at: The bound of each image (N,), in the unit of the read-out.
        above: Whether it must be at least the bound; else at most.
        scale: What a difference is measured in (N,), positive, such as the volume before.
    """

    readout: ReadOut
    at: Tensor
    above: bool
    scale: Tensor

    def margin(self, found: Tensor, rows: Rows) -> Tensor:
        """How far beyond the bound the predictions are (n,), in units of ``scale``; positive once
        it is reached.
        """
        value = self.readout.measure(found, rows).to(self.at)
        beyond = value - self.at[rows] if self.above else self.at[rows] - value
        return beyond / self.scale[rows] + TOLERANCE


def spacing_of(
    spacing: Tensor | Sequence[float] | None, like: Tensor, axes: int, why: str
) -> Tensor:
    """The size of a voxel of each image (N, D), from one for all (D,) or one for each.

    Raises ``InputError`` where it is unknown and ``why`` needs it."""
    if spacing is None:
        raise expected(
            f"{why} needs the size of a voxel in mm",
            got="no spacing",
            do="give spacing=..., one number an axis, for all images (D,) or for each (N, D)",
        )
    given = torch.as_tensor(spacing, dtype=torch.float64).to(like.device)
    n = len(like)
    if given.ndim == 1:
        given = given.expand(n, -1)
    if given.shape != (n, axes) or not bool((given > 0).all()):
        raise expected(
            f"spacing must be positive and of shape ({axes},) or ({n}, {axes})",
            got=f"shape {tuple(given.shape)}, least {float(given.min()):g}",
            do="give the size of a voxel along every axis",
        )
    return given
