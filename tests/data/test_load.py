"""load_cases on npz files, folders and manifests; every bad input is one sentence."""

import csv
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from feathide.auditing.preflight import check_plan
from feathide.cli import app
from feathide.data import cases_of_arrays, load_cases
from feathide.data.files import read_image
from feathide.data.region import load_region
from feathide.errors import InputError
from feathide.plans.plan import load_plan


def refuses(*words: str):
    return pytest.raises(InputError, match=".*".join(re.escape(w) for w in words))


def save_npz(
    path: Path, shape: tuple[int, ...] = (5, 4), dtype: str = "uint8", **more: np.ndarray
) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 8), ("val", 4), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape)).astype(dtype)
        arrays[f"{split}_labels"] = (np.arange(n) % 2)[:, None]
    np.savez(path, **{k: v for k, v in (arrays | more).items() if v is not None})
    return path


def save_folder(
    root: Path,
    *,
    splits: tuple[str, ...] = ("",),
    n: int = 6,
    size: tuple[int, int] = (8, 6),
) -> Path:
    rng = np.random.default_rng(1)
    for split in splits:
        for c in ("ill", "well"):
            folder = root / split / c
            folder.mkdir(parents=True)
            for i in range(n):
                name = f"patient{split}{c}{i // 2}_{i}.png"
                Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(
                    folder / name
                )
    return root


def save_manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# npz


@pytest.mark.parametrize(
    ("stored", "channels", "shape"),
    [
        ((5, 4), 1, (5, 4)),
        ((5, 4, 3), 3, (5, 4)),
        ((6, 5, 4), 1, (6, 5, 4)),
        ((6, 5, 4, 1), 1, (6, 5, 4)),
    ],
)
def test_npz_of_every_layout(
    tmp_path: Path, stored: tuple, channels: int, shape: tuple
) -> None:
    path = save_npz(tmp_path / "toy.npz", stored)
    cases = load_cases(path)
    assert (cases.name, len(cases), cases.channels, cases.shape) == (
        "toy",
        18,
        channels,
        shape,
    )
    raw = np.load(path)["val_images"][2].astype(np.float32) / 255
    expected = np.moveaxis(raw, -1, 0) if stored[-1] in (1, 3) else raw[None]
    np.testing.assert_allclose(
        cases.images(cases.where("val")[[2]])[0], expected, rtol=1e-7
    )
    assert cases.ids[cases.where("val")[2]] == "val-00002"
    np.testing.assert_array_equal(cases.patients, cases.ids)


def test_npz_patients_from_arrays_and_from_the_sidecar(tmp_path: Path) -> None:
    names = {
        f"{s}_patient": np.array([f"{s}{i // 2}" for i in range(n)])
        for s, n in (("train", 8), ("val", 4), ("test", 6))
    }
    cases = load_cases(save_npz(tmp_path / "a.npz", **names))
    assert cases.patients[cases.where("test")].tolist() == [
        "test0",
        "test0",
        "test1",
        "test1",
        "test2",
        "test2",
    ]
    path = save_npz(tmp_path / "b.npz")
    table = sidecar(group=lambda s, i: "anna" if (s, i) == ("train", 3) else "")
    save_manifest(tmp_path / "b.meta.csv", table)
    cases = load_cases(path)
    assert cases.patients[3] == "anna" and cases.patients[4] == "train-00004"
    assert cases.notes[1:] == (
        "patients: from b.meta.csv",
        "patients of 17 of 18 images: unknown, each image counts as its own patient",
    )
    save_manifest(
        tmp_path / "b.meta.csv",
        sidecar(patient=lambda s, i: "anna" if s != "val" and i == 0 else f"{s}{i}"),
    )
    with refuses(
        "no patient of b may sit in two splits", "test-00000 (test) = train-00000 (train)"
    ):
        load_cases(path)


def sidecar(**columns: Callable[[str, int], str]) -> list[dict[str, object]]:
    """A full table beside the file of ``save_npz``."""
    rows = [(s, i) for s, n in (("train", 8), ("val", 4), ("test", 6)) for i in range(n)]
    return [
        {"split": s, "index": i} | {name: make(s, i) for name, make in columns.items()}
        for s, i in rows
    ]


