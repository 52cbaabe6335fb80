"""Where an attacker may change an image: a region from a file, or from the user's own code."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from feathide.data import Cases
from feathide.data.files import read_image
from feathide.data.pictures import FORMATS, PICTURES
from feathide.errors import expected, first_line
from feathide.formats.safety import load_arrays
from feathide.registry.user_code import load_callable

__all__ = ["Region", "load_region"]


@dataclass(frozen=True, eq=False)
class Region:
    """``of(x)`` gives 1 where the images ``x`` (N, C, *S) may change and 0 elsewhere, (N or 1, C
    or 1, *S); ``digest`` names its content.
    """

    of: Callable[[Tensor], Tensor]
    digest: str


def load_region(spec: str, cases: Cases, *, trust: bool) -> Region:
    """The region that a plan's ``mask`` names.

    A file: one array in an npz (called ``mask`` where there are more), NIfTI, DICOM or a picture,
    of the images' shape *S or (C or 1, *S); other numbers than 0 are inside (of an indexed
    picture the index, of one colour with alpha the alpha). ``package.module:callable`` or
    ``file.py:callable``, which runs only with ``trust``: takes the images (N, C, *S) in box units
    and gives 1 or 0, (N or 1, C or 1, *S); an image's mask must not depend on the others.

    Raises ``InputError`` for another shape, an empty mask and a file that is no image.
    """
    path = Path(spec)
    if not os.path.exists(path) and ":" in spec:
        return _from_code(spec, trust)
    numbers = (
        _array(path)
        if path.suffix.lower() == ".npz"
        else _of_image(path, cases.orientation)
    )
    if numbers.dtype.kind == "f" and np.isnan(numbers).any():
        raise expected(
            f"the mask {spec} must be numbers", got="NaN", do="mark the outside with 0"
        )
    inside = numbers != 0
    axes = len(cases.shape)
    if inside.ndim not in (axes, axes + 1) or inside.shape[-axes:] != cases.shape:
        raise expected(
            f"the mask {spec} must have the images' shape {cases.shape}",
            got=inside.shape,
            do="resample it as the images",
        )
    inside = inside.reshape(1, -1, *cases.shape)  # (1, C or 1, *S)
    if inside.shape[1] not in (1, cases.channels):
        inside = inside.any(1, keepdims=True)  # a colour picture of a mask for grey images
    if not inside.any():
        raise expected(
            f"the mask {spec} must leave room for a change",
            got="only zeros",
            do="mark the region with 1",
        )
    mask = torch.from_numpy(inside)
    return Region(
        lambda x: mask.to(x),
        sha256(repr(inside.shape).encode() + np.packbits(inside).tobytes()).hexdigest(),
    )


def _of_image(path: Path, orientation: str) -> np.ndarray:
    """The numbers of a mask's file: of an indexed picture the index, of one colour with alpha the
    alpha. Refuses one that lies otherwise than the images.
    """
    image = read_image(path)
    stored = image.stored
    if image.orientation and orientation and image.orientation != orientation:
        what = f"the mask {path} must have the orientation of the images ({orientation})"
        raise expected(
            what,
            got=image.orientation,
            do="orient it like the images, in the same kind of file",
        )
    if path.suffix.lower() not in PICTURES:
        return stored
    with Image.open(path, formats=FORMATS) as file:
        alpha = (
            np.array(file.convert("RGBA"))[..., 3] if file.has_transparency_data else None
        )
        if file.mode == "P":
            index, lit = np.array(file), np.asarray(stored.any(axis=0))
            if lit[index == 0].any() and not lit[index != 0].all():
                got = "a palette whose index 0 is not black while another is"
                raise expected(
                    f"the mask {path} must be 0 outside",
                    got=got,
                    do="save it as grey, 0 and 255",
                )
            return index[None]
    if alpha is None or (alpha == 255).all():
        return stored
    if any(len(np.unique(channel)) > 1 for channel in stored):
        got = "colours and an alpha channel that both vary"
        raise expected(
            f"the mask {path} must be told by one of them",
            got=got,
            do="save it as grey, 0 and 255",
        )
    return alpha[None]


def _from_code(spec: str, trust: bool) -> Region:
    entry = load_callable(spec, trust=trust)
    source = inspect.getsourcefile(inspect.unwrap(entry))
    code = Path(source).read_bytes() if source else b""

    def of(x: Tensor) -> Tensor:
        inside = entry(x)
        fits = isinstance(inside, Tensor) and inside.ndim == x.ndim
        if not fits or any(
            m not in (1, s) for m, s in zip(inside.shape, x.shape, strict=True)
        ):
            got = (
                tuple(inside.shape) if isinstance(inside, Tensor) else type(inside).__name__
            )
            raise expected(
                f"{spec} must give a tensor (N or 1, C or 1, *S) for {tuple(x.shape)}",
                got=got,
                do="correct it",
            )
        return (inside.detach() != 0).to(x)

    return Region(of, sha256(spec.encode() + code).hexdigest())


def _array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            arrays = load_arrays(stream)
    except Exception as error:  # the readers raise whatever they happen to meet
        raise expected(
            f"{path} must be a readable npz file", got=first_line(error), do="save it again"
        ) from None
    if "mask" not in arrays and len(arrays) != 1:
        raise expected(
            f"{path} must hold an array 'mask'",
            got=", ".join(arrays) or "none",
            do="rename it",
        )
    return arrays.get("mask", next(iter(arrays.values())))
