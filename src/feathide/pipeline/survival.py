"""What becomes of attacked images on their way into files: rounded after the attack, or kept by
an archive that compresses with loss.
"""

from functools import partial

import numpy as np
import torch

from feathide.errors import expected
from feathide.execution.engine import Task
from feathide.execution.packing import packed
from feathide.execution.store import Store
from feathide.formats.archive import Codec
from feathide.pipeline.context import PLAIN, Context, context_of
from feathide.pipeline.steps import (
    Arrays,
    attack_of,
    cells,
    decode,
    encode,
    observe,
    score_tasks,
)
from feathide.plans.plan import Cell

__all__ = ["archived", "archives", "check_archives", "rounding_key", "survival_tasks"]

TRIED = 32  # images of the detector-training split


def survival_tasks(context: Context) -> list[Task]:
    """One attack a budget without a storage grid, rounded afterwards; and every stored test image
    through each archive of the plan.
    """
    json, found = context.plan.model_dump_json(), []
    for eps in context.budgets if context.grid is not None else ():
        cell = Cell(context.plan.learnt_from, PLAIN, eps)
        needs = context.outputs_keys("clean", "detector-training")
        passes = attack_of(context, cell, None).passes
        found.append(
            Task(
                rounding_key(context, cell),
                needs,
                partial(_round, json, cell),
                "round afterwards",
                cell.name,
                passes,
            )
        )
    conditions = ["clean", *(context.condition(c) for c in cells(context))]
    for codec in archives(context):
        for source in conditions:
            for i in range(context.batches("test", attacked=source != "clean")):
                before = (context.outputs_key if source == "clean" else context.images_key)(
                    source, "test", i
                )
                key = context.outputs_key(archived(source, codec), "test", i)
                work = partial(_archive, json, source, codec, i)
                found.append(
                    Task(key, (before,), work, "archive", f"{source}, {codec.name}")
                )
    for eps in context.budgets if context.plan.archive else ():
        judged = ["clean", *(context.condition(c) for c in cells(context) if c.eps == eps)]
        found += score_tasks(
            context,
            eps,
            [(archived(c, codec), "test") for c in judged for codec in archives(context)],
        )
    return found


def archives(context: Context) -> list[Codec]:
    """The archives of the plan."""
    return [Codec.parse(text) for text in context.plan.archive]


def check_archives(context: Context) -> None:
    """Refuse images that the archives of the plan cannot hold."""
    if context.plan.archive and context.grid is None:
        raise expected(
            "an archive holds whole grey levels",
            got=f"floats in {context.cases.name}",
            do="leave archive out",
        )
    for codec in archives(context):
        codec(
            encode(
                torch.from_numpy(context.cases.images([0])), context.grid, context.cases.box
            )
        )


def archived(condition: str, codec: Codec) -> str:
    """The condition of a condition's images as they come back from an archive."""
    return f"{condition}-{codec.name}"


def rounding_key(context: Context, cell: Cell) -> str:
    return f"rounding/{context.condition(cell)}"


def _round(json: str, cell: Cell, store: Store) -> Arrays:
    """Who is fooled by the floating-point images of an attack that knows of no grid, and who
    still is once they are rounded to it.
    """
    context = context_of(json, store)
    rows = context.right("detector-training")[:TRIED]
    if not len(rows):
        return {"before": np.zeros(0, bool), "after": np.zeros(0, bool), "rows": rows}
    x, goal = context.images(rows), context.goal(rows)
    loose = attack_of(context, cell, None)(
        context.classifier, x, goal, **{**context.terms(rows, x), "grid": None}
    ).adversarial
    rounded = decode(
        encode(loose, context.grid, context.cases.box), context.grid, context.cases.box
    ).to(x)
    wanted = goal.target.cpu()
    before, after = (
        (observe(context.classifier, image).predicted == wanted).numpy()
        for image in (loose, rounded)
    )
    return {"before": before, "after": after, "rows": rows}


def _archive(json: str, source: str, codec: Codec, index: int, store: Store) -> Arrays:
    """The outputs on the images of a condition after compression."""
    context = context_of(json, store)
    box, rows = context.cases.box, context.batch("test", index)
    if source == "clean":
        image = encode(torch.from_numpy(context.cases.images(rows)), context.grid, box)
    else:
        stored = store.load(context.images_key(source, "test", index))
        image, rows = stored["image"], stored["rows"]
    top = round((box[1] - box[0]) / context.cases.step)
    x = decode(codec(image).clip(max=top), context.grid, box)
    if len(x) == 0:
        return packed(
            observe(context.observer, context.images(context.rows("test")[:1]))[:0], rows
        )
    return packed(observe(context.observer, x.to(context.device)), rows)
