"""Images on disk: each file is read once, checked and hashed, and read again when it is asked
for.
"""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from feathide.data.cases import SPLITS, Cases, Skipped, check_rows
from feathide.data.columns import Reading, may_be_image, unknown_patients
from feathide.data.split import by_hash, check_classes, check_patients, thin
from feathide.errors import InputError, expected, few, first_line
from feathide.formats.dicom import is_dicom, patient_of, read_dicom, read_series
from feathide.formats.nifti import is_nifti, read_nifti
from feathide.formats.safety import guarded
from feathide.formats.stored import StoredImage, box_of, content_hash, grid_of
from feathide.types import Box

__all__ = ["PICTURES", "Entry", "Files", "cases_of_files", "is_image", "load", "read_image"]

PICTURES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".webp",
    ".pgm",
    ".ppm",
)
# whatever the name says: no format that starts programs
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")

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


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a PNG, JPEG, TIFF, ..."""
    return path.suffix.lower() in PICTURES


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


def read_picture(path: Path, box: Box | None = None) -> StoredImage:
    """A PNG, JPEG, TIFF, ... as it is stored: grey (1, H, W) or colour (3, H, W) of 8 or 16 bits,
    shown in [0, 1].
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as file:
            # of large pictures; Pillow refuses too large ones
            warnings.simplefilter("ignore")
            _check_picture(path, file)
            file.load()
            if file.mode in ("I;16", "I;16B", "I;16L", "I"):
                pixels = np.array(file)
            elif file.mode in ("1", "L", "LA"):
                pixels = np.array(file.convert("L"))
            else:
                pixels = np.array(file.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise whatever they happen to meet
        raise expected(
            f"{path} must be a readable picture",
            got=first_line(error),
            do="replace it or pass skip_bad=True",
        ) from error
    if pixels.dtype.kind == "i":  # 16-bit grey that Pillow widened
        if pixels.min() < 0 or pixels.max() > 65535:
            raise expected(
                f"{path} must have 8 or 16 bits",
                got=f"values {pixels.min()}..{pixels.max()}",
                do="convert it",
            )
        pixels = pixels.astype(np.uint16)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    stored = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)  # (C, H, W)
    slope, legal, unit = grid_of(stored.dtype, box)
    return StoredImage(stored, slope, 0.0, legal, unit)


def _check_picture(path: Path, file: Image.Image) -> None:
    """Refuse, before it is decoded, what Pillow would cut, turn or guess: pages, floats, 16-bit
    colour, signed bytes, inks.
    """
    # the others of an MPO are previews
    pages = 1 if file.format == "MPO" else int(getattr(file, "n_frames", 1))
    if pages > 1:
        raise expected(
            f"{path} must hold one picture",
            got=f"{pages} pages or frames",
            do="save each as its own file",
        )
    raw, got = str([tile[3] for tile in getattr(file, "tile", ())]), ""
    tags = getattr(file, "tag_v2", {})
    # BitsPerSample, SampleFormat
    bits, signs = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
    deep = (
        ";16" in raw
        or bits > 8
        or (file.format == "PPM" and file.mode == "RGB" and _top(file) > 255)
    )
    if file.mode == "F" or signs == 3:
        got = f"{bits if bits > 8 else 32}-bit floats"
    elif deep and file.mode not in ("I;16", "I;16B", "I;16L", "I"):
        got = (
            f"16 bits of {'grey with alpha' if 'LA' in raw else 'colour'}, of which 8 would be "
            "read"
        )
    elif signs == 2 and bits <= 8:
        got = "signed bytes"
    # PhotometricInterpretation: Pillow turns these for 8 bits only
    elif bits > 8 and tags.get(262) == 0:
        got = "16 bits in which 0 is white"
    elif file.mode in ("CMYK", "LAB", "HSV"):
        got = f"{file.mode} colours"
    if got:
        what = f"{path} must be 8 or 16-bit grey or 8-bit RGB colour"
        raise expected(what, got=got, do="convert it, or store the numbers in npz or NIfTI")


def _top(file: Image.Image) -> int:
    """The largest number that a PPM's header allows."""
    numbers = [
        n
        for tile in getattr(file, "tile", ())
        if isinstance(tile[3], tuple)
        for n in tile[3]
    ]
    return max([n for n in numbers if isinstance(n, int)], default=255)


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
    labels, splits = (
        np.array([e.label for e in entries], dtype=np.int64),
        np.array([e.split for e in entries]),
    )
    ids = np.array([e.id for e in entries])
    check_rows(ids, labels, splits, class_names)
    check_classes(labels, class_names, name)
    check_patients(
        np.array([e.patient or e.id for e in entries]), ids=ids, splits=splits, name=name
    )
    found, skipped = _scan(
        [entries[row] for row in thin(labels, splits, limit=how.limit, seed=how.seed)], how
    )
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
        spacing=tuple(np.median(spacings, axis=0).tolist())
        if len(spacings) == len(facts)
        else None,
        skipped=tuple(skipped),
        orientation=orientation,
        notes=notes,
    )


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
