"""Results by group of patients: against the whole table, with a planted difference."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feathide.auditing.run import audit, checked
from feathide.auditing.verify import verify
from feathide.errors import InputError
from feathide.execution.store import Store
from feathide.metrics.intervals import proportion
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.subgroups import COLUMNS, subgroups_of
from feathide.plans.plan import load_plan
from worlds.audits import PLAN, write_npz

SMALL = {
    **PLAN,
    "attacks": ["pgd"],
    "schedule": {"steps": 4},
    "detectors": ["msp"],
    "sanity_checks": "off",
    "subgroups": {
        "columns": ["site", "age"],
        "bands": {"age": [40, 60]},
        "smallest": 5,
    },
}


def write_data(home: Path) -> Path:
    """Patches from two sites and of three ages; those of one rare site are three patients."""
    path = write_npz(home / "patches.npz")
    rows = ["split,index,patient,site,age"]
    for split, n in (("train", 120), ("val", 24), ("test", 150)):
        for i in range(n):
            site = "rare" if split == "test" and i < 6 else ("north", "south")[i // 2 % 2]
            rows.append(f"{split},{i},{split}{i // 2},{site},{30 + i // 2 % 3 * 20}")
    path.with_suffix(".meta.csv").write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    home = tmp_path_factory.mktemp("subgroups")
    plan = load_plan({"data": str(write_data(home)), **SMALL})
    audit(plan, home / "run")
    return context_of(plan.model_dump_json(), Store(home / "run"))


@pytest.fixture(scope="module")
def table(context: Context) -> pd.DataFrame:
    return pd.read_csv(context.store.folder / "subgroups.csv", keep_default_na=False)


def test_the_groups_together_are_the_whole(context: Context) -> None:
    groups = subgroups_of(context)
    assert tuple(groups.columns) == COLUMNS
    whole = pd.read_csv(context.store.folder / "results.csv", keep_default_na=False)
    for metric in ("accuracy", "false_alarms_fpr10", "slips_through_fpr10"):
        part = groups[(groups.metric == metric) & (groups.column == "age")]
        part = part[part.objective.isin(["", "any"])]
        row = whole[(whole.metric == metric) & whole.objective.isin(["", "any"])].iloc[0]
        assert part.n.sum() == int(row.n)
        assert (part.value * part.n).sum() / part.n.sum() == pytest.approx(float(row.value))


def test_accuracy_of_a_group_is_that_of_its_images(context: Context) -> None:
    out, rows = context.outputs.of("clean", "test")
    right = out.predicted.numpy() == context.data.labels[rows]
    number = np.array([int(str(context.cases.ids[r])[-5:]) for r in rows])
    inside = (number // 2 % 2 == 1) & (number >= 6)
    expected = proportion(right[inside], groups=context.cases.patients[rows][inside])
    groups = subgroups_of(context)
    row = groups[(groups.metric == "accuracy") & (groups.group == "south")].iloc[0]
    assert (row.value, row.low, row.high) == (expected.value, expected.low, expected.high)
    assert row.rest == pytest.approx(right[~inside].mean())


def test_a_small_group_is_counted_and_not_compared(table: pd.DataFrame) -> None:
    rare = table[(table.group == "rare") & (table.metric == "accuracy")].iloc[0]
    assert (rare.patients, rare.value, rare.p) == (rare.n / 2, "", "")


def test_only_the_headline_is_tested_and_corrected(context: Context) -> None:
    groups = subgroups_of(context)
    tested = groups[groups.p.notna()]
    assert set(tested.objective) == {"", "any"}
    assert (tested.p_holm >= tested.p).all()
    # three ages, two sites against the rest of three: accuracy, alarms, worst attack
    assert len(tested) == 3 * 3 + 2 * 3


def test_a_planted_difference_is_found(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier that is wrong in the south differs there, and nowhere by age."""
    out, rows = context.outputs.of("clean", "test")
    number = np.array([int(str(context.cases.ids[r])[-5:]) for r in rows])
    labels = context.data.labels.copy()
    south = rows[(number // 2 % 2 == 1) & (number >= 6)]
    labels[south] = 1 - out.predicted.numpy()[np.isin(rows, south)]
    monkeypatch.setitem(context.data.__dict__, "labels", labels)
    groups = subgroups_of(context)
    found = groups[groups.metric == "accuracy"].set_index("group")
    assert found.p_holm["south"] < 0.05 and found.value["south"] == 0
    assert (found.p_holm[["below 40", "40 to 60", "60 and more"]] > 0.05).all()


def test_verify_says_a_changed_group(context: Context, table: pd.DataFrame) -> None:
    path = context.store.folder / "subgroups.csv"
    before = path.read_bytes()
    assert verify(context.store.folder, sample=0).differences == ()
    table.assign(group=table.group.replace("south", "west")).to_csv(path, index=False)
    said = {d.where for d in verify(context.store.folder, sample=0).differences}
    path.write_bytes(before)
    assert "subgroups.csv" in said


def test_a_wrong_column_is_refused_before_any_work(
    context: Context, tmp_path: Path
) -> None:
    plan = {**SMALL, "data": context.plan.data.path, "subgroups": "hospital"}
    with pytest.raises(InputError, match="hospital"):
        checked(load_plan(plan), tmp_path / "run")
    with pytest.raises(InputError, match="bands"):
        load_plan({**plan, "subgroups": {"columns": ["age"], "bands": {"sex": [1]}}})
