"""What an archive that compresses with loss leaves of an image: JPEG and JPEG 2000, slice by
slice.
"""

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from feathide.errors import expected

__all__ = ["Codec"]


@dataclass(frozen=True)
class Codec:
    """``jpeg`` of a quality from 1 to 95 (8 bits), or ``jpeg2000`` of a compression ratio such as
    10 (8 or 16 bits).
    """

    kind: str
    value: int

    @classmethod
    def parse(cls, text: str) -> "Codec":
        """``jpeg 90``, ``jpeg2000 10``. Raises ``InputError`` for anything else."""
        found = re.fullmatch(r"(jpeg|jpeg2000) +(\d{1,3})", text.strip())
        codec = cls(found.group(1), int(found.group(2))) if found else None
        if codec is None or not 1 <= codec.value <= (95 if codec.kind == "jpeg" else 100):
            do = (
                "give the quality of a JPEG, 1 to 95, or how many times smaller JPEG 2000 "
                "makes the image"
            )
            raise expected(
                "an archive must be such as 'jpeg 90' or 'jpeg2000 10'",
                got=repr(text),
                do=do,
            )
        return codec

    @property
    def name(self) -> str:
        """``jpeg90``, ``jpeg2000x10``"""
        return f"jpeg{self.value}" if self.kind == "jpeg" else f"jpeg2000x{self.value}"

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """The whole numbers (N, C, *S), uint8 or uint16, as they come back; volumes are
        compressed slice by slice along their first axis.
        """
        if stored.dtype != np.uint8 and (
            self.kind == "jpeg" or stored.dtype != np.uint16 or stored.shape[1] != 1
        ):
            what = (
                "JPEG holds 8 bits"
                if self.kind == "jpeg"
                else "JPEG 2000 holds one channel of 16 bits or colour of 8"
            )
            got, do = (
                f"{stored.shape[1]} channels of {stored.dtype}",
                "choose another archive, such as 'jpeg2000 10'",
            )
            raise expected(what, got=got, do=do)
        planes = np.moveaxis(stored, 1, -1)  # (N, *S, C)
        flat = planes.reshape(-1, *planes.shape[-3:])  # (slices, H, W, C)
        back = [self._plane(plane) for plane in flat]
        return np.moveaxis(np.stack(back).reshape(planes.shape), -1, 1) if back else stored

    def _plane(self, plane: np.ndarray) -> np.ndarray:
        """One slice (H, W, C)."""
        how: dict[str, Any] = {"format": "JPEG", "quality": self.value}
        if self.kind == "jpeg2000":
            how = {
                "format": "JPEG2000",
                "quality_mode": "rates",
                "quality_layers": [self.value],
                "irreversible": True,
            }
        stream = io.BytesIO()
        Image.fromarray(plane[..., 0] if plane.shape[-1] == 1 else plane).save(
            stream, **how
        )
        with Image.open(stream) as image:
            return np.asarray(image).reshape(plane.shape)
