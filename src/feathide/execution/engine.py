"""Runs a graph of tasks on a store: skips what is done, resumes what was killed, alone or with
others on a folder.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import get_context, parent_process
from typing import Literal, Protocol, Self
from zlib import crc32

import cloudpickle
import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars

from feathide.errors import InputError, expected, unknown
from feathide.execution.store import Store
from feathide.models.heap import keep_freed_memory

__all__ = [
    "Interrupted",
    "Progress",
    "RichProgress",
    "Status",
    "Task",
    "lines_of",
    "paced",
    "run",
    "tell",
]

POLL = 0.2  # seconds between two looks at the tasks that other processes work on


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


@dataclass(frozen=True)
class Status:
    """What a display shows: the task at hand, ``done`` of ``total``, tasks per second, seconds
    ``left`` or NaN. ``part`` and ``what``: how far a long task is that tells it.
    """

    stage: str
    title: str
    done: int
    total: int
    rate: float
    left: float
    part: tuple[int, int] | None = None
    what: str = ""


class Progress(Protocol):
    """Who wants to know how far the work is."""

    def show(self, status: Status) -> None:
        """Called before each task and after the last one."""

    def say(self, sentence: str) -> None:
        """Called when something happened that a person should know."""


Tell = Callable[[int, int, str], None]
LISTENER: ContextVar[Tell | None] = ContextVar("LISTENER", default=None)


def tell(done: int, total: int, what: str) -> None:
    """Called from inside a long task's work: the display shows how far it is; without a display
    nothing happens.
    """
    listener = LISTENER.get()
    if listener is not None:
        listener(done, total, what)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence that says what is kept and how to go on."""


def run(
    tasks: Iterable[Task],
    store: Store,
    *,
    progress: Progress | None = None,
    shard: tuple[int, int] | None = None,
    workers: int = 1,
    finish: float | None = None,
) -> tuple[str, ...]:
    """Computes every task whose file is missing or damaged, needs first; gives the keys that this
    process computed.

    Any number of processes may run the same graph on one folder: each claims a task, works on it,
    and goes on with the next that is free, until all are done. ``shard`` (i, n) makes this one
    begin with the i-th of n parts (i from 0) and then help with the rest, so a part that never
    starts costs time but no result. ``workers`` > 1 starts that many processes here, each with as
    many torch threads as this one; ``work`` must then survive ``cloudpickle``. ``finish``: seconds
    of what comes after the tasks; where it is given, their weights are foreseen seconds, too.

    Raises ``InputError`` for a graph that cannot be run, for what a task refuses (its key in
    front), ``RuntimeError`` that names the key if a task fails otherwise, ``Interrupted`` on
    Ctrl-C. In each case finished tasks stay and the same call goes on from there."""
    order = ordered(tasks)
    display = progress or Silent()
    try:
        missing = missing_of(order, store, display)
        with _helpers(order, missing, store, min(workers, len(missing)) - 1):
            clock = Clock(order, missing, display, workers=workers, finish=finish)
            return _work_off(_own_first(order, shard), missing, store, clock)
    except KeyboardInterrupt:
        raise interrupted(order, store) from None


def interrupted(order: Sequence[Task], store: Store) -> Interrupted:
    """The end by Ctrl-C, in a sentence."""
    done = sum(store.done(task.key) for task in order)
    kept = f"stopped: {done} of {len(order)} steps are done and kept in {store.folder}"
    return Interrupted(f"{kept}; run the same command again to go on")


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


def _own_first(order: tuple[Task, ...], shard: tuple[int, int] | None) -> tuple[Task, ...]:
    if shard is None:
        return order
    i, n = shard
    if not 0 <= i < n:
        raise expected(
            "a shard i/n must have 0 <= i < n",
            got=f"{i}/{n}",
            do=f"number the {max(n, 1)} parts from 0",
        )
    return tuple(sorted(order, key=lambda task: crc32(task.key.encode()) % n != i))