def test_a_sidecar_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path, meta = save_npz(tmp_path / "b.npz"), tmp_path / "b.meta.csv"
    full = sidecar(patient=lambda s, i: f"{s}{i // 2}")
    # a space is no other patient
    save_manifest(meta, [{**row, "patient": f"{row['patient']} "} for row in full])
    assert load_cases(path).patients[:3].tolist() == ["train0", "train0", "train1"]
    save_manifest(meta, [{**row, "split": str(row["split"]).title()} for row in full])
    with refuses(
        "every row of",
        "must name an image",
        "18 that do not: Train-00000",
        "train, val and test",
    ):
        load_cases(path)
    save_manifest(meta, [{**row, "index": int(str(row["index"])) + 1} for row in full])
    with refuses(
        "must name an image", "3 that do not: train-00008, val-00004, test-00006", "from 0"
    ):
        load_cases(path)
    save_manifest(meta, full[:-2])
    with refuses("must have a row for every image", "2 of 18: test-00004, test-00005"):
        load_cases(path)
    save_manifest(meta, [*full, {**full[0], "patient": "anna"}])
    with refuses("must name one patient of train-00000", "'train0' and 'anna'"):
        load_cases(path)
    save_manifest(meta, sidecar(patient_id=lambda s, i: s))
    with refuses("the column must be named patient", "patient_id", "rename it"):
        load_cases(path)
    with refuses("patient_pattern", "a npz", "patients="):
        load_cases(path, patient_pattern="x")


@pytest.mark.parametrize(
    ("stored", "channels", "shape", "layout"),
    [
        ((1, 12, 10), 1, (12, 10), "N x 1 x H x W"),
        ((3, 12, 10), 3, (12, 10), "N x 3 x H x W"),
        ((12, 10, 3), 3, (12, 10), "N x H x W x 3"),
        ((1, 9, 12, 10), 1, (9, 12, 10), "N x 1 x D x H x W"),
        ((3, 9, 12, 10), 3, (9, 12, 10), "N x 3 x D x H x W"),
        ((9, 12, 10, 3), 3, (9, 12, 10), "N x D x H x W x 3"),
        # the last axis tells a volume of depth 3 ...
        ((3, 12, 10, 1), 1, (3, 12, 10), "N x D x H x W x 1"),
        ((4, 12, 10, 1), 1, (4, 12, 10), "N x D x H x W x 1"),  # ... or 4
        ((5, 12, 10), 1, (5, 12, 10), "N x D x H x W"),
    ],
)
def test_npz_with_channels_on_either_side(
    tmp_path: Path, stored: tuple, channels: int, shape: tuple, layout: str
) -> None:
    path = save_npz(tmp_path / "toy.npz", stored)
    cases = load_cases(path)
    assert (cases.channels, cases.shape) == (channels, shape) and cases.notes[0].startswith(
        f"layout: {layout}"
    )
    raw = np.load(path)["train_images"][0] / 255
    right = raw if "first" in layout or stored[0] == channels != shape[0] else raw[None]
    right = np.moveaxis(raw, -1, 0) if layout.endswith((" x 1", " x 3")) else right
    np.testing.assert_allclose(cases.images([0])[0], right, rtol=1e-6)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (
            (12, 10, 4),
            (
                "must be N x H x W x 1 or 3",
                "(12, 10, 4)",
                "drop the alpha channel",
                "last axis of length 1",
            ),
        ),
        ((4, 12, 10), ("must be N x H x W x 1 or 3", "drop the alpha channel")),
        ((12, 10, 2), ("must be N x H x W x 1 or 3", "drop the alpha channel")),
        ((9, 12, 10, 4), ("must be N x D x H x W x 1 or 3", "drop the alpha channel")),
        (
            (3, 12, 3),
            ("(3, 12, 3), which could be several", "move the channels to the last axis"),
        ),
        ((3, 12, 10, 3), ("which could be several",)),
        ((1, 12, 10, 1), ("which could be several",)),
    ],
)
def test_npz_whose_channels_cannot_be_told_is_refused(
    tmp_path: Path, stored: tuple, words: tuple
) -> None:
    with refuses(*words):
        load_cases(save_npz(tmp_path / "toy.npz", stored))


def test_one_hot_labels_are_refused(tmp_path: Path) -> None:
    hot = {
        f"{s}_labels": np.eye(3)[np.arange(n) % 3]
        for s, n in (("train", 8), ("val", 4), ("test", 6))
    }
    with refuses("labels of", "exactly one 1 in every row", "argmax"):
        load_cases(save_npz(tmp_path / "toy.npz", **hot))
    with refuses("labels of arrays", "exactly one 1 in every row"):
        cases_of_arrays(
            np.zeros((10, 1, 4, 4)), np.eye(2)[np.arange(10) % 2], splits=["train"] * 10
        )
    hot["train_labels"][0] = 0  # an image without a finding
    assert load_cases(save_npz(tmp_path / "toy.npz", **hot)).multi_label


