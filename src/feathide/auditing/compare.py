"""What is done with a finished audit: its report again, another run beside it."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from feathide.auditing.export import finished
from feathide.auditing.report_data import run_of
from feathide.errors import expected
from feathide.execution.store import write_whole
from feathide.formats.safety import guarded
from feathide.metrics.statistics import Interval, auc, difference_at, paired_difference
from feathide.pipeline.context import Context, noisy_at
from feathide.pipeline.steps import cells
from feathide.pipeline.table import (
    COLUMNS,
    Found,
    cuts_of,
    found_in,
    scores_in,
    slipping,
    stored_table,
)
from feathide.plans.plan import Cell
from feathide.report import render

__all__ = ["CHANGES", "Comparison", "compare", "flat", "render_again"]

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
    context = finished(run)
    folder = context.store.folder
    _same_images(context)
    found = run_of(
        context, _table(folder), sanity_checks=_sanity_checks(folder / "sanity_checks.json")
    )
    write_whole(folder / "report.html", render(found).encode())
    return folder / "report.html"


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
    """Run B against run A: the plan's fields, and success, AUC and slips-through at 10 % false
    alarms of every attack that both have.

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
    one = len(a.budgets) == len(b.budgets) == 1
    pairs = [
        (p, q)
        for p in cells(a)
        for q in cells(b)
        if (p.attack.name, p.objective.name) == (q.attack.name, q.objective.name)
        and (one or p.eps == q.eps)
    ]
    rows = [row for p, q in pairs for row in _changes((a, p), (b, q))]
    return Comparison(
        _fields(a.store.folder, b.store.folder), pd.DataFrame(rows, columns=list(CHANGES))
    )


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
    """The rows of one attack."""
    (lab_a, cell_a), (lab_b, cell_b) = a, b
    tables = [_table(context.store.folder) for context in (lab_a, lab_b)]
    found = found_in(lab_a, cell_a), found_in(lab_b, cell_b)
    same = lab_a.cases.digest == lab_b.cases.digest and sorted(found[0].rows) == sorted(
        found[1].rows
    )
    guards = [d for d in lab_a.plan.detectors if d in lab_b.plan.detectors]
    for detector, metric in [
        ("", "success"),
        *((d, m) for d in guards for m in ("auc", "slips_through_fpr10")),
    ]:
        va, vb = (
            _value(t, c, detector, metric)
            for t, c in zip(tables, (cell_a, cell_b), strict=True)
        )
        d = (
            _paired((lab_a, lab_b), found, detector, metric)
            if same and len(found[0].rows)
            else None
        )
        yield {
            "attack": cell_a.attack.name,
            "objective": cell_a.objective.name,
            "eps_a": cell_a.eps,
            "eps_b": cell_b.eps,
            "detector": detector,
            "metric": metric,
            "a": va,
            "b": vb,
            "paired": d is not None,
            "difference": d.value if d else vb - va,
            "low": d.low if d else math.nan,
            "high": d.high if d else math.nan,
            "n": d.n if d else 0,
        }


def _value(table: pd.DataFrame, cell: Cell, detector: str, metric: str) -> float:
    at = table[
        (table.attack == cell.attack.name) & (table.objective == cell.objective.name)
    ]
    at = at[(at.eps == cell.eps) & (at.detector == detector) & (at.metric == metric)]
    return float(at.value.iloc[0]) if len(at) else math.nan


def _paired(
    contexts: tuple[Context, Context],
    found: tuple[Found, Found],
    detector: str,
    metric: str,
) -> Interval | None:
    """b - a on the same cases, in the order of their rows; None for the AUC if no image fools
    both.
    """
    order = [np.argsort(f.rows) for f in found]
    rows = found[0].rows[order[0]]
    groups = contexts[0].cases.patients[rows]
    fooled = [f.fooled[o] for f, o in zip(found, order, strict=True)]
    if metric != "auc":
        seed = contexts[0].plan.seed
        if metric == "success":
            return paired_difference(
                np.mean, (fooled[1],), (fooled[0],), groups=groups, seed=seed
            )
        cuts = [
            cuts_of(context, detector, f.cell.eps, seed=seed)["fpr10"]
            for context, f in zip(contexts, found, strict=True)
        ]
        scores = [
            scores_in(
                context, detector, f.cell.eps, context.condition(f.cell), "test", rows
            )
            for context, f in zip(contexts, found, strict=True)
        ]
        slips = [slipping(*each) for each in zip(fooled, scores, strict=True)]
        return difference_at(
            (cuts[1], cuts[0]), slips[1], slips[0], groups=groups, seed=seed
        )
    both = fooled[0] & fooled[1]
    if not both.any():
        return None
    a, b = (
        _separation(context, f, detector, rows, both)
        for context, f in zip(contexts, found, strict=True)
    )
    named = (np.concatenate([groups, groups]), groups[both])
    d = paired_difference(auc, b, a, groups=named, seed=contexts[0].plan.seed)
    return Interval(d.value, d.low, d.high, int(both.sum()))


def _separation(
    context: Context, found: Found, detector: str, rows: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the negatives, clean then noisy, and of the chosen adversarial images."""
    eps = found.cell.eps
    negatives = [
        scores_in(context, detector, eps, c, "test", rows) for c in ("clean", noisy_at(eps))
    ]
    return np.concatenate(negatives), scores_in(
        context, detector, eps, context.condition(found.cell), "test", rows[chosen]
    )
