"""Task, and the order of a graph of them: needs first."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from feathide.errors import expected, unknown
from feathide.execution.store import Store

__all__ = [
    "Task",
]


@dataclass(frozen=True)
class Task:
    """One file and how it is made: ``work(store)`` gives the arrays to save under ``key`` once
    all ``needs`` are there.

    The key names its content: it holds a digest of all that decides it. ``stage`` is what a
    person reads on the display, ``title`` says which part of the stage, ``weight`` is the cost
    relative to other tasks (it serves the time left only)."""

    key: str
    needs: tuple[str, ...]
    work: Callable[[Store], Mapping[str, np.ndarray]]
    stage: str = "work"
    title: str = ""
    weight: float = 1.0


def ordered(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """The tasks with every need before its user. Raises ``InputError`` for unknown or cyclic
    needs and double keys.
    """
    table: dict[str, Task] = {}
    for task in tasks:
        if table.setdefault(task.key, task) is not task:
            raise expected(
                "every task must have its own key",
                got=f"{task.key!r} twice",
                do="put what differs into the key's digest",
            )
    unmet = {task.key: len(set(task.needs)) for task in table.values()}
    users: dict[str, list[Task]] = {key: [] for key in table}
    for task in table.values():
        for need in dict.fromkeys(task.needs):
            if need not in table:
                raise unknown(f"need of task {task.key!r}", need, table)
            users[need].append(task)
    ready = deque(task for task in table.values() if not unmet[task.key])
    found: list[Task] = []
    while ready:
        task = ready.popleft()
        found.append(task)
        for user in users[task.key]:
            unmet[user.key] -= 1
            if not unmet[user.key]:
                ready.append(user)
    if len(found) < len(table):
        stuck = sorted(set(table) - {task.key for task in found})
        raise expected(
            "needs must not go in a circle",
            got=", ".join(stuck[:6]),
            do="drop one need of these tasks",
        )
    return tuple(found)


class Frontier:
    """The tasks that can be worked on: ``ready`` grows as needs are ``finish``-ed."""

    def __init__(self, order: Sequence[Task], missing: Set[str]) -> None:
        needs = {
            t.key: [n for n in dict.fromkeys(t.needs) if n in missing]
            for t in order
            if t.key in missing
        }
        self._unmet = {key: len(unmet) for key, unmet in needs.items()}
        self._users: dict[str, list[Task]] = {key: [] for key in needs}
        for task in order:
            for need in needs.get(task.key, ()):
                self._users[need].append(task)
        self.ready = deque(task for task in order if self._unmet.get(task.key) == 0)

    def finish(self, task: Task) -> None:
        for user in self._users[task.key]:
            self._unmet[user.key] -= 1
            if not self._unmet[user.key]:
                self.ready.append(user)
