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
from pydicom.pixels import apply_color_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian

from feathide.errors import InputError, expected, few, first_line
from feathide.formats.safety import LARGEST, check_size, guarded
from feathide.formats.stored import StoredImage

__all__ = [
    "is_dicom",
    "is_series",
    "open_dicom",
    "patient_of",
    "pixels_of",
    "read_dicom",
    "read_series",
    "series_files",
]

SUFFIXES = (".dcm", ".dicom", ".ima")
LOOKS = 5  # files of a folder that are opened to tell whether it holds slices
LEAN = 1e-3  # of a unit vector: how far the planes of one volume may lean
START = 144  # preamble, mark and the length of the file meta information, which follows
BAD = "replace it or pass skip_bad=True"


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
    order, gap = _order(heads, files, folder)
    slices = [_stored_image(heads[i], files[i]) for i in order]
    for i, image in zip(order, slices, strict=True):
        a, b = (
            (
                part.stored.shape,
                part.stored.dtype.name,
                part.slope,
                part.intercept,
                part.unit,
            )
            for part in (image, slices[0])
        )
        if a != b or image.stored.ndim != 3:
            what = f"{files[i]} must have the shape and grey scale of {files[order[0]].name} ({b})"
            raise expected(what, got=str(a), do=BAD)
    first = slices[0]
    spacing = None if first.spacing is None else (gap, *first.spacing)
    return StoredImage(
        np.stack([image.stored for image in slices], axis=1),
        first.slope,
        first.intercept,
        None,
        first.unit,
        spacing,
        _series_orientation(heads, files, folder),
    )


def slice_order(folder: Path) -> list[Path]:
    """The files of a series in the order of the volume's first axis."""
    files = series_files(folder)
    order, _ = _order([open_dicom(path, pixels=False) for path in files], files, folder)
    return [files[i] for i in order]


def _order(
    heads: Sequence[Dataset], files: Sequence[Path], folder: Path
) -> tuple[list[int], float]:
    """The slices by position along their normal, and the distance of neighbours in
    millimetres.
    """
    for key in ("ImageOrientationPatient", "ImagePositionPatient"):
        odd = [
            path.name for path, head in zip(files, heads, strict=True) if not head.get(key)
        ]
        if odd:
            what = f"every slice in {folder} must have an orientation and a position"
            do = "move the other files out, or list the files one by one in a manifest"
            raise expected(what, got=f"no {key} in {few(odd)}", do=do)
    try:
        across = np.cross(*_plane(heads[0], files[0]).reshape(2, 3))
        along = np.array(
            [
                np.array(head.ImagePositionPatient, dtype=np.float64) @ across
                for head in heads
            ]
        )
    except (AttributeError, TypeError, ValueError) as error:
        what = f"every slice in {folder} must have an orientation and a position"
        raise expected(
            what, got=first_line(error), do="list the files one by one in a manifest"
        ) from error
    order = np.argsort(along, kind="stable")
    do = "remove duplicate slices or add missing ones"
    return order.tolist(), _even_gap(np.diff(along[order]), f"the slices in {folder}", do)


def _even_gap(gaps: np.ndarray, what: str, do: str) -> float:
    """The usual of the distances ``gaps`` of neighbours in millimetres, which must be about equal
    and not 0.
    """
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    if not np.isfinite(gaps).all() or (
        len(gaps)
        and (gaps.min() < 0.5 * usual or gaps.min() <= 0 or gaps.max() > 1.5 * usual)
    ):
        raise expected(
            f"{what} must be evenly spaced",
            got=f"gaps of {gaps.min():g} to {gaps.max():g} mm",
            do=do,
        )
    return usual


def _stored_image(head: Dataset, path: Path) -> StoredImage:
    pixels = pixels_of(head, path)
    slope, intercept, unit = _grey_scale(head, path, whole=pixels.dtype.kind in "ui")
    if head.PhotometricInterpretation == "MONOCHROME1":
        low, high = levels(head)
        slope, intercept = -slope, (low + high) * slope + intercept
    spacing = _spacing(head, pixels.ndim - 1)
    return StoredImage(
        pixels,
        slope,
        intercept,
        None,
        unit,
        spacing,
        _orientation(head, pixels.ndim - 1, path),
    )


