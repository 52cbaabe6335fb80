"""One Gaussian mixture: which component is nearest, how far away it is (energy), and the log-density.

All four covariance structures share one form: the features are first whitened by what the components have in common,
``z = (f - centre) A``, and component k then has mean ``mu_k`` and precision factor ``P_k`` in the space of z:

=========  ==================================  =====================================================================
structure  A                                   P_k
=========  ==================================  =====================================================================
full       1 / deviation of each channel (C,)  upper triangular (C, C)
diag       1 / deviation of each channel (C,)  diagonal (C,)
tied       factor of the shared precision      identity
lowrank    factor of the shared precision      s_k (I - U_k diag(h_k) U_k^T), U_k (C, R) orthonormal
=========  ==================================  =====================================================================

"lowrank" is a mixture of probabilistic PCA in the whitened space (Tipping and Bishop 1999): the R directions in which a component
differs most from what is shared have their own variances, and the residual directions stay in the energy.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

__all__ = ["COVARIANCES", "Covariance", "Mixture"]

Covariance = Literal["full", "tied", "diag", "lowrank"]
COVARIANCES: tuple[Covariance, ...] = get_args(Covariance)
CHUNK = 1 << 22  # numbers in a temporary array, 32 MB


class Ready(NamedTuple):
    """A mixture's statistics on one device and in one dtype, with what the choice of a component needs precomputed."""

    centre: Tensor  # (C,)
    whitener: Tensor  # (C,) or (C, C)
    means: Tensor  # (M, C)
    factors: Tensor  # full (M, C, C), diag (M, C), tied (0,), lowrank (M, C, R)
    gains: Tensor  # lowrank (M, R + 1): s_k, then h_k; otherwise (0,)
    bias: Tensor  # (M,) log w_k + log det P_k
    shifts: Tensor  # full, lowrank: mu_k P_k (M, C) or mu_k U_k (M, R); diag: mu_k p_k^2 (M, C)
    norms: Tensor  # (M,) what the squared distance of z = 0 to each mean is


