"""An attacker without the network: images crafted on substitutes, tried on victims, for every
pair; and on several substitutes at once (``jury``).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from feathide.analysis.jury import Jury, against_all
from feathide.attacks.loop import Attack
from feathide.catalog import OBJECTIVES
from feathide.execution.digests import digest
from feathide.execution.graph import Task
from feathide.execution.packing import packed, scored, unpacked
from feathide.execution.store import Store
from feathide.metrics.intervals import proportion
from feathide.metrics.rates import slipping
from feathide.metrics.uncertain_threshold import UncertainThreshold, share_at
from feathide.pipeline.attacking import attack_of, weight_of
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import tasks
from feathide.pipeline.rows import entry, first_cells, frame
from feathide.pipeline.stored import uncertain_thresholds_of
from feathide.pipeline.stored_images import decode, encode
from feathide.plans.plan import Cell, Plan
from feathide.types import Outputs

__all__ = [
    "craft_tasks",
    "transfer_frame",
    "trial_tasks",
]

ALL = "all others"


def followed(context: Context) -> list[Cell]:
    """The attacks that are crafted: those of the plan at its first budget that are one ``Attack``
    and know no detector.
    """
    found = [
        c for c in first_cells(context) if OBJECTIVES[c.objective.kind].needs != "detectors"
    ]
    return [
        c
        for c in found
        if isinstance(attack_of(context, c, None), Attack) and c.attack.name != "noise"
    ]


def images_keys(context: Context, cell: Cell) -> tuple[str, ...]:
    return context.steps.attack(cell, "test").keys


def craft_tasks(context: Context) -> list[Task]:
    """The audit's tasks of one member: its attacks, and what its guards need to judge."""
    keys = {key for cell in followed(context) for key in images_keys(context, cell)}
    eps = context.limits.budgets[0]
    keys |= {
        context.steps.score(d, eps, c, "calibration").key
        for d in context.plan.detectors
        for c in ("clean", noisy_at(eps))
    }
    keys |= set(context.steps.extract("clean", "test").keys)
    return [task for task in tasks(context) if task.key in keys]


def _jury_key(contexts: Sequence[Context], cell: Cell, index: int) -> str:
    about = [context.steps.condition(cell) for context in contexts]
    return f"transfer/jury-{digest(about)}/test-{index:04d}"


def _trial_key(victim: Context, images: str) -> str:
    return f"transfer/trial-{digest([victim.steps.reading.digest, images])}"


def trial_tasks(contexts: Sequence[Context], *, jury: bool) -> list[Task]:
    """Every member's images shown to every member and, with ``jury``, images crafted on all
    others at once.
    """
    found: dict[str, Task] = {}
    for victim in contexts:
        others = [context for context in contexts if context is not victim]
        for cell in followed(victim):
            shown: dict[str, tuple[str, ...]] = {
                key: () for context in contexts for key in images_keys(context, cell)
            }
            if jury and len(others) > 1:
                crafted = [
                    _jury_task(others, cell, i)
                    for i in range(victim.data.batches("test", attacked=True))
                ]
                found |= {task.key: task for task in crafted}
                shown |= {task.key: (task.key,) for task in crafted}
            json = victim.plan.model_dump_json()
            for key, needs in shown.items():
                task = Task(
                    _trial_key(victim, key),
                    needs,
                    partial(_try, json, key),
                    "try on the victims",
                    cell.name,
                )
                found[task.key] = task
    return list(found.values())


def _jury_task(contexts: Sequence[Context], cell: Cell, index: int) -> Task:
    plans = [context.plan.model_dump_json() for context in contexts]
    passes = attack_of(contexts[0], cell, None).passes * len(contexts)
    work = partial(_craft_on_all, plans, cell, index)
    return Task(
        _jury_key(contexts, cell, index), (), work, "craft on all others", cell.name, passes
    )