def test_nan_labels_are_named(tmp_path: Path) -> None:
    labels = np.tile([0.0, 1.0], (8, 1))
    labels[5, 1] = np.nan
    others = {"val_labels": np.ones((4, 2)), "test_labels": np.ones((6, 2))}
    with refuses("labels must be whole numbers", "NaN in labels of rows 5"):
        load_cases(save_npz(tmp_path / "toy.npz", train_labels=labels, **others))


def test_arrays_of_a_file_are_used_refused_or_named(tmp_path: Path) -> None:
    extra = np.array([f"p{i}" for i in range(8)])
    for wrong, right in (("train_patient_id", "train_patient"), ("group", "train_patient")):
        with refuses("must be named", right, wrong, "rename or remove"):
            load_cases(save_npz(tmp_path / "toy.npz", **{wrong: extra}))
    with refuses("must be named val_images", "valid_images"):
        load_cases(
            save_npz(
                tmp_path / "toy.npz",
                val_images=None,
                valid_images=np.zeros((4, 5, 4), np.uint8),
            )
        )
    assert (
        "arrays not used: train_age"
        in load_cases(save_npz(tmp_path / "toy.npz", train_age=extra)).notes
    )


def test_channels_of_arrays_stand_on_axis_1() -> None:
    with refuses("channels on axis 1", "(4, 8, 8, 3)", "moveaxis"):
        cases_of_arrays(np.zeros((4, 8, 8, 3)), np.arange(4) % 2, splits=["train"] * 4)
    with refuses("must be N x C x H x W", "(4, 8, 8)"):
        cases_of_arrays(np.zeros((4, 8, 8)), np.arange(4) % 2, splits=["train"] * 4)


def test_npz_limit_size_and_channels(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "a.npz", (8, 8))
    cases = load_cases(path, limit=4, size=(4, 2), channels=3, class_names=("no", "yes"))
    assert (len(cases), cases.channels, cases.shape, cases.class_names) == (
        12,
        3,
        (4, 2),
        ("no", "yes"),
    )
    raw = np.load(path)["train_images"][int(cases.ids[0][-5:])].astype(float)
    assert abs(cases.images([0])[0, 1].mean() * 255 - raw.mean()) < 3


def test_splits_of_two_types_are_refused(tmp_path: Path) -> None:
    """uint8 and uint16 are both shown in [0, 1]: side by side, one of them would be 257 times
    darker.
    """
    wide = np.zeros((6, 5, 4), np.uint16)
    with refuses("the images of all splits of", "must have one shape and type", "uint16"):
        load_cases(save_npz(tmp_path / "toy.npz", test_images=wide))


def test_bad_npz_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with refuses("a.npz must be a file or folder", "nothing"):
        load_cases(path)
    path.write_bytes(b"not a zip file")
    with refuses("a.npz must be a readable npz file"):
        load_cases(path)
    save_npz(path)
    path.write_bytes(path.read_bytes()[:2000])
    with refuses("a.npz must be a readable npz file"):
        load_cases(path)
    np.savez(path, train_images=np.array([{}], dtype=object), train_labels=np.zeros(1))
    with refuses("a.npz must be a readable npz file"):
        load_cases(path)
    np.savez(path, pictures=np.zeros(3))
    with refuses("train_images", "pictures"):
        load_cases(path)
    with refuses("8 rows of train_labels", "2"):
        load_cases(save_npz(path, train_labels=np.zeros(2)))
    with refuses("8 rows of train_labels", "none"):
        load_cases(save_npz(path, train_labels=None))
    with refuses("one shape and type"):
        load_cases(save_npz(path, val_images=np.zeros((4, 7, 7), dtype=np.uint8)))
    with refuses("N x H x W"):
        load_cases(save_npz(path, (20,)))
    with refuses("box [0, 1]"):
        load_cases(save_npz(path, dtype="float32"))
    with refuses("at least two classes", "only 0"):
        load_cases(
            save_npz(
                path,
                **{
                    f"{s}_labels": np.zeros(n)
                    for s, n in (("train", 8), ("val", 4), ("test", 6))
                },
            )
        )
    with refuses("size must be 2 positive numbers"):
        load_cases(save_npz(path), size=(4, 4, 4))


def test_every_real_array_file_loads(shared: Path) -> None:
    shapes = {}
    for path in sorted(shared.glob("*.npz")):
        with np.load(path) as arrays:
            labelled = "train_labels" in arrays.files
        if labelled:
            shapes[path.stem] = load_cases(path, skip_bad=True).shape
        else:  # masks in place of classes
            with refuses(f"{path.stem}.npz must hold", "rows of train_labels, got none"):
                load_cases(path, skip_bad=True)
    assert shapes["cxr_pneumonia_64"] == (64, 64) and shapes["hippocampus_part3d_24"] == (
        24,
        24,
        24,
    )


