"""Small valid inputs of every kind, the readers that a stranger's copy of them meets, and ways to
spoil them.
"""

import gzip
import hashlib
import io
import json
import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
)
from safetensors.torch import save

from feathide.auditing.compare import _sanity_checks, _table
from feathide.data import load_cases
from feathide.data.budgets import parse_eps
from feathide.data.files import read_image
from feathide.data.phantoms import phantoms
from feathide.errors import InputError
from feathide.execution.store import Store, held_plan
from feathide.formats.dicom import patient_of
from feathide.models.weight_files import read_about, read_weights
from feathide.pipeline.table import COLUMNS
from feathide.plans.plan import load_plan

HANG = 20  # seconds

NASTY = [
    *(
        "",
        "\x00",
        "../../../etc/passwd",
        "/dev/null",
        "a" * 5000,
        "\u202e\ud7ff",
        "1e999",
        "-1",
        "0",
        "99999999999999999999",
    ),
    *(
        "nan",
        "inf",
        "-inf",
        "9" * 5000,
        "1/0",
        "4/255",
        "2 HU",
        "[[[[[[[[",
        "{{",
        "*a",
        "&a [*a]",
        "!!python/object:os.system x",
    ),
    *(
        "2001-99-99",
        "!!timestamp x",
        "!!int ''",
        "!!binary x",
        "? [a]\n: b",
        "null",
        "true",
        "~",
        "'",
        '"',
        ",",
        ";",
        "(a+)+$",
        "(",
        "\r",
        "\n",
        "\t",
    ),
]
NUMBERS = [
    0,
    1,
    2,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
]


@dataclass(frozen=True)
class Target:
    """``seed`` as the file ``name`` is read by ``read``; ``spoil`` knows its structure."""

    name: str
    seed: bytes
    read: Callable[[Path], object]
    spoil: Callable[[bytes, random.Random], bytes]


# --- ways to spoil ------------------------------------------------------------------------------


def bytewise(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled, moved or overwritten with telling numbers."""
    raw = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        i = draw.randrange(len(raw) + 1)
        j = min(len(raw), i + draw.choice([1, 2, 4, 16, 256]))
        match draw.randrange(6):
            case 0 if raw:
                raw[min(i, len(raw) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                del raw[i:j]
            case 2:
                raw[i:i] = raw[i:j]
            case 3:
                size = draw.choice([1, 2, 4, 8])
                number = draw.choice(NUMBERS) % 256**size
                raw[i : i + size] = number.to_bytes(size, draw.choice(["little", "big"]))
            case 4:
                del raw[i:]
            case 5:
                raw[i:j] = draw.randbytes(j - i)
    return bytes(raw)


def textwise(data: bytes, draw: random.Random) -> bytes:
    """Words replaced by nasty ones, lines doubled or dropped."""
    text = data.decode()
    for _ in range(draw.choice([1, 1, 2, 5])):
        words = (
            text.replace(",", " , ").split(" ")
            if draw.random() < 0.5
            else text.splitlines(keepends=True)
        )
        k = draw.randrange(len(words) or 1)
        new = draw.choice([draw.choice(NASTY), words[k] * 2 if words else "", ""])
        words[k : k + 1] = [new]
        text = (" " if " " in text and len(words) > text.count("\n") + 1 else "").join(
            words
        )
    return text.encode(errors="surrogatepass")


def unpacked(data: bytes, draw: random.Random) -> bytes:
    """What a gzip holds, spoilt, and packed again."""
    return gzip.compress(niftiwise(gzip.decompress(data), draw), 1)


def niftiwise(data: bytes, draw: random.Random) -> bytes:
    """Numbers of the header: sizes, type, offset, slope, affine."""
    raw = bytearray(data)
    for _ in range(draw.choice([1, 2, 3])):
        place, size = draw.choice(
            [
                *((40 + 2 * k, 2) for k in range(8)),
                (70, 2),
                (72, 2),
                (108, 4),
                (112, 4),
                (116, 4),
                (76, 4),
                (252, 2),
                (254, 2),
                (344, 4),
            ]
        )
        raw[place : place + size] = (draw.choice(NUMBERS) % 256**size).to_bytes(
            size, "little"
        )
    return bytes(raw)


def zipwise(data: bytes, draw: random.Random) -> bytes:
    """One array of an npz replaced, renamed or with another header than content."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(entries))
    match draw.randrange(6):
        case 0:
            entries[name] = bytewise(entries[name], draw)
        case 1:
            entries[
                draw.choice([*NASTY, "../x.npy"])[:200].replace("\ud7ff", "") or "x"
            ] = entries.pop(name)
        case 2:
            odd = [
                np.zeros(()),
                np.zeros((0, 3)),
                np.full(4, np.nan),
                np.array(["a", "\x00"]),
                np.array([2**63], np.uint64),
                np.zeros(3, "M8[s]"),
                np.zeros((2,) * 9),
                np.array([-1, 2]),
                np.zeros(3, [("a", "i4")]),
                np.array([1 + 2j]),
                np.array([1e300, 5]),
            ]
            entries[name] = _npy(draw.choice(odd))
        case 3:
            shape = draw.choice(
                [b"(999999999, 999999999)", b"(-1,)", b"()", b"(10000000000,)", b"(0,)"]
            )
            head, tail = entries[name][:10], entries[name][10:]
            end = tail.index(b"\n")
            text = tail[:end].split(b"'shape': ")[0] + b"'shape': " + shape + b", }"
            entries[name] = (
                head[:8]
                + (len(text) + 1).to_bytes(2, "little")
                + text
                + b"\n"
                + tail[end + 1 :]
            )
        case 4:
            del entries[name]
        case 5:
            entries[name] = _npy(np.zeros(draw.choice([1, 2**20, 2**24]), np.uint8))
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    ) as archive:
        for key, value in entries.items():
            archive.writestr(zipfile.ZipInfo(key), value)
    return out.getvalue()


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def sealed(data: bytes, draw: random.Random) -> bytes:
    """A spoilt file of a store whose checksum is right: somebody made it."""
    raw = draw.choice([bytewise, zipwise])(data[:-64] + b"0" * 64, draw)[:-64]
    return raw + hashlib.sha256(raw).hexdigest().encode()


