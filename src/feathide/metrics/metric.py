"""Metric: the name, the words and the computation of one metric of a results table."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from feathide.metrics.intervals import Interval

__all__ = [
    "OWN",
    "RATES",
    "SHIFTS",
    "Metric",
    "Scope",
    "at_rate",
    "per_cent",
]

Scope = Literal["run", "detector", "attack", "attack x detector"]
# false alarms at which thresholds are set
RATES = {"fpr10": 0.10, "fpr5": 0.05, "fpr1": 0.01}
# the threshold that a detector is shipped with, beside those
OWN = "own"
# the harmless shifts of ``data.shifts``, as a reader calls them
SHIFTS = {
    "noise": "acquisition noise",
    "contrast": "contrast",
    "gamma": "gamma",
    "rotation": "rotation",
}
# in the name of a metric that a table has once for each archive of the plan
ARCHIVE = "{archive}"


@dataclass(frozen=True)
class Metric:
    """One metric of a results table.

    Args:
        name: as in the table's column ``metric``. One that holds ``{archive}`` stands for one
            metric for each archive of the plan.
        scope: what it describes: "run" (the classifier on clean images), "detector", "attack"
            or "attack x detector".
        title: as a heading.
        says: what it is, in one sentence.
        best: its value for a perfect detector. NaN: it says nothing about a detector.
        worst: its value for a useless one.
        unit: "" (a share, 0 to 1, shown in per cent), "score" (another number from 0 to 1), "box"
            (a distance in box units), "seconds" or "passes".
        measure: the number with its interval, from the view of its scope (``metrics.views``);
            None where there is none.
        difference: that of one view less another of the same images, paired; None where there is
            none. Comparisons of runs show the metrics that have it.
        over_attacks: whether it also stands for the worst attack on each image.

    Example:
        >>> METRICS["slips_through_fpr10"].title
        'Slips through at 10 % false alarms'
    """

    name: str
    scope: Scope
    title: str
    measure: Callable[[Any], Interval | None]
    says: str = ""
    best: float = math.nan
    worst: float = math.nan
    unit: Literal["", "score", "box", "seconds", "passes"] = ""
    difference: Callable[[Any, Any], Interval | None] | None = None
    over_attacks: bool = False

    @property
    def per_archive(self) -> bool:
        """Whether a table has it once for each archive of the plan."""
        return ARCHIVE in self.name

    def of_archive(self, archive: str) -> "Metric":
        """That of one archive, such as "jpeg90"."""
        name, title = (text.replace(ARCHIVE, archive) for text in (self.name, self.title))
        return replace(self, name=name, title=title)


def per_cent(rate: str) -> int:
    """A rate of ``RATES`` in per cent."""
    return round(100 * RATES[rate])


def at_rate(rate: str) -> str:
    """The threshold of a rate in words: "10 %", or "its own threshold"."""
    return "its own threshold" if rate == OWN else f"{per_cent(rate)} %"
