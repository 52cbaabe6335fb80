"""Runs a graph of tasks on a store: skips what is done, resumes what was killed, alone or with
others on a folder.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Literal
from zlib import crc32

import cloudpickle
import numpy as np
import torch

from feathide.errors import InputError, expected
from feathide.execution.graph import Frontier, Task, ordered
from feathide.execution.progress import LISTENER, Clock, Progress, Silent, Tied, tell
from feathide.execution.store import Store
from feathide.models.heap import keep_freed_memory

__all__ = [
    "Interrupted",
    "Progress",
    "Task",
    "run",
    "tell",
]

POLL = 0.2  # seconds between two looks at the tasks that other processes work on


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
