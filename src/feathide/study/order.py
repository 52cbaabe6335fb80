"""All tasks of an audit."""

from feathide.study.engine import Task
from feathide.study.lab import Lab
from feathide.study.probes import probe_tasks
from feathide.study.stages import tasks
from feathide.study.survival import survival_tasks

__all__ = ["audit_tasks"]


def audit_tasks(lab: Lab) -> list[Task]:
    """The stages, what becomes of the images in files and archives, and the probes of the evaluation itself."""
    return [*tasks(lab), *survival_tasks(lab), *probe_tasks(lab)]
