"""Fitting one mixture: expectation maximisation in float64, with a fixed prior that makes few samples enough.

1. Standardise the channels, find clusters by k-means++, standardise again by the deviations *within* clusters.
2. Prior (``shrinkage="auto"``): T, the covariance within clusters drawn to its diagonal, is what every component is drawn to; how far
   either is drawn is the best by leave-one-out likelihood (:mod:`feathide.mixture.prior`).
3. Maximise the posterior: Sigma_k = (n_k S_k + m T) / (n_k + m). Low rank: probabilistic PCA of that matrix in the space where
   T is the identity, its leading directions by one step of subspace iteration in each iteration. Of more than 256 channels T is then a
   factor analysis of what is within clusters (:mod:`feathide.mixture.factors`): nothing is as large as a matrix of all channels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.mixture.factors import leading_scores
from feathide.mixture.model import COVARIANCES, Covariance, Mixture
from feathide.mixture.prior import Prior, fit_prior, in_factors, precision_factor, scale, within
from feathide.mixture.shapes import log_det, squares, whiten
from feathide.mixture.start import kmeans

__all__ = ["fit_mixture"]

SCORES = 32  # directions in which clusters of wide features are sought
Step = Callable[[Tensor, Tensor, Prior, Mixture | None], Mixture]  # (z, responsibilities, prior, the mixture before)


def fit_mixture(
    x: Tensor,
    *,
    components: int = 1,
    covariance: Covariance = "full",
    shrinkage: float | Literal["auto"] = "auto",
    rank: int = 8,
    start: Tensor | None = None,
    floor: float = 1e-6,
    tol: float = 3e-4,
    max_iter: int = 100,
    seed: int = 0,
) -> Mixture:
    """The mixture of ``components`` Gaussians for the rows of ``x`` (N, C).

    ``shrinkage``: "auto" as described above, or a number s in [0, 1): the share of the diagonal of the covariance within
    clusters in the covariance of a component with N/M samples; 0 is plain maximum likelihood. ``floor`` is added to each variance, in
    units of the channel's own variance. ``rank`` counts for "lowrank" only. ``start`` (N,) are clusters to begin with instead of
    k-means++. Converged when the mean log-likelihood per channel changes by less than ``tol``. One component with shrinkage "auto"
    is T itself, whatever the structure ("diag" apart).

    Raises InputError for features that are not finite, and for numbers out of range.
    """
    _check(x, components, covariance, shrinkage)
    x, factored = x.detach(), in_factors(covariance, shrinkage, x.shape[1])
    centre = x.mean(0, dtype=torch.float64)
    z = x - centre
    if factored:
        z = z.float()
    total, constant = scale(x, z)
    z /= total.to(z)
    if start is None:
        seen = leading_scores(z, SCORES) if factored and components > 1 else z.float()
        start = kmeans(seen, min(components, len(x)), torch.Generator().manual_seed(seed))
    labels = start.to(z.device).unique(return_inverse=True)[1]  # numbered without gaps
    deviations = within(z, labels)
    inner = torch.ones_like(total) if factored else deviations.square().mean(0).sqrt()
    tight = constant | (inner < 1e-3)  # no spread within clusters: keep the spread of all, with unit variance
    inner = torch.where(tight, torch.ones_like(inner), inner)
    limits = floor + tight.double()
    prior = fit_prior(deviations if factored else deviations / inner, labels, covariance, shrinkage, limits)

    z, sd = z if factored else z / inner, total * inner
    if prior.whitener is None:
        mixture = _maximise(z, labels, prior, _step(covariance, rank, seed), tol=tol, max_iter=max_iter)
    elif int(labels.max()) == 0:
        distance = _distance(z, prior.whitener) if factored else _drawn(prior.whitener, prior.shrinkage, limits)
        mixture = _standard(covariance, prior.whitener, distance)
    else:
        white = whiten(z, prior.whitener.to(z))
        mixture = _maximise(white, labels, prior, _step(covariance, rank, seed), tol=tol, max_iter=max_iter)
    return replace(
        _unwhiten(mixture, centre, sd, prior.whitener),
        samples=len(x),
        shrinkage=prior.shrinkage,
        pooling=prior.pooling,
        degenerate=int(constant.sum()),
        notes=_notes(mixture, len(x), constant, components),
    )


def _check(x: Tensor, components: int, covariance: str, shrinkage: float | str) -> None:
    if covariance not in COVARIANCES:
        raise expected(f"covariance must be one of {', '.join(COVARIANCES)}", got=covariance, do="choose one of these")
    if x.ndim != 2 or not x.numel():
        raise expected(
            "features must be (samples, channels) with at least one sample", got=tuple(x.shape), do="give rows"
        )
    if not bool(torch.isfinite(x.sum())) and not bool(
        torch.isfinite(x).all()
    ):  # the sum alone takes a tenth of the time
        bad = int((~torch.isfinite(x).all(1)).sum())
        raise expected(
            "features must be finite", got=f"NaN or infinity in {bad} of {len(x)} samples", do="look at these images"
        )
    if components < 1:
        raise expected("components must be at least 1", got=components, do="give a positive number")
    if shrinkage != "auto" and not (isinstance(shrinkage, int | float) and 0 <= shrinkage < 1):
        raise expected('shrinkage must be "auto" or lie in [0, 1)', got=shrinkage, do='give a share or leave it "auto"')


def _notes(mixture: Mixture, samples: int, constant: Tensor, components: int) -> tuple[str, ...]:
    notes = []
    if mixture.components < components:
        notes.append(
            f"{samples} samples do not fill {components} components: {mixture.components} fitted, one for each distinct group."
        )
    if bool(constant.any()):
        notes.append(
            f"{int(constant.sum())} of {len(constant)} channels do not vary: each is given the median deviation of those that do."
        )
    if not mixture.converged:
        notes.append(f"Not converged after {mixture.n_iter} iterations.")
    return tuple(notes)


def _maximise(z: Tensor, labels: Tensor, prior: Prior, step: Step, *, tol: float, max_iter: int) -> Mixture:
    """Expectation maximisation from hard assignments until the mean log-likelihood rests.

    In a whitened space, where the prior keeps every matrix well-conditioned, single precision is enough to come close; the
    last iterations are in double precision. Rows z in single precision (wide "lowrank") stay so: only what is stored is double.
    """
    single, coarse = z.dtype == torch.float32, z.float()
    precise = prior.whitener is None or single
    responsibilities = torch.nn.functional.one_hot(labels)
    mixture, bound, converged, iteration = None, -math.inf, False, 0
    while not converged and iteration < max_iter:
        iteration += 1
        precise |= iteration == max_iter
        work = z if precise else coarse
        mixture = step(work, responsibilities.to(work), prior, mixture)
        joint = mixture.log_joint(work, white=mixture.covariance == "lowrank")  # (N, M)
        log_prob = joint.logsumexp(1, keepdim=True)
        responsibilities = (joint - log_prob).exp()
        previous, bound = bound, float(log_prob.double().mean())
        rests = abs(bound - previous) < (tol if precise and not single else max(tol, 1e-5)) * z.shape[1]
        precise, converged = precise or rests, precise and rests
    assert mixture is not None
    statistics = {
        name: getattr(mixture, name).double() for name in ("weights", "whitener", "centre", "means", "factors", "gains")
    }
    return replace(mixture, **statistics, converged=converged, n_iter=iteration, lower_bound=bound)


def _drawn(whitener: Tensor, share: float, floor: Tensor) -> float:
    """tr(T^-1 S), the mean squared distance of the samples, for T = (1 - share) (S + diag(floor)) + share I."""
    added = (whitener.square().sum(1) * ((1 - share) * floor + share)).sum()
    return float(len(whitener) - added) / (1 - share)


def _distance(z: Tensor, whitener: Tensor) -> float:
    """The mean squared distance of the samples z (N, C) for a whitener in factors."""
    w, q = whitener[:, 0], whitener[:, 1:]
    y = (z @ (w[:, None] * q).to(z)).double()
    inner = 2 * torch.eye(q.shape[1]).to(q) - q.T @ q
    return float((w.square() * z.square().sum(0)).sum() - ((y.T @ y) * inner).sum()) / len(z)


def _standard(covariance: Covariance, whitener: Tensor, distance: float) -> Mixture:
    """The only component, in the space where its covariance is the identity; ``distance``: the mean squared one of the samples."""
    c = len(whitener)
    factors = torch.eye(c).to(whitener)[None] if covariance == "full" else whitener.new_zeros(1, c, 0)
    mixture = _local(covariance, whitener.new_ones(1), whitener.new_zeros(1, c), factors, gains=whitener.new_ones(1, 1))
    return replace(mixture, n_iter=1, lower_bound=-0.5 * (distance + c * math.log(2 * math.pi)))


def _local(
    covariance: Covariance,
    weights: Tensor,
    means: Tensor,
    factors: Tensor,
    *,
    gains: Tensor | None = None,
    whitener: Tensor | None = None,
) -> Mixture:
    """A mixture in the space in which it is fitted."""
    c = means.shape[1]
    return Mixture(
        covariance,
        weights,
        centre=means.new_zeros(c),
        whitener=means.new_ones(c) if whitener is None else whitener,
        means=means,
        factors=factors,
        gains=means.new_zeros(0) if gains is None else gains,
    )


def _unwhiten(mixture: Mixture, centre: Tensor, sd: Tensor, whitener: Tensor | None) -> Mixture:
    """The mixture of z = ((x - centre) / sd) whitener, as one of x; "full" takes the whitener into its factors."""
    log_volume = -float(sd.log().sum())
    means, factors, inner = mixture.means, mixture.factors, mixture.whitener
    if whitener is not None:
        log_volume += float(log_det(whitener))
        if mixture.covariance == "full":
            one = mixture.components == 1
            factors = whitener[None] if one else whitener @ factors
            means = means if one else torch.linalg.solve_triangular(whitener, means, upper=True, left=False)
        else:
            inner = whitener if inner.ndim == 1 else whitener @ inner
        if mixture.covariance == "lowrank" and whitener.shape[0] != whitener.shape[1]:
            sd = torch.cat([sd[:, None], torch.ones_like(whitener[:, 1:])], 1)
    return replace(
        mixture,
        centre=centre,
        whitener=inner / (sd if inner.ndim == sd.ndim else sd[:, None]),
        means=means,
        factors=factors,
        lower_bound=mixture.lower_bound + log_volume,
    )


def _step(covariance: Covariance, rank: int, seed: int) -> Step:
    steps = {"full": _full, "tied": _tied, "diag": _diag}
    return steps[covariance] if covariance in steps else _lowrank(rank, seed)


def _moments(z: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (M,) and mean (M, C) of each component."""
    n = r.sum(0) + 10 * torch.finfo(z.dtype).eps
    return n, r.T @ z / n[:, None]


