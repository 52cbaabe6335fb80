"""Objectives inside the attacks of other libraries by name: as by the wrapper by hand, as in our
own loop; and what is refused.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feathide.attacks.presets import bim
from feathide.attacks.threats import L2, Linf
from feathide.attacks.updates import Scheduled
from feathide.auditing.run import audit, checked
from feathide.catalog import ATTACKS, OBJECTIVES
from feathide.detectors import KernelDensity
from feathide.errors import InputError
from feathide.integrations import ATTACK_LIBRARIES, HOSTS, with_objective
from feathide.integrations.hook import host_of
from feathide.losses import HFC, Evade, Guide, Objective
from feathide.pipeline.attacker import Attacker
from feathide.pipeline.attacking import attack_of
from feathide.pipeline.listing import cells
from feathide.plans.plan import load_plan
from feathide.types import Evidence
from worlds.hosts import IDS, SHAPES, Small, Watched, iterates, pictures, small

LIBRARIES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "adversarial-robustness-toolbox",
}


def carriers(library: str) -> list[str]:
    """The attacks of a library to which an objective can be added, by name."""
    found = []
    for name, cls in ATTACK_LIBRARIES[library][1]().items():
        # no aliases, no norm that plans do not have
        if name == cls.__name__ and not name.startswith("L1"):
            try:
                host_of(cls)
            except InputError:
                continue
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("library", "least"), [("torchattacks", 15), ("foolbox", 10), ("art", 5)]
)
def test_every_attack_that_takes_an_objective_is_led_by_it(
    library: str, least: int
) -> None:
    """The sign and the rough size of the weight, for each class that ``HOSTS`` names: lower
    energy than without, by a good part.
    """
    pytest.importorskip(library, reason=f"needs {LIBRARIES[library]}")
    world, names = small(SHAPES[0], dtype=torch.float32), carriers(library)
    assert len(names) >= least
    for name in names:
        threat = L2(0.5) if "L2" in name else Linf(0.05)
        options = "(nb_random_init=1)" if name == "AutoProjectedGradientDescent" else ""

        def energy(
            hide: Objective | None,
            spelled: str = f"{library}:{name}{options}",
            ball: Any = threat,
        ) -> float:
            attack = ATTACKS[spelled](ball, hide=hide)
            found = attack.attack(world.classifier, world.x, world.goal, world.ids, 0)
            return float(
                world.bank.energy(world.classifier.extract(found), world.goal.target).sum()
            )

        assert energy(3.0 * HFC(world.bank)) < 0.9 * energy(None), name


# --- as in our own loop -------------------------------------------------------------------------


def objective_of(world: Small, kind: str) -> Objective:
    images = pictures(120, tuple(world.x.shape[1:])).to(world.x)
    out = world.classifier.extract(images)
    if kind == "hfc":
        return 0.3 * HFC(world.bank)
    if kind == "kde":
        evidence = Evidence(out, out.predicted, out, out, out)
        return Evade((KernelDensity().fit(evidence),), scales=(1.0,))
    return 0.1 * Guide(out, out.predicted, pick=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("kind", ["hfc", "random", "closest", "kde"])
@pytest.mark.parametrize(
    "name", ["torchattacks:BIM(steps=6)", "torchattacks:PGD(steps=6, random_start=False)"]
)
def test_the_same_images_as_our_own_attack(
    name: str, kind: str, shape: tuple[int, ...]
) -> None:
    pytest.importorskip("torchattacks", reason="needs torchattacks")
    world, eps = small(shape), 0.05
    hide = objective_of(world, kind)
    theirs = ATTACKS[name](Linf(eps), hide=hide).attack(
        world.classifier, world.x, world.goal, world.ids, 0
    )
    ours = iterates(bim(Linf(eps), hide=hide, steps=6, step_size=0.25), world)[-1]
    assert float((theirs - ours).abs().max()) < 1e-9
    plain = ATTACKS[name](Linf(eps)).attack(
        world.classifier, world.x, world.goal, world.ids, 0
    )
    assert float((plain - theirs).abs().max()) > 0.1 * eps, "the objective leads elsewhere"


# --- in a plan ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random 16 x 16 images in floating point, brighter on the left or on the right."""
    path, rng, arrays = (
        tmp_path_factory.mktemp("hiding") / "sides.npz",
        np.random.default_rng(0),
        {},
    )
    for split, n in (("train", 60), ("val", 12), ("test", 60)):
        y = np.arange(n) % 2
        x = rng.normal(0.43, 0.08, (n, 16, 16))
        x[:, :, :8] += 0.1 * (y == 0)[:, None, None]
        x[:, :, 8:] += 0.1 * (y == 1)[:, None, None]
        arrays |= {
            f"{split}_images": x.clip(0, 1).astype(np.float32),
            f"{split}_labels": y[:, None],
        }
    np.savez(path, **arrays)
    return path


