"""Every sanity check has a planted fault that trips it, and it only; a sound evaluation passes
them all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feathide.attacks.loop import Attack
from feathide.attacks.presets import pgd
from feathide.attacks.threats import Linf
from feathide.detectors import Detector, KernelDensity
from feathide.losses import CrossEntropy, Evade
from feathide.metrics.rates import threshold
from feathide.models.classifier import FeatureClassifier
from feathide.pipeline.accuracy import Learnt
from feathide.sanity.checks import CHECKS, SANITY_CHECKS, SanityCheck, judged
from feathide.sanity.evasion import Evasion
from feathide.sanity.judge_probes import judge_probes, masked
from feathide.sanity.judge_results import judge_table
from feathide.sanity.probes import measure
from feathide.sanity.trial import Guard, Trial
from feathide.types import Evidence, Goal, Outputs

N, EPS = 12, 0.1


def images() -> Tensor:
    """Signals in the middle of the box."""
    return 0.2 + 0.6 * torch.rand((400, 1, 8), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A smooth network of two classes, each as likely as the other on ``images``."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 8, 3, padding=1), nn.Tanh())
        self.head = nn.Linear(8, 2)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=random))
            self.head.bias -= self(images()).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(2))


class Wrapped(nn.Module):
    """A network with a fault before or behind it."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        behind: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.net, self.before, self.behind = Net(), before, behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.net(self.before(x)))


def trial(
    model: nn.Module | None = None,
    *,
    attack: Attack | None = None,
    guards: Mapping[str, Detector] | None = None,
    **fields: Any,
) -> Trial:
    """Twelve images that the network gets right, close to the decision, guarded by a kernel
    density that an evading attack knows.
    """
    classifier = FeatureClassifier((model or Net()).eval(), "last")
    pool = images()
    out = classifier.extract(pool)
    lead = (out.logits[:, 0] - out.logits[:, 1]).abs()
    near = lead.argsort()[20 : 20 + N]
    x, source = pool[near], out.predicted[near]
    plain = attack or pgd(
        Linf(EPS), steps=20, step_size=0.25, decay="cosine", confidence=0.01
    )
    learnt = {"kd": KernelDensity()} if guards is None else guards
    noisy = classifier.extract((pool[:100] + 0.01).clamp(0, 1))
    evidence = Evidence(out, out.predicted, out[:100], noisy, noisy)
    fit = {name: d.fit(evidence) for name, d in learnt.items()}
    scores = {name: d.score(out) for name, d in fit.items()}
    fitted = {
        name: Guard(d, float(scores[name].quantile(0.9)), float(scores[name].std()))
        for name, d in fit.items()
    }
    aware = replace(
        plain, objective=CrossEntropy() + Evade(tuple(g.detector for g in fitted.values()))
    )
    hidden = {"evade": aware}
    return replace(
        Trial(
            classifier,
            classifier,
            FeatureClassifier(Net(seed=4).eval(), "last"),
            x,
            Goal(source, 1 - source),
            [str(i) for i in range(N)],
            plain,
            hidden,
            fitted,
        ),
        **fields,
    )


@cache
def sound() -> dict[str, np.ndarray]:
    return measure(trial())


def statuses(
    probes: Mapping[str, np.ndarray], results: Evasion | None = None
) -> dict[str, str]:
    return {
        check.name: check.status
        for check in judged(judge_probes(probes) | judge_table(results or good()))
    }


def failed(probes: Mapping[str, np.ndarray], results: Evasion | None = None) -> set[str]:
    return {name for name, status in statuses(probes, results).items() if status == "fail"}


def good() -> Evasion:
    """Results with nothing wrong."""
    rng = np.random.default_rng(0)
    slips = np.arange(40) < 10
    return Evasion(
        attacked=40,
        budgets={"pgd": (0.5, 0.9)},
        aware={"kd": (slips, ~slips)},
        patients={
            "train": frozenset("ab"),
            "detector-training": frozenset("cd"),
            "calibration": frozenset("ef"),
            "test": frozenset("gh"),
        },
        clean={"kd": (rng.normal(size=60), rng.normal(size=60))},
        thresholds={"kd": (np.arange(60.0), threshold(np.arange(60.0), 0.1), 0.1)},
    )