@dataclass(frozen=True, eq=False)
class Mixture:
    """A Gaussian mixture p(f) = sum_k w_k N(f; m_k, Sigma_k) over features f (N, C), in float64; see the module for its form.

    ``weights`` (M,), ``centre`` (C,), ``whitener`` (C,) or (C, C), ``means`` (M, C) in the whitened space, ``factors`` and ``gains``
    as in the table above. ``lower_bound`` is the mean log-likelihood (with prior: the mean log-posterior) of the data it was fitted
    to, ``samples`` their number, ``shrinkage`` the share of the prior in a component of average size, ``degenerate`` the number of
    channels that did not vary, and ``notes`` says in sentences what was unusual.
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
        shared = square if self.whitener.ndim == 2 else c
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
            r = self.ready(f)
            if self.components == 1:
                return torch.zeros(len(f), dtype=torch.long, device=f.device)
            return self._scores(whiten(f, r), r).argmax(1)

    def energy(self, f: Tensor, *, soft: bool = False) -> Tensor:
        """Squared Mahalanobis distance to the nearest component, a mean over channels, (N,); differentiable in ``f`` (N, C).

        E(f) = ||(f - m_k*) P_k*||^2 / C with k* = :meth:`nearest`. With ``soft`` the choice is smooth:
        E(f) = -2/C logsumexp_k(log w_k + log det P_k - 1/2 ||(f - m_k) P_k||^2) + const, where the constant, 2/C max_k(log w_k +
        log det P_k), makes both the same for one component.
        """
        r = self.ready(f)
        z = whiten(f, r)
        if soft:
            return (r.bias.max() - torch.logsumexp(self._scores(z, r), 1)) * (2 / self.channels)
        with torch.no_grad():
            k = self._scores(z, r).argmax(1) if self.components > 1 else None
        return self._residual(z, k, r).square().mean(1)

    def log_prob(self, f: Tensor) -> Tensor:
        """The log-density log p(f), (N,), in nats; differentiable in ``f`` (N, C)."""
        return torch.logsumexp(self.log_joint(f), 1)

    def log_joint(self, f: Tensor) -> Tensor:
        """log w_k + log N(f; m_k, Sigma_k) for every component, (N, M), in nats; differentiable in ``f`` (N, C)."""
        r = self.ready(f)
        d = self.whitener if self.whitener.ndim == 1 else self.whitener.diagonal()
        return self._scores(whiten(f, r), r) + (float(d.log().sum()) - self.channels / 2 * math.log(2 * math.pi))

    def ready(self, like: Tensor) -> Ready:
        """The statistics in the dtype and on the device of ``like``; made once for each."""
        key = (like.dtype, like.device)
        if key not in self._ready:
            self._ready[key] = Ready(*(t.to(like) for t in self._prepare()))
        return self._ready[key]

    def _prepare(self) -> Ready:
        mu, f, g = self.means, self.factors, self.gains
        norms, shifts = mu.square().sum(1), mu
        log_det = torch.zeros_like(self.weights)
        if self.covariance == "full":
            log_det = f.diagonal(dim1=1, dim2=2).log().sum(1)
            shifts = torch.einsum("mc,mcd->md", mu, f)
        elif self.covariance == "diag":
            log_det = f.log().sum(1)
            shifts, norms = mu * f.square(), (mu * f).square().sum(1)
        elif self.covariance == "lowrank":
            log_det = self.channels * g[:, 0].log() + torch.log1p(-g[:, 1:]).sum(1)
            shifts = torch.einsum("mc,mcr->mr", mu, f)
        return Ready(self.centre, self.whitener, mu, f, g, self.weights.log() + log_det, shifts, norms)

    def _scores(self, z: Tensor, r: Ready) -> Tensor:
        """log w_k + log det P_k - 1/2 ||(z - mu_k) P_k||^2 for every component, (N, M)."""
        if self.covariance == "full":
            few = max(1, CHUNK // max(z.numel(), 1))  # components at a time
            pairs = zip(r.factors.split(few), r.shifts.split(few), strict=True)
            distance = torch.cat([(torch.matmul(z, p) - mu_p[:, None]).square().sum(2) for p, mu_p in pairs])  # (M, N)
            return r.bias - 0.5 * distance.T
        if self.covariance == "diag":
            distance = z.square() @ r.factors.square().T - 2 * z @ r.shifts.T + r.norms
            return r.bias - 0.5 * distance
        distance = z.square().sum(1, keepdim=True) - 2 * z @ r.means.T + r.norms  # (N, M)
        if self.covariance == "lowrank":
            m, c, rank = r.factors.shape
            along = (z @ r.factors.transpose(0, 1).reshape(c, m * rank)).view(len(z), m, rank) - r.shifts  # (N, M, R)
            s, h = r.gains[:, 0], r.gains[:, 1:]
            distance = s.square() * (distance - (along.square() * (h * (2 - h))).sum(2))
        return r.bias - 0.5 * distance

    def _residual(self, z: Tensor, k: Tensor | None, r: Ready) -> Tensor:
        """(z - mu_k) P_k with the component k (N,) of each sample, or the only one, (N, C)."""
        if k is None:
            d = z - r.means[0]
            k = torch.zeros(1, dtype=torch.long, device=z.device) if self.covariance in ("diag", "lowrank") else k
        else:
            d = z - r.means[k]
        if self.covariance == "tied":
            return d
        if self.covariance == "diag":
            return d * r.factors[k]
        if self.covariance == "lowrank":
            u, s, h = r.factors[k], r.gains[k, :1], r.gains[k, 1:]  # (N, C, R), (N, 1), (N, R)
            along = torch.matmul(d[:, None], u)[:, 0]  # (N, R)
            return s * (d - torch.matmul(u, (h * along)[:, :, None])[:, :, 0])
        if k is None:
            return d @ r.factors[0]
        return _grouped(d, k, r.factors)


def whiten(f: Tensor, r: Ready) -> Tensor:
    """z = (f - centre) A, (N, C)."""
    d = f - r.centre
    return d * r.whitener if r.whitener.ndim == 1 else d @ r.whitener


def _grouped(d: Tensor, k: Tensor, factors: Tensor) -> Tensor:
    """d_i P_{k_i}, (N, C): one matrix product for each component that occurs, instead of a copy of its factor for each sample."""
    order = k.argsort(stable=True)
    present, counts = k.unique(return_counts=True)
    parts = d[order].split(counts.tolist())
    y = torch.cat([part @ factors[i] for i, part in zip(present.tolist(), parts, strict=True)])
    return torch.empty_like(y).index_copy(0, order, y)
