"""Expectation maximisation of a "full" mixture with a prior, in channels or in samples.

With D_k = sqrt(r) (z - mu_k) of the n' members of a component, n_k the sum of their r, and the
target T of the prior,

    Sigma_k = (D_k^T D_k + E_k) / (n_k + m),   E_k = m T + n_k diag(own).

*In channels* these matrices are inverted: M N C^2 operations. In the whitened space, where T = I,
they are well-conditioned, and single precision is enough until the likelihood rests; what is
stored is made from the rows before whitening, in double precision.

*In samples*: with H_in = (z_i - mu_k) E_k^-1 (z_n - mu_k) for members i and all samples n, taken
from the inner products of all samples in the whitened space, and S = diag(sqrt(r)), by the
identity of Woodbury

    (z_n - mu_k) Sigma_k^-1 (z_n - mu_k) = (n_k + m) (H_nn - ||L^-1 S H_n||^2),   L L^T = I + S H
    S log det Sigma_k = log det E_k - C log(n_k + m) + 2 sum log diag L

costs N times the sum of n'^2, and matrices (C, C) are made only once, for what is stored.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from feathide.mixtures.covariances import log_det, squares
from feathide.mixtures.em import Climb, Step, climb, climbed, local, members, moments
from feathide.mixtures.mixture import Mixture
from feathide.mixtures.shrinkage import Prior, precision_factor

__all__ = ["Target", "fit_full", "gaussians", "in_channels", "in_samples"]

BLOCK = 128  # columns of a triangular matrix that are used together
NEAR = 30.0  # nats behind the best component: farther away, single precision is enough


class Target(NamedTuple):
    """What the scatter of a component with n samples is added to: m T + n own."""

    strength: float
    common: Tensor  # m T (C, C)
    own: Tensor | None  # (C, C)


def fit_full(
    z: Tensor, white: Tensor, labels: Tensor, prior: Prior, *, tol: float, max_iter: int
) -> Mixture:
    """The mixture of the standardised rows z (N, C); ``white``: the rows in the space where the
    target of the prior is the identity.
    """
    r = torch.nn.functional.one_hot(labels)
    # the Gram matrix is no larger than what will be stored
    few = len(z) ** 2 <= r.shape[1] * z.shape[1] ** 2
    return (in_samples if few else in_channels)(
        z, white, r, prior, tol=tol, max_iter=max_iter
    )


def in_channels(
    z: Tensor, white: Tensor, r: Tensor, prior: Prior, *, tol: float, max_iter: int
) -> Mixture:
    """In single precision until the likelihood rests, then in double precision; ``r``: where to
    begin (N, M).
    """
    c, white = z.shape[1], white.float()
    eye = torch.eye(c).to(white)
    own = prior.floor.diag().to(white) if bool(prior.floor.any()) else None
    coarse = _inverting(white, Target(prior.strength, prior.strength * eye, own))
    run = climb(coarse, Climb[Mixture](r), rest=max(tol, 1e-5) * c, max_iter=max_iter - 1)
    run = replace(run, bound=run.bound + _volume(prior))
    run = climb(_inverting(z, _target(prior)), run, rest=tol * c, max_iter=max_iter)
    assert run.state is not None
    return climbed(run.state, run)


def in_samples(
    z: Tensor, white: Tensor, r: Tensor, prior: Prior, *, tol: float, max_iter: int
) -> Mixture:
    """From the inner products of the samples; ``r``: where to begin (N, M)."""
    run = climb(
        _solving(white, prior), Climb[Tensor](r), rest=tol * z.shape[1], max_iter=max_iter
    )
    assert run.state is not None
    mixture = gaussians(z, run.state, _target(prior))
    return climbed(mixture, replace(run, bound=run.bound + _volume(prior)))


def _volume(prior: Prior) -> float:
    assert prior.whitener is not None
    return float(log_det(prior.whitener))


def _target(prior: Prior) -> Target:
    """In the space of the standardised channels, where diag(own) of the whitened space is A^-T
    diag(own) A^-1.
    """
    whitener, target, own = prior.whitener, prior.target, prior.floor > 0
    assert whitener is not None and target is not None
    if not bool(own.any()):
        return Target(prior.strength, prior.strength * target, None)
    root = torch.linalg.solve_triangular(
        whitener.mT, torch.eye(len(own)).to(whitener)[:, own], upper=False
    )
    return Target(prior.strength, prior.strength * target, root @ root.T)


def gaussians(z: Tensor, r: Tensor, target: Target) -> Mixture:
    """The M step."""
    n, means = moments(z, r)
    factors = torch.empty(len(n), z.shape[1], z.shape[1], dtype=z.dtype, device=z.device)
    for k, d in enumerate(members(z, r, means)):
        common = target.common if target.own is None else target.common + n[k] * target.own
        factors[k] = precision_factor(
            torch.addmm(common, d.T, d) / (n[k] + target.strength)
        )
    return local("full", n / n.sum(), means, factors)


def _inverting(z: Tensor, target: Target) -> Step[Mixture]:
    """The step in channels; for rows in double precision, only what is near a component is
    measured in double precision.
    """
    single, c = z.float(), z.shape[1]

    def step(r: Tensor, before: Mixture | None) -> tuple[Mixture, Tensor]:
        mixture = gaussians(z, r.to(z), target)
        pairs = list(zip(mixture.means, mixture.factors, strict=True))
        distances = torch.stack(
            [_distances(single - mu.float(), p.float()) for mu, p in pairs], 1
        ).to(z)
        logs = mixture.weights.log() + mixture.factors.diagonal(dim1=1, dim2=2).log().sum(1)
        if z.dtype != single.dtype:
            joint = logs - 0.5 * distances
            near = joint > joint.amax(1, keepdim=True) - NEAR
            for k, (mu, p) in enumerate(pairs):
                distances[near[:, k], k] = _distances(z[near[:, k]] - mu, p)
        return mixture, logs - 0.5 * (distances + c * math.log(2 * math.pi))

    return step


def _distances(d: Tensor, p: Tensor) -> Tensor:
    """||d p||^2 of each row, (N,), for an upper triangular p, without its blocks that are
    zero.
    """
    ends = range(BLOCK, len(p) + BLOCK, BLOCK)
    return torch.stack(
        [squares(d[:, :end] @ p[:end, end - BLOCK : end]) for end in ends]
    ).sum(0)


class Gram(NamedTuple):
    """The inner products of all samples in the channels that have ``own`` in common."""

    own: float
    channels: int
    products: Tensor  # (N, N)


def _solving(z: Tensor, prior: Prior) -> Step[Tensor]:
    """The step in samples; what it makes are the responsibilities that it began with."""
    parts = [(own, z[:, prior.floor == own]) for own in prior.floor.unique().tolist()]
    grams = [Gram(own, part.shape[1], part @ part.T) for own, part in parts]

    def step(r: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        r = r.to(z)
        n = r.sum(0) + 10 * torch.finfo(r.dtype).eps
        densities = [
            _log_density(grams, share, samples, prior.strength)
            for share, samples in zip(r.T, n, strict=True)
        ]
        return r, (n / n.sum()).log() + torch.stack(densities, 1)

    return step


def _log_density(grams: list[Gram], share: Tensor, n: Tensor, strength: float) -> Tensor:
    """Of all samples (N,) in the component with the responsibilities ``share`` (N,), their
    sum n.
    """
    rows, total, c = share > 1e-9, n + strength, sum(g.channels for g in grams)
    scaled, norms, log_volume = [], [], -c * total.log()
    for own, channels, products in grams:
        e = strength + n * own
        pulled = products @ share / n  # z_n mu
        shift = pulled @ share / n - pulled  # |mu|^2 - z_n mu
        scaled.append(products[rows].sub_(pulled[rows, None]).add_(shift).div_(e))
        norms.append((products.diagonal() - pulled + shift) / e)
        log_volume = log_volume + channels * e.log()
    h, root = sum(scaled[1:], scaled[0]), share[rows, None].sqrt()
    chol = torch.linalg.cholesky(torch.eye(len(root)).to(h) + root * h[:, rows] * root.T)
    solved = torch.linalg.solve_triangular(chol / root, h, upper=False)
    distance = total * (
        sum(norms[1:], norms[0]) - torch.linalg.vector_norm(solved, dim=0).square()
    )
    log_volume = log_volume + 2 * chol.diagonal().log().sum()
    return -0.5 * (distance + log_volume + c * math.log(2 * math.pi))
