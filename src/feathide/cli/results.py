"""The verbs of finished audits: rebuild the report, show what changed from one run to another,
check whether a run is still intact.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathide.cli.display import screen
from feathide.cli.ending import said
from feathide.cli.options import Json, Run
from feathide.execution.remote import near

if TYPE_CHECKING:
    from feathide.auditing.compare import Comparison

__all__ = ["compare", "report", "verify"]


def report(
    run: Run,
    *,
    pdf: Annotated[
        Path | None,
        typer.Option(
            help="Also print it to this PDF, with Chromium, Chrome or Edge if one is installed."
        ),
    ] = None,
) -> None:
    """Rebuild report.html of a finished audit, without attacking anything."""
    with said():
        from feathide.auditing.compare import render_again
        from feathide.report.pdf import browser, print_pdf

        if pdf is not None:
            browser()  # what cannot be printed is said before the page is made
        page = render_again(run).resolve()
        typer.echo(f"report  {page}")
        if pdf is not None:
            print_pdf(page, pdf)
            typer.echo(f"pdf     {pdf.resolve()}")


def compare(
    run_a: Annotated[
        Path,
        typer.Argument(
            parser=near, metavar="RUN_A", help="The folder or URL of a finished audit."
        ),
    ],
    run_b: Annotated[
        Path, typer.Argument(parser=near, metavar="RUN_B", help="Another one.")
    ],
    *,
    keys: Annotated[
        bool,
        typer.Option(
            "--keys",
            help="Instead, name what changed the key of each step: why its work is not shared.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show what changed from RUN_A to RUN_B: the plan, and success, AUC and slips-through, with
    paired intervals.
    """
    with said():
        if keys:
            from feathide.auditing.key_changes import key_changes

            _show_keys(key_changes(run_a, run_b), json)
            return
        from feathide.auditing.compare import compare as compare_runs

        found = compare_runs(run_a, run_b)
        if json:
            typer.echo(_as_json(found))
        else:
            _show(found)


def verify(
    run: Run,
    *,
    sample: Annotated[
        int,
        typer.Option(min=0, help="Number of stored adversarial images to predict again."),
    ] = 64,
    json: Json = False,
) -> None:
    """Check a finished audit again: files, plan, data and weights, a sample of its images, its
    tables. Exit code 5 if anything differs.
    """
    with said():
        from dataclasses import asdict
        from json import dumps

        from feathide.auditing.verify import verify as verify_run

        found = verify_run(run, sample=sample)
        if json:
            typer.echo(dumps(asdict(found)))
        else:
            for difference in found.differences:
                typer.echo(f"{difference.where}: {difference.what}")
            seen = (
                f"{found.files} files, {found.images} images, {found.numbers} rows of tables "
                "checked"
            )
            typer.echo(
                f"{seen}: {len(found.differences) or 'no'} "
                f"difference{'s' * (len(found.differences) != 1)}"
            )
        if found.differences:
            raise typer.Exit(5)


def _show_keys(found: dict[str, list[str]], json: bool) -> None:
    """A line for each step whose key changed."""
    if json:
        from json import dumps

        typer.echo(dumps(found))
        return
    for step, names in found.items():
        typer.echo(f"{step}: {', '.join(names)}")
    if not found:
        typer.echo("both runs have the same keys")


def _as_json(found: "Comparison") -> str:
    import json

    fields = {name: {"a": a, "b": b} for name, (a, b) in found.fields.items()}
    return json.dumps(
        {"fields": fields, "changes": json.loads(found.table.to_json(orient="records"))}
    )


def _show(found: "Comparison") -> None:
    from rich.markup import escape
    from rich.table import Table

    from feathide.metrics.registry import title_of

    console = screen()
    for name, (a, b) in found.fields.items():
        console.print(escape(f"{name}: {a} -> {b}"), highlight=False)
    if found.table.empty:
        console.print("no attack is in both runs")
        return
    shown = Table(
        title="From A to B; the interval is paired, at 95 %", title_justify="left"
    )
    for name in ("attack", "guard", "metric"):
        shown.add_column(name, overflow="fold")
    for name in ("A", "B", "difference", "interval"):
        shown.add_column(name, justify="right")
    for row in found.table.itertuples():
        interval = f"{row.low:+.3f} to {row.high:+.3f}" if row.paired else "not paired"
        shown.add_row(
            f"{row.attack}+{row.objective}",
            escape(str(row.detector)),
            title_of(str(row.metric)),
            f"{row.a:.3f}",
            f"{row.b:.3f}",
            f"{row.difference:+.3f}",
            interval,
        )
    console.print(shown)
