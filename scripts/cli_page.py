"""Write docs/cli.md, the reference of the command line, from the commands themselves.

    python scripts/cli_page.py

A test holds the page equal to what this script writes.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from feathide.cli import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
KINDS = {str: "text", int: "whole number", float: "number", Path: "path"}

INTRO = """\
# Command line

Every command and its options; `feathide COMMAND --help` shows the same in the terminal. Exit codes
are explained under [Continuous integration](index.md#in-continuous-integration).
"""


def page() -> str:
    """The text of docs/cli.md."""
    sections = [_section(*command) for command in sorted(_commands(app, "feathide"))]
    return "\n".join([INTRO, *sections])


def _commands(
    group: typer.Typer, path: str
) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """The full name, the function and the closing words of every command."""
    for command in group.registered_commands:
        if command.hidden:  # the old name of a verb
            continue
        function = command.callback
        assert function is not None
        name = command.name or function.__name__.replace("_", "-")
        yield f"{path} {name}", function, command.epilog or ""
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, f"{path} {inner.name}")


def _section(path: str, function: Callable[..., Any], epilog: str) -> str:
    rows, arguments = [], []
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] is typer.Context:
            continue
        kind, info = get_args(hints[name])[:2]
        required = parameter.default is parameter.empty
        if isinstance(info, ArgumentInfo):
            word = (info.metavar or name).upper()
            arguments.append(word if required else f"[{word}]")
            names, row = f"`{word}`", 0
        else:
            # inside Annotated, typer keeps the first name as the default
            first = (info.default,) if isinstance(info.default, str) else ()
            given = (*first, *info.param_decls) or (f"--{name.replace('_', '-')}",)
            names, row = ", ".join(f"`{n}`" for n in given), len(rows)
        default = "required" if required else _default(parameter.default)
        meaning = " ".join((info.help or "").split()).replace("|", "\\|")
        rows.insert(row, f"| {names} | {_kind(kind)} | {default} | {meaning} |")
    lines = [f"## {path}", "", " ".join((function.__doc__ or "").split()), ""]
    lines += ["```text", " ".join([path, *arguments, "[OPTIONS]"]), "```", ""]
    lines += [
        "| argument or option | value | default | meaning |",
        "|---|---|---|---|",
        *rows,
    ]
    examples = re.findall(r"`(feathide [^`]+)`", epilog)
    if examples:
        lines += ["", "```bash", *examples, "```"]
    return "\n".join([*lines, ""])


def _kind(annotation: Any) -> str:
    """What to write, in words; nothing for a flag."""
    if annotation is bool:
        return ""
    if annotation in KINDS:
        return KINDS[annotation]
    inner = [a for a in get_args(annotation) if a is not NoneType]
    if get_origin(annotation) in (list, tuple):
        return f"{_kind(inner[0])}, may be repeated"
    return " or ".join(map(_kind, inner))


def _default(value: Any) -> str:
    return "" if value in (None, False, ()) or value == [] else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
