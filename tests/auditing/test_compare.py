"""Conditions, the report again, two runs side by side, JUnit XML: on a small finished audit."""

import json
import math
import shutil
from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from feathide.auditing.ci import Condition, Judged, write_junit
from feathide.auditing.compare import CHANGES, compare, render_again
from feathide.auditing.export import finished
from feathide.auditing.run import audit
from feathide.cli import app
from feathide.errors import InputError
from feathide.metrics.metric import OWN
from feathide.metrics.paired import difference_at, paired_difference
from feathide.metrics.registry import METRICS
from feathide.metrics.uncertain_threshold import uncertain_threshold
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.listing import cells
from feathide.pipeline.stored import found_in, scores_in
from feathide.plans.plan import load_plan
from worlds.audits import PLAN, write_npz

SMALL = {**PLAN, "attacks": ["pgd"], "schedule": {"steps": 4}, "detectors": ["msp", "kd"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit, made by the command line with a condition that does not hold."""
    home = tmp_path_factory.mktemp("home")
    plan = home / "plan.yaml"
    plan.write_text(yaml.safe_dump({"data": str(write_npz(home / "patches.npz")), **SMALL}))
    call = [
        "audit",
        str(plan),
        "--out",
        str(home / "a"),
        "--fail-if",
        "slips_through_fpr10 > 1",
    ]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    return home / "a"


@pytest.fixture(scope="module")
def other(run: Path) -> Path:
    """The same with one step more, half the budget and another detector."""
    folder = run.parent / "b"
    shutil.copytree(run, folder)
    audit(
        load_plan(
            run / "plan.yaml", schedule={"steps": 5}, eps="8/255", detectors=["kd", "dnn"]
        ),
        folder,
        reuse=True,
    )
    return folder


@pytest.mark.parametrize(
    "text, parts",
    [
        ("auc<0.9", ("auc", "<", 0.9)),
        (" slips_through_fpr1  >= 5e-2 ", ("slips_through_fpr1", ">=", 0.05)),
        ("success <= -1", ("success", "<=", -1.0)),
    ],
)
def test_conditions_are_read(text: str, parts: tuple) -> None:
    condition = Condition.parse(text)
    assert (condition.metric, condition.sign, condition.number) == parts


@pytest.mark.parametrize(
    "text, hint",
    [
        ("slips_through > 0.05", "did you mean 'slips_through_"),
        ("auc == 1", "must be a metric"),
        ("auc > nan", "must be a metric"),
        ("auc > 1.2.3", "must be a metric"),
        ("auc > __import__('os')", "must be a metric"),
        ("", "must be a metric"),
    ],
)
def test_a_bad_condition_is_one_sentence_before_any_work(
    text: str, hint: str, tmp_path: Path
) -> None:
    call = [
        "audit",
        "--data",
        "nowhere.npz",
        "--out",
        str(tmp_path / "out"),
        "--fail-if",
        text,
    ]
    result = CliRunner().invoke(app, call)
    assert (
        result.exit_code == 2 and hint in result.output and "nowhere" not in result.output
    )
    assert len(result.output.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_the_worst_row_decides() -> None:
    table = pd.DataFrame(
        {
            **{c: ["x", "y", "z"] for c in ("attack", "objective")},
            "detector": ["kd", "lid", "svm"],
            "metric": "auc",
            "value": [0.2, 0.8, math.nan],
            "n": 5,
        }
    )
    assert (
        Condition("auc", ">", 0.5).judge(table).holds
        and "lid" in Condition("auc", ">", 0.5).judge(table).detail
    )
    assert (
        Condition("auc", "<", 0.5).judge(table).holds
        and "kd" in Condition("auc", "<", 0.5).judge(table).detail
    )
    assert (
        not Condition("auc", ">", 0.8).judge(table).holds
        and Condition("auc", ">=", 0.8).judge(table).holds
    )
    assert (
        not Condition("auc", "<", 0.2).judge(table).holds
        and Condition("auc", "<=", 0.2).judge(table).holds
    )
    assert Condition("success", ">", 0.5).judge(table).holds, (
        "what was not measured cannot pass"
    )


def test_every_metric_of_a_table_can_be_asked_for(run: Path) -> None:
    there = set(pd.read_parquet(run / "results.parquet").metric)
    # only of guards as shipped, random networks, and where the plan asks for the smallest change
    others = ("success_over_draws", "eps_to_")
    asked = {
        m.name
        for m in METRICS.values()
        if not m.per_archive
        and OWN not in m.name.split("_")
        and not m.name.startswith(others)
    }
    assert there == asked


def test_a_condition_that_holds_exits_with_4(run: Path) -> None:
    call = [
        "audit",
        str(run / "plan.yaml"),
        "--out",
        str(run),
        "--fail-if",
        "success >= 0",
        "--fail-if",
        "auc > 2",
    ]
    result = CliRunner().invoke(app, call)
    assert (
        result.exit_code == 4
        and "success >= 0:" in result.output
        and "auc > 2:" not in result.output
    )
    cases = {c.get("name"): c for c in Xml.parse(run / "audit.junit.xml").iter("testcase")}
    assert (
        cases["success >= 0"].find("failure") is not None
        and cases["auc > 2"].find("failure") is None
    )


def test_junit_has_a_case_per_sanity_check_and_condition(run: Path) -> None:
    sanity_checks = json.loads((run / "sanity_checks.json").read_text())
    suite = Xml.parse(
        write_junit(run, [Judged("a < 1\x00", True, "<b>"), Judged("c > 2", False, "1")])
    ).getroot()
    failed = {c.get("name") for c in suite if c.find("failure") is not None}
    assert [c.get("name") for c in suite] == [
        *(g["name"] for g in sanity_checks),
        "a < 1",
        "c > 2",
    ]
    assert failed == {"a < 1", *(g["name"] for g in sanity_checks if g["status"] == "fail")}
    assert (suite.get("tests"), suite.get("failures")) == (
        str(len(sanity_checks) + 2),
        str(len(failed)),
    )
    assert suite.get("errors") == str(
        int(any(g["status"] == "fail" for g in sanity_checks))
    )


def test_a_condition_over_numbers_that_are_no_evidence_does_not_pass(
    run: Path, tmp_path: Path
) -> None:
    sanity_checks = json.loads((run / "sanity_checks.json").read_text())
    broken = [
        {**g, "status": "fail" if g["name"] == "converged" else "pass"}
        for g in sanity_checks
    ]
    (tmp_path / "sanity_checks.json").write_text(json.dumps(broken))
    judged = [Judged("success > 2", False, "1"), Judged("success > 0", True, "1")]
    suite = Xml.parse(write_junit(tmp_path, judged)).getroot()
    cases = {c.get("name"): c for c in suite}
    error = cases["success > 2"].find("error")
    assert (
        error is not None
        and error.get("message") == "not evidence: sanity check converged failed"
    )
    assert (
        cases["success > 0"].find("failure") is not None
        and cases["success > 0"].find("error") is None
    )
    assert (suite.get("failures"), suite.get("errors")) == ("2", "1")


def test_the_report_is_made_again(run: Path) -> None:
    page, files = run / "report.html", {f: f.stat().st_mtime_ns for f in run.rglob("*.npz")}
    before = page.read_text()
    page.unlink()
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.exit_code == 0 and page.name in result.output.replace("\n", "")
    assert page.read_text() == before
    assert files == {f: f.stat().st_mtime_ns for f in run.rglob("*.npz")}


def test_other_images_are_noticed(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    document = yaml.safe_load((folder / "plan.yaml").read_text())
    document["record"]["data"]["digest"] = "another"
    (folder / "plan.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(InputError, match="needs the images that it attacked"):
        render_again(folder)
    with pytest.raises(InputError, match=r"plan.yaml and results.csv"):
        render_again(tmp_path)


def test_a_run_equals_itself(run: Path) -> None:
    found = compare(run, run)
    assert not found.fields and tuple(found.table.columns) == CHANGES
    assert found.table.paired.all() and (found.table.difference == 0).all()
    assert (found.table.low < 0).all() and (found.table.high > 0).all()


def test_two_runs_are_compared_case_by_case(run: Path, other: Path) -> None:
    found = compare(run, other)
    assert found.fields["schedule.steps"] == (4, 5) and found.fields["detectors"] == (
        ["msp", "kd"],
        ["kd", "dnn"],
    )
    assert "network.arch" not in found.fields
    table = found.table.set_index(["objective", "detector", "metric"])
    assert set(found.table.detector) == {"", "kd"} and found.table.paired.all()
    shares = found.table[found.table.metric != "auc"]
    assert np.allclose(shares.difference, shares.b - shares.a)

    a, b = finished(run), finished(other)
    slips, cuts = [], []
    for context in (b, a):
        cell = next(c for c in cells(context) if c.objective.name == "hfc")
        f = found_in(context, cell)
        score = scores_in(
            context, "kd", cell.eps, context.steps.condition(cell), "test", f.rows
        )
        order = np.argsort(f.rows)
        slips.append(
            lambda t, fooled=f.fooled[order], score=score[order]: fooled & (score <= t)
        )
        held = [
            scores_in(context, "kd", cell.eps, c, "calibration")
            for c in ("clean", noisy_at(cell.eps))
        ]
        patients = np.tile(context.cases.patients[context.data.rows("calibration")], 2)
        cuts.append(
            uncertain_threshold(
                np.concatenate(held), 0.10, groups=patients, seed=a.plan.seed
            )
        )
    patients = a.cases.patients[np.sort(f.rows)]
    passed = [s(limit.value) for s, limit in zip(slips, cuts, strict=True)]
    plain = paired_difference(np.mean, *((p,) for p in passed), groups=patients)
    want = difference_at((cuts[0], cuts[1]), *slips, groups=patients, seed=a.plan.seed)
    got = table.loc["hfc", "kd", "slips_through_fpr10"]
    assert (got.difference, got.n) == pytest.approx((plain.value, plain.n))
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    # the thresholds might have been others
    assert got.high - got.low > plain.high - plain.low
    assert got.eps_a == 2 * got.eps_b


def test_other_cases_are_not_paired(run: Path, tmp_path: Path) -> None:
    """Another seed: other cases in the test split."""
    folder = tmp_path / "c"
    audit(
        load_plan(
            run / "plan.yaml",
            seed=1,
            sanity_checks="off",
            objectives=["plain"],
            detectors=["msp"],
        ),
        folder,
    )
    result = CliRunner().invoke(app, ["compare", str(run), str(folder), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["fields"]["seed"] == {"a": 0, "b": 1}
    assert found["changes"] and not any(row["paired"] for row in found["changes"])
    assert all(row["low"] is None for row in found["changes"])
    assert (
        "not paired"
        in CliRunner()
        .invoke(app, ["compare", str(run), str(folder)], env={"COLUMNS": "200"})
        .output
    )


def test_what_changed_a_key_is_named_step_by_step(run: Path, other: Path) -> None:
    found = CliRunner().invoke(app, ["compare", str(run), str(other), "--keys", "--json"])
    assert found.exit_code == 0, found.output
    changes = json.loads(found.output)
    (attack,) = {tuple(names) for step, names in changes.items() if step[:6] == "attack"}
    assert set(attack) >= {"eps", "schedule.steps"}
    assert "train the classifier" not in changes
    assert any(step.startswith("score, kd") for step in changes)
    same = CliRunner().invoke(app, ["compare", str(run), str(run), "--keys"])
    assert same.output == "both runs have the same keys\n"
