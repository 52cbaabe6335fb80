"""A small world for the integrations: a two-conv network for any number of axes, images that it
gets right, mixtures of its features.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from feathide.attacks.loop import Attack
from feathide.attacks.threats import Linf
from feathide.data.noise import Noise
from feathide.mixtures import MixtureBank
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal, Outputs

SHAPES = [(3, 7, 6), (1, 5, 4, 3)]
IDS = ["2D", "3D"]


@dataclass(frozen=True, eq=False)
class Small:
    classifier: FeatureClassifier
    bank: MixtureBank
    x: Tensor
    goal: Goal

    def __len__(self) -> int:
        return len(self.x)

    @property
    def ids(self) -> list[str]:
        return [str(i) for i in range(len(self.x))]


@cache
def small(
    shape: tuple[int, ...],
    *,
    classes: int = 3,
    dtype: torch.dtype = torch.float64,
    box: tuple[float, float] = (0, 1),
) -> Small:
    """``classes`` 1: one sigmoid output. The labels are what the network says."""
    conv = {3: nn.Conv2d, 4: nn.Conv3d}[len(shape)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            conv(shape[0], 6, 3, padding=1),
            nn.ReLU(),
            conv(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(2),
        ]
        network = nn.Sequential(*layers, Mean(), nn.Linear(8, classes)).to(dtype)
    lo, hi = box
    images = lo + (hi - lo) * pictures(120, shape).to(dtype)
    classifier = FeatureClassifier(
        network.eval(),
        "conv",
        box=box,
        mean=[lo],
        std=[hi - lo],
        head="softmax" if classes > 1 else "sigmoid",
    )
    with torch.no_grad():
        raw = network((images - lo) / (hi - lo))
        network[-1].weight *= (3 / raw.std(0))[:, None]
        network[-1].bias -= network((images - lo) / (hi - lo)).mean(0)
    out = classifier.extract(images)
    bank = MixtureBank.fit(out, out.predicted)
    x = torch.cat([images[out.predicted == c][:3] for c in range(out.logits.shape[1])])
    source = classifier.extract(x).predicted
    return Small(classifier, bank, x, Goal(source, (source + 1) % out.logits.shape[1]))


class Mean(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean(2)


def pictures(n: int, shape: tuple[int, ...]) -> Tensor:
    """Random images in [0.1, 0.9], each of its own contrast."""
    random = torch.Generator().manual_seed(1)
    contrast = torch.rand(
        (n, shape[0], *[1] * (len(shape) - 1)), generator=random, dtype=torch.float64
    )
    return 0.5 + 0.8 * contrast * (
        torch.rand((n, *shape), generator=random, dtype=torch.float64) - 0.5
    )


@dataclass(frozen=True)
class Watched:
    """A classifier that remembers what it was shown."""

    classifier: FeatureClassifier
    seen: list[Tensor]

    @property
    def box(self) -> tuple[float, float]:
        return self.classifier.box

    def __call__(self, x: Tensor) -> Outputs:
        self.seen.append(x.detach().clone())
        return self.classifier(x)


def iterates(attack: Attack, world: Small) -> list[Tensor]:
    """The images of every step of our own loop, the start and the last one included."""
    watched = Watched(world.classifier, [])
    attack(watched, world.x, world.goal, ids=world.ids)
    return watched.seen


@dataclass(frozen=True)
class StartingAt(Linf):
    """The Linf ball with a start that is given."""

    delta: Tensor

    def start(self, x: Tensor, noise: Noise, *, draw: object) -> Tensor:
        return self.delta
