"""A CSV file that lists the images: path,label[,patient][,split][,id], or one column of 0 and 1
per finding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from feathide.data.cases import Cases
from feathide.data.columns import Reading, check_names, near, patient_in, read_table
from feathide.data.files import Entry, cases_of_files
from feathide.errors import expected, few, unknown
from feathide.formats.safety import check_not_one_hot, names_up_to

__all__ = ["read_manifest"]

KNOWN = ("path", "label", "patient", "split", "id")
GAPS = ("nan", "na", "n/a", "<na>", "null", "nat")  # what tables write for a missing label
Row = dict[str, str]
Label = int | tuple[int, ...]
Labelled = tuple[list[str], Sequence[Label]]


def read_manifest(path: Path, name: str, how: Reading) -> Cases:
    """The images that a CSV file lists; paths are relative to it, the path is the id where there
    is no column for it.

    ``label`` is a class name or a number; without it, every column that is not path, patient,
    split or id is a finding. Without ``split`` the patients are hashed into train, val and test.
    Another spelling of these names is refused; other columns beside ``label`` are not used, which
    ``notes`` say."""
    rows = read_table(path, needs=("path",))
    columns = list(rows[0])
    declared = () if "label" in columns else how.class_names or ()
    _check_header(
        path, [column for column in columns if column not in declared], named=bool(declared)
    )
    names, labels = (_classes if "label" in columns else _findings)(
        path, rows, how.class_names
    )
    entries = []
    for row, label in zip(rows, labels, strict=True):
        _check_path(path, row["path"])
        patient = row.get("patient") or (
            patient_in(row["path"], how.patient_pattern) if how.patient_pattern else ""
        )
        entries.append(
            Entry(
                path.parent / row["path"],
                row.get("id") or row["path"],
                label,
                patient,
                row.get("split", ""),
            )
        )
    cases = cases_of_files(entries, name=name, class_names=names, how=how)
    used = [c for c in columns if c in KNOWN or ("label" not in columns and c in names)]
    others = ", ".join(repr(c) for c in columns if c not in used)
    told = f"columns: {', '.join(used)}{f'; not used: {others}' if others else ''}"
    return replace(cases, notes=(told, *cases.notes))


def _check_header(path: Path, columns: Sequence[str], *, named: bool) -> None:
    """Refuse a column that is likely to be meant as one of ``KNOWN``; beside that, too, where it
    would become a finding (which are not ``named``).
    """
    check_names(path, columns, KNOWN)
    like = [
        column for name in KNOWN for column in near(columns, name) if column not in KNOWN
    ]
    if like and "label" not in columns and not named:
        what = (
            f"without a column label, all columns of {path} but path, patient, split and id "
            "must be findings"
        )
        raise expected(
            what, got=few(like), do="remove it, or name the findings as class_names"
        )


def _check_path(table: Path, path: str) -> None:
    if not path:
        raise expected(
            f"every row of {table} must have a path",
            got="an empty one",
            do="fill it in or remove the row",
        )
    if "\\" in path:
        raise expected(
            f"paths in {table} must be written with /", got=path, do="use / for \\"
        )


def _classes(
    path: Path, rows: Sequence[Row], class_names: Sequence[str] | None
) -> Labelled:
    """The class names, and each row's class: by number where the labels are numbers and the names
    are not.
    """
    texts = [row["label"] for row in rows]
    if not (class_names and set(texts) <= set(class_names)):
        values = {text: _number(text) for text in set(texts)}
        if all(value is not None for value in values.values()):
            numbers = [_whole(path, text, values[text]) for text in texts]
            return list(class_names or names_up_to(max(numbers) + 1)), numbers
        _check_texts(path, values, class_names)
    names = list(class_names or sorted(set(texts)))
    wrong = sorted(set(texts) - set(names) | (set(texts) & {""}))
    if wrong:
        raise expected(
            f"labels of {path} must be one of {few(names)}",
            got=few([repr(t) for t in wrong]),
            do="correct them",
        )
    return names, [names.index(t) for t in texts]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(path: Path, text: str, value: float | None) -> int:
    if value is None or not 0 <= value < 1e9 or value != int(value):
        do = "number the classes 0, 1, ..., or leave these rows out"
        raise expected(
            f"labels of {path} must be names, or whole numbers from 0", got=text, do=do
        )
    return int(value)


def _check_texts(
    path: Path, texts: Iterable[str], class_names: Sequence[str] | None
) -> None:
    """Refuse labels that are likely to be a gap, and two that differ in capitals only, unless
    they are named as classes.
    """
    texts = sorted(set(texts) - set(class_names or ()))
    gaps = [text for text in texts if text.casefold() in GAPS]
    if gaps:
        do = "fill them in, leave these rows out, or name them in class_names"
        raise expected(f"labels of {path} must be known", got=few(gaps), do=do)
    twins = [
        text for text in texts if [t.casefold() for t in texts].count(text.casefold()) > 1
    ]
    if twins:
        raise expected(
            f"the classes of {path} must differ in more than capitals",
            got=few(twins),
            do="correct them",
        )


def _findings(
    path: Path, rows: Sequence[Row], class_names: Sequence[str] | None
) -> Labelled:
    """The findings, and each row's 0 or 1 for every one of them."""
    names = list(
        class_names or (column for column in rows[0] if column and column not in KNOWN)
    )
    if not names:
        raise expected(
            f"{path} must have a column label or one per finding",
            got=few(list(rows[0])),
            do="add it",
        )
    for column in names:
        if column not in rows[0]:
            raise unknown(f"column of {path}", column, list(rows[0]))
    values = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
    for row in rows:
        for column in names:
            if row[column] not in values:
                raise expected(
                    f"{column} of {row['path']} in {path} must be 0 or 1",
                    got=repr(row[column]),
                    do="correct it",
                )
    marks = [tuple(values[row[column]] for column in names) for row in rows]
    check_not_one_hot(np.array(marks), f"the findings of {path}")
    return names, marks
