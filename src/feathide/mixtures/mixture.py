"""One Gaussian mixture: which component is nearest, how far away it is (energy), and the
log-density.

All four covariance structures share one form: the features are first whitened by what the
components have in common, ``z = (f - centre) A``, and component k then has mean ``mu_k`` and
precision factor ``P_k`` in the space of z:

=========  ==================================  =========================================
structure  A                                   P_k
=========  ==================================  =========================================
full       1 / deviation of each channel (C,)  upper triangular (C, C)
diag       1 / deviation of each channel (C,)  diagonal (C,)
tied       factor of the shared precision      identity
lowrank    that, or of C > 256                 s_k (I - U_k diag(h_k) U_k^T),
           [w | Q] (C, R)                      U_k (C, R) orthonormal
=========  ==================================  =========================================

"lowrank" is a mixture of probabilistic PCA in the whitened space (Tipping and Bishop 1999): the R
directions in which a component differs most from what is shared have their own variances, and the
residual directions stay in the energy. Of more than 256 channels what is shared is a factor
analysis, A = diag(w) (I - Q Q^T) with at most 64 factors, kept as the columns w and Q of one
matrix."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from feathide.mixtures.covariances import (
    BLOCK,
    Diag,
    Full,
    LowRank,
    Plain,
    Shape,
    Thin,
    into,
    likeliest,
    log_det,
    parted,
)
from feathide.mixtures.energy import Field, Fields, Groups, energies

__all__ = ["COVARIANCES", "Covariance", "Mixture"]

Covariance = Literal["full", "tied", "diag", "lowrank"]
COVARIANCES: tuple[Covariance, ...] = get_args(Covariance)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A Gaussian mixture of features, in float64.

        p(f) = sum_k w_k N(f; m_k, Sigma_k),    f (N, C)

    The module describes in what form the covariances are kept.

    Args:
        covariance: "full", "tied", "diag" or "lowrank".
        weights: The weight of each component (M,); they add up to 1.
        centre: The point (C,) that is subtracted before whitening.
        whitener: (C,), upper triangular (C, C), or (C, R + 1).
        means: The means (M, C) in the whitened space.
        factors: The factors of the components' precision; the shape depends on ``covariance``.
        gains: The gains of the components; the shape depends on ``covariance``.
        samples: The number of samples that it was fitted to.
        shrinkage: The share of the diagonal in the covariance, in [0, 1).
        pooling: The share of what the components have in common, for a component of average size.
        degenerate: The number of channels that did not vary.
        converged: Whether expectation maximisation converged.
        n_iter: The number of its iterations.
        lower_bound: The mean log-likelihood of the samples, in nats.
        notes: Sentences that say what was unusual.
    """

    covariance: Covariance
    weights: Tensor
    centre: Tensor
    whitener: Tensor
    means: Tensor
    factors: Tensor
    gains: Tensor
    samples: int = 0
    shrinkage: float = 0.0
    pooling: float = 0.0
    degenerate: int = 0
    converged: bool = True
    n_iter: int = 0
    lower_bound: float = math.nan
    notes: tuple[str, ...] = ()
    _ready: dict[tuple[torch.dtype, torch.device, bool], Field] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def components(self) -> int:
        return len(self.weights)

    @property
    def channels(self) -> int:
        return len(self.centre)

    @property
    def bic(self) -> float:
        """Bayesian information criterion of the fit, in nats of the whole data: -2 log L +
        parameters log N; lower is better.
        """
        c, m = self.channels, self.components
        rank = min(self.factors.shape[2], c - 1) if self.covariance == "lowrank" else 0
        square = c * (c + 1) // 2
        factors = self.whitener.shape[1] if self.whitener.ndim == 2 else 1
        shared = c * factors - (factors - 1) * (factors - 2) // 2 if factors < c else square
        shape = {
            "full": m * square,
            "tied": square,
            "diag": m * c,
            "lowrank": shared + m * (c * rank - rank * (rank - 1) // 2 + 1),
        }
        parameters = m - 1 + m * c + shape[self.covariance]
        return -2 * self.samples * self.lower_bound + parameters * math.log(self.samples)

    def nearest(self, f: Tensor) -> Tensor:
        """The component (N,) with the largest log w_k + log det P_k - 1/2 ||(f - m_k) P_k||^2;
        without gradient.
        """
        with torch.no_grad():
            field = self._in(f)
            return likeliest(field.shape, _whiten(f, field), field.bias)

    def mean(self, f: Tensor) -> Tensor:
        """The mean (N, C) of the component that is nearest to each of the rows f (N, C); without
        gradient.
        """
        with torch.no_grad():
            stored = _as_it_is(self)
            means = torch.stack([_unwhitened(z, stored) for z in self.means]) + self.centre
            return means.to(f)[self.nearest(f)]

    def energy(self, f: Tensor, *, soft: bool = False) -> Tensor:
        """Squared Mahalanobis distance to the nearest component, a mean over channels, (N,);
        differentiable in ``f`` (N, C).

        E(f) = ||(f - m_k*) P_k*||^2 / C with k* = :meth:`nearest`. With ``soft`` the choice is
        smooth: E(f) = const - 2/C logsumexp_k(log w_k + log det P_k - 1/2 ||(f - m_k) P_k||^2),
        where the constant, 2/C max_k(log w_k + log det P_k), makes both the same for one
        component."""
        if soft:
            field = self._in(f)
            joint = field.bias - 0.5 * field.shape.distances(_whiten(f, field))
            return (field.bias.max() - joint.logsumexp(1)) * (2 / self.channels)

        whole = Groups([0], [len(f)], f, f)  # of one class: no order is asked for
        return energies([f], {0: Fields.of([self.field(f)])}, whole)[:, 0]

    def field(self, like: Tensor) -> Field:
        """The mixture as energies need it, in the dtype and on the device of ``like``; made once
        for each.
        """
        return self._in(like, folded=self.components == 1)

    def log_prob(self, f: Tensor) -> Tensor:
        """The log-density log p(f), (N,), in nats; differentiable in ``f`` (N, C)."""
        return self.log_joint(f).logsumexp(1)

    def log_joint(self, f: Tensor, *, white: bool = False) -> Tensor:
        """log w_k + log N(f; m_k, Sigma_k) for every component, (N, M), in nats; differentiable
        in ``f`` (N, C). ``white``: the rows are (f - centre) whitener already ("tied" and
        "lowrank").
        """
        field = self._in(f)
        joint = field.bias - 0.5 * field.shape.distances(f if white else _whiten(f, field))
        return joint + (
            log_det(self.whitener) - self.channels / 2 * math.log(2 * math.pi)
        ).to(f)

    def _in(self, like: Tensor, *, folded: bool = False) -> Field:
        """The mixture in the dtype and on the device of ``like``; made once for each."""
        key = (like.dtype, like.device, folded)
        if key not in self._ready:
            self._ready[key] = (_folded(self) if folded else _as_it_is(self)).to(like)
        return self._ready[key]


def _whiten(f: Tensor, field: Field) -> Tensor:
    """z = (f - centre) A, (N, C)."""
    return into((f - field.centre) * field.scale, field.rest)


def _as_it_is(mixture: Mixture) -> Field:
    """What is stored, in double precision."""
    means, factors, gains = mixture.means, mixture.factors, mixture.gains
    scale, rest = parted(mixture.whitener)
    own = torch.zeros_like(mixture.weights)  # log det P_k
    shape: Shape
    if mixture.covariance == "full":
        own = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        shape = Full(means, factors)
    elif mixture.covariance == "diag":
        own = factors.log().sum(1)
        shape = Diag(means, factors)
    elif mixture.covariance == "tied":
        shape = LowRank.of(
            means, means.new_zeros(*means.shape, 0), means.new_ones(len(means), 1)
        )
    else:
        own = mixture.channels * gains[:, 0].log() + torch.log1p(-gains[:, 1:]).sum(1)
        shape = LowRank.of(means, factors, gains)
    scale = torch.ones_like(mixture.centre) if scale is None else scale
    return Field(mixture.centre, scale, rest, shape, mixture.weights.log() + own)


def _folded(mixture: Mixture) -> Field:
    """One component with its mean in the centre and its factor in the whitening, in double
    precision: one matrix, where that is possible.
    """
    field = _as_it_is(mixture)
    factor, gains, rest = mixture.factors, mixture.gains, field.rest
    field = field._replace(
        centre=field.centre + _unwhitened(mixture.means[0], field), shape=Plain()
    )
    if mixture.covariance == "full":
        return field._replace(rest=factor[0])
    if mixture.covariance == "diag":
        return field._replace(scale=field.scale * factor[0])
    if mixture.covariance == "tied":
        return field
    s, h, u = gains[0, 0], gains[0, 1:], factor[0]
    if rest is None or len(rest) != rest.shape[1]:
        shape = _thin(u.new_zeros(len(u), 0) if rest is None else rest, u, h)
        return field._replace(scale=field.scale * s, rest=None, shape=shape)
    if len(rest) > BLOCK and bool(h.any()):  # the product would not be triangular
        return _as_it_is(mixture)
    return field._replace(rest=s * (rest - (rest @ u) * h @ u.T))


def _unwhitened(z: Tensor, field: Field) -> Tensor:
    """z A^-1 (C,), where z is in the whitened space."""
    q = field.rest
    if q is not None and len(q) == q.shape[1]:
        z = torch.linalg.solve_triangular(q, z[None], upper=True, left=False)[0]
    elif q is not None:  # (I - Q Q^T)^-1 = I + Q (I - Q^T Q)^-1 Q^T
        z = z + q @ torch.linalg.solve(torch.eye(q.shape[1]).to(q) - q.T @ q, q.T @ z)
    return z / field.scale


def _thin(q: Tensor, u: Tensor, h: Tensor) -> Shape:
    """(I - Q Q^T) (I - U diag(h) U^T)^2 (I - Q Q^T) as I - V diag(b) V^T: in the space of the
    columns of Q and U, the rest is the identity.
    """
    basis = torch.linalg.qr(torch.cat([q, u], 1)).Q  # (C, R)
    seen = basis - q @ (q.T @ basis)
    seen = seen - (u * h) @ (u.T @ seen)
    values, rotation = torch.linalg.eigh(seen.T @ seen)
    vectors = basis @ rotation
    return Thin(vectors, 1 - values) if basis.shape[1] else Plain()