def missing_of(order: Sequence[Task], store: Store, progress: Progress) -> set[str]:
    """The keys to compute. Damaged files are said and removed, under a claim: others may just
    have replaced them.
    """
    missing = {task.key for task in order if not store.sound(task.key)}
    for key in (task.key for task in order):
        if store.path(key).exists() and (
            key in missing or store.path(key, ".claim").exists()
        ):
            # this also clears the claim of a process that was killed right after its work
            with store.claim(key) as mine:
                if mine and not store.sound(key):
                    store.remove(key)
                    progress.say(f"{key} is damaged; it is computed again")
    return missing


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


def _work_off(
    order: Sequence[Task], missing: set[str], store: Store, clock: "Clock"
) -> tuple[str, ...]:
    frontier = Frontier(order, missing)
    ready = frontier.ready
    busy: list[Task] = []  # claimed by other processes
    computed: list[str] = []
    while ready or busy:
        if not ready:
            time.sleep(POLL)
            ready.extend(busy)
            busy.clear()
        task = ready.popleft()
        if not store.done(task.key):
            LISTENER.set(clock.before(task))
            match attempt(task, store):
                case "busy":
                    busy.append(task)
                    continue
                case "computed":
                    computed.append(task.key)
                    ready.extendleft(reversed(busy))  # time has passed: look at them again
                    busy.clear()
        clock.after(task)
        frontier.finish(task)
    return tuple(computed)


def attempt(task: Task, store: Store) -> Literal["busy", "computed", "done"]:
    """Computes and saves one task, unless another process is at it or was faster."""
    with store.claim(task.key) as mine:
        if not mine:
            return "busy"
        # finished by another process between the look and the claim
        if store.done(task.key):
            return "done"
        store.save(task.key, _result(task, store))
        return "computed"


def _result(task: Task, store: Store) -> Mapping[str, np.ndarray]:
    try:
        return task.work(store)
    except InputError as error:
        raise InputError(f"{task.key}: {error}") from error
    except Exception as error:
        raise RuntimeError(
            f"the step {task.key} failed with {type(error).__name__}: {error}; what is done "
            f"is kept in {store.folder}"
        ) from error


@contextmanager
def _helpers(
    order: Sequence[Task], missing: set[str], store: Store, count: int
) -> Iterator[None]:
    """``count`` further processes on the same folder, ended with the block."""
    if count < 1:
        yield
        return
    blob = cloudpickle.dumps((order, missing, store, torch.get_num_threads()))
    helpers = [
        get_context("spawn").Process(target=_help, args=(blob,), daemon=True)
        for _ in range(count)
    ]
    for helper in helpers:
        helper.start()
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()


def _help(blob: bytes) -> None:
    # bytes of our own parent, through a pipe
    order, missing, store, threads = cloudpickle.loads(blob)
    torch.set_num_threads(threads)
    keep_freed_memory()
    # the parent takes up the failed task and says what is wrong with it
    with suppress(KeyboardInterrupt, Exception):
        _work_off(order, missing, store, Clock(order, missing, Tied()))


class Tied:
    """The display of a helper: shows nothing, and ends a helper whose parent is gone."""

    def show(self, status: Status) -> None:
        parent = parent_process()
        if parent is None or not parent.is_alive():
            raise KeyboardInterrupt

    def say(self, sentence: str) -> None:
        pass


class Silent:
    """A progress display that shows nothing."""

    def show(self, status: Status) -> None:
        pass

    def say(self, sentence: str) -> None:
        pass


