"""Expectation maximisation of a "lowrank" mixture: probabilistic PCA of each component, in two
products with the samples an iteration.

Component k has R directions u_i of variance v_i, and the mean variance s^-2 in all others. Its
directions are those of the iteration before, drawn once towards the leading ones (subspace
iteration), and rotated so that their variances are uncorrelated; where the samples lie along the
directions is needed for the likelihood and again by the next iteration."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from feathide.mixtures.covariances import squares
from feathide.mixtures.em import Step, local, moments
from feathide.mixtures.mixture import Mixture
from feathide.mixtures.shrinkage import Prior

__all__ = ["Directions", "in_directions", "mixture_of", "random_basis"]


class Directions(NamedTuple):
    weights: Tensor  # (M,)
    means: Tensor  # (M, C)
    basis: Tensor  # (M, R, C), orthonormal
    gains: Tensor  # (M, R + 1)
    along: Tensor  # (M, R, N), the basis times the samples


def mixture_of(found: Directions) -> Mixture:
    return local(
        "lowrank",
        found.weights,
        found.means,
        found.basis.mT.contiguous(),
        gains=found.gains,
    )


def in_directions(z: Tensor, prior: Prior, start: Tensor) -> Step[Directions]:
    """The step for whitened rows z (N, C), from the directions ``start`` (M, R, C)."""
    c, width, floor, norms = z.shape[1], start.shape[1], prior.floor.to(z), squares(z)

    def onto(basis: Tensor) -> Tensor:
        return (basis.flatten(0, 1) @ z.T).unflatten(0, basis.shape[:2])

    def step(r: Tensor, before: Directions | None) -> tuple[Directions, Tensor]:
        r = r.to(z)
        n, means = moments(z, r)
        share = r.T[:, None]  # (M, 1, N)
        basis = (start if before is None else before.basis).to(z)
        along = (
            before.along
            if before is not None and before.along.dtype == z.dtype
            else onto(basis)
        )
        # else the start is about the leading directions already
        if before is not None or prior.directions is None:
            weighted = _centred(along, basis, means) * share
            pulled = (weighted.flatten(0, 1) @ z).unflatten(0, basis.shape[:2])
            basis = torch.linalg.qr((pulled / n[:, None, None] + floor * basis).mT).Q.mT
            along = onto(basis)
        centred = _centred(along, basis, means)
        inner = (centred * share) @ centred.mT / n[:, None, None] + (
            floor * basis
        ) @ basis.mT
        values, rotation = torch.linalg.eigh(inner)
        basis, along, centred = (rotation.mT @ t for t in (basis, along, centred))
        trace = (r.T @ norms) / n - means.square().sum(1) + floor.sum()
        drawn = (prior.strength / (n + prior.strength))[:, None]
        values = (1 - drawn) * values.clamp_min(1e-12) + drawn  # (M, R)
        trace = (1 - drawn[:, 0]) * trace + drawn[:, 0] * c
        rest = (
            (trace - values.sum(1)) / (c - width) if c > width else values.amin(1)
        ).clamp_min(1e-12)[:, None]
        gains = torch.cat([rest.rsqrt(), 1 - (rest / values).sqrt()], 1)
        found = Directions(n / n.sum(), means, basis, gains, along)
        return found, _log_joint(
            found, centred, norms - 2 * means @ z.T + means.square().sum(1, keepdim=True)
        )

    return step


def _centred(along: Tensor, basis: Tensor, means: Tensor) -> Tensor:
    return along - basis @ means[:, :, None]


def _log_joint(found: Directions, centred: Tensor, distances: Tensor) -> Tensor:
    """(N, M) from (z - mean_k) u_ki (M, R, N) and the squared distances from the means (M, N)."""
    c, scale, h = found.means.shape[1], found.gains[:, 0], found.gains[:, 1:]
    distances = scale.square()[:, None] * (
        distances - ((h * (2 - h))[:, None] @ centred.square())[:, 0]
    )
    logs = (
        found.weights.log()
        + c * (scale.log() - 0.5 * math.log(2 * math.pi))
        + torch.log1p(-h).sum(1)
    )
    return (logs[:, None] - 0.5 * distances).T


def random_basis(m: int, c: int, rank: int, seed: int) -> Tensor:
    """(M, R, C)"""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(
        torch.randn(m, c, rank, generator=generator, dtype=torch.float64)
    ).Q.mT
