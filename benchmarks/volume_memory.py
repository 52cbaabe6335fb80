"""Peak memory of an attack on one volume: PGD with HFC on a 3D ResNet-18, batch 1.

python benchmarks/volume_memory.py [--size 128] [--arch resnet18_3d] [--steps 2]
"""

import argparse
import resource
import time

import torch

from feathide.models.classifier import FeatureClassifier
from feathide.attacks.grid import Grid
from feathide.attacks.threats import Linf
from feathide.mixtures import MixtureBank
from feathide.models.zoo import build
from feathide.losses import HFC
from feathide.attacks.presets import pgd
from feathide.types import Goal, Outputs


def gigabytes() -> float:
    """The most memory that this process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def bank_of(out: Outputs) -> MixtureBank:
    """Mixtures of random features around those of the volume: their cost is that of real ones."""
    g = torch.Generator().manual_seed(0)
    features = {
        n: f + 0.1 * torch.randn(64, f.shape[1], generator=g)
        for n, f in out.features.items()
    }
    return MixtureBank.fit(Outputs(torch.zeros(64, 2), features), torch.arange(64) % 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--arch", default="resnet18_3d")
    parser.add_argument("--steps", type=int, default=2)
    a = parser.parse_args()
    before = gigabytes()
    model = build(a.arch, channels=1, outputs=2, size=(a.size,) * 3).eval()
    classifier = FeatureClassifier(model, "blocks")
    levels = torch.randint(
        0, 256, (1, 1, *[a.size] * 3), generator=torch.Generator().manual_seed(0)
    )
    x = levels.float() / 255
    out = classifier.extract(x)
    source = out.predicted
    attack = pgd(Linf(4 / 255), hide=HFC(bank_of(out)), steps=a.steps)
    fitted = gigabytes()
    started = time.perf_counter()
    attack(classifier, x, Goal(source, 1 - source), ids=["volume"], grid=Grid(1 / 255))
    seconds = (time.perf_counter() - started) / (a.steps + 1)
    print(
        f"{a.arch}, {a.size}^3, batch 1: {gigabytes():.2f} GiB at the peak ({before:.2f} after the imports, {fitted:.2f} before the attack), "
        f"{seconds:.1f} s a step"
    )


if __name__ == "__main__":
    main()
