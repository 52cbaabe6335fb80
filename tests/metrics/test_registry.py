"""The registry of metrics: an entry is all that a metric needs, and entries agree with what they
describe.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from feathide.auditing.ci import Condition
from feathide.auditing.compare import compare
from feathide.auditing.run import Audit, audit
from feathide.data.shifts import HARMLESS
from feathide.errors import InputError
from feathide.formats.archive import Codec
from feathide.metrics.intervals import Interval
from feathide.metrics.metric import SHIFTS, Scope
from feathide.metrics.registry import METRICS, in_order, metric_of, title_of
from feathide.plans.plan import load_plan
from worlds.audits import PLAN, write_npz

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend.md"
SMALL = {**PLAN, "attacks": ["pgd"], "schedule": {"steps": 4}, "detectors": ["msp", "kd"]}
NEW, TITLE = "stopped_fpr10", "Stopped at 10 % false alarms"


def a_difference(one: object, other: object) -> Interval:
    return Interval(0.25, 0.0, 0.5, 7)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audit]:
    """A finished audit with the metric that docs/extend.md writes out."""
    before = dict(METRICS)
    section = PAGE.read_text(encoding="utf-8").split("## A metric\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    assert set(METRICS) == {*before, NEW}
    METRICS[NEW] = replace(METRICS[NEW], difference=a_difference)
    home = tmp_path_factory.mktemp("home")
    plan = load_plan({"data": str(write_npz(home / "patches.npz")), **SMALL})
    yield audit(plan, home / "run", fail_if=[f"{NEW} < 0", f"{NEW} >= 0"])
    METRICS.clear()
    METRICS.update(before)


def test_a_new_entry_is_in_the_table(found: Audit) -> None:
    where = ["attack", "objective", "eps", "detector"]
    table = found.table[found.table.attack != "worst"]
    by = {name: part.set_index(where).value for name, part in table.groupby("metric")}
    assert len(by[NEW]) == len(by["slips_through_fpr10"]) > 0
    success = by["success"].droplevel("detector")
    together = (by[NEW] + by["slips_through_fpr10"]).reset_index("detector", drop=True)
    pd.testing.assert_series_equal(
        together, success.reindex(together.index), check_names=False
    )


def test_a_new_entry_can_be_a_condition(found: Audit) -> None:
    assert [judged.holds for judged in found.judged] == [False, True]
    with pytest.raises(InputError, match="stoped_fpr10"):
        Condition.parse("stoped_fpr10 > 0")


def test_a_new_entry_is_in_the_report(found: Audit) -> None:
    page = found.report.read_text(encoding="utf-8").replace("\xa0", " ")
    assert f"<caption>{TITLE}<span>Share of all attacked images" in page


def test_a_new_entry_is_in_comparisons(found: Audit) -> None:
    changes = compare(found.folder, found.folder).table
    rows = changes[changes.metric == NEW]
    assert len(rows) == (changes.metric == "auc").sum() > 0
    assert (rows.difference == 0.25).all() and rows.paired.all() and (rows.n == 7).all()


@pytest.mark.parametrize("name", METRICS)
def test_an_entry_is_whole(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name and metric.title and metric.scope in get_args(Scope)
    assert math.isnan(metric.best) == math.isnan(metric.worst)
    assert metric.best != metric.worst


def test_the_shifts_are_those_of_the_data() -> None:
    assert list(SHIFTS) == list(HARMLESS)


@pytest.mark.parametrize("text", ["jpeg 90", "jpeg2000 10"])
def test_a_metric_of_an_archive_is_found_by_name(text: str) -> None:
    archive = Codec.parse(text).name
    metric = metric_of(f"success_{archive}")
    assert metric is not None and not metric.per_archive
    assert metric.title == f"Attack success after {archive}"
    assert Condition.parse(f"success_{archive} > 0.5").metric == metric.name
    assert metric_of(f"success_{archive}0x") is None and metric_of("success_png") is None


def test_other_names_are_put_in_words_and_come_last() -> None:
    assert title_of("drift_up") == "Drift up"
    names = ["drift_up", "auc", "success_jpeg90", "success", "auc"]
    assert in_order(names) == ["success", "success_jpeg90", "auc", "drift_up"]
