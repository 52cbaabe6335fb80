"""What a finished audit shows on the screen."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from feathide.auditing.run import Audit

__all__ = ["as_json", "screen", "show", "summary", "void"]

PIPED = 10_000  # columns of what is no terminal


def screen() -> "Console":
    """Where tables are shown: as wide as the terminal; without a terminal as wide as they need,
    so that no line breaks inside a figure.
    """
    from rich.console import Console

    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=PIPED, emoji=False)


def show(found: "Audit") -> None:
    """The tables and sentences of a finished audit."""
    from rich.markup import escape

    console = screen()
    # nothing fooled the classifier where there is none
    if (found.table.metric == "auc").any():
        console.print(summary(found.table, "auc"))
    console.print(summary(found.table, "slips_through_fpr10"))
    reads: dict[str, list[str]] = {}
    for f in found.verdict.findings:
        reads.setdefault(" and ".join(f.reads), []).append(f.detector)
    spaces = "; ".join(
        f"{', '.join(names)} ({where})" for where, names in reads.items() if where
    )
    console.print(escape(f"What each guard reads: {spaces}."), highlight=False)
    style = "bold" if found.verdict.evidence else "bold red"
    console.print(f"[{style}]{escape(found.verdict.headline)}[/{style}]", highlight=False)
    for sentence in (found.verdict.attacked, found.verdict.strength, found.verdict.slipped):
        console.print(escape(sentence), highlight=False)
    from feathide.models.memory import peak

    typer.echo(f"memory  {peak():.0f} MiB at the peak of a process")
    typer.echo(f"table   {found.folder / 'results.csv'}")
    typer.echo(f"report  {found.report.resolve()}")


def void(found: "Audit") -> str:
    """What the numbers of a run with a failed sanity check are worth, and what became of its
    conditions.
    """
    open_ = [j.text for j in found.judged if not j.holds]
    told = f", and it is unknown whether {', '.join(open_)} is met" if open_ else ""
    return f"the numbers are not evidence{told}"


def summary(table: "pd.DataFrame", metric: str) -> "Table":
    """One metric, attacks by detectors."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from feathide.metrics.registry import title_of

    rows = table[table.metric == metric]
    success = (
        table[table.metric == "success"].set_index(["attack", "objective", "eps"]).value
    )
    detectors = list(dict.fromkeys(rows.detector))
    shown = Table(
        title=title_of(metric),
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    shown.add_column("attack", min_width=6, overflow="fold")
    for column in ("eps", "success"):
        shown.add_column(column, justify="right", no_wrap=True)
    for column in detectors:
        shown.add_column(escape(column), justify="right", min_width=4, overflow="fold")
    for (name, hidden, eps), part in rows.groupby(
        ["attack", "objective", "eps"], sort=False
    ):
        value = part.set_index("detector").value
        fooled = success.get((name, hidden, eps))
        shown_as = "worst of all" if name == "worst" else f"{name}+{hidden}"
        cells = [f"{value[d]:.2f}" if d in value else "-" for d in detectors]
        shown.add_row(
            shown_as, f"{eps:.3g}", "-" if fooled is None else f"{fooled:.2f}", *cells
        )
    return shown


def as_json(found: "Audit") -> str:
    """A finished audit as one JSON document."""
    import json

    rows = json.loads(found.table.to_json(orient="records"))
    return json.dumps(
        {
            "folder": str(found.folder),
            "report": str(found.report),
            "verdict": found.verdict.headline,
            "reads": {f.detector: list(f.reads) for f in found.verdict.findings},
            "evidence": found.verdict.evidence,
            "sanity_checks_failed": list(found.failed),
            "quick_look": found.quick,
            "table": rows,
        }
    )