def test_the_copies_between_splits_of_pneumoniamnist_are_found(shared: Path) -> None:
    path = shared / "pneumoniamnist28.npz"
    with refuses("no image of pneumoniamnist28 may sit in two splits, got 8: val-"):
        load_cases(path)
    cases = load_cases(path, skip_bad=True)
    assert len(cases) == 5856 - len(cases.skipped) and all(
        s.path.startswith("train-") for s in cases.skipped
    )


def test_patients_of_the_real_volumes(shared: Path) -> None:
    cases = load_cases(shared / "hippocampus_part3d_24.npz")
    assert len(set(cases.patients)) == 260 and cases.channels == 1


# folders


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "toy")
    shutil.copytree(root / "ill", root / "well" / ".ipynb_checkpoints")
    assert len(load_cases(root)) == 12


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "toy")
    np.save(root / "ill" / "a.npy", np.zeros((8, 6)))
    (root / "well" / "notes.txt").write_text("a text is no case")
    Image.new("L", (6, 8)).save(root / "stray.png")
    with refuses(
        "must hold readable images in class folders",
        "2 other files",
        "ill/a.npy, stray.png",
        "skip_bad=True",
    ):
        load_cases(root)
    cases = load_cases(root, skip_bad=True)
    assert len(cases) == 12 and sorted(Path(s.path).name for s in cases.skipped) == [
        "a.npy",
        "stray.png",
    ]


def test_nothing_of_a_folder_vanishes(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "set", splits=("train", "val", "test"))
    picture = Image.new("L", (6, 8))
    picture.save(root / "train" / "stray.png")
    (root / "test" / "ill" / "more").symlink_to(tmp_path, target_is_directory=True)
    with refuses("2 other files", "test/ill/more, train/stray.png"):
        load_cases(root)
    names = sorted(Path(s.path).name for s in load_cases(root, skip_bad=True).skipped)
    assert names == ["more", "stray.png"]


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir"])
def test_folders_of_systems_are_hidden_ones(tmp_path: Path, name: str) -> None:
    root = save_folder(tmp_path / "toy")
    shutil.copytree(root / "ill", root / "well" / name)
    shutil.copytree(root / "ill", root / name)
    assert len(load_cases(root)) == 12


def test_jpegs_of_another_ending_are_read(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "toy")
    Image.new("L", (6, 8)).save(root / "ill" / "b.jfif", "JPEG")
    assert len(load_cases(root)) == 13


def test_folder_with_splits_reads_lazily(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "set", splits=("train", "validation", "test"))
    cases = load_cases(root, patient_pattern=r"(patient\w*\d+)_")
    assert (
        cases.class_names == ("ill", "well") and len(cases) == 36 and cases.shape == (8, 6)
    )
    assert [len(cases.where(s)) for s in ("train", "val", "test")] == [12, 12, 12]
    assert (
        cases.ids[0] == "test/ill/patienttestill0_0.png"
        and cases.patients[0] == "patienttestill0"
    )
    raw = np.array(Image.open(cases.paths[5]), dtype=np.float32) / 255
    np.testing.assert_array_equal(cases.images([5])[0, 0], raw)
    before = cases.digest
    Path(cases.paths[5]).unlink()
    assert cases.images([4]).shape == (1, 1, 8, 6)  # only what is asked for is read
    with refuses(Path(cases.paths[5]).name, "no such file"):
        cases.images([5])
    assert load_cases(root).digest != before


def test_folder_without_splits_is_hashed_by_patient_and_stable(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "set", n=80)
    cases = load_cases(root, patient_pattern=r"(patient\w*\d+)_")
    assert all(
        len(set(cases.splits[cases.patients == p])) == 1 for p in set(cases.patients)
    )
    assert min(len(cases.where(s)) for s in ("train", "val", "test")) > 0
    old = dict(zip(cases.ids, cases.splits, strict=True))
    Image.fromarray(np.eye(8, 6, dtype=np.uint8)).save(root / "ill" / "patientnew0_0.png")
    new = load_cases(root, patient_pattern=r"(patient\w*\d+)_")
    assert len(new) == 161 and all(
        old[i] == s for i, s in zip(new.ids, new.splits, strict=True) if i in old
    )


