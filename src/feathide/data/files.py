"""Images on disk: each file is read once, checked and hashed, and read again when it is asked
for.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from feathide.data.cases import SPLITS, Cases, Skipped, check_rows
from feathide.data.columns import Reading, may_be_image, unknown_patients
from feathide.data.pictures import is_picture, read_picture
from feathide.data.split import by_hash, check_classes, check_patients, thin
from feathide.errors import InputError, expected, few
from feathide.formats.dicom import is_dicom, patient_of, read_dicom, read_series
from feathide.formats.nifti import is_nifti, read_nifti
from feathide.formats.safety import guarded
from feathide.formats.stored import StoredImage, box_of, content_hash
from feathide.types import Box

__all__ = [
    "Entry",
    "Files",
    "cases_of_files",
    "is_image",
    "is_picture",
    "load",
    "read_image",
]

OFF_GRID = 0.02  # of a step: float32 cannot place large values of small steps more exactly


@dataclass(frozen=True)
class Entry:
    """One row of a study on disk: where the image is and what is known about it; an empty patient
    is unknown.
    """

    path: Path
    id: str
    label: int | tuple[int, ...]
    patient: str
    split: str


@dataclass(frozen=True)
class Files:
    """Images read from files when they are asked for."""

    paths: tuple[Path, ...]
    how: Reading

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([load(self.paths[row], self.how).values for row in rows])

    def take(self, rows: np.ndarray) -> "Files":
        return replace(self, paths=tuple(self.paths[row] for row in rows))


@dataclass(frozen=True)
class Facts:
    """What is kept of a file after it was checked."""

    hash: str
    range: Box
    # channels, shape, step, unit, orientation: the same for all
    kind: tuple[int, tuple[int, ...], float, str, str]
    legal: Box | None
    spacing: tuple[float, ...] | None


def is_image(path: Path) -> bool:
    """Whether a file looks like something that this package can read."""
    return is_picture(path) or is_nifti(path) or is_dicom(path)


def _check_slices(folder: Path) -> None:
    """Refuse a series beside which lies a file of an unknown kind: it may be a slice."""
    odd = [
        p.name
        for p in sorted(folder.iterdir())
        if p.is_file() and may_be_image(p) and not is_image(p)
    ]
    if odd:
        raise expected(
            f"{folder} must hold DICOM files only",
            got=few(odd),
            do="move the other files out of it",
        )


def read_image(path: Path, box: Box | None = None) -> StoredImage:
    """One file, or the folder of one DICOM series, as it is stored: pictures in [0, 1], clinical
    files in their own units.

    ``box`` declares the legal values, for pictures in stored numbers. Raises InputError, with the
    file's name, if it is missing, truncated or no image."""
    return guarded(path, lambda: _read(path, box))


def _read(path: Path, box: Box | None) -> StoredImage:
    if not os.path.exists(path):
        raise expected(
            f"{path} must be an image file", got="no such file", do="correct the path"
        )
    if is_picture(path):
        return read_picture(path, box)
    if path.is_dir():
        _check_slices(path)
    image = (
        read_series(path)
        if path.is_dir()
        else read_nifti(path)
        if is_nifti(path)
        else read_dicom(path)
    )
    return image if box is None else replace(image, legal=box)


def load(path: Path, how: Reading) -> StoredImage:
    """One file with the channels and size that were asked for."""
    return guarded(path, lambda: _read(path, how.box).on(how.size, how.channels))


def cases_of_files(
    entries: Sequence[Entry], *, name: str, class_names: Sequence[str], how: Reading
) -> Cases:
    """A study on disk: the table is checked, then every file is read once, in order; the first
    error ends it.

    With ``how.skip_bad``, files that cannot be read and those whose shape or grey scale differs
    from most others are left out and listed in ``skipped``."""
    entries, notes = _checked(entries, name, class_names, how)
    found, skipped = _scan(_chosen(entries, how), how)
    if not found:
        raise expected(
            f"{name} must hold readable images",
            got=f"{len(skipped)} bad ones",
            do=f"see: {skipped[0].reason}",
        )
    kept, facts = [entry for entry, _ in found], [fact for _, fact in found]
    channels, shape, step, unit, orientation = facts[0].kind
    box = box_of(np.array([f.range for f in facts]), facts[0].legal, name)
    _check_grid(found, box, step)
    spacings = [f.spacing for f in facts if f.spacing is not None]
    spacing = None
    if len(spacings) == len(facts):
        spacing = tuple(np.median(spacings, axis=0).tolist())
    return Cases(
        name=name,
        ids=np.array([e.id for e in kept]),
        labels=np.array([e.label for e in kept], dtype=np.int64),
        patients=np.array([e.patient or e.id for e in kept]),
        splits=np.array([e.split for e in kept]),
        class_names=tuple(class_names),
        box=box,
        step=step,
        unit=unit,
        channels=channels,
        shape=shape,
        hashes=np.array([f.hash for f in facts]),
        pixels=Files(tuple(e.path for e in kept), how),
        paths=tuple(str(e.path) for e in kept),
        spacing=spacing,
        skipped=tuple(skipped),
        orientation=orientation,
        notes=notes,
    )


