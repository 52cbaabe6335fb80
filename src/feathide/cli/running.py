"""What every verb that works takes: ``--quiet``, ``--verbose`` and ``--device``."""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from feathide.execution.progress import RichProgress

__all__ = ["Running", "now", "progress_display", "working"]

Verb = TypeVar("Verb", bound=Callable[..., None])


@dataclass(frozen=True)
class Running:
    """How the verb at hand was called."""

    quiet: bool = False
    verbose: bool = False
    device: str | None = None


RUNNING: ContextVar[Running] = ContextVar("RUNNING", default=Running())  # noqa: B039

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no tables; only errors.")
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Print every step, and where an error comes from."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda or cuda:1; a GPU where there is one, by default."),
]
COMMON: dict[str, tuple[Any, Any]] = {
    "device": (Device, None),
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
}


def now() -> Running:
    """How the verb at hand was called."""
    return RUNNING.get()


def working(verb: Verb) -> Verb:
    """``verb`` with the common options, which it finds in ``now()``."""
    signature = inspect.signature(verb, eval_str=True)
    added = [
        inspect.Parameter(
            n, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default
        )
        for n, (kind, default) in COMMON.items()
    ]

    @functools.wraps(verb)
    def called(*args: Any, **given: Any) -> None:
        common = {name: given.pop(name) for name in COMMON}
        before = RUNNING.set(Running(**common))
        try:
            verb(*args, **given)
        finally:
            RUNNING.reset(before)

    parameters = [*signature.parameters.values(), *added]
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called  # type: ignore[return-value]


def progress_display() -> "RichProgress":
    """The display of a long run, as loud as the verb was told to be."""
    from feathide.execution.progress import RichProgress

    return RichProgress(quiet=now().quiet, verbose=now().verbose)
