"""Fitting one mixture: expectation maximisation in float64, with a fixed prior that makes few
samples enough.

1. Standardise the channels, find clusters by k-means++, standardise again by the deviations
   *within* clusters.
2. Prior (``shrinkage="auto"``): T, the covariance within clusters drawn to its diagonal, is what
   every component is drawn to; how far either is drawn is the best by leave-one-out likelihood
   (:mod:`feathide.mixtures.shrinkage`).
3. Maximise the posterior: Sigma_k = (n_k S_k + m T) / (n_k + m) (:mod:`feathide.mixtures.full`).
   Low rank: probabilistic PCA of that matrix in the space where T is the identity
   (:mod:`feathide.mixtures.lowrank`). Of more than 256 channels T is then a factor analysis of
   what is within clusters (:mod:`feathide.mixtures.factor_analysis`): nothing is as large as a
   matrix of all channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.mixtures.covariances import log_det, whiten
from feathide.mixtures.em import Climb, Step, climb, climbed, local, moments
from feathide.mixtures.factor_analysis import ROWS, leading_scores
from feathide.mixtures.full import Target, fit_full, gaussians
from feathide.mixtures.kmeans import kmeans
from feathide.mixtures.lowrank import Directions, in_directions, mixture_of, random_basis
from feathide.mixtures.mixture import COVARIANCES, Covariance, Mixture
from feathide.mixtures.shrinkage import (
    Prior,
    drawn,
    fit_prior,
    in_factors,
    precision_factor,
    scale,
    within,
)

__all__ = ["fit_mixture"]

SCORES = 32  # directions in which clusters of wide features are sought


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

    ``shrinkage``: "auto" as described above, or a number s in [0, 1): the share of the diagonal
    of the covariance within clusters in the covariance of a component with N/M samples; 0 is
    plain maximum likelihood. ``floor`` is added to each variance, in units of the channel's own
    variance. ``rank`` counts for "lowrank" only. ``start`` (N,) are clusters to begin with
    instead of k-means++. Converged when the mean log-likelihood per channel changes by less than
    ``tol``. One component with shrinkage "auto" is T itself, whatever the structure ("diag"
    apart).

    Raises InputError for features that are not finite, and for numbers out of range.
    """
    _check(x, components, covariance, shrinkage)
    x = x.detach()
    centre = x.mean(0, dtype=torch.float64)
    _check_finite(x, centre)
    chosen = _Chosen(components, covariance, shrinkage, start, floor, seed)
    wide = in_factors(covariance, shrinkage, x.shape[1])
    ready = _ready_wide(x, centre, chosen) if wide else _ready(x, centre, chosen)
    mixture, prior = _found(
        ready.z,
        ready.labels,
        ready.prior,
        covariance,
        rank=rank,
        seed=seed,
        tol=tol,
        max_iter=max_iter,
    )
    return replace(
        _unwhiten(mixture, centre, ready.sd, prior.whitener),
        samples=len(x),
        shrinkage=prior.shrinkage,
        pooling=prior.pooling,
        degenerate=int(ready.constant.sum()),
        notes=_notes(mixture, len(x), ready.constant, components),
    )


@dataclass(frozen=True)
class _Chosen:
    """What of ``fit_mixture``'s arguments decides how the rows are made ready."""

    components: int
    covariance: Covariance
    shrinkage: float | Literal["auto"]
    start: Tensor | None
    floor: float
    seed: int

    def labels(self, seen: Callable[[], Tensor]) -> Tensor:
        """The clusters to begin with (N,), numbered without gaps: those given, or those of
        k-means++ on the rows ``seen`` gives.
        """
        start = self.start
        if start is None:
            rows = seen()
            draw = torch.Generator().manual_seed(self.seed)
            start = kmeans(rows, min(self.components, len(rows)), draw)
            start = start.to(rows.device)
        return start.unique(return_inverse=True)[1]


@dataclass(frozen=True)
class _Ready:
    """Rows ready for expectation maximisation: z = (x - centre) / sd (N, C), their clusters (N,),
    the prior, and which channels do not vary (C,).
    """

    z: Tensor
    labels: Tensor
    sd: Tensor
    constant: Tensor
    prior: Prior


