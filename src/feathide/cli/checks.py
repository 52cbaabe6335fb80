"""The verb ``feathide conformance``: what a new attack, detector or objective must obey, one line
per check.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from feathide.cli.ending import said

if TYPE_CHECKING:
    from feathide.checks import Verdict

__all__ = ["conformance"]

MARKS = {"pass": ("pass", "green"), "fail": ("FAIL", "red"), "none": ("n/a ", "yellow")}


def conformance(
    name: Annotated[
        str,
        typer.Argument(
            help=(
                "What to check: package.module:Name, package.module.Name or file.py:Name "
                "(its code is run), or a name of the catalogue."
            )
        ),
    ],
    *,
    kind: Annotated[
        str | None,
        typer.Option(
            help="detector, attack or objective, where the object itself does not tell."
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave out the check of this name; may be repeated."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document for machines.")
    ] = False,
) -> None:
    """Run the conformance checks on your own attack, detector or objective; exit with 4 if one
    fails.
    """
    with said():
        import torch

        from feathide.checks import check

        # the networks are tiny: threads would only wait for one another
        torch.set_num_threads(1)
        found: list[Verdict] = []
        for verdict in check(name, kind=kind, skip=skip or ()):
            found.append(verdict)
            if not json:
                _show(verdict)
        if json:
            _print_json(name, found)
        if any(v.status == "fail" for v in found):
            raise typer.Exit(4)


def _show(verdict: "Verdict") -> None:
    mark, colour = MARKS[verdict.status]
    typer.echo(
        f"{typer.style(mark, fg=colour)}  {verdict.check}"
        + (f": {verdict.detail}" if verdict.detail else "")
    )


def _print_json(name: str, found: "list[Verdict]") -> None:
    import json
    from dataclasses import asdict

    passed = all(v.status != "fail" for v in found)
    typer.echo(
        json.dumps({"name": name, "passed": passed, "checks": [asdict(v) for v in found]})
    )
