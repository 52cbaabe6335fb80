"""Other libraries' attacks as attacks of ours: on our classifier, with our budget, judged by
us.
"""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feathide.attacks.grid import Grid
from feathide.attacks.presets import bim
from feathide.attacks.threats import Linf
from feathide.errors import InputError
from feathide.integrations import Foreign, foreign_attack
from feathide.losses import HFC, AwayFrom, CrossEntropy
from worlds.hosts import IDS, SHAPES, Small, small

EPS, STEPS = 0.05, 6


def torchattacks_object(world: Small) -> Any:
    torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks")
    # made for another network
    attack = torchattacks.BIM(nn.Linear(2, 2), eps=EPS, alpha=EPS / 5, steps=STEPS)
    attack.set_mode_targeted_by_label(quiet=True)
    return foreign_attack(attack)


def foolbox_object(world: Small) -> Any:
    foolbox = pytest.importorskip("foolbox", reason="needs foolbox")
    attack = foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=0.2, steps=STEPS)
    return foreign_attack(attack, targeted=True, eps=EPS)


def art_object(world: Small) -> Any:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from art.attacks.evasion import BasicIterativeMethod
    from art.estimators.classification import PyTorchClassifier

    other = nn.Sequential(nn.Flatten(), nn.Linear(world.x[0].numel(), 3))
    estimator = PyTorchClassifier(
        other,
        nn.CrossEntropyLoss(),
        tuple(world.x.shape[1:]),
        3,
        preprocessing=(0.5, 2.0),
        device_type="cpu",
    )
    return foreign_attack(
        BasicIterativeMethod(
            estimator, eps=EPS, eps_step=EPS / 5, max_iter=STEPS, verbose=False
        ),
        targeted=True,
    )


OBJECTS = {
    "torchattacks": torchattacks_object,
    "foolbox": foolbox_object,
    "art": art_object,
}


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_of_another_library_attacks_our_classifier(
    name: str, shape: tuple[int, ...]
) -> None:
    world = small(shape, dtype=torch.float32)
    found = Foreign(OBJECTS[name](world), Linf(EPS))(
        world.classifier, world.x, world.goal, ids=world.ids
    )
    ours = bim(Linf(EPS), steps=STEPS, step_size=0.2)(
        world.classifier, world.x, world.goal, ids=world.ids
    )
    told = world.classifier.extract(found.adversarial).predicted
    assert torch.equal(found.fooled, told == world.goal.target)
    assert bool(found.fooled.any())
    assert torch.equal(found.fooled, ours.fooled)
    assert float((found.adversarial - world.x).abs().max()) <= EPS + 1e-6
    assert found.gradients.tolist() == [STEPS] * len(world)
    assert int(found.forwards.min()) >= STEPS + 2
    assert found.trace.shape == (2, len(world))


@pytest.mark.parametrize("name", OBJECTS)
def test_nothing_of_the_users_changes(name: str) -> None:
    world = small(SHAPES[0], dtype=torch.float32)
    attack = OBJECTS[name](world)
    torch.manual_seed(1)
    before = (
        torch.random.get_rng_state(),
        np.random.get_state()[1].copy(),  # noqa: NPY002
        random.getstate(),
    )
    x = world.x.clone()
    first = attack(world.classifier, world.x, world.goal, world.ids, 7)
    assert torch.equal(x, world.x)
    after = torch.random.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    assert all(p.grad is None for p in world.classifier.model.parameters())
    assert torch.equal(first, attack(world.classifier, world.x, world.goal, world.ids, 7))


def test_the_seed_decides_the_random_start() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks")
    world = small(SHAPES[0])
    attack = foreign_attack(torchattacks.PGD(nn.Linear(2, 2), eps=EPS, steps=1))
    runs = [
        attack(world.classifier, world.x, world.goal, world.ids, seed) for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_torchattacks_in_a_box_of_its_own_and_its_modes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks")
    world = small(SHAPES[0], box=(-2.0, 6.0))
    theirs = torchattacks.PGD(
        nn.Linear(2, 2), eps=EPS, alpha=EPS / 5, steps=STEPS, random_start=False
    )
    theirs.set_normalization_used(mean=[0.5] * 3, std=[0.2] * 3)
    ball = Linf(8 * EPS)
    found = Foreign(foreign_attack(theirs), ball, AwayFrom())(
        world.classifier, world.x, world.goal, ids=world.ids
    )
    ours = bim(ball, steps=STEPS, step_size=0.2, objective=AwayFrom())
    own = ours(world.classifier, world.x, world.goal, ids=world.ids)
    assert torch.equal(found.fooled, own.fooled)
    assert bool(found.fooled.any())
    theirs.set_mode_targeted_by_label(quiet=True)
    again = foreign_attack(theirs, targeted=False)(
        world.classifier, world.x, world.goal, world.ids, 0
    )
    assert torch.allclose(again, found.adversarial)
    assert theirs.targeted, "the object itself stays as it was"
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="targeted mode"):
        foreign_attack(torchattacks.TPGD(nn.Linear(2, 2)), targeted=True)(
            world.classifier, world.x, world.goal, world.ids, 0
        )