def _ready(x: Tensor, centre: Tensor, chosen: _Chosen) -> _Ready:
    """In double precision, by the deviations within clusters."""
    z = x - centre
    total, constant = scale(z, centre)
    z /= total
    labels = chosen.labels(z.float).to(z.device)
    deviations = within(z, labels) if int(labels.max()) else z
    inner = deviations.square().mean(0).sqrt()
    # no spread within clusters: keep the spread of all, with unit variance
    tight = constant | (inner < 1e-3)
    inner = torch.where(tight, torch.ones_like(inner), inner)
    prior = fit_prior(
        deviations / inner,
        labels,
        chosen.covariance,
        chosen.shrinkage,
        chosen.floor + tight.double(),
    )
    return _Ready(z / inner, labels, total * inner, constant, prior)


def _ready_wide(x: Tensor, centre: Tensor, chosen: _Chosen) -> _Ready:
    """In single precision, by the deviations of all rows: the factors of the prior describe what
    is within clusters.
    """
    z = torch.empty_like(x, dtype=torch.float32)
    for rows, out in zip(x.split(ROWS), z.split(ROWS), strict=True):
        torch.sub(rows, centre, out=out)
    total, constant = scale(z, centre)
    z /= total.to(z)
    labels = chosen.labels(
        lambda: leading_scores(z, SCORES) if chosen.components > 1 else z
    ).to(z.device)
    prior = fit_prior(
        within(z, labels) if int(labels.max()) else z,
        labels,
        chosen.covariance,
        chosen.shrinkage,
        chosen.floor + constant.double(),
    )
    return _Ready(z, labels, total, constant, prior)


def _check(x: Tensor, components: int, covariance: str, shrinkage: float | str) -> None:
    if covariance not in COVARIANCES:
        raise expected(
            f"covariance must be one of {', '.join(COVARIANCES)}",
            got=covariance,
            do="choose one of these",
        )
    if x.ndim != 2 or not x.numel():
        raise expected(
            "features must be (samples, channels) with at least one sample",
            got=tuple(x.shape),
            do="give rows",
        )
    if components < 1:
        raise expected(
            "components must be at least 1", got=components, do="give a positive number"
        )
    if shrinkage != "auto" and not (
        isinstance(shrinkage, int | float) and 0 <= shrinkage < 1
    ):
        raise expected(
            'shrinkage must be "auto" or lie in [0, 1)',
            got=shrinkage,
            do='give a share or leave it "auto"',
        )


def _check_finite(x: Tensor, mean: Tensor) -> None:
    # the means alone take no time
    if not bool(torch.isfinite(mean).all()) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x).all(1)).sum())
        raise expected(
            "features must be finite",
            got=f"NaN or infinity in {bad} of {len(x)} samples",
            do="check these images",
        )


def _notes(
    mixture: Mixture, samples: int, constant: Tensor, components: int
) -> tuple[str, ...]:
    notes = []
    if mixture.components < components:
        notes.append(
            f"{samples} samples do not fill {components} components: {mixture.components} "
            "fitted, one for each distinct group."
        )
    if bool(constant.any()):
        notes.append(
            f"{int(constant.sum())} of {len(constant)} channels do not vary: each is given "
            "the median deviation of those that do."
        )
    if not mixture.converged:
        notes.append(f"Not converged after {mixture.n_iter} iterations.")
    return tuple(notes)


def _found(
    z: Tensor,
    labels: Tensor,
    prior: Prior,
    covariance: Covariance,
    *,
    rank: int,
    seed: int,
    tol: float,
    max_iter: int,
) -> tuple[Mixture, Prior]:
    """The mixture of the standardised rows z (N, C) in the space where the target of the prior is
    the identity ("full": in that of z).
    """
    if prior.whitener is not None:
        if int(labels.max()) == 0:
            return _standard(covariance, prior.whitener, prior.distance), prior
        white = whiten(z, prior.whitener.to(z))
        prior = drawn(prior, white, labels, covariance, rank)
        if covariance == "full":
            return fit_full(z, white, labels, prior, tol=tol, max_iter=max_iter), prior
        z = white
    at = _steps(covariance, labels, prior, rank, seed)
    return _maximise(
        z, labels, at, coarse=prior.whitener is not None, tol=tol, max_iter=max_iter
    ), prior


