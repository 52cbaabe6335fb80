"""Each analysis as one call on the context of a plan: its tasks are run, its table and its page
are made.

``Work(context, tasks, alone)`` runs tasks in the context's store and, unless they stand
``alone``, those of the audit that they need."""

from collections.abc import Callable, Sequence

import pandas as pd

from feathide.analysis import direction as d
from feathide.analysis import out_of_distribution as s
from feathide.analysis import pages
from feathide.analysis import stress as st
from feathide.analysis import transfer as t
from feathide.analysis.members import lab_with, member_tasks, members
from feathide.auditing import outliers as o
from feathide.execution.engine import run
from feathide.execution.graph import Task
from feathide.execution.progress import Progress
from feathide.pipeline.context import Context
from feathide.pipeline.listing import tasks
from feathide.pipeline.rows import with_needs
from feathide.report.sheet import Sheet

__all__ = ["Work", "direction", "ood", "outliers", "stress", "transfer", "worked_off"]

Work = Callable[..., None]
Done = tuple[pd.DataFrame, Sheet]


def worked_off(workers: int = 1, progress: Progress | None = None) -> Work:
    """Tasks run here, by so many processes."""

    def work(context: Context, own: Sequence[Task], *, alone: bool = False) -> None:
        order = own if alone else with_needs(own, tasks(context))
        run(order, context.store, progress=progress, workers=workers)

    return work


def direction(context: Context, work: Work) -> Done:
    """See ``analysis.direction``."""
    work(context, d.direction_tasks(context))
    table = d.direction_frame(context)
    return table, pages.direction_page(table)


def stress(contexts: Sequence[Context], work: Work) -> Done:
    """See ``analysis.stress``; several studies or seeds in one table."""
    tables = []
    for context in contexts:
        work(context, st.stress_tasks(context))
        tables.append(st.stress_frame(context))
    table = pd.concat(tables, ignore_index=True)
    return table, pages.stress_page(table)


def outliers(context: Context, work: Work, *, picture: str = "pca") -> Done:
    """See ``analysis.outliers``; ``picture``: how the features come into two dimensions."""
    work(context, o.outlier_tasks(context))
    table = o.outlier_frame(context)
    return table, pages.outlier_page(table, o.curves(context, how=picture))


def transfer(
    context: Context,
    work: Work,
    *,
    networks: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1),
    halves: bool = False,
    jury: bool = True,
) -> Done:
    """See ``analysis.transfer``: every architecture of ``networks`` with every seed, also on
    either half of the patients, also on all others at once.
    """
    chosen = members(networks or [context.plan.network.arch], seeds, halves=halves)
    work(context, member_tasks(context, chosen), alone=True)
    contexts = [(m.name, lab_with(context, m)) for m in chosen]
    for _, member in contexts:
        work(member, t.craft_tasks(member))
    work(context, t.trial_tasks([m for _, m in contexts], jury=jury), alone=True)
    table = t.transfer_frame(contexts, jury=jury)
    return table, pages.transfer_page(table)


def ood(
    context: Context, work: Work, *, near: Sequence[str] = (), far: Sequence[str] = ()
) -> Done:
    """See ``analysis.strangers``: lesions, shifts, and the data sets at the paths ``near`` and
    ``far``.
    """
    strangers = [
        s.foreign(context, path, kind)
        for kind, paths in (("near", near), ("far", far))
        for path in paths
    ]
    work(context, s.ood_tasks(context, strangers))
    table = s.ood_frame(context, strangers)
    return table, pages.ood_page(table, s.lesion_pictures(context), s.scale_of(context))
