"""The conformance checks catch what they are for: one broken object for each; and the verb that
holds them against anybody's.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from feathide.checks import (
    ATTACK_LAWS,
    DETECTOR_LAWS,
    OBJECTIVE_LAWS,
    Verdict,
    check,
    judge,
    subject_of,
)
from feathide.cli import app
from feathide.detectors import Detector
from feathide.errors import InputError, expected
from feathide.losses import BoundLoss, Objective
from feathide.types import Evidence, Outputs


def broken(verdicts: Any) -> set[str]:
    return {v.check for v in verdicts if v.status == "fail"}


# --- detectors ----------------------------------------------------------------------------------

LEARNT: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Distance(Detector):
    """The distance of the late features to the training mean, with one thing wrong."""

    fault: str = ""
    name: str = "distance"
    mean_: Tensor | None = field(default=None, compare=False)

    def fit(self, evidence: Evidence) -> "Distance":
        x = evidence.train.features["late"]
        if self.fault == "learns in place":
            LEARNT["mean"] = x[:, 1].mean()
        if self.fault == "draws":
            x = x + 1e-3 * torch.rand_like(x)
        if self.fault == "writes":
            evidence.train.features["late"].mul_(1)
            evidence.clean.features["late"][0] += 1
        if self.fault != "no checks" and not bool(x.isfinite().all()):
            raise expected("finite features", got="NaN", do="check them")
        return replace(self, mean_=x[:, 1].mean())

    def score(self, out: Outputs) -> Tensor:
        mean = LEARNT.get("mean") if self.fault == "learns in place" else self.mean_
        if mean is None:
            raise expected("a fitted detector", got="a recipe", do="call fit")
        if "late" not in out.features:
            raise expected("the layer late", got="none", do="keep it")
        f = out.features["late"][:, 1]
        if self.fault != "no checks" and not bool(f.isfinite().all()):
            raise expected("finite features", got="NaN", do="check them")
        value = (f - mean.to(f)).square()
        match self.fault:
            case "upside down":
                return -value
            case "batch mean":
                return value - value.mean()
            case "first row":
                return value + 1e-3 * torch.arange(len(value)).to(value)
            case "no gradient":
                return value.detach()
            case "wrong gradient":
                return value.detach() + f - f.detach()
            case "float64":
                return value.double()
            case "reads dropout":
                return value + (0 if out.stochastic is None else out.stochastic.var((1, 2)))
        return value


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        ("", set()),
        ("upside down", {"separated Gaussians", "swapped roles"}),
        ("batch mean", {"rows alone", "differentiable"}),
        ("first row", {"rows alone", "permuted rows"}),
        ("draws", {"idempotent fit", "inputs untouched", "swapped roles"}),
        ("learns in place", {"unfitted raises"}),
        ("writes", {"inputs untouched"}),
        ("no gradient", set()),
        ("wrong gradient", {"differentiable"}),
        ("float64", {"float32"}),
        ("reads dropout", {"asks for what it reads", "says where it looks"}),
        ("no checks", {"not a number"}),
    ],
)
def test_each_law_of_detectors_catches_its_fault(fault: str, checks: set[str]) -> None:
    LEARNT.clear()
    verdicts = list(judge(DETECTOR_LAWS, lambda: Distance(fault)))
    found = broken(verdicts)
    assert checks <= found if fault != "" else found == checks
    assert (
        found
        <= checks | {"differentiable", "idempotent fit", "swapped roles", "missing layer"}
        if checks
        else not found
    )
    assert ("differentiable" in {v.check for v in verdicts if v.status == "none"}) == (
        fault == "no gradient"
    )


# --- attacks ------------------------------------------------------------------------------------


def step(fault: str) -> Callable[..., Tensor]:
    """One step along the sign of the gradient, with one thing wrong."""

    def attack(
        classifier: Any, x: Tensor, goal: Any, ids: Any, seed: int, eps: Any
    ) -> Tensor:
        size = torch.as_tensor(eps, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(
                classifier(leaf).logits, goal.target, reduction="sum"
            )
            (grad,) = torch.autograd.grad(loss, leaf)
        if fault == "mean over the batch":
            grad = grad.mean(0, keepdim=True).expand_as(grad)
        if fault == "climbs":
            grad = -grad
        if fault == "global noise":
            grad = grad + torch.randn_like(grad)
        if fault == "too far":
            size = 1.5 * size
        if fault == "always":
            size = size + 0.01
        if fault == "nothing":
            size = 0 * size
        if fault == "writes":
            x += 1e-3
        if fault == "hooks":
            classifier.model.register_forward_hook(lambda *_: None)
        return (x - size * grad.sign()).clamp(*((0, 1) if fault != "no box" else (-9, 9)))

    return attack


@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        ("", set()),
        ("mean over the batch", {"batch is singletons"}),
        ("climbs", {"radius of a linear network"}),
        ("global noise", {"same seed, same bits", "network and inputs untouched"}),
        ("too far", {"ball and box"}),
        ("always", {"eps 0 gives x", "ball and box"}),
        ("nothing", {"not a no-op", "radius of a linear network"}),
        ("writes", {"network and inputs untouched"}),
        ("no box", {"ball and box"}),
    ],
)
def test_each_law_of_attacks_catches_its_fault(fault: str, checks: set[str]) -> None:
    from feathide.attacks.threats import L2

    def attacks(threat: Any) -> Callable[..., Tensor]:
        if isinstance(threat, L2):
            raise expected("L-infinity", got="L2", do="take the other")
        return lambda *args: step(fault)(*args, threat.eps)

    found = broken(judge(ATTACK_LAWS, attacks))
    assert checks <= found if checks else not found


# --- objectives ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pull(Objective):
    """The squared first feature of the first layer, with one thing wrong."""

    fault: str = ""

    def bind(self, clean: Outputs, goal: Any, noise: Any) -> BoundLoss:
        drawn = torch.rand(1) if self.fault == "draws" else 1.0

        def hide(out: Outputs, rows: Any) -> Tensor:
            f = next(iter(out.features.values()))[:, 0]
            if self.fault == "batch":
                return f.square() / f.square().sum().clamp_min(1e-9)
            if self.fault == "wrong gradient":
                return f.square().detach() + f - f.detach()
            if self.fault == "writes":
                out.logits.mul_(1.5) if not out.logits.requires_grad else None
            return f.square() * drawn

        return BoundLoss(hide=hide, name="pull")


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("", None),
        ("batch", "one loss per image"),
        ("wrong gradient", "gradient of the loss"),
        ("draws", "bound again, the same"),
        ("writes", "outputs untouched"),
    ],
)
def test_each_law_of_objectives_catches_its_fault(fault: str, check: str | None) -> None:
    found = broken(judge(OBJECTIVE_LAWS, lambda known: Pull(fault)))
    assert check in found if check else not found


# --- names and the verb -------------------------------------------------------------------------

MODULE = """
from sklearn.ensemble import IsolationForest
from feathide.catalog import Hiding
from feathide.detectors import KernelDensity
from feathide.losses import HFC, CrossEntropy
from feathide.attacks.presets import fgsm

