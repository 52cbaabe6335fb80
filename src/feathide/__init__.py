"""feathide: does the detector that guards a medical-image classifier hold against an attacker who
hides in its feature space?

    from feathide import HFC, FeatureClassifier, Goal, Linf, MixtureBank, pgd

    classifier = FeatureClassifier(network.eval(), "blocks", mean=[0.5], std=[0.25])
    bank = MixtureBank.fit(classifier.extract(train_images), train_labels)
    attack = pgd(Linf(4 / 255), steps=100, decay="cosine", hide=0.3 * HFC(bank))
    result = attack(classifier, images, Goal(labels, targets), ids=ids)

Names are loaded when they are first used, so that ``import feathide`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

HOMES = {
    "feathide.attacks.grid": ("Grid",),
    "feathide.attacks.loop": ("Attack",),
    "feathide.attacks.presets": (
        "bim",
        "fgsm",
        "pgd",
    ),
    "feathide.attacks.result": ("AttackResult",),
    "feathide.attacks.threats": (
        "L2",
        "Linf",
    ),
    "feathide.auditing": ("audit",),
    "feathide.data": (
        "Cases",
        "load_cases",
    ),
    "feathide.detectors": (
        "DETECTORS",
        "Detector",
    ),
    "feathide.errors": ("InputError",),
    "feathide.losses": (
        "AwayFrom",
        "CrossEntropy",
        "Drift",
        "Evade",
        "Guide",
        "HFC",
        "Margin",
        "Objective",
    ),
    "feathide.mixtures": (
        "Mixture",
        "MixtureBank",
    ),
    "feathide.models.classifier": ("FeatureClassifier",),
    "feathide.plans.plan": (
        "Plan",
        "load_plan",
    ),
    "feathide.types": (
        "Evidence",
        "Goal",
        "Outputs",
    ),
}
HOME = {name: module for module, names in HOMES.items() for name in names}

__all__ = [
    "DETECTORS",
    "HFC",
    "L2",
    "Attack",
    "AttackResult",
    "AwayFrom",
    "Cases",
    "CrossEntropy",
    "Detector",
    "Drift",
    "Evade",
    "Evidence",
    "FeatureClassifier",
    "Goal",
    "Grid",
    "Guide",
    "InputError",
    "Linf",
    "Margin",
    "Mixture",
    "MixtureBank",
    "Objective",
    "Outputs",
    "Plan",
    "audit",
    "bim",
    "fgsm",
    "load_cases",
    "load_plan",
    "pgd",
]

if TYPE_CHECKING:
    from feathide.attacks.grid import Grid
    from feathide.attacks.loop import Attack
    from feathide.attacks.presets import bim, fgsm, pgd
    from feathide.attacks.result import AttackResult
    from feathide.attacks.threats import L2, Linf
    from feathide.auditing import audit
    from feathide.data import Cases, load_cases
    from feathide.detectors import DETECTORS, Detector
    from feathide.errors import InputError
    from feathide.losses import (
        HFC,
        AwayFrom,
        CrossEntropy,
        Drift,
        Evade,
        Guide,
        Margin,
        Objective,
    )
    from feathide.mixtures import Mixture, MixtureBank
    from feathide.models.classifier import FeatureClassifier
    from feathide.plans.plan import Plan, load_plan
    from feathide.types import Evidence, Goal, Outputs


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'feathide' has no attribute {name!r}")
    return getattr(import_module(HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
