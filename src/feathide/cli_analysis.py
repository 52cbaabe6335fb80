"""The verbs of the analyses: ``feathide explain direction|stress|outliers|transfer`` and ``feathide ood``.

Each takes a plan and the folder of an audit (or a new one): what the audit has finished is used, the rest is computed and kept there. It writes a table
``explain-<verb>.csv`` with intervals and a page ``explain-<verb>.html``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathide.ending import said

if TYPE_CHECKING:
    import pandas as pd

    from feathide.report.sheet import Sheet
    from feathide.study.engine import Task
    from feathide.study.lab import Lab
    from feathide.study.plan import Plan

__all__ = ["explain", "ood"]

explain = typer.Typer(help="Why attacks are caught: the analyses of an audit.", no_args_is_help=True)

PlanFile = Annotated[Path, typer.Argument(help="The YAML plan of the audit.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the audit, or a new one.")]
Workers = Annotated[int, typer.Option(help="Processes that work side by side.")]


@explain.command(epilog="Example: `feathide explain direction plan.yaml --out runs/chest`")
def direction(plan: PlanFile, *, out: Out = Path("runs/audit"), workers: Workers = 1) -> None:
    """Do attacks push features in one fixed direction, along the head's weights?"""
    with said():
        from feathide.analysis.direction import direction_frame, direction_tasks
        from feathide.analysis.pages import direction_page

        lab = _lab(_plan(plan), out)
        _run(lab, direction_tasks(lab), workers)
        table = direction_frame(lab)
        _write(out, "direction", table, direction_page(table))


@explain.command(epilog="Example: `feathide explain stress chest.yaml cifar.yaml --seeds 0,1 --out runs/stress`")
def stress(
    plans: Annotated[list[Path], typer.Argument(help="One plan, or several to compare.")],
    *,
    out: Out = Path("runs/audit"),
    seeds: Annotated[str | None, typer.Option(help="For example 0,1: every plan with each of these seeds.")] = None,
    workers: Workers = 1,
) -> None:
    """How far can an attacker drive the mean activation of each layer?"""
    with said():
        import pandas as pd

        from feathide.analysis.pages import stress_page
        from feathide.analysis.stress import stress_frame, stress_tasks

        tables: list[pd.DataFrame] = []
        for path in plans:
            for chosen in [_plan(path, seed=seed) for seed in _numbers(seeds)] or [_plan(path)]:
                lab = _lab(chosen, out, first=not tables)
                _run(lab, stress_tasks(lab), workers)
                tables.append(stress_frame(lab))
        table = pd.concat(tables, ignore_index=True)
        _write(out, "stress", table, stress_page(table))


@explain.command(epilog="Example: `feathide explain outliers plan.yaml --out runs/chest`")
def outliers(plan: PlanFile, *, out: Out = Path("runs/audit"), workers: Workers = 1) -> None:
    """How far do attacked features lie from the clean model, and which layer catches them?"""
    with said():
        from feathide.analysis.outliers import curves, outlier_frame, outlier_tasks
        from feathide.analysis.pages import outlier_page

        lab = _lab(_plan(plan), out)
        _run(lab, outlier_tasks(lab), workers)
        table = outlier_frame(lab)
        _write(out, "outliers", table, outlier_page(table, curves(lab)))


@explain.command(epilog="Example: `feathide explain transfer plan.yaml --networks tiny,resnet18 --seeds 0,1`")
def transfer(
    plan: PlanFile,
    *,
    out: Out = Path("runs/audit"),
    networks: Annotated[str | None, typer.Option(help="Architectures; that of the plan by default.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the training; every network is trained with each.")] = "0,1",
    halves: Annotated[bool, typer.Option("--halves", help="Also train on either half of the patients.")] = False,
    jury: Annotated[bool, typer.Option(help="Also craft on all other networks at once.")] = True,
    workers: Workers = 1,
) -> None:
    """What can an attacker do who has other networks, but not the one that is guarded?"""
    with said():
        from feathide.analysis import transfer as t
        from feathide.analysis.pages import transfer_page

        lab = _lab(_plan(plan), out)
        archs = networks.split(",") if networks else [lab.plan.network.arch]
        chosen = t.members(archs, _numbers(seeds), halves=halves)
        _run(lab, t.member_tasks(lab, chosen), workers)
        labs = [(m.name, t.lab_with(lab, m)) for m in chosen]
        for _, member in labs:
            _run(member, t.craft_tasks(member), workers)
        _run(lab, t.trial_tasks([m for _, m in labs], jury=jury), workers, alone=True)
        table = t.transfer_frame(labs, jury=jury)
        _write(out, "transfer", table, transfer_page(table))


def ood(
    plan: PlanFile,
    *,
    out: Out = Path("runs/audit"),
    near: Annotated[list[str] | None, typer.Option(help="A data set of the same kind; may be repeated.")] = None,
    far: Annotated[list[str] | None, typer.Option(help="A data set of another world; may be repeated.")] = None,
    workers: Workers = 1,
) -> None:
    """Does the score notice lesions, acquisition shifts and foreign images that no one attacked?"""
    with said():
        from feathide.analysis.pages import ood_page
        from feathide.analysis.strangers import foreign, lesion_pictures, ood_frame, ood_tasks, scale_of

        lab = _lab(_plan(plan), out)
        strangers = [foreign(lab, path, kind) for kind, paths in (("near", near), ("far", far)) for path in paths or []]
        _run(lab, ood_tasks(lab, strangers), workers)
        table = ood_frame(lab, strangers)
        _write(out, "ood", table, ood_page(table, lesion_pictures(lab), scale_of(lab)))


def _plan(path: Path, **changes: object) -> "Plan":
    from feathide.study.plan import load_plan

    return load_plan(path, **changes)


def _lab(plan: "Plan", out: Path, *, first: bool = True) -> "Lab":
    """The checked lab of a plan. The folder must be new or hold the ``first`` plan; what others make is kept there, too, under keys of its own."""
    from feathide.study.run import checked
    from feathide.study.store import digest, open_folder

    lab = checked(plan, out)
    if first:
        open_folder(out, digest([plan, lab.cases.digest]))
    return lab


def _run(lab: "Lab", own: "list[Task]", workers: int, *, alone: bool = False) -> None:
    """The tasks and, unless they stand ``alone``, those of the audit that they need."""
    from feathide.analysis.rows import with_needs
    from feathide.study.engine import RichProgress, run
    from feathide.study.stages import tasks

    with RichProgress() as progress:
        run(own if alone else with_needs(own, tasks(lab)), lab.store, progress=progress, workers=workers)


def _write(out: Path, verb: str, table: "pd.DataFrame", page: "Sheet") -> None:
    from feathide.report.sheet import sheet
    from feathide.study.store import write_whole

    files: dict[str, Callable[[], str]] = {"csv": lambda: table.to_csv(index=False), "html": lambda: sheet(page)}
    for ending, text in files.items():
        path = out / f"explain-{verb}.{ending}"
        write_whole(path, text().encode())
        typer.echo(str(path))


def _numbers(text: str | None) -> list[int]:
    from feathide.errors import expected

    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise expected("seeds must be whole numbers", got=text, do="write them as 0,1") from None
