"""Scores as they must be: numbers, at least one, in float64; and the correlation of two."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from feathide.errors import expected

__all__ = [
    "spearman",
]

Floats = NDArray[np.float64]
Counts = NDArray[np.intp]
Arrays = list[NDArray[Any]]


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """The correlation of the ranks of ``a`` and ``b`` (mean ranks for ties); NaN if one of them
    is constant.
    """
    ranks = [rankdata(scores_of(v)) for v in (a, b)]
    x, y = (r - r.mean() for r in ranks)
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


def scores_of(values: ArrayLike) -> Floats:
    """``values`` as float64 (N,); refuses NaN, and no score at all."""
    scores = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(scores):
        raise expected(
            "there must be at least one score",
            got="none",
            do="check which images were selected",
        )
    if np.isnan(scores).any():
        raise expected(
            "scores must be numbers",
            got=f"{int(np.isnan(scores).sum())} NaN of {len(scores)}",
            do="find the image that causes it",
        )
    return scores
