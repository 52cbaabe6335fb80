"""The tables of the page: detectors by attacks for every metric, and the attacks themselves."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd

from feathide.metrics.metric import Metric
from feathide.metrics.numbers import bare, number, percent, score
from feathide.metrics.registry import METRICS, in_order, metric_of, title_of
from feathide.report.naming import label
from feathide.report.results import Run
from feathide.report.verdict import at_budget

__all__ = [
    "Cell",
    "Matrix",
    "attacks",
    "cell",
    "classifiers",
    "guards",
    "matrices",
    "parts",
    "variants",
]

# by a metric's unit: how a value is written, and the ends of its interval
ROUNDED = (number, partial(number, digits=2))
WRITTEN = {"": (percent, bare), "score": (score, score)}


@dataclass(frozen=True)
class Cell:
    """One number: its text, its interval's text, the sorting key and how bad it is for the guard,
    0 to 1.
    """

    text: str
    interval: str = ""
    key: float | None = None
    bad: float | None = None


@dataclass(frozen=True)
class Matrix:
    """One metric, detectors by attacks."""

    id: str
    title: str
    says: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def _columns(rows: pd.DataFrame) -> pd.Series:
    """The attack of each row, with the data set, classifier and seed where the table holds
    several.
    """
    names = pd.Series(
        [label(f"{a}+{o}") for a, o in zip(rows["attack"], rows["objective"], strict=True)],
        rows.index,
        dtype=object,
    )
    for column, prefix in (("dataset", ""), ("classifier", ""), ("seed", "seed ")):
        if rows[column].nunique() > 1:
            names = names + f" · {prefix}" + rows[column].astype(str)
    return names


def matrices(run: Run) -> Iterable[Matrix]:
    """One matrix for each metric of a detector at the audited budget, the headline's metrics
    first.
    """
    rows = at_budget(run)
    rows = rows[(rows["detector"] != "") & (rows["attack"] != "")]
    rows = rows.assign(column=_columns(rows))
    for name in in_order(rows["metric"]):
        part = rows[rows["metric"] == name]
        metric = metric_of(name)
        columns, body = _grid(
            part.assign(row=part["detector"].astype(str).map(label)), metric
        )
        says = metric.says if metric else ""
        yield Matrix(name, title_of(name), says, columns, body)


def _grid(
    rows: pd.DataFrame, metric: Metric | None
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[Cell, ...]], ...]]:
    """The numbers of one metric by the columns ``row`` and ``column``: the columns, and the lines
    below them.
    """
    columns = tuple(dict.fromkeys(rows["column"]))
    cells = {(r["row"], r["column"]): cell(r, metric) for _, r in rows.iterrows()}
    return columns, tuple(
        (r, tuple(cells.get((r, c), Cell("–")) for c in columns))
        for r in dict.fromkeys(rows["row"])
    )


def variants(run: Run) -> Iterator[Matrix]:
    """What slips through at 10 % with other seeds of the classifier, and past guards that learnt
    from other attacks, where the audit has that.
    """
    slips = METRICS["slips_through_fpr10"]
    if run.seeds is not None:
        rows = at_budget(
            run,
            run.seeds.rename(columns={"mean": "value", "least": "low", "greatest": "high"}),
        )
        rows = rows[
            (rows["metric"] == "slips_through_fpr10") & (rows["attack"] != "")
        ].assign(seed=0)
        rows = rows.assign(row=rows["detector"].map(label), column=_columns(rows))
        says = (
            f"Mean of {rows['seeds'].max()} classifiers that were trained alike from "
            "different seeds, and the range from the smallest to the largest: "
            "where it is wide, the number of one classifier is a matter of chance."
        )
        yield Matrix(
            "seeds",
            f"{slips.title}, over the classifier's seeds",
            says,
            *_grid(rows, slips),
        )
    if run.held_out is not None and len(run.held_out):
        rows = at_budget(run, run.held_out)
        rows = rows[rows["metric"] == "slips_through_fpr10"]
        order = {name: i for i, name in enumerate(dict.fromkeys(rows["detector"]))}
        rows = rows.sort_values(
            "detector", key=lambda names: names.map(order), kind="stable"
        )
        row = (
            rows["detector"].map(label) + ", learnt from " + rows["learnt_from"].map(label)
        )
        says = (
            "Read along a line: a guard that stops the attack it learnt from and lets "
            "others pass has learnt that attack, "
            "not what attacks have in common."
        )
        rows = rows.assign(row=row, column=_columns(rows))
        yield Matrix(
            "held-out",
            f"{slips.title}, by what the guards learnt from",
            says,
            *_grid(rows, slips),
        )


def cell(row: Mapping[str, float] | pd.Series, metric: Metric | None = None) -> Cell:
    """A number with its interval, coloured by how bad it is for the guard, where ``metric`` says
    what is.
    """
    value, low, high = (float(row[k]) for k in ("value", "low", "high"))
    if math.isnan(value):
        return Cell("–")
    unit = "any" if metric is None else metric.unit
    write, write_end = WRITTEN.get(unit, ROUNDED)
    interval = "" if math.isnan(low) else f"({write_end(low)}–{write_end(high)})"
    return Cell(write(value), interval, value, _bad(value, metric))


def _bad(value: float, metric: Metric | None) -> float | None:
    """How bad a value is for the guard, 0 to 1; None where it says nothing about a guard."""
    if metric is None or math.isnan(metric.best):
        return None
    bad = (value - metric.best) / (metric.worst - metric.best)
    return min(1.0, max(0.0, bad))


def attacks(run: Run) -> Matrix:
    """The attacks at the audited budget by what was measured of them without a guard: success,
    largest change, cost.
    """
    rows = at_budget(run)
    rows = rows[(rows["detector"] == "") & (rows["attack"] != "")]
    table = _by_metric(
        rows.assign(row=_columns(rows)), run, "attacks", "The attacks, without a guard"
    )
    known = {
        str(name): Cell(str(k))
        for name, k in zip(_columns(rows), rows["knowledge"], strict=True)
    }
    body = tuple((name, (known[name], *cells)) for name, cells in table.rows)
    return Matrix(table.id, table.title, table.says, ("Knowledge", *table.columns), body)


def classifiers(table: pd.DataFrame) -> Matrix:
    """What each classifier does on clean images, all of them: its accuracy, and whether its
    probabilities can be believed.
    """
    rows = table[(table["attack"] == "") & (table["detector"] == "")]
    shown = [(name, metric_of(name)) for name in in_order(rows["metric"])]
    metrics = {name: m for name, m in shown if m is not None and m.scope == "run"}
    rows = rows[rows["metric"].isin(list(metrics))]
    names = rows["dataset"].astype(str) + ", " + rows["classifier"].astype(str)
    if rows["seed"].nunique() > 1:
        names = names + ", seed " + rows["seed"].astype(str)
    cells = {
        (n, r["metric"]): cell(r, metric_of(str(r["metric"])))
        for n, (_, r) in zip(names, rows.iterrows(), strict=True)
    }
    body = tuple(
        (n, tuple(cells.get((n, m), Cell("–")) for m in metrics))
        for n in dict.fromkeys(names)
    )
    says = ". ".join(f"{m.title}: {m.says}" for m in metrics.values() if m.says)
    titles = tuple(m.title for m in metrics.values())
    return Matrix("classifiers", "Classifiers on clean test images", says, titles, body)


def guards(run: Run) -> Matrix:
    """What each detector reads, and what it does without an attack: the false alarms it really
    raises, the accuracy on what it accepts.
    """
    rows = at_budget(run)
    rows = rows[(rows["detector"] != "") & (rows["attack"] == "")]
    rows = rows.assign(row=[label(str(d)) for d in rows["detector"]])
    table = _by_metric(rows, run, "guards", "The guards on clean test images")
    if not run.reads:
        return table
    known = {label(d): Cell(", ".join(spaces)) for d, spaces in run.reads.items()}
    body = tuple((name, (known.get(name, Cell("–")), *cells)) for name, cells in table.rows)
    return Matrix(table.id, table.title, table.says, ("Reads", *table.columns), body)


def _by_metric(rows: pd.DataFrame, run: Run, name: str, title: str) -> Matrix:
    """One line for each value of the column ``row``, one column a metric."""
    metrics = in_order(rows["metric"])
    cells = {(r["row"], r["metric"]): _measure(r, run) for _, r in rows.iterrows()}
    body = (
        (str(r), tuple(cells.get((r, m), Cell("–")) for m in metrics))
        for r in dict.fromkeys(rows["row"])
    )
    return Matrix(name, title, "", tuple(map(title_of, metrics)), tuple(body))


def parts(run: Run) -> Matrix:
    """The counts that are given by part: images, patients, correct."""
    given = {name: part for name, part in run.counts.items() if isinstance(part, Mapping)}
    columns = tuple(dict.fromkeys(str(k) for part in given.values() for k in part))
    body = (
        (str(n), tuple(Cell(str(part.get(c, "–")), "", part.get(c)) for c in columns))
        for n, part in given.items()
    )
    return Matrix(
        "parts", "Images by split", "", tuple(c.capitalize() for c in columns), tuple(body)
    )


def _measure(row: pd.Series, run: Run) -> Cell:
    """A number in the unit of its metric."""
    value, metric = float(row["value"]), metric_of(str(row["metric"]))
    if metric is None or metric.unit in ("", "score") or math.isnan(value):
        return cell(row, metric)
    if metric.unit == "box":
        return Cell(run.size(value), "", value)
    return Cell(number(value), "", value)
