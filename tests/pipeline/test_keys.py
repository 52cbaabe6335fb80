"""What a change of the plan computes again: for every field, exactly the steps that depend on it.

A stored result is found by a key, a digest of all that decides it. A part that a key forgets is a
result that is silently stale; one too many is work done twice.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from feathide.auditing.tasks import audit_tasks
from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.plans.plan import Plan, load_plan

BASE: dict[str, Any] = {
    "data": {"path": "phantoms", "limit": 60, "size": 16},
    "network": {"arch": "tiny", "train": {"epochs": 1}},
    "eps": ["8/255", "16/255"],
    "attacks": ["fgsm", "pgd"],
    "objectives": ["plain", {"name": "hfc", "weight": "auto"}, "closest", "evade:maha"],
    "detectors": ["maha", "bu", "reference-network", "pixel"],
    "batch_size": 32,
}

CLASSIFIER = {"train the classifier"}
REFERENCE = {"train the reference network"}
SURROGATE = {"train a surrogate"}
LEARNT = {"check whether it has learnt"}
MIXTURES = {"fit the mixtures"}
ATTACKS = {
    "extract",
    "attack",
    "tune lambda on the detector-training split",
    "score",
    "check the evaluation",
}
ROUNDED = {"round afterwards"}
OF_THE_NETWORK = LEARNT | MIXTURES | ATTACKS | ROUNDED
ALL = CLASSIFIER | REFERENCE | SURROGATE | OF_THE_NETWORK
NOTHING: set[str] = set()

# field: another value, and the stages that then have new work
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "data.size": (24, ALL),
    "data.limit": (50, ALL),
    "network.layers": ("conv", OF_THE_NETWORK),
    "network.precision": ("bf16", OF_THE_NETWORK),
    "network.purify": (["noise 0.1"], OF_THE_NETWORK | {"judge by fresh draws"}),
    "network.draws": (4, OF_THE_NETWORK | {"judge by fresh draws"}),
    "network.known": (False, ATTACKS | ROUNDED),
    "network.train.epochs": (2, CLASSIFIER | OF_THE_NETWORK),
    "network.train.lr": (0.01, CLASSIFIER | OF_THE_NETWORK),
    "network.seed": (3, CLASSIFIER | OF_THE_NETWORK),
    "eps": (["8/255", "12/255"], REFERENCE | ATTACKS | ROUNDED),
    "norm": ("l2", REFERENCE | ATTACKS | ROUNDED),
    "schedule.steps": (7, ATTACKS | ROUNDED),
    "schedule.step_size": (0.1, ATTACKS | ROUNDED),
    "schedule.confidence": (0.5, ATTACKS | ROUNDED),
    "schedule.restarts": (2, ATTACKS | ROUNDED),
    "mixture.components": (2, MIXTURES | ATTACKS),
    "mixture.covariance": ("diag", MIXTURES | ATTACKS),
    "split.most": (20, LEARNT | ATTACKS | ROUNDED),
    "split": (
        {"detector_training": 0.3, "calibration": 0.3, "test": 0.4},
        LEARNT | ATTACKS | ROUNDED,
    ),
    "dropout_samples": (10, OF_THE_NETWORK),
    "batch_size": (16, ATTACKS | ROUNDED),
    "seed": (1, ALL),
    "reference_network.steps": (3, REFERENCE | ATTACKS),
    "train_attack": ("fgsm", ATTACKS | ROUNDED),
    "smallest_change": (True, {"look for the smallest change"}),
    "held_out": (True, {"extract", "attack", "score"}),
    "attacks": (["pgd"], NOTHING),
    "objectives": (["plain", "closest"], {"check the evaluation"}),
    "even_so": (True, LEARNT),
    "sanity_checks": ("off", NOTHING),
    "subgroups": ({"columns": ["label"]}, NOTHING),
    "large_eps": (True, NOTHING),
    "quick": ({"whole": "abc"}, NOTHING),
    "about": ({"made_by": "Audit office", "made_for": "Radiology"}, NOTHING),
    "device": ("cpu", NOTHING),
}


def work(fields: Mapping[str, Any], folder: Path) -> dict[str, set[str]]:
    """The keys of an audit's tasks by stage; nothing is run."""
    found: dict[str, set[str]] = defaultdict(set)
    for task in audit_tasks(Context(load_plan(fields), Store(folder))):
        found[task.stage].add(task.key)
    return found


def changed(field: str, value: object) -> dict[str, Any]:
    fields = json.loads(json.dumps(BASE))
    *path, last = field.split(".")
    place = fields
    for name in path:
        place = place.setdefault(name, {})
    place[last] = value
    return fields


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    return work(BASE, tmp_path_factory.mktemp("before"))


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_computes_exactly_its_dependants(
    field: str, before: dict[str, set[str]], tmp_path: Path
) -> None:
    value, stages = CHANGES[field]
    after = work(changed(field, value), tmp_path)
    assert {
        stage for stage, keys in after.items() if keys - before.get(stage, set())
    } == stages


def test_the_same_plan_has_the_same_keys(
    before: dict[str, set[str]], tmp_path: Path
) -> None:
    assert work(BASE, tmp_path) == before


def fields_of(model: type[BaseModel], head: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, f"{head}{name}.")
        else:
            yield f"{head}{name}"


def test_the_fields_that_are_changed_are_fields_of_the_plan() -> None:
    known = set(fields_of(Plan)) | set(Plan.model_fields)
    assert {name for name in CHANGES if name not in known} == set()
