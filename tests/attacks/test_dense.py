"""The one loop on dense networks: where its images lie, what they depend on, and what is known to
be reached.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from feathide.attacks import L2, Grid, Linf, bim, dim, noise, pgd, standard_dense
from feathide.attacks.presets import square
from feathide.errors import InputError
from feathide.goals import Erase, Grow, LowerDice, MoveLandmark
from feathide.losses import DLR, HFC, AwayFrom, CrossEntropy, Margin, Objective
from feathide.losses.dense import (
    AdaptiveLandmarks,
    CosPGD,
    JensenShannon,
    MaskedCrossEntropy,
    SegPGD,
    SoftDice,
)
from feathide.mixtures import MixtureBank
from feathide.models.regions import positions
from feathide.types import Aim, Goal
from worlds import dense

LOSSES: dict[str, Objective] = {
    "cross-entropy": CrossEntropy(),
    "margin": Margin(),
    "masked": MaskedCrossEntropy(),
    "balanced": MaskedCrossEntropy(balanced=True),
    "js": JensenShannon(),
    "segpgd": SegPGD(),
    "cospgd": CosPGD(),
    "dice": SoftDice(),
}
SHAPE = (14, 12)


def one(shape: tuple[int, ...]) -> tuple[float, ...]:
    return (1.0,) * len(shape)


def known(shape: tuple[int, ...]) -> tuple[Tensor, Aim, Aim]:
    """Images of a threshold network, the goal to erase what is light, and to lower its Dice."""
    x = dense.blobs(shape)
    masks = (x[:, 0] > 0.5).long()
    return (
        x,
        Erase(1, 100).goal(masks, spacing=one(shape)),
        LowerDice(1, to=0.0).goal(masks),
    )


@pytest.mark.parametrize("shape", dense.SHAPES)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_structure_vanishes_from_the_radius_on_that_is_known(
    shape: tuple[int, ...], loss: Objective
) -> None:
    x, *goals = known(shape)
    # the whole structure is below the threshold once its lightest voxel is
    radius = x.flatten(1).amax(1) - 0.5
    for goal in goals:
        for share, hit in ((1.02, True), (0.98, False)):
            attack = bim(Linf(share * radius), steps=12, objective=loss)
            found = attack(dense.threshold(), x, goal, ids=dense.IDS[:4])
            assert found.fooled.tolist() == [hit] * 4, (found.losses, share)
            out = dense.threshold().extract(found.adversarial)
            assert goal.hit(out).tolist() == [hit] * 4  # type: ignore[attr-defined]


def test_before_the_bound_is_crossed_the_iterate_nearest_to_it_is_kept() -> None:
    x, goal, _ = known(SHAPE)
    radius = x.flatten(1).amax(1) - 0.5
    seen: list[Tensor] = []
    attack = bim(Linf(0.9 * radius), steps=6, objective=CrossEntropy())
    found = attack(
        dense.threshold(),
        x,
        goal,
        ids=dense.IDS[:4],
        watch=lambda k, rows, out: seen.append(goal.margin(out, slice(None))),
    )
    assert not found.fooled.any()
    assert torch.equal(found.margin, torch.stack(seen).amax(0))


def hfc(classifier: object, shape: tuple[int, ...]) -> Objective:
    out = dense.small(shape).extract(dense.blobs(shape, 60))
    there = [n for n, f in out.features.items() if int((~f.isnan().any(1)).sum()) > 20]
    return HFC(MixtureBank.fit(out, out.normal_class, layers=there))


@pytest.mark.parametrize("shape", dense.SHAPES)
@pytest.mark.parametrize("name", ["masked", "segpgd", "cospgd", "dice", "js", "hfc"])
def test_images_lie_in_ball_and_box_and_do_not_depend_on_their_batch(
    shape: tuple[int, ...], name: str
) -> None:
    classifier, x = dense.small(shape), dense.blobs(shape)
    masks = classifier.extract(x).predicted
    label = 1 if (masks == 1).any() else 2
    wish = LowerDice(label, to=0.2)
    rows = wish.applies(masks)
    x, goal = x[rows], wish.goal(masks[rows])
    loss = CrossEntropy() + 0.1 * hfc(classifier, shape) if name == "hfc" else LOSSES[name]
    for threat in (Linf(0.1), L2(0.6)):
        attack = pgd(threat, steps=5, objective=loss)
        found = attack(classifier, x, goal, ids=dense.IDS[: len(x)], seed=2)
        delta = found.adversarial - x
        assert (threat.size(delta) <= threat.eps + 1e-9).all() and delta.abs().max() > 1e-3
        assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
        for i in range(len(x)):
            alone = attack(classifier, x[i : i + 1], goal[[i]], ids=[dense.IDS[i]], seed=2)
            assert torch.allclose(
                alone.adversarial, found.adversarial[i : i + 1], atol=1e-9
            )


def test_what_counts_is_the_image_as_it_is_stored() -> None:
    x, goal, _ = known(SHAPE)
    grid = Grid(1 / 8)
    x = (x * 8).round() / 8
    attack = bim(Linf(0.3), steps=8, objective=MaskedCrossEntropy())
    found = attack(dense.threshold(), x, goal, ids=dense.IDS[:4], grid=grid)
    assert torch.allclose(found.adversarial * 8, (found.adversarial * 8).round(), atol=1e-9)
    out = dense.threshold().extract(found.adversarial)
    assert torch.equal(goal.hit(out), found.fooled)  # type: ignore[attr-defined]


def test_the_standard_attack_is_the_worst_case_of_its_three_losses() -> None:
    classifier, x = dense.small(SHAPE), dense.blobs(SHAPE)
    masks = classifier.extract(x).predicted
    goal = LowerDice(1, to=0.0).goal(masks)
    attack = standard_dense(Linf(0.05), steps=6)
    found = attack(classifier, x, goal, ids=dense.IDS[:4])
    each = [a(classifier, x, goal, ids=dense.IDS[:4]).margin for a in attack.attacks]
    assert len(each) == 3
    assert torch.allclose(found.margin, torch.stack(each).amax(0))


def test_a_search_without_gradients_works_as_well() -> None:
    x, goal, _ = known(SHAPE)
    found = square(Linf(0.4), queries=200)(dense.threshold(), x, goal, ids=dense.IDS[:4])
    noisy = noise(Linf(0.4))(dense.threshold(), x, goal, ids=dense.IDS[:4])
    assert (found.margin > noisy.margin).all() and int(found.gradients.sum()) == 0


def test_the_weights_of_segpgd_follow_the_steps() -> None:
    x, goal, _ = known(SHAPE)
    bound = SegPGD().bind(dense.threshold()(x), goal, None)  # type: ignore[arg-type]
    assert bound.paced is not None and bound.fool is not None
    out = dense.threshold()(x)
    # nothing is fooled where the structure is: weight 1 at first, 1/2 at last
    rows = slice(None)
    inside = replace(goal, region=goal.source == 1)  # type: ignore[type-var]
    bound = SegPGD().bind(out, inside, None)  # type: ignore[arg-type]
    plain = bound.fool(out, rows)  # type: ignore[misc]
    assert torch.allclose(bound.paced(out, rows, 0.0), plain)  # type: ignore[misc]
    assert torch.allclose(bound.paced(out, rows, 1.0), plain / 2)  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["peaks", "centres"])
def test_a_landmark_moves_and_the_others_stay(kind: str) -> None:
    classifier = dense.peaks() if kind == "peaks" else dense.centres()
    x = dense.pairs()
    before = positions(classifier.extract(x).logits, x.shape[2:])
    far = 4.0 if kind == "peaks" else 0.5
    goal = MoveLandmark(0, by_mm=far, keep_mm=0.5).goal(
        before, size=x.shape[2:], spacing=(1.0, 1.0)
    )
    attack = bim(Linf(0.4), steps=40, decay="linear", objective=AdaptiveLandmarks())
    found = attack(classifier, x, goal, ids=dense.IDS[:4])
    assert found.fooled.all()
    after = positions(classifier.extract(found.adversarial).logits, x.shape[2:])
    apart = (after - before).norm(dim=2)
    assert (apart[:, 0] >= far - 1e-6).all() and (apart[:, 1] <= 0.5 + 1e-6).all()


def test_what_makes_no_sense_of_voxels_is_refused() -> None:
    x, goal, _ = known(SHAPE)
    net, ids = dense.threshold(), dense.IDS[:4]
    for loss in (DLR(), AwayFrom()):
        with pytest.raises(
            InputError, match="aims at a class of the image, got a MaskGoal"
        ):
            bim(Linf(0.1), objective=loss)(net, x, goal, ids=ids)
    with pytest.raises(InputError, match="must show it the images where they are"):
        dim(Linf(0.1))(net, x, goal, ids=ids)
    with pytest.raises(
        InputError, match="a goal of classes needs a network with one answer"
    ):
        labels = torch.zeros(4, dtype=torch.long)
        bim(Linf(0.1))(net, x, Goal(labels, labels + 1), ids=ids)
    places = MoveLandmark(0).goal(torch.zeros(4, 2, 2), size=SHAPE, spacing=(1.0, 1.0))
    with pytest.raises(InputError, match="CrossEntropy aims at labels, got a LandmarkGoal"):
        bim(Linf(0.1))(dense.peaks(), dense.pairs(), places, ids=ids)
    with pytest.raises(InputError, match="AdaptiveLandmarks aims at places"):
        bim(Linf(0.1), objective=AdaptiveLandmarks())(net, x, goal, ids=ids)


def test_growth_is_found_as_well() -> None:
    x = dense.blobs(SHAPE)
    masks = (x[:, 0] > 0.5).long()
    goal = Grow(1, percent=40).goal(masks, spacing=(1.0, 1.0))
    found = bim(Linf(0.35), steps=10, objective=SoftDice())(
        dense.threshold(), x, goal, ids=dense.IDS[:4]
    )
    assert found.fooled.all()
