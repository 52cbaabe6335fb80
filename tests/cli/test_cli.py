"""The command line as a person meets it: quick help with examples, a forecast, a single attack,
trackers.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from feathide.auditing import quick
from feathide.auditing.forecast import Pace, by_stage
from feathide.auditing.run import Audit, audit
from feathide.auditing.tasks import audit_tasks
from feathide.auditing.tracking import _pictures, track
from feathide.cli import app
from feathide.cli.display import screen, summary
from feathide.cli.ending import said
from feathide.execution.engine import Interrupted
from feathide.execution.store import Store
from feathide.pipeline.context import context_of
from feathide.plans.plan import load_plan
from worlds.audits import PLAN, write_npz

SMALL = {**PLAN, "attacks": ["pgd"], "schedule": {"steps": 4}, "detectors": ["msp", "kd"]}


def verbs(group: Any, name: str = "feathide") -> Iterator[tuple[str, Any]]:
    for key, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from verbs(command, f"{name} {key}")
        else:
            yield f"{name} {key}", command


VERBS = dict(verbs(typer.main.get_command(app)))


@pytest.mark.parametrize(
    ("stop", "sentence"),
    [
        (
            KeyboardInterrupt(),
            "stopped; finished work is kept; run the same command to continue",
        ),
        (Interrupted("12 of 20 kept"), "12 of 20 kept"),
    ],
)
def test_a_stop_says_something(
    stop: KeyboardInterrupt, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end, said():
        raise stop
    assert end.value.exit_code == 130
    assert capsys.readouterr().err == f"feathide: {sentence}\n"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    home = tmp_path_factory.mktemp("home")
    plan = load_plan({"data": str(write_npz(home / "patches.npz")), **SMALL})
    return audit(plan, home / "run", fail_if=["success > 2"])


def test_help_comes_at_once_and_without_torch() -> None:
    code = (
        "import sys, feathide.cli; sys.exit(bool({'torch', 'pandas', 'sklearn'} & "
        "set(sys.modules)))"
    )
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        assert (
            subprocess.run(
                [sys.executable, "-m", "feathide", "--help"], capture_output=True
            ).returncode
            == 0
        )
        spent.append(time.perf_counter() - started)
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import typer.rich_utils"], capture_output=True)
    assert min(spent) < 0.5 or min(spent) < 3 * (time.perf_counter() - bare), (
        "a busy machine slows both"
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("data: [a\n b: c", "must be YAML"),
        (
            "data: phantoms\nobjektives: hfc",
            "unknown field 'objektives'; did you mean 'objectives'",
        ),
        ("data: {path: a, sise: 3}", "unknown field 'data.sise'; did you mean 'data.size'"),
        (
            "network: {train: {epoch: 1}}\ndata: a",
            "unknown field 'network.train.epoch'; did you mean 'network.train.epochs'",
        ),
    ],
)
def test_a_misspelt_plan_is_said_at_once_and_without_torch(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    code = (
        "import sys, feathide.cli as c\ntry: c.main()\nfinally: sys.exit(9) if 'torch' in "
        "sys.modules else None"
    )
    for verb in ("check", "audit"):
        ended = subprocess.run(
            [sys.executable, "-c", code, verb, str(tmp_path / "plan.yaml")],
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 2 and words in ended.stderr, ended.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_an_example_that_parses(verb: str) -> None:
    command = VERBS[verb]
    assert (
        command.help
        and command.epilog
        and f"`{verb} " in f"{command.epilog} ".replace(f"`{verb}`", f"`{verb} `")
    )


def test_every_verb_of_the_readme_exists() -> None:
    wanted = (
        "demo train check audit attack explain ood arms-race export report compare bench "
        "datasets"
    )
    assert set(wanted.split()) <= {name.split()[1] for name in VERBS}


def test_completion_is_offered() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "--install-completion" in shown and "--show-completion" in shown


def test_api_users_get_conditions_and_their_file(found: Audit) -> None:
    assert [(j.text, j.holds) for j in found.judged] == [("success > 2", False)]
    assert "success &gt; 2" in (found.folder / "audit.junit.xml").read_text()
    made = json.loads((found.folder / "model-card.json").read_text())
    assert made["headline"] == found.verdict.headline


def test_a_single_attack_writes_images_and_a_table(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "patches.npz")
    call = [
        "attack",
        str(data),
        "--network",
        "tiny",
        "--eps",
        "16/255",
        "--steps",
        "3",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "attack.csv")
    assert len(table) == len(json.loads(result.stdout)) == len(np.load(data)["test_images"])
    attacked = table[table.file.notna()]
    assert (attacked.before == attacked.label).all() and (
        attacked.linf.dropna() <= 16 / 255
    ).all()
    assert ((attacked.prediction == attacked.target) == attacked.fooled).all()
    with Image.open(tmp_path / "out" / attacked.file.iloc[0]) as picture:
        assert picture.size == np.load(data)["test_images"].shape[1:3]
    assert not (tmp_path / "out" / "scores").exists()


def test_a_single_attack_wants_one_attack(tmp_path: Path) -> None:
    call = [
        "attack",
        str(write_npz(tmp_path / "a.npz")),
        "--network",
        "tiny",
        "--recipe",
        "pgd,bim",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, call)
    assert (
        result.exit_code == 2
        and "one attack with one objective at one budget" in result.output
    )


def test_check_takes_every_flag_of_audit_that_changes_the_plan() -> None:
    flags = {
        verb: {p.name for p in VERBS[f"feathide {verb}"].params}
        for verb in ("audit", "check")
    }
    of_the_run = {
        "workers",
        "shard",
        "engine",
        "address",
        "gpus",
        "strict",
        "fail_if",
        "track",
        "reuse",
        "quick",
    }
    assert flags["audit"] - flags["check"] == of_the_run


def test_long_names_leave_every_column_on_a_narrow_screen() -> None:
    rows = [
        ("sklearn:IsolationForest(layers='all', n_estimators=200)", 0.11),
        ("pytorch_ood:KNN(k=5)", 0.22),
        ("kd", 0.33),
    ]
    same = {
        "attack": "art:ProjectedGradientDescent(max_iter=20)",
        "objective": "plain",
        "eps": 0.5,
    }
    cells = [{**same, "detector": d, "metric": "auc", "value": v} for d, v in rows]
    table = pd.DataFrame(
        [{**same, "detector": "", "metric": "success", "value": 0.44}, *cells]
    )
    console = Console(width=80, file=StringIO())
    console.print(summary(table, "auc"))
    assert all(f" {v} " in console.file.getvalue() for v in (0.5, 0.44, 0.11, 0.22, 0.33))


def test_zero_steps_are_refused_and_a_bare_off_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("data: phantoms\nsanity_checks: off\n")
    assert load_plan(path).sanity_checks == "off"
    result = CliRunner().invoke(app, ["check", str(path), "--steps", "0"])
    assert result.exit_code == 2 and "steps" in result.output


@pytest.mark.slow
def test_check_foresees_time_and_memory(tmp_path: Path) -> None:
    plan = {
        "data": "phantoms",
        "network": {"arch": "tiny", "layers": "conv", "train": {"epochs": 4}},
        "eps": "8/255",
        "attacks": "pgd",
        "split": {"most": 48},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    told = json.loads(
        CliRunner()
        .invoke(app, ["check", str(path), "--out", str(tmp_path / "run"), "--json"])
        .stdout
    )
    run = audit(load_plan(plan), tmp_path / "run")
    store = Store(run.folder)
    notes = [
        p.relative_to(run.folder).with_suffix("").as_posix()
        for p in (run.folder / "seconds").rglob("*.json")
    ]
    spent = sum(float(store.load_json(key)) for key in notes)
    assert 1 / 3 < told["seconds"] / spent < 3, (told, spent)
    import resource

    assert (
        0.5
        < told["mebibytes"] / (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        < 2
    )


def test_tensorboard_gets_the_numbers(found: Audit) -> None:
    pytest.importorskip(
        "tensorboard", reason="needs tensorboard: pip install feathide[tensorboard]"
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(found, "tensorboard")
    events = EventAccumulator(str(found.folder / "tensorboard")).Reload()
    row = found.table[
        (found.table.metric == "slips_through_fpr10") & (found.table.attack == "pgd")
    ].iloc[0]
    seen = events.Scalars(f"slips_through_fpr10/pgd+{row.objective}/{row.detector}")
    assert [e.value for e in seen] == pytest.approx([row.value])
    assert any(name.startswith("pgd") for name in events.Tags()["images"])
    (table,) = events.Tensors("results/text_summary")
    assert b"slips_through_fpr10" in table.tensor_proto.string_val[0]


def test_tensorboard_gets_the_figures(found: Audit) -> None:
    pytest.importorskip("tensorboard", reason="needs feathide[tensorboard]")
    pytest.importorskip("matplotlib", reason="needs feathide[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(found, "tensorboard")
    events = EventAccumulator(str(found.folder / "tensorboard")).Reload()
    assert {"figures/roc", "figures/histograms"} <= set(events.Tags()["images"])


def test_mlflow_gets_plan_numbers_and_report(
    found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip(
        "mlflow", reason="needs mlflow: pip install feathide[mlflow]"
    )
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    track(found, "mlflow")
    _check_mlflow(mlflow.MlflowClient(), found)


def test_mlflow_works_with_its_defaults(
    found: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip(
        "mlflow", reason="needs mlflow: pip install feathide[mlflow]"
    )
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    track(found, "mlflow")
    assert dict(os.environ) == before
    if not (find_spec("sqlalchemy") and find_spec("alembic")):
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (found.folder / "mlruns").as_uri())
    _check_mlflow(mlflow.MlflowClient(), found)


def _check_mlflow(client: Any, found: Audit) -> None:
    run = client.search_runs(["0"])[0]
    plain = (found.table.metric == "success") & (found.table.objective == "plain")
    assert run.data.params["train_attack"] == "pgd"
    assert run.data.metrics["success/pgd-plain"] == pytest.approx(
        found.table[plain].value.iloc[0]
    )
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert files >= {"report.html", "model-card.json"}
    assert any(name.endswith(".png") for name in files)
    figures = {f.path for f in client.list_artifacts(run.info.run_id, "figures")}
    assert {"figures/roc.html", "figures/histograms.html"} <= figures
    place = client.download_artifacts(run.info.run_id, "results.json")
    held = json.loads(Path(place).read_text())
    assert held["columns"] == list(found.table) and len(held["data"]) == len(found.table)


def test_wandb_gets_them_offline(found: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install feathide[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    track(found, "wandb")
    (run,) = (found.folder / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert list((run / "files" / "media").glob("table/results*"))
    assert list((run / "files" / "media" / "images").iterdir())
    assert list((run / "files" / "media" / "plotly" / "figures").glob("roc*.json"))


def test_pictures_for_trackers_are_one_for_each_attack(found: Audit) -> None:
    pictures = dict(_pictures(found))
    assert any(name.startswith("pgd") for name in pictures)
    for image in pictures.values():
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3)
        assert image.min() == 0 and image.max() == 255


def test_a_tracker_is_asked_for_before_the_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            "audit",
            "--data",
            "nowhere.npz",
            "--track",
            "sacred",
            "--out",
            str(tmp_path / "out"),
        ],
    )
    assert (
        result.exit_code == 2
        and "unknown tracker 'sacred'" in result.output
        and not (tmp_path / "out").exists()
    )


def test_bench_gives_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feathide.attacks.cost.BATCH", 2)
    found = json.loads(CliRunner().invoke(app, ["bench", "--rounds", "1", "--json"]).stdout)
    assert "a plain PGD step" in found and all(
        np.isfinite(r["ratio"]) for r in found.values()
    )


def test_bench_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feathide.attacks.cost.BATCH", 2)
    before = torch.random.get_rng_state()
    CliRunner().invoke(app, ["bench", "--rounds", "1"])
    assert torch.equal(before, torch.random.get_rng_state())


# --- flags that all verbs share -----------------------------------------------------------------


def test_version_and_short_help() -> None:
    version = CliRunner().invoke(app, ["--version"])
    assert version.exit_code == 0 and version.output == "feathide 0.1.0\n"
    for call in (["-h"], ["audit", "-h"], ["explain", "-h"], ["explain", "stress", "-h"]):
        shown = CliRunner().invoke(app, call)
        assert shown.exit_code == 0 and "--help" in shown.output


@pytest.mark.parametrize(
    "verb",
    [
        *("audit", "demo", "check", "train", "study", "attack", "arms-race", "ood"),
        *(f"explain {kind}" for kind in ("direction", "stress", "outliers", "transfer")),
    ],
)
def test_every_verb_that_works_says_more_or_less_and_takes_a_device(verb: str) -> None:
    names = {p.name for p in VERBS[f"feathide {verb}"].params}
    assert {"quiet", "verbose", "device"} <= names


def test_flags_agree_between_verbs() -> None:
    for verb in ("audit", "check", "attack", "train"):
        options = {o for p in VERBS[f"feathide {verb}"].params for o in p.opts}
        assert {"--network", "--arch"} <= options, verb
    for verb in ("audit", "check", "attack"):
        options = {o for p in VERBS[f"feathide {verb}"].params for o in p.opts}
        assert {"--attacks", "--recipe", "--objectives", "--objective"} <= options, verb


@pytest.mark.parametrize(
    ("old", "new"), [("duel", "arms-race"), ("laws", "conformance")], ids=["duel", "laws"]
)
def test_an_old_verb_says_its_new_name(old: str, new: str) -> None:
    told = CliRunner().invoke(app, [old, "plan.yaml", "--rounds", "3"])
    assert told.exit_code == 2 and f"`{old}` is now called `{new}`" in told.output
    assert old not in CliRunner().invoke(app, ["--help"]).output.split()


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda:7", "device cuda:7 must be a GPU that torch can use"), ("gpu", "device")],
)
def test_a_device_that_is_not_there_is_said(
    device: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = str(write_npz(tmp_path / "a.npz"))
    for call in (
        ["check", "--data", data, "--network", "tiny"],
        ["train", "--data", data, "--network", "tiny", "--out", str(tmp_path / "w")],
    ):
        told = CliRunner().invoke(app, [*call, "--device", device])
        assert told.exit_code == 2 and words in told.output, told.output


def test_train_takes_fewer_images_and_tells_its_epochs(tmp_path: Path) -> None:
    data, out = str(write_npz(tmp_path / "a.npz")), tmp_path / "w.safetensors"
    call = ["train", "--data", data, "--arch", "tiny", "--out", str(out)]
    result = CliRunner().invoke(
        app, [*call, "--limit", "40", "--epochs", "2", "--no-augment", "--device", "cpu"]
    )
    assert result.exit_code == 0 and out.exists(), result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("train: epoch")]
    assert len(lines) == 2 and "of 2, validation accuracy" in lines[1]
    assert "/s" in lines[1] and "(3/4, " in lines[1] and " left)" in lines[1]


def test_piped_output_does_not_break_inside_a_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    sentence = "0.98 (0.95–1.00) " * 30
    screen().print(sentence)
    assert capsys.readouterr().out.count("\n") == 1


# --- a quick look -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    home = tmp_path_factory.mktemp("look")
    data = write_npz(home / "patches.npz")
    plan = home / "plan.yaml"
    plan.write_text(
        yaml.safe_dump({"data": str(data), **SMALL, "attacks": ["fgsm", "pgd"]})
    )
    call = ["audit", str(plan), "--quick", "--eps", "16 / 255", "--out", str(home / "run")]
    return home, CliRunner().invoke(app, [*call, "--json"])


def test_a_quick_look_is_marked_and_names_the_whole_audit(looked: tuple[Path, Any]) -> None:
    home, result = looked
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["quick_look"] and told["verdict"].startswith("Quick look: ")
    card = json.loads((home / "run" / "model-card.json").read_text())
    whole = (
        f"feathide audit {home / 'plan.yaml'} --eps '16 / 255' --out {home / 'run'}-whole"
    )
    assert "quick look" in card["tags"] and card["headline"] == told["verdict"]
    assert card["quick_look"]["command"] == whole
    page = (home / "run" / "report.html").read_text()
    assert "This is a quick look, not an audit" in page and "Quick look at tiny" in page
    assert "attacks left out: fgsm" in page


def test_no_guard_holds_by_a_quick_look(looked: tuple[Path, Any]) -> None:
    assert "holds" not in {
        *json.loads((looked[0] / "run" / "model-card.json").read_text())["verdict"].values()
    }


def test_a_quick_look_goes_on_where_it_stopped(looked: tuple[Path, Any]) -> None:
    home, _ = looked
    plan = (home / "run" / "plan.yaml").read_bytes()
    files = sorted((home / "run").rglob("*.npz"))
    times = [f.stat().st_mtime_ns for f in files]
    call = ["audit", str(home / "plan.yaml"), "--quick", "--eps", "16 / 255"]
    again = CliRunner().invoke(app, [*call, "--out", str(home / "run"), "--quiet"])
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith("Quick look: ") and again.stdout.count("\n") == 1
    assert again.stderr == ""
    assert (home / "run" / "plan.yaml").read_bytes() == plan
    assert [f.stat().st_mtime_ns for f in files] == times


def test_a_run_leaves_a_log(looked: tuple[Path, Any]) -> None:
    lines = (looked[0] / "run" / "audit.log").read_text().splitlines()
    said = [line.partition(" ")[2] for line in lines]
    assert said[0] == "begun" and "all steps are done" in said
    assert any(s.startswith("train the classifier: epoch 2 of") for s in said)


def test_a_changed_plan_in_an_old_folder_names_reuse(looked: tuple[Path, Any]) -> None:
    home, _ = looked
    call = ["audit", str(home / "plan.yaml"), "--seed", "5", "--out", str(home / "run")]
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 2 and "--reuse" in told.output


def test_a_slow_network_is_looked_at_less(
    looked: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = looked
    full = load_plan({"data": str(home / "patches.npz"), **SMALL})
    looks = []
    for step in (1e-5, 0.05, 10.0):
        pace = Pace(step=step, reference=0.0, grown=0.0)
        monkeypatch.setattr(quick, "pace_of", lambda *_, pace=pace: pace)
        looks.append(quick.quick_look(full, home / f"new-{step}", command="feathide audit"))
    limits = [look.data.limit for look in looks]
    assert (
        limits[0] == quick.RUNGS[0].limit > limits[1] > limits[2] == quick.RUNGS[-1].limit
    )
    slow = [look.quick is not None and "slow" in str(look.quick.says) for look in looks]
    assert slow == [False, False, True]


def test_the_least_look_still_makes_a_page(
    looked: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "RUNGS", quick.RUNGS[-1:])
    call = ["audit", str(looked[0] / "plan.yaml"), "--quick", "--even-so", "--quiet"]
    told = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "run")])
    assert told.exit_code == 0 and told.stdout.startswith("Quick look: "), told.output
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("step", [0.02, 0.1, 0.3, 0.45])
def test_a_quick_look_fits_whatever_a_step_takes(
    looked: tuple[Path, Any], step: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pace = Pace(step=step, reference=0.0, grown=0.0)
    monkeypatch.setattr(quick, "pace_of", lambda *_: pace)
    monkeypatch.setattr(quick, "_trains", lambda _: False)
    plan = load_plan({"data": str(looked[0] / "patches.npz"), **SMALL})
    look = quick.quick_look(plan, tmp_path / "run", command="feathide audit")
    context = context_of(look.model_dump_json(), Store(tmp_path / "run"))
    order = [t for t in audit_tasks(context) if "train" not in t.stage]
    assert sum(by_stage(context, order, pace).values()) < 300 - 20


def test_a_quick_look_watches_few_layers_the_last_among_them(
    looked: tuple[Path, Any],
) -> None:
    full = load_plan({"data": str(looked[0] / "patches.npz"), **SMALL})
    names = [f"layer{i}" for i in range(16)]
    chosen = quick._watching(full, names).network.layers
    assert len(set(chosen)) == quick.LAYERS and chosen[-1] == names[-1]
