"""HFC inside other libraries' attacks step schedules step by step as in our own loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feathide.attacks.loop import Attack
from feathide.attacks.presets import bim, mim, pgd
from feathide.attacks.threats import Linf
from feathide.errors import InputError
from feathide.integrations import with_objective
from feathide.integrations.hook import Guided
from feathide.losses import HFC, AwayFrom, CrossEntropy
from worlds.hosts import IDS, SHAPES, Small, StartingAt, iterates, small

EPS, STEP, STEPS = 0.05, 0.2, 6  # the step as a fraction of eps


@dataclass(frozen=True)
class Case:
    """``run(network, world, name, targeted)``: the images of the host's attack ``name``."""

    run: Callable[[nn.Module, Small, str, bool], Tensor]
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9


def in_torchattacks(network: nn.Module, world: Small, name: str, targeted: bool) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks")
    make = {"bim": torchattacks.BIM, "pgd": torchattacks.PGD, "mim": torchattacks.MIFGSM}[
        name
    ]
    lo, hi = world.classifier.box
    attack = make(network, eps=EPS, alpha=STEP * EPS, steps=STEPS)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    found = attack(
        (world.x - lo) / (hi - lo), world.goal.target if targeted else world.goal.source
    )
    return lo + (hi - lo) * found


def in_foolbox(network: nn.Module, world: Small, name: str, targeted: bool) -> Tensor:
    foolbox = pytest.importorskip("foolbox", reason="needs foolbox")
    from foolbox.criteria import Misclassification, TargetedMisclassification

    make = {
        "bim": foolbox.attacks.LinfBasicIterativeAttack,
        "pgd": foolbox.attacks.LinfPGD,
    }[name]
    model = foolbox.PyTorchModel(network, bounds=world.classifier.box, device="cpu")
    criterion = (
        TargetedMisclassification(world.goal.target)
        if targeted
        else Misclassification(world.goal.source)
    )
    attack = make(rel_stepsize=STEP, steps=STEPS, random_start=name == "pgd")
    return attack.run(model, world.x, criterion, epsilon=EPS)


def in_art(network: nn.Module, world: Small, name: str, targeted: bool) -> Tensor:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from art.attacks.evasion import (
        BasicIterativeMethod,
        MomentumIterativeMethod,
        ProjectedGradientDescent,
    )

    make: Any = {
        "bim": BasicIterativeMethod,
        "pgd": ProjectedGradientDescent,
        "mim": MomentumIterativeMethod,
    }[name]
    more = {"num_random_init": 1} if name == "pgd" else {}
    attack = make(
        art_estimator(network, world),
        eps=EPS,
        eps_step=STEP * EPS,
        max_iter=STEPS,
        targeted=targeted,
        verbose=False,
        **more,
    )
    labels = world.goal.target if targeted else world.goal.source
    return torch.from_numpy(attack.generate(x=world.x.numpy(), y=labels.numpy()))


def art_estimator(network: nn.Module, world: Small) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        tuple(world.x.shape[1:]),
        max(int(world.goal.source.max()) + 1, 2),
        clip_values=world.classifier.box,
        device_type="cpu",
    )


CASES = {
    "torchattacks": Case(in_torchattacks),
    "foolbox": Case(in_foolbox),
    "art": Case(in_art, torch.float32, 1e-6),
}
SCHEDULES = [
    ("torchattacks", "bim", "2D"),
    ("torchattacks", "bim", "3D"),
    ("torchattacks", "pgd", "2D"),
    ("torchattacks", "pgd", "3D"),
    ("torchattacks", "mim", "2D"),  # its gradient norm is over three axes: wrong on volumes
    ("foolbox", "bim", "2D"),
    ("foolbox", "bim", "3D"),
    ("foolbox", "pgd", "2D"),
    ("foolbox", "pgd", "3D"),  # its MI-FGSM accumulates signs: another attack
    ("art", "bim", "2D"),
    ("art", "bim", "3D"),
    ("art", "pgd", "2D"),
    ("art", "pgd", "3D"),
    ("art", "mim", "2D"),
    ("art", "mim", "3D"),
]


def host_iterates(
    world: Small, host: str, name: str, targeted: bool, weight: float
) -> list[Tensor]:
    network = with_objective(
        world.classifier,
        weight * HFC(world.bank),
        world.x,
        world.goal,
        host=host,
        targeted=targeted,
    )
    seen: list[Tensor] = []
    lo, hi = world.classifier.box if host == "torchattacks" else (0.0, 1.0)

    def watch(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].requires_grad:
            seen.append(lo + (hi - lo) * args[0].detach().clone())

    network.register_forward_pre_hook(watch)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (what ART draws from)
    last = CASES[host].run(network, world, name, targeted)
    return [*seen, last]


def our_attack(
    world: Small, name: str, targeted: bool, weight: float, eps: float, start: Tensor
) -> Attack:
    make = {"bim": bim, "pgd": pgd, "mim": mim}[name]
    wish = CrossEntropy() if targeted else AwayFrom()
    threat = StartingAt(eps, start) if name == "pgd" else Linf(eps)
    return make(
        threat, steps=STEPS, step_size=STEP, objective=wish + weight * HFC(world.bank)
    )


