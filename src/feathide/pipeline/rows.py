"""What the analyses share with an audit: its tasks, and its table with two more columns,
``layer`` and ``versus`` (what a row is compared with).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from feathide.catalog import OBJECTIVES
from feathide.execution.engine import Task
from feathide.metrics.statistics import Interval
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.table import COLUMNS
from feathide.plans.plan import Cell

__all__ = ["COLUMNS", "MORE", "entry", "first_cells", "frame", "point", "with_needs"]

MORE = ("layer", "versus")


def with_needs(own: Sequence[Task], audit: Iterable[Task]) -> list[Task]:
    """The tasks ``own`` and those of an audit that they need, directly or not."""
    table = {task.key: task for task in audit}
    wanted: dict[str, Task] = {}
    queue = list(own)
    while queue:
        task = queue.pop()
        if task.key not in wanted:
            wanted[task.key] = task
            queue += [table[key] for key in task.needs if key in table]
    return list(wanted.values())


def first_cells(context: Context) -> list[Cell]:
    """The attacks and objectives of the plan at its first budget."""
    return [cell for cell in cells(context) if cell.eps == context.limits.budgets[0]]


def entry(
    context: Context,
    metric: str,
    interval: Interval,
    *,
    cell: Cell | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One row of the table. ``more`` fills or replaces columns: layer, versus, detector,
    knowledge, ...
    """
    named = {
        "attack": "",
        "objective": "",
        "knowledge": "none",
        "eps": context.limits.budgets[0],
    }
    if cell is not None:
        knowledge = OBJECTIVES[cell.objective.kind].knowledge
        named = {
            "attack": cell.attack.name,
            "objective": cell.objective.name,
            "knowledge": knowledge,
            "eps": cell.eps,
        }
    about = {
        "dataset": context.cases.name,
        "classifier": context.plan.network.arch,
        **named,
        "detector": "",
        "metric": metric,
    }
    numbers = {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
    }
    return {
        **about,
        **numbers,
        "seed": context.plan.seed,
        **dict.fromkeys(MORE, ""),
        **more,
    }


def frame(rows: Iterable[dict[str, Any]], more: Sequence[str] = MORE) -> pd.DataFrame:
    """The rows as a table with the columns of an audit's, then ``more``."""
    return pd.DataFrame(list(rows), columns=[*COLUMNS, *more])


def point(value: float, n: int) -> Interval:
    """A number that has no sampling interval."""
    return Interval(float(value), float("nan"), float("nan"), n)
