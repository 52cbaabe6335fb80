"""The files that machines read: ``audit.json`` fulfils its schema, ``audit.sarif`` that of
SARIF 2.1.0, and both say what the audit says.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
from typer.testing import CliRunner

from feathide.auditing.ci import Judged
from feathide.auditing.machines import MACHINE_FILES
from feathide.auditing.result import SCHEMA_VERSION, audit_schema, result_of
from feathide.auditing.run import audit
from feathide.auditing.sarif import export_sarif, sarif_of
from feathide.auditing.verify import verify
from feathide.cli import app
from feathide.errors import InputError
from feathide.plans.plan import load_plan
from worlds.audits import PLAN, write_npz
from worlds.runs import make_run

SARIF = json.loads(
    Path(__file__).with_name("schemas").joinpath("sarif-2.1.0-rtm.5.json").read_text()
)
RECORD = {"data": {"digest": "d" * 64}, "classifier": {"digest": "c" * 64}}
JUDGED = (
    Judged("slips_through_fpr10 > 0.05", True, "0.4 (pgd, hfc, kd), n = 24"),
    Judged("accuracy < 0.5", False, "0.9 (clean), n = 60"),
)
Result = dict[str, Any]


def checks(*statuses: str) -> list[dict[str, str]]:
    said = {"raised_if": "it is off", "why": "it matters", "do": "repair it"}
    return [
        {"name": f"check {i}", "status": s, "detail": f"found {i}", **said}
        for i, s in enumerate(statuses)
    ]


@pytest.fixture(scope="module")
def result() -> Result:
    return result_of(make_run(), record=RECORD, judged=JUDGED)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("machines")
    small = {**PLAN, "attacks": ["pgd"], "schedule": {"steps": 4}, "detectors": ["msp"]}
    plan = load_plan(
        {"data": str(write_npz(home / "patches.npz")), **small, "sanity_checks": "off"}
    )
    audit(plan, home / "run", fail_if=["slips_through_fpr10 >= 0"])
    return home / "run"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(audit_schema())


def test_a_result_fulfils_the_schema(result: Result) -> None:
    jsonschema.validate(result, audit_schema())
    assert result["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.update(schema_version="2.0"),
        lambda r: r.pop("verdict"),
        lambda r: r["guards"][0].update(word="splendid"),
        lambda r: r["results"][0].update(value="0.5"),
        lambda r: r["sanity_checks"][0].update(status="ok"),
        lambda r: r["guards"][0]["slips_through"]["fpr10"].update(value=1.2),
    ],
)
def test_the_schema_refuses_what_is_wrong(
    result: Result, spoil: Callable[[Result], object]
) -> None:
    wrong = json.loads(json.dumps(result))
    spoil(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, audit_schema())


def test_an_attack_says_its_identifiers(result: Result) -> None:
    ids = {a["objective"]: a["identifiers"] for a in result["attacks"]}
    assert "AML.T0043.000" in ids["plain"] and "AML.M0015" not in ids["plain"]
    assert "AML.M0015" in ids["evade"]
    assert "worst" not in {a["attack"] for a in result["attacks"]}
    uncovered = [t["does_not_cover"] for t in result["identifiers"]["texts"]]
    assert all(uncovered)


def test_sarif_fulfils_its_schema(result: Result) -> None:
    jsonschema.Draft4Validator(SARIF).validate(sarif_of(result))


def test_sarif_has_an_alert_for_what_failed_and_none_for_what_passed() -> None:
    run = make_run(sanity_checks=checks("pass", "warn", "fail"))
    found = sarif_of(result_of(run, record=RECORD, judged=JUDGED), plan="ci/plan.yaml")
    jsonschema.Draft4Validator(SARIF).validate(found)
    (log,) = found["runs"]
    assert [(r["ruleId"], r["level"]) for r in log["results"]] == [
        ("check-1", "warning"),
        ("check-2", "error"),
        ("fail-if", "error"),
    ]
    for alert in log["results"]:
        rule = log["tool"]["driver"]["rules"][alert["ruleIndex"]]
        place = alert["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert (rule["id"], place) == (alert["ruleId"], "ci/plan.yaml")
    assert "no evidence" in log["results"][-1]["message"]["text"]
    assert log["properties"]["conditions"] == {"fulfilled": 1, "failed": 1}
    assert log["properties"]["sanity_checks"] == {"pass": 1, "warn": 1, "fail": 1}
    tags = log["tool"]["driver"]["rules"][-1]["properties"]["tags"]
    assert "external/cwe/cwe-1039" in tags


def test_the_same_alert_is_told_again_when_its_numbers_change() -> None:
    def mark(detail: str) -> str:
        judged = Judged("slips_through_fpr10 > 0.05", True, detail)
        found = sarif_of(result_of(make_run(), record=RECORD, judged=[judged]))
        return str(found["runs"][0]["results"][-1]["partialFingerprints"])

    assert mark("0.4 (pgd)") == mark("0.7 (cw)")


def test_an_audit_writes_them(finished: Path) -> None:
    result = json.loads((finished / "audit.json").read_text())
    jsonschema.validate(result, audit_schema())
    jsonschema.Draft4Validator(SARIF).validate(
        json.loads((finished / "audit.sarif").read_text())
    )
    table = pd.read_csv(finished / "results.csv")
    assert [r["value"] for r in result["results"]] == pytest.approx(
        table.value.tolist(), nan_ok=True
    )
    named = pd.read_csv(finished / "identifiers.csv", keep_default_na=False)
    assert {"attack", "objective", "knowledge", "guard"} <= set(named.kind)
    assert result["conditions"][0]["holds"]


def changed(path: Path, change: Callable[[Result], object]) -> None:
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize("name", MACHINE_FILES)
def test_verify_says_which_was_changed(name: str, finished: Path) -> None:
    path = finished / name
    before = path.read_bytes()
    assert verify(finished, sample=0).differences == ()
    path.write_bytes(before.replace(b"msp", b"maha", 1).replace(b"error", b"note", 1))
    said: Mapping[str, str] = {
        d.where: d.what for d in verify(finished, sample=0).differences
    }
    path.write_bytes(before)
    assert name in said


def test_the_command_line_exports_sarif(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.sarif"
    done = CliRunner().invoke(
        app, ["export", str(finished), "--sarif", str(out), "--plan", "ci/plan.yaml"]
    )
    assert done.exit_code == 0 and "1 alert" in done.output
    assert "ci/plan.yaml" in out.read_text()
    nothing = CliRunner().invoke(app, ["export", str(finished)])
    assert nothing.exit_code == 2 and "--out" in nothing.output
    with pytest.raises(InputError, match=r"audit\.json"):
        export_sarif(tmp_path, out)
