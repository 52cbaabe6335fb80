"""Pictures: PNG, JPEG, TIFF and the like, as they are stored."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from feathide.errors import InputError, expected, first_line
from feathide.formats.stored import StoredImage, grid_of
from feathide.types import Box

__all__ = [
    "PICTURES",
]

PICTURES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".webp",
    ".pgm",
    ".ppm",
)
# whatever the name says: no format that starts programs
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")


def is_picture(path: Path) -> bool:
    """Whether a file's name says that it is a PNG, JPEG, TIFF, ..."""
    return path.suffix.lower() in PICTURES


def read_picture(path: Path, box: Box | None = None) -> StoredImage:
    """A PNG, JPEG, TIFF, ... as it is stored: grey (1, H, W) or colour (3, H, W) of 8 or 16 bits,
    shown in [0, 1].
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as file:
            # of large pictures; Pillow refuses too large ones
            warnings.simplefilter("ignore")
            _check_picture(path, file)
            file.load()
            if file.mode in ("I;16", "I;16B", "I;16L", "I"):
                pixels = np.array(file)
            elif file.mode in ("1", "L", "LA"):
                pixels = np.array(file.convert("L"))
            else:
                pixels = np.array(file.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise whatever they happen to meet
        raise expected(
            f"{path} must be a readable picture",
            got=first_line(error),
            do="replace it or pass skip_bad=True",
        ) from error
    if pixels.dtype.kind == "i":  # 16-bit grey that Pillow widened
        if pixels.min() < 0 or pixels.max() > 65535:
            raise expected(
                f"{path} must have 8 or 16 bits",
                got=f"values {pixels.min()}..{pixels.max()}",
                do="convert it",
            )
        pixels = pixels.astype(np.uint16)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    stored = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)  # (C, H, W)
    slope, legal, unit = grid_of(stored.dtype, box)
    return StoredImage(stored, slope, 0.0, legal, unit)


def _check_picture(path: Path, file: Image.Image) -> None:
    """Refuse, before it is decoded, what Pillow would cut, turn or guess: pages, floats, 16-bit
    colour, signed bytes, inks.
    """
    # the others of an MPO are previews
    pages = 1 if file.format == "MPO" else int(getattr(file, "n_frames", 1))
    if pages > 1:
        raise expected(
            f"{path} must hold one picture",
            got=f"{pages} pages or frames",
            do="save each as its own file",
        )
    raw, got = str([tile[3] for tile in getattr(file, "tile", ())]), ""
    tags = getattr(file, "tag_v2", {})
    # BitsPerSample, SampleFormat
    bits, signs = max(tags.get(258, (1,))), max(tags.get(339, (1,)))
    deep = (
        ";16" in raw
        or bits > 8
        or (file.format == "PPM" and file.mode == "RGB" and _top(file) > 255)
    )
    if file.mode == "F" or signs == 3:
        got = f"{bits if bits > 8 else 32}-bit floats"
    elif deep and file.mode not in ("I;16", "I;16B", "I;16L", "I"):
        got = (
            f"16 bits of {'grey with alpha' if 'LA' in raw else 'colour'}, of which 8 would be "
            "read"
        )
    elif signs == 2 and bits <= 8:
        got = "signed bytes"
    # PhotometricInterpretation: Pillow turns these for 8 bits only
    elif bits > 8 and tags.get(262) == 0:
        got = "16 bits in which 0 is white"
    elif file.mode in ("CMYK", "LAB", "HSV"):
        got = f"{file.mode} colours"
    if got:
        what = f"{path} must be 8 or 16-bit grey or 8-bit RGB colour"
        raise expected(what, got=got, do="convert it, or store the numbers in npz or NIfTI")


def _top(file: Image.Image) -> int:
    """The largest number that a PPM's header allows."""
    numbers = [
        n
        for tile in getattr(file, "tile", ())
        if isinstance(tile[3], tuple)
        for n in tile[3]
    ]
    return max([n for n in numbers if isinstance(n, int)], default=255)
