"""The images of the cases as PNG text: exact stored levels for the browser, and ready-made pairs
for paper.

A picture (C, *S) becomes a list of planes (channels x slices, then low and high byte) tiled into
one 8-bit grey PNG, so that images of any depth, number of channels and up to 16 bits reach the
page without loss. Adversarial images are stored as their difference to the clean one modulo the
number of levels of the type, which is exact and half as large."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from feathide.report.results import Case, Scale

__all__ = [
    "BUDGET",
    "Album",
    "busiest",
    "data_uri",
    "difference",
    "pairs",
    "tile",
    "triple",
    "view",
]

# characters of picture text in one report, so that the page stays below 15 MB
BUDGET = 8_500_000
# as --darker and --brighter of the page
DARKER, BRIGHTER = np.array([0, 114, 178]), np.array([150, 60, 150])


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def data_uri(pixels: np.ndarray) -> str:
    """uint8 pixels (H, W) or (H, W, 3) as a ``data:`` address."""
    return f"data:image/png;base64,{_png(pixels)}"


def tile(levels: np.ndarray, bits: int) -> str:
    """Levels (C, *S) as one grey PNG, base64: planes row by row in a near-square grid; with 16
    bits all low bytes, then all high bytes.
    """
    planes = levels.reshape(-1, *levels.shape[-2:]).astype(np.uint16)  # (P, H, W)
    if bits == 16:
        planes = np.concatenate([planes & 255, planes >> 8])
    p, h, w = planes.shape
    columns = math.ceil(math.sqrt(p * h / w))
    rows = math.ceil(p / columns)
    grid = np.zeros((rows * columns, h, w), np.uint8)
    grid[:p] = planes
    return _png(
        grid.reshape(rows, columns, h, w).swapaxes(1, 2).reshape(rows * h, columns * w)
    )


@dataclass
class Album:
    """Collects the pictures of a report, each clean image once, until the budget is spent."""

    scale: Scale
    budget: int = BUDGET
    pictures: list[str] = field(default_factory=list)
    clean: dict[bytes, int] = field(default_factory=dict)
    spent: int = 0

    @property
    def bits(self) -> int:
        """8 or 16: the width of the stored type."""
        return 8 if self.scale.levels <= 256 else 16

    def add(self, case: Case) -> dict[str, Any] | None:
        """Where the case's pictures stand in ``pictures``; None if they do not fit any more."""
        clean, adversarial = (
            self.scale.quantise(case.clean),
            self.scale.quantise(case.adversarial),
        )
        delta = (adversarial.astype(np.int32) - clean) % (1 << self.bits)
        key = clean.tobytes() + str(clean.shape).encode()
        text = [tile(delta, self.bits)]
        if key not in self.clean:
            text.append(tile(clean, self.bits))
        size = sum(map(len, text))
        if self.spent + size > self.budget:
            return None
        self.spent += size
        if key not in self.clean:
            self.clean[key] = len(self.pictures)
            self.pictures.append(text[1])
        self.pictures.append(text[0])
        return {
            "shape": clean.shape,
            "clean": self.clean[key],
            "delta": len(self.pictures) - 1,
        }


def view(x: np.ndarray, scale: Scale, at: int) -> np.ndarray:
    """Slice ``at`` of the first spatial axis of a volume (or the whole 2D image) as uint8 pixels,
    the box stretched to 0 .. 255.
    """
    flat = _slice(scale.quantise(x), at).astype(np.float64) * 255 / (scale.levels - 1)
    return _colour(np.rint(flat).astype(np.uint8))


def difference(case: Case, scale: Scale, at: int, amplify: float) -> np.ndarray:
    """The amplified difference as uint8 pixels (H, W, 3): violet brighter, blue darker, white
    unchanged; colour images show 128 + difference.
    """
    change = scale.quantise(case.adversarial).astype(np.int64) - scale.quantise(case.clean)
    d = _slice(change, at) * amplify / (scale.levels - 1)
    if len(d) == 3:
        return _colour(np.rint(np.clip(128 + 127 * d, 0, 255)).astype(np.uint8))
    strength = np.clip(np.abs(d[0]), 0, 1)[..., None]  # (H, W, 1)
    towards = np.where(d[0][..., None] > 0, BRIGHTER, DARKER)
    return np.rint(255 + strength * (towards - 255)).astype(np.uint8)


def _slice(levels: np.ndarray, at: int) -> np.ndarray:
    return levels if levels.ndim == 3 else levels[:, at]  # (C, H, W)


def _colour(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]


def busiest(case: Case) -> int:
    """The middlemost of the slices along the first spatial axis that change most, up to a tenth;
    0 for 2D images.
    """
    change = np.abs(case.adversarial - case.clean)
    if change.ndim == 3:
        return 0
    total = change.sum(axis=(0, *range(2, change.ndim)))  # (D,)
    most = np.flatnonzero(total >= 0.9 * total.max())
    return int(most[np.abs(most - (len(total) - 1) / 2).argmin()])


def pairs(
    cases: Mapping[str, Sequence[Case]], scale: Scale, *, amplify: float, count: int = 4
) -> Iterable[dict[str, Any]]:
    """The first fooled cases of each condition with ready-made pictures of their most changed
    slice, ``count`` or a few more.
    """
    fooled = {condition: [c for c in part if c.fooled] for condition, part in cases.items()}
    each = max(1, count // max(1, sum(map(bool, fooled.values()))))
    for condition, part in fooled.items():
        for case in part[:each]:
            yield {
                "condition": condition,
                "case": case,
                "slice": busiest(case),
                "pictures": triple(case, scale, amplify),
            }


def triple(case: Case, scale: Scale, amplify: float) -> list[str]:
    """The most changed slice as it was, attacked, and the amplified difference, as addresses."""
    at = busiest(case)
    both = [view(x, scale, at) for x in (case.clean, case.adversarial)]
    return [data_uri(p) for p in (*both, difference(case, scale, at, amplify))]
