"""``feathide verify``: a sound run passes; a flipped byte, an edited table, other weights and
other images are said.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from feathide.auditing.export import finished
from feathide.auditing.run import audit
from feathide.auditing.verify import verify
from feathide.cli import app
from feathide.pipeline.listing import cells
from feathide.plans.plan import load_plan
from worlds.audits import PLAN, write_npz

SMALL = {
    **PLAN,
    "attacks": ["pgd"],
    "schedule": {"steps": 4},
    "detectors": ["msp", "kd"],
    "sanity_checks": "off",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit of a network whose weights lie in a file."""
    home = tmp_path_factory.mktemp("verify")
    data = str(write_npz(home / "patches.npz"))
    audit(load_plan({"data": data, **SMALL}), home / "trained")
    context = finished(home / "trained")
    save_file(
        {
            k: v.contiguous()
            for k, v in context.networks.classifier.model.state_dict().items()
        },
        home / "w.safetensors",
    )
    arrays = context.store.load(context.steps.train.key)
    network = {"arch": "tiny", "layers": "conv", "weights": str(home / "w.safetensors")}
    network |= {"mean": arrays["mean"].tolist(), "std": arrays["std"].tolist()}
    audit(load_plan({"data": data, **SMALL, "network": network}), home / "loaded")
    return home


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original / "trained", tmp_path / "run"))


def said(run: Path, sample: int = 16) -> str:
    return "\n".join(f"{d.where}: {d.what}" for d in verify(run, sample=sample).differences)


def test_a_sound_run_passes(original: Path) -> None:
    for name in ("trained", "loaded"):
        found = verify(original / name, sample=20)
        assert found.differences == ()
        assert found.images == 20 and found.files > 20 and found.numbers > 20


def test_the_command_line_counts_and_exits(run: Path) -> None:
    sound = CliRunner().invoke(app, ["verify", str(run), "--sample", "3"])
    assert (
        sound.exit_code == 0
        and "3 images" in sound.output
        and "no differences" in sound.output
    )
    (run / "sanity_checks.json").write_text('[{"name": "all well"}]')
    changed = CliRunner().invoke(app, ["verify", str(run), "--sample", "0", "--json"])
    assert changed.exit_code == 5
    assert [d["where"] for d in json.loads(changed.output)["differences"]] == [
        "sanity_checks.json",
        "report.html",
    ][:1]
    nothing = CliRunner().invoke(app, ["verify", str(run / "scores")])
    assert nothing.exit_code == 2 and "must hold plan.yaml" in nothing.output


@pytest.mark.parametrize(
    "folder", ["adversarial", "outputs", "scores", "classifier", "seconds", "mixtures"]
)
def test_a_flipped_byte_is_said(folder: str, run: Path) -> None:
    path = next(p for p in sorted((run / folder).rglob("*.*")) if p.is_file())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert f"{path.relative_to(run)}: does not match its checksum" in said(run)


def test_a_missing_file_is_said(run: Path) -> None:
    path = next((run / "scores").rglob("*.npz"))
    path.unlink()
    assert f"{path.relative_to(run)}: is missing" in said(run)


@pytest.mark.parametrize("name", ["results.csv", "results.parquet", "comparisons.csv"])
def test_an_edited_table_is_said(name: str, run: Path) -> None:
    parquet = name.endswith("parquet")
    table = (
        pd.read_parquet(run / name)
        if parquet
        else pd.read_csv(run / name, keep_default_na=False)
    )
    row = int(np.flatnonzero(table.metric == "slips_through_fpr10")[0])
    table.loc[row, "value"] = 0.123
    table.to_parquet(run / name) if parquet else table.to_csv(run / name, index=False)
    text = said(run)
    assert (
        f"{name}: row {row + 2} " in text
        and "value is 0.123, the stored scores give" in text
    )
    assert len(text.splitlines()) == 1


def test_an_edited_report_and_a_cut_table_are_said(run: Path) -> None:
    page = run / "report.html"
    page.write_text(page.read_text().replace("</body>", "<p>all well</p></body>"))
    table = (run / "results.csv").read_text().splitlines()
    (run / "results.csv").write_text("\n".join(table[:-1]))
    text = said(run, sample=0)
    assert (
        "report.html: is not the page" in text
        and f"results.csv: has {len(table) - 2} rows" in text
    )


def test_other_weights_are_said(original: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(original / "loaded", tmp_path / "run"))
    weights = {k: v + 0.01 for k, v in load_file(original / "w.safetensors").items()}
    save_file(weights, tmp_path / "other.safetensors")
    plan = yaml.safe_load((run / "plan.yaml").read_text())
    plan["network"]["weights"] = str(tmp_path / "other.safetensors")
    (run / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert "plan.yaml: the classifier has the digest" in said(run)


def test_weights_changed_with_a_new_checksum_are_seen_by_the_images(run: Path) -> None:
    context = finished(run)
    arrays = {
        k: v + 0.05 if k.startswith("w/") and v.dtype.kind == "f" else v
        for k, v in context.store.load(context.steps.train.key).items()
    }
    context.store.save(context.steps.train.key, arrays)
    found = verify(run, sample=8)
    assert found.images == 8
    assert all("the classifier gives the logits" in d.what for d in found.differences[:8])


def test_an_image_changed_with_a_new_checksum_is_seen(run: Path) -> None:
    context = finished(run)
    key = context.steps.attack(cells(context)[0], "test").keys[0]
    arrays = context.store.load(key)
    context.store.save(key, arrays | {"image": np.full_like(arrays["image"], 200)})
    text = said(run, sample=1000)
    assert (
        text.count("the classifier gives the logits") >= 1
        and "differs from its source by" in text
    )


def test_other_and_absent_data_are_said(run: Path, tmp_path: Path) -> None:
    plan = yaml.safe_load((run / "plan.yaml").read_text())
    data = write_npz(tmp_path / "patches.npz")
    with np.load(data) as file:
        arrays = dict(file)
    arrays["test_images"] = arrays["test_images"].copy()
    arrays["test_images"][0, 0, 0] ^= 1
    np.savez(data, **arrays)
    plan["data"]["path"] = str(data)
    (run / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert "plan.yaml: the data has the digest" in said(run)
    data.unlink()
    assert "plan.yaml: what it names cannot be read" in said(run)


def test_images_are_judged_beside_their_numbers(run: Path) -> None:
    """The prediction is computed, not copied."""
    context = finished(run)
    with torch.no_grad():
        next(iter(context.networks.classifier.model.parameters())).zero_()
    # what a process remembers of a run is not believed
    assert verify(run, sample=4).differences == ()
