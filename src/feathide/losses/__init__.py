"""Objectives: what an attacker wants, as a loss (N,) of the Outputs, to be minimised.

An objective is a recipe; ``bind`` fixes it to a batch and returns a ``BoundLoss``. Objectives
compose: ``CrossEntropy() + 0.3 * HFC(bank)``. Losses are per sample and never averaged, so that
an image's gradient does not depend on its neighbours."""

from feathide.losses.base import BoundLoss, Loss, Objective, Weighted
from feathide.losses.drift import Drift
from feathide.losses.fooling import DLR, AwayFrom, CrossEntropy, Margin
from feathide.losses.function import Function, ObjectiveLike, as_objective
from feathide.losses.hiding import HFC, Evade, Guide, Scorer

__all__ = [
    "DLR",
    "HFC",
    "AwayFrom",
    "BoundLoss",
    "CrossEntropy",
    "Drift",
    "Evade",
    "Function",
    "Guide",
    "Loss",
    "Margin",
    "Objective",
    "ObjectiveLike",
    "Scorer",
    "Weighted",
    "as_objective",
]