class Clock:
    """Counts tasks and weights and tells a ``Progress``; what was done before the start does not
    enter the rate.

    The time left is the weight ahead times the seconds that a unit of weight has taken. Where
    weights are foreseen seconds (``finish`` is given), a tenth of them stands beside what was
    measured, so that the first tasks do not decide alone.
    """

    def __init__(
        self,
        order: Sequence[Task],
        missing: Set[str],
        progress: Progress,
        *,
        workers: int = 1,
        finish: float | None = None,
    ) -> None:
        self._progress = progress
        self._total = len(order)
        self._ahead = sum(task.weight for task in order if task.key in missing)
        self._old, self._new, self._weight = len(order) - len(missing), 0, 0.0
        self._finish = finish or 0.0
        # foreseen weight, and the seconds that it is foreseen to take
        self._prior = 0.0 if finish is None else self._ahead / 10
        self._foreseen = self._prior / max(workers, 1)
        self._start = time.monotonic()

    def before(self, task: Task) -> Tell:
        """Shows the task; what comes back takes what a long task tells of itself (see
        ``tell``).
        """
        self._progress.show(self._status(task))
        begun = time.monotonic()

        def inside(done: int, total: int, what: str) -> None:
            status = self._status(task, done / max(total, 1))
            spent = max(time.monotonic() - begun, 1e-9)
            title = f"{what}, step {done}/{total}, {paced(done / spent)}"
            self._progress.show(replace(status, title=title, part=(done, total), what=what))

        return inside

    def after(self, task: Task) -> None:
        self._new += 1
        self._weight += task.weight
        self._ahead -= task.weight
        if self._old + self._new == self._total:
            self._progress.show(self._status(task))

    def _status(self, task: Task, share: float = 0.0) -> Status:
        spent = max(time.monotonic() - self._start, 1e-9)
        done = self._weight + share * task.weight
        ahead = self._ahead - share * task.weight
        pace = (
            (spent + self._foreseen) / (done + self._prior) if done + self._prior else None
        )
        left = float("nan") if pace is None else max(ahead, 0.0) * pace + self._finish
        return Status(
            task.stage,
            task.title,
            self._old + self._new,
            self._total,
            self._new / spent,
            left,
        )


class RichProgress:
    """One live line with stage, count, rate and time left; where stderr is no terminal, one plain
    line per stage, and one whenever a long task has something new to tell, such as an epoch.

    ``quiet``: only what a person should know (``say``). ``verbose``: a line for every task.

    A context manager: ``with RichProgress() as progress: run(tasks, store, progress=progress)``.
    """

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, verbose: bool = False
    ) -> None:
        self._console = console or Console(stderr=True)
        self._quiet, self._verbose = quiet, verbose
        self._live = self._console.is_terminal and not quiet and not verbose
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=self._console,
            transient=True,
        )
        self._bar = self._bars.add_task("", total=None, pace="")
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def show(self, status: Status) -> None:
        if self._live:
            label = escape(f"{status.stage} {status.title}".strip())
            self._bars.update(
                self._bar,
                description=label,
                completed=status.done,
                total=status.total,
                pace=_pace(status),
            )
        elif not self._quiet and (line := lines_of(status, self._said, self._verbose)):
            self.say(line)

    def say(self, sentence: str) -> None:
        # no width: a line of a log must not break inside a figure
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def lines_of(status: Status, said: set[str], every: bool = False) -> str:
    """What a display of lines says about a status: a new stage, what a long task has new to tell,
    or with ``every`` each task; "" where ``said`` has it already.
    """
    told = f"{status.stage}: {status.title}" if status.what or every else status.stage
    mark = f"{status.stage}: {status.what}" if status.what else told
    if mark in said:
        return ""
    said.add(mark)
    pace = "" if math.isnan(status.left) else f", {_left(status)}"
    return f"{told} ({status.done}/{status.total}{pace})"


def paced(rate: float) -> str:
    """A rate in words: "3.1/s", "12.0/min"."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"


def _left(status: Status) -> str:
    return f"{timedelta(seconds=round(status.left))} left"


def _pace(status: Status) -> str:
    if math.isnan(status.left):
        return ""
    return f"{paced(status.rate)}, {_left(status)}"
