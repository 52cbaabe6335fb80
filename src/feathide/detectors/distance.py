"""Distances between many samples and many references: matrix products in chunks, memory
independent of N.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ITSELF", "in_chunks", "log_of", "nearest", "squared"]

ELEMENTS = 2**23  # of the largest intermediate matrix: 64 MiB in float64
ITSELF = 1e-4  # a nearest reference this much closer than the second is the sample itself


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """``function`` of the rows of ``x``, so many at a time that rows x ``width`` stays small."""
    return torch.cat([function(part) for part in x.split(max(1, ELEMENTS // width))])


def log_of(distances: Tensor) -> Tensor:
    """The logarithm of distances, which may be 0."""
    return distances.clamp_min(torch.finfo(distances.dtype).tiny).log()


def squared(x: Tensor, reference: Tensor) -> Tensor:
    """Squared Euclidean distances (N, R) of ``x`` (N, C) to ``reference`` (R, C), by one matrix
    product.

    Both are centred first: the product loses digits where the norms are large beside the
    distances."""
    centre = reference.mean(0)
    x, reference = x - centre, reference - centre
    return (
        x.square().sum(1, keepdim=True) + reference.square().sum(1) - 2 * x @ reference.T
    ).clamp_min(0)


def nearest(x: Tensor, reference: Tensor, k: int) -> Tensor:
    """Distances to the ``k`` nearest references, ascending, (N, k); needs at least k + 1
    references, all different.

    Neighbours are chosen by ``squared``, without gradient; their distances are computed from the
    differences, hence exact and differentiable. A sample that is itself a reference does not
    count itself: the nearest one is passed over where it is 10,000 times closer than the second.
    """

    def rows(part: Tensor) -> Tensor:
        with torch.no_grad():
            # (n, k + 1)
            index = squared(part, reference).topk(k + 1, largest=False).indices
            distance = (part[:, None] - reference[index]).square().sum(2).sqrt()
            distance, order = distance.sort(1)
            index = index.gather(1, order)
            itself = distance[:, :1] <= ITSELF * distance[:, 1:2]
            index = torch.where(itself, index[:, 1:], index[:, :-1])  # (n, k)
        return (
            (part[:, None] - reference[index])
            .square()
            .sum(2)
            .clamp_min(torch.finfo(x.dtype).tiny)
            .sqrt()
        )

    return in_chunks(rows, x, max(len(reference), (k + 1) * x.shape[1]))
