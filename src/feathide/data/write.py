"""Images written back in the format of their source: PNG, JPEG, DICOM, NIfTI.

Voxels that were not changed keep their stored number, bit for bit; the others take the nearest
number that the file can hold."""

import gzip
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from feathide.data.derive import deidentified, derived
from feathide.data.files import read_image
from feathide.data.pictures import is_picture, read_picture
from feathide.errors import expected
from feathide.formats.dicom import open_dicom, read_dicom, read_series, slice_order
from feathide.formats.dicom_pixels import levels
from feathide.formats.nifti import is_nifti, open_nifti, read_nifti
from feathide.formats.stored import StoredImage
from feathide.types import Box

__all__ = ["read_back", "write_like"]


def write_like(
    source: str | Path,
    image: np.ndarray,
    out: str | Path,
    *,
    quality: int = 95,
    deidentify: bool = False,
    box: Box | None = None,
) -> Path:
    """Write ``image`` (C, *S), in box units, the way ``source`` is stored: bit depth, sign,
    slope, intercept, affine.

    PNG and other pictures: the ending of ``out`` chooses the format, JPEG with ``quality``.
    DICOM: a derived object with new instance and series UIDs and notes that it is a test image;
    compressed sources are written uncompressed, palettes and YBR as RGB; ``deidentify`` empties
    texts, dates and names. A series folder is written as a folder.
    NIfTI: the source's header byte by byte, ``.nii`` or ``.nii.gz``. ``box`` as the source was
    read with it. The file appears whole or not at all.

    Raises InputError for another shape than the source's (pictures may be resized), values that
    the file cannot hold, NaN."""
    source, out = Path(source), Path(out)
    _check_format(source, out)
    if is_picture(source):
        size, channels = image.shape[1:], len(image)
        like = read_picture(source, box).on(size, channels)
        _replace(out, _picture(_stored(like, image, source), out, quality))
    elif is_nifti(source):
        _replace(out, _nifti(source, _stored(read_nifti(source), image, source), out))
    elif source.is_dir():
        files = slice_order(source)
        stored = _stored(
            read_series(source), image, source, levels(open_dicom(files[0], pixels=False))
        )
        out.mkdir(parents=True, exist_ok=True)
        for k, path in enumerate(files):
            name = f"{k:04d}.dcm" if deidentify else path.name
            _replace(out / name, _dicom(path, stored[:, k], deidentify))
    else:
        stored = _stored(
            read_dicom(source), image, source, levels(open_dicom(source, pixels=False))
        )
        _replace(out, _dicom(source, stored, deidentify))
    return out


def read_back(path: str | Path, *, box: Box | None = None) -> np.ndarray:
    """The image of a file, or series folder, in box units, (C, *S) float32."""
    return read_image(Path(path), box).values


def _check_format(source: Path, out: Path) -> None:
    kinds = [
        "a picture" if is_picture(p) else "NIfTI" if is_nifti(p) else "DICOM"
        for p in (source, out)
    ]
    if kinds[0] != kinds[1]:
        what = f"{out} must be named as {kinds[0]}, the format of {source.name}"
        raise expected(what, got=f"the name of {kinds[1]}", do="change its ending")


def _stored(
    like: StoredImage, image: np.ndarray, source: Path, legal: tuple[int, int] | None = None
) -> np.ndarray:
    """The numbers to store for ``image`` on the grey scale of ``like``; ``legal`` are the numbers
    that the bits can hold.
    """
    if image.shape != like.stored.shape:
        got, do = f"{tuple(image.shape)}", "read the source without size and channels"
        raise expected(
            f"an image like {source} must have the shape {like.stored.shape}",
            got=got,
            do=do,
        )
    if not np.isfinite(image).all():
        raise expected(
            f"the image to write like {source} must be finite",
            got="NaN or infinity",
            do="check the attack",
        )
    dtype, same = like.stored.dtype, image == like.values
    numbers = (image.astype(np.float64) - like.intercept) / like.slope
    if dtype.kind in "ui":
        # the bits of a palette are those of its indices
        grey = legal if len(image) == 1 else None
        low, high = grey or (np.iinfo(dtype).min, np.iinfo(dtype).max)
        numbers = np.where(same, low, np.rint(numbers))  # what is kept is not looked at
        if numbers.min() < low or numbers.max() > high:
            got = f"{numbers.min():g}..{numbers.max():g}"
            raise expected(
                f"{source} can store whole numbers {low}..{high}",
                got=got,
                do="clip the image to the box",
            )
    return np.where(same, like.stored, numbers.astype(dtype))


def _picture(stored: np.ndarray, out: Path, quality: int) -> bytes:
    jpeg = out.suffix.lower() in (".jpg", ".jpeg")
    if jpeg and stored.dtype != np.uint8:
        raise expected(
            f"{out} must have 8 bits to be a JPEG", got=str(stored.dtype), do="write a PNG"
        )
    stream = io.BytesIO()
    pixels = Image.fromarray(stored[0] if len(stored) == 1 else np.moveaxis(stored, 0, -1))
    pixels.save(
        stream,
        Image.registered_extensions()[out.suffix.lower()],
        **({"quality": quality} if jpeg else {}),
    )
    return stream.getvalue()


def _nifti(source: Path, stored: np.ndarray, out: Path) -> bytes:
    """The source's bytes with other voxels: header, extensions and affine stay as they are."""
    image = open_nifti(source)
    voxels = stored.reshape(image.shape).astype(image.get_data_dtype()).tobytes(order="F")
    old = (
        gzip.decompress(source.read_bytes())
        if source.name.lower().endswith(".gz")
        else source.read_bytes()
    )
    start = int(image.dataobj.offset)
    new = old[:start] + voxels + old[start + len(voxels) :]
    return gzip.compress(new, mtime=0) if out.name.lower().endswith(".gz") else new


def _dicom(source: Path, stored: np.ndarray, deidentify: bool) -> bytes:
    head = open_dicom(source)
    missing = [key for key in ("SOPClassUID", "SOPInstanceUID") if not head.get(key)]
    if missing:
        what = f"{source} must have the header of a complete DICOM object"
        raise expected(what, got=f"no {' and '.join(missing)}", do="repair the source")
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # of values in the source's header that break the standard
        warnings.simplefilter("ignore")
        derived(deidentified(head) if deidentify else head, stored).save_as(
            stream, enforce_file_format=True
        )
    return stream.getvalue()


def _replace(out: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    part = out.with_name(f".{out.name}.part")
    part.write_bytes(data)
    os.replace(part, out)
