"""Objectives: what an attacker wants, as a loss (N,) of the Outputs that he minimises.

An objective is a recipe; ``bind`` fixes it to a batch and returns a ``BoundLoss``. Objectives compose: ``CrossEntropy() + 0.3 * HFC(bank)``.
Losses are per sample and never averaged, so that an image's gradient does not depend on its neighbours.
"""

from feathide.objectives.base import BoundLoss, Loss, Objective, Weighted
from feathide.objectives.drift import Drift
from feathide.objectives.hiding import HFC, Evade, Guide, Scorer
from feathide.objectives.wishes import DLR, AwayFrom, CrossEntropy, Margin

__all__ = [
    "DLR",
    "HFC",
    "AwayFrom",
    "BoundLoss",
    "CrossEntropy",
    "Drift",
    "Evade",
    "Guide",
    "Loss",
    "Margin",
    "Objective",
    "Scorer",
    "Weighted",
]
