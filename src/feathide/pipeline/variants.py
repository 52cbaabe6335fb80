"""Variants of an audit: the classifier trained from other seeds, and guards that learnt from
other attacks than the planned one.
"""

from collections.abc import Sequence

import pandas as pd

from feathide.catalog import OBJECTIVES
from feathide.execution.engine import Task
from feathide.pipeline.conditions import PLAIN, noisy_at
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cell_tasks, cells, score_tasks, tasks
from feathide.pipeline.survival import survival_tasks
from feathide.pipeline.table import COLUMNS, framed, past_rows, table_of
from feathide.pipeline.views import attacked
from feathide.plans.plan import Cell

__all__ = ["held_out_of", "seeds_of", "variant_tasks"]

SAME = [c for c in COLUMNS if c not in ("value", "low", "high", "n", "seed")]
HELD_OUT = ("auc", "tpr_at_fpr10", "slips_through_fpr10")


def variant_tasks(context: Context) -> list[Task]:
    """What the variants of a plan need beyond its audit."""
    found = [
        task
        for other in _seeded(context)
        for task in (*tasks(other), *survival_tasks(other))
    ]
    for other in _taught(context):
        for eps in other.limits.budgets:
            own = [context.steps.condition(c) for c in _unknowing(context) if c.eps == eps]
            negatives = [
                (c, part)
                for c in ("clean", noisy_at(eps))
                for part in ("calibration", "test")
            ]
            found += cell_tasks(
                other, Cell(other.plan.learnt_from, PLAIN, eps), "detector-training"
            )
            found += score_tasks(other, eps, [*negatives, *((c, "test") for c in own)])
    return found


def seeds_of(context: Context, table: pd.DataFrame) -> pd.DataFrame:
    """Every number of ``table``, which is the context's, over the classifier's seeds: ``mean``,
    ``least``, ``greatest`` and how many ``seeds`` have it.
    """
    tables = pd.concat([table, *(table_of(other) for other in _seeded(context))])
    numbers = tables.groupby(SAME, sort=False, dropna=False).value
    return numbers.agg(
        mean="mean", least="min", greatest="max", seeds="count"
    ).reset_index()


def held_out_of(context: Context) -> pd.DataFrame:
    """How guards that learnt from one attack (``learnt_from``) do against the others, at the same
    budget.
    """
    frames = []
    for other in (context, *_taught(context)):
        attacks = [attacked(other, cell) for cell in _unknowing(context)]
        frame = framed(other, past_rows(other, attacks, HELD_OUT))
        frame.insert(2, "learnt_from", other.plan.learnt_from.name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _seeded(context: Context) -> list[Context]:
    """The same audit of classifiers that were trained from the further seeds of the plan."""
    plan = context.plan
    networks = [
        plan.network.model_copy(update={"seed": seed, "seeds": ()})
        for seed in plan.network.seeds
    ]
    return [
        Context(plan.model_copy(update={"network": n}), context.store)
        for n in networks
        if n.seed != context.recipe.network_seed
    ]


def _taught(context: Context) -> list[Context]:
    """The same audit with guards that learnt from another attack of the plan."""
    names = (
        [a.name for a in context.plan.attacks if a.name != context.plan.train_attack]
        if context.plan.held_out
        else []
    )
    return [
        Context(context.plan.model_copy(update={"train_attack": name}), context.store)
        for name in names
    ]


def _unknowing(context: Context) -> Sequence[Cell]:
    """The cells whose attacker knows no guard: the same images, whatever the guards learnt
    from.
    """
    return [
        c
        for c in cells(context)
        if OBJECTIVES[c.objective.kind].needs != "detectors"
        and c.objective.weight != "auto"
    ]
