"""Law A8: the same iterates as torchattacks, Foolbox and ART wherever those are right, from the
same start; and where they are not, why.

Install the libraries with ``pip install feathide[torchattacks,foolbox,art]``; without them these
tests are skipped."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feathide.attacks import presets as recipes
from feathide.attacks.apgd import AutoStep, checkpoints
from feathide.attacks.loop import Attack
from feathide.attacks.threats import L2, Linf
from feathide.attacks.updates import Rule, Setting, Step
from feathide.losses import DLR, AwayFrom
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal

REASON = (
    "needs torchattacks, foolbox and adversarial-robustness-toolbox: pip install "
    "feathide[torchattacks,foolbox,art]"
)
torchattacks = pytest.importorskip("torchattacks", reason=REASON, exc_type=ImportError)
foolbox = pytest.importorskip("foolbox", reason=REASON, exc_type=ImportError)
pytest.importorskip("art", reason=REASON, exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
IMAGE, VOLUME = (3, 8, 8), (1, 5, 4, 3)
EPS, ALPHA, STEPS = 0.1, 0.02, 12
CLOSE = {"rtol": 0.0, "atol": 1e-6}


class Net(nn.Module):
    """A two-conv network that keeps what it was shown."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        conv = nn.Conv2d if len(shape) == 3 else nn.Conv3d
        self.body = nn.Sequential(
            conv(shape[0], 6, 3, padding=1),
            nn.ReLU(),
            conv(6, 8, 3, padding=1),
            nn.Softplus(),
        )
        self.head = nn.Linear(8, 5)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.head(self.body(x).flatten(2).mean(2)) * 20


