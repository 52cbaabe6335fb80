"""How many components a mixture has: a number, or the best of several by held-out likelihood or
BIC.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.mixtures.mixture import Mixture

CANDIDATES = (1, 2, 4, 8, 16, 32, 64)


def components_of(components: int | Sequence[int] | str) -> Sequence[int]:
    if isinstance(components, int):
        return (components,)
    if isinstance(components, str) or not components:
        raise expected(
            'components must be a number, numbers or "auto"',
            got=components,
            do="give one of these",
        )
    return components


def curve_of(
    x: Tensor,
    candidates: Sequence[int],
    fit: Callable[[Tensor, int], Mixture],
    *,
    holdout: float,
    seed: int,
) -> list[dict[str, Any]]:
    """One row for each candidate: its held-out log-likelihood a sample and its BIC."""
    n = len(x) - round(len(x) * holdout)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(
        x.device
    )
    inside, outside = x[order[:n]], x[order[n:]].double()
    rows: list[dict[str, Any]] = []
    for m in candidates:
        mixture = fit(inside, m)
        heldout = float(mixture.log_prob(outside).mean()) if len(outside) else None
        rows.append({"components": m, "heldout": heldout, "bic": mixture.bic})
        if mixture.components < m or best_of(rows) not in [
            row["components"] for row in rows[-2:]
        ]:
            break
    return rows


def best_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """The number of components with the largest held-out log-likelihood, or the smallest BIC
    where nothing was held out.
    """
    best = max(
        rows, key=lambda row: -row["bic"] if row["heldout"] is None else row["heldout"]
    )
    return int(best["components"])