def test_a_sound_evaluation_passes_every_sanity_check() -> None:
    assert set(statuses(sound()).values()) == {"pass"}
    assert set(statuses(sound())) == set(SANITY_CHECKS)


# --- faults in the network, the attack and the detector -----------------------------------------


@dataclass(frozen=True)
class ByBatch(Detector):
    """Scores an image against the others of its batch."""

    name: str = "by batch"

    def fit(self, evidence: Evidence) -> "ByBatch":
        return self

    def score(self, out: Outputs) -> Tensor:
        return (out.last - out.last.mean(0)).square().sum(1)


@dataclass(frozen=True)
class Opposite(Detector):
    """Tells an attacker the opposite of what it tells the audit: its slope has the wrong sign."""

    inner: Detector
    name: str = "opposite"

    def fit(self, evidence: Evidence) -> "Opposite":
        return replace(self, inner=self.inner.fit(evidence))

    def score(self, out: Outputs) -> Tensor:
        return -self.inner.score(out)


class Coarse(torch.autograd.Function):
    """Rounded down to steps: there is no slope anywhere."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        return (2 * score).floor() / 2

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return torch.zeros_like(grad[0])


# a score in its spreads, and their median
HIDDEN: dict[str, Callable[[Tensor, float], Tensor]] = {
    "floored": lambda score, middle: Coarse.apply(score),  # type: ignore[no-untyped-call]
    # a slope at clean images, none at attacked ones
    "clipped": lambda score, middle: score.clamp(max=middle),
    "detached": lambda score, middle: score.detach(),
    "turned": lambda score, middle: 2 * score.detach() - score,
}


@dataclass(frozen=True)
class Lead(Detector):
    """Suspects images of which the network is very sure; the plain attack makes them."""

    name: str = "lead"

    def fit(self, evidence: Evidence) -> "Lead":
        return self

    def score(self, out: Outputs) -> Tensor:
        return (out.logits[:, 0] - out.logits[:, 1]).abs()


@dataclass(frozen=True)
class Masked(Detector):
    """A score whose gradient does not lead where it falls."""

    how: str
    inner: Detector = Lead()
    middle: float = 0.0
    spread: float = 1.0
    name: str = "masked"

    def fit(self, evidence: Evidence) -> "Masked":
        inner = self.inner.fit(evidence)
        clean = inner.score(evidence.clean)
        return replace(
            self, inner=inner, middle=float(clean.median()), spread=float(clean.std())
        )

    def score(self, out: Outputs) -> Tensor:
        return HIDDEN[self.how](
            self.inner.score(out) / self.spread, self.middle / self.spread
        )


@dataclass(frozen=True)
class Declared(Masked):
    """Says that it has no gradient."""

    differentiable: ClassVar[bool] = False


@dataclass(frozen=True)
class Uphill(Linf):
    """A ball in which every step goes the wrong way."""

    def steepest(self, grad: Tensor) -> Tensor:
        return -grad.sign()


def noisy_logits(z: Tensor) -> Tensor:
    return z + 0.01 * torch.randn(z.shape)


def masked_gradient(x: Tensor) -> Tensor:
    """The right value with the slope of something else."""
    return x.detach() - 1e-3 * (x - x.detach())


NETWORKS = {
    "random at inference": (lambda: Wrapped(behind=noisy_logits), "deterministic network"),
    "probabilities": (lambda: Wrapped(behind=lambda z: z.softmax(1)), "gradient"),
    "quantised input": (
        lambda: Wrapped(before=lambda x: (x * 64).round() / 64),
        "gradient",
    ),
    "masked gradient": (lambda: Wrapped(before=masked_gradient), "unbounded attack"),
}


@pytest.mark.parametrize("make, check", NETWORKS.values(), ids=NETWORKS)
def test_a_faulty_network_trips_its_sanity_check_only(
    make: Callable[[], nn.Module], check: str
) -> None:
    assert failed(measure(trial(make()))) == {check}


def test_an_attack_that_goes_uphill_trips_its_sanity_check_only() -> None:
    wrong = pgd(Uphill(EPS), steps=20, step_size=0.25, decay="cosine")
    assert failed(measure(trial(attack=wrong))) == {"unbounded attack"}


def test_a_score_by_batch_trips_its_sanity_check_only() -> None:
    assert failed(
        measure(trial(guards={"kd": KernelDensity(), "by batch": ByBatch()}))
    ) == {"scores of single images"}


@pytest.mark.parametrize("how", HIDDEN)
def test_a_guard_that_hides_its_gradient_trips_its_sanity_check_only_and_is_named(
    how: str,
) -> None:
    probes = measure(trial(guards={"lead": Lead(), "masked": Masked(how)}))
    assert failed(probes) == {"gradients of the guards"}
    assert set(masked(probes)) == {"masked"}


def test_a_guard_that_says_that_it_has_no_gradient_is_a_warning_and_named() -> None:
    probes = measure(trial(guards={"lead": Lead(), "forest": Declared("detached")}))
    assert failed(probes) == set() and statuses(probes)["gradients of the guards"] == "warn"
    assert set(masked(probes)) == {"forest"}


def test_a_hiding_term_of_the_wrong_sign_trips_its_sanity_check_only() -> None:
    t = trial()
    (guard,) = t.guards.values()
    wrong = replace(t.attack, objective=CrossEntropy() + Evade((Opposite(guard.detector),)))
    assert failed(measure(replace(t, hidden={"evade": wrong}))) == {
        "knowing the guard helps"
    }


# --- faults in what was measured ----------------------------------------------------------------


def half(key: str, probes: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.arange(len(probes[key])) % 2 == 0


def falling(probes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    steps = np.linspace(1, 0, len(probes["trace"]))[:, None].repeat(N, 1)
    few = np.arange(N) < N - 1
    return {"trace": steps, "base": few, "single": few, "double": few, "transfer": few}


PROBES: dict[
    str, tuple[Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]], str]
] = {
    "one step is better": (
        lambda p: {
            **dict.fromkeys(("base", "double", "transfer"), half("base", p)),
            "trace": 0 * p["trace"],
        },
        "weaker attacks do worse",
    ),
    "noise does as well": (
        lambda p: {
            **dict.fromkeys(
                ("noise", "base", "single", "double", "transfer"), half("base", p)
            ),
            "trace": 0 * p["trace"],
        },
        "weaker attacks do worse",
    ),
    "another network's attack does better": (
        lambda p: {
            **dict.fromkeys(("base", "single", "double"), half("base", p)),
            "transfer": ~p["noise"],
            "trace": 0 * p["trace"],
        },
        "weaker attacks do worse",
    ),
    "twice the steps do more": (
        lambda p: {"base/evade": half("base", p), "double/evade": np.ones(N, bool)},
        "converged",
    ),
    "the loss still falls": (falling, "converged"),
    "luck": (lambda p: {"kept": np.full(N, 0.5)}, "success as counted"),
    "a point behind one guard is missed": (
        lambda p: {"planted/kd": np.arange(8) < 3},
        "gradients of the guards",
    ),
    "the planted point is missed": (
        lambda p: {"planted": half("base", p)},
        "planted point",
    ),
}


@pytest.mark.parametrize("change, check", PROBES.values(), ids=PROBES)
def test_a_fault_of_the_probes_trips_its_sanity_check_only(
    change: Callable[..., dict[str, np.ndarray]], check: str
) -> None:
    assert failed({**sound(), **change(sound())}) == {check}


NONE = np.zeros(40, bool)
RESULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a classifier that guesses": (
        {"learnt": Learnt(100, 55, 0.5, 0.5, 0.55, 0.05, 2)},
        "classifier has learnt",
    ),
    "an earlier iterate fooled": ({"silent": 3}, "success as counted"),
    "a larger budget does worse": (
        {"budgets": {"pgd": (0.9, 0.6)}},
        "weaker attacks do worse",
    ),
    "detectors that learnt from nothing": (
        {"taught": [(1.0, 0.0), (0.1, 0.9)]},
        "training attack",
    ),
    "an attack that hides by not attacking": (
        {"hidden": {"pgd+hfc": (~NONE, np.arange(40) < 20)}},
        "hiding keeps success",
    ),
    "knowing the guard does harm": (
        {"aware": {"kd": (~NONE, NONE)}},
        "knowing the guard helps",
    ),
    "noise that is no noise": ({"still": 1}, "noise is noise"),
    "duplicated patients": (
        {"patients": {"detector-training": frozenset("ab"), "test": frozenset("bc")}},
        "test split untouched",
    ),
    "a detector that knows the test images": (
        {"clean": {"kd": (np.arange(60.0), np.arange(60.0) - 55)}},
        "test split untouched",
    ),
    "a threshold tuned on test": (
        {"thresholds": {"kd": (np.arange(60.0), threshold(np.arange(60.0) + 9, 0.1), 0.1)}},
        "test split untouched",
    ),
}


@pytest.mark.parametrize("change, check", RESULTS.values(), ids=RESULTS)
def test_a_fault_of_the_results_trips_its_sanity_check_only(
    change: dict[str, Any], check: str
) -> None:
    assert failed(sound(), replace(good(), **change)) == {check}


def test_every_sanity_check_has_a_planted_fault() -> None:
    faults = {check for table in (NETWORKS, PROBES, RESULTS) for _, check in table.values()}
    elsewhere = {"scores of single images"}
    assert faults | elsewhere == set(SANITY_CHECKS)


def test_an_attack_that_does_nothing_is_called_ineffective() -> None:
    falls = {
        ("evade", "kd"): np.full(40, 0.01),
        ("evade", "svm"): np.full(40, 2.0),
        ("lid", "lid"): None,
    }
    found = judge_table(replace(good(), falls=falls))["effect"]
    assert found == ("warn", "ineffective, and not counted as evidence: evade at kd")
    del falls["evade", "kd"]
    assert "not measured" in judge_table(replace(good(), falls=falls))["effect"][1]
    del falls["lid", "lid"]
    assert judge_table(replace(good(), falls=falls))["effect"][0] == "pass"


def test_nobody_who_knows_the_guard_is_a_warning() -> None:
    assert (
        statuses(sound(), replace(good(), aware={"kd": None}))["knowing the guard helps"]
        == "warn"
    )


def test_a_masked_guard_explains_what_follows_from_it() -> None:
    probes = {
        **sound(),
        "planted/kd": np.zeros(8, bool),
        "planted": half("planted", sound()),
    }
    assert failed(probes, replace(good(), aware={"kd": (~NONE, NONE)})) == {
        "gradients of the guards"
    }
    probes["flag/random"] = np.asarray(True)
    assert failed(probes, replace(good(), silent=3)) == {"deterministic network"}


def test_a_sanity_check_is_as_grave_as_the_worst_of_its_checks_and_names_it() -> None:
    checks = judge_probes(sound()) | judge_table(good())
    assert set().union(*(CHECKS.get(name, (name,)) for name in SANITY_CHECKS)) == set(
        checks
    )
    sanity_checks = {
        check.name: check
        for check in judged(
            {**checks, "one step": ("warn", "near"), "budgets": ("fail", "far")}
        )
    }
    found = sanity_checks["weaker attacks do worse"]
    assert (found.status, found.detail) == ("fail", "budgets: far")


def test_the_protocol_lists_every_sanity_check_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    listed = [
        line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")
    ]
    assert listed == ["check", *SANITY_CHECKS]


def test_a_sanity_check_says_what_raises_it_and_what_to_do() -> None:
    assert all(
        isinstance(check, SanityCheck) and check.raised_if and check.why and check.do
        for check in SANITY_CHECKS.values()
    )
