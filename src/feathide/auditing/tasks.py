"""All tasks of an audit, each of which notes how long it took."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from feathide.execution.engine import Task
from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.pipeline.listing import tasks
from feathide.pipeline.over_draws import draw_tasks
from feathide.pipeline.smallest import smallest_tasks
from feathide.pipeline.survival import survival_tasks
from feathide.pipeline.variants import variant_tasks
from feathide.sanity.probes import probe_tasks

__all__ = ["audit_tasks"]


def audit_tasks(context: Context) -> list[Task]:
    """The stages, what becomes of the images in files and archives, the probes of the evaluation
    itself, and the plan's variants.
    """
    found = [
        *tasks(context),
        *survival_tasks(context),
        *smallest_tasks(context),
        *draw_tasks(context),
        *probe_tasks(context),
        *variant_tasks(context),
    ]
    # variants share work with the audit
    order = {task.key: task for task in reversed(found)}
    return [
        t if t.stage == "attack" else replace(t, work=partial(_timed, t.key, t.work))
        for t in reversed(order.values())
    ]


def _timed(
    key: str, work: Callable[[Store], Mapping[str, np.ndarray]], store: Store
) -> Mapping[str, np.ndarray]:
    started = time.perf_counter()
    arrays = work(store)
    store.save_json(f"seconds/{key}", time.perf_counter() - started)
    return arrays
