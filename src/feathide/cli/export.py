"""The verb ``feathide export``: the adversarial images of an audit as files like their
sources, and its failures for code scanning.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathide.cli.ending import said
from feathide.cli.options import Run
from feathide.errors import expected

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["export"]


def export(
    run: Run,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A new folder; nothing is overwritten."),
    ] = None,
    sarif: Annotated[
        Path | None,
        typer.Option(
            help="Write this SARIF 2.1.0 file: an alert for each sanity check and condition "
            "that failed."
        ),
    ] = None,
    plan: Annotated[
        str,
        typer.Option(
            help="The plan's path in the repository, to which the alerts are attached."
        ),
    ] = "plan.yaml",
    attack: Annotated[
        str | None, typer.Option(help="Only this attack, such as pgd.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="Only this objective, such as hfc.")
    ] = None,
    slipped_only: Annotated[
        bool,
        typer.Option(
            "--slipped-only",
            help="Only images that fool the classifier and that some guard accepts.",
        ),
    ] = False,
    deidentify: Annotated[
        bool,
        typer.Option(
            "--deidentify", help="Empty names, dates and texts; hash ids and file names."
        ),
    ] = False,
    jpeg: Annotated[
        int | None,
        typer.Option(
            help="Write pictures as JPEG of this quality, to see what survives an archive."
        ),
    ] = None,
) -> None:
    """Write the adversarial images of an audit in the format of their source, read them back and
    predict again; or write its failures as SARIF.
    """
    with said():
        if sarif is not None:
            _write_sarif(run, sarif, plan)
        if out is None:
            if sarif is None:
                raise expected(
                    "what to export must be said",
                    got="neither --out nor --sarif",
                    do="give --out FOLDER for images, --sarif FILE for code scanning",
                )
            return
        from feathide.auditing.export import export_images

        table = export_images(
            run,
            out,
            attack=attack,
            objective=objective,
            slipped_only=slipped_only,
            deidentify=deidentify,
            jpeg=jpeg,
        )
        _tell(table)
        typer.echo(f"table   {out / 'export.csv'}")


def _write_sarif(run: Path, out: Path, plan: str) -> None:
    from feathide.auditing.sarif import export_sarif

    alerts = export_sarif(run, out, plan=plan)
    typer.echo(f"sarif   {out}: {alerts or 'no'} alert{'s' * (alerts != 1)}")


def _tell(table: "pd.DataFrame") -> None:
    """How many files of each attack were written, and still fool the classifier."""
    for (name, hidden, eps), part in table.groupby(
        ["attack", "objective", "eps"], sort=False
    ):
        fooled = int((part.prediction == part.target).sum())
        typer.echo(
            f"{name}+{hidden} at eps {eps:.4g}: {len(part)} files; "
            f"{int(part.survived.sum())} of {fooled} that fool the classifier "
            "still do when read back from the disk"
        )
    if table.empty:
        typer.echo("there is no image to export")
