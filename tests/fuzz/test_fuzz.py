"""What a stranger may hand in: spoilt files are refused in one sentence; bombs, pipes and paths
that lead elsewhere do no harm.
"""

import csv
import gzip
import io
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian

sys.path.insert(0, str(Path(__file__).parent))

from world import Target, accepts, dicom, limited, survives, targets

from feathide.auditing.run import checked
from feathide.data import load_cases
from feathide.data.files import read_image
from feathide.errors import InputError, expected
from feathide.formats import safety as guard
from feathide.pipeline.table import stored_table
from feathide.plans.plan import load_plan

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = [
    "plan.yaml",
    "cases.csv",
    "cases.npz",
    "a.dcm",
    "b.dcm",
    "a.nii",
    "b.nii.gz",
    "a.png",
    "a.jpeg",
    "a.tiff",
    "a.bmp",
    "a.gif",
    "a.webp",
    "stored.npz",
    "results.parquet",
    "sanity_checks.json",
    "document.json",
    ".feathide.json",
    "w.safetensors",
    "w.pt",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Target]]:
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, {target.name: target for target in targets(folder)}


@pytest.mark.parametrize("name", NAMES)
def test_unspoilt_inputs_are_read(name: str, world: tuple[Path, dict[str, Target]]) -> None:
    folder, known = world
    assert sorted(known) == sorted(NAMES)
    (folder / name).write_bytes(known[name].seed)
    known[name].read(folder / name)


@pytest.mark.parametrize("name", NAMES)
def test_spoilt_inputs_are_read_or_refused_in_a_sentence(
    name: str, world: tuple[Path, dict[str, Target]]
) -> None:
    folder, known = world

    @given(st.integers(0, 2**32))
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def spoilt(seed: int) -> None:
        survives(known[name], folder, seed)

    spoilt()


# --- what fuzzing has found ---------------------------------------------------------------------

LONG = "x" * 5000
FOUND = {
    "a path longer than a file system has": ("plan.yaml", {"network": LONG}),
    "a value without end": ("plan.yaml", {"eps": LONG}),
    "a budget beyond all numbers": ("plan.yaml", {"eps": "1e999"}),
    "a budget that takes long to write out": ("plan.yaml", {"eps": "1e99999999"}),
    "a budget that is no number": ("plan.yaml", {"eps": [float("nan"), float("inf")]}),
    "a range that is none": (
        "plan.yaml",
        {"data": {"path": "phantoms", "box": [float("nan"), 1.0]}},
    ),
    "a number that no computer counts to": ("plan.yaml", {"schedule": {"steps": 10**30}}),
    "a number of them in a list": (
        "plan.yaml",
        {"network": {"arch": "tiny", "seeds": [1, 10**30]}},
    ),
    "a negative seed": ("plan.yaml", {"seed": -1}),
    "images larger than all memory": (
        "plan.yaml",
        {"data": {"path": "phantoms", "size": 10**8}},
    ),
    "no component": ("plan.yaml", {"mixture": {"components": -5}}),
}


@pytest.mark.parametrize("what", FOUND)
def test_found_plans_are_refused_in_a_sentence(
    what: str, world: tuple[Path, dict[str, Target]]
) -> None:
    folder, known = world
    name, fields = FOUND[what]
    plan = {**yaml.safe_load(known[name].seed), **fields}
    assert not accepts(known[name], folder, yaml.safe_dump(plan).encode())


@pytest.mark.parametrize("field", ["data", "network", "mask", "organ"])
@pytest.mark.parametrize("name", [LONG, LONG + ".npz", "a\x00b"])
def test_names_that_no_file_has_are_refused_in_a_sentence(
    field: str, name: str, tmp_path: Path
) -> None:
    small = {
        "data": {"path": "phantoms", "size": 32, "limit": 60},
        "network": {"arch": "tiny", "layers": "conv"},
    }
    with pytest.raises(InputError) as said:
        checked(load_plan({**small, field: name}), tmp_path / "out")
    assert len(str(said.value)) <= 3000 and str(said.value).isprintable()


def test_a_sentence_is_one_line_and_moves_no_cursor() -> None:
    said = expected("a\nname \x1b[2J\u202e must be short", got="ä" * 9000, do="shorten it")
    assert str(said).isprintable() and len(str(said)) <= 3000
    assert str(said).startswith("a\\nname \\x1b[2J\\u202e must") and str(said).endswith(
        "ää; shorten it"
    )


