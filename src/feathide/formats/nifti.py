"""NIfTI as it is stored: the raw numbers, the header's slope and intercept, the axes in the order
of the file.
"""

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError

from feathide.errors import expected, first_line
from feathide.formats.safety import check_size
from feathide.formats.stored import StoredImage

__all__ = ["is_nifti", "open_nifti", "read_nifti"]

BAD = "replace it or pass skip_bad=True"


def is_nifti(path: Path) -> bool:
    """Whether a file's name says that it is NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def open_nifti(path: Path) -> Nifti1Image:
    """The image with its header, the voxels still on disk. Raises InputError for other files."""
    try:
        image = nib.load(path)
    except (
        ImageFileError,
        HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
        raise expected(
            f"{path} must be a readable NIfTI file", got=first_line(error), do=BAD
        ) from error
    if not isinstance(image, Nifti1Image):
        raise expected(
            f"{path} must be a NIfTI volume",
            got=type(image).__name__,
            do="leave it out or pass skip_bad=True",
        )
    return image


def read_nifti(path: Path) -> StoredImage:
    """One volume (1, X, Y, Z), or picture (1, X, Y), in the order of the file's axes; trailing
    axes of length 1 are dropped.

    Nothing is resampled or reoriented; ``orientation`` (RAS, LPS, ...) lets the reader of a study
    refuse a mixture. Raises InputError for truncated files, more axes, colour and complex voxels.
    """
    image = open_nifti(path)
    shape = list(image.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3):
        what = f"{path} must be a picture or one volume"
        raise expected(
            what,
            got=f"shape {tuple(image.shape)}",
            do="extract one time point, or pass skip_bad=True",
        )
    check_size(path, shape, image.get_data_dtype().itemsize)
    try:
        raw = np.asanyarray(image.dataobj.get_unscaled())
    except (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise expected(
            f"{path} must hold all its voxels", got=first_line(error), do=BAD
        ) from error
    if raw.dtype.kind not in "uif":
        raise expected(
            f"{path} must hold numbers",
            got=str(raw.dtype),
            do="convert it to int16 or float32",
        )
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    return StoredImage(
        stored=raw.astype(raw.dtype.newbyteorder("=")).reshape(1, *shape),
        slope=slope,
        intercept=intercept,
        legal=None,
        unit="value"
        if (slope, intercept) != (1.0, 0.0)
        else "grey level"
        if raw.dtype.kind in "ui"
        else "value",
        spacing=tuple(float(mm) for mm in image.header.get_zooms()[: len(shape)]),
        orientation="".join(nib.aff2axcodes(image.affine)),
    )
