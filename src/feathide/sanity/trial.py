"""Trial: all that a probe needs of an audit, the run of an attack on it, and how its guards see
an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from feathide.attacks.grid import Grid
from feathide.attacks.loop import Attack
from feathide.detectors import Detector
from feathide.detectors.base import needs_of
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal

__all__ = [
    "Guard",
    "Trial",
]


LOOKED = 8  # images by which each guard is tried


@dataclass(frozen=True)
class Guard:
    """A fitted detector, its threshold at 10 % false alarms and the spread of its clean
    scores.
    """

    detector: Detector
    threshold: float
    scale: float


@dataclass(frozen=True)
class Trial:
    """Some images that the classifier gets right, the plain ``attack`` of the audit, its
    ``hidden`` ones and the guards.
    """

    classifier: FeatureClassifier
    # as the guards read it, with dropout draws or a reference network where one needs them
    observer: FeatureClassifier
    surrogate: FeatureClassifier  # another network for the same images
    x: Tensor
    goal: Goal
    ids: Sequence[str]
    attack: Attack
    hidden: Mapping[str, Attack] = field(default_factory=dict)
    guards: Mapping[str, Guard] = field(default_factory=dict)
    grid: Grid | None = None
    # where pixels may change; the unbounded attack and the planted point are free of it
    mask: Tensor | None = None
    seed: int = 0


def run_attack(
    trial: Trial,
    attack: Attack,
    classifier: FeatureClassifier | None = None,
    *,
    free: bool = False,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """The images, who is fooled by them (predicted again), and the trace."""
    c = classifier or trial.classifier
    found = attack(
        c,
        trial.x,
        trial.goal,
        ids=trial.ids,
        seed=trial.seed,
        grid=trial.grid,
        mask=None if free else trial.mask,
    )
    with torch.no_grad():
        fooled = trial.classifier(found.adversarial).predicted == trial.goal.target
    return found.adversarial, fooled.cpu().numpy(), found.trace.cpu().numpy()


def watcher(trial: Trial, guard: Guard) -> FeatureClassifier:
    """The classifier as one guard reads it."""
    return trial.observer if needs_of(guard.detector) else trial.classifier


def guard_scores(trial: Trial, guard: Guard, x: Tensor) -> np.ndarray:
    """What a guard would say of ``x`` once it is taken for the target, (k,)."""
    with torch.no_grad():
        out = watcher(trial, guard)(x)
        return (
            guard.detector.score(replace(out, assumed=trial.goal.target))
            .double()
            .cpu()
            .numpy()
        )