def _checked(
    entries: Sequence[Entry], name: str, class_names: Sequence[str], how: Reading
) -> tuple[list[Entry], tuple[str, ...]]:
    """The entries with patients and splits, and what is to be noted of these; refuses a table
    that is no study.
    """
    if not how.skip_bad:
        # a wrong format or size is told before all headers are read
        load(entries[0].path, how)
    entries = _with_patients(entries, how)
    notes = unknown_patients([e.patient for e in entries])
    if not any(e.split for e in entries):
        shares = ", ".join(
            f"{part} {share:g}" for part, share in zip(SPLITS, how.fractions, strict=True)
        )
        notes += (f"splits: drawn by patient with seed {how.seed}, {shares}",)
    entries = _with_splits(entries, name, how)
    labels = np.array([e.label for e in entries], dtype=np.int64)
    splits = np.array([e.split for e in entries])
    ids = np.array([e.id for e in entries])
    patients = np.array([e.patient or e.id for e in entries])
    check_rows(ids, labels, splits, class_names)
    check_classes(labels, class_names, name)
    check_patients(patients, ids=ids, splits=splits, name=name)
    return entries, notes


def _chosen(entries: Sequence[Entry], how: Reading) -> list[Entry]:
    """At most ``how.limit`` entries of each split."""
    labels = np.array([e.label for e in entries], dtype=np.int64)
    splits = np.array([e.split for e in entries])
    return [entries[row] for row in thin(labels, splits, limit=how.limit, seed=how.seed)]


def _with_patients(entries: Sequence[Entry], how: Reading) -> list[Entry]:
    """The entries with the patient that the DICOM header names, where nothing else does."""

    def patient(entry: Entry) -> str:
        known = (
            entry.patient
            or is_picture(entry.path)
            or is_nifti(entry.path)
            or not entry.path.exists()
        )
        return entry.patient if known else patient_of(entry.path, keep=how.keep_patient_ids)

    return [replace(entry, patient=patient(entry)) for entry in entries]


def _with_splits(entries: Sequence[Entry], name: str, how: Reading) -> list[Entry]:
    """The entries as they are if all name a split, hashed by patient if none does."""
    without = [e.id for e in entries if not e.split]
    if not without:
        return list(entries)
    if len(without) < len(entries):
        raise expected(
            f"all cases of {name} must have a split, or none",
            got=f"none for {few(without)}",
            do="fill it in",
        )
    parts = by_hash(
        [e.patient or e.id for e in entries],
        dict(zip(SPLITS, how.fractions, strict=True)),
        seed=how.seed,
    )
    return [replace(e, split=str(part)) for e, part in zip(entries, parts, strict=True)]


def _scan(
    entries: Sequence[Entry], how: Reading
) -> tuple[list[tuple[Entry, Facts]], list[Skipped]]:
    """The readable files that are of one kind, and the others."""
    found: list[tuple[Entry, Facts]] = []
    skipped: list[Skipped] = []
    for entry in entries:
        try:
            found.append((entry, guarded(entry.path, partial(_facts, entry.path, how))))
        except InputError as error:
            if not how.skip_bad:
                raise
            skipped.append(Skipped(str(entry.path), str(error)))
        if not how.skip_bad and found[-1][1].kind != found[0][1].kind:
            raise _differs(found[-1], found[0])
    usual = Counter(fact.kind for _, fact in found).most_common(1)
    model = next((pair for pair in found if pair[1].kind == usual[0][0]), None)
    skipped += [
        Skipped(str(pair[0].path), str(_differs(pair, model)))
        for pair in found
        if model and pair[1].kind != model[1].kind
    ]
    return [pair for pair in found if model and pair[1].kind == model[1].kind], skipped


def _facts(path: Path, how: Reading) -> Facts:
    image = _read(path, how.box).on(how.size, how.channels)
    with np.errstate(all="ignore"):  # what overflows is not finite
        values = image.values
    if not np.isfinite(values).all():
        got = f"{np.count_nonzero(~np.isfinite(values))} voxels of NaN or infinity"
        raise expected(
            f"{path} must be finite", got=got, do="repair it or pass skip_bad=True"
        )
    kind = (len(values), values.shape[1:], image.step, image.unit, image.orientation)
    span = (float(values.min()), float(values.max()))
    return Facts(content_hash(image.stored), span, kind, image.legal, image.spacing)


def _differs(odd: tuple[Entry, Facts], model: tuple[Entry, Facts]) -> InputError:
    names = ("channels", "shape", "step of grey levels", "unit", "orientation")
    what, a, b = next(
        row
        for row in zip(names, odd[1].kind, model[1].kind, strict=True)
        if row[1] != row[2]
    )
    do = {"channels": "pass channels=1 or 3", "shape": "pass size=..."}.get(
        what, "convert it"
    )
    return expected(
        f"{odd[0].path} must have the {what} of {model[0].path.name} ({b or 'none'})",
        got="none" if a == "" else a,
        do=f"{do}, or skip_bad=True",
    )


def _check_grid(found: Sequence[tuple[Entry, Facts]], box: Box, step: float) -> None:
    """Refuse files whose grey levels do not lie on the grid that starts at the floor of the
    box.
    """
    for entry, facts in found:
        offset = (facts.range[0] - box[0]) / step if step else 0.0
        if abs(offset - round(offset)) > OFF_GRID:
            what = f"{entry.path} must have grey levels at {box[0]:g} + k * {step:g}"
            raise expected(
                what,
                got=f"{facts.range[0]:g}",
                do="start the box on a grey level, or convert the file",
            )
