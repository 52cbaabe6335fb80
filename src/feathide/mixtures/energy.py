"""The energies of many layers at once, with their gradients in closed form: what HFC adds to each
step of an attack.

A step pays for the number of operations rather than for their size: a network has dozens of
layers, a batch a few rows. So all that is done channel by channel, centring, scaling, and the
order of the rows by class, is done for all layers together, and one component is a single matrix,
in which its mean and what the whitening has in common with it are folded. The gradients of all
layers lie side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from feathide.mixtures.covariances import Shape, back, into

__all__ = ["Field", "Fields", "Groups", "energies"]


class Field(NamedTuple):
    """One mixture in one dtype and on one device: z = (f - centre) * scale, then what is left of
    the whitening, then the shape.
    """

    centre: Tensor  # (C,)
    scale: Tensor  # (C,)
    rest: Tensor | None  # as in :func:`feathide.mixtures.covariances.parted`
    shape: Shape
    bias: Tensor  # (M,) log w_k + log det P_k

    def to(self, like: Tensor) -> "Field":
        """In the dtype and on the device of ``like``."""
        rest, shape = None if self.rest is None else self.rest.to(like), self.shape.to(like)
        return Field(
            self.centre.to(like), self.scale.to(like), rest, shape, self.bias.to(like)
        )


@dataclass(frozen=True, eq=False)
class Fields:
    """The mixtures of one class in L layers, their channels side by side (D = sum of C_l)."""

    parts: tuple[Field, ...]
    centre: Tensor  # (D,)
    scale: Tensor  # (D,)
    # (D,) 2 / C_l times the scale: from half a gradient of a distance to the gradient of an
    # energy
    slope: Tensor
    layer: Tensor  # (D,) the layer of each channel, as a number

    @classmethod
    def of(cls, parts: Sequence[Field]) -> "Fields":
        slopes = [part.scale * (2 / len(part.scale)) for part in parts]
        layers = [
            torch.full((len(part.scale),), i, device=part.scale.device)
            for i, part in enumerate(parts)
        ]
        columns = [
            [part.centre for part in parts],
            [part.scale for part in parts],
            slopes,
            layers,
        ]
        return cls(tuple(parts), *(torch.cat(values) for values in columns))

    def distances(self, f: Tensor, gradient: Tensor) -> Tensor:
        """||(f - m_k*) P_k*||^2 of the rows f (N, D) in each layer, (N, L); writes the gradient
        of the energies to ``gradient`` (N, D).
        """
        d = torch.sub(f, self.centre).mul_(self.scale)
        sizes = [len(part.scale) for part in self.parts]
        found = []
        for part, own, slope in zip(
            self.parts, d.split(sizes, 1), gradient.split(sizes, 1), strict=True
        ):
            distance, half = part.shape.pull(into(own, part.rest), part.bias)
            back(half, part.rest, slope)
            found.append(distance)
        gradient.mul_(self.slope)
        return torch.stack(found, 1)


class Groups(NamedTuple):
    """The rows of a batch by class: which classes occur, how often, the rows in their order, and
    the way back.
    """

    labels: list[int]
    sizes: list[int]
    order: Tensor
    back: Tensor

    @classmethod
    def of(cls, classes: Tensor) -> "Groups":
        present, counts = classes.unique(return_counts=True)
        order = classes.argsort(stable=True)
        return cls(present.tolist(), counts.tolist(), order, order.argsort())


def energies(
    features: Sequence[Tensor],
    fields: Mapping[int, Fields],
    groups: Groups,
    shift: Tensor | None = None,
) -> Tensor:
    """The energies (N, L) of L features (N, C_l), each row under the mixtures of its class;
    differentiable once. ``shift`` (N, D) is subtracted from the features, which lie side by side.
    """
    f = _joint(features)
    f = f if shift is None else f - shift
    return _Energies.apply(f, [g.shape[1] for g in features], fields, groups)


def _joint(features: Sequence[Tensor]) -> Tensor:
    """The features side by side (N, D): the tensor of which they are the columns, as of a
    classifier's outputs, or a new one.
    """
    base, at = features[0]._base, 0
    if base is None or base.shape != (len(features[0]), sum(f.shape[1] for f in features)):
        return torch.cat(list(features), 1)
    # a column that was detached, or that is a leaf, is not one of the base's graph
    for f in features:
        same = (
            f._base is base
            and f.stride() == base.stride()
            and f.requires_grad == base.requires_grad
        )
        if not same or f.storage_offset() != base.storage_offset() + at:
            return torch.cat(list(features), 1)
        at += f.shape[1]
    return base


class _Energies(torch.autograd.Function):
    """The gradient is known with the values, so that it is one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        f: Tensor,
        sizes: Sequence[int],
        fields: Mapping[int, Fields],
        groups: Groups,
    ) -> Tensor:
        several = len(groups.labels) > 1
        f = f.index_select(0, groups.order) if several else f
        gradient = torch.empty_like(f)
        parts = zip(
            groups.labels, f.split(groups.sizes), gradient.split(groups.sizes), strict=True
        )
        values = torch.cat(
            [fields[label].distances(rows, slopes) for label, rows, slopes in parts]
        )
        values /= values.new_tensor(sizes)
        ctx.save_for_backward(
            gradient.index_select(0, groups.back) if several else gradient
        )
        ctx.layer = fields[groups.labels[0]].layer
        return values.index_select(0, groups.back) if several else values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        summed = weight.stride(1) == 0  # the gradient of a sum over layers
        weight = weight[:, :1] if summed else weight.index_select(1, ctx.layer)
        return gradient * weight, None, None, None