def test_a_callable_is_brought_into_the_ball_onto_the_grid_and_into_the_mask() -> None:
    world = small(SHAPES[0])
    grid = Grid(1 / 255)
    x = (world.x * 255).round() / 255
    mask = torch.zeros_like(x[:1])
    mask[..., 0] = 1

    def leap(classifier: Any, x: Tensor, goal: Any, ids: Any, seed: int) -> Tensor:
        return x + 0.5

    found = Foreign(foreign_attack(leap), Linf(4.5 / 255))(
        world.classifier, x, world.goal, ids=world.ids, grid=grid, mask=mask
    )
    steps = (found.adversarial - x) * 255
    moved = steps.flatten(1).abs().amax(1) > 0.5
    assert bool(moved.any())
    assert torch.allclose(steps[moved], (4 * mask).expand_as(steps[moved]), atol=1e-6)


def test_floating_point_images_are_brought_into_the_ball_and_the_box() -> None:
    world = small(SHAPES[0])

    def overdo(classifier: Any, x: Tensor, goal: Any, ids: Any, seed: int) -> Tensor:
        found = bim(Linf(0.3), steps=3, step_size=1)(
            classifier, x, goal, ids=ids
        ).adversarial
        return x + 5 * (found - x)

    found = Foreign(overdo, Linf(0.2))(world.classifier, world.x, world.goal, ids=world.ids)
    size = (found.adversarial - world.x).abs().flatten(1).amax(1)
    assert bool(found.fooled.any())
    assert torch.allclose(size[found.fooled], torch.full_like(size[found.fooled], 0.2))
    assert 0 <= float(found.adversarial.min()) <= float(found.adversarial.max()) <= 1


def test_success_is_measured_not_believed_and_the_worse_image_is_not_kept() -> None:
    world = small(SHAPES[0])

    def boast(classifier: Any, x: Tensor, goal: Any, ids: Any, seed: int) -> Tensor:
        away = bim(Linf(0.1), steps=3, objective=AwayFrom())
        swapped = type(goal)(goal.target, goal.source)
        # step schedules away from the target
        return away(classifier, x, swapped, ids=ids).adversarial

    found = Foreign(boast, Linf(0.1))(world.classifier, world.x, world.goal, ids=world.ids)
    assert not bool(found.fooled.any())
    assert torch.equal(found.adversarial, world.x)


def test_suspicion_is_reported_for_an_objective_that_hides() -> None:
    world = small(SHAPES[0])
    hiding = CrossEntropy() + 0.5 * HFC(world.bank, floor="none")
    found = Foreign(lambda classifier, x, goal, ids, seed: x, Linf(0.1), hiding)(
        world.classifier, world.x, world.goal, ids=world.ids
    )
    expected = 0.5 * world.bank.energy(
        world.classifier.extract(world.x), world.goal.target
    ).sum(1)
    assert torch.allclose(found.hide, expected)


def test_what_cannot_be_used_is_refused() -> None:
    world = small(SHAPES[0])
    with pytest.raises(InputError, match="or a callable"):
        foreign_attack(3)
    with pytest.raises(InputError, match="finite images"):
        Foreign(lambda c, x, g, i, s: x[:1], Linf(0.1))(
            world.classifier, world.x, world.goal, ids=world.ids
        )


def test_foolbox_needs_its_budget() -> None:
    foolbox = pytest.importorskip("foolbox", reason="needs foolbox")
    with pytest.raises(InputError, match="pass eps="):
        foreign_attack(foolbox.attacks.LinfPGD())


def test_art_attacks_without_a_network_of_torch_are_refused() -> None:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from art.attacks.evasion import HopSkipJump
    from art.estimators.classification import BlackBoxClassifier

    world = small(SHAPES[0])
    estimator = BlackBoxClassifier(lambda x: x, (3, 7, 6), 3)
    attack = foreign_attack(HopSkipJump(estimator, verbose=False))
    with pytest.raises(InputError, match="PyTorchClassifier"):
        attack(world.classifier, world.x, world.goal, world.ids, 0)
