"""The one entry to a study's images: a path in, Cases out."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from feathide.data.cases import Cases
from feathide.data.columns import Reading
from feathide.data.folder import read_folder
from feathide.data.manifest import read_manifest
from feathide.data.npz import read_npz
from feathide.data.phantoms import phantoms
from feathide.data.public import ORIGINALS
from feathide.data.select import of_classes, slices
from feathide.data.split import check_classes, check_split, thin, without_copies
from feathide.errors import expected, unknown
from feathide.formats.safety import told
from feathide.registry.plugins import with_plugins
from feathide.types import Box

__all__ = ["DATASETS", "Kind", "load_cases"]

Kind = Literal[
    "auto",
    "npz",
    "folder",
    "manifest",
    "phantoms",
    "aptos2019",
    "aptos2019-binary",
    "kermany",
    "kermany-resplit",
    "medmnist",
    "rsna-haemorrhage",
    "rsna-haemorrhage-findings",
    "ct-ich",
]


def load_cases(
    path: str | Path,
    *,
    kind: Kind = "auto",
    name: str | None = None,
    patients: str | Path | None = None,
    patient_pattern: str | None = None,
    class_names: Sequence[str] | None = None,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    box: Box | None = None,
    limit: int | None = None,
    classes: Sequence[str] | None = None,
    slice: int | None = None,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    skip_bad: bool = False,
    keep_patient_ids: bool = False,
) -> Cases:
    """The images of a study, from an npz, a folder per class, a CSV manifest or a public set.

    Images on disk are PNG, JPEG, TIFF, ... (shown in [0, 1]), DICOM files, folders of one DICOM
    series, and NIfTI (all three in their own units).

    Args:
        path: The file or folder; "phantoms" or "phantoms3d" for the generated, openly synthetic
            images; or a name that an installed package adds (entry points ``feathide.datasets``).
        kind: Which public data set it is, such as "kermany"; see ``docs/datasets.md``.
        name: What tables call the data; the name of the file by default.
        patients: A CSV of patient ids (npz: split, index, patient; folder: id, patient).
        patient_pattern: A regular expression that finds the patient in a file's path.
        class_names: Names for the labels.
        size: Resize to this, one number or one per spatial axis, in pixels.
        channels: Convert to 1 or 3 channels.
        box: The valid values (lo, hi) in the images' own units; the range of the data by default.
        limit: At most this many images of every split.
        classes: Keep only these classes, by name or number.
        slice: Keep the middle slice of each volume along this axis, 0 to 2.
        seed: Draws ``limit`` and, where the data has no split, ``fractions``.
        fractions: The shares of train, val and test where the data has no split; they add up to 1.
        skip_bad: Leave out unusable files, and copies across splits, and list them in
            ``Cases.skipped``.
        keep_patient_ids: Keep the patient ids of DICOM headers; they are hashed otherwise.

    Returns:
        The cases; files are read when their images are asked for.

    Raises:
        InputError: Whatever cannot be used: missing or corrupt files, unequal shapes, only one
            class, labels out of range, ids that occur twice, values outside the box, a patient or
            an exact copy of an image in two splits.

    Examples:
        >>> cases = load_cases("phantoms", limit=8)
        >>> cases.class_names, cases.images([0]).dtype.name
        (('clear', 'opacity'), 'float32')
    """
    if not isinstance(path, str | Path):
        raise expected(
            "the images must be named by a path",
            got=f"a {type(path).__name__}",
            do="give a file or folder; arrays of your own are read from an npz",
        )
    how = Reading(
        patients=None if patients is None else Path(patients),
        patient_pattern=patient_pattern,
        class_names=class_names,
        size=size,
        channels=channels,
        box=box,
        limit=limit if classes is None else None,
        seed=seed,
        fractions=fractions,
        skip_bad=skip_bad,
        keep_patient_ids=keep_patient_ids,
    )
    cases = _read(path, kind, name or Path(path).stem, how, limit)
    cases = without_copies(cases) if skip_bad else cases
    if classes is not None:
        cases = of_classes(cases, classes)
        cases = cases.take(thin(cases.labels, cases.splits, limit=limit, seed=seed))
    cases = cases if slice is None else slices(cases, slice)
    check_classes(cases.labels, cases.class_names, cases.name)
    check_split(cases)
    return cases


# rows of other packages only
DATASETS: Mapping[str, Callable[..., Cases]] = with_plugins("datasets", {})
_READERS = {"npz": read_npz, "folder": read_folder, "manifest": read_manifest, **ORIGINALS}


def _read(path: str | Path, kind: str, name: str, how: Reading, limit: int | None) -> Cases:
    """The cases at ``path``, of all classes; of what is not in files ``limit`` are taken."""
    if str(path) in DATASETS:
        cases = DATASETS[str(path)](size=how.size, channels=how.channels, seed=how.seed)
        return cases.take(thin(cases.labels, cases.splits, limit=how.limit, seed=how.seed))
    chosen = _kind(path) if kind == "auto" else kind
    _check_taken(chosen, how)
    if chosen == "phantoms":
        size, axes = how.size, 3 if str(path) == "phantoms3d" else 2
        shape = (
            (size or (64, 32)[axes - 2],) * axes
            if size is None or isinstance(size, int)
            else tuple(size)
        )
        cases = phantoms(shape=shape, channels=how.channels or 1, seed=how.seed)
        return cases.take(thin(cases.labels, cases.splits, limit=limit, seed=how.seed))
    if chosen not in _READERS:
        raise unknown("kind of data", chosen, get_args(Kind))
    with told(Path(path)):
        return _READERS[chosen](Path(path), name, how)


def _check_taken(kind: str, how: Reading) -> None:
    """Refuse a source of patients that this kind of data does not read."""
    if how.patients is not None and kind not in ("npz", "folder", "medmnist"):
        do = "use its column patient" if kind == "manifest" else "leave it out"
        raise expected(
            "patients must be a table beside an npz file or a folder",
            got=f"a {kind}",
            do=do,
        )
    if how.patient_pattern is not None and kind not in (
        "folder",
        "manifest",
        "kermany",
        "kermany-resplit",
    ):
        do = "pass patients=..." if kind in ("npz", "medmnist") else "leave it out"
        raise expected(
            "patient_pattern must be for the paths of a folder or manifest",
            got=f"a {kind}",
            do=do,
        )


def _kind(path: str | Path) -> str:
    """The kind of data that a path is."""
    where = Path(path)
    if str(path) in ("phantoms", "phantoms3d"):
        return "phantoms"
    if not os.path.exists(where):
        raise expected(
            f"{path} must be a file or folder",
            got="nothing of that name",
            do='correct the path, or use "phantoms"',
        )
    if where.is_dir():
        return "folder"
    kinds = {".npz": "npz", ".csv": "manifest"}
    if where.suffix.lower() not in kinds:
        raise expected(
            f"{path} must be .npz, .csv or a folder",
            got=where.suffix or "no ending",
            do="pass kind=...",
        )
    return kinds[where.suffix.lower()]
