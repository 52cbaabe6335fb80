"""The verbs ``feathide audit``, ``demo`` and ``check``."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feathide.cli.display import as_json, show, void
from feathide.cli.ending import said
from feathide.cli.options import Json, Out, PlanFile, plan_of, with_plan_flags
from feathide.cli.running import now, progress_display

if TYPE_CHECKING:
    from feathide.auditing.run import Audit
    from feathide.plans.plan import Plan

__all__ = ["audit", "check", "demo"]


Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help=(
            "A first report in about five minutes on two cores: fewer images, steps and "
            "attacks, marked as a quick look."
        ),
    ),
]
Workers = Annotated[
    int, typer.Option(min=1, help="Number of parallel processes on this machine.")
]
Shard = Annotated[
    str | None,
    typer.Option(
        help="i/n: start with part i of n; run one per machine on the same folder."
    ),
]
Engine = Annotated[
    str, typer.Option(help="local, or ray for a Ray cluster (feathide[ray]).")
]
Address = Annotated[
    str | None, typer.Option(help="The Ray cluster's address; a local one by default.")
]
Gpus = Annotated[
    float,
    typer.Option(min=0, help="GPUs per task on Ray; 0.25 lets four tasks share one."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 3 when a sanity check fails.")
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        help=(
            "Exit with 4 if this holds for any attack and guard: 'slips_through_fpr10 > "
            "0.05'."
        )
    ),
]
Track = Annotated[
    str | None,
    typer.Option(
        help=(
            "Also log the numbers and the report to tensorboard, mlflow or wandb (extras of "
            "these names)."
        )
    ),
]
Reuse = Annotated[
    bool,
    typer.Option(
        "--reuse",
        help=(
            "Continue in a folder that holds another plan: shared work is kept, the table "
            "is replaced."
        ),
    ),
]


@with_plan_flags
def audit(
    plan: PlanFile = None,
    *,
    context: typer.Context,
    out: Out = Path("runs/audit"),
    quick: Quick = False,
    changes: dict[str, Any],
    workers: Workers = 1,
    shard: Shard = None,
    engine: Engine = "local",
    address: Address = None,
    gpus: Gpus = 0.0,
    strict: Strict = False,
    fail_if: FailIf = None,
    track: Track = None,
    reuse: Reuse = False,
    json: Json = False,
) -> None:
    """Audit a guarded classifier: train or load it, attack it with and without hiding, and count
    what slips through.
    """
    with said():
        _check_engine(engine)
        put = _tracker(track)
        chosen = plan_of(plan, **changes)
        if quick:
            from feathide.auditing.quick import quick_look

            chosen = quick_look(chosen, out, command=whole(context, out))
        found = _audit(
            chosen,
            out,
            workers=workers,
            shard=_part(shard),
            engine=engine,
            address=address,
            gpus=gpus,
            reuse=reuse,
            fail_if=fail_if or (),
        )
        put(found)
        _shown(found, json)
        _end(found, strict)


def _check_engine(engine: str) -> None:
    if engine not in ("local", "ray"):
        from feathide.errors import unknown

        raise unknown("engine", engine, ("local", "ray"))


def _tracker(track: str | None) -> "Callable[[Audit], None]":
    """Where ``--track`` says that the numbers go, found before any long work."""
    if track is None:
        return lambda found: None
    from feathide.auditing.tracking import tracker

    return tracker(track)


def _end(found: "Audit", strict: bool) -> None:
    """Print what failed, and exit with its code."""
    if found.failed:
        typer.secho(
            f"feathide: sanity checks failed: {', '.join(found.failed)}; {void(found)}",
            err=True,
            fg="red",
        )
        if strict:
            raise typer.Exit(3)
    if holds := [f"{j.text}: {j.detail}" for j in found.judged if j.holds]:
        typer.secho(f"feathide: {'; '.join(holds)}", err=True, fg="red")
        raise typer.Exit(4)


def demo(*, out: Out = Path("runs/demo"), json: Json = False) -> None:
    """Run the whole audit on synthetic radiograph-like images: a few minutes, no data needed."""
    with said():
        _shown(_audit(plan_of(Path(__file__).parents[1] / "demo.yaml"), out), json)


@with_plan_flags
def check(
    plan: PlanFile = None,
    *,
    out: Out = Path("runs/audit"),
    changes: dict[str, Any],
    json: Json = False,
) -> None:
    """Check a plan and its data, try a few attack steps, and estimate time and memory."""
    with said():
        chosen = plan_of(plan, **changes)
        from feathide.auditing.preflight import check_plan

        forecast = check_plan(chosen, out)
        if json:
            from json import dumps

            told = {
                "seconds": forecast.seconds,
                "stages": dict(forecast.stages),
                "mebibytes": forecast.mebibytes,
            }
            typer.echo(dumps({**told, "says": forecast.says}))
            return
        typer.echo("\n".join(forecast.says))


def _audit(plan: "Plan", out: Path, *, workers: int = 1, **how: Any) -> "Audit":
    import torch

    from feathide.auditing.run import audit as run_audit

    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    with progress_display() as progress:
        return run_audit(plan, out, progress=progress, workers=workers, **how)


def _shown(found: "Audit", json: bool) -> None:
    if json:
        typer.echo(as_json(found))
    elif now().quiet:
        typer.echo(found.verdict.headline)
    else:
        show(found)


def whole(context: typer.Context, out: Path) -> str:
    """The command of a quick look without what made it one."""
    words = ["feathide", str(context.info_name)]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        source = context.get_parameter_source(name)
        said_here = source is not None and source.name == "COMMANDLINE"
        if not said_here or name in ("quick", "out", "quiet", "verbose", "json"):
            continue
        flag = parameter.opts[0] if parameter.opts[0].startswith("-") else ""
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [flag] * bool(flag) + [str(one)] * (one is not True)
    return shlex.join([*words, "--out", f"{out}-whole"])


def _part(shard: str | None) -> tuple[int, int] | None:
    """``1/4`` -> (0, 4): people count from one."""
    from feathide.errors import expected

    if shard is None:
        return None
    i, slash, n = shard.partition("/")
    if not (slash and i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise expected(
            "--shard must be i/n with i from 1 to n",
            got=shard,
            do="say 1/4 for the first of four",
        )
    return int(i) - 1, int(n)
