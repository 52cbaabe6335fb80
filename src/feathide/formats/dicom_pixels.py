"""The pixels of a DICOM data set, and what its numbers mean: HU, grey levels, millimetres.

Reference: DICOM PS3.3 C.7.6.3 (image pixel), C.11.1 (modality LUT).
"""

import warnings
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.pixels import apply_color_lut

from feathide.errors import InputError, expected, few, first_line
from feathide.formats.safety import check_size

__all__ = [
    "pixels_of",
]

BAD = "replace it or pass skip_bad=True"


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
    _check_pixels(head, path)
    pixels = _decoded(head, path)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    colour = (
        head.get("SamplesPerPixel", 1) == 3
        or head.PhotometricInterpretation == "PALETTE COLOR"
    )
    return np.moveaxis(pixels, -1, 0) if colour else pixels[None]


def _check_pixels(head: Dataset, path: Path) -> None:
    """Refuse what is no image, a mask of one bit, and numbers that do not fill their bits."""
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


def _decoded(head: Dataset, path: Path) -> np.ndarray:
    """The pixels as the decoder gives them, colours looked up; refuses what it cannot read."""
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
    return pixels


def grey_scale(head: Dataset, path: Path, *, whole: bool) -> tuple[float, float, str]:
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


def spacing_of(head: Dataset, axes: int) -> tuple[float, ...] | None:
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
