"""How a study is read: the options that all readers share, and the CSV tables beside the
images.
"""

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from feathide.errors import expected, few, first_line, unknown
from feathide.formats.safety import guarded
from feathide.types import Box

__all__ = [
    "NEAR",
    "SPLIT_NAMES",
    "Reading",
    "check_columns",
    "check_names",
    "may_be_image",
    "near",
    "patient_in",
    "patients_of",
    "plain",
    "read_table",
    "unknown_patients",
]

TEXTS = (
    ".csv",
    ".tsv",
    ".txt",
    ".md",
    ".rst",
    ".json",
    ".jsonl",
    ".xml",
    ".yaml",
    ".yml",
    ".html",
    ".pdf",
    ".log",
    ".ini",
    ".py",
    ".xlsx",
)
BESIDE = ("dicomdir", "thumbs.db", "readme", "license", "licence", "version", "desktop.ini")


@dataclass(frozen=True)
class Reading:
    """The options of a reader.

    ``patients``: a CSV that names the patient of each image. ``patient_pattern``: a regular
    expression that finds the patient in a file's path; its first group, if it has one. ``size``:
    spatial size to resize to. ``channels``: 1 or
    3. ``box``: the legal values, in the images' own units. ``limit``: at most that many cases of
       every split, drawn with ``seed``. ``fractions``: the shares of train, val and test where
       the data has no split. ``skip_bad``: leave unusable images out and list them."""

    patients: Path | None = None
    patient_pattern: str | None = None
    class_names: Sequence[str] | None = None
    size: int | Sequence[int] | None = None
    channels: int | None = None
    box: Box | None = None
    limit: int | None = None
    seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    skip_bad: bool = False
    keep_patient_ids: bool = False


NEAR: Mapping[str, str] = {  # what others call a column, in small letters without marks
    "path": (
        "paths file files filename filenames filepath image images imagepath imagefile "
        "imagename img imgs imgpath"
    ),
    "label": (
        "labels lbl class classes classname classid classlabel target targets y category "
        "diagnosis dx gt groundtruth"
    ),
    "patient": "patients pat patid ptid patientid patientids patientname patientnumber patientno "
    "pid subject subjects subjectid "
    "person personid participant participantid group groups groupid mrn",
    "split": (
        "splits fold folds subset set partition part phase datasplit usage traintest "
        "trainvaltest traintestsplit"
    ),
    "id": "ids imageid",
}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def may_be_image(path: Path) -> bool:
    """Whether a file beside images might be one: everything but pipes and devices, hidden files,
    texts and tables.
    """
    stored = path.is_file() or path.is_symlink()
    return (
        stored
        and not path.name.startswith(".")
        and path.name.lower() not in BESIDE
        and path.suffix.lower() not in TEXTS
    )