ready, wish, row, nothing = KernelDensity(), CrossEntropy(), Hiding(lambda known, options: HFC(known.bank()), "feature-aware"), 3

def density(name="mine"):
    return KernelDensity(name=name)

def recipe(threat, **fields):
    return fgsm(threat, **fields)

def still(classifier, x, goal, ids, seed):
    return x
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine_laws.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine_laws.py"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mine_laws:ready", "detector"),
        ("mine_laws.density", "detector"),
        ("{path}:KernelDensity", "detector"),
        ("mine_laws:wish", "objective"),
        ("mine_laws.row", "objective"),
        ("mine_laws:recipe", "attack"),
        ("mine_laws:still", "attack"),
        ("kd", "detector"),
        ("hfc", "objective"),
        ("pgd", "attack"),
        ("sklearn:IsolationForest(n_estimators=5)", "detector"),
    ],
)
def test_what_a_name_stands_for(name: str, kind: str, mine: Path) -> None:
    assert subject_of(name.format(path=mine))[0] == kind


def test_names_that_stand_for_nothing(mine: Path) -> None:
    for name, message in (
        ("kde-", "did you mean 'kde'"),
        ("mine_laws:nothing", "must be a detector, an attack or an objective"),
        ("mine_laws:redy", "did you mean 'ready'"),
    ):
        with pytest.raises(InputError, match=message):
            subject_of(name)
    with pytest.raises(InputError, match="unknown check of detectors 'rows'"):
        list(check("kd", skip=["rows"]))
    with pytest.raises(InputError, match="unknown kind"):
        list(check("kd", kind="guard"))


def test_the_verb_prints_one_line_per_law_and_says_by_its_exit_code(mine: Path) -> None:
    run = CliRunner().invoke(app, ["conformance", "mine_laws:density"])
    assert run.exit_code == 0
    assert [line[:4] for line in run.stdout.splitlines()] == ["pass"] * len(DETECTOR_LAWS)
    run = CliRunner().invoke(app, ["conformance", "mine_laws:still", "--json"])
    assert run.exit_code == 4
    found = json.loads(run.stdout)
    assert not found["passed"]
    verdicts = {Verdict(**v).check: Verdict(**v) for v in found["checks"]}
    assert (
        verdicts["not a no-op"].status == "fail"
        and "got none" in verdicts["not a no-op"].detail
    )
    assert verdicts["eps 0 gives x"].status == "none"
    run = CliRunner().invoke(
        app, ["conformance", "mine_laws:still", "--skip", "not a no-op"]
    )
    assert run.exit_code == 0
