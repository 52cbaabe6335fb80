"""Where expectation maximisation begins: k-means from a greedy k-means++ seeding."""

import math

import torch
from torch import Tensor

__all__ = ["kmeans"]


def kmeans(
    z: Tensor, clusters: int, generator: torch.Generator, *, max_iter: int = 20
) -> Tensor:
    """The cluster of each row of z (N, C), as (N,); fewer clusters where z has fewer distinct
    rows.
    """
    if clusters == 1:
        return torch.zeros(len(z), dtype=torch.long, device=z.device)
    norms = z.square().sum(1)
    centres = _seed(z, norms, clusters, generator)
    labels = _distances(z, norms, centres).argmin(1)
    for _ in range(max_iter if len(centres) > 1 else 0):
        share = torch.nn.functional.one_hot(labels, len(centres)).to(z)
        count = share.sum(0)[:, None]
        centres = torch.where(count > 0, share.T @ z / count.clamp_min(1), centres)
        moved = _distances(z, norms, centres).argmin(1)
        if bool((moved == labels).all()):
            break
        labels = moved
    return labels


def _seed(z: Tensor, norms: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): of a few draws the one that leaves the
    least distance.
    """
    tries = 2 + int(math.log(clusters))
    chosen = torch.randint(len(z), (1,), generator=generator).to(z.device)
    nearest = (z - z[chosen]).square().sum(1)
    tiny = 1e-10 * float(norms.max())  # closer rows are the same but for rounding
    while len(chosen) < clusters and float(nearest.max()) > tiny:
        weights = torch.where(nearest > tiny, nearest, 0).double().cpu()
        drawn = torch.multinomial(weights, tries, replacement=True, generator=generator).to(
            z.device
        )
        left = torch.minimum(nearest, _distances(z, norms, z[drawn]).T)  # (tries, N)
        left[torch.arange(tries), drawn] = 0
        best = int(left.sum(1).argmin())
        chosen, nearest = torch.cat([chosen, drawn[best : best + 1]]), left[best]
    return z[chosen]


def _distances(z: Tensor, norms: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (N, M)."""
    return (
        torch.addmm(norms[:, None], z, centres.T, alpha=-2)
        .add_(centres.square().sum(1))
        .clamp_min_(0)
    )
