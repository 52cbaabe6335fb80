"""Where expectation maximisation begins: k-means from a greedy k-means++ seeding."""

import math

import torch
from torch import Tensor

__all__ = ["kmeans"]


def kmeans(z: Tensor, clusters: int, generator: torch.Generator, *, max_iter: int = 30) -> Tensor:
    """The cluster of each row of z (N, C), as (N,); fewer clusters where z has fewer distinct rows."""
    centres = _seed(z, clusters, generator)
    labels = _distances(z, centres).argmin(1)
    for _ in range(max_iter):
        total = torch.zeros_like(centres).index_add_(0, labels, z)
        count = labels.bincount(minlength=len(centres))[:, None]
        centres = torch.where(count > 0, total / count.clamp_min(1), centres)
        moved = _distances(z, centres).argmin(1)
        if bool((moved == labels).all()):
            break
        labels = moved
    return labels


def _seed(z: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): of a few draws the one that leaves the least distance."""
    n, tries = len(z), 2 + int(math.log(clusters))
    centres = z[torch.randint(n, (1,), generator=generator).to(z.device)]
    nearest = (z - centres).square().sum(1)
    tiny = 1e-18 * float(z.square().sum(1).max())
    while len(centres) < clusters and float(nearest.max()) > tiny:
        drawn = torch.multinomial(nearest.cpu(), tries, replacement=True, generator=generator).to(z.device)
        left = torch.minimum(nearest, _distances(z, z[drawn]).T)  # (tries, N)
        best = int(left.sum(1).argmin())
        centres = torch.cat([centres, z[drawn[best]][None]])
        nearest = torch.minimum(nearest, (z - centres[-1]).square().sum(1))
    return centres


def _distances(z: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (N, M)."""
    return (z.square().sum(1, keepdim=True) - 2 * z @ centres.T + centres.square().sum(1)).clamp_min(0)
