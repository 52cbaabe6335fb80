"""Few samples, many channels: the scale of each channel, and how far a covariance is drawn towards a simpler one.

The share of the simpler covariance is the one with the best leave-one-out likelihood. It needs eigenvalues only (Theiler
2012, "The incredible shrinking covariance estimator"; Hoffbeck and Landgrebe 1996): for n centred samples with covariance S,
drawn towards the identity with the share a,

    b = (1 - a) / (n - 1),  G = n b S + a I,  r = tr(G^-1 S),   minimise  log det G + log(1 - b r) + r / (1 - b r).

The closed forms of Ledoit-Wolf and OAS minimise a squared error instead and shrink far too little for a likelihood.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from feathide.mixture.factors import WIDE, common_factors, leading_variances
from feathide.mixture.model import Covariance
from feathide.mixture.shapes import whiten

__all__ = ["Prior", "fit_prior", "in_factors", "precision_factor", "scale", "within"]

FLOOR = 0.1
SHARES = torch.logspace(-6, -0.01, 80, dtype=torch.float64)
STRENGTHS = torch.logspace(0, 3, 31, dtype=torch.float64)  # times C, from where on an inverse Wishart prior is proper


@dataclass(frozen=True)
class Prior:
    """What the covariance S_k of a component becomes: (n_k (S_k + diag(floor)) + strength I) / (n_k + strength).

    ``whitener``, upper triangular (C, C) or in factors (C, R + 1), maps standardised channels to the space in which the target is the identity; None: it
    already is.
    """

    whitener: Tensor | None
    strength: float
    floor: Tensor  # (C,), added to the variances of each component's own covariance
    shrinkage: float
    pooling: float


def scale(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The standard deviation of each channel (C,) of x, in double precision, and which channels do not vary; d: x less its mean.

    A channel that does not vary gets the median deviation of those that do: it stays in the energy, and leaving its
    constant by as much as other channels vary costs as much as it costs them. One that hardly varies, such as a unit that
    fires on a few images only, is measured in ``FLOOR`` of the median: the prior, the identity in these units, then keeps its
    variance from being believed to be next to nothing. Without shrinkage this changes nothing but the units.
    """
    sd = d.square().mean(0).double().sqrt()
    largest = torch.maximum(x.amax(0), -x.amin(0))
    constant = sd <= 1e-7 * largest
    varying = sd[~constant]
    typical = varying.median() if len(varying) else largest.amax().clamp_min(1e-30)
    return torch.where(constant, typical, sd.clamp_min(FLOOR * typical)), constant


def in_factors(covariance: Covariance, shrinkage: float | Literal["auto"], channels: int) -> bool:
    """Whether what the components share is a factor analysis (:mod:`feathide.mixture.factors`) and no matrix (C, C)."""
    return covariance == "lowrank" and shrinkage == "auto" and channels > WIDE


def fit_prior(
    d: Tensor, labels: Tensor, covariance: Covariance, shrinkage: float | Literal["auto"], floor: Tensor
) -> Prior:
    """The prior for rows ``d`` (N, C), minus the means of their clusters ``labels``, in units of the channels' deviations."""
    sizes = labels.bincount().tolist()
    n, c, m = *d.shape, len(sizes)
    average = n if covariance == "tied" else n / m
    if shrinkage != "auto" or covariance == "diag":
        share = 2 / (2 + average) if shrinkage == "auto" else shrinkage
        return Prior(None, share / (1 - share) * average, floor, share, 0.0)
    free = n - m + 1  # the means of the clusters cost their degrees of freedom
    if in_factors(covariance, shrinkage, c):
        return _factored(d, labels, free, floor)
    s = d.T @ d
    left = max(n - m, 1)  # the rank of the scatter: with one more, few samples would be left unshrunk
    share = best_share(spectrum(d, s) * (n / left), left, c)
    target = s * ((1 - share) / free)
    target.diagonal().add_((1 - share) * floor + share)
    whitener, own = precision_factor(target), (floor >= 1).to(floor)
    if m == 1:
        return Prior(whitener, 0.0, own, share, 0.0)
    parts = (d @ whitener)[labels.argsort()].split(sizes)
    spectra = (
        [(spectrum(d @ whitener) * (n / free), free)]
        if covariance == "tied"
        else [(spectrum(p), len(p)) for p in parts]
    )
    strength = best_strength(spectra, c)
    return Prior(whitener, strength, own, share, strength / (average + strength))


def _factored(d: Tensor, labels: Tensor, free: int, floor: Tensor) -> Prior:
    """The prior of a wide "lowrank" mixture; ``d`` in single precision. How far a component is drawn to it is judged by its leading directions."""
    whitener, own, sizes = common_factors(d, free), (floor >= 1).to(floor), labels.bincount().tolist()
    if len(sizes) == 1:
        return Prior(whitener, 0.0, own, 0.0, 0.0)
    parts = whiten(d, whitener.to(d))[labels.argsort()].split(sizes)
    strength = best_strength([(leading_variances(p), len(p)) for p in parts], d.shape[1])
    return Prior(whitener, strength, own, 0.0, strength / (len(d) / len(sizes) + strength))


def spectrum(d: Tensor, scatter: Tensor | None = None) -> Tensor:
    """The eigenvalues of d^T d / n for rows d (n, C); of n < C rows, some or all of the zeros beyond the n-th are left out."""
    enough = len(d) if scatter is None else 2 * len(d)  # a scatter that is there already is worth a larger matrix
    if enough < d.shape[1]:
        scatter = d @ d.T
    elif scatter is None:
        scatter = d.T @ d
    return torch.linalg.eigvalsh(scatter / max(len(d), 1)).clamp_min(0)


def leave_one_out(values: Tensor, n: int, channels: int, share: Tensor) -> Tensor:
    """Minus twice the leave-one-out log-likelihood of a sample, up to a constant, for each ``share`` (A,); ``values`` as in spectrum."""
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
    """The number of prior samples with the best leave-one-out likelihood over all components (eigenvalues, samples)."""
    strengths = STRENGTHS * channels
    loss = torch.zeros_like(strengths)
    for values, n in spectra:
        if n >= 3:
            loss += n * leave_one_out(values.cpu(), n, channels, strengths / (strengths + n))
    return float(strengths[loss.argmin()]) if bool(loss.any()) else float(strengths[-1])


def precision_factor(cov: Tensor) -> Tensor:
    """The upper triangular P with P P^T = cov^-1, (..., C, C)."""
    chol = torch.linalg.cholesky(cov)
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
    return torch.linalg.solve_triangular(chol, eye.expand_as(cov), upper=False).mT.contiguous()


def within(z: Tensor, labels: Tensor) -> Tensor:
    """The rows z (N, C) minus the mean of their cluster."""
    share = torch.nn.functional.one_hot(labels).to(z)
    return z - share @ (share.T @ z / share.sum(0)[:, None])
