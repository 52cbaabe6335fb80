"""Small worlds that the conformance checks are held against: tiny networks in float64 for one,
two and three spatial axes, and outputs of known mixtures.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from feathide.models.classifier import FeatureClassifier
from feathide.types import Evidence, Goal, Outputs

__all__ = [
    "SHAPES",
    "TwoConv",
    "World",
    "evidence",
    "images",
    "linear",
    "mixed",
    "network",
    "sample",
    "world",
]

SHAPES = [(1, 8), (3, 7, 6), (1, 5, 4, 3)]
CONV: list[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = [
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
]


# --- networks and images ------------------------------------------------------------------------


class TwoConv(nn.Module):
    """Two convolutions, the one in-place ReLU that both share, the mean over space, and a linear
    head.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        conv = CONV[len(shape) - 2]
        self.first = conv(shape[0], 4, 3, padding=1)
        self.second = conv(4, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x))
        h = self.relu(self.second(h))
        return self.head(h.flatten(2).mean(2))


def images(n: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Random images in [0.1, 0.9], each of its own contrast, in float64."""
    random = torch.Generator().manual_seed(seed)
    contrast = torch.rand(
        (n, shape[0], *[1] * (len(shape) - 1)), generator=random, dtype=torch.float64
    )
    return 0.5 + 0.8 * contrast * (
        torch.rand((n, *shape), generator=random, dtype=torch.float64) - 0.5
    )


@cache
def network(shape: tuple[int, ...], outputs: int) -> TwoConv:
    """A network whose outputs vary over random images and have mean zero, so that all classes
    occur.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = TwoConv(shape, outputs).double().eval()
    with torch.no_grad():
        raw = model(images(200, shape, seed=9))
        model.head.weight *= (3 / raw.std(0))[:, None]
        model.head.bias.sub_(model(images(200, shape, seed=9)).mean(0))
    return model


@dataclass(frozen=True)
class World:
    """A classifier and four images with goals."""

    classifier: FeatureClassifier
    x: Tensor
    goal: Goal
    ids: tuple[str, ...] = ("a", "b", "c", "d")


@cache
def world(shape: tuple[int, ...], classes: int = 3) -> World:
    """The two-conv network and images that it takes for its classes; the goal is the next
    class.
    """
    classifier = FeatureClassifier(network(shape, classes), ["first", "relu#0", "relu#1"])
    x = images(4, shape, seed=2)
    source = classifier.extract(x).predicted
    return World(classifier, x, Goal(source, (source + 1) % classes))


@cache
def linear(shape: tuple[int, ...]) -> tuple[World, Tensor]:
    """A linear classifier of two classes and its images, with the difference of its two weight
    vectors (D,).

    The least perturbation of an image that changes its class is |z_1 - z_0| / ||w_1 - w_0||, in
    the dual norm."""
    x = 0.5 + 0.2 * (images(4, shape, seed=6) - 0.5)
    layer = nn.Linear(x[0].numel(), 2).double().requires_grad_(False)
    random = torch.Generator().manual_seed(8)
    layer.weight.copy_(
        3 * torch.randn(layer.weight.shape, generator=random, dtype=torch.float64)
    )
    layer.bias.copy_(-0.5 * layer.weight.sum(1))
    classifier = FeatureClassifier(nn.Sequential(nn.Flatten(), layer).eval(), ())
    source = classifier.extract(x).predicted
    return World(classifier, x, Goal(source, 1 - source)), layer.weight[1] - layer.weight[0]


# --- outputs as a detector sees them ------------------------------------------------------------


def sample(n: int, *, seed: int, strange: bool = False) -> Outputs:
    """Two classes, two layers; a strange sample is far off in features and pixels, unsure in
    logits, shaky under dropout and squeezing.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    label = torch.arange(n) % 2
    features = {}
    for layer, channels in (("early", 4), ("late", 6)):
        features[layer] = 0.5 * normal(n, channels)
        features[layer][:, 0] += 6.0 * label - 3.0
        features[layer][:, 1] += 9.0 * strange
    logits = 0.1 * normal(n, 2)
    logits[torch.arange(n), label] += 1.0 if strange else 8.0
    stochastic = logits[:, None] + (2.0 if strange else 0.5) * normal(n, 20, 2)
    rough = 0.5 * normal(n, 5) + 9.0 * strange
    squeezed = (-logits if strange else logits)[:, None] + 0.1 * normal(n, 2, 2)
    return with_reference_network(
        Outputs(logits, features, stochastic, statistics=rough, squeezed=squeezed)
    )


def with_reference_network(out: Outputs) -> Outputs:
    """``out`` and what a second network would show: somewhat less sure logits, and the early
    features.
    """
    return replace(
        out,
        reference_network=Outputs(
            0.9 * out.logits, {"of the reference network": out.features["early"]}
        ),
    )


@cache
def evidence() -> Evidence:
    """200 training rows; 60 images clean, noisy, and strange as an attack would make them."""
    clean = sample(60, seed=1)
    random = torch.Generator().manual_seed(2)
    moved = {
        k: v + 0.05 * torch.randn(v.shape, generator=random).double()
        for k, v in clean.features.items()
    }
    labels = torch.arange(200) % 2
    noisy = replace(clean, features=moved)
    return Evidence(
        sample(200, seed=0), labels, clean, noisy, sample(60, seed=3, strange=True)
    )


@cache
def mixed() -> Outputs:
    """30 clean rows, then 30 strange ones."""
    return Outputs.cat([sample(30, seed=4), sample(30, seed=5, strange=True)])
