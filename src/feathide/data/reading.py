"""How a study is read: the options that all readers share, and the CSV tables beside the images."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import expected, unknown
from ..types import Box

__all__ = ["Reading", "first_line", "patient_in", "read_table"]


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


def read_table(path: Path, *, needs: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header that has at least the columns ``needs``."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise expected(f"{path} must be a readable CSV file", got=first_line(error), do="check the path") from error
    for column in needs:
        if column not in columns:
            raise unknown(f"table {path} without the column", column, columns)
    if not rows:
        raise expected(f"{path} must have rows", got="a header only", do="list the images")
    return rows


def patient_in(path: str, pattern: str) -> str:
    """The patient that ``pattern`` finds in a file's path."""
    found = re.search(pattern, path)
    if found is None:
        raise expected(f"patient_pattern {pattern!r} must match every path", got=path, do="correct the pattern")
    return found.group(1) if found.re.groups else found.group()


def first_line(error: BaseException) -> str:
    """An exception as part of a sentence."""
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
