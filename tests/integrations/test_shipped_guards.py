"""Guards as they are shipped: code, network files and fitted estimators, from a plan to the
table.
"""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from torch import nn

from feathide.auditing.run import audit, checked
from feathide.detectors.frozen import FrozenGuard
from feathide.errors import InputError
from feathide.execution.store import Store
from feathide.integrations import identity
from feathide.integrations.shipped_guards import guard_named
from feathide.pipeline.context import Context
from feathide.pipeline.stored import uncertain_thresholds_of
from feathide.plans.plan import load_plan
from feathide.sanity.checks import sanity_checks_of
from worlds.audits import PLAN, write_npz

CODE = """
import torch

THRESHOLD = 0.027

def rough(x):
    return x.diff(dim=-1).square().flatten(1).mean(1) ** 0.5

def unsure(x, logits):
    return 1 - logits.softmax(1).amax(1)

def stepped(x):
    with torch.no_grad():
        return rough(x) > THRESHOLD

def crowd(x):
    return rough(x) - rough(x).mean()

class Vendor:
    threshold = 0.05

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, x):
        return self.factor * rough(x)

def many(a, b, c):
    return a
"""


class Net(nn.Module):
    """The roughness of images that were normalised before, as the second of two outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rough = (x[..., 1:] - x[..., :-1]).square().flatten(1).mean(1) ** 0.5
        return torch.stack([-rough, rough], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "vendor.py").write_text(CODE)
    write_npz(folder / "patches.npz")
    torch.jit.script(Net()).save(folder / "guard.ts")
    here = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(here)


def plan_of(folder: Path, detectors: list[Any], **fields: Any) -> dict[str, Any]:
    found = {"data": str(folder / "patches.npz"), **PLAN, "detectors": detectors, **fields}
    found["network"] = {**PLAN["network"], "trust": True}  # type: ignore[dict-item]
    return found


X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ROUGH = X.diff(dim=-1).square().flatten(1).mean(1) ** 0.5
Z = torch.zeros(6, 2)


@pytest.mark.parametrize(
    ("name", "threshold", "scores"),
    [
        ("guard:vendor.py:rough(threshold=0.3)", 0.3, ROUGH),
        ("guard:vendor.py:rough(higher='normal', threshold=0.3)", -0.3, -ROUGH),
        ("guard:vendor.py:Vendor", 0.05, ROUGH),
        ("guard:vendor.py:Vendor(factor=2.0, threshold=0.1)", 0.1, 2 * ROUGH),
        ("guard:vendor.py:stepped", 0.5, (ROUGH > 0.027).float()),
        ("guard:vendor.py:unsure(threshold=0.4)", 0.4, torch.full((6,), 0.5)),
        (
            "guard:guard.ts(column=1, mean=[0.5], std=[0.25], threshold=0.2)",
            0.2,
            4 * ROUGH,
        ),
        ("guard:guard.ts(column=1, window=[0, 2], threshold=0.2)", 0.2, ROUGH / 2),
    ],
)
def test_a_guard_answers_with_its_own_threshold_and_preprocessing(
    folder: Path, name: str, threshold: float, scores: torch.Tensor
) -> None:
    guard = guard_named(name)
    assert guard.own_threshold == threshold
    torch.testing.assert_close(guard.look(X, Z), scores)


def test_an_onnx_file_needs_no_trust(folder: Path) -> None:
    pytest.importorskip("onnx2torch")
    pytest.importorskip("onnx")
    torch.onnx.export(
        Net(),
        (X[:1],),
        folder / "guard.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )
    plan = plan_of(folder, [{"name": "guard.onnx", "fit": "never", "threshold": 0.2}])
    plan["network"] = {"arch": "tiny"}
    (name,) = load_plan(plan).detectors
    assert name == "guard:guard.onnx(threshold=0.2)"
    seen = guard_named("guard:guard.onnx(column=1, threshold=0.2)").look(X, Z)
    torch.testing.assert_close(seen, ROUGH)


def test_fitted_estimators_keep_their_own_threshold(folder: Path) -> None:
    rows = X.flatten(1).double().numpy()
    forest = IsolationForest(random_state=0).fit(rows)
    logistic = LogisticRegression().fit(rows, np.arange(6) % 2)
    for estimator, flagged in (
        (forest, forest.predict(rows) == -1),
        (logistic, logistic.predict(rows) == 1),
    ):
        path = folder / f"{type(estimator).__name__}.pkl"
        path.write_bytes(pickle.dumps(estimator))
        guard = guard_named(f"guard:{path.name}")
        np.testing.assert_array_equal(guard.look(X, Z) > guard.own_threshold, flagged)


@pytest.mark.parametrize("name", ["LogisticRegression.pkl", "guard.ts", "vendor.py:rough"])
def test_what_can_run_code_is_not_read_without_trust(folder: Path, name: str) -> None:
    (folder / "LogisticRegression.pkl").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    plan = plan_of(folder, [{"name": name, "fit": "never", "threshold": 1}])
    plan["network"] = PLAN["network"]
    with pytest.raises(InputError, match=r"network\.trust: false"):
        load_plan(plan)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("guard:vendor.py:many", "images and logits"),
        ("guard:vendor.py:absent", "absent"),
        ("guard:vendor.py:Vendor(factors=2)", "factor"),
        ("guard:absent.ts", "does not exist"),
        ("guard:notes.txt", "a guard is"),
        ("guard:guard.ts(colour=1)", "column"),
    ],
)
def test_what_cannot_be_loaded_is_said(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        guard_named(name)


def test_a_plan_says_it_in_words(folder: Path) -> None:
    said = {"name": "vendor.py:rough", "fit": "never", "threshold": 0.3}
    long = {"name": "guard:vendor.py:rough", "options": {"threshold": 0.3}}
    names = [load_plan(plan_of(folder, [d])).detectors for d in (said, long)]
    assert names[0] == names[1] == ("guard:vendor.py:rough(threshold=0.3)",)
    with pytest.raises(InputError, match="fit: never"):
        load_plan(plan_of(folder, [{"name": "maha", "threshold": 0.3}]))


def test_a_changed_file_is_another_guard(tmp_path: Path) -> None:
    for content, file in ((b"a", "one.ts"), (b"b", "two.ts")):
        (tmp_path / file).write_bytes(content)
    one = identity(f"guard:{tmp_path / 'one.ts'}(threshold=1)")
    assert one != identity(f"guard:{tmp_path / 'two.ts'}(threshold=1)")


ROUGHNESS = "guard:vendor.py:rough(threshold=0.2)"
CROWD = "guard:vendor.py:crowd(threshold=0.0)"
STEPPED = "guard:vendor.py:stepped"


def test_a_score_without_gradient_is_refused_by_those_who_need_it(
    folder: Path, tmp_path: Path
) -> None:
    for objective in ("evade", "selective", "orthogonal"):
        plan = plan_of(folder, ["maha", STEPPED], objectives=[f"{objective}:{STEPPED}"])
        with pytest.raises(InputError, match=f"{objective}.* has a gradient"):
            checked(load_plan(plan), tmp_path / objective)


@pytest.fixture(scope="module")
def context(folder: Path) -> Context:
    """A finished audit of a guard with a gradient and of one that looks at the whole batch."""
    plan = plan_of(
        folder,
        ["maha", ROUGHNESS, CROWD],
        attacks=["pgd"],
        objectives=["plain", "hfc", f"evade:{ROUGHNESS}"],
    )
    audit(load_plan(plan), folder / "out")
    return Context(load_plan(folder / "out" / "plan.yaml"), Store(folder / "out"))


def value(context: Context, metric: str, **where: Any) -> float:
    import pandas as pd

    table = pd.read_csv(context.store.folder / "results.csv", keep_default_na=False)
    table = table[table.metric == metric]
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    (found,) = table.value
    return float(found)


def test_false_alarms_are_counted_at_the_threshold_of_the_guard(context: Context) -> None:
    rows = context.data.rows("test")
    x = context.data.images(rows)
    alarms = (x.diff(dim=-1).square().flatten(1).mean(1) ** 0.5 > 0.2).double().mean()
    assert value(context, "false_alarms_own", detector=ROUGHNESS) == pytest.approx(
        float(alarms)
    )
    limit = uncertain_thresholds_of(context, ROUGHNESS, context.limits.budgets[0])["own"]
    assert limit.value == 0.2 and set(limit.drawn) == {0.2}
    for metric in ("false_alarms_own_noise", "false_alarms_own_shifted_noise"):
        assert 0 <= value(context, metric, detector=ROUGHNESS) <= 1
    assert "own" not in uncertain_thresholds_of(context, "maha", context.limits.budgets[0])


def test_who_has_the_gradient_of_a_guard_lowers_its_score(context: Context) -> None:
    (aware,) = [o for o in context.plan.objectives if o.kind == "evade"]
    (plain,) = [o for o in context.plan.objectives if o.kind == "plain"]
    means = {}
    for objective in (aware, plain):
        from feathide.plans.plan import Cell

        cell = Cell(context.plan.attacks[0], objective, context.limits.budgets[0])
        out, _ = context.outputs.of(context.steps.condition(cell), "test")
        assert out.guards is not None
        means[objective.kind] = float(out.guards[ROUGHNESS].mean())
    assert means["evade"] < means["plain"] - 0.002


def test_a_guard_that_looks_at_the_batch_fails_a_sanity_check(context: Context) -> None:
    found = {c["name"]: c for c in sanity_checks_of(context)}["scores of single images"]
    assert found["status"] == "fail" and CROWD in found["detail"]
    assert ROUGHNESS not in found["detail"]


def test_no_fit_reaches_a_guard(context: Context) -> None:
    eps = context.limits.budgets[0]
    fitted = context.fitted.detector(ROUGHNESS, eps)
    assert isinstance(fitted, FrozenGuard) and fitted is guard_named(ROUGHNESS)