def _maximise(
    z: Tensor,
    labels: Tensor,
    at: Callable[[Tensor], Step],
    *,
    coarse: bool,
    tol: float,
    max_iter: int,
) -> Mixture:
    """Expectation maximisation from hard assignments until the mean log-likelihood rests; ``at``:
    the step for rows like z (N, C).

    In a whitened space, where the prior keeps every matrix well-conditioned, single precision is
    enough to come close (``coarse``); the last iterations are in double precision. Rows z in
    single precision (wide "lowrank") stay so: only what is stored is double."""
    run, c, rough = (
        Climb[Any](torch.nn.functional.one_hot(labels)),
        z.shape[1],
        max(tol, 1e-5),
    )
    if coarse and z.dtype != torch.float32:
        run = climb(at(z.float()), run, rest=rough * c, max_iter=max_iter - 1)
    run = climb(
        at(z), run, rest=(rough if z.dtype == torch.float32 else tol) * c, max_iter=max_iter
    )
    assert run.state is not None
    mixture: Mixture = (
        mixture_of(run.state) if isinstance(run.state, Directions) else run.state
    )
    names = ("weights", "whitener", "centre", "means", "factors", "gains")
    return climbed(
        replace(mixture, **{name: getattr(mixture, name).double() for name in names}), run
    )


def _steps(
    covariance: Covariance, labels: Tensor, prior: Prior, rank: int, seed: int
) -> Callable[[Tensor], Step]:
    """For rows (N, C), the step of expectation maximisation."""
    if covariance == "lowrank":
        m, c = int(labels.max()) + 1, len(prior.floor)
        start = (
            random_basis(m, c, min(rank, c), seed)
            if prior.directions is None
            else prior.directions
        )
        return lambda z: in_directions(z, prior, start)
    maximise = {"full": _full, "tied": _tied, "diag": _diag}[covariance]

    def at(z: Tensor) -> Step[Mixture]:
        def step(r: Tensor, before: Mixture | None) -> tuple[Mixture, Tensor]:
            mixture = maximise(z, r.to(z), prior)
            return mixture, mixture.log_joint(z)

        return step

    return at


def _standard(covariance: Covariance, whitener: Tensor, distance: float) -> Mixture:
    """The only component, in the space where its covariance is the identity ("full": with the
    whitener as its factor); ``distance``: the mean squared one of the samples.
    """
    c, full = len(whitener), covariance == "full"
    factors = whitener[None] if full else whitener.new_zeros(1, c, 0)
    mixture = local(
        covariance,
        whitener.new_ones(1),
        whitener.new_zeros(1, c),
        factors,
        gains=whitener.new_ones(1, 1),
    )
    bound = -0.5 * (distance + c * math.log(2 * math.pi)) + (
        float(log_det(whitener)) if full else 0.0
    )
    return replace(mixture, n_iter=1, lower_bound=bound)


def _unwhiten(
    mixture: Mixture, centre: Tensor, sd: Tensor, whitener: Tensor | None
) -> Mixture:
    """The mixture of z = ((x - centre) / sd) whitener, as one of x; that of "full" is in its
    factors already.
    """
    log_volume, inner = -float(sd.log().sum()), mixture.whitener
    if whitener is not None and mixture.covariance != "full":
        log_volume += float(log_det(whitener))
        inner = whitener if inner.ndim == 1 else whitener @ inner
        if mixture.covariance == "lowrank" and whitener.shape[0] != whitener.shape[1]:
            sd = torch.cat([sd[:, None], torch.ones_like(whitener[:, 1:])], 1)
    return replace(
        mixture,
        centre=centre,
        whitener=inner / (sd if inner.ndim == sd.ndim else sd[:, None]),
        lower_bound=mixture.lower_bound + log_volume,
    )


def _full(z: Tensor, r: Tensor, prior: Prior) -> Mixture:
    """With a share of the identity; for what the components share, see
    :mod:`feathide.mixtures.full`.
    """
    eye = torch.eye(z.shape[1]).to(z)
    return gaussians(z, r, Target(prior.strength, prior.strength * eye, prior.floor.diag()))


def _tied(z: Tensor, r: Tensor, prior: Prior) -> Mixture:
    n, means = moments(z, r)
    cov = (z.T @ z - (means.T * n) @ means) / (len(z) + prior.strength)
    cov.diagonal().add_((prior.strength + len(z) * prior.floor) / (len(z) + prior.strength))
    p = precision_factor(cov)
    return local("tied", n / n.sum(), means @ p, z.new_zeros(0), whitener=p)


def _diag(z: Tensor, r: Tensor, prior: Prior) -> Mixture:
    n, means = moments(z, r)
    scatter = (r.T @ z.square() - n[:, None] * means.square()).clamp_min(0) + n[
        :, None
    ] * prior.floor
    variances = (scatter + prior.strength) / (n[:, None] + prior.strength)
    return local("diag", n / n.sum(), means, variances.rsqrt())
