"""DICOM as it is stored: single pictures, multi-frame volumes, and folders that hold one series.

Reference: DICOM PS3.3 C.7.6.3 (image pixel), C.11.1 (modality LUT), PS3.5 (encoding).
"""

import hashlib
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from feathide.errors import InputError, expected, few, first_line
from feathide.formats.dicom_geometry import order_of, orientation_of, series_orientation
from feathide.formats.dicom_pixels import BAD, grey_scale, levels, pixels_of, spacing_of
from feathide.formats.safety import LARGEST, check_size, guarded
from feathide.formats.stored import StoredImage

__all__ = [
    "header_field",
    "is_dicom",
    "is_series",
    "open_dicom",
    "patient_of",
    "read_dicom",
    "read_series",
    "series_files",
]

SUFFIXES = (".dcm", ".dicom", ".ima")
LOOKS = 5  # files of a folder that are opened to tell whether it holds slices


START = 144  # preamble, mark and the length of the file meta information, which follows


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM: by its ending or, where that is another (a UID has
    dots, too) or none, by the mark at byte 128.
    """
    # the table of contents of a disc, which bears the mark, too
    if path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():  # a pipe would never answer
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_series(folder: Path) -> bool:
    """Whether the DICOM files of a folder are slices: several, of which one that is looked at is
    of a series and has a position in space.

    Whether they make one volume is for ``read_series`` to say: slices of two series, a broken
    one, or a screen save beside the slices must not turn a volume into pictures."""
    files = series_files(folder)
    if len(files) < 2:
        return False
    # spread over the folder
    looked_at = {files[k * (len(files) - 1) // (LOOKS - 1)] for k in range(LOOKS)}
    heads = [_header(path) for path in sorted(looked_at)]
    return any(
        "SeriesInstanceUID" in head and "ImagePositionPatient" in head for head in heads
    )


def series_files(folder: Path) -> list[Path]:
    """The DICOM files right in a folder, by name."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and not p.name.startswith(".") and is_dicom(p)
    )


def patient_of(path: Path, *, keep: bool = False) -> str:
    """The patient of a DICOM file or series folder: a short hash of the id in the header, or the
    id itself; "" if unknown.

    The hash keeps names out of results; it is no protection against somebody who can try all ids
    of a hospital."""

    def read() -> str:
        files = series_files(path) if path.is_dir() else [path]
        return str(_header(files[0]).get("PatientID", "") or "").strip() if files else ""

    patient = guarded(path, read)
    return (
        patient
        if keep or not patient
        else hashlib.sha256(patient.encode()).hexdigest()[:12]
    )


def header_field(path: Path, keyword: str) -> str:
    """A field of the header of a DICOM file or series folder, as text; "" where there is none,
    and for files of another kind.
    """

    def read() -> str:
        files = series_files(path) if path.is_dir() else [path] if is_dicom(path) else []
        value = _header(files[0]).get(keyword, "") if files else ""
        return "" if value is None else str(value).strip()

    return guarded(path, read)


def _header(path: Path) -> Dataset:
    """The header without pixels; empty for a file that cannot be read, which the reader of pixels
    reports.
    """
    try:
        return open_dicom(path, pixels=False)
    except InputError:
        return Dataset()


def open_dicom(path: Path, *, pixels: bool = True) -> Dataset:
    """The data set of a file. Raises InputError for files that are not DICOM."""
    # broken elements raise whatever their parser happens to meet
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_deflated(path)
            return dcmread(path, stop_before_pixels=not pixels)
    except InputError:
        raise
    except InvalidDicomError as error:
        raise expected(
            f"{path} must be a DICOM file", got="no DICOM header", do=BAD
        ) from error
    except Exception as error:
        raise expected(
            f"{path} must be a readable DICOM file", got=first_line(error), do=BAD
        ) from error


