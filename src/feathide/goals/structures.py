"""What is to happen to a structure, as recipes; ``goal`` fixes one to the masks of a batch.

``masks`` is what counts as before: for a change of volume what the network says of the clean
images, for an overlap or a distance the true masks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from feathide.data.valid_range import check_tensor
from feathide.errors import expected, few
from feathide.goals.bounds import Bound, Dice, SurfaceDistance, Volume, spacing_of
from feathide.goals.masks import MaskGoal
from feathide.models.regions import dilated

__all__ = [
    "Erase",
    "Grow",
    "Insert",
    "LowerDice",
    "MaskWish",
    "MoveSurface",
    "Reach",
    "Shrink",
]

Spacing = Tensor | Sequence[float] | None
# a structure is asked to change by more than counts: voxels at its border are left over
MORE = 1.25
BACKGROUND = 0
AROUND = 3  # voxels around what changes, which the losses keep as they are


class MaskWish(ABC):
    """What is to happen to a structure.

    Attributes:
        before: What ``masks`` of ``goal`` should be: the network's "prediction" of the clean
            images, or the "truth".
    """

    before: ClassVar[Literal["prediction", "truth"]] = "prediction"

    @abstractmethod
    def applies(self, masks: Tensor) -> Tensor:
        """Which cases (N,) have what is to change; the others are left out."""

    @abstractmethod
    def goal(self, masks: Tensor, *, spacing: Spacing = None) -> MaskGoal:
        """The goal for one batch.

        Args:
            masks: The labels before (N, *S), int64.
            spacing: The size of a voxel in mm, (D,) or (N, D).

        Returns:
            The wanted labels, where to look, and from where on a case counts.

        Raises:
            InputError: A case without the structure, or a unit that needs the spacing without it.
        """


@dataclass(frozen=True)
class Erase(MaskWish):
    """A structure vanishes: its volume falls by ``percent`` or more.

    Args:
        label: The label of the structure.
        percent: By how much its volume must fall, in (0, 100].
        into: The label that takes its place.

    Examples:
        >>> wish = Erase(label=1, percent=90)
        >>> masks = torch.zeros(1, 4, 4, dtype=torch.long)
        >>> masks[:, 1:3, 1:3] = 1
        >>> int(wish.goal(masks, spacing=(1.0, 1.0)).target.sum())
        0
    """

    label: int
    percent: float = 90.0
    into: int = BACKGROUND

    def __post_init__(self) -> None:
        _check_percent(self.percent, 100.0)

    def applies(self, masks: Tensor) -> Tensor:
        return _has(masks, self.label)

    def goal(self, masks: Tensor, *, spacing: Spacing = None) -> MaskGoal:
        space = _ready(self, masks, spacing)
        gone = torch.where(masks == self.label, self.into, masks)
        bound = _volume(masks, self.label, space, 1 - self.percent / 100, above=False)
        return _goal(masks, gone, (bound,))


@dataclass(frozen=True)
class Shrink(MaskWish):
    """A structure loses its outermost voxels: its volume falls by ``percent`` or more.

    Args:
        label: The label of the structure.
        percent: By how much its volume must fall, in (0, 100).
        into: The label that takes the place of what it loses.
    """

    label: int
    percent: float = 25.0
    into: int = BACKGROUND

    def __post_init__(self) -> None:
        _check_percent(self.percent, 100.0)

    def applies(self, masks: Tensor) -> Tensor:
        return _has(masks, self.label)

    def goal(self, masks: Tensor, *, spacing: Spacing = None) -> MaskGoal:
        space = _ready(self, masks, spacing)
        own = masks == self.label
        lost = _nearest(own, ~own, self.percent / 100, space)
        wanted = torch.where(lost, self.into, masks)
        bound = _volume(masks, self.label, space, 1 - self.percent / 100, above=False)
        return _goal(masks, wanted, (bound,))


@dataclass(frozen=True)
class Grow(MaskWish):
    """A structure takes in the background nearest to it: its volume rises by ``percent`` or more.

    Args:
        label: The label of the structure.
        percent: By how much its volume must rise, above 0.
        over: The label of the voxels that it may take.
    """

    label: int
    percent: float = 25.0
    over: int = BACKGROUND

    def __post_init__(self) -> None:
        _check_percent(self.percent, 10_000.0)

    def applies(self, masks: Tensor) -> Tensor:
        own, free = _count(masks == self.label), _count(masks == self.over)
        return (own > 0) & (free > MORE * own * self.percent / 100)

    def goal(self, masks: Tensor, *, spacing: Spacing = None) -> MaskGoal:
        space = _ready(self, masks, spacing)
        own, free = masks == self.label, masks == self.over
        taken = _nearest(free, own, self.percent / 100, space, of=own)
        wanted = torch.where(taken, self.label, masks)
        bound = _volume(masks, self.label, space, 1 + self.percent / 100, above=True)
        return _goal(masks, wanted, (bound,))


@dataclass(frozen=True)
class Insert(MaskWish):
    """A structure appears at a place: in a ball, ``percent`` or more of the voxels have its label.

    Args:
        label: The label of what is inserted.
        at: The centre of the ball in voxels, one number an axis.
        radius_mm: The radius of the ball in mm.
        percent: The share of the ball that must have the label, in (0, 100].
    """

    label: int
    at: tuple[float, ...]
    radius_mm: float = 5.0
    percent: float = 50.0

    def __post_init__(self) -> None:
        _check_percent(self.percent, 100.0)

    def applies(self, masks: Tensor) -> Tensor:
        """Every case: a place is free or not, which the clean read-out tells."""
        return torch.ones(len(masks), dtype=torch.bool, device=masks.device)

    def goal(self, masks: Tensor, *, spacing: Spacing = None) -> MaskGoal:
        space = _ready(self, masks, spacing)
        if len(self.at) != masks.ndim - 1:
            raise expected(
                f"a place needs one number for each of {masks.ndim - 1} axes",
                got=self.at,
                do="give at=(...) in voxels",
            )
        axes = [torch.arange(s, device=masks.device) for s in masks.shape[1:]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        apart = grid - torch.tensor(self.at, device=masks.device)  # (*S, D)
        wide = space.reshape(len(masks), *[1] * (masks.ndim - 1), -1)
        ball = (apart * wide).square().sum(-1) <= self.radius_mm**2  # (N, *S)
        if not bool(ball.flatten(1).any(1).all()):
            raise expected(
                f"a ball of {self.radius_mm:g} mm at {self.at} must lie in the image",
                got="no voxel in it",
                do="choose another place or a larger radius",
            )
        whole = Volume(self.label, space, ball)
        full = whole.measure(torch.full_like(masks, self.label), slice(None))
        bound = Bound(whole, full * self.percent / 100, above=True, scale=full)
        return _goal(masks, torch.where(ball, self.label, masks), (bound,))


@dataclass(frozen=True)
class LowerDice(MaskWish):
    """The Dice coefficient of a structure with the truth falls to ``to`` or below.

    Any wrong label will do.

    Args:
        label: The label of the structure.
        to: The bound, in [0, 1).
    """

    before: ClassVar[Literal["prediction", "truth"]] = "truth"
    label: int
    to: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.to < 1:
            raise expected(
                "a Dice coefficient to fall to must lie in [0, 1)",
                got=self.to,
                do="give a share such as 0.5",
            )

    def applies(self, masks: Tensor) -> Tensor:
        return _has(masks, self.label)

    def goal(self, masks: Tensor, *, spacing: Spacing = None) -> MaskGoal:
        _check_masks(self, masks)
        own = masks == self.label
        ones = torch.ones(len(masks), dtype=torch.float64, device=masks.device)
        bound = Bound(Dice(self.label, own), self.to * ones, above=False, scale=ones)
        return MaskGoal(masks, None, dilated(own, AROUND), (bound,))


@dataclass(frozen=True)
class MoveSurface(MaskWish):
    """The 95 % Hausdorff distance of a structure to the truth rises to ``mm`` or above.

    Any wrong label will do.

    Args:
        label: The label of the structure.
        mm: The bound, above 0.
    """

    before: ClassVar[Literal["prediction", "truth"]] = "truth"
    label: int
    mm: float = 5.0

    def __post_init__(self) -> None:
        if not self.mm > 0:
            raise expected(
                "a surface distance must be above 0 mm", got=self.mm, do="raise mm"
            )

    def applies(self, masks: Tensor) -> Tensor:
        return _has(masks, self.label)

    def goal(self, masks: Tensor, *, spacing: Spacing = None) -> MaskGoal:
        space = _ready(self, masks, spacing)
        own = masks == self.label
        far = torch.full((len(masks),), self.mm, dtype=torch.float64, device=masks.device)
        read = SurfaceDistance(self.label, own, space)
        bound = Bound(read, far, above=True, scale=far)
        # far enough around it that voxels of its label there move the surface
        reach = int(np.ceil(2 * self.mm / float(space.min())))
        return MaskGoal(masks, None, dilated(own, reach), (bound,))


@dataclass(frozen=True, eq=False)
class Reach(MaskWish):
    """A wanted mask: the Dice coefficient of a structure with it rises to ``dice`` or above.

    Args:
        wanted: The wanted labels (N, *S), int64.
        label: The label of the structure.
        dice: The bound, in (0, 1].
    """

    wanted: Tensor
    label: int
    dice: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.dice <= 1:
            raise expected(
                "a Dice coefficient to reach must lie in (0, 1]",
                got=self.dice,
                do="give a share such as 0.9",
            )

    def applies(self, masks: Tensor) -> Tensor:
        return _has(self.wanted, self.label) & (self.wanted != masks).flatten(1).any(1)

    def goal(self, masks: Tensor, *, spacing: Spacing = None) -> MaskGoal:
        if self.wanted.shape != masks.shape:
            raise expected(
                f"wanted masks must have the shape of the masks, {tuple(masks.shape)}",
                got=tuple(self.wanted.shape),
                do="give one for each case",
            )
        _check_masks(self, masks)
        ones = torch.ones(len(masks), dtype=torch.float64, device=masks.device)
        read = Dice(self.label, self.wanted == self.label)
        bound = Bound(read, self.dice * ones, above=True, scale=ones)
        return _goal(masks, self.wanted, (bound,))


def _goal(before: Tensor, wanted: Tensor, bounds: tuple[Bound, ...]) -> MaskGoal:
    """The goal of wanted labels; the losses look at what changes, and around it."""
    return MaskGoal(before, wanted, dilated(before != wanted, AROUND), bounds)


def _ready(wish: MaskWish, masks: Tensor, spacing: Spacing) -> Tensor:
    """The spacing, for masks in which every case has what is to change."""
    _check_masks(wish, masks)
    why = f"{type(wish).__name__}, which is measured in ml or mm,"
    return spacing_of(spacing, masks, masks.ndim - 1, why)


def _check_masks(wish: MaskWish, masks: Tensor) -> None:
    check_tensor("masks", masks)
    if masks.is_floating_point() or masks.ndim < 2:
        raise expected(
            "masks must be labels (N, *S), int64",
            got=f"{masks.dtype} of shape {tuple(masks.shape)}",
            do="give one whole number a voxel, without a channel axis",
        )
    without = (~wish.applies(masks)).nonzero().flatten().tolist()
    if without:
        raise expected(
            f"{type(wish).__name__} needs cases that have what is to change",
            got=f"none in rows {few(without)}",
            do="keep the rows of wish.applies(masks), and say how many were left out",
        )


def _check_percent(percent: float, most: float) -> None:
    if not 0 < percent <= most:
        raise expected(
            f"percent must be above 0, and at most {most:g}",
            got=percent,
            do="give by how much the volume changes",
        )


def _has(masks: Tensor, label: int) -> Tensor:
    return (masks == label).flatten(1).any(1)


def _count(mask: Tensor) -> Tensor:
    return mask.flatten(1).sum(1)


def _volume(
    masks: Tensor, label: int, spacing: Tensor, times: float, *, above: bool
) -> Bound:
    """The bound at so many ``times`` the volume of ``masks``."""
    read = Volume(label, spacing)
    before = read.measure(masks, slice(None))
    return Bound(read, times * before, above=above, scale=before)


def _nearest(
    among: Tensor,
    to: Tensor,
    share: float,
    spacing: Tensor,
    *,
    of: Tensor | None = None,
) -> Tensor:
    """The voxels of ``among`` (N, *S) that lie nearest to ``to``, in mm: ``MORE`` than the
    ``share`` of the volume of ``of``, which is ``among`` unless said.
    """
    chosen = torch.zeros_like(among)
    sizes = _count(among if of is None else of).tolist()
    for i, size in enumerate(sizes):
        far = distance_transform_edt(
            ~to[i].cpu().numpy(), sampling=spacing[i].cpu().numpy()
        )
        far = np.where(among[i].cpu().numpy(), far, np.inf)
        count = min(int(np.ceil(MORE * share * size)), int(among[i].sum()))
        first = np.argsort(far, axis=None, kind="stable")[:count]
        chosen[i].view(-1)[torch.from_numpy(first).to(among.device)] = True
    return chosen
