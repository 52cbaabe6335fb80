"""Few samples, many channels: the scale of each channel, and how far a covariance is drawn
towards a simpler one.

The share of the simpler covariance is the one with the best leave-one-out likelihood. It needs
eigenvalues only (Theiler 2012, "The incredible shrinking covariance estimator"; Hoffbeck and
Landgrebe 1996): for n centred samples with covariance S, drawn towards the identity with the
share a,

    b = (1 - a) / (n - 1),  G = n b S + a I,  r = tr(G^-1 S),   minimise  log det G + log(1 - b r)
    + r / (1 - b r).

The closed forms of Ledoit-Wolf and OAS minimise a squared error instead and shrink far too little
for a likelihood."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from feathide.mixtures.factor_analysis import (
    WIDE,
    column_squares,
    common_factors,
    leading_variances,
)
from feathide.mixtures.mixture import Covariance

__all__ = [
    "Prior",
    "drawn",
    "fit_prior",
    "in_factors",
    "precision_factor",
    "scale",
    "within",
]

FLOOR = 0.1
# directions at least in which a component of many channels is compared with what is shared
LEADING = 8
BLOCK = 128  # channels of a triangular matrix that are inverted at once
SHARES = torch.logspace(-6, -0.01, 80, dtype=torch.float64)
# times C, from where on an inverse Wishart prior is proper
STRENGTHS = torch.logspace(0, 3, 31, dtype=torch.float64)


@dataclass(frozen=True)
class Prior:
    """What the covariance S_k of a component becomes: (n_k (S_k + diag(floor)) + strength I) /
    (n_k + strength).

    ``whitener``, upper triangular (C, C) or in factors (C, R + 1), maps standardised channels to
    the space in which the target is the identity; None: it already is."""

    whitener: Tensor | None
    strength: float
    floor: Tensor  # (C,), added to the variances of each component's own covariance
    shrinkage: float
    pooling: float
    target: Tensor | None = None  # (C, C), what the whitener was made from
    # (M, R, C), about the leading ones of each cluster in the whitened space
    directions: Tensor | None = None
    # mean squared one of the rows within clusters, where the target is the identity
    distance: float = math.nan


def scale(d: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """The standard deviation of each channel (C,), in double precision, and which channels do not
    vary; d (N, C): rows less their mean.

    A channel that does not vary gets the median deviation of those that do: it stays in the
    energy, and leaving its constant by as much as other channels vary costs as much as it costs
    them. One that hardly varies, such as a unit that fires on a few images only, is measured in
    ``FLOOR`` of the median: the prior, the identity in these units, then keeps its variance from
    being believed to be next to nothing. Without shrinkage this changes nothing but the units.
    """
    sd = (column_squares(d).double() / len(d)).sqrt()
    largest = torch.hypot(sd, centre)
    constant = sd <= 1e-7 * largest
    varying = sd[~constant]
    typical = varying.median() if len(varying) else largest.amax().clamp_min(1e-30)
    return torch.where(constant, typical, sd.clamp_min(FLOOR * typical)), constant


def in_factors(
    covariance: Covariance, shrinkage: float | Literal["auto"], channels: int
) -> bool:
    """Whether what the components share is a factor analysis
    (:mod:`feathide.mixtures.factor_analysis`) and no matrix (C, C).
    """
    return covariance == "lowrank" and shrinkage == "auto" and channels > WIDE


def fit_prior(
    d: Tensor,
    labels: Tensor,
    covariance: Covariance,
    shrinkage: float | Literal["auto"],
    floor: Tensor,
) -> Prior:
    """The prior for rows ``d`` (N, C), minus the means of their clusters ``labels``, in units of
    the channels' deviations.
    """
    sizes = labels.bincount().tolist()
    n, c, m = *d.shape, len(sizes)
    average = n if covariance == "tied" else n / m
    if shrinkage != "auto" or covariance == "diag":
        share = 2 / (2 + average) if shrinkage == "auto" else shrinkage
        return Prior(None, share / (1 - share) * average, floor, share, 0.0)
    free = n - m + 1  # the means of the clusters cost their degrees of freedom
    own = (floor >= 1).to(floor)
    if in_factors(covariance, shrinkage, c):
        whitener, distance = common_factors(d, free)
        return Prior(whitener, 0.0, own, 0.0, 0.0, distance=distance)
    s = d.T @ d
    # the rank of the scatter: with one more, few samples would be left unshrunk
    left = max(n - m, 1)
    share = best_share(spectrum(d, s) * (n / left), left, c)
    target = s * ((1 - share) / free)
    target.diagonal().add_((1 - share) * floor + share)
    whitener = precision_factor(target)
    added = (whitener.square().sum(1) * ((1 - share) * floor + share)).sum()
    return Prior(
        whitener,
        0.0,
        own,
        share,
        0.0,
        target,
        distance=float(c - added) / (1 - share) * free / n,
    )


def drawn(
    prior: Prior, white: Tensor, labels: Tensor, covariance: Covariance, rank: int
) -> Prior:
    """The prior with its strength, by what is within clusters of the whitened rows (N, C); single
    precision is enough.
    """
    sizes, (n, c) = labels.bincount().tolist(), white.shape
    parts = [p.sub_(p.mean(0)) for p in white[labels.argsort()].float().split(sizes)]
    if covariance == "tied":
        free = n - len(sizes) + 1
        return _strong(prior, [(spectrum(torch.cat(parts)) * (n / free), free)], c, n)
    if prior.target is not None:
        return _strong(prior, [(spectrum(p), len(p)) for p in parts], c, n / len(sizes))
    leading = [leading_variances(p, max(rank, LEADING)) for p in parts]
    prior = replace(prior, directions=torch.stack([q[-rank:] for _, q in leading]))
    return _strong(
        prior,
        [(v, len(p)) for (v, _), p in zip(leading, parts, strict=True)],
        c,
        n / len(sizes),
    )


def _strong(
    prior: Prior, spectra: Sequence[tuple[Tensor, int]], channels: int, average: float
) -> Prior:
    strength = best_strength(spectra, channels)
    return replace(prior, strength=strength, pooling=strength / (average + strength))


def spectrum(d: Tensor, scatter: Tensor | None = None) -> Tensor:
    """The eigenvalues of d^T d / n for rows d (n, C); of n < C rows, some or all of the zeros
    beyond the n-th are left out.
    """
    # a scatter that is there already is worth a larger matrix
    enough = len(d) if scatter is None else 2 * len(d)
    if enough < d.shape[1]:
        scatter = d @ d.T
    elif scatter is None:
        scatter = d.T @ d
    return torch.linalg.eigvalsh(scatter / max(len(d), 1)).clamp_min(0)


def leave_one_out(values: Tensor, n: int, channels: int, share: Tensor) -> Tensor:
    """Minus twice the leave-one-out log-likelihood of a sample, up to a constant, for each
    ``share`` (A,); ``values`` as in spectrum.
    """
    a = share[:, None]
    b = (1 - a) / (n - 1)
    g = n * b * values + a  # (A, min(n, C))
    r = (values / g).sum(1)
    left = (1 - b[:, 0] * r).clamp_min(1e-12)
    return g.log().sum(1) + (channels - len(values)) * share.log() + left.log() + r / left


def best_share(values: Tensor, n: int, channels: int) -> float:
    """The share of the identity with the best leave-one-out likelihood."""
    if n < 3:
        return float(SHARES[-1])
    return float(SHARES[leave_one_out(values, n, channels, SHARES.to(values)).argmin()])


def best_strength(spectra: Sequence[tuple[Tensor, int]], channels: int) -> float:
    """The number of prior samples with the best leave-one-out likelihood over all components
    (eigenvalues, samples).
    """
    strengths = STRENGTHS * channels
    loss = torch.zeros_like(strengths)
    for values, n in spectra:
        if n >= 3:
            loss += n * leave_one_out(
                values.double().cpu(), n, channels, strengths / (strengths + n)
            )
    return float(strengths[loss.argmin()]) if bool(loss.any()) else float(strengths[-1])


def precision_factor(cov: Tensor) -> Tensor:
    """The upper triangular P with P P^T = cov^-1, (..., C, C)."""
    return _inverse(torch.linalg.cholesky(cov))


def _inverse(chol: Tensor) -> Tensor:
    """L^-T of a lower triangular L = [[A, 0], [B, C]] by halves: [[A^-T, -A^-T B^T C^-T], [0,
    C^-T]].
    """
    c, h = chol.shape[-1], chol.shape[-1] // 2
    if c <= BLOCK:
        eye = torch.eye(c, dtype=chol.dtype, device=chol.device)
        return torch.linalg.solve_triangular(
            chol.mT, eye.expand_as(chol), upper=True
        ).contiguous()
    out = torch.zeros_like(chol, memory_format=torch.contiguous_format)
    first, last = _inverse(chol[..., :h, :h]), _inverse(chol[..., h:, h:])
    out[..., :h, :h], out[..., h:, h:] = first, last
    out[..., :h, h:] = -(first @ chol[..., h:, :h].mT @ last)
    return out


def within(z: Tensor, labels: Tensor) -> Tensor:
    """The rows z (N, C) minus the mean of their cluster."""
    share = torch.nn.functional.one_hot(labels).to(z)
    means = (share.T @ z / share.sum(0)[:, None])[labels]
    return torch.sub(z, means, out=means)
