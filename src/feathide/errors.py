"""Error messages: every one says what was expected, what was got and what to do.

``InputError`` is the only exception that the command line turns into one sentence and exit code
2."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "InputError",
    "about",
    "check_kind",
    "choose",
    "expected",
    "few",
    "first_line",
    "unknown",
]

LONGEST = 3000  # characters of a sentence

T = TypeVar("T")


class InputError(ValueError):
    """An input that cannot be used; the message says what was expected, got, and what to do.

    The command line prints the message in one line and exits with 2.
    """

    # the field of a plan that it is about, and whether no plan has that field
    field: tuple[str | int, ...] = ()
    unknown_field: bool = False

    def __str__(self) -> str:
        """One line for a terminal, whatever the names and values in it are: without control
        characters, and cut in the middle.
        """
        text = "".join(
            c if c.isprintable() else repr(c)[1:-1] for c in str(self.args[0]).strip()
        )
        return (
            text
            if len(text) <= LONGEST
            else f"{text[: LONGEST // 2]} ... {text[5 - LONGEST // 2 :]}"
        )


def expected(what: str, *, got: object, do: str) -> InputError:
    """The error ``<what>, got <got>; <do>``: ``x must lie in [0, 1], got [-1024, 3071]; pass
    box=... or rescale``.
    """
    return InputError(f"{what}, got {got}; {do}")


def unknown(kind: str, name: str, options: Iterable[str]) -> InputError:
    """The error for a name that no table holds: lists the options and offers the closest
    match.
    """
    known = list(options)
    close = get_close_matches(str(name)[:200], known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(known[:60]) + (
        f", ... ({len(known)} in all)" if len(known) > 60 else ""
    )
    return InputError(f"unknown {kind} {name!r}; {hint}known: {shown}")


def check_kind(what: str, value: object, kind: type, *, do: str) -> None:
    """Refuse a value of another kind than ``what`` must be."""
    if not isinstance(value, kind):
        got = repr(value) if isinstance(value, int | float | str) else type(value).__name__
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise expected(f"{what} must be {article} {kind.__name__}", got=got[:200], do=do)


def about(error: InputError, *field: str | int, unknown: bool = False) -> InputError:
    """``error``, which is about this ``field`` of a plan."""
    error.field, error.unknown_field = field, unknown
    return error


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of ``table`` under ``name``, or the error that offers the nearest one."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def first_line(error: BaseException) -> str:
    """An exception as part of a sentence."""
    text = str(error).strip().splitlines()
    return text[0][:300].rstrip(".") if text else type(error).__name__


def few(values: "Sequence[Any] | np.ndarray", n: int = 5) -> str:
    """The first ``n`` values for a message, and how many there are."""
    more = f", ... ({len(values)} in all)" if len(values) > n else ""
    return ", ".join(map(str, values[:n])) + more
