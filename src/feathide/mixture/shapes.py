"""Squared distances to the components of a mixture, one class for each structure of the covariance.

z (N, C) are whitened features, mu_k the means and P_k the precision factors of :mod:`feathide.mixture.model`. Every shape answers two
questions: ``distances``, ||(z - mu_k) P_k||^2 to all components, and ``pull``, for a chosen component of each sample, the distance and
half its gradient (z - mu_k) P_k P_k^T in closed form.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = [
    "Diag",
    "Full",
    "LowRank",
    "Shape",
    "Tied",
    "log_det",
    "squares",
    "times_upper",
    "whiten",
    "whiten_transposed",
]

CHUNK = 1 << 17  # numbers in a temporary array: it stays in the processor's cache
BLOCK = 256  # columns of a triangular matrix that are used together, for the same reason


def blocks(channels: int) -> Iterator[tuple[slice, slice]]:
    """The parts of an upper triangular matrix that are not zero: (rows, columns) of each block of columns."""
    for start in range(0, channels, BLOCK):
        yield slice(0, start + BLOCK), slice(start, start + BLOCK)


class Shape(ABC):
    """The components' means and covariances, in one dtype and on one device."""

    @abstractmethod
    def distances(self, z: Tensor) -> Tensor:
        """||(z - mu_k) P_k||^2 for every component, (N, M); differentiable."""

    @abstractmethod
    def pull(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """||(z - mu_k) P_k||^2 (N,) and (z - mu_k) P_k P_k^T (N, C) for the component k (N,) of each sample."""


@dataclass(frozen=True, eq=False)
class Full(Shape):
    """P_k (M, C, C), upper triangular."""

    means: Tensor
    factors: Tensor

    def distances(self, z: Tensor) -> Tensor:
        few = max(1, CHUNK // max(z.numel(), 1))  # components at a time
        pairs = zip(self.factors.split(few), self._shifts.split(few), strict=True)
        return torch.cat(
            [torch.baddbmm(-shift[:, None], z.expand(len(p), *z.shape), p).square().sum(2) for p, shift in pairs]
        ).T  # (N, M)

    def pull(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.factors) == 1:
            return self._pull(z - self.means, 0)
        order, d = k.argsort(), z - self.means[k]
        present, counts = k.unique(return_counts=True)  # one product for each component, no copy of P for each sample
        parts = zip(present.tolist(), d[order].split(counts.tolist()), strict=True)
        distance, gradient = (torch.cat(t) for t in zip(*(self._pull(part, i) for i, part in parts), strict=True))
        return torch.empty_like(distance).index_copy_(0, order, distance), torch.empty_like(d).index_copy_(
            0, order, gradient
        )

    def _pull(self, d: Tensor, k: int) -> tuple[Tensor, Tensor]:
        y = times_upper(d, self.factors[k])
        return torch.linalg.vecdot(y, y), times_upper_transposed(y, self.factors[k])

    @cached_property
    def _shifts(self) -> Tensor:
        return torch.matmul(self.means[:, None], self.factors)[:, 0]  # mu_k P_k (M, C)


@dataclass(frozen=True, eq=False)
class Diag(Shape):
    """P_k = diag(p_k), p (M, C)."""

    means: Tensor
    factors: Tensor

    def distances(self, z: Tensor) -> Tensor:
        linear, quadratic, constant = self._expanded
        return z.square() @ quadratic - z @ linear + constant

    def pull(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        d = (z - self.means[k]) * self.factors[k]
        return torch.linalg.vecdot(d, d), d * self.factors[k]

    @cached_property
    def _expanded(self) -> tuple[Tensor, Tensor, Tensor]:
        p2 = self.factors.square()
        return 2 * (self.means * p2).T, p2.T, (self.means.square() * p2).sum(1)


@dataclass(frozen=True, eq=False)
class Tied(Shape):
    """P_k = I: all of the covariance is in the whitener."""

    means: Tensor

    def distances(self, z: Tensor) -> Tensor:
        return squares(z)[:, None] - 2 * (z @ self.means.T) + self.means.square().sum(1)

    def pull(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        d = z - self.means[k]
        return torch.linalg.vecdot(d, d), d


@dataclass(frozen=True, eq=False)
class LowRank(Shape):
    """P_k = s_k (I - U_k diag(h_k) U_k^T), so P_k P_k^T = s_k^2 (I - U_k diag(h_k (2 - h_k)) U_k^T); U (M, C, R), gains (M, R + 1)."""

    means: Tensor
    factors: Tensor
    gains: Tensor

    def distances(self, z: Tensor) -> Tensor:
        basis, shifts, weights, norms = self._expanded
        plain = squares(z)[:, None] - 2 * (z @ self.means.T) + norms  # (N, M)
        along = (z @ basis).view(len(z), *shifts.shape) - shifts  # (N, M, R)
        return self.gains[:, 0].square() * (plain - (along.square() * weights).sum(2))

    def pull(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.means) == 1:  # no copy of U for each sample
            d, u, scale = z - self.means, self.factors[0], self.gains[0, 0].square()
            gradient = torch.addmm(d, (d @ u) * self._expanded[2], u.T, alpha=-1).mul_(scale)
            return torch.linalg.vecdot(d, gradient), gradient
        d, u = z - self.means[k], self.factors[k]  # (N, C), (N, C, R)
        along = torch.bmm(d[:, None], u) * self._expanded[2][k][:, None]  # (N, 1, R)
        gradient = (d - torch.bmm(along, u.mT)[:, 0]) * self.gains[k, :1].square()
        return torch.linalg.vecdot(d, gradient), gradient

    @cached_property
    def _expanded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        basis = self.factors.transpose(0, 1).flatten(1)  # (C, M R)
        shifts = torch.matmul(self.means[:, None], self.factors)[:, 0]  # mu_k U_k (M, R)
        h = self.gains[:, 1:]
        return basis, shifts, h * (2 - h), self.means.square().sum(1)


def squares(z: Tensor) -> Tensor:
    """||z||^2 of each row (N,), in one pass: z.square() would fill memory of the size of z."""
    return torch.linalg.vector_norm(z, dim=1).square()


def whiten(d: Tensor, a: Tensor) -> Tensor:
    """d A for rows d (N, C) and a whitener: diagonal (C,), upper triangular (C, C), or [w | Q] (C, R + 1), A = diag(w) (I - Q Q^T)."""
    if a.ndim == 1:
        return d * a
    if a.shape[0] == a.shape[1]:
        return times_upper(d, a)
    scaled, q = d * a[:, 0], a[:, 1:]
    return torch.addmm(scaled, scaled @ q, q.T, alpha=-1)


def whiten_transposed(z: Tensor, a: Tensor) -> Tensor:
    """z A^T for rows z (N, C): what a gradient in whitened features is in the features."""
    if a.ndim == 1:
        return z * a
    if a.shape[0] == a.shape[1]:
        return times_upper_transposed(z, a)
    q = a[:, 1:]
    return torch.addmm(z, z @ q, q.T, alpha=-1) * a[:, 0]


def log_det(a: Tensor) -> Tensor:
    """log det A of a whitener."""
    if a.ndim == 1 or a.shape[0] == a.shape[1]:
        return (a if a.ndim == 1 else a.diagonal()).log().sum()
    q = a[:, 1:]
    return a[:, 0].log().sum() + torch.linalg.slogdet(torch.eye(q.shape[1]).to(q) - q.T @ q).logabsdet


def times_upper(d: Tensor, a: Tensor) -> Tensor:
    """d a for rows d (N, C) and an upper triangular a (C, C), without the blocks of a that are zero: about half of the work."""
    if len(a) <= BLOCK:
        return d @ a
    return torch.cat([d[:, rows] @ a[rows, columns] for rows, columns in blocks(len(a))], 1)


def times_upper_transposed(z: Tensor, a: Tensor) -> Tensor:
    """z a^T, as :func:`times_upper`."""
    if len(a) <= BLOCK:
        return z @ a.T
    return torch.cat([z[:, c.start :] @ a[c, c.start :].T for _, c in blocks(len(a))], 1)
