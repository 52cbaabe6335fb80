"""An audit of a random product: the same at every pass, judged by fresh draws."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feathide.auditing.run import audit
from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.over_draws import FRESH, fooled_by_draw
from feathide.plans.plan import load_plan
from worlds.audits import PLAN, write_npz


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("draws")
    plan = {"data": str(write_npz(folder / "patches.npz")), **PLAN}
    plan |= {
        "network": {**PLAN["network"], "purify": ["bits 6", "noise 0.1"], "draws": 3},  # type: ignore[dict-item]
        "attacks": ["pgd"],
        "objectives": ["plain", "hfc"],
        "detectors": ["maha"],
        "split": {"most": 12},
    }
    audit(load_plan(plan), folder / "out")
    return Context(load_plan(folder / "out" / "plan.yaml"), Store(folder / "out"))


def test_success_over_draws_is_the_mean_over_images_and_fresh_draws(
    context: Context,
) -> None:
    table = pd.read_csv(context.store.folder / "results.csv", keep_default_na=False)
    table = table[table.metric == "success_over_draws"]
    for cell in cells(context):
        fooled = fooled_by_draw(context, cell)
        assert fooled is not None and fooled.shape[1] == FRESH
        (row,) = table[table.objective == cell.objective.name].to_dict("records")
        assert float(row["value"]) == pytest.approx(fooled.mean())
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_draws_are_recorded_and_those_of_the_judge_are_others(context: Context) -> None:
    classifier = context.networks.classifier
    assert tuple(classifier.draws) == (0, 1, 2)
    x = context.data.images(context.data.rows("test")[:4])
    fresh = [context.networks.drawn(100_000 + d).observe(x).logits for d in range(2)]
    again = context.networks.drawn(100_000).observe(x).logits
    assert np.array_equal(fresh[0], again) and not np.array_equal(fresh[0], fresh[1])


def test_the_sanity_check_of_a_deterministic_network_passes(context: Context) -> None:
    import json

    text = (context.store.folder / "sanity_checks.json").read_text()
    found = {c["name"]: c["status"] for c in json.loads(text)}
    assert found["deterministic network"] == "pass" and found["gradient"] == "pass"


def test_who_does_not_know_the_purifier_attacks_the_bare_network(
    context: Context, tmp_path: Path
) -> None:
    from feathide.pipeline.attacking import attacked

    fields = context.plan.model_dump(mode="json")
    fields["network"]["known"] = False
    other = Context(load_plan(fields), context.store)
    (cell, *_) = cells(other)
    assert attacked(other, cell).purify is None
    assert attacked(context, cells(context)[0]).purify is not None
    assert other.steps.condition(cell) != context.steps.condition(cells(context)[0])
