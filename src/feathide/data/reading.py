"""How a study is read: the options that all readers share, and the CSV tables beside the images."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import expected, first_line, unknown
from ..types import Box
from .guard import guarded

__all__ = ["Reading", "may_be_image", "patient_in", "read_table"]

TEXTS = (".csv", ".tsv", ".txt", ".md", ".rst", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log", ".ini", ".py",
         ".xlsx")  # fmt: skip
BESIDE = ("dicomdir", "thumbs.db", "readme", "license", "licence", "version", "desktop.ini")


@dataclass(frozen=True)
class Reading:
    """The options of a reader.

    ``patients``: a CSV that names the patient of each image. ``patient_pattern``: a regular expression that finds the
    patient in a file's path; its first group, if it has one. ``size``: spatial size to resize to. ``channels``: 1 or
    3. ``box``: the legal values, in the images' own units. ``limit``: at most that many cases of every split, drawn
    with ``seed``. ``fractions``: the shares of train, val and test where the data has no split. ``skip_bad``: leave
    unusable images out and list them.
    """

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


def may_be_image(path: Path) -> bool:
    """Whether a file beside images might be one: everything but pipes and devices, hidden files, texts and tables."""
    stored = path.is_file() or path.is_symlink()
    return (
        stored
        and not path.name.startswith(".")
        and path.name.lower() not in BESIDE
        and path.suffix.lower() not in TEXTS
    )


def read_table(path: Path, *, needs: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header that has at least the columns ``needs``."""

    def read() -> tuple[list[str], list[dict[str, str]]]:
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, restval="")
                return list(reader.fieldnames or ()), list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise expected(f"{path} must be a readable CSV file", got=first_line(error), do="check the path") from error

    columns, rows = guarded(path, read)
    for column in needs:
        if column not in columns:
            raise unknown(f"table {path} without the column", column, columns)
    if not rows:
        raise expected(f"{path} must have rows", got="a header only", do="list the images")
    long = next((i for i, row in enumerate(rows, start=2) if None in row), None)
    if long is not None:
        raise expected(
            f"row {long} of {path} must have {len(columns)} cells", got="more", do="put texts with commas in quotes"
        )
    return rows


def patient_in(path: str, pattern: str) -> str:
    """The patient that ``pattern`` finds in a file's path."""
    try:
        found = re.search(pattern, path)
    except re.error as error:
        raise expected(
            "patient_pattern must be a regular expression", got=f"{pattern!r}: {error}", do="correct it"
        ) from None
    if found is None:
        raise expected(f"patient_pattern {pattern!r} must match every path", got=path, do="correct the pattern")
    return found.group(1) if found.re.groups else found.group()
