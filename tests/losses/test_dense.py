"""Losses of voxels against their definitions, and their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.data.noise import Noise
from feathide.goals import Erase, LowerDice, MaskGoal, MoveLandmark
from feathide.losses.base import Objective
from feathide.losses.dense import (
    AdaptiveLandmarks,
    CosPGD,
    JensenShannon,
    MaskedCrossEntropy,
    SegPGD,
    SoftDice,
)
from feathide.types import ALL, Outputs
from worlds import dense

NOISE = Noise(0, tuple("abc"))


def case(away: bool) -> tuple[Tensor, MaskGoal]:
    random = torch.Generator().manual_seed(4)
    masks = torch.randint(0, 3, (3, 6, 5), generator=random)
    z = torch.randn(3, 3, 6, 5, generator=random, dtype=torch.float64)
    wish = LowerDice(1) if away else Erase(1)
    return z, wish.goal(masks, spacing=(1.0, 1.0))


def voxels(z: Tensor, goal: MaskGoal) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and whether it is fooled, of every voxel, with the label that it is of."""
    labels = goal.source if goal.target is None else goal.target
    ce = F.cross_entropy(z, labels, reduction="none")
    same = z.argmax(1) == labels
    return (-ce, ~same, labels) if goal.target is None else (ce, same, labels)


@pytest.mark.parametrize("away", [False, True])
def test_masked_cross_entropy_is_its_definition(away: bool) -> None:
    z, goal = case(away)
    ce, fooled, labels = voxels(z, goal)
    plain = MaskedCrossEntropy().bind(Outputs(z, {}), goal, NOISE)(Outputs(z, {}))
    balanced = MaskedCrossEntropy(True).bind(Outputs(z, {}), goal, NOISE)(Outputs(z, {}))
    for i in range(3):
        region = goal.region[i]
        left = torch.where(fooled[i], 0, ce[i])
        assert float(plain[i]) == pytest.approx(float(left[region].mean()))
        there = labels[i][region].unique()
        means = [left[i2].mean() for c in there for i2 in [region & (labels[i] == c)]]
        assert float(balanced[i]) == pytest.approx(
            float(torch.stack(means).mean()), rel=1e-5
        )


@pytest.mark.parametrize("away", [False, True])
def test_the_divergence_is_that_of_the_whole_distributions(away: bool) -> None:
    z, goal = case(away)
    _, _, labels = voxels(z, goal)
    p = z.softmax(1)
    y = F.one_hot(labels, 3).movedim(-1, 1).double()
    m = (p + y) / 2
    each = 0.5 * (torch.xlogy(p, p / m) + torch.xlogy(y, y / m)).sum(1)
    found = JensenShannon().bind(Outputs(z, {}), goal, NOISE)(Outputs(z, {}))
    wanted = torch.stack([each[i][goal.region[i]].mean() for i in range(3)])
    assert torch.allclose(found, -wanted if away else wanted)


@pytest.mark.parametrize("away", [False, True])
def test_cospgd_weighs_by_the_cosine_without_a_slope(away: bool) -> None:
    z, goal = case(away)
    ce, _, labels = voxels(z, goal)
    y = F.one_hot(labels, 3).movedim(-1, 1).double()
    cosine = F.cosine_similarity(z.softmax(1), y, dim=1)
    weight = cosine if away else 1 - cosine
    leaf = z.clone().requires_grad_()
    bound = CosPGD().bind(Outputs(z, {}), goal, NOISE)
    assert bound.paced is not None
    found = bound.paced(Outputs(leaf, {}), ALL, 0.0)
    wanted = torch.stack([(ce * weight)[i][goal.region[i]].mean() for i in range(3)])
    assert torch.allclose(found, wanted)
    (slope,) = torch.autograd.grad(found.sum(), leaf)
    again = z.clone().requires_grad_()
    own, _, _ = voxels(again, goal)
    mean = torch.stack([(own * weight)[i][goal.region[i]].mean() for i in range(3)])
    assert torch.allclose(slope, torch.autograd.grad(mean.sum(), again)[0])


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize(
    "loss", [MaskedCrossEntropy(True), JensenShannon(), SoftDice(), SegPGD()]
)
def test_slopes_are_those_of_differences(loss: Objective, away: bool) -> None:
    z, goal = case(away)
    bound = loss.bind(Outputs(z, {}), goal, NOISE)
    assert torch.autograd.gradcheck(
        lambda v: bound(Outputs(v, {})), z.clone().requires_grad_(), atol=1e-6
    )


def test_soft_dice_of_a_sure_prediction_is_the_dice_of_its_labels() -> None:
    z, goal = case(False)
    assert goal.target is not None
    sure = 60 * F.one_hot(goal.target, 3).movedim(-1, 1).double()
    found = SoftDice().bind(Outputs(z, {}), goal, NOISE)(Outputs(sure, {}))
    assert found.tolist() == pytest.approx([0.0] * 3, abs=1e-9)


def test_a_landmark_is_weighted_by_its_error_relative_to_the_largest() -> None:
    points = torch.tensor([[[2.0, 2.0], [9.0, 9.0]]], dtype=torch.float64)
    goal = MoveLandmark(0, by_mm=4, direction=(1, 0)).goal(
        points, size=(12, 12), spacing=(1.0, 1.0)
    )
    bound = AdaptiveLandmarks().bind(Outputs(points, {}), goal, Noise(0, ("a",)))
    assert bound.paced is not None and bound.fool is not None
    # errors of 25 at the start; now of 4 and 1
    now = torch.tensor([[[5.0, 2.0], [9.0, 10.0]]], dtype=torch.float64)
    assert float(bound.fool(Outputs(now, {}), ALL)) == pytest.approx((4 + 1) / 25 / 2)
    assert float(bound.paced(Outputs(now, {}), ALL, 0.5)) == pytest.approx(
        (4 + 1 / 4) / 25 / 2
    )


def test_wanted_heat_maps_are_the_clean_ones_moved() -> None:
    x = dense.pairs()[:1]
    out = dense.peaks().extract(x)
    points = torch.stack(
        torch.unravel_index(out.logits.flatten(2).argmax(2), (14, 12)), 2
    ).double()
    goal = MoveLandmark(0, by_mm=3.2, direction=(1, 0)).goal(
        points, size=(14, 12), spacing=(1.0, 1.0)
    )
    bound = AdaptiveLandmarks(adaptive=False).bind(out, goal, Noise(0, ("a",)))
    moved = out.logits.clone()
    moved[0, 0] = moved[0, 0].min()
    moved[0, 0, 4:] = out.logits[0, 0, :-4]
    assert float(bound(Outputs(moved, {}))) == pytest.approx(0.0, abs=1e-12)
    assert float(bound(out)) == pytest.approx(0.5)