# --- inputs -------------------------------------------------------------------------------------


def dicom(deflated: bool = False) -> bytes:
    head = Dataset()
    head.file_meta = FileMetaDataset()
    head.file_meta.TransferSyntaxUID = (
        DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    )
    head.SOPClassUID, head.SOPInstanceUID, head.SeriesInstanceUID = (
        CTImageStorage,
        "1.2.3",
        "1.2",
    )
    head.PatientID, head.PatientName, head.Modality = "p", "Name^P", "CT"
    head.ImageOrientationPatient, head.ImagePositionPatient, head.PixelSpacing = (
        [1, 0, 0, 0, 1, 0],
        [0, 0, 1],
        [1, 1],
    )
    head.Rows, head.Columns, head.SamplesPerPixel, head.PhotometricInterpretation = (
        8,
        8,
        1,
        "MONOCHROME2",
    )
    head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = (
        16,
        12,
        11,
        0,
    )
    head.RescaleSlope, head.RescaleIntercept, head.RescaleType = 1, -1024, "HU"
    head.PixelData = np.arange(64, dtype="<u2").tobytes()
    out = io.BytesIO()
    head.save_as(out, enforce_file_format=True)
    return out.getvalue()


def dicomwise(data: bytes, draw: random.Random) -> bytes:
    """Elements of the header replaced where their text stands."""
    raw = data
    for _ in range(draw.choice([1, 2])):
        old = draw.choice(
            [
                b"MONOCHROME2 ",
                b"CT",
                b"1\\0\\0\\0\\1\\0 ",
                b"1\\1 ",
                b"-1024 ",
                b"0\\0\\1 ",
                b"\x08\x00",
                b"\x10\x00",
                b"\x0c\x00",
                b"US",
                b"DS",
                b"OW",
            ]
        )
        new = draw.choice(
            [
                b"PALETTE COLOR"[: len(old)],
                b"MONOCHROME1 ",
                b"\xff" * len(old),
                b"\x00" * len(old),
                b"x" * len(old),
                b"1e9",
                b"nan",
                b"SQ",
                b"UN",
            ]
        )
        parts = raw.split(old)
        k = draw.randrange(len(parts))
        raw = old.join(parts[:k]) + (new if k else b"") + old.join(parts[k:])
    return raw


def _picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(out, kind)
    return out.getvalue()


def _nifti(packed: bool) -> bytes:
    data = nib.Nifti1Image(
        np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.eye(4)
    ).to_bytes()
    return gzip.compress(data, 1) if packed else data


def _npz() -> bytes:
    out, rng = io.BytesIO(), np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 6), ("val", 4), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez(out, **arrays)
    return out.getvalue()


PLAN = {
    "data": {"path": "phantoms", "size": 32, "limit": 60},
    "network": {
        "arch": "tiny",
        "layers": ["conv"],
        "train": {"epochs": 2, "lr": 0.1},
        "arguments": {"a": 1},
    },
    "eps": ["4/255", 0.1, "2 levels"],
    "attacks": ["fgsm", {"name": "pgd", "steps": 3}],
    "objectives": ["plain", {"name": "hfc", "weight": "auto"}],
    "schedule": {"steps": 3},
    "detectors": ["kd", "maha"],
    "split": {"detector_training": 0.4, "calibration": 0.2, "test": 0.4, "most": 12},
    "seed": 0,
}


