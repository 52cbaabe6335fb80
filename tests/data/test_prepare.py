"""studies/prepare.py makes the files of the small study from look-alikes of the public
originals.
"""

import runpy
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from feathide.data import load_cases

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(60):
        for split, kind in (("train", "virus"), ("test", "bacteria")):
            for label, name in (
                ("PNEUMONIA", f"person{i}_{kind}_{i}"),
                ("NORMAL", f"IM-{i:04d}-0001"),
            ):
                folder = tmp_path / "chest_xray" / split / label
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (9, 11), dtype=np.uint8)).save(
                    folder / f"{name}.jpeg"
                )
    for i in range(40):
        x, parts = np.zeros((30, 40, 28), np.float32), np.zeros((30, 40, 28), np.uint8)
        parts[14, 30:33, 14], parts[14, 5:8, 14] = 1, 2
        x += rng.normal(100, 5, x.shape).astype(np.float32) + 200 * (parts == 1)
        for folder, voxels in (("imagesTr", x), ("labelsTr", parts)):
            (tmp_path / "Task04_Hippocampus" / folder).mkdir(parents=True, exist_ok=True)
            nib.save(
                nib.Nifti1Image(voxels, np.eye(4)),
                tmp_path / "Task04_Hippocampus" / folder / f"hippocampus_{i:03d}.nii.gz",
            )
            (
                tmp_path / "Task04_Hippocampus" / folder / "._hippocampus_000.nii.gz"
            ).write_bytes(b"left by a Mac")
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows = rng.integers(0, 256, (1050, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(1050) % 10
        rows.tofile(tmp_path / "cifar-10-batches-bin" / f"{name}.bin")
    arrays = {
        f"{s}_images": rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        for s in ("train", "val", "test")
    }
    labels = {f"{s}_labels": np.arange(6)[:, None] % 2 for s in ("train", "val", "test")}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays, **labels)
    return tmp_path


def prepare(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words)])
    runpy.run_path(str(STUDIES / "prepare.py"), run_name="__main__")


def test_every_file_that_the_small_study_names_is_made(
    originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = originals / "images"
    prepare(
        monkeypatch,
        *(
            "--kermany",
            originals / "chest_xray",
            "--hippocampus",
            originals / "Task04_Hippocampus",
        ),
        *(
            "--cifar",
            originals / "cifar-10-batches-bin",
            "--medmnist",
            originals / "pneumoniamnist.npz",
            "--out",
            out,
        ),
    )
    plans = yaml.safe_load((STUDIES / "paper" / "small.yaml").read_text())["plans"]
    strangers = yaml.safe_load((STUDIES / "paper" / "questions.yaml").read_text())[
        "questions"
    ]["strangers"]["options"]
    wanted = {plan["data"]["path"] for plan in plans.values()} | {
        *strangers["near"],
        *strangers["far"],
        "cifar10.npz",
    }
    assert {path.name for path in out.glob("*.npz")} == wanted

    xray = load_cases(out / "cxr_pneumonia_64.npz")
    assert xray.shape == (64, 64) and len(xray.where("test")) == 120 and len(xray) == 240
    assert {p.partition(":")[0] for p in xray.patients[xray.splits == "test"]} == {"test"}
    anew = load_cases(out / "cxr_pneumonia_128r.npz")
    assert anew.shape == (128, 128)
    for split in ("train", "val", "test"):
        labels = anew.labels[anew.where(split)]
        assert 2 * labels.sum() == len(labels) > 0

    mri = load_cases(out / "hippocampus_part3d_24.npz")
    assert (len(mri), mri.shape, len(set(mri.patients))) == (240, (24, 24, 24), 40)
    first = mri.images(np.arange(6))[:, 0]
    assert (first[:3, 10:15, 9:16, 10:15].max((1, 2, 3)) == 1).all() and (
        first[3:, 12, 11:14, 12] < 1
    ).all()

    natural = load_cases(out / "cifar10_lossless_6k.npz")
    assert natural.channels == 3 and [
        len(natural.where(s)) for s in ("train", "val", "test")
    ] == [4670, 500, 1034]
    raw = np.fromfile(
        originals / "cifar-10-batches-bin" / "data_batch_1.bin", np.uint8
    ).reshape(-1, 3073)[7]
    np.testing.assert_array_equal(np.rint(255 * natural.images([7])[0]).ravel(), raw[1:])
    assert natural.labels[7] == raw[0] and len(load_cases(out / "cifar10.npz")) == 6 * 1050
    assert len(load_cases(out / "pneumoniamnist28.npz")) == 18


def test_a_wrong_folder_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, says in (
        ("--kermany", "Kermany"),
        ("--hippocampus", "Task04"),
        ("--cifar", "binary version"),
    ):
        with pytest.raises(SystemExit) as end:
            prepare(monkeypatch, option, tmp_path / "none", "--out", tmp_path)
        assert end.value.code == 2 and says in capsys.readouterr().err