@pytest.mark.parametrize("targeted", [True, False], ids=["targeted", "untargeted"])
@pytest.mark.parametrize(
    ("host", "name", "axes"), SCHEDULES, ids=["-".join(w) for w in SCHEDULES]
)
@pytest.mark.parametrize("classes", [3, 1], ids=["softmax", "sigmoid"])
def test_iterates_equal_our_own(
    host: str, name: str, axes: str, targeted: bool, classes: int
) -> None:
    world = small(SHAPES[IDS.index(axes)], classes=classes, dtype=CASES[host].dtype)
    theirs = host_iterates(world, host, name, targeted, 0.3)
    ours = iterates(our_attack(world, name, targeted, 0.3, EPS, theirs[0] - world.x), world)
    assert len(theirs) == len(ours) == STEPS + 1
    for a, b in zip(theirs, ours, strict=True):
        assert float((a - b).abs().max()) <= CASES[host].tolerance
    plain = host_iterates(world, host, name, targeted, 0.0)
    assert float((plain[-1] - theirs[-1]).abs().max()) > 0.1 * EPS, (
        "the objective leads elsewhere"
    )


def test_a_box_of_its_own_in_torchattacks() -> None:
    """Images of a CT-like box go into torchattacks in [0, 1], with eps as a fraction of the
    box.
    """
    world = small(SHAPES[0], box=(-2.0, 6.0))
    theirs = host_iterates(world, "torchattacks", "bim", True, 0.3)
    ours = iterates(our_attack(world, "bim", True, 0.3, 8 * EPS, world.x), world)
    assert max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True)) < 1e-9


@pytest.mark.parametrize("host", ["torchattacks", "art"])
def test_apgd_hides(host: str) -> None:
    """APGD steers by the value of the host's loss, so its iterates are its own; the objective
    still leads it to lower energy.
    """
    world = small(SHAPES[0], dtype=CASES[host].dtype)

    def energy(weight: float) -> float:
        convention = "torchattacks-apgd" if host == "torchattacks" else host
        network = with_objective(
            world.classifier,
            weight * HFC(world.bank),
            world.x,
            world.goal,
            host=convention,
            targeted=False,
        )
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        if host == "torchattacks":
            torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks")
            found = torchattacks.APGD(network, eps=EPS, steps=10)(
                world.x, world.goal.source
            )
        else:
            pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
            from art.attacks.evasion import AutoProjectedGradientDescent

            attack = AutoProjectedGradientDescent(
                art_estimator(network, world),
                eps=EPS,
                eps_step=EPS,
                max_iter=10,
                nb_random_init=1,
                verbose=False,
            )
            found = torch.from_numpy(
                attack.generate(x=world.x.numpy(), y=world.goal.source.numpy())
            )
        return float(
            world.bank.energy(world.classifier.extract(found), world.goal.target).sum()
        )

    assert energy(1.0) < 0.9 * energy(0.0)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_logits_are_unchanged_and_the_network_untouched(shape: tuple[int, ...]) -> None:
    world = small(shape)
    network = with_objective(
        world.classifier,
        HFC(world.bank),
        world.x,
        world.goal,
        host="foolbox",
        targeted=True,
    )
    x = world.x.clone().requires_grad_()
    logits = network(x)
    assert torch.equal(logits, world.classifier(world.x).logits)
    network.train()
    network.zero_grad()
    logits.sum().backward()
    assert all(
        p.grad is None and p.requires_grad for p in world.classifier.model.parameters()
    )
    assert not world.classifier.model.training


def test_a_batch_of_another_length_is_refused_only_where_a_gradient_is_taken() -> None:
    world = small(SHAPES[0])
    network = with_objective(
        world.classifier, HFC(world.bank), world.x, world.goal, host="art", targeted=True
    )
    assert len(network(world.x[:2])) == 2
    with pytest.raises(InputError, match="all 9 images in every forward pass"):
        network(world.x[:2].clone().requires_grad_())


def test_hosts_that_drop_images_are_refused() -> None:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from art.attacks.evasion import BasicIterativeMethod

    world = small(SHAPES[0], dtype=torch.float32)
    network = with_objective(
        world.classifier, HFC(world.bank), world.x, world.goal, host="art", targeted=False
    )
    attack = BasicIterativeMethod(
        art_estimator(network, world), eps=0.1, max_iter=2, batch_size=4, verbose=False
    )
    with pytest.raises(InputError, match="batch_size"):
        attack.generate(x=world.x.numpy(), y=world.goal.source.numpy())


def test_hosts_with_several_gradients_per_pass_are_refused() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks")
    world = small(SHAPES[0])
    network = with_objective(
        world.classifier,
        HFC(world.bank),
        world.x[:1],
        world.goal[:1],
        host="torchattacks",
        targeted=False,
    )
    with pytest.raises(InputError, match="one scalar loss"):
        torchattacks.DeepFool(network, steps=2)(world.x[:1], world.goal.source[:1])
    plain = torchattacks.DeepFool(Guided(world.classifier), steps=2)(
        world.x[:1], world.goal.source[:1]
    )
    assert plain.shape == world.x[:1].shape


def test_arguments_that_do_not_fit() -> None:
    world = small(SHAPES[0])
    with pytest.raises(InputError, match="did you mean 'foolbox'"):
        with_objective(
            world.classifier,
            HFC(world.bank),
            world.x,
            world.goal,
            host="folbox",
            targeted=True,
        )
    with pytest.raises(InputError, match="one goal for each"):
        with_objective(
            world.classifier,
            HFC(world.bank),
            world.x[:2],
            world.goal,
            host="art",
            targeted=True,
        )
