"""The covariance that the components of a wide "lowrank" mixture share, by factor analysis: no C x C matrix is ever made.

For standardised channels T = L L^T + diag(psi), with few factors L (C, R) and psi_c what they leave of the variance of channel c. In turns:
the leading eigenvectors of diag(psi)^-1/2 S diag(psi)^-1/2, by one step of subspace iteration in products with the samples only, and psi.

Of few samples the leading eigenvalues are too large, and noise alone has leading directions. For C channels, n samples and noise of variance 1, an
eigenvalue v that lies above the edge (1 + sqrt(g))^2, g = C/n, stems from a variance l with v = l (1 + g / (l - 1)) (Baik and Silverstein 2006; Donoho,
Gavish and Johnstone 2018): l is taken in its place, and a direction below the edge is no factor. So the samples decide how many factors there are.
"""

import torch
from torch import Tensor

__all__ = ["COMMON", "WIDE", "common_factors", "leading_scores", "leading_variances"]

COMMON = 64  # factors at most
WIDE = 4 * COMMON  # channels above which factors are less work than a covariance
ROUNDS = 3
LEAST = 0.01  # of a channel's variance within clusters is its own
FLOOR = 1e-4  # of its variance, at least


def common_factors(z: Tensor, samples: int) -> Tensor:
    """The whitener (C, R + 1) of T for centred rows z (N, C) of unit variance with ``samples`` degrees of freedom (``shapes``)."""
    n, c = max(samples, 2), z.shape[1]
    variance = (z.square().sum(0) / n).clamp_min(FLOOR)
    psi = variance
    y = z @ _random(c, min(COMMON, len(z))).to(z)
    loadings = z.new_zeros(c, 0)
    for _ in range(ROUNDS):
        root = psi.sqrt()[:, None]
        q = torch.linalg.qr(z.T @ y / root).Q
        y = z @ (q / root)
        values, rotation = torch.linalg.eigh(y.T @ y / n)
        loadings = (q @ rotation) * (_unbiased(values, c / n) - 1).sqrt() * root
        psi = torch.maximum(variance - loadings.square().sum(1), (LEAST * variance).clamp_min(FLOOR))
    return _whitener(loadings.double(), psi.double())


def leading_scores(z: Tensor, rank: int) -> Tensor:
    """The rows of z (N, C) in about their leading directions, (N, rank): enough to find clusters."""
    y = z @ _random(z.shape[1], min(rank, *z.shape)).to(z)
    return z @ torch.linalg.qr(z.T @ y).Q


def leading_variances(d: Tensor, rank: int = 8) -> Tensor:
    """The variances (R,) of the rows d (n, C) in their leading directions, without what few samples add to them."""
    y = leading_scores(d, rank)
    values = torch.linalg.eigvalsh((y.T @ y).double() / len(d))
    return _unbiased(values, d.shape[1] / len(d))


def _unbiased(values: Tensor, ratio: float) -> Tensor:
    """The variances l of the eigenvalues; 1, that of the noise, below the edge."""
    b = values + 1 - ratio
    found = (b + (b.square() - 4 * values).clamp_min(0).sqrt()) / 2
    return torch.where(values > (1 + ratio**0.5) ** 2, found, 1)


def _whitener(loadings: Tensor, psi: Tensor) -> Tensor:
    """[w | Q] of A = diag(w) (I - Q Q^T) with A A^T = (L L^T + diag(psi))^-1: in units of psi, T is I + W W^T."""
    w = psi.rsqrt()
    scaled = loadings * w[:, None]
    values, rotation = torch.linalg.eigh(scaled.T @ scaled)
    kept = values > 1e-6
    values, rotation = values[kept], rotation[:, kept]
    return torch.cat([w[:, None], scaled @ rotation * ((1 - (1 + values).rsqrt()) / values).sqrt()], 1)


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