def test_long_words_of_a_manifest_and_odd_texts_of_a_header_are_said_in_one_line(
    world: tuple[Path, dict[str, Target]],
) -> None:
    folder, known = world
    rows = known["cases.csv"].seed.replace(b"\n0.png,", b"\n" + b"9" * 20_000 + b".png,")
    assert not accepts(known["cases.csv"], folder, rows)
    no_pixels = (
        dicom()
        .replace(b"\xe0\x7f\x10\x00OW", b"\xe1\x7f\x10\x00OW")
        .replace(b"MONOCHROME2 ", b"\n\x1b[2J\n\n\n\n\n\n\n")
    )
    assert not accepts(known["a.dcm"], folder, no_pixels)


# --- bombs --------------------------------------------------------------------------------------


def laughs(path: Path) -> None:
    path.write_text(
        "a: &a [x, x]\n"
        + "".join(
            f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n"
            for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
        )
    )


def nested(path: Path) -> None:
    path.write_text("data: " + "[" * 50_000)


def many_digits(path: Path) -> None:
    path.write_text("data: phantoms\nseed: 0x" + "f" * 900_000)


def base_sixty(path: Path) -> None:
    path.write_text("data: phantoms\nseed: " + "1:" * 200_000 + "1")


@pytest.mark.parametrize("make", [laughs, nested, many_digits, base_sixty])
def test_plans_that_grow_are_refused(make, tmp_path: Path) -> None:
    make(tmp_path / "plan.yaml")
    with (
        limited(),
        pytest.raises(
            InputError,
            match=r"plan.yaml must (be written out plainly|have values of at most)",
        ),
    ):
        load_plan(tmp_path / "plan.yaml")


def test_a_plan_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        f"data: !!python/object/apply:os.mkdir ['{tmp_path}/made']"
    )
    with pytest.raises(
        InputError, match=r"must be YAML, got line 1: could not determine a constructor"
    ):
        load_plan(tmp_path / "plan.yaml")
    assert not (tmp_path / "made").exists()


def header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def huge_npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", header("(100000, 100000, 100000)") + b"123")


def hollow_npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", header("(100000000000, 0, 8)"))


def dense_npz(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train_images.npy", "w") as file,
    ):
        file.write(header(f"({300 * 2**20}, 1, 1)"))
        for _ in range(300):
            file.write(bytes(2**20))


def pickled_npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
        archive.writestr(
            "x.npy",
            b"\x93NUMPY\x01\x00"
            + struct.pack("<H", len(text))
            + text
            + pickle.dumps([print]),
        )


def huge_nifti(path: Path, *, zeros: int = 0) -> None:
    raw = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes())
    raw[42:48] = struct.pack("<3h", 32767, 32767, 32767)
    with gzip.open(path, "wb", 9) as file:
        file.write(bytes(raw))
        for _ in range(zeros):
            file.write(bytes(2**20))


def huge_dicom(path: Path) -> None:
    raw = dicom()
    raw = raw.replace(
        struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 8),
        struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 65535),
    )
    raw = raw.replace(
        struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 8),
        struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 65535),
    )
    path.write_bytes(raw)


def dense_dicom(path: Path) -> None:
    head = Dataset()
    head.file_meta = FileMetaDataset()
    head.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head.SOPClassUID, head.SOPInstanceUID = CTImageStorage, "1.2.3"
    out = io.BytesIO()
    head.save_as(out, enforce_file_format=True)
    raw = out.getvalue()
    start = 144 + struct.unpack("<I", raw[140:144])[0]
    pack = zlib.compressobj(9, wbits=-15)
    body = b"".join(pack.compress(bytes(2**20)) for _ in range(300)) + pack.flush()
    path.write_bytes(raw[:start] + body)


def huge_png(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(bytes(2**20)))
        + chunk(b"IEND", b"")
    )


