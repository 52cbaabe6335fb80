"""The share of successes of something random: over cases and over draws, both of which might have
been others.
"""

import numpy as np
from numpy.typing import ArrayLike

from feathide.metrics.by_patient import draw, effective, patients_of
from feathide.metrics.intervals import Interval, _wilson

__all__ = ["share_over_draws"]


def share_over_draws(
    hits: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0, draws: int = 1000
) -> Interval:
    """The mean of successes over cases and draws, with both uncertainties in its interval.

    Column j of every row is the same draw of the network, so rows (by patient) and columns are
    drawn anew independently (the pigeonhole bootstrap, Owen 2007). The interval is Wilson's with
    the effective number v (1 - v) / variance of the bootstrap, at most that of the cases.

    Args:
        hits: Whether each case succeeds at each draw (N, D), D at least 2.
        groups: The patient of each row (N,); each row is its own by default.
        seed: The seed of the bootstrap.
        draws: The number of bootstrap samples.

    Returns:
        The mean with its interval; ``n`` counts the cases.

    Examples:
        >>> share_over_draws([[1, 0], [1, 0]]).value
        0.5
    """
    table = np.asarray(hits, np.float64)
    each = table.mean(1)
    rows, count = patients_of([each], groups)
    value, most = effective(each, rows[0])
    weights = draw(rows, count, draws, seed)[:, rows[0]]
    columns = table.shape[1]
    picked = np.random.default_rng([seed, 1]).integers(
        columns, size=(len(weights), columns)
    )
    chosen = np.stack([np.bincount(p, minlength=columns) for p in picked])
    found = np.einsum("bn,nd,bd->b", weights, table, chosen) / (weights.sum(1) * columns)
    size, spread = most, float(found.var())
    if spread > 0 and 0 < value < 1:
        size = min(most, value * (1 - value) / spread)
    return Interval(value, *_wilson(value, size, 0.95), len(table))
