"""Squared distances to the components of a mixture, one class for each structure of the
covariance.

z (N, C) are whitened features, mu_k the means and P_k the precision factors of
:mod:`feathide.mixtures.mixture`. Every shape answers two questions: ``distances``, ||(z - mu_k)
P_k||^2 to all components, and ``pull``: for the likeliest component of each sample, the distance
and half its gradient (z - mu_k) P_k P_k^T in closed form."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Diag",
    "Full",
    "LowRank",
    "Plain",
    "Shape",
    "Thin",
    "back",
    "into",
    "likeliest",
    "log_det",
    "parted",
    "squares",
    "times_upper",
    "whiten",
]

CHUNK = 1 << 17  # numbers in a temporary array: it stays in the processor's cache
BLOCK = 256  # columns of a triangular matrix that are used together, for the same reason


def blocks(channels: int) -> Iterator[tuple[slice, slice]]:
    """The parts of an upper triangular matrix that are not zero: (rows, columns) of each block of
    columns.
    """
    for start in range(0, channels, BLOCK):
        yield slice(0, start + BLOCK), slice(start, start + BLOCK)


class Shape(ABC):
    """The components' means and covariances, in one dtype and on one device."""

    def to(self, like: Tensor) -> Self:
        """In the dtype and on the device of ``like``."""
        names = [f.name for f in fields(self)]  # type: ignore[arg-type]
        moved = {name: getattr(self, name).to(like) for name in names}
        return replace(self, **moved)  # type: ignore[type-var]

    @abstractmethod
    def distances(self, z: Tensor) -> Tensor:
        """||(z - mu_k) P_k||^2 for every component, (N, M); differentiable."""

    @abstractmethod
    def pull(self, z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """||(z - mu_k) P_k||^2 (N,) and (z - mu_k) P_k P_k^T (N, C), for the k with the largest
        bias_k - 1/2 ||(z - mu_k) P_k||^2.
        """


@dataclass(frozen=True, eq=False)
class Plain(Shape):
    """One component, whose mean and covariance are in the whitening already."""

    def distances(self, z: Tensor) -> Tensor:
        return squares(z)[:, None]

    def pull(self, z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.vecdot(z, z), z


@dataclass(frozen=True, eq=False)
class Thin(Shape):
    """One component with mean 0: P P^T = I - V diag(b) V^T, with few columns V (C, R) and b
    (R,).
    """

    vectors: Tensor
    shares: Tensor

    def distances(self, z: Tensor) -> Tensor:
        return self.pull(z, z)[0][:, None]

    def pull(self, z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        half = torch.addmm(z, (z @ self.vectors) * self.shares, self.vectors.T, alpha=-1)
        return torch.linalg.vecdot(z, half), half


@dataclass(frozen=True, eq=False)
class Full(Shape):
    """P_k (M, C, C), upper triangular."""

    means: Tensor
    factors: Tensor

    def distances(self, z: Tensor) -> Tensor:
        few = max(1, CHUNK // max(z.numel(), 1))  # components at a time
        pairs = zip(self.factors.split(few), self._shifts.split(few), strict=True)
        # (N, M)
        return torch.cat(
            [
                torch.baddbmm(-shift[:, None], z.expand(len(p), *z.shape), p)
                .square()
                .sum(2)
                for p, shift in pairs
            ]
        ).T

    def pull(self, z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        k = likeliest(self, z, bias)
        order, d = k.argsort(), z - self.means[k]
        # one product for each component, no copy of P for each sample
        present, counts = k.unique(return_counts=True)
        parts = zip(present.tolist(), d[order].split(counts.tolist()), strict=True)
        distance, gradient = (
            torch.cat(t)
            for t in zip(*(self._pull(part, i) for i, part in parts), strict=True)
        )
        return torch.empty_like(distance).index_copy_(0, order, distance), torch.empty_like(
            d
        ).index_copy_(0, order, gradient)

    def _pull(self, d: Tensor, k: int) -> tuple[Tensor, Tensor]:
        y, half = times_upper(d, self.factors[k]), torch.empty_like(d)
        back(y, self.factors[k], half)
        return torch.linalg.vecdot(y, y), half

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

    def pull(self, z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        k = likeliest(self, z, bias)
        d = (z - self.means[k]) * self.factors[k]
        return torch.linalg.vecdot(d, d), d * self.factors[k]

    @cached_property
    def _expanded(self) -> tuple[Tensor, Tensor, Tensor]:
        p2 = self.factors.square()
        return 2 * (self.means * p2).T, p2.T, (self.means.square() * p2).sum(1)


@dataclass(frozen=True, eq=False)
class LowRank(Shape):
    """P_k P_k^T = s_k^2 (I - U_k diag(h_k (2 - h_k)) U_k^T); U (M, C, R), gains [s, h] (M, R +
    1). "tied" is R = 0 and s = 1.

    With m_k = P_k P_k^T mu_k and the columns of U_k times s_k sqrt|h (2 - h)|, V_k, a distance is
    s_k^2 ||z||^2 - 2 z m_k + c_k - sum_r sign_r (z V_kr)^2: all components by one product with
    the rows V_k, then m_k, of one table. For the likeliest the products with V_k are used again,
    and d = z - mu_k is taken first, so that nothing cancels."""

    means: Tensor  # (M, C)
    table: Tensor  # (M R + M, C)
    own: Tensor  # mu_k V_k, then s^2, (M, R + 1)
    signs: Tensor  # (M R), or (0,) where all are positive
    constants: Tensor  # c / 2 (M,)

    @classmethod
    def of(cls, means: Tensor, factors: Tensor, gains: Tensor) -> "LowRank":
        """From the stored statistics, in double precision."""
        # (M, 1), (M, R)
        scales, weights = gains[:, :1].square(), gains[:, 1:] * (2 - gains[:, 1:])
        rows = (factors * (gains[:, :1] * weights.abs().sqrt())[:, None]).mT  # (M, R, C)
        shifts, signs = (
            torch.einsum("mc,mrc->mr", means, rows),
            torch.where(weights < 0, -1.0, 1.0).to(means),
        )
        linear = scales * means - torch.einsum("mrc,mr->mc", rows, signs * shifts)
        signs = signs.flatten() if bool((signs < 0).any()) else signs.new_zeros(0)
        table = torch.cat([rows.flatten(0, 1), linear])
        return cls(
            means, table, torch.cat([shifts, scales], 1), signs, (means * linear).sum(1) / 2
        )

    def distances(self, z: Tensor) -> Tensor:
        return -2 * self._halves(z, z @ self.table.T)

    def pull(self, z: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        along = z @ self.table.T  # (N, M R + M)
        k = (bias + self._halves(z, along)).argmax(1)
        own, d, rank = (
            self.own.index_select(0, k),
            z - self.means.index_select(0, k),
            self._rank,
        )
        half = d * own[:, rank:]
        if rank:
            # V_k in the table, (N, R)
            rows = k[:, None] * rank + torch.arange(rank, device=k.device)
            weights = along.gather(1, rows) - own[:, :rank]
            weights = weights * self.signs[rows] if len(self.signs) else weights
            # no copies of the rows
            half -= F.embedding_bag(
                rows, self.table, per_sample_weights=weights, mode="sum"
            )
        return torch.linalg.vecdot(d, half), half

    @property
    def _rank(self) -> int:
        return self.own.shape[1] - 1

    def _halves(self, z: Tensor, along: Tensor) -> Tensor:
        """Minus half the distances, (N, M), from the products with the table."""
        columns = len(self.means) * self._rank
        rows, linear = along[:, :columns], along[:, columns:]
        halves = torch.addr(
            linear - self.constants, squares(z), self.own[:, -1], alpha=-0.5
        )
        if not columns:
            return halves
        squared = rows.square() * self.signs if len(self.signs) else rows.square()
        return torch.add(halves, squared.unflatten(1, (-1, self._rank)).sum(2), alpha=0.5)


def likeliest(shape: Shape, z: Tensor, bias: Tensor) -> Tensor:
    """The component (N,) with the largest bias_k - 1/2 ||(z - mu_k) P_k||^2."""
    return (bias - 0.5 * shape.distances(z)).argmax(1)


def squares(z: Tensor) -> Tensor:
    """||z||^2 of each row (N,), in one pass: z.square() would fill memory of the size of z."""
    return torch.linalg.vector_norm(z, dim=1).square()


def whiten(d: Tensor, a: Tensor) -> Tensor:
    """d A for rows d (N, C) and a whitener: diagonal (C,), upper triangular (C, C), or [w | Q]
    (C, R + 1), A = diag(w) (I - Q Q^T).
    """
    scale, rest = parted(a)
    return into(d if scale is None else d * scale, rest)


def parted(a: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A whitener as a scale of the channels (C,) and what is left of it: an upper triangular
    matrix (C, C), or Q (C, R) of I - Q Q^T.
    """
    if a.ndim == 1:
        return a, None
    return (None, a) if a.shape[0] == a.shape[1] else (a[:, 0], a[:, 1:])


def into(d: Tensor, rest: Tensor | None) -> Tensor:
    """The rows d (N, C), scaled already, in the whitened space."""
    if rest is None:
        return d
    return (
        times_upper(d, rest)
        if rest.shape[0] == rest.shape[1]
        else torch.addmm(d, d @ rest, rest.T, alpha=-1)
    )


def back(z: Tensor, rest: Tensor | None, out: Tensor) -> None:
    """z A^T, what a gradient in the whitened space is before it is scaled, written to ``out`` (N,
    C).
    """
    if rest is None:
        out.copy_(z)
    elif rest.shape[0] != rest.shape[1]:
        torch.addmm(z, z @ rest, rest.T, alpha=-1, out=out)
    elif rest.shape[0] <= BLOCK:
        torch.mm(z, rest.T, out=out)
    else:
        # the rows of the matrix that begin in the block c of columns
        for _, c in blocks(len(rest)):
            torch.mm(z[:, c.start :], rest[c, c.start :].T, out=out[:, c])


def log_det(a: Tensor) -> Tensor:
    """log det A of a whitener."""
    if a.ndim == 1 or a.shape[0] == a.shape[1]:
        return (a if a.ndim == 1 else a.diagonal()).log().sum()
    q = a[:, 1:]
    return (
        a[:, 0].log().sum()
        + torch.linalg.slogdet(torch.eye(q.shape[1]).to(q) - q.T @ q).logabsdet
    )


def times_upper(d: Tensor, a: Tensor) -> Tensor:
    """d a for rows d (N, C) and an upper triangular a (C, C), without the blocks of a that are
    zero: about half of the work.
    """
    if a.shape[0] <= BLOCK:
        return d @ a
    return torch.cat([d[:, rows] @ a[rows, columns] for rows, columns in blocks(len(a))], 1)
