"""The public sets, as tiny look-alikes of the folders that their pages give."""

import csv
import re
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from feathide.cli import app
from feathide.data import Cases, load_cases
from feathide.data.load import Kind
from feathide.data.public import BLEEDINGS, ORIGINALS, fetch_medmnist
from feathide.errors import InputError

from .conftest import MakeSeries


def refuses(*words: str):
    return pytest.raises(InputError, match=".*".join(re.escape(w) for w in words))


def picture(path: Path, seed: int, *, colour: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = np.random.default_rng(seed).integers(8, 12, 2)  # the originals differ in size
    pixels = np.random.default_rng(seed).integers(
        0, 256, (*size, 3) if colour else size, dtype=np.uint8
    )
    Image.fromarray(pixels).save(path)


def table(path: Path, header: str, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def label_of(cases: Cases) -> dict[str, int]:
    return dict(zip(cases.ids.tolist(), cases.labels.tolist(), strict=True))


@pytest.fixture
def aptos(tmp_path: Path) -> Path:
    root = tmp_path / "aptos"
    for i in range(20):
        picture(root / "train_images" / f"{i:012x}.png", i, colour=True)
    table(
        root / "train.csv", "id_code,diagnosis", [(f"{i:012x}", i % 5) for i in range(20)]
    )
    return root


@pytest.fixture
def kermany(tmp_path: Path) -> Path:
    root = tmp_path / "download" / "chest_xray"
    for i in range(16):
        picture(
            root
            / "train/PNEUMONIA"
            / f"person{i // 2}_{'virus' if i % 3 else 'bacteria'}_{i}.jpeg",
            i,
        )
        picture(
            root
            / "train/NORMAL"
            / (
                f"IM-{i // 2:04d}-{i:04d}.jpeg"
                if i % 4
                else f"NORMAL2-IM-{i:04d}-0001.jpeg"
            ),
            20 + i,
        )
    for i in range(4):
        picture(
            root / "test/PNEUMONIA" / f"person{i}_virus_{i}.jpeg", 40 + i, colour=i == 0
        )
        picture(root / "test/NORMAL" / f"IM-{i:04d}-0001.jpeg", 50 + i)
    picture(root / "val/PNEUMONIA/person0_bacteria_99.jpeg", 60)
    (root / "val/NORMAL").mkdir(parents=True)
    (root / "train/NORMAL/._IM-0001-0001.jpeg").write_bytes(b"left by a Mac")
    return root.parent


@pytest.fixture
def rsna(tmp_path: Path, make_series: MakeSeries) -> Path:
    root, rows = tmp_path / "rsna", []
    (root / "stage_2_train").mkdir(parents=True)
    for i in range(12):
        series = make_series(
            tmp_path / "series" / str(i), patient=f"ID_{i // 2}", slices=1, seed=i
        )
        (series / "0.dcm").rename(root / "stage_2_train" / f"ID_{i:09x}.dcm")
        found = {"subdural": int(i % 2), "epidural": int(i % 4 == 3)}
        rows += [(f"ID_{i:09x}_{b}", found.get(b, 0)) for b in BLEEDINGS if b != "any"]
        rows.append((f"ID_{i:09x}_any", int(i % 2)))
    # some images stand in the table twice
    table(root / "stage_2_train.csv", "ID,Label", rows + rows[:6])
    return root


@pytest.fixture
def ct_ich(tmp_path: Path) -> Path:
    root = tmp_path / "ct-ich"
    (root / "ct_scans").mkdir(parents=True)
    rows = []
    for i in range(8):
        voxels = np.random.default_rng(i).integers(
            -1000, 1000, (6, 6, 3 + i % 2), dtype=np.int16
        )
        nib.save(
            nib.Nifti1Image(voxels, np.eye(4)), root / "ct_scans" / f"{49 + i:03d}.nii"
        )
        rows += [
            (49 + i, s, 0, 0, 0, 0, 0, int(not (i % 2 and s == 2)), 0) for s in (1, 2, 3)
        ]
    names = "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,No_Hemorrhage,Fracture_Yes_No"
    table(root / "hemorrhage_diagnosis_raw_ct.csv", names, [*rows, ("",) * 9])
    return root


def test_aptos_by_grade_and_as_two_classes(aptos: Path) -> None:
    cases = load_cases(aptos, kind="aptos2019", size=8)
    assert (len(cases), cases.channels, cases.shape) == (20, 3, (8, 8)) and len(
        cases.class_names
    ) == 5
    assert label_of(cases)["000000000007"] == 2 and cases.class_names[2] == "moderate"
    two = load_cases(aptos, kind="aptos2019-binary", size=8)
    assert two.class_names == ("no retinopathy", "retinopathy")
    assert all(label == (int(i, 16) % 5 > 0) for i, label in label_of(two).items())
    with refuses("unknown diagnosis '9'", "4"):
        table(aptos / "train.csv", "id_code,diagnosis", [("000000000000", 9)])
        load_cases(aptos, kind="aptos2019", size=8)


def test_kermany_keeps_the_official_test_and_its_persons_apart(kermany: Path) -> None:
    cases = load_cases(kermany, kind="kermany", size=8)
    assert (len(cases), cases.channels, cases.class_names) == (
        41,
        1,
        ("normal", "pneumonia"),
    )
    patient = dict(zip(cases.ids, cases.patients, strict=True))
    assert (
        patient["train/PNEUMONIA/person0_bacteria_0.jpeg"]
        == patient["val/PNEUMONIA/person0_bacteria_99.jpeg"]
        == "train:person0"
    )
    assert patient["test/PNEUMONIA/person0_virus_0.jpeg"] == "test:person0"
    assert patient["train/NORMAL/NORMAL2-IM-0004-0001.jpeg"] == "train:NORMAL2-IM-0004"
    assert (
        patient["train/NORMAL/IM-0001-0003.jpeg"]
        == patient["train/NORMAL/IM-0001-0002.jpeg"]
        == "train:IM-0001"
    )
    assert [i.startswith("test/") for i in cases.ids] == (cases.splits == "test").tolist()
    assert len(cases.where("train")) > len(cases.where("val")) > 0
    assert all(label == ("PNEUMONIA" in i) for i, label in label_of(cases).items())
    inside = load_cases(kermany / "chest_xray", kind="kermany", size=8)
    assert inside.digest == cases.digest


def test_kermany_split_anew_mixes_the_official_parts(kermany: Path) -> None:
    cases = load_cases(kermany, kind="kermany-resplit", size=8, fractions=(0.5, 0.2, 0.3))
    assert any(i.startswith("train/") for i in cases.ids[cases.splits == "test"])
    assert set(cases.patients) == set(load_cases(kermany, kind="kermany", size=8).patients)


def test_rsna_slices_with_the_patients_of_their_headers(rsna: Path) -> None:
    cases = load_cases(rsna, kind="rsna-haemorrhage", fractions=(0.4, 0.2, 0.4))
    assert (len(cases), cases.unit, cases.class_names) == (
        12,
        "HU",
        ("no haemorrhage", "haemorrhage"),
    )
    assert all(label == int(i[3:], 16) % 2 for i, label in label_of(cases).items())
    assert len(set(cases.patients)) == 6
    found = load_cases(rsna, kind="rsna-haemorrhage-findings", fractions=(0.4, 0.2, 0.4))
    assert found.multi_label and found.class_names == BLEEDINGS
    assert label_of(found)["ID_000000003"] == [1, 1, 0, 0, 0, 1] and label_of(found)[
        "ID_000000001"
    ] == [
        1,
        0,
        0,
        0,
        0,
        1,
    ]


def test_rsna_with_a_limit_opens_only_the_headers_it_needs(
    rsna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(
        "feathide.data.files.patient_of",
        lambda path, keep: opened.append(path) or path.stem,
    )
    cases = load_cases(
        rsna, kind="rsna-haemorrhage", limit=1, fractions=(0.4, 0.2, 0.4), seed=2
    )
    assert len(opened) == 5 and len(cases) <= 3  # 1 / 0.2
    assert set(cases.labels) == {0, 1}


def test_ct_volumes_bleed_if_a_slice_does(ct_ich: Path) -> None:
    cases = load_cases(ct_ich, kind="ct-ich", size=(6, 6, 3))
    assert cases.shape == (6, 6, 3) and label_of(cases) == {
        f"{49 + i:03d}": i % 2 for i in range(8)
    }
    assert set(cases.patients) == set(cases.ids)


def test_medmnist_files_get_their_class_names(tmp_path: Path) -> None:
    rng, labels = np.random.default_rng(0), np.arange(22)[:, None] % 11
    arrays = {
        f"{s}_images": rng.integers(0, 256, (22, 4, 4, 4), dtype=np.uint8)
        for s in ("train", "val", "test")
    }
    np.savez(
        tmp_path / "organmnist3d_64.npz",
        **arrays,
        **{f"{s}_labels": labels for s in ("train", "val", "test")},
    )
    cases = load_cases(tmp_path / "organmnist3d_64.npz", kind="medmnist")
    assert cases.class_names[:2] == ("liver", "right kidney") and cases.shape == (4, 4, 4)
    with refuses("unknown MedMNIST set 'organ'", "did you mean 'organ"):
        load_cases(tmp_path / "organ.npz", kind="medmnist")
    with refuses("pneumoniamnist.npz must be a file of MedMNIST", "zenodo"):
        load_cases(tmp_path / "pneumoniamnist.npz", kind="medmnist")


@pytest.mark.parametrize("kind", [k for k in ORIGINALS if k != "medmnist"])
def test_a_wrong_folder_is_told_what_to_fetch(tmp_path: Path, kind: Kind) -> None:
    with refuses("must hold", "no such folder", "fetch"):
        load_cases(tmp_path / "none", kind=kind)
    (tmp_path / "readme.txt").touch()
    with refuses("must hold", "got readme.txt; fetch"):
        load_cases(tmp_path, kind=kind)


def test_medmnist_is_fetched_by_its_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with refuses(
        "needs the package medmnist", "feathide[medmnist]", "pneumoniamnist_64.npz"
    ):
        fetch_medmnist("pneumoniamnist", 64, tmp_path)

    class PneumoniaMNIST:
        available_sizes = (28, 64)

        def __init__(self, *, split: str, download: bool, size: int, root: str) -> None:
            if size == 64:
                raise RuntimeError("\n   no network\nat all")
            Path(root, "pneumoniamnist.npz").touch()

    package = ModuleType("medmnist")
    vars(package).update(
        INFO={"pneumoniamnist": {"python_class": "PneumoniaMNIST"}},
        PneumoniaMNIST=PneumoniaMNIST,
    )
    monkeypatch.setitem(sys.modules, "medmnist", package)
    assert fetch_medmnist("pneumoniamnist", 28, tmp_path / "new").is_file()
    with refuses("size of pneumoniamnist must be one of 28, 64, got 65"):
        fetch_medmnist("pneumoniamnist", 65, tmp_path)
    with refuses("pneumoniamnist_64.npz", "no network; download it"):
        fetch_medmnist("pneumoniamnist", 64, tmp_path)


def test_the_verb_shows_a_set_and_fetches_one(
    kermany: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    for words, code, says in (
        (
            [str(kermany), "--kind", "kermany", "--size", "8"],
            0,
            "download: 41 images, 1 x 8 x 8",
        ),
        (
            ["--fetch", "pneumoniamnist", "--size", "64", "--out", str(tmp_path)],
            2,
            "pneumoniamnist_64.npz",
        ),
        (["--fetch", "pneumonia"], 2, "pneumoniamnist"),
        ([], 2, "--fetch"),
    ):
        result = CliRunner().invoke(app, ["datasets", *words], catch_exceptions=False)
        assert result.exit_code == code and says in result.output
