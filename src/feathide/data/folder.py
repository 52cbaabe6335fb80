"""A folder of images per class: ROOT/[split/]class/**/image."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import expected, unknown
from .cases import Cases
from .dicom import is_dicom, is_series
from .files import Entry, cases_of_files, is_image, load
from .reading import Reading, patient_in, read_table

__all__ = ["read_folder"]

FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def read_folder(root: Path, name: str, how: Reading) -> Cases:
    """ROOT/class/image or ROOT/split/class/image, with the folders' names as classes and the relative path as id.

    Without split folders the patients are hashed into train, val and test, so a case stays where it is when others
    are added. The patient comes from ``how.patients`` (CSV with the columns id, patient), from
    ``how.patient_pattern``, from the file's header, or is the case itself.
    """
    tops = _folders(root)
    split_of = {top: FOLDERS[top.name.lower()] for top in tops if top.name.lower() in FOLDERS}
    if split_of and len(split_of) < len(tops):
        got = ", ".join(t.name for t in tops)
        raise expected(
            f"{root} must hold either split folders or class folders", got=got, do="move or rename the others"
        )
    classes = sorted({c.name for top in tops for c in _folders(top)} if split_of else {top.name for top in tops})
    names = list(how.class_names) if how.class_names else classes
    for found in classes:
        if found not in names:
            raise unknown("class folder", found, names)
    known = (
        {row["id"]: row["patient"] for row in read_table(how.patients, needs=("id", "patient"))} if how.patients else {}
    )
    entries: list[Entry] = []
    for top in tops:
        for folder in _folders(top) if split_of else [top]:
            for path in _images(folder):
                if not entries and not how.skip_bad:
                    load(path, how)  # what is wrong with the first is told before the others are listed
                id = path.relative_to(root).as_posix()
                patient = known.get(id, "") or (patient_in(id, how.patient_pattern) if how.patient_pattern else "")
                entries.append(Entry(path, id, names.index(folder.name), patient, split_of.get(top, "")))
    if not entries:
        raise expected(
            f"{root} must hold one folder of images per class", got="no image", do="check the path and the file types"
        )
    return cases_of_files(entries, name=name, class_names=names, how=how)


def _folders(root: Path) -> list[Path]:
    return sorted(Path(e.path) for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))


def _images(folder: Path) -> Iterator[Path]:
    for where, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))  # as hidden files, they are left out
        images = (Path(where, f) for f in sorted(files) if not f.startswith(".") and is_image(Path(where, f)))
        if Path(where) == folder:
            yield from images  # one by one: there may be a million
            continue
        found = list(images)
        volume = len(found) > 1 and is_dicom(found[0]) and is_series(Path(where))
        yield from [Path(where)] if volume else found