def test_folder_patients_from_a_table(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "set", splits=("train", "test"))
    ids = load_cases(root).ids
    full = [{"id": i, "patient": "anna" if "trainill0" in i else ""} for i in ids]
    table = save_manifest(tmp_path / "p.csv", full)
    cases = load_cases(root, patients=table)
    assert (
        sorted(set(cases.patients) - set(ids)) == ["anna"]
        and sum(cases.patients == "anna") == 2
    )
    assert cases.notes == (
        "patients of 22 of 24 images: unknown, each image counts as its own patient",
    )
    save_manifest(table, [{**row, "id": Path(row["id"]).name} for row in full])
    with refuses(
        "every row of",
        "must name an image",
        "24 that do not: patient",
        "such as test/ill/patient",
    ):
        load_cases(root, patients=table)
    save_manifest(table, full[3:])
    with refuses("must have a row for every image", "none for 3 of 24: test/ill/"):
        load_cases(root, patients=table)
    save_manifest(table, [{"filename": row["id"], "patient": "anna"} for row in full])
    with refuses("without the column 'id'"):
        load_cases(root, patients=table)
    save_manifest(table, [{"id": row["id"], "Patient": "anna"} for row in full])
    with refuses("must be named patient", "Patient"):
        load_cases(root, patients=table)
    with refuses("must find a patient", "none in test/ill"):
        load_cases(root, patient_pattern=r"patient\w+|(nobody)")


def test_mixed_pictures_need_a_word_and_get_one(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "set", splits=("train", "test"))
    colour = root / "test" / "ill" / "colour.png"
    Image.fromarray(np.full((8, 6, 3), (255, 0, 0), dtype=np.uint8)).save(colour)
    with refuses("must have the channels of", "(3)", "got 1", "channels=1"):
        load_cases(root)
    cases = load_cases(root, channels=1)
    row = list(cases.ids).index("test/ill/colour.png")
    np.testing.assert_allclose(cases.images([row]), 76 / 255, rtol=1e-6)  # 0.299 * 255
    colour.unlink()
    Image.fromarray(np.eye(9, 9, dtype=np.uint8)).save(colour)
    with refuses("must have the shape of", "(9, 9)", "size="):
        load_cases(root)
    assert load_cases(root, size=8).shape == (8, 8)
    left = load_cases(root, skip_bad=True)
    assert (
        left.shape == (8, 6)
        and [Path(s.path) for s in left.skipped] == [colour]
        and "shape" in left.skipped[0].reason
    )


def test_sixteen_bit_pictures(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i, c in enumerate(("a", "b")):
        (root / "test" / c).mkdir(parents=True)
        Image.fromarray(np.array([[0, 1, 65535, 300 + i]], dtype=np.uint16)).save(
            root / "test" / c / "x.png"
        )
    cases = load_cases(root)
    assert cases.step == 1 / 65535 and cases.shape == (1, 4)
    np.testing.assert_array_equal(
        np.rint(cases.images([0])[0, 0, 0] * 65535), [0, 1, 65535, 300]
    )


def test_bad_files_are_named_and_listed_on_request(tmp_path: Path) -> None:
    root = save_folder(tmp_path / "set", splits=("train", "test"))
    bad = root / "train" / "ill" / "patienttrainill1_3.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with refuses("patienttrainill1_3.png must be a readable picture", "skip_bad"):
        load_cases(root)
    cases = load_cases(root, skip_bad=True)
    assert (
        len(cases) == 23
        and [s.path for s in cases.skipped] == [str(bad)]
        and str(bad) not in cases.paths
    )
    assert cases.images(range(23)).shape == (23, 1, 8, 6)


def test_bad_folders_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with refuses("one folder of images per class", "no image"):
        load_cases(tmp_path / "set")
    root = save_folder(tmp_path / "set" / "x", splits=("train", "test"))
    (root / "notes").mkdir()
    with refuses("split folders or class folders", "notes"):
        load_cases(root)
    shutil.rmtree(root / "notes")
    with refuses("unknown class folder 'ill'", "known: healthy"):
        load_cases(root, class_names=("healthy", "well"))
    with refuses("patient_pattern", "must match every path"):
        load_cases(root, patient_pattern=r"person\d+")
    shutil.rmtree(root / "train" / "ill")
    shutil.rmtree(root / "test" / "ill")
    with refuses("at least two classes", "only well"):
        load_cases(root)
    with refuses("must be .npz, .csv or a folder", ".txt"):
        (tmp_path / "a.txt").touch()
        load_cases(tmp_path / "a.txt")
    with refuses("unknown kind of data 'nzp'", "'npz'"):
        load_cases(root, kind="nzp")  # type: ignore[arg-type]


# manifests


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, object]]:
    root = save_folder(tmp_path / "pictures", n=3)
    paths = sorted(root.rglob("*.png"))
    splits = ["train", "test", "val"] * 2
    return [
        {
            "path": p.relative_to(tmp_path).as_posix(),
            "label": p.parent.name,
            "patient": f"p{i}",
            "split": splits[i],
        }
        for i, p in enumerate(paths)
    ]


