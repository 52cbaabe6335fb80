"""The tables: one number a row, with its interval, from the stored scores and images.

``table_of`` has the results: the metrics of ``metrics.registry``, each of the views of its scope.
``comparisons_of`` has the paired differences behind every "A beats B".
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from feathide.catalog import OBJECTIVES
from feathide.formats.safety import guarded
from feathide.metrics.registry import METRICS, Metric
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.survival import archives
from feathide.pipeline.views import Attacked, Classified, Guarded, Passed, Worst, attacked
from feathide.plans.plan import Cell

__all__ = [
    "COLUMNS",
    "COMPARED",
    "comparisons_of",
    "framed",
    "past_rows",
    "stored_table",
    "table_of",
]

MOST_ROWS = 10_000_000
COLUMNS = (
    *("dataset", "classifier", "attack", "objective", "knowledge", "eps", "detector"),
    *("metric", "value", "low", "high", "n", "seed"),
)
COMPARED = (
    *("dataset", "classifier", "attack", "eps", "detector", "metric"),
    *("objective", "against", "value", "low", "high", "n", "seed"),
)

View = Classified | Guarded | Attacked | Passed | Worst
Row = tuple[str, str, str, float, str, str, float, float, float, int]


def table_of(context: Context) -> pd.DataFrame:
    """The whole table of a finished run: the classifier; then, at each budget, the detectors, the
    attacks past each of them, and the worst attack on each image.
    """
    rows = list(rows_of(Classified(context)))
    for eps in context.limits.budgets:
        guards = _guards(context, eps)
        attacks = _attacks(context, eps)
        for guard in guards:
            rows += rows_of(guard)
        for attack in attacks:
            rows += rows_of(attack)
            for guard in guards:
                rows += rows_of(Passed(attack, guard))
        for guard in guards if attacks else ():
            worst = Worst([Passed(attack, guard) for attack in attacks])
            rows += rows_of(worst, [m for m in METRICS.values() if m.over_attacks])
    return framed(context, rows)


def past_rows(
    context: Context, chosen: Iterable[Attacked], names: Sequence[str]
) -> list[Row]:
    """The metrics ``names`` of attacks past each detector of a context."""
    metrics = [METRICS[name] for name in names]
    return [
        row
        for attack in chosen
        if len(attack.rows)
        for guard in _guards(context, attack.cell.eps)
        for row in rows_of(Passed(attack, guard), metrics)
    ]


def rows_of(view: View, metrics: Iterable[Metric] | None = None) -> Iterator[Row]:
    """The numbers of one view: of ``metrics``, or of all, those of its scope that it has."""
    for metric in METRICS.values() if metrics is None else metrics:
        if metric.scope != view.scope:
            continue
        for one, seen in _each(metric, view):
            found = one.measure(seen)
            if found is not None:
                yield (*view.head, one.name, found.value, found.low, found.high, found.n)


def _each(metric: Metric, view: View) -> Iterator[tuple[Metric, View]]:
    """A metric with what it is measured of: a view, or what each archive of the plan gives back
    of it.
    """
    if not metric.per_archive:
        yield metric, view
        return
    for archive in archives(view.context):
        yield metric.of_archive(archive.name), view.through(archive)


def _guards(context: Context, eps: float) -> list[Guarded]:
    seed = context.plan.seed
    return [Guarded(context, detector, eps, seed) for detector in context.plan.detectors]


def _attacks(context: Context, eps: float) -> list[Attacked]:
    """The attacks at a budget, where there were images to attack."""
    every = [attacked(context, cell) for cell in cells(context) if cell.eps == eps]
    return [attack for attack in every if len(attack.rows)]


def framed(context: Context, rows: Sequence[Row]) -> pd.DataFrame:
    """Rows of one context as a table. Columns: ``COLUMNS``."""
    return _named(context, pd.DataFrame(rows, columns=list(COLUMNS[2:-1])))


def comparisons_of(context: Context) -> pd.DataFrame:
    """Paired differences of slips-through at 10 % false alarms on the same cases: HFC, under each
    attack and past each detector, against every other objective. ``objective`` beats ``against``
    where ``low`` is above 0. Columns: ``COMPARED``.
    """
    metric = METRICS["slips_through_fpr10"]
    assert metric.difference is not None
    rows = []
    for eps in context.limits.budgets:
        attacks, guards = _attacks(context, eps), _guards(context, eps)
        for ours, other in product(attacks, attacks):
            if not _rivals(ours.cell, other.cell):
                continue
            for guard in guards:
                found = metric.difference(Passed(ours, guard), Passed(other, guard))
                if found is not None:
                    names = (ours.cell.objective.name, other.cell.objective.name)
                    head = (ours.cell.attack.name, eps, guard.detector, metric.name, *names)
                    rows.append((*head, found.value, found.low, found.high, found.n))
    frame = pd.DataFrame(rows, columns=list(COMPARED[2:-1]))
    return _named(context, frame)


def _rivals(ours: Cell, other: Cell) -> bool:
    """Whether two cells are one attack that hides with the mixtures, and with another objective."""
    hides = OBJECTIVES[ours.objective.kind].needs == "bank"
    return hides and ours.attack == other.attack and ours.objective != other.objective


def _named(context: Context, frame: pd.DataFrame) -> pd.DataFrame:
    """A table with the columns that say whose it is."""
    frame.insert(0, "dataset", context.cases.name)
    frame.insert(1, "classifier", context.plan.network.arch)
    frame["seed"] = context.plan.seed
    return frame


def stored_table(path: Path) -> pd.DataFrame:
    """A table in a parquet file. A small one can hold more rows than there is memory for: beyond
    ``MOST_ROWS`` it is refused.
    """

    import pyarrow.parquet as pq

    def read() -> pd.DataFrame:
        if (rows := pq.read_metadata(path).num_rows) > MOST_ROWS:
            raise ValueError(f"{rows} rows")
        return pd.read_parquet(path)

    return guarded(path, read)
