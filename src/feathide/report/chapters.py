"""``book``: a page of many questions, each a chapter with its claims, tables and figures; and the
same as Markdown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from feathide.metrics.registry import metric_of, title_of
from feathide.report.document import document
from feathide.report.drawing import CYCLE, MARKERS, SHARE, Figure, Panel, Style, errors, say
from feathide.report.naming import label
from feathide.report.sheet import SCRIPTS, Plate, Sheet
from feathide.report.tables import Cell, Matrix, cell, classifiers

__all__ = ["Book", "Chapter", "Claimed", "Layout", "book", "chapter", "markdown"]

WORDS = {"holds": "pass", "does not hold here": "fail"}


@dataclass(frozen=True)
class Claimed:
    """A claim and what became of it; ``against`` names what speaks against it."""

    says: str
    verdict: str
    clear: str
    against: str

    @property
    def word(self) -> str:
        return WORDS.get(self.verdict, "warn")

    @property
    def exceptions(self) -> str:
        """What speaks against the claim, as a sentence; "" where nothing does."""
        if not self.against:
            return ""
        head = "Exceptions" if self.word == "pass" else "Against it"
        return f"{head}: {self.against}."


@dataclass(frozen=True)
class Chapter:
    """One question: what the paper says, claims, tables (attacks by guards), figures, pictures,
    and the whole table.
    """

    id: str
    title: str
    paper: str
    claims: Sequence[Claimed]
    table: pd.DataFrame
    says: Sequence[str] = ()
    matrices: Sequence[Matrix] = ()
    figures: Sequence[Figure] = ()
    plates: Sequence[Plate] = ()
    reports: Sequence[str] = ()


@dataclass(frozen=True)
class Layout:
    """How the table of an analysis is shown: its ``metrics``, the columns that name a row and a
    column, and whether it is about ``guards``.
    """

    metrics: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    guards: bool = False


@dataclass(frozen=True)
class Book:
    """A title, sentences on the whole, and the chapters."""

    title: str
    says: Sequence[str]
    chapters: Sequence[Chapter]

    @property
    def matrices(self) -> Sequence[Matrix]:
        """What the classifiers of all audits do on clean images."""
        tables = [
            c.table for c in self.chapters if "calibration_error" in set(c.table.metric)
        ]
        return [classifiers(pd.concat(tables))] if tables else []


def book(page: Book) -> str:
    """The book as HTML text; it loads nothing and holds its numbers."""
    figures = [figure.spec() for c in page.chapters for figure in c.figures]
    data = {
        "figures": figures,
        "csv": {c.id: c.table.to_csv(index=False) for c in page.chapters},
    }
    return document("chapters.html.j2", SCRIPTS, data, book=page)


def chapter(
    id: str,
    title: str,
    table: pd.DataFrame,
    *,
    show: str,
    paper: str = "",
    claims: Sequence[Claimed] = (),
    pages: Sequence[Sheet] = (),
    reports: Sequence[str] = (),
    layout: Layout | None = None,
) -> Chapter:
    """The chapter of a question: from the pages of its analyses, with one table for each metric
    of ``layout``, or, for audits, the metric ``show`` as table and figure.
    """
    figures = [
        replace(f, id=f"{id}-{i}-{f.id}")
        for i, page in enumerate(pages)
        for f in page.figures
    ]
    plates = [plate for page in pages for plate in page.plates]
    says = list(dict.fromkeys(line for page in pages for line in page.says))
    found = Chapter(id, title, paper, claims, table, says, (), figures, plates, reports)
    if pages:
        return (
            found
            if layout is None
            else replace(found, matrices=tuple(_laid_out(table, layout)))
        )
    rows = table[(table.attack != "") & (table.metric.isin([show, "success"]))]
    rows = rows[(rows.metric == show) == (rows.detector != "")]
    return replace(
        found, matrices=tuple(_matrices(rows, show)), figures=(_figure(id, rows, show),)
    )


def _laid_out(table: pd.DataFrame, layout: Layout) -> Iterator[Matrix]:
    """One matrix for each metric: what varies of ``layout.rows`` down, of ``layout.columns``
    across.
    """
    for metric in layout.metrics:
        part = table[(table.metric == metric) & ((table.detector == "") | layout.guards)]
        down, across = (_joined(part, names) for names in (layout.rows, layout.columns))
        columns = tuple(dict.fromkeys(across))
        cells = {
            (d, a): cell(r, metric_of(metric))
            for d, a, (_, r) in zip(down, across, part.iterrows(), strict=True)
        }
        body = tuple(
            (d, tuple(cells.get((d, a), Cell("–")) for a in columns))
            for d in dict.fromkeys(down)
        )
        yield Matrix(metric, title_of(metric), "", columns, body)


def _joined(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """What a row is called by the columns ``names``, of which those that say nothing are left
    out.
    """
    told = [n for n in names if rows[n].astype(str).nunique() > 1] or list(names[:1])
    words = [
        (("seed " if n == "seed" else "") + rows[n].astype(str)).tolist() for n in told
    ]
    return [", ".join(filter(None, parts)) for parts in zip(*words, strict=True)]


def _matrices(rows: pd.DataFrame, show: str) -> Iterator[Matrix]:
    """One matrix a data set: a row for each attack (and variation), success first, then one
    column a guard.
    """
    metric = metric_of(show)
    title, says = title_of(show), metric.says if metric else ""
    named = rows.assign(
        row=_row_names(rows), guard=rows.detector.where(rows.detector != "", "success")
    )
    for data, part in named.groupby("dataset", sort=False):
        guards = ["success", *dict.fromkeys(part.detector[part.detector != ""])]
        cells = {
            (r.row, r.guard): cell(r, metric if r.detector else metric_of("success"))
            for _, r in part.iterrows()
        }
        body = tuple(
            (n, tuple(cells.get((n, g), Cell("–")) for g in guards))
            for n in dict.fromkeys(part.row)
        )
        columns = (title_of("success"), *map(label, guards[1:]))
        yield Matrix(f"{show}-{data}", f"{title}: {data}", says, columns, body)


def _row_names(rows: pd.DataFrame) -> pd.Series:
    names = [label(f"{a}+{o}") for a, o in zip(rows.attack, rows.objective, strict=True)]
    found = pd.Series(names, rows.index, dtype=object)
    if rows.variation.nunique() > 1:
        found = rows.variation + " · " + found
    eps = rows.eps.map(lambda e: f" · {e * 255:.3g}/255")
    return (
        found + eps
        if rows.groupby(["dataset", "variation"]).eps.nunique().max() > 1
        else found
    )


def _figure(id: str, rows: pd.DataFrame, show: str) -> Figure:
    """Lines, one a guard, over what varies: the variation, else the attack, else the objective;
    one panel for each of the rest.
    """
    axes = ["variation", "attack", "objective"]
    x = next((a for a in axes if rows[a].nunique() > 1), "objective")
    by = [a for a in ("dataset", "objective") if a != x]
    panels = []
    for names, part in rows.groupby(by, sort=False):
        guards = {
            name: i
            for i, name in enumerate(
                ["", *dict.fromkeys(part.detector[part.detector != ""])]
            )
        }
        traces = [
            _line(part[part.detector == name], name, i - 1, x) for name, i in guards.items()
        ]
        panels.append(Panel(" · ".join(label(str(n)) for n in names), traces))
    title = title_of(show)
    return Figure(
        id=f"{id}-figure",
        title=title,
        caption=(
            f"{title} of each guard, and the attack's success (in the text colour). Bars are 95 % "
            "intervals over patients of the test split."
        ),
        panels=panels,
        data=rows,
        x={"type": "category", "automargin": True, "tickangle": -35},
        y={**SHARE, "title": title},
        height=360,
    )


def _line(rows: pd.DataFrame, name: str, number: int, x: str) -> Style:
    hue, dash = ("--ink", "dot") if number < 0 else (CYCLE[number % len(CYCLE)], "solid")
    return {
        "type": "scatter",
        "mode": "lines+markers" if x == "variation" else "markers",
        "name": say(label(name) if name else "success"),
        "legendgroup": name or "success",
        "x": [say(v) for v in rows[x]],
        "y": rows.value.tolist(),
        "error_y": errors(rows),
        "line": {"color": hue, "dash": dash, "width": 1.8},
        "marker": {"color": hue, "symbol": MARKERS[number % len(MARKERS)], "size": 6},
    }


# --- as Markdown --------------------------------------------------------------------------------


def markdown(page: Book) -> str:
    """The book in Markdown: claims and tables; the figures stand in the page."""
    lines = [
        f"# {page.title}",
        "",
        *(f"- {line}" for line in page.says),
        "",
        *_tables(page.matrices),
    ]
    for c in page.chapters:
        lines += [f"## {c.title}", ""] + ([f"The paper: {c.paper}", ""] if c.paper else [])
        for claim in c.claims:
            against = f" {claim.exceptions}" if claim.against else ""
            lines.append(
                f"- **{claim.verdict}** ({claim.clear} beyond the intervals): "
                f"{claim.says}.{against}"
            )
        lines.append("")
        lines += _tables(c.matrices)
    return "\n".join(lines)


def _tables(matrices: Sequence[Matrix]) -> Iterator[str]:
    for m in matrices:
        yield from (
            m.title,
            "",
            "| | " + " | ".join(m.columns) + " |",
            "|---" * (len(m.columns) + 1) + "|",
        )
        for name, cells in m.rows:
            yield (
                f"| {name} | "
                + " | ".join(f"{v.text} {v.interval}".strip() for v in cells)
                + " |"
            )
        yield ""
