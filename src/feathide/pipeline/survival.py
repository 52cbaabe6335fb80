"""What becomes of attacked images on their way into files: rounded after the attack, or kept by
an archive that compresses with loss.
"""

from dataclasses import replace

import numpy as np
import torch

from feathide.errors import expected
from feathide.execution.engine import Task
from feathide.formats.archive import Codec
from feathide.pipeline.attacking import attack_of
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells, score_tasks, tasks_of
from feathide.pipeline.step import Arrays, Step
from feathide.pipeline.stored_images import decode, encode
from feathide.pipeline.work import observed
from feathide.plans.plan import Cell

__all__ = ["archived", "archives", "check_archives", "rounding", "survival_tasks"]

TRIED = 32  # images of the detector-training split


def survival_tasks(context: Context) -> list[Task]:
    """One attack a budget without a storage grid, rounded afterwards; and every stored test image
    through each archive of the plan.
    """
    found: list[Task] = []
    for eps in context.limits.budgets if context.limits.grid is not None else ():
        cell = context.steps.taught_by(eps)
        cost = attack_of(context, cell, None).passes
        step = rounding(context, cell)
        found += tasks_of(context, step, "round afterwards", cell.name, cost=cost)
    sources: list[Cell | None] = [None, *cells(context)]
    for codec in archives(context):
        for source in sources:
            title = f"{_condition(context, source)}, {codec.name}"
            found += tasks_of(context, _kept(context, source, codec), "archive", title)
    for eps in context.limits.budgets if context.plan.archive else ():
        found += score_tasks(context, eps, _scored(context, eps))
    return found


def rounding(context: Context, cell: Cell) -> Step:
    """An attack that knows of no grid, on the detector-training split, rounded afterwards."""
    return Step(
        "rounding",
        _round,
        label=context.steps.condition(cell),
        needs=lambda: (context.steps.extract("clean", "detector-training"),),
        arguments=(cell,),
    )


def _kept(context: Context, source: Cell | None, codec: Codec) -> Step:
    """The outputs on the test images, clean or of an attack, that an archive gives back."""
    steps = context.steps
    condition = archived(_condition(context, source), codec)

    def before() -> tuple[Step, ...]:
        if source is None:
            return (steps.extract("clean", "test"),)
        return (steps.attack(source, "test"),)

    return replace(
        steps.extract(condition, "test"),
        work=_archive,
        needs=tuple,
        follows=before,
        arguments=(source, codec),
    )


def _condition(context: Context, source: Cell | None) -> str:
    return "clean" if source is None else context.steps.condition(source)


def _scored(context: Context, eps: float) -> list[tuple[str, str]]:
    """What the detectors of a budget judge of the archives."""
    own = [context.steps.condition(c) for c in cells(context) if c.eps == eps]
    conditions = ["clean", *own]
    return [(archived(c, codec), "test") for c in conditions for codec in archives(context)]


def archives(context: Context) -> list[Codec]:
    """The archives of the plan."""
    return [Codec.parse(text) for text in context.plan.archive]


def check_archives(context: Context) -> None:
    """Refuse images that the archives of the plan cannot hold."""
    if context.plan.archive and context.limits.grid is None:
        raise expected(
            "an archive holds whole grey levels",
            got=f"floats in {context.cases.name}",
            do="leave archive out",
        )
    for codec in archives(context):
        codec(
            encode(
                torch.from_numpy(context.cases.images([0])),
                context.limits.grid,
                context.cases.box,
            )
        )


def archived(condition: str, codec: Codec) -> str:
    """The condition of a condition's images as they come back from an archive."""
    return f"{condition}-{codec.name}"


def _round(context: Context, cell: Cell) -> Arrays:
    """Who is fooled by the floating-point images of an attack that knows of no grid, and who
    still is once they are rounded to it.
    """
    rows = context.outputs.right("detector-training")[:TRIED]
    if not len(rows):
        return {"before": np.zeros(0, bool), "after": np.zeros(0, bool), "rows": rows}
    x, goal = context.data.images(rows), context.data.goal(rows)
    classifier, attack = context.networks.classifier, attack_of(context, cell, None)
    terms = {**context.limits.terms(rows, x), "grid": None}
    loose = attack(classifier, x, goal, **terms).adversarial
    grid, box = context.limits.grid, context.cases.box
    rounded = decode(encode(loose, grid, box), grid, box).to(x)
    wanted = goal.target.cpu()
    before, after = (
        (classifier.observe(image).predicted == wanted).numpy()
        for image in (loose, rounded)
    )
    return {"before": before, "after": after, "rows": rows}


def _archive(context: Context, source: Cell | None, codec: Codec, index: int) -> Arrays:
    """The outputs on clean images, or on those of an attack, after compression."""
    grid, box = context.limits.grid, context.cases.box
    if source is None:
        rows = context.data.batch("test", index)
        image = encode(torch.from_numpy(context.cases.images(rows)), grid, box)
    else:
        stored = context.store.load(context.steps.attack(source, "test").keys[index])
        image, rows = stored["image"], stored["rows"]
    top = round((box[1] - box[0]) / context.cases.step)
    x = decode(codec(image).clip(max=top), grid, box)
    return observed(context, x, rows)
