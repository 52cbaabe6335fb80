"""What SECURITY.md promises of a finished run: no patient is named in it. And the disk is looked
at before the work begins.
"""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from feathide.auditing.disk_space import DOCUMENTS, bytes_ahead
from feathide.auditing.preflight import check_plan
from feathide.auditing.run import audit
from feathide.auditing.tasks import audit_tasks
from feathide.cli import app
from feathide.errors import InputError
from feathide.execution.store import Store
from feathide.pipeline.context import context_of
from feathide.plans.plan import load_plan
from worlds.clinical import write_dicom
from worlds.endurance import PLAN

Usage = namedtuple("Usage", "total used free")
PATIENT = "MRN{:04d}XQ"
CLINICAL = {
    "network": {"arch": "tiny", "layers": "conv", "train": {"epochs": 4, "augment": False}},
    "eps": "60 HU",
    "attacks": ["pgd"],
    "objectives": ["plain"],
    "schedule": {"steps": 2},
    "detectors": ["msp"],
    "batch_size": 8,
    "sanity_checks": "off",
}


def study(home: Path) -> Path:
    """DICOM files in a folder per class: the patient stands in the headers only."""
    rng = np.random.default_rng(0)
    for k in range(90):
        image = rng.integers(0, 60, (16, 16))
        image[:, 8 * (k % 2) : 8 * (k % 2) + 8] += 200
        place = (
            home
            / "images"
            / ("train", "train", "test", "test", "val")[k // 2 % 5]
            / ("left", "right")[k % 2]
        )
        place.mkdir(parents=True, exist_ok=True)
        write_dicom(place / f"{k:03d}.dcm", image, PATIENT.format(k))
    return home / "images"


def written(folder: Path) -> bytes:
    """Everything in a folder, names and contents; arrays as they are stored, strings of four
    bytes a letter included.
    """
    files = [p for p in folder.rglob("*") if p.is_file()]
    return b"\n".join(
        str(p.relative_to(folder)).encode() + b"\n" + p.read_bytes() for p in files
    )


def test_no_patient_is_named_in_a_run_or_its_log(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(
        str({"data": str(study(tmp_path)), **CLINICAL})
        .replace("'", '"')
        .replace("False", "false")
    )
    result = CliRunner().invoke(
        app, ["audit", str(plan), "--even-so", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    exported = CliRunner().invoke(
        app,
        ["export", str(tmp_path / "out"), "--out", str(tmp_path / "given"), "--deidentify"],
    )
    assert exported.exit_code == 0, exported.output
    everything = (
        written(tmp_path / "out")
        + written(tmp_path / "given")
        + (result.output + exported.output).encode()
    )
    assert any((tmp_path / "given").rglob("*.dcm"))
    for text in ("MRN00", "Name^"):
        for code in ("utf-8", "utf-16-le", "utf-32-le"):
            assert text.encode(code) not in everything
    context = context_of(load_plan(plan).model_dump_json(), Store(tmp_path / "out"))
    assert len(set(context.cases.patients)) == 90 and all(
        len(p) == 12 for p in context.cases.patients
    )
    asked = load_plan(
        plan, data={"path": str(tmp_path / "images"), "keep_patient_ids": True}
    )
    assert (
        PATIENT.format(0)
        in context_of(asked.model_dump_json(), Store(tmp_path / "x")).cases.patients
    )


def test_the_disk_is_looked_at_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 2**20))
    for call in (audit, check_plan):
        with pytest.raises(
            InputError, match=r"must have about \d+ MiB free, got 1 MiB; make room"
        ):
            call(load_plan(PLAN), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_may_not_be_written_to_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: Usage(2**20, 2**20, 0)
    )  # as of a disk that is mounted to be read
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for call in (audit, check_plan):
        with pytest.raises(
            InputError,
            match="out must be writable, got a place that is not; choose another output folder",
        ):
            call(load_plan(PLAN), tmp_path / "out")


def test_the_foretold_room_is_the_one_that_is_taken(tmp_path: Path) -> None:
    plan = load_plan(PLAN, split={"most": None}, batch_size=32)
    context = context_of(plan.model_dump_json(), Store(tmp_path))
    foretold = bytes_ahead(context, audit_tasks(context)) - DOCUMENTS
    audit(plan, tmp_path)
    kinds = ("classifier", "outputs", "adversarial")
    taken = sum(
        p.stat().st_size for kind in kinds for p in (tmp_path / kind).rglob("*.npz")
    )
    assert 0.5 < foretold / taken < 2.5
    assert bytes_ahead(context, audit_tasks(context)) == DOCUMENTS
