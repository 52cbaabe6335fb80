"""Images in memory: a study from plain arrays, and the npz files of the MedMNIST layout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import expected, first_line
from ..types import Box
from .cases import SPLITS, Cases, few
from .guard import guarded, load_arrays, names_up_to
from .reading import Reading, read_table
from .split import thin
from .stored import box_of, content_hash, grid_of, resize, to_values, with_channels

__all__ = ["Memory", "cases_of_arrays", "read_npz"]


EMPTY = np.zeros(0)


@dataclass(frozen=True, eq=False)
class Memory:
    """Images held in memory as stored, (N, C, *S)."""

    stored: np.ndarray
    slope: float

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return to_values(self.stored[rows], self.slope, 0.0)

    def take(self, rows: np.ndarray) -> "Memory":
        return replace(self, stored=self.stored[rows])


def cases_of_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    splits: np.ndarray | Sequence[str],
    name: str = "arrays",
    ids: np.ndarray | Sequence[str] | None = None,
    patients: np.ndarray | Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    box: Box | None = None,
) -> Cases:
    """A study from arrays: images (N, C, *S) as stored, labels (N,), (N, 1) or (N, F) of 0 and 1.

    uint8 and uint16 are shown in [0, 1] with a step of one grey level; floats must lie in ``box`` (default [0, 1]);
    other whole numbers are taken as they are, in ``box`` or the range of the data. With ``box`` all stored numbers
    are taken as they are. Raises InputError for NaN and for values outside the box.
    """
    if len(images) == 0:
        raise expected(f"{name} must hold images", got="none", do="check the data")
    slope, legal, unit = grid_of(images.dtype, box)
    ids = np.array([f"{i:06d}" for i in range(len(images))]) if ids is None else np.asarray(ids, dtype=str)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        bad = ids[~np.isfinite(images).all(axis=tuple(range(1, images.ndim)))]
        raise expected(
            f"images of {name} must be finite", got=f"NaN or infinity in {few(bad)}", do="repair or remove them"
        )
    labels = _as_labels(labels)
    k = labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=0)) + 1
    return Cases(
        name=name,
        ids=ids,
        labels=labels,
        patients=ids if patients is None else np.asarray(patients, dtype=str),
        splits=np.asarray(splits, dtype=str),
        class_names=tuple(class_names) if class_names else names_up_to(k),
        box=box_of(to_values(np.array([[images.min(), images.max()]]), slope, 0.0), legal, name),
        step=slope if images.dtype.kind in "ui" else 0.0,
        unit=unit,
        channels=images.shape[1],
        shape=images.shape[2:],
        hashes=np.array([content_hash(image) for image in images]),
        pixels=Memory(images, slope),
    )


def _as_labels(raw: np.ndarray) -> np.ndarray:
    labels = np.asarray(raw)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    numbers = labels.ndim in (1, 2) and labels.dtype.kind in "uibf" and bool(np.isfinite(labels).all())
    if not numbers or (labels != np.floor(labels)).any():
        got = f"{labels.dtype} of shape {labels.shape}"
        raise expected(
            "labels must be whole numbers (N,), (N, 1) or (N, findings)", got=got, do="number the classes 0, 1, ..."
        )
    return labels.astype(np.int64)


def read_npz(path: Path, name: str, how: Reading) -> Cases:
    """A file of the MedMNIST layout: ``train_images``, ``train_labels``, and the same for val and test.

    Images are N x H x W, N x H x W x 3, N x D x H x W, or any of them with a last axis of one channel; labels N, N x
    1, or N x findings. Patients come from arrays ``train_patient``, ... or from a CSV with the columns split, index
    and patient (or group): ``how.patients``, or ``NAME.meta.csv`` beside the file. Nothing is ever unpickled.
    """
    arrays = _load(path)
    present = [s for s in SPLITS if arrays.get(f"{s}_images", EMPTY).size]
    if not present:
        raise expected(
            f"{path} must hold train_images, train_labels, ...", got=few(sorted(arrays)), do="rename the arrays"
        )
    labels, images = _as_labels(_column(arrays, present, "labels", path)), _column(arrays, present, "images", path)
    _channels_first(images[:1], path)
    lengths = [len(arrays[f"{s}_images"]) for s in present]
    splits = np.repeat(present, lengths)
    ids = np.array([f"{s}-{i:05d}" for s, n in zip(present, lengths, strict=True) for i in range(n)])
    patients = _patients(arrays, present, ids, path, how)
    rows = thin(labels, splits, limit=how.limit, seed=how.seed)
    images = _channels_first(images[rows], path)
    if how.size is not None or how.channels is not None:
        images = np.stack([resize(with_channels(image, how.channels), how.size) for image in images])
    return cases_of_arrays(
        images,
        labels[rows],
        splits=splits[rows],
        name=name,
        ids=ids[rows],
        patients=patients[rows],
        class_names=how.class_names,
        box=how.box,
    )


def _load(path: Path) -> dict[str, np.ndarray]:
    def read() -> dict[str, np.ndarray]:
        try:
            with path.open("rb") as stream:
                return load_arrays(stream)
        except Exception as error:  # the readers raise whatever they happen to meet
            what = f"{path} must be a readable npz file of plain arrays"
            raise expected(what, got=first_line(error), do="save it again") from error

    return guarded(path, read)


def _column(arrays: dict[str, np.ndarray], present: list[str], key: str, path: Path) -> np.ndarray:
    """The arrays ``SPLIT_key`` of all splits, one below the other."""
    rows = {s: len(arrays[f"{s}_images"]) for s in present}
    for s, n in rows.items():
        if len(arrays.get(f"{s}_{key}", ())) != n:
            got = len(arrays[f"{s}_{key}"]) if f"{s}_{key}" in arrays else "none"
            raise expected(f"{path} must hold {n} rows of {s}_{key}", got=got, do="give one per image")
    kinds = {(arrays[f"{s}_{key}"].shape[1:], _type(arrays[f"{s}_{key}"], key)) for s in present}
    if len(kinds) > 1:
        got = few([f"{shape} {kind}" for shape, kind in sorted(kinds)])
        raise expected(f"the {key} of all splits of {path} must have one shape and type", got=got, do="convert them")
    return np.concatenate([arrays[f"{s}_{key}"] for s in present])


def _type(array: np.ndarray, key: str) -> str:
    """What must agree across splits: of images the whole type, since the grey levels of uint8 and uint16 differ by a factor of 257; of labels and
    patients the kind, since the width of a number or a text changes nothing."""
    return array.dtype.newbyteorder("=").name if key == "images" else array.dtype.kind


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    """(N, C, *S) from (N, *S) or (N, *S, C) with C = 1 or 3."""
    if images.ndim in (4, 5) and images.shape[-1] in (1, 3):
        return np.moveaxis(images, -1, 1)
    if images.ndim in (3, 4):
        return images[:, None]
    raise expected(f"images of {path} must be N x H x W (x 3) or N x D x H x W", got=images.shape, do="reshape them")


def _patients(
    arrays: dict[str, np.ndarray], present: list[str], ids: np.ndarray, path: Path, how: Reading
) -> np.ndarray:
    if how.patients is None and any(f"{s}_patient" in arrays for s in present):
        return _column(arrays, present, "patient", path).ravel().astype(str)
    sidecar = path.with_suffix(".meta.csv") if how.patients is None else how.patients
    if how.patients is None and not sidecar.is_file():
        return ids
    rows = read_table(sidecar, needs=("split", "index"))
    column = "patient" if "patient" in rows[0] else "group"
    for row in rows:
        if not row["index"].strip().isdecimal() or len(row["index"]) > 12:
            raise expected(f"index in {sidecar} must be a number", got=repr(row["index"]), do="count each split from 0")
    known = {f"{row['split']}-{int(row['index']):05d}": row.get(column) or "" for row in rows}
    return np.array([known.get(i) or i for i in ids])
