"""The verbs on tiny images: a plan in, a table with intervals and a page out, in the folder of an
audit whose work is used.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from typer.testing import CliRunner

from feathide.analysis.members import lab_with, members
from feathide.analysis.out_of_distribution import ood_tasks, shifted
from feathide.analysis.transfer import trial_tasks
from feathide.auditing.outliers import curves
from feathide.auditing.run import audit
from feathide.cli.analysis import explain, ood
from feathide.execution.store import Store
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.rows import COLUMNS
from feathide.pipeline.stored import found_in
from feathide.plans.plan import load_plan
from feathide.report.results import CURVES
from worlds.linear import PLAN, write_npz

app = typer.Typer()
app.add_typer(explain, name="explain")
app.command("ood")(ood)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit, with its plan beside it."""
    home = tmp_path_factory.mktemp("explain")
    plan = {"data": str(write_npz(home / "left.npz")), **PLAN}
    (home / "plan.yaml").write_text(yaml.safe_dump(plan))
    audit(load_plan(plan), home / "out")
    return home


def lab_in(home: Path) -> Context:
    return context_of(load_plan(home / "plan.yaml").model_dump_json(), Store(home / "out"))


def run(home: Path, *words: str) -> pd.DataFrame:
    """The table of a verb, checked for what all tables have in common; what the audit had stays
    as it is.
    """
    out = home / "out"
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*.npz")}
    result = CliRunner().invoke(app, [*words, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert before == {f: f.stat().st_mtime_ns for f in before}
    verb = words[1] if words[0] == "explain" else words[0]
    blank = {c: [""] for c in ("value", "low", "high", "eps")}
    path = out / f"explain-{verb}.csv"
    table = pd.read_csv(path, keep_default_na=False, na_values=blank, dtype={"layer": str})
    assert set(COLUMNS) <= set(table.columns)
    assert not table.value.isna().any() and (table.n > 0).all()
    known = table[~table.low.isna()]
    assert ((known.low <= known.value + 1e-9) & (known.value <= known.high + 1e-9)).all()
    page = (out / f"explain-{verb}.html").read_text()
    assert (
        page.startswith("<!doctype html>") and 'src="http' not in page and "figure-" in page
    )
    return table


def test_direction(folder: Path) -> None:
    table = run(folder, "explain", "direction", str(folder / "plan.yaml"))
    context = lab_in(folder)
    layers = list(context.outputs.train()[0].features)
    assert set(table.metric) == {
        "cosine_iterates",
        "cosine_steps",
        "cosine_images",
        "cosine_attacks",
        "cosine_means",
        "cosine_weights",
        "correlation_weights",
        "cosine_gradient",
    }
    assert set(table.attack) == {"noise", "fgsm", "pgd"} and set(table.layer) == set(layers)
    assert table.value.between(-1.0001, 1.0001).all()
    at = table[table.layer == layers[-1]].set_index(["metric", "attack", "objective"]).value
    assert at["cosine_weights", "pgd", "plain"] > 0.2  # it does push that way
    # two classes
    assert (
        abs(at["cosine_gradient", "pgd", "plain"] - at["cosine_weights", "pgd", "plain"])
        < 1e-5
    )
    assert set(table.versus[table.metric == "cosine_attacks"]) == {"pgd+plain", "pgd+hfc"}


def test_the_trail_ends_where_the_audit_ended(folder: Path) -> None:
    """The last iterate of the same attack: its class is that of the stored image where only the
    last iterate fools.
    """
    from feathide.analysis.direction import changes_of, followed

    context = lab_in(folder)
    for cell, _ in followed(context):
        changes, found = changes_of(context, cell), found_in(context, cell)
        assert (changes.rows == found.rows).all()
        stored = context.outputs.at(context.steps.condition(cell), "test", changes.rows)
        clean = context.outputs.at("clean", "test", changes.rows)
        if cell.attack.name == "fgsm":  # of whose two images the second is kept if it fools
            layer, change = next(iter(changes.layers.items()))
            same = (
                change[-1] - (stored.features[layer] - clean.features[layer])
            ).abs().amax(1) < 1e-4
            assert bool(same[found.fooled].all())


def test_stress(folder: Path) -> None:
    table = run(folder, "explain", "stress", str(folder / "plan.yaml"), "--seeds", "0,1")
    assert set(table.metric) == {
        "accuracy",
        "training_images",
        "activation",
        "drift_down",
        "drift_up",
        "drift_away",
    }
    assert set(table.seed) == {0, 1}
    drift = table[table.metric.str.startswith("drift")].pivot_table(
        index=["seed", "layer"], columns="metric", values="value"
    )
    assert (drift > 0).all(axis=None)
    assert (drift.drift_away >= 0.8 * drift[["drift_up", "drift_down"]].max(1)).all()


def test_outliers(folder: Path) -> None:
    table = run(folder, "explain", "outliers", str(folder / "plan.yaml"))
    layers = table.layer.nunique()
    share = (
        table[table.metric == "most_suspicious"]
        .groupby(["attack", "objective"])
        .value.sum()
    )
    assert np.allclose(share, 1)
    clean = table[(table.attack == "clean") & (table.metric == "neighbour")]
    assert len(clean) == layers and np.allclose(clean.value, 1)
    mean = table[table.metric == "distance"].groupby(["attack", "objective"]).value.mean()
    assert (
        mean["pgd", "plain"] > mean["clean", ""]
        and mean["pgd", "plain"] > mean["pgd", "hfc"]
    )


def test_curves_are_those_of_the_report(folder: Path) -> None:
    found = curves(lab_in(folder))
    assert set(found) == {"outlierness", "embedding"}
    for name, curve in found.items():
        assert tuple(curve.columns) == CURVES[name]
        assert {"clean", "noisy", "pgd+plain"} <= set(curve.condition)


def test_transfer(folder: Path) -> None:
    table = run(
        folder,
        "explain",
        "transfer",
        str(folder / "plan.yaml"),
        "--seeds",
        "0,1",
        "--halves",
    )
    names = {"tiny, seed 0", "tiny, seed 1", "tiny, seed 0, half 1", "tiny, seed 0, half 2"}
    assert set(table.classifier) == names and set(table.versus) == names | {"all others"}
    assert set(table.metric) == {"success", "slips_through_fpr10"}
    own = table.classifier == table.versus
    assert set(table.knowledge[~own]) == {"transfer"} and "oblivious" in set(
        table.knowledge[own]
    )
    success = table[table.metric == "success"]
    same = success.classifier == success.versus
    assert success[same].value.mean() >= success[~same].value.mean()
    through = table[table.metric == "slips_through_fpr10"].merge(
        success, on=["classifier", "versus", "attack", "objective"]
    )
    assert (through.value_x <= through.value_y + 1e-9).all()
    context = lab_in(folder)
    order = trial_tasks(
        [lab_with(context, m) for m in members(["tiny"], [0, 1], halves=True)], jury=True
    )
    crafted = {task.key for task in order if task.stage == "craft on all others"}
    # tried once they are there
    assert crafted and crafted == {need for task in order for need in task.needs}


def test_ood(folder: Path) -> None:
    near, far = (
        write_npz(folder / "near.npz", seed=7),
        write_npz(folder / "wide.npz", size=24, seed=8),
    )
    table = run(
        folder, "ood", str(folder / "plan.yaml"), "--near", str(near), "--far", str(far)
    )
    assert set(table.kind) == {"lesion", "acquisition", "near", "far"}
    assert {"mean", "near", "wide", "large lesions"} <= set(table.versus)
    shares = table[table.metric.isin(["auc", "aupr", "fpr95", "accuracy"])]
    assert shares.value.between(0, 1).all()
    auc = (
        table[(table.metric == "auc") & (table.detector == "hfc-all")]
        .set_index("versus")
        .value
    )
    assert auc["large lesions"] > auc["near"] - 0.05
    assert "data:image/png" in (folder / "out" / "explain-ood.html").read_text()


def test_volumes(tmp_path: Path) -> None:
    """The same verbs in three dimensions."""
    network = {
        "arch": "tiny3d",
        "layers": "conv",
        "train": {"epochs": 1, "augment": False, "stem": "small"},
    }
    plan = {
        "data": str(write_npz(tmp_path / "volumes.npz", size=10, axes=3)),
        **PLAN,
        "network": network,
        "attacks": "bim",
        "schedule": {"steps": 3},
        "even_so": True,
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    for words in (["explain", "direction"], ["explain", "stress"], ["ood"]):
        run(tmp_path, *words, str(tmp_path / "plan.yaml"))


def test_bad_input_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    for words, hint in (
        (["explain", "stress", str(folder / "plan.yaml"), "--seeds", "a"], "whole numbers"),
        (["explain", "direction", str(tmp_path / "none.yaml")], "does not exist"),
        (["ood", str(folder / "plan.yaml"), "--far", "nowhere.npz"], "nowhere.npz"),
    ):
        result = CliRunner().invoke(app, [*words, "--out", str(folder / "out")])
        assert result.exit_code == 2 and hint in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_another_plan_is_refused_in_the_folder_of_an_audit(
    folder: Path, tmp_path: Path
) -> None:
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**plan, "eps": 8 / 255}))
    result = CliRunner().invoke(
        app,
        ["explain", "outliers", str(tmp_path / "other.yaml"), "--out", str(folder / "out")],
    )
    assert (
        result.exit_code == 2 and "different plan" in result.output
    ) or "holds the plan" in result.output


def test_lesions_lie_inside_the_organ(tmp_path: Path) -> None:
    organ = np.zeros((16, 16), np.uint8)
    organ[4:12, 2:9] = 1
    np.savez(tmp_path / "organ.npz", mask=organ)
    plan = {"data": str(write_npz(tmp_path / "left.npz")), **PLAN}
    free = context_of(load_plan(plan).model_dump_json(), Store(tmp_path / "out"))
    bound = Context(load_plan(plan, organ=str(tmp_path / "organ.npz")), free.store)
    rows = bound.data.rows("test")[:6]
    for name in ("large lesions", "6 medium"):
        inside = shifted(bound, name, rows).numpy() != bound.cases.images(rows)
        assert inside.any() and not (inside & (organ == 0)).any()
        assert (
            (shifted(free, name, rows).numpy() != free.cases.images(rows)) & (organ == 0)
        ).any()
    assert {
        t.key for t in ood_tasks(bound, ()) if t.stage == "shift the images"
    }.isdisjoint(t.key for t in ood_tasks(free, ()))