def _check_deflated(path: Path) -> None:
    """Refuse a data set that is packed as a whole and larger than an image may be; pydicom would
    unpack it in one go.
    """
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpack, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(START + int(meta.get("FileMetaInformationGroupLength", 0)))
        while size <= LARGEST and (part := unpack.unconsumed_tail or file.read(2**16)):
            size += len(unpack.decompress(part, 2**24))
    check_size(path, (size,), 1)


def read_dicom(path: Path) -> StoredImage:
    """One DICOM file in its native units (HU, grey levels): (C, H, W), or (C, D, H, W) of several
    frames.

    Rescale slope and intercept are applied; MONOCHROME1 is turned so that more is brighter, which
    is a negative slope; colour becomes RGB. Windows (VOI) are display settings and are not
    applied. Raises InputError, one sentence with the file's name, for files without pixels,
    truncated ones, missing codecs, segmentation masks and tabulated (non-linear) modality LUTs.
    """
    return _stored_image(open_dicom(path), path)


def read_series(folder: Path) -> StoredImage:
    """The slices of one series as a volume (C, D, H, W), in the order of their position along the
    slice normal.

    Raises InputError for a folder with several series, doubled or missing slices, unequal shapes
    or grey scales."""
    files = series_files(folder)
    if not files:
        raise expected(f"{folder} must hold DICOM files", got="none", do="correct the path")
    heads = [open_dicom(path) for path in files]
    _check_one_series(heads, files, folder)
    order, gap = order_of(heads, files, folder)
    slices = [_stored_image(heads[i], files[i]) for i in order]
    _check_alike([files[i] for i in order], slices)
    first = slices[0]
    spacing = None if first.spacing is None else (gap, *first.spacing)
    return StoredImage(
        np.stack([image.stored for image in slices], axis=1),
        first.slope,
        first.intercept,
        None,
        first.unit,
        spacing,
        series_orientation(heads, files, folder),
    )


def _check_one_series(
    heads: Sequence[Dataset], files: Sequence[Path], folder: Path
) -> None:
    """Refuse a folder whose files are of several series."""
    series = Counter(str(head.get("SeriesInstanceUID", "none")) for head in heads)
    if len(series) > 1:
        usual = series.most_common(1)[0][0]
        odd = [
            p.name
            for p, head in zip(files, heads, strict=True)
            if str(head.get("SeriesInstanceUID", "none")) != usual
        ]
        raise expected(
            f"{folder} must hold one series",
            got=f"{len(series)}; not of the largest: {few(odd)}",
            do=(
                "move these out, give each series a folder of its own, or list the files in a "
                "manifest"
            ),
        )


def _check_alike(files: Sequence[Path], slices: Sequence[StoredImage]) -> None:
    """Refuse slices, in their order, that differ in shape or grey scale."""

    def look(image: StoredImage) -> tuple[object, ...]:
        stored = image.stored
        return stored.shape, stored.dtype.name, image.slope, image.intercept, image.unit

    first = look(slices[0])
    for path, image in zip(files, slices, strict=True):
        if look(image) != first or image.stored.ndim != 3:
            what = f"{path} must have the shape and grey scale of {files[0].name} ({first})"
            raise expected(what, got=str(look(image)), do=BAD)


def slice_order(folder: Path) -> list[Path]:
    """The files of a series in the order of the volume's first axis."""
    files = series_files(folder)
    order, _ = order_of([open_dicom(path, pixels=False) for path in files], files, folder)
    return [files[i] for i in order]


def _stored_image(head: Dataset, path: Path) -> StoredImage:
    pixels = pixels_of(head, path)
    slope, intercept, unit = grey_scale(head, path, whole=pixels.dtype.kind in "ui")
    if head.PhotometricInterpretation == "MONOCHROME1":
        low, high = levels(head)
        slope, intercept = -slope, (low + high) * slope + intercept
    spacing = spacing_of(head, pixels.ndim - 1)
    return StoredImage(
        pixels,
        slope,
        intercept,
        None,
        unit,
        spacing,
        orientation_of(head, pixels.ndim - 1, path),
    )
