"""All tasks of an audit, each of which notes how long it took."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from feathide.study.engine import Task
from feathide.study.lab import Lab
from feathide.study.probes import probe_tasks
from feathide.study.stages import tasks
from feathide.study.store import Store
from feathide.study.survival import survival_tasks
from feathide.study.variants import variant_tasks

__all__ = ["audit_tasks"]


def audit_tasks(lab: Lab) -> list[Task]:
    """The stages, what becomes of the images in files and archives, the probes of the evaluation itself, and the plan's variants."""
    found = [*tasks(lab), *survival_tasks(lab), *probe_tasks(lab), *variant_tasks(lab)]
    order = {task.key: task for task in reversed(found)}  # variants share work with the audit
    return [
        t if t.stage == "attack" else replace(t, work=partial(_timed, t.key, t.work)) for t in reversed(order.values())
    ]


def _timed(key: str, work: Callable[[Store], Mapping[str, np.ndarray]], store: Store) -> Mapping[str, np.ndarray]:
    started = time.perf_counter()
    arrays = work(store)
    store.save_json(f"seconds/{key}", time.perf_counter() - started)
    return arrays
