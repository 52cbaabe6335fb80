"""A run whose images or weights lie elsewhere: found by what they hold, or said where it looked."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from feathide.errors import InputError
from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.pipeline.moved import FOLDERS, file_near
from feathide.plans.plan import Plan, load_plan
from worlds.audits import PLAN, write_npz


@pytest.fixture
def gone(tmp_path: Path) -> Path:
    """The path of images that are there no more, after a run in tmp_path/there/run began."""
    images = tmp_path / "here" / "chest.npz"
    images.parent.mkdir()
    write_npz(images)
    run = tmp_path / "there" / "run"
    run.mkdir(parents=True)
    digest = context(images, run).data.cases.digest
    record = {"record": {"data": {"digest": digest}}}
    (run / "plan.yaml").write_text(yaml.safe_dump({"data": str(images), **record}))
    shutil.move(images, tmp_path / "moved.npz")
    return images


def context(images: Path, run: Path) -> Context:
    return Context(_plan(images), Store(run))


def _plan(images: Path) -> Plan:
    return load_plan({"data": str(images), **PLAN})


@pytest.mark.parametrize("place", ["there/run/chest.npz", "there/chest.npz"])
def test_images_are_found_beside_the_run(gone: Path, tmp_path: Path, place: str) -> None:
    shutil.copy(tmp_path / "moved.npz", tmp_path / place)
    cases = context(gone, tmp_path / "there" / "run").data.cases
    assert cases.name == "chest" and len(cases) > 200
    assert str(tmp_path / place) in cases.notes[-1]


def test_images_are_found_in_a_named_folder(
    gone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk" / "here").mkdir(parents=True)
    shutil.copy(tmp_path / "moved.npz", tmp_path / "disk" / "here" / "chest.npz")
    monkeypatch.setenv(
        FOLDERS, os.pathsep.join([str(tmp_path / "no"), str(tmp_path / "disk")])
    )
    assert len(context(gone, tmp_path / "there" / "run").data.cases) > 200


def test_other_images_of_that_name_are_not_taken(gone: Path, tmp_path: Path) -> None:
    with np.load(tmp_path / "moved.npz") as arrays:
        changed = dict(arrays)
    changed["train_images"][0] += 1
    np.savez(tmp_path / "there" / "chest.npz", **changed)
    with pytest.raises(InputError, match=r"but other images in .*there/chest.npz, nor in"):
        _ = context(gone, tmp_path / "there" / "run").data.cases


def test_it_says_where_it_looked(
    gone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDERS, str(tmp_path / "disk"))
    run = tmp_path / "there" / "run"
    with pytest.raises(InputError) as told:
        _ = context(gone, run).data.cases
    for place in (tmp_path / "disk", run, run.parent):
        assert str(place) in str(told.value)
    assert FOLDERS in str(told.value)


def test_a_new_run_takes_nothing_from_beside_it(gone: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "moved.npz", tmp_path / "there" / "chest.npz")
    with pytest.raises(InputError, match="nothing of that name"):
        _ = context(gone, tmp_path / "there" / "new").data.cases


def test_weights_are_found_beside_the_run(gone: Path, tmp_path: Path) -> None:
    run = tmp_path / "there" / "run"
    (run.parent / "w.safetensors").write_bytes(b"")
    assert file_near("/nowhere/w.safetensors", run) == str(run.parent / "w.safetensors")
    assert file_near("C:\\disk\\w.safetensors", run) == str(run.parent / "w.safetensors")
    assert file_near("package:x", run) == "package:x" and file_near(None, run) is None
    assert file_near("/nowhere/v.pt", run) == "/nowhere/v.pt"


def test_a_plan_is_the_same_wherever_its_images_are(gone: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "moved.npz", tmp_path / "there" / "chest.npz")
    there = context(gone, tmp_path / "there" / "run")
    before = json.loads(_plan(gone).model_dump_json())
    assert there.data.cases and json.loads(there.plan.model_dump_json()) == before
