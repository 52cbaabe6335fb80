"""One Gaussian mixture: which component is nearest, how far away it is (energy), and the log-density.

All four covariance structures share one form: the features are first whitened by what the components have in common,
``z = (f - centre) A``, and component k then has mean ``mu_k`` and precision factor ``P_k`` in the space of z:

=========  ==================================  =====================================================================
structure  A                                   P_k
=========  ==================================  =====================================================================
full       1 / deviation of each channel (C,)  upper triangular (C, C)
diag       1 / deviation of each channel (C,)  diagonal (C,)
tied       factor of the shared precision      identity
lowrank    that, or of C > 256 [w | Q] (C, R)  s_k (I - U_k diag(h_k) U_k^T), U_k (C, R) orthonormal
=========  ==================================  =====================================================================

"lowrank" is a mixture of probabilistic PCA in the whitened space (Tipping and Bishop 1999): the R directions in which a component
differs most from what is shared have their own variances, and the residual directions stay in the energy. Of more than 256 channels what is
shared is a factor analysis, A = diag(w) (I - Q Q^T) with at most 64 factors, kept as the columns w and Q of one matrix.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from feathide.mixture.shapes import Diag, Full, LowRank, Shape, Tied, log_det, whiten, whiten_transposed

__all__ = ["COVARIANCES", "Covariance", "Mixture", "with_gradient"]

Covariance = Literal["full", "tied", "diag", "lowrank"]
COVARIANCES: tuple[Covariance, ...] = get_args(Covariance)


class Ready(NamedTuple):
    """A mixture in one dtype and on one device."""

    centre: Tensor  # (C,)
    whitener: Tensor | None  # (C,), (C, C) or (C, R + 1)
    shape: Shape
    bias: Tensor  # (M,) log w_k + log det P_k
    constant: Tensor  # log det A - C/2 log 2 pi


@dataclass(frozen=True, eq=False)
class Mixture:
    """A Gaussian mixture p(f) = sum_k w_k N(f; m_k, Sigma_k) over features f (N, C), in float64; see the module for its form.

    ``weights`` (M,), ``centre`` (C,), ``whitener`` (C,), upper triangular (C, C) or (C, R + 1), ``means`` (M, C) in the whitened space,
    ``factors`` and ``gains`` as in the table above. ``lower_bound`` is the mean log-likelihood of the data it was fitted to, in nats,
    ``samples`` their number, ``shrinkage`` the share of the diagonal in the covariance, ``pooling`` the share of what the components
    have in common in a component of average size, ``degenerate`` the number of channels that did not vary, and ``notes`` says
    in sentences what was unusual.
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
    _ready: dict[tuple[torch.dtype, torch.device], Ready] = field(default_factory=dict, init=False, repr=False)

    @property
    def components(self) -> int:
        return len(self.weights)

    @property
    def channels(self) -> int:
        return len(self.centre)

    @property
    def bic(self) -> float:
        """Bayesian information criterion of the fit, in nats of the whole data: -2 log L + parameters log N; lower is better."""
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
        """The component (N,) with the largest log w_k + log det P_k - 1/2 ||(f - m_k) P_k||^2; without gradient."""
        with torch.no_grad():
            ready = self._in(f)
            return self._choose(_whiten(f, ready), ready)

    def energy(self, f: Tensor, *, soft: bool = False) -> Tensor:
        """Squared Mahalanobis distance to the nearest component, a mean over channels, (N,); differentiable in ``f`` (N, C).

        E(f) = ||(f - m_k*) P_k*||^2 / C with k* = :meth:`nearest`. With ``soft`` the choice is smooth: E(f) = const - 2/C
        logsumexp_k(log w_k + log det P_k - 1/2 ||(f - m_k) P_k||^2), where the constant, 2/C max_k(log w_k + log det P_k), makes both
        the same for one component.
        """
        if soft:
            bias = self._in(f).bias
            return (bias.max() - self._joint(f).logsumexp(1)) * (2 / self.channels)

        def measure(features: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
            value, gradient = self.energy_and_gradient(features[0])
            return value[:, None], [gradient]

        return with_gradient(measure, [f])[:, 0]

    def energy_and_gradient(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """The (hard) energy (N,) and its gradient (N, C), in closed form and without a graph."""
        with torch.no_grad():
            ready = self._in(f)
            z = _whiten(f, ready)
            distance, half = ready.shape.pull(z, self._choose(z, ready))
            a = ready.whitener
            gradient = half if a is None else whiten_transposed(half, a)
            return distance / self.channels, gradient * (2 / self.channels)

    def log_prob(self, f: Tensor) -> Tensor:
        """The log-density log p(f), (N,), in nats; differentiable in ``f`` (N, C)."""
        return self.log_joint(f).logsumexp(1)

    def log_joint(self, f: Tensor, *, white: bool = False) -> Tensor:
        """log w_k + log N(f; m_k, Sigma_k) for every component, (N, M), in nats; differentiable in ``f`` (N, C). ``white``: the rows are
        (f - centre) whitener already ("tied" and "lowrank")."""
        return self._joint(f, white=white) + self._in(f).constant

    def _joint(self, f: Tensor, *, white: bool = False) -> Tensor:
        ready = self._in(f)
        return ready.bias - 0.5 * ready.shape.distances(f if white else _whiten(f, ready))

    def _choose(self, z: Tensor, ready: Ready) -> Tensor:
        if self.components == 1:
            return torch.zeros(len(z), dtype=torch.long, device=z.device)
        return (ready.bias - 0.5 * ready.shape.distances(z)).argmax(1)

    def _in(self, like: Tensor) -> Ready:
        """The mixture in the dtype and on the device of ``like``; made once for each."""
        key = (like.dtype, like.device)
        if key not in self._ready:
            self._ready[key] = self._prepare(like)
        return self._ready[key]

    def _prepare(self, like: Tensor) -> Ready:
        a, means, factors = self.whitener, self.means, self.factors
        constant = log_det(a) - self.channels / 2 * math.log(2 * math.pi)
        own = torch.zeros_like(self.weights)
        shape: Shape
        whitener: Tensor | None = a.to(like)
        if self.covariance in ("full", "diag"):  # a scale of the channels goes into the factors
            diagonal = factors if factors.ndim == 2 else factors.diagonal(dim1=1, dim2=2)
            own = diagonal.log().sum(1)
            means, factors = (means / a).to(like), (factors * (a if factors.ndim == 2 else a[:, None])).to(like)
            shape, whitener = (Diag if factors.ndim == 2 else Full)(means, factors), None
        elif self.covariance == "tied":
            shape = Tied(means.to(like))
        else:
            own = self.channels * self.gains[:, 0].log() + torch.log1p(-self.gains[:, 1:]).sum(1)
            shape = LowRank(means.to(like), factors.to(like), self.gains.to(like))
        return Ready(
            self.centre.to(like),
            whitener,
            shape,
            (self.weights.log() + own).to(like),
            constant.to(like),
        )


def _whiten(f: Tensor, ready: Ready) -> Tensor:
    """z = (f - centre) A, (N, C)."""
    d, a = f - ready.centre, ready.whitener
    return d if a is None else whiten(d, a)


Measure = Callable[[Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]


def with_gradient(measure: Measure, features: Sequence[Tensor]) -> Tensor:
    """The values that ``measure`` gives with their gradients, as one node of the graph: an attack's step needs it only once.

    ``measure`` maps L features (N, C_l) to values (N, L) and, for each column, its gradient (N, C_l) in the feature of that column.
    """
    return _Known.apply(measure, *features)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, measure: Measure, *features: Tensor) -> Tensor:
        values, gradients = measure(features)
        ctx.save_for_backward(*gradients)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(g * w[:, None] for g, w in zip(ctx.saved_tensors, weight.unbind(1), strict=True))