def test_manifest_by_class_name_and_by_number(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    cases = load_cases(save_manifest(tmp_path / "m.csv", rows))
    assert cases.class_names == ("ill", "well") and cases.labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]
    assert (
        cases.patients.tolist() == [f"p{i}" for i in range(6)]
        and cases.splits.tolist() == ["train", "test", "val"] * 2
    )
    assert cases.ids[0] == "pictures/ill/patientill0_0.png"
    numbered = [
        {**row, "label": int(row["label"] == "well"), "id": f"case{i}"}
        for i, row in enumerate(rows)
    ]
    cases = load_cases(
        save_manifest(tmp_path / "n.csv", numbered), class_names=("sick", "fine")
    )
    assert (
        cases.class_names == ("sick", "fine")
        and cases.labels.tolist() == [0, 0, 0, 1, 1, 1]
        and cases.ids[5] == "case5"
    )
    reordered = load_cases(
        save_manifest(tmp_path / "m.csv", rows), class_names=("well", "ill")
    )
    assert reordered.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_manifest_of_findings(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    findings = [
        {"path": r["path"], "split": r["split"], "edema": i % 2, "mass": int(i > 3)}
        for i, r in enumerate(rows)
    ]
    cases = load_cases(save_manifest(tmp_path / "m.csv", findings))
    assert cases.class_names == ("edema", "mass")
    assert cases.labels.tolist() == [[i % 2, int(i > 3)] for i in range(6)]
    findings[3]["mass"] = ""
    with refuses("mass of pictures/well", "must be 0 or 1", "''"):
        load_cases(save_manifest(tmp_path / "m.csv", findings))


def test_manifest_without_splits_is_hashed(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    bare = [{"path": r["path"], "label": r["label"]} for r in rows]
    cases = load_cases(save_manifest(tmp_path / "m.csv", bare), fractions=(0.4, 0.2, 0.4))
    assert (
        set(cases.splits) <= {"train", "val", "test"}
        and cases.patients.tolist() == cases.ids.tolist()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "pictures/none.png"}, ("none.png must be an image file", "no such file")),
        ({"label": ""}, ("labels of", "''")),
        ({"split": "holdout"}, ("train, val or test", "holdout")),
        ({"split": ""}, ("all cases of m must have a split", "patientill0_0.png")),
        ({"patient": "p1"}, ("no patient of m may sit in two splits",)),
        ({"path": "pictures/ill/patientill0_1.png"}, ("ids must be unique",)),
    ],
)
def test_bad_rows_are_one_sentence(
    tmp_path: Path, rows: list[dict[str, object]], change: dict, words: tuple
) -> None:
    rows[0] |= change
    with refuses(*words):
        load_cases(save_manifest(tmp_path / "m.csv", rows))


def test_a_wrong_table_is_told_before_the_images_are_read(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    Path(tmp_path, str(rows[5]["path"])).write_bytes(b"broken")
    with refuses("at least two classes"):
        load_cases(
            save_manifest(tmp_path / "m.csv", [{**row, "label": "ill"} for row in rows])
        )
    with refuses("no patient of m may sit in two splits"):
        load_cases(
            save_manifest(tmp_path / "m.csv", [{**row, "patient": "anna"} for row in rows])
        )
    Path(tmp_path, str(rows[0]["path"])).write_bytes(b"broken")
    # but the first image comes first
    with refuses("patientill0_0.png must be a readable picture"):
        load_cases(
            save_manifest(tmp_path / "m.csv", [{**row, "patient": "anna"} for row in rows])
        )


def test_bad_tables_are_one_sentence(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    with refuses("column 'path'", "known: where"):
        load_cases(save_manifest(tmp_path / "m.csv", [{"where": "a", "label": 1}]))
    with refuses("a column label or one per finding"):
        load_cases(save_manifest(tmp_path / "m.csv", [{"path": "a"}]))
    (tmp_path / "m.csv").write_text("path,label\n")
    with refuses("must have rows"):
        load_cases(tmp_path / "m.csv")
    with refuses("labels must lie in 0..1", "7"):
        numbered = [{**row, "label": 7 * i % 2 * 7} for i, row in enumerate(rows)]
        load_cases(save_manifest(tmp_path / "m.csv", numbered), class_names=("a", "b"))


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (k, o)
        for k, names in (
            ("path", ("Path", "filename", "file", "image", "image_path")),
            ("label", ("Label", "class", "target", "Ground truth")),
            ("patient", ("patient_id", "PatientID", "Patient-ID", "subject", "group")),
            ("split", ("Split", "fold", "subset", "set")),
        )
        for o in names
    ],
)
def test_columns_of_nearly_the_name_are_refused(
    tmp_path: Path, rows: list[dict[str, object]], known: str, other: str
) -> None:
    with refuses(f"the column must be named {known}, got {other}", "rename it"):
        load_cases(
            save_manifest(
                tmp_path / "m.csv",
                [{other if k == known else k: v for k, v in r.items()} for r in rows],
            )
        )
    with_both = [{**row, other: row[known]} for row in rows]
    assert (
        f"columns: path, label, patient, split; not used: {other!r}"
        in load_cases(save_manifest(tmp_path / "m.csv", with_both)).notes
    )
    findings = [
        {"path": r["path"], "edema": i % 2, other: i % 2} for i, r in enumerate(rows)
    ]
    with refuses(other):
        load_cases(save_manifest(tmp_path / "m.csv", findings))


