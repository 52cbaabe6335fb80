"""Names with arguments, as plans spell them: ``torchattacks:PGD(steps=20)``. The whole name is
the identity of a row in tables and keys.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from feathide.errors import expected

__all__ = ["Layout", "Tokens", "aimed_at", "floor_of", "parsed", "separated", "spelled"]

# objectives that are the score of one detector
BUILT_FOR = {"kde": ("kd",), "lid": ("lid",)}
# where the channels of a layer's output stand (feathide.models.layouts)
Layout = Literal["auto", "channels-first", "channels-last", "tokens"]
Tokens = Literal["mean", "class", "both"]  # what becomes the feature of a layer of tokens
CALL = re.compile(r"^(?P<name>[^()]+)\((?P<arguments>.*)\)$", re.DOTALL)


def spelled(name: str, options: Mapping[str, Any]) -> str:
    """``spelled("art:Square", {"eps": 0.1})`` is ``"art:Square(eps=0.1)"``; arguments in the name
    already stay, unless they are given anew.
    """
    base, own = parsed(name)
    arguments = ", ".join(f"{k}={v!r}" for k, v in sorted({**own, **options}.items()))
    return f"{base}({arguments})" if arguments else base


def parsed(name: str) -> tuple[str, dict[str, Any]]:
    """The name without its arguments, and these: keywords with literal values. Nothing is
    evaluated.
    """
    match = CALL.match(name.strip())
    if match is None:
        return name.strip(), {}
    try:
        call = ast.parse(f"_({match['arguments']})", mode="eval").body
        if (
            not isinstance(call, ast.Call)
            or call.args
            or not all(k.arg for k in call.keywords)
        ):
            raise SyntaxError
        return match["name"].strip(), {
            str(k.arg): ast.literal_eval(k.value) for k in call.keywords
        }
    except (SyntaxError, ValueError):
        raise expected(
            f"the arguments of {match['name']} must be keywords with plain values",
            got=match["arguments"],
            do="write them as in torchattacks:PGD(steps=20, random_start=False)",
        ) from None


def separated(text: str) -> list[str]:
    """``a, b(c=1, d=2)`` -> ``["a", "b(c=1, d=2)"]``: commas within brackets do not separate."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def aimed_at(
    objective: str, options: Mapping[str, Any], audited: Sequence[str]
) -> tuple[str, ...]:
    """The detectors that a detector-aware objective attacks: those that its options name, the one
    behind the colon (``evade:maha``), the one that it is built from (``kde``, ``lid``), and
    otherwise all that are ``audited``.
    """
    kind, _, detector = objective.partition(":")
    named = options.get("detectors") or ()
    if named:
        return (named,) if isinstance(named, str) else tuple(map(str, named))
    return (detector,) if detector else BUILT_FOR.get(kind, tuple(audited))


def floor_of(floor: object) -> float | None:
    """The quantile of the clean energies that HFC's ``floor`` stands for: "median", "none"
    (None), or a number.
    """
    if floor in ("median", "none"):
        return 0.5 if floor == "median" else None
    if isinstance(floor, int | float) and not isinstance(floor, bool) and 0 <= floor <= 1:
        return float(floor)
    raise expected(
        "the floor of HFC must be median, none or a quantile in [0, 1]",
        got=repr(floor),
        do="say floor: none for the paper's form",
    )
