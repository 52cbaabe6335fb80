"""Goals of structures: what is wanted, where it counts, and what is refused."""

import pytest
import torch
from torch import Tensor

from feathide.errors import InputError
from feathide.goals import (
    Erase,
    Grow,
    Insert,
    LowerDice,
    MaskGoal,
    MaskWish,
    MoveSurface,
    Reach,
    Shrink,
)
from feathide.types import Outputs

MM = (1.0, 0.5, 2.0)


def cubes(n: int = 2) -> Tensor:
    masks = torch.zeros(n, 12, 14, 10, dtype=torch.long)
    masks[:, 4:8, 5:10, 3:6] = 1
    masks[:, 8:10, 5:10, 3:6] = 2
    return masks


def shown(labels: Tensor) -> Outputs:
    """What a network shows that is sure of these labels."""
    z = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
    return Outputs(z, {})


WISHES = [
    Erase(1),
    Shrink(1, percent=30),
    Grow(1, percent=30),
    Insert(2, at=(2, 3, 7), radius_mm=2),
    Reach(cubes().roll(2, 1), 1),
]


@pytest.mark.parametrize("wish", WISHES, ids=lambda w: type(w).__name__)
def test_the_wanted_labels_are_a_hit_and_those_before_are_not(wish: MaskWish) -> None:
    goal = wish.goal(cubes(), spacing=MM)
    assert goal.target is not None
    assert goal.hit(shown(goal.target)).all()
    assert not goal.hit(shown(cubes())).any()
    assert goal.region[goal.target != goal.source].all()


def test_a_percentage_counts_from_itself_on() -> None:
    # 60 voxels of 1 mm3, of which 15 are a quarter
    goal = Shrink(1, percent=25).goal(cubes(1), spacing=MM)
    voxels = (cubes(1) == 1).flatten().nonzero().flatten()
    for lost, hit in ((14, False), (15, True)):
        labels = cubes(1)
        labels.view(-1)[voxels[:lost]] = 0
        assert goal.hit(shown(labels)).tolist() == [hit]
    assert goal.measured(shown(cubes(1)))["volume of 1 [ml]"].tolist() == [0.06]


def test_growth_takes_the_background_that_is_nearest_in_mm() -> None:
    goal = Grow(1, percent=20).goal(cubes(1), spacing=(1.0, 0.5, 2.0))
    assert goal.target is not None
    taken = ((goal.target == 1) & (cubes(1) != 1)).nonzero()
    # along the second axis a voxel is half a millimetre: 2 x 12 voxels, of which 15 are asked
    assert len(taken) == 15
    assert set(taken[:, 2].tolist()) <= {4, 10}
    assert (goal.target == 2).sum() == (cubes(1) == 2).sum()


def test_any_label_will_do_for_a_lower_dice_and_a_moved_surface() -> None:
    dice, surface = (
        LowerDice(1, to=0.5).goal(cubes()),
        MoveSurface(1, mm=3).goal(cubes(), spacing=MM),
    )
    gone = torch.where(cubes() == 1, 2, cubes())
    for goal in (dice, surface):
        assert goal.target is None
        assert goal.hit(shown(gone)).all() and not goal.hit(shown(cubes())).any()
    far = cubes()
    far[:, 0, 0, 0] = 1  # one voxel is no 5 %
    assert not surface.hit(shown(far)).any()


@pytest.mark.parametrize(
    "wish", [Erase(1), Grow(1), Insert(2, at=(1, 1, 1)), MoveSurface(1)]
)
def test_a_goal_in_ml_or_mm_needs_the_spacing(wish: MaskWish) -> None:
    with pytest.raises(InputError, match="needs the size of a voxel in mm, got no spacing"):
        wish.goal(cubes())
    with pytest.raises(InputError, match="positive and of shape"):
        wish.goal(cubes(), spacing=(1.0, 1.0))


def test_a_case_without_the_structure_is_named() -> None:
    masks = cubes(3)
    masks[1] = 0
    assert Erase(1).applies(masks).tolist() == [True, False, True]
    with pytest.raises(
        InputError, match="needs cases that have what is to change, got none in"
    ):
        Erase(1).goal(masks, spacing=MM)


def test_masks_must_have_the_shape_of_images_and_labels_of_the_network() -> None:
    goal = Erase(1).goal(cubes(), spacing=MM)
    with pytest.raises(
        InputError, match=r"masks must have the shape of the images, \(9, 9, 9\)"
    ):
        goal.check(torch.zeros(2, 1, 9, 9, 9), ("a", "b"))
    with pytest.raises(
        InputError, match="labels must be 0 to 1, as the network's outputs, got 0"
    ):
        goal.check_outputs(Outputs(torch.zeros(2, 2, 12, 14, 10), {}))
    with pytest.raises(InputError, match="must give logits"):
        goal.check_outputs(Outputs(torch.zeros(2, 3), {}))
    with pytest.raises(InputError, match="masks must be labels"):
        Erase(1).goal(cubes().double(), spacing=MM)


def test_rows_of_a_goal_are_those_of_its_read_outs() -> None:
    masks = cubes(3)
    masks[2, 4:6] = 0
    goal: MaskGoal = Erase(1).goal(masks, spacing=MM)
    out = shown(masks)
    rows = torch.tensor([2, 0])
    alone = goal[rows]
    assert torch.equal(alone.margin(out[rows], slice(None)), goal.margin(out[rows], rows))
    assert alone.bounds[0].at.tolist() == goal.bounds[0].at[rows].tolist()


@pytest.mark.parametrize("percent", [0, -5, 101])
def test_percentages_are_above_0(percent: float) -> None:
    with pytest.raises(InputError, match="percent must be above 0"):
        Erase(1, percent=percent)