def _orientation(head: Dataset, axes: int, path: Path) -> str:
    """The side of the patient that each axis of an image runs towards, such as ``PL`` for the
    rows and columns of an axial slice, or ``SPL`` of a stack; "?" for an axis that the header
    does not place, and nothing where it has no planes (C.7.6.2, C.7.6.16.2.4).
    """
    groups = [
        head,
        *head.get("SharedFunctionalGroupsSequence", ()),
        *head.get("PerFrameFunctionalGroupsSequence", ()),
    ]
    planes = [p for g in groups for p in g.get("PlaneOrientationSequence", ())] or [head]
    turned = [_plane(p, path) for p in planes if p.get("ImageOrientationPatient")]
    if not turned:
        return ""
    if max(np.abs(plane - turned[0]).max() for plane in turned) > LEAN:
        raise expected(
            f"the frames of {path} must be parallel",
            got="several orientations",
            do="split the file",
        )
    right, down = turned[0].reshape(2, 3)
    if axes == 2:
        return _side(down) + _side(right)
    places = [
        p
        for g in groups
        for p in g.get("PlanePositionSequence", ())
        if p.get("ImagePositionPatient")
    ]
    across = np.cross(right, down)
    gaps = np.diff([np.array(p.ImagePositionPatient, np.float64) @ across for p in places])
    way = 0.0  # of a loop in time, whose frames are all at one place
    if len(gaps) and not np.abs(gaps).max() <= LEAN:
        way = -1.0 if gaps.sum() < 0 else 1.0
        _even_gap(
            gaps * way,
            f"the frames of {path}",
            "split the file, or sort its frames by their position",
        )
    return _side(across * way) + _side(down) + _side(right)


def _plane(head: Dataset, path: Path) -> np.ndarray:
    """The directions of the rows and columns of an image, (6,)."""
    given = [float(v) for v in head.ImageOrientationPatient]
    if len(given) != 6 or not np.isfinite(given).all():
        what = f"{path} must have an orientation of six numbers"
        raise expected(what, got=given, do="correct the header or leave it out")
    return np.array(given)


def _series_orientation(
    heads: Sequence[Dataset], files: Sequence[Path], folder: Path
) -> str:
    """As ``_orientation``, of slices in the order of ``_order``, which must be parallel."""
    turned = np.array([_plane(head, path) for head, path in zip(heads, files, strict=True)])
    if np.abs(turned - turned[0]).max() > LEAN:
        got = (
            f"orientations that differ by up to {np.abs(turned - turned[0]).max():.2g}, as of a "
            "localizer"
        )
        raise expected(
            f"the slices in {folder} must be parallel",
            got=got,
            do="give each plane a folder of its own",
        )
    right, down = turned[0].reshape(2, 3)
    return _side(np.cross(right, down)) + _side(down) + _side(right)


def _side(direction: np.ndarray) -> str:
    """The side of the patient that a direction points to most: DICOM counts from right to left,
    from front to back and from the feet up.
    """
    axis = int(np.abs(direction).argmax())
    return (
        "?" if direction[axis] == 0 else "LPS"[axis] if direction[axis] > 0 else "RAI"[axis]
    )


def levels(head: Dataset) -> tuple[int, int]:
    """The lowest and highest number that the stored bits can hold."""
    bits = int(head.get("BitsStored", 0) or head.get("BitsAllocated", 8))
    return (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if head.get("PixelRepresentation", 0)
        else (0, 2**bits - 1)
    )


