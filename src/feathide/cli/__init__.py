"""The command line. torch is imported inside a verb only, so that ``--help`` is instant.

Exit codes: 0 done; 1 the program failed; 2 the input cannot be used, with one sentence why;
3 a sanity check failed, with ``--strict``; 4 a condition of ``--fail-if`` is met (and 3 does not
apply), or a conformance check failed; 5 ``verify`` found a difference; 130 stopped with Ctrl-C,
finished work kept."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from feathide.cli.analysis import explain, ood
from feathide.cli.arms_race import arms_race
from feathide.cli.attack import attack, bench
from feathide.cli.audit import audit, check, demo
from feathide.cli.checks import conformance
from feathide.cli.ending import said
from feathide.cli.export import export
from feathide.cli.results import compare, report, verify
from feathide.cli.running import working
from feathide.cli.study import study
from feathide.cli.train import datasets, train
from feathide.models.heap import keep_freed_memory
from feathide.plans.renamed import VERBS, was_renamed

__all__ = ["app", "main"]

app = typer.Typer(
    help=(
        "Does the detector that guards your medical-image classifier hold against an attacker "
        "who hides in its feature space?"
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# each verb with an example that the tests parse, in the order of the help; those that work on
# images take --quiet, --verbose and --device
WORKING: tuple[tuple[Callable[..., None], str], ...] = (
    (
        audit,
        "Example: `feathide audit --data chest.npz --network resnet18 --eps 4/255 --out "
        "runs/chest --quick`",
    ),
    (demo, "Example: `feathide demo --out runs/demo`"),
    (check, "Example: `feathide check plan.yaml`"),
    (
        train,
        "Example: `feathide train --data chest.npz --network resnet18 --out "
        "chest.safetensors`",
    ),
    (study, "Example: `feathide study paper --scale small --data images --out runs/study`"),
    (
        attack,
        "Example: `feathide attack chest.npz --network resnet18 --weights chest.safetensors "
        "--attacks pgd --eps 4/255`",
    ),
    (arms_race, "Example: `feathide arms-race plan.yaml --out runs/chest --rounds 3`"),
    (ood, "Example: `feathide ood plan.yaml --out runs/chest`"),
)
OTHERS: tuple[tuple[Callable[..., None], str], ...] = (
    (
        datasets,
        "Examples: `feathide datasets chest.npz`, `feathide datasets --fetch pneumoniamnist "
        "--size 64`",
    ),
    (bench, "Example: `feathide bench`"),
    (conformance, "Example: `feathide conformance my_package.detectors:MyDetector`"),
    (
        export,
        "Example: `feathide export runs/chest --out exported --attack pgd --objective hfc`",
    ),
    (report, "Example: `feathide report runs/chest`"),
    (compare, "Example: `feathide compare runs/chest runs/chest-more-steps`"),
    (verify, "Example: `feathide verify runs/chest --sample 200`"),
)
for _verb, _example in WORKING:
    app.command(epilog=_example)(working(_verb))
for _verb, _example in OTHERS:
    app.command(epilog=_example)(_verb)
app.add_typer(explain, name="explain")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"feathide {version('feathide')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="The version."),
    ] = False,
) -> None:
    """Does the detector that guards your medical-image classifier hold against an attacker who
    hides in its feature space?
    """


def _old(name: str, new: str) -> Callable[[typer.Context], None]:
    """A verb that only tells its new name."""

    def told(_context: typer.Context) -> None:
        with said():
            raise was_renamed(name, new)

    told.__doc__ = f"The old name of {new}."
    return told


_anything: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}
for _name, _new in VERBS.items():
    app.command(_name, hidden=True, context_settings=_anything)(_old(_name, _new))


def main() -> None:
    """The entry point of the ``feathide`` command."""
    keep_freed_memory()
    app()


if __name__ == "__main__":
    main()
