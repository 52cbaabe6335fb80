"""The small worlds of ``feathide.checks`` with all that an attacker may know, and short attacks
on them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from feathide.attacks import presets as recipes
from feathide.attacks.ensemble import Ensemble
from feathide.attacks.loop import Attack
from feathide.attacks.threats import L2, Linf, ThreatModel
from feathide.attacks.transforms import ResizeAndPad
from feathide.attacks.updates import Blend, Orthogonal, Scheduled, Selective, Together
from feathide.catalog import ATTACKS
from feathide.checks.worlds import images, network
from feathide.detectors import Detector, KernelDensity, LocalDimension, Mahalanobis
from feathide.losses import (
    DLR,
    HFC,
    AwayFrom,
    CrossEntropy,
    Drift,
    Evade,
    Guide,
    Margin,
    Objective,
)
from feathide.mixtures import MixtureBank
from feathide.models.classifier import FeatureClassifier
from feathide.types import Evidence, Goal, Outputs

BLENDS: dict[str, Blend] = {
    "together": Together(),
    "selective": Selective(),
    "orthogonal": Orthogonal(),
    "scheduled": Scheduled(),
}
THREATS: dict[str, Callable[[Tensor | float], ThreatModel]] = {"linf": Linf, "l2": L2}


@dataclass(frozen=True)
class World:
    """A classifier, four images with goals, and what an attacker may know."""

    classifier: FeatureClassifier
    x: Tensor
    goal: Goal
    reference: Outputs
    labels: Tensor
    bank: MixtureBank
    detectors: tuple[Detector, ...]

    ids: tuple[str, ...] = ("a", "b", "c", "d")

    @property
    def layer(self) -> str:
        return next(iter(self.reference.features))


@cache
def world(
    shape: tuple[int, ...], outputs: int = 3, head: str | tuple[str, int] = "softmax"
) -> World:
    classifier = FeatureClassifier(
        network(shape, outputs), ["first", "relu#0", "relu#1"], head=head
    )
    reference = classifier.extract(images(150, shape, seed=1))
    labels = reference.predicted
    x = images(4, shape, seed=2)
    source = classifier.extract(x).predicted
    classes = reference.logits.shape[1]
    assert len(labels.unique()) == classes
    clean = images(40, shape, seed=4)
    goal = Goal(
        classifier.extract(clean).predicted,
        (classifier.extract(clean).predicted + 1) % classes,
    )
    wild = recipes.fgsm(Linf(0.3))(
        classifier, clean, goal, ids=[str(i) for i in range(40)]
    ).adversarial
    noisy = clean + 0.05 * (images(40, shape, seed=5) - 0.5)
    evidence = Evidence(
        reference, labels, *[classifier.extract(v) for v in (clean, noisy, wild)]
    )
    return World(
        classifier,
        x,
        Goal(source, (source + 1) % classes),
        reference,
        labels,
        MixtureBank.fit(reference, labels, components=2, covariance="full"),
        tuple(d.fit(evidence) for d in (KernelDensity(), LocalDimension(), Mahalanobis())),
    )


def objectives(w: World) -> dict[str, Objective]:
    """Every objective that can fool, hide or drift, some of them in combination."""
    kde, lid, _ = w.detectors
    levels = tuple(float(d.score(w.reference).quantile(0.9)) for d in w.detectors)
    spreads = tuple(float(d.score(w.reference).std()) for d in w.detectors)
    return {
        **fooling(w),
        **{
            name: CrossEntropy() + 0.3 * hide
            for name, hide in {
                "hfc": HFC(w.bank),
                "hfc paper": HFC(w.bank, floor="none"),
                "hfc soft": HFC(
                    w.bank, layers=("relu#0", "relu#1"), weights=(1.0, 0.5), soft=True
                ),
                "random": Guide(w.reference, w.labels),
                "closest": Guide(w.reference, w.labels, pick="closest"),
                "kde": Evade((kde,)),
                "lid": Evade((lid,)),
                "evade": Evade(w.detectors, below=levels, scales=spreads),
            }.items()
        },
        **{f"drift {way}": Drift(w.layer, way) for way in ("down", "up", "away")},
    }  # type: ignore[arg-type]


def fooling(w: World) -> dict[str, Objective]:
    """The objectives that only want the decision."""
    return {
        "cross-entropy": CrossEntropy(),
        "cross-entropy kappa": CrossEntropy(kappa=0.5),
        "margin": Margin(),
        "margin kappa": Margin(kappa=0.5),
        "dlr": DLR(),
        "dlr any": DLR(rank=1),
        "away": AwayFrom(),
        "away margin": AwayFrom("margin"),
    }


SHORT: Mapping[str, Mapping[str, Any]] = {
    "square": {"queries": 12},
    "standard": {"queries": 6},
}
NAMES = list(ATTACKS)


def fits(name: str, shape: tuple[int, ...]) -> bool:
    """DIM resizes, for which there must be two axes."""
    return name != "dim" or len(shape) > 2


def short(name: str, threat: ThreatModel, **fields: Any) -> Attack | Ensemble:
    """An attack of the catalogue with few steps; DIM shrinks more, so that a few pixels show
    it.
    """
    attack = ATTACKS[name](threat, **{"steps": 4, **SHORT.get(name, {}), **fields})
    return (
        replace(attack, view=ResizeAndPad(0.7, least=0.5))
        if isinstance(attack, Attack) and attack.view
        else attack
    )


def run(
    attack: Attack | Ensemble, w: World, rows: slice | Tensor = slice(None), **fields: Any
) -> Any:
    """``attack`` on some images of the world."""
    numbers = torch.arange(len(w.x))[rows].tolist()
    return attack(
        w.classifier, w.x[rows], w.goal[rows], ids=[w.ids[i] for i in numbers], **fields
    )
