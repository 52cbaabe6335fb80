"""The names of weights: a file's brought into agreement with a network's."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor, nn

from feathide.errors import expected
from feathide.models.weight_files import some

__all__ = [
    "Rename",
]

Rename = Mapping[str, str] | Literal["in order"]


def fitting(
    state: Mapping[str, Tensor], model: nn.Module, rename: Rename | None
) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The state dict without the prefix that makes most names agree with the network's: any, as
    wrapping modules put it; the names that lie outside of it and are left out, as the parts of a
    training module are; and how the names were changed, in words. Raises ``InputError`` if two
    prefixes, such as a network and its averaged copy, fit equally well."""
    if rename == "in order":
        return _in_order(state, model), (), "renamed in order"
    state = _renamed(state, rename or {})
    own = model.state_dict().keys()
    counts = Counter(k[: -len(o)] for k in state for o in _endings(k) if o in own)
    most = max(counts.values(), default=0)
    best = [p for p, n in counts.items() if n == most and 2 * n >= len(own)]
    if len(best) > 1 and "" not in best:
        plain = [p for p in best if "ema" not in re.split(r"[._]", p.lower())]
        best = plain or best
        if len(best) > 1:
            names = ", ".join(p.rstrip(".") for p in best)
            raise expected(
                "weights must hold one copy of the network",
                got=f"several ({names})",
                do="save the right one alone",
            )
    prefix = "" if not best or "" in best else best[0]
    said = [f"{old!r} as {new!r}" for old, new in (rename or {}).items()] + (
        [f"names without {prefix}"] if prefix else []
    )
    left = tuple(k for k in state if not k.startswith(prefix))
    return (
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
        left,
        ", ".join(said),
    )


def _renamed(state: Mapping[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict with the beginnings of names replaced. Raises ``InputError`` for a beginning
    that no name has, and for two of one name.
    """
    for old in rename:
        if not any(k.startswith(old) for k in state):
            what = f"rename: {old!r} must be what some names in the file begin with"
            raise expected(what, got=some([*state]), do="correct network.rename")
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        old = max((o for o in rename if name.startswith(o)), key=len, default="")
        new = rename.get(old, "") + name[len(old) :]
        if new in found:
            raise expected(
                "renamed weights must keep different names",
                got=f"{new} twice",
                do="correct network.rename",
            )
        found[new] = value
    return found


def _in_order(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under the network's names, the first as the first. Raises ``InputError`` where
    numbers or shapes differ.
    """
    own = {
        k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")
    }
    given = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if len(own) != len(given):
        got = f"{len(given)} in the file and {len(own)} in the network"
        raise expected(
            "weights in order must be as many as the network's",
            got=got,
            do="rename them by a table",
        )
    for (mine, a), (name, b) in zip(own.items(), given.items(), strict=True):
        if a.shape != b.shape:
            got = f"{name} {tuple(b.shape)} for {mine} {tuple(a.shape)}"
            raise expected(
                "weights in order must have the network's shapes",
                got=got,
                do="rename them by a table",
            )
    return dict(zip(own, given.values(), strict=True))


def _endings(name: str) -> Iterator[str]:
    """A name without each of its prefixes: a.b.c, b.c, c."""
    yield name
    for at, letter in enumerate(name):
        if letter == ".":
            yield name[at + 1 :]
