"""The verb of whole programmes: ``feathide study paper --scale small``."""

from pathlib import Path
from typing import Annotated

import typer

from feathide.cli.ending import said
from feathide.cli.running import now, progress_display

__all__ = ["study"]


def study(
    programme: Annotated[
        str,
        typer.Argument(
            help="A programme by name (paper), or a folder with questions.yaml."
        ),
    ] = "paper",
    *,
    scale: Annotated[
        str, typer.Option(help="small: an hour on two cores; full: a day on a GPU.")
    ] = "small",
    data: Annotated[
        Path,
        typer.Option(help="The folder that holds the images; docs/datasets.md says which."),
    ] = Path("data"),
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder of the results; finished work in it is kept."
        ),
    ] = Path("runs/study"),
    only: Annotated[
        str | None, typer.Option(help="Ask only these questions: detection,rivals.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Number of parallel processes.")] = 1,
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse", help="Continue in the folder of a programme that has changed since."
        ),
    ] = False,
) -> None:
    """Run a whole programme of questions on real data, such as all experiments of the paper, and
    judge its claims.
    """
    with said():
        import torch

        from feathide.analysis.overview import worked_off
        from feathide.studies.programme import load_programme, run_programme

        chosen = load_programme(programme, scale=scale, data=data)
        if now().device is not None:
            chosen = chosen.model_copy(update={"device": now().device})
        if workers > 1:
            torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        with progress_display() as progress:
            page = run_programme(
                chosen,
                out,
                worked_off(workers, progress),
                only=only.split(",") if only else (),
                reuse=reuse,
            )
        typer.echo(page.with_suffix(".md").read_text().partition("\n## ")[0])
        typer.echo(f"study   {page.resolve()}")
