"""What is random is judged by fresh draws: which attacked images fool the classifier at each."""

import numpy as np

from feathide.execution.engine import Task
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells, tasks_of
from feathide.pipeline.step import Arrays, Decision, Step
from feathide.pipeline.stored_images import decode
from feathide.plans.plan import Cell

__all__ = ["FRESH", "draw_tasks", "fooled_by_draw"]

FRESH = 20  # draws that no attack has seen
FIRST = 100_000  # their first number


def draw_tasks(context: Context) -> list[Task]:
    """The looks at fresh draws; none where nothing is random."""
    return [
        task
        for cell in (cells(context) if context.recipe.random else ())
        for task in tasks_of(
            context, _step(context, cell), "judge by fresh draws", cell.name, cost=FRESH / 4
        )
    ]


def fooled_by_draw(context: Context, cell: Cell) -> np.ndarray | None:
    """Whether each attacked image fools the classifier at each fresh draw (n, FRESH)."""
    if not context.recipe.random:
        return None
    keys = _step(context, cell).keys
    return np.concatenate([context.store.load(key)["fooled"] for key in keys])


def _step(context: Context, cell: Cell) -> Step:
    return Step(
        "draws",
        _judge,
        label=context.steps.condition(cell),
        decided_by=(Decision({"draws": FRESH, "first": FIRST}),),
        batches=lambda: context.data.batches("test", attacked=True),
        follows=lambda: (context.steps.attack(cell, "test"),),
        arguments=(cell,),
    )


def _judge(context: Context, cell: Cell, index: int) -> Arrays:
    stored = context.store.load(context.steps.attack(cell, "test").keys[index])
    if len(stored["rows"]) == 0:
        return {"fooled": np.zeros((0, FRESH), bool)}
    x = decode(stored["image"], context.limits.grid, context.cases.box)
    x = x.to(context.data.device)
    said = [
        context.networks.drawn(FIRST + draw).observe(x).predicted.numpy()
        for draw in range(FRESH)
    ]
    return {"fooled": np.stack(said, 1) == stored["target"][:, None]}
