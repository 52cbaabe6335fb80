"""Cases: the images of a study, one row per image, with label, patient and split.

N cases, K classes or F findings, C channels, S the spatial axes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from feathide.errors import expected, few
from feathide.types import Box

__all__ = ["SPLITS", "Cases", "Pixels", "Skipped", "check_rows", "few"]

SPLITS = ("train", "val", "test")


class Pixels(Protocol):
    """Where the images of a table come from; row i of the table is row i here."""

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The images of ``rows`` in box units, float32 (n, C, *S)."""

    def take(self, rows: np.ndarray) -> "Pixels":
        """The source of these rows only."""


@dataclass(frozen=True)
class Skipped:
    """An image that was left out on request, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Cases:
    """The images of a study, one row each, with labels, patients and splits.

    Args:
        name: What tables and reports call the data.
        ids: The id of each image (N,), unique.
        labels: Classes (N,) int64 in 0..K-1, or findings (N, F) of 0 and 1.
        patients: The patient of each image (N,); an unknown patient is the image's own id.
        splits: "train", "val" or "test" (N,).
        class_names: The names of the K classes or F findings.
        box: The least and the greatest valid value (lo, hi).
        step: The distance between neighbouring stored values in box units: 1/255 for 8-bit pictures
            in [0, 1], the slope for clinical files, 0 for stored floats.
        unit: What the values are measured in, such as "HU" or "grey level".
        channels: The number of channels C.
        shape: The spatial shape S, such as (H, W) or (D, H, W).
        hashes: The SHA-256 of each image as stored (N,).
        pixels: What reads the images; see ``images``.
        paths: The file of each image (N,); empty where the images come from one array.
        spacing: Millimetres per voxel along each axis, where known.
        skipped: The files that were left out, with the reasons.
        orientation: The side of the patient that each axis runs towards (NIfTI: RAS, ...; DICOM:
            SPL, ...), where the files tell.
        notes: What was assumed: the layout, unused columns, unknown patients, ...

    Raises:
        InputError: Rows that do not fit together, ids that occur twice, labels out of range.
    """

    name: str
    ids: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    splits: np.ndarray
    class_names: tuple[str, ...]
    box: Box
    step: float
    unit: str
    channels: int
    shape: tuple[int, ...]
    hashes: np.ndarray
    pixels: Pixels = field(repr=False)
    paths: tuple[str, ...] = ()
    spacing: tuple[float, ...] | None = None
    skipped: tuple[Skipped, ...] = ()
    orientation: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.ids)
        for name in ("labels", "patients", "splits", "hashes"):
            if len(getattr(self, name)) != n:
                raise expected(
                    f"{name} must have one row per case ({n})",
                    got=len(getattr(self, name)),
                    do="check the data",
                )
        if n == 0:
            raise expected(
                f"{self.name} must hold images",
                got="none",
                do="check the path and the file types",
            )
        check_rows(self.ids, self.labels, self.splits, self.class_names)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    def images(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """The images of ``rows`` in box units, float32 (n, C, *S); files are read when they are
        asked for.
        """
        return self.pixels(np.asarray(rows, dtype=np.int64))

    def where(self, split: str) -> np.ndarray:
        """The rows of one split, (n,) int64."""
        _check_splits(np.array([split]))
        return np.flatnonzero(self.splits == split)

    def take(self, rows: np.ndarray) -> "Cases":
        """The cases of these rows only."""
        rows = np.asarray(rows, dtype=np.int64)
        columns = {
            key: getattr(self, key)[rows]
            for key in ("ids", "labels", "patients", "splits", "hashes")
        }
        paths = tuple(self.paths[r] for r in rows) if self.paths else ()
        return replace(self, pixels=self.pixels.take(rows), paths=paths, **columns)

    @cached_property
    def digest(self) -> str:
        """sha256 of all that can change a result: images, labels, patients, splits, box, step;
        not the rows' order.
        """
        sha = hashlib.sha256(
            repr(
                (
                    self.class_names,
                    tuple(self.box),
                    self.step,
                    self.channels,
                    tuple(self.shape),
                )
            ).encode()
        )
        for row in np.argsort(self.ids):
            label = self.labels[row].tolist()
            sha.update(
                repr(
                    (
                        *(
                            str(c[row])
                            for c in (self.ids, self.patients, self.splits, self.hashes)
                        ),
                        label,
                    )
                ).encode()
            )
        return sha.hexdigest()


def check_rows(
    ids: np.ndarray, labels: np.ndarray, splits: np.ndarray, class_names: Sequence[str]
) -> None:
    """Refuse doubled ids, unknown splits and labels out of range."""
    _check_ids(ids)
    _check_splits(splits)
    _check_labels(labels, class_names)


def _check_ids(ids: np.ndarray) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise expected(
            "ids must be unique",
            got=f"{few(values[counts > 1])} more than once",
            do="give each image its own id",
        )


def _check_splits(splits: np.ndarray) -> None:
    wrong = sorted(set(map(str, splits)) - set(SPLITS))
    if wrong:
        raise expected("split must be train, val or test", got=few(wrong), do="rename it")


def _check_labels(labels: np.ndarray, class_names: Sequence[str]) -> None:
    k = len(class_names)
    if labels.ndim == 2 and labels.shape[1] != k:
        raise expected(
            f"labels must have one column per finding ({k})",
            got=labels.shape[1],
            do="check class_names",
        )
    top = 2 if labels.ndim == 2 else k
    wrong = labels[(labels < 0) | (labels >= top)]
    if wrong.size:
        what = f"labels must lie in 0..{top - 1}"
        raise expected(
            what,
            got=few(np.unique(wrong)),
            do=f"correct the labels or name all classes (now {', '.join(class_names)})",
        )
