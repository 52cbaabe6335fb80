"""The verb ``feathide arms-race``: rounds of a defender who learns from the last attack and an
attacker who attacks again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathide.cli.display import screen
from feathide.cli.ending import said
from feathide.cli.options import plan_of
from feathide.cli.running import progress_display
from feathide.execution.remote import near

if TYPE_CHECKING:
    import pandas as pd

    from feathide.execution.graph import Task

__all__ = ["arms_race"]


def arms_race(
    plan: Annotated[Path, typer.Argument(help="The YAML plan of the audit.")],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            parser=near,
            metavar="PATH",
            help="Folder or URL of the audit, or a new one.",
        ),
    ] = Path("runs/audit"),
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="The largest number of rounds; the race ends earlier once nothing changes.",
        ),
    ] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Number of parallel processes.")] = 1,
) -> None:
    """What happens when the guard learns from the attack, and the attacker answers?"""
    with said():
        from feathide.auditing.run import checked
        from feathide.execution.digests import digest
        from feathide.execution.engine import run
        from feathide.execution.store import open_folder
        from feathide.execution.whole_files import write_whole
        from feathide.pipeline.listing import tasks
        from feathide.pipeline.rows import with_needs
        from feathide.studies.arms_race import arms_race as fight

        context = checked(plan_of(plan), out)
        open_folder(out, digest([context.plan, context.cases.digest]))

        def work_off(own: Sequence["Task"]) -> None:
            with progress_display() as progress:
                run(
                    with_needs(own, tasks(context)),
                    context.store,
                    progress=progress,
                    workers=workers,
                )

        table = fight(context, rounds=rounds, work_off=work_off)
        write_whole(out / "arms_race.csv", table.to_csv(index=False).encode())
        _show(table)
        typer.echo(str(out / "arms_race.csv"))


def _show(table: "pd.DataFrame") -> None:
    """Slips-through per round: detectors by rounds, the better of both attacks on each case."""
    from rich.table import Table

    from feathide.metrics.registry import title_of

    title = f"{title_of('slips_through_fpr10')}, by round"
    shown = Table(title=title, title_justify="left")
    shown.add_column("guard")
    worst = table[table.objective == "worst"].pivot(
        index="detector", columns="round", values="value"
    )
    for number in worst.columns:
        shown.add_column(f"round {number}", justify="right")
    for name in dict.fromkeys(table.detector):
        shown.add_row(str(name), *(f"{v:.2f}" for v in worst.loc[name]))
    screen().print(shown)
