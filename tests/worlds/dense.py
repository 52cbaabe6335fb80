"""Small dense networks whose behaviour is known, and images for them."""

from functools import cache

import torch
from torch import Tensor, nn

from feathide.models.classifier import FeatureClassifier
from feathide.models.regions import Around, Structures

SHAPES = [(24,), (14, 12), (10, 9, 8)]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
IDS = tuple("abcdef")


class Threshold(nn.Module):
    """Logits (0, s (x - 0.5)) of every voxel: one changes its label once its value crosses 0.5."""

    def __init__(self, slope: float = 8.0) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        z = self.slope * (x - 0.5)
        return torch.cat([torch.zeros_like(z), z], 1)


class Peaks(nn.Module):
    """Heat maps (N, 2, *S): the two channels of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Centres(nn.Module):
    """Coordinates (N, 2, D): the centre of mass of what is light in each channel."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        grid = torch.stack(torch.meshgrid(*[torch.arange(s) for s in size], indexing="ij"))
        grid = grid.flatten(1).to(x)  # (D, V)
        weight = x.flatten(2) ** 4
        return weight @ grid.T / weight.sum(2, keepdim=True)


class Small(nn.Module):
    """Two convolutions with a ReLU that works in place, and a dropout."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.first = conv(1, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = conv(5, 6, 3, padding=1, stride=2)
        self.drop = nn.Dropout(0.3)
        self.up = nn.Upsample(scale_factor=2)
        self.last = conv(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(self.drop(self.second(self.relu(self.first(x))).tanh()))
        for axis, size in enumerate(x.shape[2:], start=2):
            h = h.narrow(axis, 0, size)
        return self.last(h)


def blobs(shape: tuple[int, ...], n: int = 4) -> Tensor:
    """Images (n, 1, *S) of a light block in front of a dark ground, in float64."""
    random = torch.Generator().manual_seed(3)
    x = 0.2 + 0.1 * torch.rand((n, 1, *shape), generator=random, dtype=torch.float64)
    block = tuple(slice(s // 4, s // 4 + s // 3 + 1) for s in shape)
    x[(slice(None), slice(None), *block)] += 0.45
    return x


def pairs() -> Tensor:
    """Images of two channels, each with one brightest pixel."""
    x = blobs((14, 12))
    x = torch.cat([x, x.flip(2, 3)], 1)
    x[:, 0, 4, 4], x[:, 1, 8, 7] = 0.8, 0.8
    return x


@cache
def small(shape: tuple[int, ...], **fields: int) -> FeatureClassifier:
    """A network of three labels that all occur, with features over regions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = Small(len(shape)).double().eval()
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        # each label wins about as often
        z = net(blobs(shape))
        net.last.bias -= z.movedim(1, -1).flatten(0, -2).median(0).values
        net.last.weight *= 4
        net.last.bias *= 4
    regions = Structures({"a": 1, "b": 2}, rim=1)
    return FeatureClassifier(net, ["first", "second"], regions=regions, **fields)


def threshold() -> FeatureClassifier:
    return FeatureClassifier(Threshold().eval(), [])


def peaks() -> FeatureClassifier:
    return FeatureClassifier(
        nn.Sequential(Peaks()).eval(),
        ["0"],
        head="landmarks",
        regions=Around(["l", "d"], 2),
    )


def centres() -> FeatureClassifier:
    return FeatureClassifier(Centres().eval(), [], head="landmarks")
