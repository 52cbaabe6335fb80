"""What is done with a finished audit: its report again, another run beside it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from feathide.auditing.export import finished
from feathide.auditing.report_data import run_of
from feathide.errors import expected
from feathide.execution.remote import near
from feathide.execution.store import write_whole
from feathide.formats.safety import guarded
from feathide.metrics.registry import METRICS
from feathide.metrics.statistics import Interval
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.table import COLUMNS, View, stored_table
from feathide.pipeline.views import Attacked, Guarded, Head, Passed, attacked
from feathide.plans.plan import Cell
from feathide.report import Run, render

__all__ = [
    "CHANGES",
    "Comparison",
    "compare",
    "flat",
    "paired_budgets",
    "paired_cells",
    "render_again",
    "run_again",
]

CHANGES = (
    *("attack", "objective", "eps_a", "eps_b", "detector", "metric"),
    *("a", "b", "difference", "low", "high", "n", "paired"),
)
SANITY_CHECK = ("name", "status", "detail", "raised_if", "why", "do")


# --- the report again ---------------------------------------------------------------------------


def render_again(run: str | Path) -> Path:
    """``report.html`` of a finished audit, made again from its folder; nothing is attacked or
    scored.

    Raises ``InputError`` for an unfinished audit, and if the images are no longer those that it
    saw."""
    found = run_again(run)
    page = near(run) / "report.html"
    write_whole(page, render(found).encode())
    return page


def run_again(run: str | Path) -> Run:
    """What the report of a finished audit is made from, read from its folder; raises as
    ``render_again``.
    """
    context = finished(run)
    folder = context.store.folder
    _same_images(context)
    checks = _sanity_checks(folder / "sanity_checks.json")
    return run_of(context, _table(folder), sanity_checks=checks)


def _same_images(context: Context) -> None:
    place = context.store.folder / "plan.yaml"
    seen, now = (
        guarded(
            place, lambda: str(_document(context.store.folder)["record"]["data"]["digest"])
        ),
        context.cases.digest,
    )
    if seen != now:
        do = "put back the images, or audit the new ones into another folder"
        raise expected(
            f"{context.store.folder} needs the images that it attacked (digest {seen})",
            got=now,
            do=do,
        )


def _document(folder: Path) -> dict[str, Any]:
    """``plan.yaml``: the plan and the record of the run."""
    path = folder / "plan.yaml"
    return guarded(path, lambda: dict(yaml.safe_load(path.read_text(encoding="utf-8"))))


def _table(folder: Path) -> pd.DataFrame:
    path = folder / "results.parquet"
    table = stored_table(path)
    if tuple(table.columns) != COLUMNS or not all(
        table[c].dtype.kind in "fi" for c in ("eps", "value", "low", "high", "n")
    ):
        raise expected(
            f"{path} must be a table of an audit",
            got="other columns",
            do="audit again into this folder",
        )
    return table


def _sanity_checks(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    return guarded(
        path,
        lambda: [
            {k: str(g[k]) for k in SANITY_CHECK}
            for g in json.loads(path.read_text(encoding="utf-8"))
        ],
    )


# --- two runs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What changed from run A to run B: ``fields`` of ``plan.yaml`` {name: (a, b)}, and a table
    with the columns ``CHANGES``.
    """

    fields: Mapping[str, tuple[Any, Any]]
    table: pd.DataFrame


def compare(run_a: str | Path, run_b: str | Path) -> Comparison:
    """Run B against run A: the plan's fields, and, of every attack that both have, the metrics
    with a paired ``difference``: success, AUC and slips-through at 10 % false alarms.

    ``a`` and ``b`` are the values of the runs' tables. Where both attacked the same cases,
    ``difference`` (b - a) has the interval of ``metrics.paired_difference``, from the stored
    images and scores, by patient; of the AUC it is over the images that fool both runs'
    classifiers, so that positives, too, are paired. Else ``paired`` is False and there is no
    interval. Attacks belong together that agree in name, objective and eps, or in name and
    objective where each run has one budget. Raises ``InputError`` for an unfinished audit, and
    for images that are not those of the run."""
    a, b = finished(run_a), finished(run_b)
    _same_images(a)
    _same_images(b)
    rows = [row for p, q in paired_cells(a, b) for row in _changes((a, p), (b, q))]
    return Comparison(
        _fields(a.store.folder, b.store.folder), pd.DataFrame(rows, columns=list(CHANGES))
    )


