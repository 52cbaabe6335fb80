"""Small worlds for the analyses: linear networks with known answers, for one, two and three
spatial axes, and tiny images on disk.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from feathide.models.classifier import FeatureClassifier

SHAPES = [(1, 8), (3, 7, 6), (1, 5, 4, 3)]


class Linear(nn.Module):
    """v = A x, z = W v + b: every change of the input shows in the features, and no further than
    linearly.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, channels: int = 5) -> None:
        super().__init__()
        self.features = nn.Linear(int(np.prod(shape)), channels, bias=False)
        self.head = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.flatten(1)))


def linear(
    shape: tuple[int, ...],
    outputs: int = 3,
    *,
    head: str | tuple[str, int] = "softmax",
    seed: int = 4,
) -> FeatureClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Linear(shape, outputs).double().eval()
    with torch.no_grad():  # all classes occur
        raw = model(images(200, shape, seed=9))
        model.head.weight *= (2 / raw.std(0))[:, None]
        model.head.bias -= model(images(200, shape, seed=9)).mean(0)
    return FeatureClassifier(model, ["features"], head=head)


def images(n: int, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """Images in [0.3, 0.7], in float64."""
    return 0.3 + 0.4 * torch.rand(
        (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def write_npz(path: Path, *, size: int = 16, axes: int = 2, seed: int = 0) -> Path:
    """Noisy images with a soft bright patch on the left (class 0) or on the right (class 1)."""
    rng, arrays = np.random.default_rng(seed), {}
    grid = np.stack(np.meshgrid(*[np.arange(size)] * axes, indexing="ij"))
    for split, n in (("train", 80), ("val", 24), ("test", 80)):
        y = np.arange(n) % 2
        centre = rng.uniform(0.3 * size, 0.7 * size, (n, axes))
        centre[:, -1] = np.where(y == 0, 0.25, 0.75) * size
        distance = ((grid[None] - centre.reshape(n, axes, *[1] * axes)) ** 2).sum(1)
        x = (
            90
            + 30 * np.exp(-distance / (0.03 * size**2))
            + rng.normal(0, 12, (n, *[size] * axes))
        )
        arrays |= {
            f"{split}_images": x.clip(0, 255).astype(np.uint8),
            f"{split}_labels": y[:, None],
        }
        arrays[f"{split}_patient"] = np.array([f"{split}{k // 2}" for k in range(n)])
    np.savez(path, **arrays)
    return path


PLAN = {
    "network": {
        "arch": "tiny",
        "layers": "conv",
        "train": {"epochs": 10, "batch_size": 16, "lr": 0.003, "augment": False},
    },
    "eps": 16 / 255,
    "attacks": ["fgsm", "pgd"],
    "objectives": ["plain", "hfc"],
    "detectors": ["kd", "maha"],
    "schedule": {"steps": 8},
    "split": {"most": 16},
    "batch_size": 8,
}
