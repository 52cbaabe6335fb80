"""How a verb of the command line ends: input errors in one sentence, and what Ctrl-C keeps."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from feathide.cli.running import now

__all__ = ["said"]

STOPPED = "stopped; finished work is kept; run the same command to continue"


@contextmanager
def said() -> Iterator[None]:
    """Input errors become one sentence and exit code 2; Ctrl-C says what is kept, exit code
    130.
    """
    from feathide.errors import InputError

    try:
        yield
    except InputError as error:
        if now().verbose:
            traceback.print_exc()
        typer.secho(f"feathide: {error}", err=True, fg="red")
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stop:
        typer.secho(f"feathide: {str(stop) or STOPPED}", err=True)
        raise typer.Exit(130) from None
