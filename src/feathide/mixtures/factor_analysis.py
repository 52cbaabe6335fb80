"""The covariance that the components of a wide "lowrank" mixture share, by factor analysis: no C
x C matrix is ever made.

For standardised channels T = L L^T + diag(psi), with few factors L (C, R) and psi_c what they
leave of the variance of channel c. In turns: psi, and the leading eigenvectors of diag(psi)^-1/2
S diag(psi)^-1/2, by one step of subspace iteration in products with the samples only. It begins
with a few of the samples, and a step with more of them.

Of few samples the leading eigenvalues are too large, and noise alone has leading directions. For
C channels, n samples and noise of variance 1, an eigenvalue v that lies above the edge (1 +
sqrt(g))^2, g = C/n, stems from a variance l with v = l (1 + g / (l - 1)) (Baik and Silverstein
2006; Donoho, Gavish and Johnstone 2018): l is taken in its place, and a direction below the edge
is no factor. So the samples decide how many factors there are."""

import torch
from torch import Tensor

__all__ = [
    "COMMON",
    "ROWS",
    "WIDE",
    "column_squares",
    "common_factors",
    "leading_scores",
    "leading_variances",
]

COMMON = 64  # factors at most
START = 8 * COMMON  # samples at least that a first look is at
WIDE = 4 * COMMON  # channels above which factors are less work than a covariance
ROUNDS = 3
FEW_ROUNDS = 5  # of fewer samples than channels: each is less work and brings less
ROWS = 128  # that are worked on at a time: they stay in the processor's cache
STEPS = 8  # of subspace iteration
LEAST = 0.01  # of a channel's variance within clusters is its own
FLOOR = 1e-4  # of its variance, at least


def common_factors(z: Tensor, samples: int) -> tuple[Tensor, float]:
    """The whitener (C, R + 1) of T (``shapes``) for centred rows z (N, C) of unit variance with
    ``samples`` degrees of freedom, and the mean squared distance of the rows, tr(T^-1 S).
    """
    n, c = max(samples, 2), z.shape[1]
    variance = column_squares(z) / n
    psi = floored = variance.clamp_min(FLOOR)
    part = _some(z)
    pulled = (z[:: max(1, len(z) // COMMON)][:COMMON] / psi @ part.T) @ part
    for left in reversed(range(ROUNDS if n >= c else FEW_ROUNDS)):
        q = _orthonormal(pulled / psi.sqrt())
        y = q / psi.sqrt() @ z.T
        values, rotation = torch.linalg.eigh(y @ y.T / n)
        variances, q = _unbiased(values, c / n), rotation.T @ q
        if left:
            loadings = q * (variances - 1).sqrt()[:, None] * psi.sqrt()
            psi = torch.maximum(
                floored - loadings.square().sum(0), (LEAST * floored).clamp_min(FLOOR)
            )
            pulled = y @ z
    found = variances > 1
    w, q, along = psi.double().rsqrt(), q[found].double(), n * values[found].double()
    share = 1 - variances[found].double().rsqrt()
    captured = along * share * (2 - share * q.square().sum(1))
    distance = (w.square() * variance).sum() * n - captured.sum()
    return torch.cat([w[None], q * share.sqrt()[:, None]]).T.contiguous(), float(
        distance
    ) / len(z)


def leading_scores(z: Tensor, rank: int) -> Tensor:
    """The rows of z (N, C) in about their leading directions, (N, rank): enough to find
    clusters.
    """
    return (leading_directions(_some(z), rank) @ z.T).T


def leading_directions(z: Tensor, rank: int, steps: int = 1) -> Tensor:
    """About the leading directions of the rows of z (N, C), (rank, C), by steps of subspace
    iteration.
    """
    q = _random(min(rank, z.shape[1]), z.shape[1]).to(z)
    for _ in range(steps):
        q = _orthonormal(q @ z.T @ z)
    return q


def leading_variances(d: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The variances (R,) of the rows d (n, C) in their leading directions, without what few
    samples add to them, and the directions (R, C).
    """
    q = leading_directions(d, rank, STEPS)
    y = q @ d.T
    values, rotation = torch.linalg.eigh((y @ y.T).double() / len(d))
    return _unbiased(values, d.shape[1] / len(d)), rotation.T.to(q) @ q


def _some(z: Tensor) -> Tensor:
    return z[:: max(1, len(z) // START)]


def column_squares(z: Tensor) -> Tensor:
    """The sum of squares of each column of z (N, C), of a few rows at a time: z.square() would
    fill memory of the size of z.
    """
    return torch.stack([rows.square().sum(0) for rows in z.split(ROWS)]).sum(0)


def _unbiased(values: Tensor, ratio: float) -> Tensor:
    """The variances l of the eigenvalues; 1, that of the noise, below the edge."""
    b = values + 1 - ratio
    found = (b + (b.square() - 4 * values).clamp_min(0).sqrt()) / 2
    return torch.where(values > (1 + ratio**0.5) ** 2, found, 1)


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T).Q.T


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
