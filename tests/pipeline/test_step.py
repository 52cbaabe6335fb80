"""A step's key is made of what it declares, and says why it changed."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from feathide.errors import InputError
from feathide.execution.digests import digest
from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.step import Arrays, Decision, Step, changed
from feathide.plans.plan import load_plan


def work(context: Context) -> Arrays:
    return {}


def test_values_and_their_order_decide_and_names_do_not() -> None:
    one = Decision({"seed": 1, "eps": 0.5})
    assert one.digest == digest([1, 0.5])
    assert one.digest == Decision({"draw": 1, "budget": 0.5}).digest
    assert one.digest != Decision({"eps": 0.5, "seed": 1}).digest
    assert one.digest != Decision({"seed": 2, "eps": 0.5}).digest


def test_what_decides_a_decision_inside_decides_the_whole() -> None:
    whole = [
        Decision({"classifier": Decision({"epochs": n}), "norm": "l2"}) for n in (1, 2)
    ]
    assert whole[0].digest != whole[1].digest
    assert changed([whole[0]], [whole[1]]) == ["classifier: epochs"]
    assert changed([whole[0]], [whole[0]]) == []


def test_a_key_has_every_digest_and_one_number_a_batch() -> None:
    decided_by = (Decision({"a": 1}), Decision({"b": 2}))
    one, two = (d.digest for d in decided_by)
    step = Step("outputs", work, label="clean", decided_by=decided_by, file="test")
    assert step.key == f"outputs/clean-{one}-{two}/test"
    batched = Step(
        "outputs", work, decided_by=decided_by[:1], file="test", batches=lambda: 2
    )
    assert batched.keys == (f"outputs/{one}/test-0000", f"outputs/{one}/test-0001")
    with pytest.raises(ValueError, match="too many"):
        _ = batched.key


def test_a_missing_value_is_a_change() -> None:
    assert changed([Decision({"a": 1})], [Decision({"a": 1, "compile": None})]) == [
        "compile"
    ]


def test_a_step_of_an_audit_says_which_field_changed_it(
    tmp_path: Path,
) -> None:
    plans = [
        load_plan(
            {
                "data": {"path": "phantoms", "limit": 60, "size": 16},
                "network": {"arch": "tiny", "train": {"epochs": epochs}},
            }
        )
        for epochs in (1, 2)
    ]
    one, two = (Context(plan, Store(tmp_path)).steps for plan in plans)
    assert changed(one.train.decided_by, two.train.decided_by) == ["train.epochs"]
    assert changed(one.mixtures.decided_by, two.mixtures.decided_by) == [
        "reading: classifier: train.epochs"
    ]
    assert changed(one.reference_network.decided_by, two.reference_network.decided_by) == []


def test_an_attack_says_which_of_its_own_fields_changed_it(tmp_path: Path) -> None:
    """Of a plan as written, too, in which the batch size is still "auto"."""
    plan = {"data": {"path": "phantoms", "limit": 60, "size": 16}, "network": "tiny"}

    def decided_by(**changes: object) -> Sequence[Decision]:
        context = Context(load_plan({**plan, **changes}), Store(tmp_path))
        return context.steps.attack(cells(context)[-1], "test").decided_by

    pgd, hfc = {"name": "pgd", "steps": 9}, {"name": "hfc", "weight": 0.5}
    before = decided_by(attacks=["pgd"], objectives=["hfc"])
    assert changed(before, decided_by(attacks=[pgd], objectives=["hfc"])) == [
        "attack.steps"
    ]
    assert changed(before, decided_by(attacks=["pgd"], objectives=[hfc])) == [
        "objective.weight"
    ]
    larger = decided_by(attacks=["pgd"], objectives=["hfc"], eps=["8/255"])
    assert changed(before, larger) == ["eps"]


def test_a_plan_without_a_batch_size_says_so_where_batches_are_counted(
    tmp_path: Path,
) -> None:
    context = Context(load_plan({"data": "phantoms", "network": "tiny"}), Store(tmp_path))
    with pytest.raises(InputError, match="batch_size must be a number"):
        _ = context.steps.extract("clean", "test").keys
