"""Error messages: every one says what was expected, what was got and what to do.

``InputError`` is the only exception that the command line turns into one sentence and exit code 2.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

__all__ = ["InputError", "choose", "expected", "unknown"]

T = TypeVar("T")


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what to do about it."""


def expected(what: str, *, got: object, do: str) -> InputError:
    """The error ``<what>, got <got>; <do>``: ``x must lie in [0, 1], got [-1024, 3071]; pass box=... or rescale``."""
    return InputError(f"{what}, got {got}; {do}")


def unknown(kind: str, name: str, options: Iterable[str]) -> InputError:
    """The error for a name that no table holds: lists the options and offers the closest match."""
    known = list(options)
    close = get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(known[:60]) + (f", ... ({len(known)} in all)" if len(known) > 60 else "")
    return InputError(f"unknown {kind} {name!r}; {hint}known: {shown}")


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of ``table`` under ``name``, or the error that offers the nearest one."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