def _craft_on_all(
    plans: Sequence[str], cell: Cell, index: int, store: Store
) -> Mapping[str, np.ndarray]:
    contexts = [Context(Plan.model_validate_json(json), store) for json in plans]
    first, rows = contexts[0], contexts[0].data.batch("test", index, attacked=True)
    for context in contexts:
        rows = rows[
            context.outputs.at("clean", "test", rows).predicted.numpy()
            == context.data.labels[rows]
        ]
    if not len(rows):
        return {"rows": rows, "target": rows}
    goal, x = first.data.goal(rows), first.data.images(rows)
    attacks = [attack_of(context, cell, weight_of(context, cell)) for context in contexts]
    attack = against_all([each for each in attacks if isinstance(each, Attack)])
    found = attack(
        Jury(tuple(context.networks.classifier for context in contexts)),
        x,
        goal,
        **first.limits.terms(rows, x),
    )
    image = encode(found.adversarial, first.limits.grid, first.cases.box)
    return {"rows": rows, "target": goal.target.cpu().numpy(), "image": image}


def _try(json: str, images: str, store: Store) -> Mapping[str, np.ndarray]:
    victim = context_of(json, store)
    crafted = store.load(images)
    rows = crafted["rows"]
    if not len(rows):
        return {"rows": rows, "target": crafted["target"]}
    x = decode(crafted["image"], victim.limits.grid, victim.cases.box).to(
        victim.data.device
    )
    return {
        **packed(victim.networks.observer.observe(x), rows),
        "target": crafted["target"],
    }


def transfer_frame(contexts: Sequence[tuple[str, Context]], *, jury: bool) -> pd.DataFrame:
    """The table: for each attack, victim (``classifier``) and substitute (``versus``) ``success``
    and, for each guard of the victim, ``slips_through_fpr10``, over the test images that both
    networks get right. Where both are the same the attacker has the network itself.
    """
    entries = []
    for name, victim in contexts:
        others = [context for _, context in contexts if context is not victim]
        thresholds = {
            d: uncertain_thresholds_of(victim, d, victim.limits.budgets[0])["fpr10"]
            for d in victim.plan.detectors
        }
        for cell in followed(victim):
            sources: list[tuple[str, Sequence[str]]] = [
                (n, images_keys(context, cell)) for n, context in contexts
            ]
            if jury and len(others) > 1:
                sources.append(
                    (
                        ALL,
                        [
                            _jury_key(others, cell, i)
                            for i in range(victim.data.batches("test", attacked=True))
                        ],
                    )
                )
            for substitute, keys in sources:
                entries += _judged(
                    victim, cell, keys, thresholds, victim_name=name, substitute=substitute
                )
    return frame(entries)


def _judged(
    victim: Context,
    cell: Cell,
    keys: Sequence[str],
    thresholds: Mapping[str, UncertainThreshold],
    *,
    victim_name: str,
    substitute: str,
) -> list[dict[str, Any]]:
    loaded = [
        a
        for a in (victim.store.load(_trial_key(victim, k)) for k in keys)
        if len(a["rows"])
    ]
    if not loaded:
        return []
    out, rows = (
        Outputs.cat([unpacked(a) for a in loaded]),
        np.concatenate([a["rows"] for a in loaded]),
    )
    right = (
        victim.outputs.at("clean", "test", rows).predicted.numpy()
        == victim.data.labels[rows]
    )
    fooled = out.predicted.numpy() == np.concatenate([a["target"] for a in loaded])
    groups = victim.cases.patients[rows].astype(str)[right]
    knowledge = (
        OBJECTIVES[cell.objective.kind].knowledge
        if substitute == victim_name
        else "transfer"
    )
    more: dict[str, Any] = {
        "cell": cell,
        "knowledge": knowledge,
        "classifier": victim_name,
        "versus": substitute,
    }
    found = [entry(victim, "success", proportion(fooled[right], groups=groups), **more)]
    for detector, threshold in thresholds.items():
        score, through = (
            scored(victim.fitted.detector(detector, cell.eps), out)[right],
            fooled[right],
        )
        share = share_at(threshold, slipping(through, score), groups=groups)
        found.append(entry(victim, "slips_through_fpr10", share, detector=detector, **more))
    return found
