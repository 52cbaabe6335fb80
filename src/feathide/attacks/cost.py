"""What a step of an attack costs on this machine, as ratios: a small residual network with random
weights on synthetic images, in less than a minute.

A step is what lies between two iterates: the difference of a long and a short run over the
difference of their steps. All kinds take turns; a ratio is the median, over the rounds, of the
process seconds of a kind over those of the bare forward and backward pass in the same round."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from feathide.attacks.loop import Attack
from feathide.attacks.presets import apgd_ce, pgd
from feathide.attacks.threats import L2, Linf
from feathide.data.phantoms import phantoms
from feathide.detectors import DETECTORS
from feathide.losses import HFC, Evade, Objective
from feathide.mixtures import MixtureBank
from feathide.models.classifier import FeatureClassifier
from feathide.models.zoo import build
from feathide.types import Evidence, Goal

__all__ = ["Ratio", "bench"]

SHORT, LONG = 2, 5  # steps of the two schedules
BATCH = 16


@dataclass(frozen=True)
class Ratio:
    """The cost of ``what``, as a multiple of one bare forward and backward pass: the median, the
    smallest and the largest of the rounds.
    """

    what: str
    value: float
    low: float
    high: float


def bench(*, rounds: int = 3) -> list[Ratio]:
    """The ratios of this machine, with as many threads as torch has been given."""
    kinds = _kinds()
    for work in kinds.values():
        work()
    seen: dict[str, list[float]] = {what: [] for what in kinds}
    for _ in range(rounds):
        for what, work in kinds.items():
            seen[what].append(work())
    bare = seen.pop("bare")
    found = {
        what: [s / b for s, b in zip(spent, bare, strict=True)]
        for what, spent in seen.items()
    }
    return [Ratio(what, statistics.median(r), min(r), max(r)) for what, r in found.items()]


def _kinds() -> dict[str, Callable[[], float]]:
    """The seconds of one step of each kind; ``bare`` is one forward and backward pass without any
    of our code.
    """
    cases = phantoms(counts={"train": 64, "val": 4, "test": BATCH})
    model = build("resnet18", channels=1, outputs=2).eval()
    train, test = (
        torch.from_numpy(cases.images(cases.where(s))) for s in ("train", "test")
    )
    labels = torch.from_numpy(cases.labels[cases.where("train")])
    classifier = FeatureClassifier(model, "conv")
    out = classifier.extract(train)
    goal = Goal(torch.zeros(BATCH, dtype=torch.long), torch.ones(BATCH, dtype=torch.long))
    random = torch.rand(train.shape, generator=torch.Generator().manual_seed(0))
    noisy, moved = (
        classifier.extract(torch.lerp(train, random, share)) for share in (0.02, 0.5)
    )
    maha = DETECTORS["maha"]().fit(Evidence(out, labels, out, noisy, moved))
    hidden: dict[str, Objective] = {
        f"{m} components": HFC(MixtureBank.fit(out, labels, components=m)) for m in (1, 4)
    }

    def bare() -> float:
        started = time.process_time()
        x = test.clone().requires_grad_()
        torch.autograd.grad(cross_entropy(model(x), goal.target, reduction="sum"), x)
        return time.process_time() - started

    def step(make: Callable[[int], Attack]) -> Callable[[], float]:
        short, long = make(SHORT), make(LONG)

        def measure() -> float:
            return (
                _spent(long, classifier, test, goal) - _spent(short, classifier, test, goal)
            ) / (LONG - SHORT)

        return measure

    linf = Linf(4 / 255)

    def hiding(hide: Objective, steps: int) -> Attack:
        return pgd(linf, steps=steps, hide=hide)

    return {
        "bare": bare,
        "a plain PGD step": step(lambda k: pgd(linf, steps=k)),
        "a plain PGD step in L2": step(lambda k: pgd(L2(1.0), steps=k)),
        "a plain APGD step": step(lambda k: apgd_ce(linf, steps=k)),
        **{
            f"an HFC step, {name}": step(partial(hiding, hide))
            for name, hide in hidden.items()
        },
        "a step against MAHA": step(lambda k: pgd(linf, steps=k, hide=Evade((maha,)))),
    }


def _spent(attack: Attack, classifier: FeatureClassifier, x: Tensor, goal: Goal) -> float:
    started = time.process_time()
    attack(classifier, x, goal, ids=[str(i) for i in range(len(x))])
    return time.process_time() - started
