"""What stands on a finished audit: sanity_checks.json, paired comparisons, worst cases, and the
arms race.
"""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from feathide.auditing.run import audit
from feathide.cli import app
from feathide.data.shifts import HARMLESS
from feathide.plans.plan import load_plan
from feathide.sanity.checks import SANITY_CHECKS
from worlds.audits import PLAN, write_npz

CHANGES = {
    "objectives": ["plain", "hfc", "evade"],
    "detectors": ["kd", "svm", "joint"],
    "schedule": {"steps": 4},
    "split": {"most": 12},
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arms_race")
    path = folder / "plan.yaml"
    path.write_text(
        yaml.safe_dump({"data": str(write_npz(folder / "patches.npz")), **PLAN, **CHANGES})
    )
    return path


@pytest.fixture(scope="module")
def out(plan: Path) -> Path:
    """A finished audit."""
    return audit(load_plan(plan), plan.parent / "out").folder


@pytest.fixture(scope="module")
def slips(out: Path) -> pd.DataFrame:
    table = pd.read_csv(
        out / "results.csv", keep_default_na=False, na_values={"value": [""]}
    )
    return table[table.metric == "slips_through_fpr10"]


def test_sanity_checks_are_written_with_all_that_a_report_needs(out: Path) -> None:
    sanity_checks = json.loads((out / "sanity_checks.json").read_text())
    assert [g["name"] for g in sanity_checks] == list(SANITY_CHECKS)
    assert all(
        g["status"] in ("pass", "warn", "fail")
        and g["raised_if"]
        and g["why"]
        and g["do"]
        and g["detail"]
        for g in sanity_checks
    )
    assert len(list((out / "sanity_checks").glob("*.npz"))) == 1


def test_a_failed_sanity_check_is_exit_code_three_only_when_strict(
    out: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanity_checks = json.loads((out / "sanity_checks.json").read_text())
    bad = [
        {**g, "status": "fail" if g["name"] == "converged" else "pass"}
        for g in sanity_checks
    ]
    monkeypatch.setattr("feathide.auditing.run.sanity_checks_of", lambda context: bad)
    command = ["audit", str(plan), "--out", str(out)]
    loose = CliRunner().invoke(app, [*command, "--fail-if", "success > 2"])
    assert loose.exit_code == 0 and "Nothing can be concluded" in " ".join(
        loose.stdout.split()
    )
    assert (
        "not evidence" in loose.stderr
        and "it is unknown whether success > 2 is met" in loose.stderr
    )
    said = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert (said["evidence"], said["sanity_checks_failed"]) == (False, ["converged"])
    strict = CliRunner().invoke(app, [*command, "--strict"])
    assert strict.exit_code == 3 and "converged" in strict.output
    monkeypatch.setattr(
        "feathide.auditing.run.sanity_checks_of",
        lambda context: [{**g, "status": "warn"} for g in sanity_checks],
    )
    assert CliRunner().invoke(app, [*command, "--strict"]).exit_code == 0


def test_sanity_checks_can_be_left_out(plan: Path, out: Path) -> None:
    from feathide.execution.store import Store
    from feathide.pipeline.context import Context
    from feathide.sanity.checks import sanity_checks_of
    from feathide.sanity.probes import probe_tasks

    context = Context(load_plan(plan, sanity_checks="off"), Store(out))
    assert probe_tasks(context) == [] and sanity_checks_of(context) == []


def test_comparisons_are_the_differences_of_the_table(
    out: Path, slips: pd.DataFrame
) -> None:
    value = slips.set_index(["attack", "objective", "detector"]).value
    compared = pd.read_csv(out / "comparisons.csv")
    assert (
        set(compared.against) == {"plain", "evade"}
        and set(compared.objective) == {"hfc"}
        and len(compared) == 6
    )
    for r in compared.itertuples():
        gap = value[r.attack, "hfc", r.detector] - value[r.attack, r.against, r.detector]
        assert r.value == pytest.approx(gap) and r.low <= r.high


def test_the_worst_case_of_each_case_is_no_better_than_any_attack(
    slips: pd.DataFrame,
) -> None:
    for _, part in slips.groupby("detector"):
        worst = part[part.attack == "worst"]
        single = part[part.attack != "worst"].value
        assert (
            len(worst) == 1
            and worst.objective.item() == "any"
            and worst.knowledge.item() == "detector-aware"
        )
        assert single.max() - 1e-9 <= worst.value.item() <= single.sum() + 1e-9


def test_all_test_cases_count(out: Path) -> None:
    table = pd.read_csv(out / "results.csv", keep_default_na=False)
    whole, right = (
        table[table.metric == m] for m in ("slips_through_fpr10_all", "slips_through_fpr10")
    )
    n = int(table.n[table.metric == "accuracy"].iloc[0])
    # right or wrong; of the others nobody knows what an attack would do
    chosen = CHANGES["split"]["most"]
    assert (
        len(whole) == (right.attack != "worst").sum()
        and set(whole.n.astype(int)) == {chosen}
        and n > chosen
    )
    assert "false_alarms_fpr10_noise" in set(table.metric)


def test_harmless_shifts_are_part_of_the_table(out: Path) -> None:
    """A guard may mind them; that the classifier hardly does is what makes them harmless."""
    table = pd.read_csv(out / "results.csv", keep_default_na=False)
    accuracy = table[table.metric == "accuracy"].value.astype(float).item()
    for shift in HARMLESS:
        alarms = table[table.metric == f"false_alarms_fpr10_shifted_{shift}"]
        assert (
            list(alarms.detector) == CHANGES["detectors"]
            and (alarms.n == table.n[table.metric == "accuracy"].item()).all()
        )
        assert (
            table[table.metric == f"accuracy_shifted_{shift}"].value.astype(float).item()
            > accuracy - 0.2
        )
    assert (
        len(
            set(
                table[
                    table.metric.str.contains("fpr10_shifted") & (table.detector == "kd")
                ].value
            )
        )
        > 1
    )


def test_the_duel_begins_where_the_audit_ends(
    plan: Path, out: Path, slips: pd.DataFrame
) -> None:
    result = CliRunner().invoke(
        app, ["arms-race", str(plan), "--out", str(out), "--rounds", "1"]
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "arms_race.csv")
    value = table.set_index(["round", "detector", "objective"]).value
    audited = slips.set_index(["attack", "objective", "detector"]).value
    assert set(table["round"]) == {0, 1}
    for name in CHANGES["detectors"]:
        assert value[0, name, "hfc"] == pytest.approx(audited["pgd", "hfc", name])
        for number in (0, 1):
            both = value[[(number, name, "hfc"), (number, name, "evade")]]
            assert both.max() - 1e-9 <= value[number, name, "worst"] <= both.sum() + 1e-9
    # learns nothing from attacks
    assert value[1, "joint", "hfc"] == value[0, "joint", "hfc"]
    assert value[1, "svm", "hfc"] <= value[0, "svm", "hfc"]


def test_a_duel_without_hfc_is_refused(plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        yaml.safe_dump({**yaml.safe_load(plan.read_text()), "objectives": ["plain"]})
    )
    result = CliRunner().invoke(
        app, ["arms-race", str(path), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 2 and "add hfc" in result.output.replace("\n", " ")
