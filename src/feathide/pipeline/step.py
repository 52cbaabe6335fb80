"""A step of an audit, declared: what decides its files, which steps come first, what it does.

The key of a file is a digest of what its step declares, so that a file is found again exactly
while nothing that decides it has changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from feathide.execution.digests import digest, fields_of
from feathide.plans.plan import Cell

__all__ = ["Arrays", "Decision", "Step", "changed"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Decision:
    """What decides a result: names and values. The values are digested in their order; names are
    for people, and may be corrected without work being done again. A value may be a decision.
    """

    values: Mapping[str, object]

    @cached_property
    def digest(self) -> str:
        return digest(
            [v.digest if isinstance(v, Decision) else v for v in self.values.values()]
        )


@dataclass(frozen=True, eq=False)
class Step:
    """One step: it makes one file, or one for each batch of a split.

    Args:
        folder: The folder of the store that its files stand in.
        label: What a person reads in the key, before the digests.
        decided_by: What decides its files; each of these gives one digest of the key. What is
            decided by the images of a condition has the name of that condition, which holds a
            digest, as its label.
        file: The name of its files below the label and digests; "" for one file without.
        batches: Gives how many files it makes, one for each batch; None for one.
        needs: Gives the steps all of whose files must be there first.
        follows: Gives the steps of which the file of the same batch must be there first.
        work: ``work(context, *arguments)``, with the number of the batch as a last argument where
            there are batches; gives the arrays of one file.
        arguments: Plain values, since the work may be done in another process.
    """

    folder: str
    work: Callable[..., Arrays]
    label: str = ""
    decided_by: Sequence[Decision] = ()
    file: str = ""
    batches: Callable[[], int] | None = None
    needs: Callable[[], Sequence["Step"]] = tuple
    follows: Callable[[], Sequence["Step"]] = tuple
    arguments: tuple[Any, ...] = field(default=())

    @cached_property
    def name(self) -> str:
        """The label and the digests: ``pgd-hfc-<digest>``."""
        return "-".join(filter(None, [self.label, *(d.digest for d in self.decided_by)]))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys of its files, in the order of the batches."""
        head = f"{self.folder}/{self.name}" + (f"/{self.file}" if self.file else "")
        if self.batches is None:
            return (head,)
        return tuple(f"{head}-{i:04d}" for i in range(self.batches()))

    @property
    def key(self) -> str:
        """The key of its only file."""
        (key,) = self.keys
        return key


def changed(before: Sequence[Decision], after: Sequence[Decision]) -> list[str]:
    """Why two keys of one kind of step differ: the names of what differs.

    Example:
        ```python
        changed(one.steps.train.decided_by, other.steps.train.decided_by)  # ["train.epochs"]
        ```
    """
    then, now = (dict(v for d in side for v in _flat(d)) for side in (before, after))
    missing = object()
    names = dict.fromkeys([*then, *now])
    return [n for n in names if then.get(n, missing) != now.get(n, missing)]


def _flat(decision: Decision, head: str = "") -> Iterator[tuple[str, str]]:
    """Every name with the digest of its value; of a decision inside, its own names."""
    for name, value in decision.values.items():
        if isinstance(value, Decision):
            yield from _flat(value, f"{head}{name}: ")
        elif isinstance(value, Cell):
            # "attack.steps" needs no "cell" before it
            for part, inner in fields_of(value).items():
                yield from _leaves(f"{head}{part}", inner)
        else:
            yield from _leaves(f"{head}{name}", value)


def _leaves(name: str, value: object) -> Iterator[tuple[str, str]]:
    """``train.epochs`` with its digest, and so on: the fields of a part of the plan, at any
    depth.
    """
    inside = fields_of(value)
    if not inside:
        yield name, digest(value)
    for part, inner in inside.items():
        yield from _leaves(f"{name}.{part}", inner)
