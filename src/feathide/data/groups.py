"""Groups of images: what a column of the table beside the images, or a field of their DICOM
headers, says of each. Nothing is read that is not asked for by name.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydicom.datadict import dictionary_VR, tag_for_keyword

from feathide.data.cases import Cases
from feathide.data.columns import read_table
from feathide.errors import expected, few, unknown
from feathide.formats.dicom import header_field

__all__ = ["LABEL", "UNKNOWN", "banded", "columns_of"]

LABEL = "label"  # the true class, which all data has
UNKNOWN = "unknown"  # an empty cell, a missing field
# columns and fields that tell one image or one patient from another, and so are no groups
OF_ONE = ("id", "path", "patient", "index", "PatientID", "PatientName", "SOPInstanceUID")
# kinds of DICOM fields that may name a person or a place: told apart by a hash only
NAMING = ("PN", "UI", "ST", "LT", "UT")
NAMING_FIELDS = (
    "AccessionNumber",
    "DeviceSerialNumber",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "StationName",
    "StudyID",
)
AGE = re.compile(r"(\d{3})([DWMY])")
YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


def columns_of(
    cases: Cases, path: str | Path, names: Sequence[str], *, keep: bool = False
) -> dict[str, np.ndarray]:
    """What each of some columns says of each case.

    A name is, in this order: ``label`` (the true class); a column of the manifest at ``path``, or
    of ``NAME.meta.csv`` beside an npz file; a DICOM keyword, such as ``Manufacturer``.

    Args:
        cases: The images.
        path: Where they were read from.
        names: The columns.
        keep: Show header fields that may name a person or a place as they are; by default they
            are replaced by a short hash.

    Returns:
        By name, texts (N,); ``UNKNOWN`` where nothing is said.

    Raises:
        InputError: A name that is neither, or that tells single images or patients apart.
    """
    table = _table(cases, Path(path))
    return {name: _column(cases, table, name, keep) for name in names}


def _column(
    cases: Cases, table: Mapping[str, Sequence[str]], name: str, keep: bool
) -> np.ndarray:
    if name in OF_ONE:
        raise expected(
            "a subgroup must have many patients",
            got=f"{name}, which tells them apart one by one",
            do="name a column such as site or sex",
        )
    if name == LABEL and cases.labels.ndim == 1:
        return np.array(cases.class_names)[cases.labels]
    if name in table:
        return _texts(table[name])
    if cases.paths and tag_for_keyword(name) is not None:
        found = [header_field(Path(path), name) for path in cases.paths]
        hashed = not keep and (dictionary_VR(name) in NAMING or name in NAMING_FIELDS)
        return _texts([_hash(text) for text in found] if hashed else found)
    options = [LABEL, *(c for c in table if c not in OF_ONE)]
    raise unknown(
        "column of subgroups (of a manifest, of NAME.meta.csv beside an npz file, or a DICOM "
        "keyword of files)",
        name,
        options,
    )


def _table(cases: Cases, path: Path) -> dict[str, Sequence[str]]:
    """The columns of the table beside the images, in the order of the cases; none where there is
    no table.
    """
    beside = path.with_suffix(".meta.csv")
    if path.suffix.lower() == ".csv":
        rows = read_table(path, needs=("path",))
        keys = [row.get("id") or row["path"] for row in rows]
    elif path.suffix.lower() == ".npz" and beside.is_file():
        rows = read_table(beside, needs=("split", "index"))
        keys = [f"{row['split']}-{int(row['index']):05d}" for row in rows]
    else:
        return {}
    known = dict(zip(keys, rows, strict=True))
    missing = [id for id in map(str, cases.ids) if id not in known]
    if missing:
        raise expected(
            f"the table of {path.name} must name every image",
            got=f"no row for {few(missing)}",
            do="add them",
        )
    found = [known[str(id)] for id in cases.ids]
    return {name: [row[name] for row in found] for name in rows[0]}


def _texts(values: Sequence[str]) -> np.ndarray:
    return np.array([value.strip() or UNKNOWN for value in values])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text.strip() else ""


def banded(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Numbers as bands between ``edges``: "below 40", "40 to 60", "60 and more".

    Args:
        values: Texts (N,) of numbers, or of DICOM ages such as "045Y".
        edges: Rising numbers, at least one.

    Returns:
        The band of each (N,); ``UNKNOWN`` where the text is no number.
    """
    names = [
        f"below {edges[0]:g}",
        *(f"{a:g} to {b:g}" for a, b in pairwise(edges)),
        f"{edges[-1]:g} and more",
    ]
    numbers = np.array([_number(text) for text in values])
    bands = np.array(names)[np.digitize(numbers, edges)]
    return np.where(np.isnan(numbers), UNKNOWN, bands)


def _number(text: str) -> float:
    if age := AGE.fullmatch(text):
        return int(age[1]) * YEARS[age[2]]
    try:
        return float(text)
    except ValueError:
        return float("nan")
