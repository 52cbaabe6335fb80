"""Results by group of patients: accuracy, false alarms and slips-through, each with its interval
by patient, and whether the group differs from the rest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from feathide.data.groups import banded, columns_of
from feathide.metrics.intervals import Interval, proportion
from feathide.metrics.multiplicity import differs, holm
from feathide.metrics.rates import above
from feathide.metrics.uncertain_threshold import share_at
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.views import Classified, Guarded, Head, Passed, Worst, attacked

__all__ = ["COLUMNS", "check_subgroups", "subgroups_of"]

COLUMNS = (
    *("column", "group", "attack", "objective", "eps", "detector", "metric"),
    *("value", "low", "high", "n", "patients", "rest", "p", "p_holm"),
)
HEAD: Head = ("", "", "none", float("nan"), "")


@dataclass(frozen=True)
class Measured:
    """Something that each of some test images does or does not: what it is, and for which rows.

    ``hits`` (n,) at the threshold; ``measure`` gives the share and its interval for some of them.
    ``tested``: whether groups are compared by it."""

    head: Head
    metric: str
    rows: np.ndarray
    hits: np.ndarray
    measure: Callable[[np.ndarray], Interval]
    tested: bool


@dataclass(frozen=True)
class Grouping:
    """A column, and the group of each case (N,)."""

    column: str
    groups: np.ndarray

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(np.unique(self.groups).tolist())


def check_subgroups(context: Context) -> None:
    """Refuse columns that cannot be read, before any long work."""
    groupings(context)


def groupings(context: Context) -> list[Grouping]:
    """The columns of the plan, with the group of each case."""
    plan = context.plan
    if not plan.subgroups.columns:
        return []
    found = columns_of(
        context.cases,
        plan.data.path,
        plan.subgroups.columns,
        keep=plan.data.keep_patient_ids,
    )
    return [
        Grouping(
            name,
            banded(v, plan.subgroups.bands[name]) if name in plan.subgroups.bands else v,
        )
        for name, v in found.items()
    ]


def subgroups_of(context: Context) -> pd.DataFrame:
    """The table of all groups: a row for each group and number. Columns: ``COLUMNS``.

    ``rest`` is the share among all other images. ``p`` is that of a permutation test by patient
    of group against rest, for accuracy, false alarms at 10 % and the worst attack; of two groups
    of a column one is tested. ``p_holm`` is corrected for all tests of the table (Holm 1979).
    """
    measured = list(_measured(context))
    rows = [
        row
        for grouping in groupings(context)
        for what in measured
        for row in _rows(context, grouping, what)
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1]))
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    return _told_to_both(table)


def _measured(context: Context) -> Iterator[Measured]:
    """The numbers that are given by group."""
    patients, classifier = context.cases.patients, Classified(context)
    rows, right = context.outputs.of("clean", "test")[1], classifier.test.right
    yield Measured(
        HEAD,
        "accuracy",
        rows,
        right,
        lambda at: proportion(right[at], groups=patients[rows[at]]),
        tested=True,
    )
    for eps in context.limits.budgets:
        guards = [
            Guarded(context, detector, eps, context.plan.seed)
            for detector in context.plan.detectors
        ]
        attacks = [attacked(context, cell) for cell in cells(context) if cell.eps == eps]
        for guard in guards:
            yield _alarms(guard)
            past = [Passed(attack, guard) for attack in attacks if len(attack.rows)]
            for one in past:
                yield _slips(one, one.attack.rows, tested=False)
            if past:
                yield _slips(Worst(past), past[0].attack.rows, tested=True)


def _alarms(guard: Guarded) -> Measured:
    threshold, score, patients = guard.thresholds["fpr10"], guard.clean, guard.groups
    return Measured(
        guard.head,
        "false_alarms_fpr10",
        guard.rows,
        score > threshold.value,
        lambda at: share_at(threshold, above(score[at]), groups=patients[at]),
        tested=True,
    )


def _slips(past: Passed | Worst, rows: np.ndarray, *, tested: bool) -> Measured:
    threshold, patients = past.thresholds["fpr10"], past.groups
    return Measured(
        past.head,
        "slips_through_fpr10",
        rows,
        np.asarray(past.slips(threshold.value), dtype=bool),
        lambda at: share_at(threshold, lambda t: past.slips(t)[at], groups=patients[at]),
        tested=tested,
    )


def _rows(
    context: Context, grouping: Grouping, what: Measured
) -> Iterator[tuple[object, ...]]:
    """A row for each group, of those that have images."""
    plan, patients = context.plan, context.cases.patients[what.rows]
    groups = grouping.groups[what.rows]
    there = [name for name in grouping.names if (groups == name).any()]
    large = [
        name
        for name in there
        if len(np.unique(patients[groups == name])) >= plan.subgroups.smallest
    ]
    # of two groups, either against the other is the same question
    asked = large[:1] if len(there) == 2 else large
    attack, objective, _, eps, detector = what.head
    for name in there:
        inside = groups == name
        at = np.flatnonzero(inside)
        count = len(np.unique(patients[at]))
        rest = float(what.hits[~inside].mean()) if not inside.all() else np.nan
        p, found = np.nan, Interval(np.nan, np.nan, np.nan, len(at))
        if name in large:
            found = what.measure(at)
            if what.tested and name in asked and not inside.all():
                p = differs(what.hits, inside, groups=patients, seed=plan.seed)
        head = (grouping.column, name, attack, objective, eps, detector, what.metric)
        yield (*head, found.value, found.low, found.high, found.n, count, rest, p)


def _told_to_both(table: pd.DataFrame) -> pd.DataFrame:
    """Of two groups that were tested once, both have the p-value."""
    by = ["column", "attack", "objective", "eps", "detector", "metric"]
    for _, part in table.groupby(by, dropna=False, sort=False):
        if len(part) == 2 and part["value"].notna().all() and part["p"].notna().any():
            for name in ("p", "p_holm"):
                table.loc[part.index, name] = part[name].max()
    return table
