"""Each analysis as one call on the lab of a plan: its tasks are run, its table and its page are made.

``Work(lab, tasks, alone)`` runs tasks in the lab's store and, unless they stand ``alone``, those of the audit that they need.
"""

from collections.abc import Callable, Sequence

import pandas as pd

from feathide.analysis import direction as d
from feathide.analysis import outliers as o
from feathide.analysis import pages
from feathide.analysis import strangers as s
from feathide.analysis import stress as st
from feathide.analysis import transfer as t
from feathide.analysis.rows import with_needs
from feathide.report.sheet import Sheet
from feathide.study.engine import Progress, Task, run
from feathide.study.lab import Lab
from feathide.study.stages import tasks

__all__ = ["Work", "direction", "ood", "outliers", "stress", "transfer", "worked_off"]

Work = Callable[..., None]
Done = tuple[pd.DataFrame, Sheet]


def worked_off(workers: int = 1, progress: Progress | None = None) -> Work:
    """Tasks run here, by so many processes."""

    def work(lab: Lab, own: Sequence[Task], *, alone: bool = False) -> None:
        order = own if alone else with_needs(own, tasks(lab))
        run(order, lab.store, progress=progress, workers=workers)

    return work


def direction(lab: Lab, work: Work) -> Done:
    """See ``analysis.direction``."""
    work(lab, d.direction_tasks(lab))
    table = d.direction_frame(lab)
    return table, pages.direction_page(table)


def stress(labs: Sequence[Lab], work: Work) -> Done:
    """See ``analysis.stress``; several studies or seeds in one table."""
    tables = []
    for lab in labs:
        work(lab, st.stress_tasks(lab))
        tables.append(st.stress_frame(lab))
    table = pd.concat(tables, ignore_index=True)
    return table, pages.stress_page(table)


def outliers(lab: Lab, work: Work, *, picture: str = "pca") -> Done:
    """See ``analysis.outliers``; ``picture``: how the features come into two dimensions."""
    work(lab, o.outlier_tasks(lab))
    table = o.outlier_frame(lab)
    return table, pages.outlier_page(table, o.curves(lab, how=picture))


def transfer(
    lab: Lab,
    work: Work,
    *,
    networks: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1),
    halves: bool = False,
    jury: bool = True,
) -> Done:
    """See ``analysis.transfer``: every architecture of ``networks`` with every seed, also on either half of the patients, also on all others at once."""
    chosen = t.members(networks or [lab.plan.network.arch], seeds, halves=halves)
    work(lab, t.member_tasks(lab, chosen), alone=True)
    labs = [(m.name, t.lab_with(lab, m)) for m in chosen]
    for _, member in labs:
        work(member, t.craft_tasks(member))
    work(lab, t.trial_tasks([m for _, m in labs], jury=jury), alone=True)
    table = t.transfer_frame(labs, jury=jury)
    return table, pages.transfer_page(table)


def ood(lab: Lab, work: Work, *, near: Sequence[str] = (), far: Sequence[str] = ()) -> Done:
    """See ``analysis.strangers``: lesions, shifts, and the data sets at the paths ``near`` and ``far``."""
    strangers = [s.foreign(lab, path, kind) for kind, paths in (("near", near), ("far", far)) for path in paths]
    work(lab, s.ood_tasks(lab, strangers))
    table = s.ood_frame(lab, strangers)
    return table, pages.ood_page(table, s.lesion_pictures(lab), s.scale_of(lab))
