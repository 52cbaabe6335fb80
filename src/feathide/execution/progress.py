"""How far the work is: what is counted, and the display that shows it."""

import math
import time
from collections.abc import Callable, Sequence, Set
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import parent_process
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars

from feathide.execution.graph import Task

__all__ = [
    "Progress",
    "RichProgress",
    "Status",
    "lines_of",
    "paced",
    "tell",
]


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
        self._console = console or Console(stderr=True, emoji=False)
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
