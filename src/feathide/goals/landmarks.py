"""LandmarkGoal: wanted places of landmarks; one moves, the others stay."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feathide.data.valid_range import check_tensor
from feathide.errors import expected
from feathide.goals.bounds import Bound, Farthest, Moved, spacing_of
from feathide.goals.masks import nearer
from feathide.models.regions import positions
from feathide.types import Aim, Outputs, Rows, tensors

__all__ = ["LandmarkGoal", "MoveLandmark"]

# a landmark is asked to move farther than counts
MORE = 1.25


@dataclass(frozen=True, eq=False)
class LandmarkGoal(Aim):
    """What the attacker wants of a landmark network. ``MoveLandmark`` makes it.

    Args:
        source: The places before (N, P, D) in voxels.
        target: The wanted places (N, P, D) in voxels.
        spacing: The size of a voxel (N, D) in mm.
        size: The size S of the images.
        bounds: The read-outs that must have crossed their bounds, all of them.
    """

    source: Tensor
    target: Tensor
    spacing: Tensor
    size: torch.Size
    bounds: tuple[Bound, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Rows) -> "LandmarkGoal":
        return self._each(lambda v: v[rows])

    def to(self, device: torch.device) -> "LandmarkGoal":
        return self._each(lambda v: v.to(device))

    def _each(self, change) -> "LandmarkGoal":  # type: ignore[no-untyped-def]
        return LandmarkGoal(
            change(self.source),
            change(self.target),
            change(self.spacing),
            self.size,
            tensors(self.bounds, change),
        )

    @property
    def normal_class(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.long, device=self.source.device)

    @property
    def clean_class(self) -> Tensor:
        return self.normal_class

    @property
    def in_logits(self) -> bool:
        return False

    def assumed(self, rows: Rows) -> None:
        return None

    def check(self, x: Tensor, ids: Sequence[str]) -> None:
        if self.size != x.shape[2:]:
            raise expected(
                f"the goal must be made for the size of the images, {tuple(x.shape[2:])}",
                got=tuple(self.size),
                do="give size=images.shape[2:]",
            )

    def check_outputs(self, out: Outputs) -> None:
        found = positions(out.logits, self.size)
        if found.shape[1:] != self.source.shape[1:]:
            raise expected(
                f"the network must give {self.source.shape[1]} landmarks, as the goal",
                got=f"outputs of shape {tuple(out.logits.shape)}",
                do="give the places of all of the network's landmarks",
            )

    def margin(self, out: Outputs, rows: Rows) -> Tensor:
        found = positions(out.logits, self.size)
        margins = [bound.margin(found, rows) for bound in self.bounds]
        return torch.stack(margins).amin(0).to(out.logits)

    def rank(self, fool: Tensor, margin: Tensor) -> Tensor:
        return nearer(fool, margin)

    def measured(self, out: Outputs) -> dict[str, Tensor]:
        """The read-outs (N,) of predictions of all images, by name with unit."""
        found = positions(out.logits, self.size)
        return {
            f"{b.readout.name} [{b.readout.unit}]": b.readout.measure(found, slice(None))
            for b in self.bounds
        }

    def hit(self, out: Outputs) -> Tensor:
        """Whether every read-out of each image (N,) has crossed its bound."""
        return self.margin(out, slice(None)) > 0


@dataclass(frozen=True)
class MoveLandmark:
    """A landmark moves by ``by_mm`` or more while the others stay within ``keep_mm``.

    Args:
        point: The number of the landmark.
        by_mm: How far it must move, above 0.
        keep_mm: How far each other landmark may move, above 0.
        direction: Along which it is to move, one number an axis, in mm; towards the centre of the
            image unless said.

    Examples:
        >>> wish = MoveLandmark(point=0, by_mm=4)
        >>> goal = wish.goal(torch.tensor([[[2.0, 8.0]]]), size=(16, 17), spacing=(1.0, 1.0))
        >>> goal.target.round().tolist()
        [[[7.0, 8.0]]]
    """

    point: int
    by_mm: float = 10.0
    keep_mm: float = 3.0
    direction: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.by_mm > 0 or not self.keep_mm > 0:
            raise expected(
                "distances of landmarks must be above 0 mm",
                got=f"by_mm={self.by_mm:g}, keep_mm={self.keep_mm:g}",
                do="raise them",
            )

    def goal(
        self,
        points: Tensor,
        *,
        size: Sequence[int],
        spacing: Tensor | Sequence[float] | None = None,
    ) -> LandmarkGoal:
        """The goal for one batch.

        Args:
            points: Where the network finds the landmarks of the clean images (N, P, D), in voxels.
            size: The size S of the images.
            spacing: The size of a voxel in mm, (D,) or (N, D).

        Returns:
            The wanted places, and from where on a case counts.
        """
        check_tensor("points", points)
        if points.ndim != 3 or points.shape[2] != len(size):
            raise expected(
                f"points must be (N, P, {len(size)}) in voxels",
                got=tuple(points.shape),
                do="give one place a landmark",
            )
        if not 0 <= self.point < points.shape[1]:
            raise expected(
                f"the landmark must be 0 to {points.shape[1] - 1}",
                got=self.point,
                do="choose one of the network's",
            )
        space = spacing_of(spacing, points, len(size), "MoveLandmark, measured in mm,")
        target = points.double().clone()
        target[:, self.point] += self._shift(points[:, self.point].double(), size, space)
        most = torch.tensor(size, device=points.device) - 1
        target = target.clamp(torch.zeros_like(most), most)
        ones = torch.ones(len(points), dtype=torch.float64, device=points.device)
        bounds = (
            Bound(
                Moved(self.point, points, space),
                self.by_mm * ones,
                above=True,
                scale=self.by_mm * ones,
            ),
            Bound(
                Farthest(self.point, points, space),
                self.keep_mm * ones,
                above=False,
                scale=self.keep_mm * ones,
            ),
        )
        return LandmarkGoal(points, target.to(points), space, torch.Size(size), bounds)

    def _shift(self, place: Tensor, size: Sequence[int], spacing: Tensor) -> Tensor:
        """The way (N, D) that the landmark is to go, in voxels."""
        if self.direction is not None:
            way = torch.tensor(self.direction, dtype=torch.float64, device=place.device)
            way = way.expand(len(place), -1)
        else:
            centre = (torch.tensor(size, dtype=torch.float64, device=place.device) - 1) / 2
            way = (centre - place) * spacing
            along = torch.zeros_like(way)
            along[:, -1] = 1.0  # of one that stands in the centre
            way = torch.where(way.norm(dim=1, keepdim=True) > 1e-6, way, along)
        unit = way / way.norm(dim=1, keepdim=True)
        return MORE * self.by_mm * unit / spacing
