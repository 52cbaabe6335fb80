"""How visible each attack is, image by image: ``visibility.csv``."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.stored_images import decode
from feathide.plans.plan import Cell
from feathide.report.visibility import similarity

__all__ = ["noise_ratio", "visibility_of"]

COLUMNS = ("attack", "objective", "eps", "id", "fooled", "psnr", "ssim", "largest_change")


def noise_ratio(a: np.ndarray, b: np.ndarray, span: float) -> float:
    """The peak signal-to-noise ratio of two images in dB: 10 log10(span^2 / mean square error);
    infinity where they are equal.

    Example:
        >>> noise_ratio(np.zeros(4), np.full(4, 0.1), 1.0)
        20.0
    """
    error = float(np.mean((np.asarray(a, np.float64) - b) ** 2))
    return 10 * math.log10(span**2 / error) if error else math.inf


def visibility_of(context: Context) -> pd.DataFrame:
    """A row for each attacked test image, the most visible first: the least structural
    similarity.
    """
    rows = [row for cell in cells(context) for row in _rows(context, cell)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.sort_values("ssim", kind="stable", ignore_index=True)


def _rows(context: Context, cell: Cell) -> Iterator[tuple[object, ...]]:
    low, high = context.cases.box
    span, head = high - low, (cell.attack.name, cell.objective.name, cell.eps)
    for key in context.steps.attack(cell, "test").keys:
        stored = context.store.load(key)
        if len(stored["rows"]) == 0:
            continue
        after = decode(stored["image"], context.limits.grid, context.cases.box).numpy()
        before = context.cases.images(stored["rows"])
        fooled = stored["prediction"] == stored["target"]
        for i, name in enumerate(stored["id"]):
            pair = np.asarray(before[i]), after[i]
            yield (
                *head,
                str(name),
                bool(fooled[i]),
                noise_ratio(*pair, span),
                similarity(*pair, span),
                float(stored["linf"][i]),
            )
