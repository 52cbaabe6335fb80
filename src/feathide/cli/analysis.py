"""The verbs of the analyses: ``feathide explain direction|stress|outliers|transfer`` and
``feathide ood``.

Each takes a plan and the folder of an audit (or a new one): what the audit has finished is used,
the rest is computed and kept there. It writes a table ``explain-<verb>.csv`` with intervals and a
page ``explain-<verb>.html``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathide.cli.ending import said
from feathide.cli.options import plan_of
from feathide.cli.running import progress_display, working
from feathide.execution.remote import near

if TYPE_CHECKING:
    import pandas as pd

    from feathide.analysis.overview import Work
    from feathide.pipeline.context import Context
    from feathide.plans.plan import Plan
    from feathide.report.sheet import Sheet

__all__ = ["explain", "ood"]

explain = typer.Typer(
    help="Why attacks are caught: the analyses of an audit.", no_args_is_help=True
)

PlanFile = Annotated[Path, typer.Argument(help="The YAML plan of the audit.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        parser=near,
        metavar="PATH",
        help="Folder or URL of the audit, or a new one.",
    ),
]
Workers = Annotated[int, typer.Option(help="Number of parallel processes.")]


@explain.command(epilog="Example: `feathide explain direction plan.yaml --out runs/chest`")
@working
def direction(
    plan: PlanFile, *, out: Out = Path("runs/audit"), workers: Workers = 1
) -> None:
    """Do attacks push features in one fixed direction, along the head's weights?"""
    with said():
        from feathide.analysis.overview import direction as whole

        context = _lab(plan_of(plan), out)
        with _working(workers) as work:
            _write(out, "direction", *whole(context, work))


@explain.command(
    epilog="Example: `feathide explain stress chest.yaml cifar.yaml --seeds 0,1 --out runs/stress`"
)
@working
def stress(
    plans: Annotated[list[Path], typer.Argument(help="One plan, or several to compare.")],
    *,
    out: Out = Path("runs/audit"),
    seeds: Annotated[
        str | None,
        typer.Option(help="Run every plan with each of these seeds, for example 0,1."),
    ] = None,
    workers: Workers = 1,
) -> None:
    """How far can an attacker drive the mean activation of each layer?"""
    with said():
        from feathide.analysis.overview import stress as whole

        chosen = [
            p
            for path in plans
            for p in [plan_of(path, seed=seed) for seed in _numbers(seeds)]
            or [plan_of(path)]
        ]
        contexts = [_lab(plan, out, first=plan is chosen[0]) for plan in chosen]
        with _working(workers) as work:
            _write(out, "stress", *whole(contexts, work))


@explain.command(epilog="Example: `feathide explain outliers plan.yaml --out runs/chest`")
@working
def outliers(
    plan: PlanFile,
    *,
    out: Out = Path("runs/audit"),
    picture: Annotated[str, typer.Option(help="pca, or umap (the extra umap).")] = "pca",
    workers: Workers = 1,
) -> None:
    """How far are attacked features from the clean model, and which layer catches them?"""
    with said():
        from feathide.analysis.overview import outliers as whole
        from feathide.auditing.outliers import PICTURES
        from feathide.errors import choose

        choose("picture", picture, PICTURES)
        context = _lab(plan_of(plan), out)
        with _working(workers) as work:
            _write(out, "outliers", *whole(context, work, picture=picture))


@explain.command(
    epilog="Example: `feathide explain transfer plan.yaml --networks tiny,resnet18 --seeds 0,1`"
)
@working
def transfer(
    plan: PlanFile,
    *,
    out: Out = Path("runs/audit"),
    networks: Annotated[
        str | None, typer.Option(help="Architectures; the plan's by default.")
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            help="Training seeds; every architecture is trained with each of them."
        ),
    ] = "0,1",
    halves: Annotated[
        bool, typer.Option("--halves", help="Also train on either half of the patients.")
    ] = False,
    jury: Annotated[
        bool, typer.Option(help="Also attack all other networks at once.")
    ] = True,
    workers: Workers = 1,
) -> None:
    """What can an attacker do with other networks, but without the guarded one?"""
    with said():
        from feathide.analysis.overview import transfer as whole

        context = _lab(plan_of(plan), out)
        archs = networks.split(",") if networks else ()
        with _working(workers) as work:
            done = whole(
                context,
                work,
                networks=archs,
                seeds=_numbers(seeds),
                halves=halves,
                jury=jury,
            )
        _write(out, "transfer", *done)


def ood(
    plan: PlanFile,
    *,
    out: Out = Path("runs/audit"),
    near: Annotated[
        list[str] | None, typer.Option(help="A data set of the same kind; may be repeated.")
    ] = None,
    far: Annotated[
        list[str] | None, typer.Option(help="A data set of another kind; may be repeated.")
    ] = None,
    workers: Workers = 1,
) -> None:
    """Does the score notice lesions, acquisition shifts and foreign images that no one
    attacked?
    """
    with said():
        from feathide.analysis.overview import ood as whole

        context = _lab(plan_of(plan), out)
        with _working(workers) as work:
            _write(out, "ood", *whole(context, work, near=near or (), far=far or ()))


def _lab(plan: "Plan", out: Path, *, first: bool = True) -> "Context":
    """The checked context of a plan. The folder must be new or hold the ``first`` plan; what
    others make is kept there, too, under keys of its own.
    """
    from feathide.auditing.run import checked
    from feathide.execution.digests import digest
    from feathide.execution.store import open_folder

    context = checked(plan, out)
    if first:
        open_folder(out, digest([plan, context.cases.digest]))
    return context


@contextmanager
def _working(workers: int) -> "Iterator[Work]":
    """Tasks run with a display."""
    from feathide.analysis.overview import worked_off

    with progress_display() as progress:
        yield worked_off(workers, progress)


def _write(out: Path, verb: str, table: "pd.DataFrame", page: "Sheet") -> None:
    from feathide.execution.whole_files import write_whole
    from feathide.report.sheet import sheet

    files: dict[str, Callable[[], str]] = {
        "csv": lambda: table.to_csv(index=False),
        "html": lambda: sheet(page),
    }
    for ending, text in files.items():
        path = out / f"explain-{verb}.{ending}"
        write_whole(path, text().encode())
        typer.echo(str(path))


def _numbers(text: str | None) -> list[int]:
    from feathide.errors import expected

    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise expected(
            "seeds must be whole numbers", got=text, do="write them as 0,1"
        ) from None