def test_findings_may_be_named_as_columns_are(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    findings = [
        {"path": r["path"], "target": i % 2, "age": 40 + i, "mass": int(i > 3)}
        for i, r in enumerate(rows)
    ]
    path = save_manifest(tmp_path / "m.csv", findings)
    cases = load_cases(path, class_names=("target", "mass"))
    assert cases.labels.tolist() == [[i % 2, int(i > 3)] for i in range(6)]
    assert cases.notes[0] == "columns: path, target, mass; not used: 'age'"
    with refuses("unknown column", "'masses'", "did you mean 'mass'"):
        load_cases(path, class_names=("target", "masses"))


def test_one_hot_findings_are_refused(tmp_path: Path) -> None:
    paths = sorted(save_folder(tmp_path / "pictures", n=6).rglob("*.png"))
    table = [
        {"path": p.relative_to(tmp_path).as_posix(), "a": i % 2, "b": 1 - i % 2}
        for i, p in enumerate(paths)
    ]
    with refuses("the findings of", "exactly one 1 in every row", "one column label"):
        load_cases(save_manifest(tmp_path / "m.csv", table))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("ill", "nan", "well"), ("must be known", "nan", "class_names")),
        (("ill", "Ill", "well"), ("differ in more than capitals", "Ill, ill")),
        (("-1", "0", "1"), ("whole numbers from 0", "-1")),
        (("0", "0.5", "1"), ("whole numbers from 0", "0.5")),
    ],
)
def test_odd_labels_are_refused(
    tmp_path: Path,
    rows: list[dict[str, object]],
    labels: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    with refuses(*words):
        load_cases(
            save_manifest(
                tmp_path / "m.csv",
                [{**r, "label": labels[i % 3]} for i, r in enumerate(rows)],
            )
        )


def test_tables_with_spaces_empty_rows_and_numbers_with_a_point(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    lines = [f"{r['path']}, {i % 2}.0, p{i % 3} ,{r['split']}" for i, r in enumerate(rows)]
    (tmp_path / "m.csv").write_text(
        "\n".join(["path, label , patient,split", *lines, ",,,", ""])
    )
    cases = load_cases(tmp_path / "m.csv")
    assert (
        cases.labels.tolist() == [0, 1] * 3
        and cases.patients.tolist() == ["p0", "p1", "p2"] * 2
    )


def test_tables_of_another_form_say_how_to_save_them(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    text = save_manifest(tmp_path / "m.csv", rows).read_text()
    for mark in ";\t|":
        (tmp_path / "m.csv").write_text(text.replace(",", mark))
        with refuses("m.csv must have the column path", "separate the columns by commas"):
            load_cases(tmp_path / "m.csv")
    for code in ("utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "m.csv").write_text(text, code)
        with refuses("m.csv must be a CSV file in UTF-8", "save it as UTF-8"):
            load_cases(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(text.replace("ill", "\u00fcbel"), "latin-1")
    with refuses("m.csv must be a CSV file in UTF-8", "save it as UTF-8"):
        load_cases(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(text.replace("/", "\\"))
    with refuses("written with /", "use /"):
        load_cases(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(text.replace("label", "patient", 1))
    with refuses("different names", "patient twice"):
        load_cases(tmp_path / "m.csv")
    with refuses("patients must be a table", "a manifest", "column patient"):
        load_cases(tmp_path / "m.csv", patients=tmp_path / "m.csv")


def test_the_verbs_say_what_was_assumed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    splits = {"train": 24, "val": 8, "test": 60}
    arrays = {
        f"{s}_images": rng.integers(0, 256, (n, 3, 16, 16), dtype=np.uint8)
        for s, n in splits.items()
    }
    np.savez(
        tmp_path / "a.npz",
        **arrays,
        **{f"{s}_labels": np.arange(n) % 2 for s, n in splits.items()},
    )
    notes = (
        "layout: N x 3 x H x W (channels first)",
        "patients: unknown, each image counts as its own patient",
    )
    told = (
        CliRunner()
        .invoke(app, ["datasets", str(tmp_path / "a.npz")], catch_exceptions=False)
        .output
    )
    assert all(f"\n  {note}\n" in told for note in notes)
    plan = load_plan(
        {
            "data": str(tmp_path / "a.npz"),
            "network": "tiny",
            "eps": "8/255",
            "attacks": "pgd",
        }
    )
    assert {f"assumed: {note}" for note in notes} <= set(
        check_plan(plan, tmp_path / "run").says
    )


def test_a_study_without_splits_says_so(tmp_path: Path) -> None:
    notes = load_cases(save_folder(tmp_path / "set", n=20), seed=3).notes
    assert notes[-1] == "splits: drawn by patient with seed 3, train 0.7, val 0.1, test 0.2"


# pictures that Pillow would cut or guess


def save_png16(path: Path, kind: int, samples: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + name
            + data
            + struct.pack(">I", zlib.crc32(name + data))
        )

    head, row = (
        struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0),
        b"\0" + bytes(range(8 * samples)),
    )
    body = (
        chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_pictures_that_would_lose_bits_are_refused(tmp_path: Path) -> None:
    for kind, samples, got in (
        (2, 3, "16 bits of colour"),
        (4, 2, "grey with alpha"),
        (6, 4, "16 bits of colour"),
    ):
        save_png16(tmp_path / "a.png", kind, samples)
        with refuses("a.png must be 8 or 16-bit", got):
            read_image(tmp_path / "a.png")
    save_png16(tmp_path / "a.png", 0, 1)
    assert read_image(tmp_path / "a.png").stored[0, 0].tolist() == [1, 515, 1029, 1543]
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "f.tif")
    with refuses("f.tif must be 8 or 16-bit", "32-bit floats"):
        read_image(tmp_path / "f.tif")
    Image.fromarray(grey).save(tmp_path / "s.tif", tiffinfo={339: 2})
    with refuses("s.tif must be 8 or 16-bit", "signed bytes"):
        read_image(tmp_path / "s.tif")
    Image.new("CMYK", (4, 4)).save(tmp_path / "c.jpg")
    with refuses("c.jpg must be 8 or 16-bit", "CMYK"):
        read_image(tmp_path / "c.jpg")
    (tmp_path / "p.ppm").write_bytes(b"P6 4 4 65535\n" + bytes(96))
    with refuses("p.ppm must be 8 or 16-bit", "16 bits of colour"):
        read_image(tmp_path / "p.ppm")


@pytest.mark.parametrize("name", ["a.tif", "a.gif"])
def test_several_pages_are_refused_by_their_number(tmp_path: Path, name: str) -> None:
    pages = [Image.fromarray(np.full((4, 4), 40 * i, dtype=np.uint8)) for i in range(6)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with refuses(f"{name} must hold one picture", "6 pages"):
        read_image(tmp_path / name)


def test_masks_by_index_and_alpha(tmp_path: Path) -> None:
    cases = load_cases(save_npz(tmp_path / "toy.npz", (8, 8)))
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:4, 2:6] = 1
    index = Image.frombytes("P", (8, 8), mask.tobytes())
    index.putpalette([120, 120, 120, 6, 230, 230])
    index.save(tmp_path / "index.png")
    Image.fromarray(np.dstack([np.full((8, 8, 3), 255, np.uint8), mask * 255])).save(
        tmp_path / "alpha.png"
    )
    for name in ("index.png", "alpha.png"):
        region = load_region(str(tmp_path / name), cases, trust=False)
        np.testing.assert_array_equal(region.of(torch.zeros(1, 1, 8, 8))[0, 0], mask)
    index.putpalette([255, 255, 255, 0, 0, 0])
    index.save(tmp_path / "index.png")
    with refuses("must be 0 outside", "index 0 is not black"):
        load_region(str(tmp_path / "index.png"), cases, trust=False)
    np.savez(tmp_path / "nan.npz", mask=np.where(mask > 0, 1.0, np.nan))
    with refuses("must be numbers", "NaN"):
        load_region(str(tmp_path / "nan.npz"), cases, trust=False)