def _members(z: Tensor, r: Tensor, means: Tensor) -> Iterator[Tensor]:
    """For each component the d (n, C) with d^T d = its scatter; rows that do not belong to it change nothing and are left out."""
    for share, mean in zip(r.T, means, strict=True):
        rows = share > 1e-9
        yield (z[rows] - mean) * share[rows, None].sqrt()


def _full(z: Tensor, r: Tensor, prior: Prior, before: Mixture | None) -> Mixture:
    n, means = _moments(z, r)
    factors = torch.empty(len(n), z.shape[1], z.shape[1], dtype=z.dtype, device=z.device)
    for k, d in enumerate(_members(z, r, means)):
        cov = d.T @ d / (n[k] + prior.strength)
        cov.diagonal().add_((prior.strength + n[k] * prior.floor) / (n[k] + prior.strength))
        factors[k] = precision_factor(cov)
    return _local("full", n / n.sum(), means, factors)


def _tied(z: Tensor, r: Tensor, prior: Prior, before: Mixture | None) -> Mixture:
    n, means = _moments(z, r)
    cov = (z.T @ z - (means.T * n) @ means) / (len(z) + prior.strength)
    cov.diagonal().add_((prior.strength + len(z) * prior.floor) / (len(z) + prior.strength))
    p = precision_factor(cov)
    return _local("tied", n / n.sum(), means @ p, z.new_zeros(0), whitener=p)


