"""Expectation maximisation: the one loop in which all structures are fitted, and what their steps
share.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from feathide.mixtures.mixture import Covariance, Mixture

__all__ = ["Climb", "Step", "climb", "climbed", "local", "members", "moments"]

S = TypeVar("S")
# (responsibilities, what it made before) -> (that, log joint (N, M))
Step = Callable[[Tensor, S | None], tuple[S, Tensor]]


@dataclass(frozen=True)
class Climb(Generic[S]):
    """How far it came: what the last step made, the mean log-likelihood of that, and the
    responsibilities that follow from it.
    """

    responsibilities: Tensor  # (N, M)
    state: S | None = None  # None: no step yet
    bound: float = -math.inf
    converged: bool = False
    n_iter: int = 0


def climb(step: Step[S], run: Climb[S], *, rest: float, max_iter: int) -> Climb[S]:
    """Goes on from ``run`` until the mean log-likelihood changes by less than ``rest``;
    ``max_iter`` counts what ``run`` took, too.
    """
    converged = False
    while not converged and run.n_iter < max_iter:
        state, joint = step(run.responsibilities, run.state)
        log_prob = joint.logsumexp(1, keepdim=True)
        bound = float(log_prob.double().mean())
        converged = abs(bound - run.bound) < rest
        run = Climb((joint - log_prob).exp(), state, bound, converged, run.n_iter + 1)
    return run


def climbed(mixture: Mixture, run: Climb) -> Mixture:
    """The mixture that a climb led to."""
    return replace(
        mixture, converged=run.converged, n_iter=run.n_iter, lower_bound=run.bound
    )


def moments(z: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (M,) and mean (M, C) of each component."""
    n = r.sum(0) + 10 * torch.finfo(r.dtype).eps
    return n, r.T @ z / n[:, None]


def members(z: Tensor, r: Tensor, means: Tensor) -> Iterator[Tensor]:
    """For each component the d (n, C) with d^T d = its scatter; rows that do not belong to it
    change nothing and are left out.
    """
    for share, mean in zip(r.T, means, strict=True):
        rows = share > 1e-9
        yield (z[rows] - mean) * share[rows, None].sqrt()


def local(
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