def plan(data: Path, **fields: Any) -> dict[str, Any]:
    network = {
        "arch": "tiny",
        "layers": "conv",
        "train": {"epochs": 4, "augment": False, "stem": "small"},
    }
    small_plan = {
        "data": {"path": str(data), "box": [0, 1]},
        "network": network,
        "eps": 0.06,
        "detectors": "kd,lid",
        "train_attack": "fgsm",
        "schedule": {"steps": 4, "decay": "constant", "confidence": 0},
        "split": {"most": 12},
        "sanity_checks": "off",
        "even_so": True,
    }
    return small_plan | fields


def by_hand(name: str, network: nn.Module, x: Tensor, target: Tensor, eps: float) -> Tensor:
    """The attack of a library as its users call it, on a network wrapped by
    ``with_objective``.
    """
    if name.startswith("torchattacks"):
        import torchattacks

        attack = torchattacks.BIM(network, eps=eps, alpha=eps / 4, steps=4)
        attack.set_mode_targeted_by_label(quiet=True)
        return attack(x, target)
    if name.startswith("foolbox"):
        import foolbox

        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        criterion = foolbox.criteria.TargetedMisclassification(target)
        return foolbox.attacks.LinfPGD(steps=4).run(model, x, criterion, epsilon=eps)
    from art.attacks.evasion import MomentumIterativeMethod
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        x.shape[1:],
        2,
        clip_values=(0, 1),
        device_type="cpu",
    )
    attack = MomentumIterativeMethod(
        estimator,
        eps=eps,
        eps_step=eps / 3,
        max_iter=4,
        targeted=True,
        batch_size=len(x),
        verbose=False,
    )
    return torch.from_numpy(attack.generate(x=x.numpy(), y=target.numpy()))


NAMES = (
    "torchattacks:BIM(steps=4)",
    "foolbox:LinfPGD(steps=4)",
    "art:MomentumIterativeMethod(max_iter=4)",
)


def test_a_plan_hides_in_the_attacks_of_other_libraries(data: Path, tmp_path: Path) -> None:
    """Its stored images are those of the wrapper by hand and, for BIM, those of our own loop."""
    for library in LIBRARIES:
        pytest.importorskip(library)
    objectives = ["plain", "hfc", "random", "closest", "kde", "lid", "evade:kd"]
    attacks = ["bim", *NAMES]
    found = load_plan(plan(data, attacks=attacks, objectives=objectives))
    run = audit(found, tmp_path)
    context = checked(found, tmp_path)
    assert {(c.attack.name, c.objective.name) for c in cells(context)} == {
        (a, o) for a in attacks for o in objectives
    }
    assert "did not hide" not in run.report.read_text()
    for cell in cells(context):
        hiding, host = OBJECTIVES[cell.objective.kind], cell.attack.name.partition(":")[0]
        if hiding.make is None or host == "bim":
            continue
        stored = context.store.load(context.steps.attack(cell, "test").keys[0])
        images, x, goal = (
            torch.from_numpy(stored["image"]),
            context.data.images(stored["rows"]),
            context.data.goal(stored["rows"]),
        )
        options = {"detectors": cell.objective.aim} if cell.objective.aim else {}
        term = hiding.weight * hiding.make(Attacker(context, cell.eps), options)
        with torch.random.fork_rng():
            torch.manual_seed(context.plan.seed)
            network = with_objective(
                context.networks.classifier,
                term,
                x,
                goal,
                host=host,
                targeted=True,
                ids=context.data.ids(stored["rows"]),
                seed=context.plan.seed,
            )
            hand = by_hand(cell.attack.name, network, x, goal.target, cell.eps)
        # where it did worse than nothing, the clean image is kept
        kept = (images != x).flatten(1).any(1)
        assert int(kept.sum()) > len(x) // 2
        assert float((images - hand)[kept].abs().max()) < 1e-6, cell.name
        if host == "torchattacks":
            watched = Watched(context.networks.classifier, [])
            ours = attack_of(
                context, replace(cell, attack=context.plan.attacks[0]), hiding.weight
            )
            ours(
                watched,
                x,
                goal,
                ids=context.data.ids(stored["rows"]),
                seed=context.plan.seed,
            )
            assert float((images - watched.seen[-1])[kept].abs().max()) < 1e-6, cell.name


