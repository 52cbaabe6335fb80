"""MaskGoal: wanted labels of voxels, and the read-outs that tell whether a case counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.errors import expected, few
from feathide.goals.bounds import Bound
from feathide.types import LabelAim, Outputs, Rows, label_lead, tensors

__all__ = ["MaskGoal", "nearer"]

# what the loss may add to a read-out, in its scale, where that does not change
NEARER = 1e-3


@dataclass(frozen=True, eq=False)
class MaskGoal(LabelAim):
    """What the attacker wants of a segmentation network.

    The recipes of ``feathide.goals``, such as ``Erase``, make it.

    Args:
        source: The labels before (N, *S), int64.
        target: The wanted labels (N, *S), int64; None where any other label will do.
        region: Where the losses look (N, *S), bool.
        bounds: The read-outs that must have crossed their bounds, all of them.
    """

    source: Tensor
    target: Tensor | None
    region: Tensor
    bounds: tuple[Bound, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Rows) -> "MaskGoal":
        return tensors(self, lambda v: v[rows])

    def to(self, device: torch.device) -> "MaskGoal":
        return tensors(self, lambda v: v.to(device))

    @property
    def normal_class(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.long, device=self.source.device)

    @property
    def clean_class(self) -> Tensor:
        return self.normal_class

    @property
    def in_logits(self) -> bool:
        return True

    def assumed(self, rows: Rows) -> None:
        return None

    def check(self, x: Tensor, ids: Sequence[str]) -> None:
        if self.source.shape[1:] != x.shape[2:]:
            raise expected(
                f"masks must have the shape of the images, {tuple(x.shape[2:])}",
                got=tuple(self.source.shape[1:]),
                do="resample them to the images, nearest neighbour",
            )
        empty = (~self.region.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise expected(
                "every case must have voxels to change",
                got=f"none in {few([ids[i] for i in empty])}",
                do="leave out cases that lack the structure: wish.applies(masks) tells them",
            )

    def check_outputs(self, out: Outputs) -> None:
        z = out.logits
        if z.shape[2:] != self.source.shape[1:]:
            raise expected(
                "the network must give logits (N, K, *S) for every voxel of masks "
                f"{tuple(self.source.shape[1:])}",
                got=f"outputs of shape {tuple(z.shape)}",
                do="wrap it to resample its logits to the images",
            )
        wanted = self.source if self.target is None else self.target
        least = min(int(self.source.amin()), int(wanted.amin()))
        most = max(int(self.source.amax()), int(wanted.amax()))
        if least < 0 or most >= z.shape[1]:
            raise expected(
                f"labels must be 0 to {z.shape[1] - 1}, as the network's outputs",
                got=f"{least} to {most}",
                do="number the labels of the masks as the network's outputs",
            )

    def towards(self, z: Tensor, rows: Rows) -> Tensor:
        if self.target is None:
            return -F.cross_entropy(z, self.source[rows], reduction="none")
        return F.cross_entropy(z, self.target[rows], reduction="none")

    def lead(self, z: Tensor, rows: Rows) -> Tensor:
        if self.target is None:
            return -label_lead(z, self.source[rows])
        return label_lead(z, self.target[rows])

    def mean(self, values: Tensor, rows: Rows) -> Tensor:
        region = self.region[rows]
        count = region.flatten(1).sum(1)
        return torch.where(region, values, 0).flatten(1).sum(1) / count

    def labels(self) -> Tensor:
        """The labels that the losses compare with: the wanted ones, or those to get away from."""
        return self.source if self.target is None else self.target

    def fooled_at(self, z: Tensor, rows: Rows) -> Tensor:
        """Which voxels (n, *S) have the wanted label, or another than before."""
        same = z.argmax(1) == self.labels()[rows]
        return ~same if self.target is None else same

    def margin(self, out: Outputs, rows: Rows) -> Tensor:
        found = out.logits.argmax(1)
        margins = [bound.margin(found, rows) for bound in self.bounds]
        return torch.stack(margins).amin(0).to(out.logits)

    def rank(self, fool: Tensor, margin: Tensor) -> Tensor:
        return nearer(fool, margin)

    def measured(self, out: Outputs) -> dict[str, Tensor]:
        """The read-outs (N,) of predictions of all images, by name with unit."""
        found = out.logits.argmax(1)
        return {
            f"{b.readout.name} [{b.readout.unit or '1'}]": b.readout.measure(
                found, slice(None)
            )
            for b in self.bounds
        }

    def hit(self, out: Outputs) -> Tensor:
        """Whether every read-out of each image (N,) has crossed its bound."""
        return self.margin(out, slice(None)) > 0


def nearer(fool: Tensor, margin: Tensor) -> Tensor:
    """What iterates are compared by before a bound is crossed, lower is better: the read-out, and
    where it stays the same, the loss.
    """
    return NEARER * fool / (1 + fool.abs()) - margin