def paired_budgets(a: Context, b: Context) -> list[tuple[float, float]]:
    """The budgets that belong together: equal ones, or the only one of each."""
    one = len(a.limits.budgets) == len(b.limits.budgets) == 1
    return [(p, q) for p in a.limits.budgets for q in b.limits.budgets if one or p == q]


def paired_cells(a: Context, b: Context) -> list[tuple[Cell, Cell]]:
    """The attacks that belong together, by name, objective and budget."""
    budgets = paired_budgets(a, b)
    return [
        (p, q)
        for p in cells(a)
        for q in cells(b)
        if p.name == q.name and (p.eps, q.eps) in budgets
    ]


def _fields(a: Path, b: Path) -> dict[str, tuple[Any, Any]]:
    left, right = (dict(flat(_document(f))) for f in (a, b))
    names = [*left, *(n for n in right if n not in left)]
    return {n: (left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)}


def flat(value: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping, under dotted names."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{head}{name}.")
        else:
            yield head + name, inner


def _changes(a: tuple[Context, Cell], b: tuple[Context, Cell]) -> Iterator[dict[str, Any]]:
    """The rows of one attack: of the attack itself, and past each detector that both have."""
    # both draw the same patients
    seed = a[0].plan.seed
    one, other = (attacked(*each, seed=seed).in_order() for each in (a, b))
    tables = [_table(context.store.folder) for context, _ in (a, b)]
    views: list[tuple[View, View]] = [(one, other)]
    for detector in a[0].plan.detectors:
        if detector in b[0].plan.detectors:
            views.append((_past(one, detector, seed), _past(other, detector, seed)))
    paired = _same_cases(one, other)
    for left, right in views:
        for metric in METRICS.values():
            if metric.difference is not None and metric.scope == left.scope:
                found = metric.difference(right, left) if paired else None
                values = [
                    _value(table, view.head, metric.name)
                    for table, view in zip(tables, (left, right), strict=True)
                ]
                yield _change(left.head, right.head, metric.name, values, found)


def _past(attack: Attacked, detector: str, seed: int) -> Passed:
    return Passed(attack, Guarded(attack.context, detector, attack.cell.eps, seed))


def _same_cases(a: Attacked, b: Attacked) -> bool:
    """Whether two attacks are on the same images, of which there are some."""
    same = a.context.cases.digest == b.context.cases.digest
    return same and len(a.rows) > 0 and np.array_equal(a.rows, b.rows)


def _change(
    a: Head, b: Head, metric: str, values: Sequence[float], found: Interval | None
) -> dict[str, Any]:
    """One row of ``CHANGES``."""
    attack, objective, _, eps, detector = a
    difference = values[1] - values[0]
    shown = found or Interval(difference, math.nan, math.nan, 0)
    return {
        "attack": attack,
        "objective": objective,
        "eps_a": eps,
        "eps_b": b[3],
        "detector": detector,
        "metric": metric,
        "a": values[0],
        "b": values[1],
        "paired": found is not None,
        "difference": shown.value,
        "low": shown.low,
        "high": shown.high,
        "n": shown.n,
    }


def _value(table: pd.DataFrame, head: Head, metric: str) -> float:
    """The number of a metric in a run's table; NaN where it has none."""
    attack, objective, _, eps, detector = head
    at = table[(table.attack == attack) & (table.objective == objective)]
    at = at[(at.eps == eps) & (at.detector == detector) & (at.metric == metric)]
    return float(at.value.iloc[0]) if len(at) else math.nan
