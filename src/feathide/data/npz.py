"""The npz files of the MedMNIST layout."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from feathide.data.arrays import checked_cases, labels_of
from feathide.data.cases import SPLITS, Cases
from feathide.data.columns import (
    NEAR,
    SPLIT_NAMES,
    Reading,
    check_columns,
    patients_of,
    plain,
    read_table,
    unknown_patients,
)
from feathide.data.split import thin
from feathide.errors import expected, few, first_line
from feathide.formats.safety import check_not_one_hot, guarded, load_arrays
from feathide.formats.stored import resize, with_channels

__all__ = [
    "read_npz",
]

EMPTY = np.zeros(0)
KEYS = {  # what the arrays of a split are called here and by others
    **dict.fromkeys(("x", "data", *NEAR["path"].split()), "images"),
    **dict.fromkeys(("label", *NEAR["label"].split()), "labels"),
    **dict.fromkeys(("patient", *NEAR["patient"].split()), "patient"),
}


def read_npz(path: Path, name: str, how: Reading) -> Cases:
    """A file of the MedMNIST layout: ``train_images``, ``train_labels``, and the same for val and
    test.

    Images are N x H x W, N x H x W x 3, N x D x H x W, any of them with a last axis of one
    channel, or channels first where that can be told; labels N, N x 1, or N x findings. Patients
    come from arrays ``train_patient``, ... or from a CSV with the columns split, index and
    patient (or group): ``how.patients``, or ``NAME.meta.csv`` beside the file. Nothing is ever
    unpickled."""
    arrays = _load(path)
    _check_names(arrays, path)
    present = [s for s in SPLITS if arrays.get(f"{s}_images", EMPTY).size]
    if not present:
        raise expected(
            f"{path} must hold train_images, train_labels, ...",
            got=few(sorted(arrays)),
            do="rename the arrays",
        )
    labels, images = (
        labels_of(_column(arrays, present, "labels", path)),
        _column(arrays, present, "images", path),
    )
    check_not_one_hot(labels, f"labels of {path}")
    layout = _layout(images.shape[1:], path)
    lengths = [len(arrays[f"{s}_images"]) for s in present]
    splits = np.repeat(present, lengths)
    ids = np.array(
        [f"{s}-{i:05d}" for s, n in zip(present, lengths, strict=True) for i in range(n)]
    )
    patients, notes = _patients(arrays, present, ids, path, how)
    rows = thin(labels, splits, limit=how.limit, seed=how.seed)
    images = _channels_first(images[rows], layout)
    if how.size is not None or how.channels is not None:
        images = np.stack(
            [resize(with_channels(image, how.channels), how.size) for image in images]
        )
    cases = checked_cases(
        images,
        labels[rows],
        splits[rows],
        name,
        ids[rows],
        patients[rows],
        how.class_names,
        how.box,
    )
    unused = sorted(
        set(arrays)
        - {f"{s}_{key}" for s in present for key in ("images", "labels", "patient")}
    )
    left_out = (f"arrays not used: {few(unused)}",) if unused else ()
    return replace(cases, notes=(f"layout: {layout}", *left_out, *notes))


def _load(path: Path) -> dict[str, np.ndarray]:
    def read() -> dict[str, np.ndarray]:
        try:
            with path.open("rb") as stream:
                return load_arrays(stream)
        except Exception as error:  # the readers raise whatever they happen to meet
            what = f"{path} must be a readable npz file of plain arrays"
            raise expected(what, got=first_line(error), do="save it again") from error

    return guarded(path, read)


def _column(
    arrays: dict[str, np.ndarray], present: list[str], key: str, path: Path
) -> np.ndarray:
    """The arrays ``SPLIT_key`` of all splits, one below the other."""
    rows = {s: len(arrays[f"{s}_images"]) for s in present}
    for s, n in rows.items():
        if len(arrays.get(f"{s}_{key}", ())) != n:
            got = len(arrays[f"{s}_{key}"]) if f"{s}_{key}" in arrays else "none"
            raise expected(
                f"{path} must hold {n} rows of {s}_{key}", got=got, do="give one per image"
            )
    kinds = {
        (arrays[f"{s}_{key}"].shape[1:], _type(arrays[f"{s}_{key}"], key)) for s in present
    }
    if len(kinds) > 1:
        got = few([f"{shape} {kind}" for shape, kind in sorted(kinds)])
        raise expected(
            f"the {key} of all splits of {path} must have one shape and type",
            got=got,
            do="convert them",
        )
    return np.concatenate([arrays[f"{s}_{key}"] for s in present])


def _type(array: np.ndarray, key: str) -> str:
    """What must agree across splits: of images the whole type, since the grey levels of uint8 and
    uint16 differ by a factor of 257; of labels and patients the kind, since the width of a number
    or a text changes nothing.
    """
    return array.dtype.newbyteorder("=").name if key == "images" else array.dtype.kind


@dataclass(frozen=True)
class _Layout:
    """Which axes of an array of images are which; ``channels`` is the axis of the channels, 0 if
    there is none.
    """

    axes: str
    channels: int

    def __str__(self) -> str:
        return self.axes


# pixels along an axis of a picture, from which on an axis of 2 to 4 beside it is likely to be the
# channels
LEAST = 8


def _layout(shape: tuple[int, ...], path: Path) -> _Layout:
    """The layout of images of ``shape`` (without N): H x W, H x W x C, C x H x W, D x H x W, D x
    H x W x C or C x D x H x W with C = 1 or 3.

    Raises InputError where several are as likely: a last axis of 1 tells a volume.
    """
    first, last, pair = shape[0], shape[-1], len(shape) == 3
    least = min(shape[1:-1], default=0)
    if len(shape) == 2:
        return _Layout("N x H x W", 0)
    if len(shape) not in (3, 4):
        raise expected(
            f"images of {path} must be N x H x W (x 3) or N x D x H x W",
            got=shape,
            do="reshape them",
        )
    spatial = "H x W" if pair else "D x H x W"
    if last in (1, 3) and (first not in (1, 3) or (last == 1 and first == 3 and not pair)):
        return _Layout(f"N x {spatial} x {last}", len(shape))
    do = "move the channels to the last axis; mark a volume by a last axis of length 1"
    if (
        last not in (1, 3)
        and first in (1, 3)
        and (not pair or first == 1 or min(shape[1:]) > first)
    ):
        return _Layout(f"N x {first} x {spatial} (channels first)", 1)
    if last in (1, 3) or first in (1, 3):
        raise expected(
            f"images of {path} must be N x {spatial} x 1 or 3",
            got=f"{shape}, which could be several",
            do=do,
        )
    alpha = (last in (2, 4) and min(first, least) >= LEAST) or (
        first in (2, 4) and min(least, last) >= LEAST
    )
    if alpha or not pair:
        do = "drop the alpha channel or choose 1 or 3 channels" + (
            "; mark a volume by a last axis of length 1" if pair else ""
        )
        raise expected(f"images of {path} must be N x {spatial} x 1 or 3", got=shape, do=do)
    return _Layout("N x D x H x W (volumes)", 0)


def _channels_first(images: np.ndarray, layout: _Layout) -> np.ndarray:
    """(N, C, *S) from images of ``layout``."""
    return np.moveaxis(images, layout.channels, 1) if layout.channels else images[:, None]


def _check_names(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Refuse an array that is likely to be meant as images, labels or patients of a split, and is
    not read.
    """
    for name in arrays:
        meant = _meant(name)
        if meant and meant not in arrays:
            raise expected(
                f"an array of {path} must be named {meant}",
                got=name,
                do="rename or remove it",
            )