def read_table(path: Path, *, needs: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header that has at least the columns ``needs``; without the
    spaces around its cells, and without empty rows.
    """

    def read() -> tuple[list[str], list[dict[str, str]]]:
        try:
            with path.open("rb") as binary:
                head = binary.peek()
                if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
                    raise expected(
                        f"{path} must be a CSV file in UTF-8",
                        got="UTF-16 or zero bytes",
                        do="save it as UTF-8",
                    )
                file = TextIOWrapper(binary, encoding="utf-8-sig", newline="")
                reader = csv.DictReader(file, restval="")
                reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
                return list(reader.fieldnames), list(reader)
        except UnicodeDecodeError as error:
            raise expected(
                f"{path} must be a CSV file in UTF-8",
                got=first_line(error),
                do="save it as UTF-8",
            ) from error
        except (OSError, csv.Error) as error:
            raise expected(
                f"{path} must be a readable CSV file",
                got=first_line(error),
                do="check the path",
            ) from error

    columns, rows = guarded(path, read)
    check_columns(path, columns, needs)
    long = next((i for i, row in enumerate(rows, start=2) if None in row), None)
    if long is not None:
        raise expected(
            f"row {long} of {path} must have {len(columns)} cells",
            got="more",
            do="put texts with commas in quotes",
        )
    rows = [{name: cell.strip() for name, cell in row.items()} for row in rows]
    rows = [row for row in rows if any(row.values())]
    if not rows:
        raise expected(f"{path} must have rows", got="a header only", do="list the images")
    return rows


def check_columns(path: Path, columns: Sequence[str], needs: Sequence[str]) -> None:
    """Refuse a header that is not separated by commas, names a column twice, or has not the
    columns ``needs``.
    """
    for name in needs:
        if name not in columns and any(
            mark in column for column in columns for mark in ";\t|"
        ):
            raise expected(
                f"{path} must have the column {name}",
                got=f"the header {few(columns)}",
                do="separate the columns by commas",
            )
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise expected(
            f"the columns of {path} must have different names",
            got=f"{few(twice)} twice",
            do="rename them",
        )
    check_names(path, columns, needs)
    for name in needs:
        if name not in columns:
            raise unknown(f"table {path} without the column", name, columns)


def check_names(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a header in which one of ``names`` is missing and another column looks as if it were
    meant.
    """
    for name in names:
        like = [] if name in columns else near(columns, name)
        if like:
            what = f"in {path} the column must be named {name}"
            raise expected(
                what, got=few(like), do="rename it, or remove it if it is something else"
            )


def near(columns: Sequence[str], name: str) -> list[str]:
    """The columns that are likely to be meant by ``name``, but are spelt in another way."""
    known = {plain(name), *NEAR.get(name, "").split()}
    return [column for column in columns if column != name and plain(column) in known]


def plain(name: str) -> str:
    """A name in small letters, without what stands between its words."""
    return re.sub(r"[\W_]+", "", name).casefold()


def patients_of(
    table: Path,
    rows: Iterable[tuple[str, str]],
    ids: Sequence[str],
    *,
    how: str,
    unread: Collection[str] = (),
) -> list[str]:
    """The patient of each of ``ids`` from a table's rows of id and patient, empty where its cell
    is.

    Refuses an image without a row, a row that names no image (but for those ``unread``), and two
    patients of one image."""
    known: dict[str, str] = {}
    for id, patient in rows:
        if known.setdefault(id, patient) != patient:
            raise expected(
                f"{table} must name one patient of {id}",
                got=f"{known[id]!r} and {patient!r}",
                do="remove one",
            )
    images = set(ids)
    stray = [id for id in known if id not in images and id not in unread]
    if stray:
        raise expected(
            f"every row of {table} must name an image",
            got=f"{len(stray)} that do not: {few(stray)}",
            do=how,
        )
    without = [id for id in ids if id not in known]
    if without:
        raise expected(
            f"{table} must have a row for every image",
            got=f"none for {len(without)} of {len(ids)}: {few(without)}",
            do="add them, with an empty patient where nobody knows",
        )
    return [known[id] for id in ids]


def patient_in(path: str, pattern: str) -> str:
    """The patient that ``pattern`` finds in a file's path."""
    try:
        found = re.search(pattern, path)
    except re.error as error:
        raise expected(
            "patient_pattern must be a regular expression",
            got=f"{pattern!r}: {error}",
            do="correct it",
        ) from None
    if found is None:
        raise expected(
            f"patient_pattern {pattern!r} must match every path",
            got=path,
            do="correct the pattern",
        )
    patient = (found.group(1) if found.re.groups else found.group()) or ""
    if not patient.strip():
        raise expected(
            f"patient_pattern {pattern!r} must find a patient",
            got=f"none in {path}",
            do="correct the pattern",
        )
    return patient.strip()


def unknown_patients(patients: Sequence[str]) -> tuple[str, ...]:
    """What is to be said of the images without a patient."""
    count = sum(not patient for patient in patients)
    some = "" if count == len(patients) else f" of {count} of {len(patients)} images"
    return (
        (f"patients{some}: unknown, each image counts as its own patient",) if count else ()
    )
