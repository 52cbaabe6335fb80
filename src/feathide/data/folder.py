"""A folder of images per class: ROOT/[split/]class/**/image."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from feathide.data.cases import Cases, Skipped
from feathide.data.columns import (
    SPLIT_NAMES,
    Reading,
    may_be_image,
    patient_in,
    patients_of,
    read_table,
)
from feathide.data.files import Entry, cases_of_files, is_image, load
from feathide.data.pictures import is_picture
from feathide.errors import expected, few, unknown
from feathide.formats.dicom import is_series
from feathide.formats.nifti import is_nifti

__all__ = ["read_folder"]

# folders that systems make beside files
SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")


def read_folder(root: Path, name: str, how: Reading) -> Cases:
    """ROOT/class/image or ROOT/split/class/image, with the folders' names as classes and the
    relative path as id.

    Without split folders the patients are hashed into train, val and test, so a case stays where
    it is when others are added. The patient comes from ``how.patients`` (CSV with the columns id,
    patient), from ``how.patient_pattern``, from the file's header, or is the case itself."""
    tops = _folders(root)
    split_of = _splits_of(root, tops)
    names = _class_names(tops, split_of, how)
    table = read_table(how.patients, needs=("id", "patient")) if how.patients else []
    entries: list[Entry] = []
    above = [root, *tops] if split_of else [root]  # the folders of folders
    others = [
        Path(e.path)
        for top in above
        for e in os.scandir(top)
        if e.is_file() and may_be_image(Path(e.path))
    ]
    for top in tops:
        split = split_of.get(top, "")
        for folder in _folders(top) if split_of else [top]:
            for path in _images(folder, others):
                if not entries and not how.skip_bad:
                    # what is wrong with the first is told before the others are listed
                    load(path, how)
                id = path.relative_to(root).as_posix()
                patient = patient_in(id, how.patient_pattern) if how.patient_pattern else ""
                entries.append(Entry(path, id, names.index(folder.name), patient, split))
    _check_found(root, entries, others, how)
    if how.patients:
        unread = [path.relative_to(root).as_posix() for path in others]
        pairs = [(row["id"], row["patient"]) for row in table]
        do = f"write paths from {root}, with /, such as {entries[0].id}"
        listed = patients_of(
            how.patients, pairs, [e.id for e in entries], how=do, unread=unread
        )
        entries = [
            replace(e, patient=patient or e.patient)
            for e, patient in zip(entries, listed, strict=True)
        ]
    cases = cases_of_files(entries, name=name, class_names=names, how=how)
    left_out = tuple(
        Skipped(
            str(path),
            "not a readable image in a class folder, or an image beside slices",
        )
        for path in others
    )
    return replace(cases, skipped=cases.skipped + left_out) if left_out else cases


def _splits_of(root: Path, tops: list[Path]) -> dict[Path, str]:
    """The split of each folder that is named after one: of all, or of none."""
    found = {
        top: SPLIT_NAMES[top.name.lower()]
        for top in tops
        if top.name.lower() in SPLIT_NAMES
    }
    if found and len(found) < len(tops):
        got = ", ".join(t.name for t in tops)
        raise expected(
            f"{root} must hold either split folders or class folders",
            got=got,
            do="move or rename the others",
        )
    return found


def _class_names(tops: list[Path], split_of: dict[Path, str], how: Reading) -> list[str]:
    """The names of the classes: those that are asked for, else those of the folders."""
    if split_of:
        classes = sorted({c.name for top in tops for c in _folders(top)})
    else:
        classes = sorted({top.name for top in tops})
    names = list(how.class_names) if how.class_names else classes
    for found in classes:
        if found not in names:
            raise unknown("class folder", found, names)
    return names


def _check_found(
    root: Path, entries: list[Entry], others: list[Path], how: Reading
) -> None:
    """Refuse a folder without images, and one with files of other kinds."""
    if others and not how.skip_bad:
        kinds = Counter(path.suffix.lower() or "no ending" for path in others)
        named = few([path.relative_to(root).as_posix() for path in sorted(others)])
        counts = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common(6))
        raise expected(
            f"{root} must hold readable images in class folders, and none beside slices",
            got=f"{len(others)} other files ({counts}): {named}",
            do="convert, move or remove them, or pass skip_bad=True to leave them out",
        )
    if not entries:
        raise expected(
            f"{root} must hold one folder of images per class",
            got="no image",
            do="check the path and the file types",
        )


def _readable(folder: Path, names: Iterable[str], others: list[Path]) -> Iterator[Path]:
    """The files that are images; those that may be images of another kind are put into
    ``others``.
    """
    for name in names:
        path = folder / name
        if name.startswith("."):
            continue
        if is_image(path):
            yield path
        elif may_be_image(path):
            others.append(path)


def _folders(root: Path) -> list[Path]:
    return sorted(
        Path(e.path) for e in os.scandir(root) if e.is_dir() and not _hidden(e.name)
    )


def _hidden(folder: str) -> bool:
    return folder.startswith(".") or folder in SYSTEMS


def _images(folder: Path, others: list[Path]) -> Iterator[Path]:
    """The images and series below a class folder; what is neither an image nor a text, pictures
    beside slices and linked folders (they may lead anywhere) are put into ``others``.
    """
    for where, below, files in os.walk(folder):
        # as hidden files, they are left out
        below[:] = sorted(name for name in below if not _hidden(name))
        others.extend(path for name in below if (path := Path(where, name)).is_symlink())
        images = _readable(Path(where), sorted(files), others)
        if Path(where) == folder:
            yield from images  # one by one: there may be a million
            continue
        found = list(images)
        beside = [path for path in found if is_picture(path) or is_nifti(path)]
        if len(found) - len(beside) > 1 and is_series(Path(where)):
            others.extend(beside)
            yield Path(where)
        else:
            yield from found
