"""Regions: parts of an image, by what a dense network predicts there, over which features are
pooled beside the whole image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.errors import expected

__all__ = ["AT", "Around", "Regions", "Structures", "dilated", "positions"]

AT = "@"  # between the names of a layer and of a region

MAX_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.max_pool1d,
    2: F.max_pool2d,
    3: F.max_pool3d,
}
MEAN_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class Regions(ABC):
    """How an image is divided, by what the network predicts of it."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """What the R regions are called."""

    @abstractmethod
    def masks(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Where they are.

        Args:
            logits: What the network gives: (N, K, *S), (N, P, *S) or (N, P, D).
            size: The size S of the images.

        Returns:
            Masks (N, R, *S) of 0 and 1; a region that is empty in an image has none.
        """


@dataclass(frozen=True)
class Structures(Regions):
    """Every predicted structure, its rim, and the rest of the image.

    Args:
        labels: The label of each structure, by name: ``{"head": 1, "body": 2}``.
        rim: How many voxels wide the rim around a structure is, at least 1.
    """

    labels: Mapping[str, int]
    rim: int = 2

    def __post_init__(self) -> None:
        if not self.labels or self.rim < 1:
            raise expected(
                "regions need one structure or more, and a rim of one voxel or more",
                got=f"{len(self.labels)} structures, a rim of {self.rim}",
                do="give Structures({'tumour': 1})",
            )

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.labels, *(f"{name}-rim" for name in self.labels), "rest")

    def masks(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        if logits.ndim != len(size) + 2:
            raise expected(
                "regions need a network that labels every voxel, logits (N, K, *S)",
                got=f"outputs of shape {tuple(logits.shape)}",
                do="leave regions out",
            )
        beyond = max(self.labels.values())
        if beyond >= logits.shape[1]:
            raise expected(
                f"labels of structures must be 0 to {logits.shape[1] - 1}, as the network's",
                got=beyond,
                do="correct the labels of the regions",
            )
        found = logits.detach().argmax(1)  # (N, *S)
        own = [found == label for label in self.labels.values()]
        rims = [dilated(mask, self.rim) & ~mask for mask in own]
        rest = ~torch.stack([*own, *rims]).any(0)
        return torch.stack([*own, *rims, rest], 1).to(logits)


@dataclass(frozen=True)
class Around(Regions):
    """A ball around every predicted landmark, and the rest of the image.

    Args:
        landmarks: What the P landmarks are called, in the network's order.
        radius: The radius of a ball in voxels.
    """

    landmarks: Sequence[str]
    radius: float = 4.0

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.landmarks, "rest")

    def masks(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        centres = positions(logits.detach(), size)  # (N, P, D)
        if centres.shape[1] != len(self.landmarks):
            raise expected(
                f"one name for each of {centres.shape[1]} landmarks",
                got=len(self.landmarks),
                do="name the regions as the network's landmarks",
            )
        axes = [torch.arange(s, device=logits.device) for s in size]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (*S, D)
        wide = centres.reshape(*centres.shape[:2], *[1] * len(size), len(size))
        near = (grid - wide).square().sum(-1) <= self.radius**2  # (N, P, *S)
        return torch.cat([near, ~near.any(1, keepdim=True)], 1).to(logits)


def positions(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Where the landmarks are, (N, P, D) in voxels of images of this ``size``: the coordinates
    (N, P, D) themselves, or the largest value of heat maps (N, P, *S), of whatever size.
    """
    d = len(size)
    if logits.ndim == 3 and logits.shape[2] == d and d > 1:
        return logits
    if logits.ndim != d + 2:
        raise expected(
            f"landmarks of images with {d} axes must be heat maps (N, P, *S) or coordinates "
            f"(N, P, {d})",
            got=f"shape {tuple(logits.shape)}",
            do="wrap the network to return one of them",
        )
    maps = logits.shape[2:]
    flat = logits.flatten(2).argmax(2)  # (N, P)
    found = torch.stack(torch.unravel_index(flat, maps), 2).to(logits)
    scale = logits.new_tensor([s / m for s, m in zip(size, maps, strict=True)])
    return (found + 0.5) * scale - 0.5


def dilated(mask: Tensor, voxels: int) -> Tensor:
    """Masks (N, *S), bool, each grown by so many voxels along every axis."""
    pool = MAX_POOLS[mask.ndim - 1]
    grown = pool(mask[:, None].float(), 2 * voxels + 1, stride=1, padding=voxels)
    return grown[:, 0] > 0


def pooled_over(h: Tensor, masks: Tensor) -> Tensor:
    """The mean of a layer's output over regions.

    Args:
        h: The output (N, C, *T) of a layer.
        masks: The regions (N, R, *S) of the images, each voxel of the layer counted by the share of
            it that lies in the region.

    Returns:
        The features (N, R, C); NaN where a region is empty.
    """
    share = MEAN_POOLS[h.ndim - 2](masks, h.shape[2:]).flatten(2)  # (N, R, V)
    total = share.sum(2, keepdim=True)
    values = h.flatten(2).to(share.dtype)
    means = share @ values.transpose(1, 2) / total.clamp_min(1e-12)
    return torch.where(total > 0, means, torch.nan)
