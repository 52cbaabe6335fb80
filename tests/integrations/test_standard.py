"""``standard`` finds what AutoAttack finds: ten classes of natural images, a small network,
within half a point of success.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feathide.attacks import presets as recipes
from feathide.attacks.threats import Linf
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal

torchattacks = pytest.importorskip(
    "torchattacks",
    reason="needs torchattacks: pip install feathide[torchattacks,foolbox,art]",
    exc_type=ImportError,
)


def network(x: Tensor, y: Tensor) -> nn.Module:
    """Three convolutions, trained for twenty epochs (half of the test images right)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()
                )
                for i, o in ((3, 32), (32, 64), (64, 96))
            ],
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(96, 10),
        )
        optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
        for _ in range(20):
            for rows in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimiser.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_standard_matches_autoattack_within_half_a_point(shared: Path) -> None:
    with np.load(shared / "cifar10_lossless_6k.npz", allow_pickle=False) as file:
        split = {
            part: (
                torch.from_numpy(file[f"{part}_images"]).permute(0, 3, 1, 2).contiguous()
                / 255,
                torch.from_numpy(file[f"{part}_labels"]).long().flatten(),
            )
            for part in ("train", "test")
        }
    model = network(*split["train"])
    classifier = FeatureClassifier(model, ())
    x, y = split["test"]
    right = classifier.extract(x).predicted == y
    x, y = x[right][:400], y[right][:400]
    assert len(x) == 400
    eps, state = 0.5 / 255, torch.random.get_rng_state()
    theirs = torchattacks.AutoAttack(
        model, norm="Linf", eps=eps, version="standard", n_classes=10, seed=0
    )(x, y)
    torch.random.set_rng_state(state)
    ours = recipes.standard(Linf(eps), classes=10, queries=1000)(
        classifier, x, Goal(y, (y + 1) % 10), ids=[str(i) for i in range(400)]
    )
    found = [classifier.extract(v).predicted != y for v in (theirs, ours.adversarial)]
    assert bool(((ours.adversarial - x).flatten(1).abs().amax(1) <= eps + 1e-6).all())
    shares = [float(f.double().mean()) for f in found]
    assert 0.2 < shares[0] < 0.8  # neither too easy nor too hard to tell
    assert shares[1] >= shares[0] - 0.005, shares
    assert abs(shares[1] - shares[0]) <= 0.005, shares