def test_an_attack_that_cannot_hide_attacks_plainly_and_the_report_says_why(
    data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("art")
    fields = plan(
        data,
        attacks=[
            "bim",
            "art:DeepFool(max_iter=3)",
            "art:AutoProjectedGradientDescent(max_iter=3)",
        ],
    )
    run = audit(load_plan(fields), tmp_path)
    made = {c.name for c in cells(checked(load_plan(fields), tmp_path))}
    assert made == {"bim+plain", "bim+hfc", *(f"{a}+plain" for a in fields["attacks"][1:])}
    page = run.report.read_text()
    assert (
        "art:DeepFool(max_iter=3) did not hide by hfc: an objective can be added to attacks that"
        in page
    )
    assert "say nb_random_init=1 to hide in it" in page
    with pytest.raises(
        InputError, match=r"no attack of the plan can hide by hfc: .*got DeepFool"
    ):
        checked(
            load_plan(fields | {"attacks": ["fgsm", "art:DeepFool(max_iter=3)"]}), tmp_path
        )
    tuned = {
        "objectives": [{"name": "hfc", "weight": "auto"}],
        "train_attack": "art:DeepFool",
    }
    with pytest.raises(
        InputError, match=r"the weight of hfc is tuned with train_attack: .*got DeepFool"
    ):
        checked(load_plan(fields | tuned), tmp_path)


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchattacks:CW", r"of torchattacks: FGSM, .*got CW"),
        ("torchattacks:Square", "got Square"),
        ("foolbox:L2DeepFoolAttack", r"of foolbox: .*got L2DeepFoolAttack"),
        ("art:CarliniLInfMethod", "got CarliniLInfMethod"),
        ("art:AutoProjectedGradientDescent", "nb_random_init=5; say nb_random_init=1"),
        ("torchattacks:APGD(n_restarts=2)", "n_restarts=2"),
    ],
)
def test_attacks_that_cannot_carry_an_objective(name: str, message: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    world = small(SHAPES[0])
    with pytest.raises(InputError, match=message):
        ATTACKS[name](L2(0.1) if "L2" in name else Linf(0.1), hide=HFC(world.bank))


def test_objectives_that_need_two_gradients_are_refused() -> None:
    pytest.importorskip("torchattacks")
    with pytest.raises(
        InputError,
        match="got Scheduled, which needs the gradients of fooling and hiding apart",
    ):
        ATTACKS["torchattacks:PGD"](
            Linf(0.1), hide=HFC(small(SHAPES[0]).bank), blend=Scheduled()
        )


def test_every_host_names_attacks() -> None:
    assert all(host.attacks for host in HOSTS.values())


# --- the user's own -----------------------------------------------------------------------------

OWN = """
import torch
from feathide.data.noise import Noise
from feathide.attacks.presets import bim

def step(classifier, x, goal, ids, seed, eps=0.1, hide=None):
    leaf = x.clone().requires_grad_()
    out = classifier(leaf)
    loss = torch.nn.functional.cross_entropy(out.logits, goal.target, reduction="none")
    if hide is not None:
        loss = loss + hide.bind(out.detach(), goal, Noise(seed, tuple(ids)))(out)
    return (x - eps * torch.autograd.grad(loss.sum(), leaf)[0].sign()).detach()

def plainly(classifier, x, goal, ids, seed):
    return x

def deaf(classifier, x, goal, ids, seed, eps=0.1, hide=None):
    return step(classifier, x, goal, ids, seed, eps)

def three(threat, **fields):
    return bim(threat, **{**fields, "steps": 3})
"""


def test_own_attacks_are_told_the_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    world = small(SHAPES[1])
    hide = 3.0 * HFC(world.bank)

    def energy(name: str, term: Objective | None) -> float:
        found = ATTACKS[name](Linf(0.05), hide=term)(
            world.classifier, world.x, world.goal, ids=world.ids
        )
        return float(
            world.bank.energy(
                world.classifier.extract(found.adversarial), world.goal.target
            ).sum()
        )

    for name in ("own.py:step", "own.py:three"):
        assert energy(name, hide) < energy(name, None)
    with pytest.raises(
        InputError, match=r"own.py:plainly must take the objective as an argument"
    ):
        ATTACKS["own.py:plainly"](Linf(0.05), hide=hide)


def test_an_own_attack_that_ignores_the_objective_is_told_of(
    data: Path, tmp_path: Path
) -> None:
    (data.parent / "ears.py").write_text(OWN)
    own = [f"{data.parent / 'ears.py'}:{name}" for name in ("step", "deaf")]
    fields = plan(data, attacks=["bim", *own])
    fields["network"] = {**fields["network"], "trust": True}
    page = audit(load_plan(fields), tmp_path).report.read_text()
    assert (
        "ears.py:deaf ignores what it should hide by: its images with hfc are its plain ones"
        in page
    )
    assert "ears.py:step ignores" not in page