def _meant(name: str) -> str:
    """The array that a name such as valid_images, X_train or patients is likely to stand for, or
    nothing.
    """
    if KEYS.get(plain(name)) == "patient":
        return "train_patient"
    start, _, end = name.partition("_")
    split, key = (start, end) if start.casefold() in SPLIT_NAMES else (end, start)
    known = SPLIT_NAMES.get(split.casefold()), KEYS.get(plain(key))
    return "_".join(part for part in known if part) if all(known) else ""


def _patients(
    arrays: dict[str, np.ndarray],
    present: list[str],
    ids: np.ndarray,
    path: Path,
    how: Reading,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The patient of each image, the id where nobody knows, and what is to be said of it."""
    sidecar = path.with_suffix(".meta.csv") if how.patients is None else how.patients
    if how.patients is None and any(f"{s}_patient" in arrays for s in present):
        column = _column(arrays, present, "patient", path).ravel()
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise expected(
                f"patients of {path} must be known",
                got="NaN",
                do="give them a number, or leave the array out",
            )
        source, found = (
            "the arrays",
            [patient.strip() for patient in column.astype(str).tolist()],
        )
    elif how.patients is None and not sidecar.is_file():
        return ids, unknown_patients([""] * len(ids))
    else:
        source, found = sidecar.name, _listed(sidecar, ids)
    patients = np.array([patient or id for patient, id in zip(found, ids, strict=False)])
    return patients, (f"patients: from {source}", *unknown_patients(found))


def _listed(table: Path, ids: np.ndarray) -> list[str]:
    """The patient of each image from a table with the columns split, index and patient (or
    group).
    """
    rows = read_table(table, needs=("split", "index"))
    column = "patient" if "patient" in rows[0] or "group" not in rows[0] else "group"
    check_columns(table, list(rows[0]), [column])
    for row in rows:
        if not row["index"].isdecimal() or len(row["index"]) > 12:
            raise expected(
                f"index in {table} must be a number",
                got=repr(row["index"]),
                do="count each split from 0",
            )
    known = [(f"{row['split']}-{int(row['index']):05d}", row[column]) for row in rows]
    return patients_of(
        table,
        known,
        ids.tolist(),
        how="name the splits train, val and test, and count each from 0",
    )
