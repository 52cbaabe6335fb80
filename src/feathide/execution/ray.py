"""The same tasks on a Ray cluster, into the same folder or URL: every node must see it under the
same path.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from feathide.errors import InputError, expected
from feathide.execution.engine import POLL, attempt, interrupted, missing_of
from feathide.execution.graph import Frontier, Task, ordered
from feathide.execution.progress import Clock, Progress, Silent
from feathide.execution.remote import home_of, near
from feathide.execution.store import Store
from feathide.models.heap import keep_freed_memory

__all__ = ["run_on_ray"]

RETRIES = 20  # times that a task is begun anew after its worker or node was lost
# bytes for Ray's own object store on this machine: results go through files
MEMORY = 100 * 2**20


def run_on_ray(
    tasks: Iterable[Task],
    store: Store,
    *,
    address: str | None = None,
    progress: Progress | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> tuple[str, ...]:
    """``run`` on the cluster at ``address`` ("auto", "ray://host:port"), or on this machine
    alone; gives the computed keys.

    A task takes ``cpus`` and ``gpus`` (0.25: four tasks share a GPU) and as many torch threads as
    this process has, so the files are those of ``run``. What a lost worker was at is begun anew
    elsewhere. Raises what ``run`` raises, and ``InputError`` without Ray, without a cluster at
    the address, and for more GPUs than its nodes have."""
    order, display = ordered(tasks), progress or Silent()
    store = Store(store.folder.resolve())
    missing = missing_of(order, store, display)
    try:
        with _connected(address) as ray:
            # it would wait for ever
            if gpus > (there := ray.cluster_resources().get("GPU", 0)):
                do = "start nodes with ray start --num-gpus, or ask for less"
                raise expected(
                    f"the Ray cluster must have the {gpus:g} GPUs of a task",
                    got=f"{there:g}",
                    do=do,
                )
            step = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_step)
            return _drive(ray, step, order, missing, store, display)
    except KeyboardInterrupt:
        raise interrupted(order, store) from None


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        import ray
    except ImportError:
        raise expected(
            "the Ray engine needs Ray",
            got="no module 'ray'",
            do="pip install 'feathide[ray]'",
        ) from None
    if ray.is_initialized():
        yield ray
        return
    here = {"address": "local", "include_dashboard": False, "object_store_memory": MEMORY}
    try:
        ray.init(
            **({"address": address} if address else here),
            log_to_driver=False,
            logging_level="warning",
        )
    except (ConnectionError, ValueError) as error:
        raise expected(
            "there must be a Ray cluster at the address",
            got=f"{address}: {error}",
            do="run ray start first",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _drive(
    ray: Any,
    step: Any,
    order: Sequence[Task],
    missing: set[str],
    store: Store,
    progress: Progress,
) -> tuple[str, ...]:
    frontier, clock = Frontier(order, missing), Clock(order, missing, progress)
    home = home_of(store.folder)
    # a near copy is in another place on every machine
    place = home.url if home else str(store.folder)
    running: dict[Any, Task] = {}
    computed: list[str] = []
    while frontier.ready or running:
        room = max(64, 2 * int(ray.cluster_resources().get("CPU", 0))) - len(running)
        for task in [
            frontier.ready.popleft() for _ in range(min(room, len(frontier.ready)))
        ]:
            running[step.remote(task, place, torch.get_num_threads())] = task
        ray.wait(list(running), timeout=1.0)
        finished, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
        for reference in finished:
            task = running.pop(reference)
            if _outcome(ray, reference, task) == "computed":
                computed.append(task.key)
            clock.before(task)
            clock.after(task)
            frontier.finish(task)
    return tuple(computed)


def _step(task: Task, place: str, threads: int) -> tuple[str, str]:
    """Runs on a worker. Errors come back as sentences, since not every exception survives the
    way.
    """
    store = Store(near(place))
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        while (found := attempt(task, store)) == "busy":
            time.sleep(POLL)
    except InputError as error:
        return "refused", str(error)
    except Exception as error:
        return "failed", str(error)
    return found, ""


def _outcome(ray: Any, reference: Any, task: Task) -> str:
    try:
        state, sentence = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"the step {task.key} was lost {RETRIES + 1} times: {type(error).__name__}: {error}"
        ) from error
    if state == "refused":
        raise InputError(sentence)
    if state == "failed":
        raise RuntimeError(sentence)
    return str(state)