class Problem:
    """Six images, a network, and goals."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = Net(shape).to(dtype).eval()
            self.x = torch.rand(6, *shape).to(dtype)
        self.source = self.net(self.x).argmax(1)
        self.target = (self.source + 1) % 5
        self.classifier = FeatureClassifier(self.net, ())

    def ours(self, attack: Attack) -> list[Tensor]:
        """Every iterate of our attack, from the first to the last."""
        self.classifier.names(self.x)
        self.net.seen.clear()
        attack(self.classifier, self.x, Goal(self.source, self.target), ids="abcdef")
        return [*self.net.seen]

    def torchattacks(self, attack: Any, *, targeted: bool = True) -> list[Tensor]:
        """Every iterate of theirs."""
        if targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        self.net.seen.clear()
        last = attack(self.x, self.target if targeted else self.source)
        return [*self.net.seen, last]

    def foolbox(self, attack: Any, eps: float, *, targeted: bool = True) -> Tensor:
        model = foolbox.PyTorchModel(self.net, bounds=(0, 1), device="cpu")
        goals = foolbox.criteria
        criterion = (
            goals.TargetedMisclassification(self.target)
            if targeted
            else goals.Misclassification(self.source)
        )
        return attack.run(model, self.x, criterion, epsilon=eps)

    def art(self, make: Callable[[Any], Any], *, targeted: bool = True) -> Tensor:
        from art.estimators.classification import PyTorchClassifier

        shape = tuple(self.x.shape[1:])
        model = PyTorchClassifier(
            self.net,
            nn.CrossEntropyLoss(),
            shape,
            5,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        onehot = (
            nn.functional.one_hot(self.target if targeted else self.source, 5)
            .numpy()
            .astype(np.float32)
        )
        return torch.from_numpy(make(model).generate(self.x.numpy(), y=onehot))


@pytest.fixture(params=[IMAGE, VOLUME], ids=["2D", "3D"])
def problem(request: pytest.FixtureRequest) -> Iterator[Problem]:
    state, numbers = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002  the libraries use it
    yield Problem(request.param)
    torch.random.set_rng_state(state)
    np.random.set_state(numbers)  # noqa: NPY002


def linf(make: Callable[..., Attack], **fields: Any) -> Attack:
    return make(Linf(EPS), **{"steps": STEPS, "step_size": ALPHA / EPS, **fields})


def l2(make: Callable[..., Attack], **fields: Any) -> Attack:
    return make(L2(1.0), **{"steps": STEPS, "step_size": 0.2, **fields})


class From(Rule):
    """A rule that step schedules on from given perturbations."""

    def __init__(self, start: Tensor, rule: Rule) -> None:
        self.begin, self.rule = start, rule

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        schedule = self.rule.start(replace(setting, steps=setting.steps - 1))
        return lambda s: self.begin[s.rows] if s.k == 0 else schedule(replace(s, k=s.k - 1))


def started(attack: Attack, start: Tensor) -> Attack:
    """``attack`` from the images x + ``start``; its first iterate is the clean image."""
    return replace(
        attack, rule=From(start, attack.rule), steps=attack.steps + 1, random_start=False
    )


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.to(a), **CLOSE)
    assert float((ours[-1] - ours[0]).abs().max()) > 0.05


# --- torchattacks -------------------------------------------------------------------------------


def test_torchattacks_fgsm(problem: Problem) -> None:
    theirs = problem.torchattacks(torchattacks.FGSM(problem.net, eps=EPS))
    same(problem.ours(recipes.fgsm(Linf(EPS))), theirs)


def test_torchattacks_bim(problem: Problem) -> None:
    theirs = problem.torchattacks(
        torchattacks.BIM(problem.net, eps=EPS, alpha=ALPHA, steps=STEPS)
    )
    same(problem.ours(linf(recipes.bim)), theirs)


def test_torchattacks_pgd_from_the_same_start(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = (2 * torch.rand_like(problem.x) - 1) * EPS
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda tensor, low, high: tensor.copy_(start)
    )
    theirs = problem.torchattacks(
        torchattacks.PGD(problem.net, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=True)
    )
    start = (problem.x + start).clamp(0, 1) - problem.x
    same(problem.ours(started(linf(recipes.pgd), start))[1:], theirs)


def test_torchattacks_mim() -> None:
    problem = Problem(IMAGE)
    theirs = problem.torchattacks(
        torchattacks.MIFGSM(problem.net, eps=EPS, alpha=ALPHA, steps=STEPS, decay=1.0)
    )
    same(problem.ours(linf(recipes.mim)), theirs)


def test_torchattacks_dim_where_no_image_is_resized() -> None:
    problem = Problem(IMAGE)
    attack = torchattacks.DIFGSM(
        problem.net,
        eps=EPS,
        alpha=ALPHA,
        steps=STEPS,
        decay=1.0,
        diversity_prob=0.0,
        resize_rate=0.5,
    )
    ours = problem.ours(linf(recipes.dim, p=0.0))
    same(ours[::2] if len(ours) > STEPS + 1 else ours, problem.torchattacks(attack))


def test_torchattacks_tim() -> None:
    problem = Problem(IMAGE, torch.float32)  # its kernel is single precision
    attack = torchattacks.TIFGSM(
        problem.net,
        eps=EPS,
        alpha=ALPHA,
        steps=STEPS,
        decay=1.0,
        len_kernel=7,
        nsig=3,
        diversity_prob=0.0,
        resize_rate=0.5,
    )
    same(problem.ours(linf(recipes.tim)), problem.torchattacks(attack))


def test_torchattacks_pgd_in_l2() -> None:
    problem = Problem(IMAGE)
    theirs = problem.torchattacks(
        torchattacks.PGDL2(problem.net, eps=1.0, alpha=0.2, steps=STEPS, random_start=False)
    )
    same(problem.ours(l2(recipes.bim)), theirs)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_torchattacks_apgd(norm: str) -> None:
    """Untargeted APGD-CE: every iterate of 60, through four halvings."""
    problem, eps = Problem(IMAGE), 0.1 if norm == "Linf" else 1.0
    attack = torchattacks.APGD(
        problem.net, norm=norm, eps=eps, steps=60, n_restarts=1, seed=3, loss="ce"
    )
    # first a clean pass, last the best image
    theirs = problem.torchattacks(attack, targeted=False)[1:-1]
    threat = {"Linf": Linf, "L2": L2}[norm](eps)
    objective = AwayFrom()
    start = theirs[0] - problem.x
    ours = problem.ours(
        started(recipes.apgd_ce(threat, steps=60, objective=objective), start)
    )[1:]
    same(ours, theirs)


class FromZero(Rule):
    """AutoStep that takes the loss of the start to be zero, as the published code does."""

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        schedule: Any = AutoStep().start(setting)

        def move(s: Step) -> Tensor:
            if s.k == 1:
                schedule.loss.zero_()
            return schedule(s)

        return move


def test_torchattacks_apgd_towards_a_class() -> None:
    """APGD-T on the difference-of-logits ratio; its first target is the class with the second
    largest clean logit.
    """
    problem = Problem(IMAGE)
    # one target only
    attack = torchattacks.APGDT(
        problem.net, eps=0.02, steps=30, n_restarts=1, seed=3, n_classes=2
    )
    # two clean passes before, the best image behind
    theirs = problem.torchattacks(attack, targeted=False)[2:-1]
    ours = recipes.apgd_dlr(Linf(0.02), steps=30, objective=DLR(rank=1))
    start = theirs[0] - problem.x
    schedule = problem.ours(started(replace(ours, rule=FromZero()), start))[1:]
    for a, b in zip(schedule, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    first = min(checkpoints(30))
    schedule = problem.ours(started(ours, start))[1:]
    for a, b in zip(schedule[: first + 1], theirs, strict=False):
        torch.testing.assert_close(a, b, **CLOSE)
    # a listed disagreement
    assert float((schedule[first + 1] - theirs[first + 1]).abs().max()) > 1e-3


# --- Foolbox ------------------------------------------------------------------------------------


def test_foolbox_fgsm_away_from_the_class(problem: Problem) -> None:
    for ball, eps, attack in (
        (Linf, EPS, "LinfFastGradientAttack"),
        (L2, 1.0, "L2FastGradientAttack"),
    ):
        theirs = problem.foolbox(getattr(foolbox.attacks, attack)(), eps, targeted=False)
        torch.testing.assert_close(
            problem.ours(recipes.fgsm(ball(eps), objective=AwayFrom()))[-1], theirs, **CLOSE
        )


def test_foolbox_bim_and_pgd(problem: Problem) -> None:
    bim = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=ALPHA, steps=STEPS)
    pgd = foolbox.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=ALPHA, steps=STEPS, random_start=False
    )
    for attack in (bim, pgd):
        torch.testing.assert_close(
            problem.ours(linf(recipes.bim))[-1], problem.foolbox(attack, EPS), **CLOSE
        )


def test_foolbox_bim_in_l2(problem: Problem) -> None:
    bim = problem.foolbox(
        foolbox.attacks.L2BasicIterativeAttack(abs_stepsize=0.2, steps=STEPS), 1.0
    )
    torch.testing.assert_close(problem.ours(l2(recipes.bim))[-1], bim, **CLOSE)


# --- ART ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [IMAGE, VOLUME], ids=["2D", "3D"])
def test_art_fgsm_bim_pgd_and_mim(shape: tuple[int, ...]) -> None:
    from art.attacks import evasion

    problem = Problem(shape, torch.float32)
    common = {
        "eps": EPS,
        "eps_step": ALPHA,
        "max_iter": STEPS,
        "targeted": True,
        "verbose": False,
    }
    cases = [
        (
            recipes.fgsm(Linf(EPS)),
            lambda m: evasion.FastGradientMethod(m, eps=EPS, targeted=True),
        ),
        (linf(recipes.bim), lambda m: evasion.BasicIterativeMethod(m, **common)),
        (
            linf(recipes.bim),
            lambda m: evasion.ProjectedGradientDescent(m, num_random_init=0, **common),
        ),
        (
            linf(recipes.mim),
            lambda m: evasion.MomentumIterativeMethod(m, decay=1.0, **common),
        ),
    ]
    for ours, make in cases:
        torch.testing.assert_close(problem.ours(ours)[-1], problem.art(make), **CLOSE)


@pytest.mark.parametrize("shape", [IMAGE, VOLUME], ids=["2D", "3D"])
def test_art_pgd_in_l2_until_it_meets_the_ball(shape: tuple[int, ...]) -> None:
    from art.attacks.evasion import ProjectedGradientDescent

    problem = Problem(shape, torch.float32)
    theirs = problem.art(
        lambda m: ProjectedGradientDescent(
            m,
            norm=2,
            eps=4.0,
            eps_step=0.2,
            max_iter=STEPS,
            num_random_init=0,
            targeted=True,
            verbose=False,
        )
    )
    torch.testing.assert_close(
        problem.ours(recipes.bim(L2(4.0), steps=STEPS, step_size=0.05))[-1], theirs, **CLOSE
    )


# --- known disagreements ------------------------------------------------------------------------

DISAGREEMENTS = {
    "torchattacks MIFGSM on volumes": (
        "it averages |grad| over the axes (1, 2, 3), so that each slice of the last axis has a "
        "norm of its own"
    ),
    "torchattacks DIFGSM, TIFGSM on volumes": "they resize and smooth with two-dimensional functions",
    "torchattacks TIFGSM on grey images": "its kernel has three groups",
    "torchattacks DIFGSM": (
        "one size and place for the whole batch, from the global random state: an image's "
        "result depends on its neighbours"
    ),
    "torchattacks PGDL2, Square, APGD on volumes": "their norms and steps have four axes",
    "torchattacks Square": (
        "it draws from the global random state, and colours squares only: compared by success, "
        "see test_standard"
    ),
    "torchattacks APGD, APGDT, AutoAttack": "at the first checkpoint the first loss is compared with zero, not with that of the "
    "start: with losses below "
    "zero, as DLR before success, a step that helped is counted as one that did not",
    "Foolbox MI-FGSM": "it adds up gradients of any length, without dividing by their L1 norm",
    "ART PGD in L2, on the ball": (
        "it cuts to the box and then shrinks to the ball, ours the other way round; both stay "
        "in both"
    ),
    "ART AutoProjectedGradientDescent": (
        "it counts new maxima where the paper counts increases, and keeps the higher loss when "
        "targeted"
    ),
    "ART CarliniLInf and ours (cw)": (
        "theirs minimises the size of the perturbation; ours is PGD on the margin within the "
        "budget"
    ),
}


def test_torchattacks_mim_disagrees_on_volumes() -> None:
    problem = Problem(VOLUME)
    theirs = problem.torchattacks(
        torchattacks.MIFGSM(problem.net, eps=EPS, alpha=ALPHA, steps=STEPS, decay=1.0)
    )
    assert float((problem.ours(linf(recipes.mim))[-1] - theirs[-1]).abs().max()) > ALPHA


def test_torchattacks_dim_and_tim_fail_on_volumes_and_tim_on_grey_images() -> None:
    volume, grey = Problem(VOLUME), Problem((1, 8, 8))
    ours = [
        volume.ours(linf(recipes.dim)),
        volume.ours(linf(recipes.tim)),
        grey.ours(linf(recipes.tim)),
    ]
    assert all(bool(schedule[-1].isfinite().all()) for schedule in ours)
    for problem, attack in (
        (volume, torchattacks.DIFGSM),
        (volume, torchattacks.TIFGSM),
        (grey, torchattacks.TIFGSM),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            problem.torchattacks(attack(problem.net, diversity_prob=1.0, resize_rate=0.5))


@pytest.mark.parametrize("name", ["PGDL2", "APGD", "Square"])
def test_torchattacks_fails_on_volumes(name: str) -> None:
    problem = Problem(VOLUME)
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        problem.torchattacks(
            getattr(torchattacks, name)(problem.net), targeted=name == "PGDL2"
        )


def test_foolbox_mim_disagrees() -> None:
    problem = Problem(IMAGE)
    theirs = problem.foolbox(
        foolbox.attacks.LinfMomentumIterativeFastGradientMethod(
            momentum=1.0, abs_stepsize=ALPHA, steps=STEPS
        ),
        EPS,
    )
    assert float((problem.ours(linf(recipes.mim))[-1] - theirs).abs().max()) > ALPHA


def test_art_apgd_disagrees() -> None:
    from art.attacks.evasion import AutoProjectedGradientDescent

    problem = Problem(IMAGE, torch.float32)
    problem.net.seen.clear()
    options = {
        "eps": EPS,
        "eps_step": 2 * EPS,
        "max_iter": 60,
        "nb_random_init": 1,
        "verbose": False,
    }
    problem.art(
        lambda m: AutoProjectedGradientDescent(m, targeted=False, **options), targeted=False
    )
    schedule = [v for v in problem.net.seen if len(v) == 6]
    start = next(v for v in schedule if not torch.equal(v, problem.x)) - problem.x
    ours = problem.ours(
        started(recipes.apgd_ce(Linf(EPS), steps=60, objective=AwayFrom()), start)
    )
    assert float((ours[-1] - schedule[-1]).abs().max()) > 1e-3
