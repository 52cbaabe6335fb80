"""A CSV file that lists the images: path,label[,patient][,split][,id], or one column of 0 and 1 per finding."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import expected
from .cases import Cases, few
from .files import Entry, cases_of_files
from .guard import names_up_to
from .reading import Reading, patient_in, read_table

__all__ = ["read_manifest"]

KNOWN = ("path", "label", "patient", "split", "id")
Row = dict[str, str]
Label = int | tuple[int, ...]
Labelled = tuple[list[str], Sequence[Label]]


def read_manifest(path: Path, name: str, how: Reading) -> Cases:
    """The images that a CSV file lists; paths are relative to it, the path is the id where there is no column for it.

    ``label`` is a class name or a number; without it, every column that is not path, patient, split or id is a
    finding. Without ``split`` the patients are hashed into train, val and test.
    """
    rows = read_table(path, needs=("path",))
    names, labels = (_classes if "label" in rows[0] else _findings)(path, rows, how.class_names)
    entries = []
    for row, label in zip(rows, labels, strict=True):
        patient = row.get("patient") or (patient_in(row["path"], how.patient_pattern) if how.patient_pattern else "")
        entries.append(
            Entry(path.parent / row["path"], row.get("id") or row["path"], label, patient, row.get("split", ""))
        )
    return cases_of_files(entries, name=name, class_names=names, how=how)


def _classes(path: Path, rows: Sequence[Row], class_names: Sequence[str] | None) -> Labelled:
    """The class names, and each row's class: by number where the labels are numbers and the names are not."""
    texts = [row["label"].strip() for row in rows]
    numbered = all(t.isdecimal() and len(t) < 10 for t in texts) and not (
        class_names and set(texts) <= set(class_names)
    )
    if numbered:
        numbers = [int(t) for t in texts]
        return list(class_names or names_up_to(max(numbers) + 1)), numbers
    names = list(class_names or sorted(set(texts)))
    wrong = sorted(set(texts) - set(names) | (set(texts) & {""}))
    if wrong:
        raise expected(
            f"labels of {path} must be one of {few(names)}", got=few([repr(t) for t in wrong]), do="correct them"
        )
    return names, [names.index(t) for t in texts]


def _findings(path: Path, rows: Sequence[Row], class_names: Sequence[str] | None) -> Labelled:
    """The findings, and each row's 0 or 1 for every one of them."""
    names = list(class_names or (column for column in rows[0] if column not in KNOWN))
    if not names:
        raise expected(f"{path} must have a column label or one per finding", got=few(list(rows[0])), do="add it")
    values = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
    for row in rows:
        for column in names:
            if row[column].strip() not in values:
                raise expected(
                    f"{column} of {row['path']} in {path} must be 0 or 1", got=repr(row[column]), do="correct it"
                )
    return names, [tuple(values[row[column].strip()] for column in names) for row in rows]