def pixels_of(head: Dataset, path: Path) -> np.ndarray:
    """The stored numbers of one data set, (C, H, W) or (C, D, H, W)."""
    if not any(
        key in head for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    ):
        what = str(head.get("Modality", "") or "an unknown kind of object")
        raise expected(
            f"{path} must hold an image",
            got=f"no pixel data ({what})",
            do="leave it out or pass skip_bad=True",
        )
    if head.get("BitsAllocated") == 1:
        raise expected(
            f"{path} must hold an image",
            got="a mask of one bit",
            do="leave it out or pass skip_bad=True",
        )
    high = head.get("HighBit")
    if (
        "PixelData" in head
        and high is not None
        and high != int(head.get("BitsStored") or high + 1) - 1
    ):
        what = (
            f"{path} must have the high bit {int(head.BitsStored) - 1}, one less than its "
            "stored bits"
        )
        raise expected(what, got=high, do="shift the numbers and correct the header")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            claimed = (
                head.get(k) or 1
                for k in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
            )
            check_size(
                path, [int(n) for n in claimed], int(head.get("BitsAllocated") or 8) / 8
            )
            pixels = head.pixel_array
            if head.PhotometricInterpretation == "PALETTE COLOR":
                pixels = apply_color_lut(pixels, head)
    except InputError:
        raise
    except RuntimeError as error:
        got = (
            f"{head.file_meta.TransferSyntaxUID.name}, which no installed decoder can read"
        )
        do = "install pylibjpeg[all] or python-gdcm, or replace the file"
        raise expected(
            f"{path} must hold pixels that can be decoded", got=got, do=do
        ) from error
    except Exception as error:  # decoders raise whatever they happen to meet
        raise expected(
            f"{path} must hold pixels that can be decoded", got=first_line(error), do=BAD
        ) from error
    pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    colour = (
        head.get("SamplesPerPixel", 1) == 3
        or head.PhotometricInterpretation == "PALETTE COLOR"
    )
    return np.moveaxis(pixels, -1, 0) if colour else pixels[None]


def _grey_scale(head: Dataset, path: Path, *, whole: bool) -> tuple[float, float, str]:
    """The slope and intercept that all frames share, and what a value is: HU, a stored grey
    level, or just a value.
    """
    if "ModalityLUTSequence" in head:
        what = f"{path} must have a linear grey scale"
        raise expected(what, got="a modality LUT", do="convert it to slope and intercept")
    groups = [head]
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups += [
            part
            for group in head.get(name, ())
            for part in group.get("PixelValueTransformationSequence", ())
        ]
    given = {
        tuple(group.get(f"Rescale{key}") for key in ("Slope", "Intercept", "Type"))
        for group in groups
    }
    given = {scale for scale in given if scale[:2] != (None, None)}
    if len({scale[:2] for scale in given}) > 1 or any(None in scale[:2] for scale in given):
        got = few(
            [f"slope {scale[0]}, intercept {scale[1]}" for scale in sorted(given, key=str)]
        )
        raise expected(
            f"{path} must have one rescale slope and intercept",
            got=got,
            do="correct the header or split it",
        )
    default = "HU" if given and head.get("Modality") == "CT" else None
    slope, intercept, kind = min(given, key=str) if given else (1.0, 0.0, None)
    if float(slope) == 0 or not np.isfinite([float(slope), float(intercept)]).all():
        raise expected(
            f"{path} must have a rescale slope other than 0",
            got=slope,
            do="correct the header",
        )
    if (kind or default) == "HU":
        return float(slope), float(intercept), "HU"
    plain = whole and (float(slope), float(intercept)) == (1.0, 0.0)
    return float(slope), float(intercept), "grey level" if plain else "value"


def _spacing(head: Dataset, axes: int) -> tuple[float, ...] | None:
    """Millimetres per pixel along (rows, columns) or (slices, rows, columns), where the header
    tells.
    """
    groups = [
        *head.get("SharedFunctionalGroupsSequence", ()),
        *head.get("PerFrameFunctionalGroupsSequence", ()),
    ]
    measures = [
        part for group in groups[:2] for part in group.get("PixelMeasuresSequence", ())
    ] or [head]
    plane = measures[0].get("PixelSpacing") or head.get("ImagerPixelSpacing")
    depth = (
        measures[0].get("SpacingBetweenSlices") or measures[0].get("SliceThickness")
        if axes == 3
        else None
    )
    mm = tuple(abs(float(v)) for v in (*([depth] if depth else ()), *(plane or ())))
    return mm if len(mm) == axes and min(mm) > 0 else None