def read_plan(path: Path) -> object:
    plan = load_plan(path)
    return [parse_eps(e, CASES) for e in plan.eps]


CASES = phantoms(shape=(16, 16), counts={"train": 4, "val": 4, "test": 4})


def read_dicom(path: Path) -> object:
    return patient_of(path), read_image(path).values


def read_run(path: Path) -> object:
    """The documents of a finished run."""
    match path.suffix:
        case ".parquet":
            return len(_table(path.parent))
        case ".json" if path.name == "sanity_checks.json":
            return _sanity_checks(path)
        case ".json" if path.name.startswith(".feathide"):
            return held_plan(path.parent)
        case ".json":
            return Store(path.parent).load_json(path.stem)
    store = Store(path.parent)
    return store.done(path.stem), store.sound(path.stem), store.load(path.stem)


def _stored() -> bytes:
    from feathide.execution.store import _packed

    return _packed("a", {"x": np.arange(6.0), "id": np.array(["a", "b"])}, None)


def _table_file() -> bytes:
    row = {
        c: [0.5]
        if c in ("eps", "value", "low", "high")
        else [1]
        if c in ("n", "seed")
        else ["x"]
        for c in COLUMNS
    }
    out = io.BytesIO()
    pd.DataFrame(row).to_parquet(out)
    return out.getvalue()


def manifest(folder: Path) -> bytes:
    """Pictures in ``folder`` and the CSV that lists them."""
    lines = ["path,label,patient,split,id"]
    for k in range(12):
        Image.fromarray(
            np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        ).save(folder / f"{k}.png")
        lines.append(
            f"{k}.png,{'ab'[k % 2]},p{k},{('train', 'val', 'test')[k // 2 % 3]},case {k}"
        )
    return "\n".join(lines).encode() + b"\n"


def targets(folder: Path) -> list[Target]:
    """Every reader with a file that it reads without complaint."""
    weights = {"a.weight": torch.ones(2, 2)}
    pickled = io.BytesIO()
    torch.save(weights, pickled)
    sanity_checks = json.dumps(
        [dict.fromkeys(("name", "status", "detail", "raised_if", "why", "do"), "x")]
    ).encode()
    seal = {"content": [1], "sha256": hashlib.sha256(b"[1]").hexdigest()}
    return [
        Target("plan.yaml", yaml.safe_dump(PLAN).encode(), read_plan, textwise),
        Target("cases.csv", manifest(folder), load_cases, textwise),
        Target("cases.npz", _npz(), load_cases, zipwise),
        Target("a.dcm", dicom(), read_dicom, dicomwise),
        Target("b.dcm", dicom(deflated=True), read_dicom, bytewise),
        Target("a.nii", _nifti(False), read_image, niftiwise),
        Target("b.nii.gz", _nifti(True), read_image, unpacked),
        *(
            Target(f"a.{kind}", _picture(kind), read_image, bytewise)
            for kind in ("png", "jpeg", "tiff", "bmp", "gif", "webp")
        ),
        Target("stored.npz", _stored(), read_run, sealed),
        Target("results.parquet", _table_file(), read_run, bytewise),
        Target("sanity_checks.json", sanity_checks, read_run, textwise),
        Target("document.json", json.dumps(seal).encode(), read_run, textwise),
        Target(".feathide.json", b'{"plan": "0123456789abcdef"}', read_run, textwise),
        Target(
            "w.safetensors",
            save(weights, {"feathide": "{}"}),
            lambda p: (read_weights(p), read_about(p)),
            bytewise,
        ),
        Target("w.pt", pickled.getvalue(), read_weights, bytewise),
    ]


def survives(target: Target, folder: Path, seed: int) -> bool:
    """``accepts`` of a spoilt copy."""
    draw = random.Random(seed)
    return accepts(
        target,
        folder,
        draw.choice([bytewise, target.spoil, target.spoil])(target.seed, draw),
    )


def accepts(target: Target, folder: Path, data: bytes) -> bool:
    """Whether an input is read (True) or refused in one sentence (False); anything else is
    raised.
    """
    path = folder / target.name
    path.write_bytes(data)
    with limited():
        try:
            target.read(path)
        except InputError as error:
            text = str(error)
            assert "\n" not in text.strip() and len(text) < 6000, text[:500]
            return False
    return True


class Hang(BaseException):
    """No reader may catch this."""


@contextmanager
def limited() -> Iterator[None]:
    """Ends what takes longer than ``HANG`` seconds."""

    def ring(*_: object) -> None:
        raise Hang(f"no end after {HANG} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