def _diag(z: Tensor, r: Tensor, prior: Prior, before: Mixture | None) -> Mixture:
    n, means = _moments(z, r)
    scatter = (r.T @ z.square() - n[:, None] * means.square()).clamp_min(0) + n[:, None] * prior.floor
    variances = (scatter + prior.strength) / (n[:, None] + prior.strength)
    return _local("diag", n / n.sum(), means, variances.rsqrt())


def _lowrank(rank: int, seed: int) -> Step:
    """Probabilistic PCA: R directions u_i of variance v_i, and the mean variance of all other directions, s^-2."""

    def step(z: Tensor, r: Tensor, prior: Prior, before: Mixture | None) -> Mixture:
        n, means = _moments(z, r)
        c, floor = z.shape[1], prior.floor.to(z)
        width = min(rank, c)
        q = _random_basis(len(n), c, width, seed).to(z) if before is None else before.factors.to(z)
        pulled = (z.T @ (_along(z, means, q) * r[:, :, None]).flatten(1)).unflatten(1, (-1, width)).transpose(0, 1)
        q = torch.linalg.qr(pulled / n[:, None, None] + floor[:, None] * q).Q  # (M, C, R)
        along = _along(z, means, q)
        inner = torch.einsum("nmr,nms->mrs", along * r[:, :, None], along) / n[:, None, None]
        values, rotation = torch.linalg.eigh(inner + q.mT @ (floor[:, None] * q))
        trace = (r.T @ squares(z)) / n - means.square().sum(1) + floor.sum()
        share = (prior.strength / (n + prior.strength))[:, None]
        values = (1 - share) * values.clamp_min(1e-12) + share  # (M, R)
        trace = (1 - share[:, 0]) * trace + share[:, 0] * c
        rest = ((trace - values.sum(1)) / (c - width) if c > width else values.amin(1)).clamp_min(1e-12)[:, None]
        gains = torch.cat([rest.rsqrt(), 1 - (rest / values).sqrt()], 1)
        return _local("lowrank", n / n.sum(), means, q @ rotation, gains=gains)

    return step


def _along(z: Tensor, means: Tensor, q: Tensor) -> Tensor:
    """(z - mean_k) q_k for every component, (N, M, R)."""
    return (z @ q.transpose(0, 1).flatten(1)).unflatten(1, (len(q), -1)) - torch.einsum("mc,mcr->mr", means, q)


def _random_basis(m: int, c: int, rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(m, c, rank, generator=generator, dtype=torch.float64)).Q