def postscript_png(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n")


BOMBS = {
    "huge.npz": huge_npz,
    "hollow.npz": hollow_npz,
    "dense.npz": dense_npz,
    "pickled.npz": pickled_npz,
    "huge.nii.gz": huge_nifti,
    "huge.dcm": huge_dicom,
    "dense.dcm": dense_dicom,
    "huge.png": huge_png,
    "postscript.png": postscript_png,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_small_and_soon(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    BOMBS[name](tmp_path / name)
    monkeypatch.setattr(guard, "LARGEST", 2**27)
    monkeypatch.setattr("feathide.formats.dicom.LARGEST", 2**27)
    monkeypatch.setattr(guard, "_memory", lambda: 2**28)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with limited(), pytest.raises(InputError, match=name):
        load_cases(tmp_path / name) if name.endswith("npz") else read_image(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert time.monotonic() - began < 15


def test_a_table_of_too_many_rows_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feathide.pipeline.table.MOST_ROWS", 1000)
    pd.DataFrame({"a": ["x"] * 1001}).to_parquet(tmp_path / "results.parquet")
    with pytest.raises(
        InputError, match=r"results.parquet must be readable, got 1001 rows"
    ):
        stored_table(tmp_path / "results.parquet")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.png", "a.nii"])
def test_devices_are_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with limited(), pytest.raises(InputError, match=rf"{name} must be"):
        load_cases(tmp_path / name) if name[2:] in ("npz", "csv") else read_image(
            tmp_path / name
        )


# --- what does not answer -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a.npz", "a.csv"])
def test_a_reader_that_gets_no_answer_ends_with_the_name_of_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.2)
    os.mkfifo(tmp_path / name)
    with (
        limited(),
        pytest.raises(
            InputError, match=rf"{name} must be read within 0.2 seconds, got no end of it"
        ),
    ):
        load_cases(tmp_path / name) if name[2:] in ("npz", "csv") else read_image(
            tmp_path / name
        )


def test_a_pipe_in_a_folder_of_images_is_said_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.setattr(guard, "PATIENCE", 0.3)
    for k in range(24):
        place = tmp_path / "ab"[k % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(
            np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        ).save(place / f"{k}.png")
    os.mkfifo(tmp_path / "a" / "noending")  # no image by its name: not even opened
    os.mkfifo(tmp_path / "a" / "zz.png")
    with (
        limited(),
        pytest.raises(InputError, match=r"zz.png must be read within 0.3 seconds"),
    ):
        load_cases(tmp_path)
    with limited():
        cases = load_cases(tmp_path, skip_bad=True)
    assert len(cases) == 24 and "zz.png" in cases.skipped[0].path


# --- names that lead elsewhere ------------------------------------------------------------------

WILD = [
    "../../escaped",
    "/tmp/absolute",
    "a/../../b",
    "x" * 300,
    "naïve \u202e name",
    "con:|?*<>",
    "<script>alert(1)</script>",
    "..",
    "a\tb",
    "-rf",
    '=cmd|"/c calc"!A0',
    "@SUM(1)",
    "\x1b[31mred",
]


def test_ids_and_labels_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    """An audit and an export of cases whose ids, patients and classes are paths: nothing is
    written beside the output folders.
    """
    from PIL import Image

    from feathide.auditing.export import export_images
    from feathide.auditing.run import audit

    home = tmp_path / "home"
    home.mkdir()
    rows, rng = ["path,label,patient,split,id"], np.random.default_rng(0)
    for k in range(90):
        image = rng.integers(60, 120, (16, 16), dtype=np.uint8)
        image[:, 8 * (k % 2) : 8 * (k % 2) + 8] += 60
        Image.fromarray(image).save(home / f"{k}.png")
        split = ("train", "train", "test", "test", "val")[k // 2 % 5]
        name = WILD[k % len(WILD)].replace('"', '""') + str(k // len(WILD))
        rows.append(
            f'{k}.png,"{("../left", "</script><svg onload=alert(2)>")[k % 2]}","../{name}",{split},"{name}"'
        )
    (home / "cases.csv").write_text("\n".join(rows))
    plan = {
        "data": str(home / "cases.csv"),
        "network": {
            "arch": "tiny",
            "layers": "conv",
            "train": {"epochs": 4, "augment": False},
        },
        "eps": "16/255",
        "attacks": ["pgd"],
        "objectives": ["plain"],
        "schedule": {"steps": 2},
        "detectors": ["msp"],
        "sanity_checks": "off",
        "even_so": True,
    }
    before = set(tmp_path.rglob("*"))
    audit(load_plan(plan), home / "out")
    exported = export_images(home / "out", home / "exported")
    new = set(tmp_path.rglob("*")) - before
    assert all(
        p.is_relative_to(home / "out") or p.is_relative_to(home / "exported") for p in new
    )
    assert not Path("/tmp/escaped0").exists() and not Path("/tmp/absolute1").exists()
    assert len(list((home / "exported").rglob("*.png"))) > 4
    assert (exported.linf <= exported.eps).all()  # to the last digit
    page = (home / "out" / "report.html").read_text()
    assert not any(
        text in page for text in ("<script>alert(1)", "<svg onload", "\u202e", "\x1b")
    )
    with open(home / "exported" / "export.csv", newline="") as file:
        written = [row["id"] for row in csv.DictReader(file)]
    assert not any(name[0] in "=+-@\t\r" for name in written) and any(
        name[0] == "'" for name in written
    )
    assert [name.removeprefix("'") for name in written] == [*exported.id]
    assert yaml.safe_load((home / "out" / "plan.yaml").read_text())["seed"] == 0
