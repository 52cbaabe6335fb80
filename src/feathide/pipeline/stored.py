"""What the tasks of a run have stored, read back: attacked images, scores, thresholds."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from feathide.catalog import DETECTORS
from feathide.errors import InputError
from feathide.metrics.metric import OWN
from feathide.metrics.registry import RATES
from feathide.metrics.statistics import UncertainThreshold, threshold, uncertain_threshold
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.context import Context
from feathide.plans.plan import Cell

__all__ = [
    "Found",
    "found_in",
    "negatives_in",
    "scores_in",
    "seconds_of",
    "slips_in",
    "thresholds_of",
    "uncertain_thresholds_of",
]


@dataclass(frozen=True)
class Found:
    """What one cell's attack found on the test split. Row i is one attacked image."""

    cell: Cell
    rows: np.ndarray
    id: np.ndarray
    label: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    linf: np.ndarray
    first: np.ndarray
    gradients: np.ndarray
    forwards: np.ndarray
    seconds: float

    @property
    def fooled(self) -> np.ndarray:
        """Misclassified as the target, by the image as stored and read back."""
        return self.prediction == self.target

    def at(self, order: np.ndarray) -> "Found":
        """The same of some images, in their order."""
        return replace(self, **{name: getattr(self, name)[order] for name in ARRAYS})


ARRAYS = tuple(f.name for f in fields(Found) if f.name not in ("cell", "seconds"))


def found_in(context: Context, cell: Cell, part: str = "test") -> Found:
    """The stored results of a cell, all batches."""
    keys = context.steps.attack(cell, part).keys
    loaded = [context.store.load(key) for key in keys]
    arrays = {name: np.concatenate([a[name] for a in loaded]) for name in ARRAYS}
    return Found(cell, **arrays, seconds=sum(seconds_of(context, key) for key in keys))


def seconds_of(context: Context, key: str) -> float:
    """What a task took; NaN where the note of it is lost, for which nobody does it again."""
    try:
        return float(context.store.load_json(f"seconds/{key}"))
    except InputError:
        return math.nan


def scores_in(
    context: Context,
    detector: str,
    eps: float,
    condition: str,
    part: str,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Stored scores of a condition, of all its rows or of ``rows`` in their order."""
    arrays = context.store.load(context.steps.score(detector, eps, condition, part).key)
    if rows is None:
        return arrays["score"]
    place = {int(r): i for i, r in enumerate(arrays["rows"])}
    return arrays["score"][[place[int(r)] for r in rows]]


def thresholds_of(context: Context, detector: str, eps: float) -> dict[str, float]:
    """The thresholds at each rate of false alarms, from the calibration split, clean and noisy,
    misclassified cases included.
    """
    return {
        name: threshold(negatives_in(context, detector, eps), rate)
        for name, rate in RATES.items()
    }


def uncertain_thresholds_of(
    context: Context, detector: str, eps: float, *, seed: int | None = None
) -> dict[str, UncertainThreshold]:
    """``thresholds_of`` with those that other calibration cases might have given: the scores of a
    patient, clean and noisy, are drawn together. A detector that is shipped with a threshold
    has it as "own", which no calibration case decides.
    """
    scores, patients = (
        negatives_in(context, detector, eps),
        np.tile(context.cases.patients[context.data.rows("calibration")], 2),
    )
    seed = context.plan.seed if seed is None else seed
    found = {
        name: uncertain_threshold(scores, rate, groups=patients, seed=seed)
        for name, rate in RATES.items()
    }
    own = DETECTORS[detector]().own_threshold
    return found if own is None else found | {OWN: UncertainThreshold(own, np.array([own]))}


def negatives_in(context: Context, detector: str, eps: float) -> np.ndarray:
    """The stored scores of the calibration split, clean and noisy."""
    return np.concatenate(
        [
            scores_in(context, detector, eps, c, "calibration")
            for c in ("clean", noisy_at(eps))
        ]
    )


def slips_in(
    context: Context, detector: str, found: Found, level: str = "fpr10"
) -> np.ndarray:
    """Which attacked images fool the classifier and pass the detector, (n,)."""
    eps = found.cell.eps
    score = scores_in(
        context, detector, eps, context.steps.condition(found.cell), "test", found.rows
    )
    return found.fooled & (score <= thresholds_of(context, detector, eps)[level])
