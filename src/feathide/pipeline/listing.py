"""The tasks of an audit, in a straight line: the steps of its plan, each of which makes its files
from files that are there.

    train the classifier -> extract -> fit mixtures -> attack -> extract -> score

What a step is, and what decides it, stands in ``steps.py``."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from feathide.catalog import ATTACKS, OBJECTIVES, ability_of
from feathide.data.shifts import HARMLESS
from feathide.errors import InputError
from feathide.execution.engine import Task
from feathide.execution.store import Store
from feathide.losses import CrossEntropy
from feathide.pipeline.attacking import attack_of
from feathide.pipeline.conditions import noisy_at, shifted_by
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.step import Arrays, Step
from feathide.plans.plan import Cell
from feathide.plans.sections import AttackPlan, ObjectivePlan

__all__ = [
    "cell_tasks",
    "cells",
    "keys_of",
    "needed",
    "score_tasks",
    "tasks",
    "tasks_of",
    "unhidden",
    "why_not_hidden",
]

HELD_OUT = ("detector-training", "calibration", "test")


# --- which attacks ------------------------------------------------------------------------------


def cells(context: Context) -> list[Cell]:
    """Every attack with every objective that it can carry, at every budget."""
    return [
        Cell(attack, objective, eps)
        for eps in context.limits.budgets
        for attack in context.plan.attacks
        for objective in context.plan.objectives
        if not why_not_hidden(context, attack, objective)
    ]


def why_not_hidden(context: Context, attack: AttackPlan, objective: ObjectivePlan) -> str:
    """Why an attack cannot hide by an objective; "" where it can. Our one-step and random attacks
    have no steps to hide in; the others say it themselves.
    """
    hiding = OBJECTIVES[objective.kind]
    ability = ability_of(attack.name)
    if hiding.make is None or ability.hides:
        return ""
    if ability.ours:
        return f"{attack.name} has no steps to hide in"
    try:
        ATTACKS[attack.name](
            context.limits.threat(context.limits.budgets[0]),
            hide=CrossEntropy(),
            blend=hiding.blend,
        )
    except InputError as reason:
        return str(reason)
    return ""


def unhidden(context: Context) -> str:
    """Which of our attacks are run without hiding only, and why, in a sentence; "" if all hide."""
    hiding = [o for o in context.plan.objectives if OBJECTIVES[o.kind].make is not None]
    names = dict.fromkeys(
        attack.name
        for attack in context.plan.attacks
        if hiding
        and ability_of(attack.name).ours
        and all(why_not_hidden(context, attack, objective) for objective in hiding)
    )
    if not names:
        return ""
    one = len(names) == 1
    return (
        f"{', '.join(names)} {'is' if one else 'are'} run without hiding only: "
        f"{'it has' if one else 'they have'} no steps to hide in"
    )


# --- which tasks --------------------------------------------------------------------------------


def tasks(context: Context) -> list[Task]:
    """All tasks of the context's plan."""
    found = [
        *_network_tasks(context),
        *_extract_tasks(context, "clean", ("train", *HELD_OUT)),
    ]
    for shift in HARMLESS:
        found += _extract_tasks(context, shifted_by(shift), ("test",))
    if any(OBJECTIVES[o.kind].needs == "bank" for o in context.plan.objectives):
        found += tasks_of(context, context.steps.mixtures, "fit the mixtures", cost=10)
    for eps in context.limits.budgets:
        found += _extract_tasks(context, noisy_at(eps), HELD_OUT)
        found += cell_tasks(context, context.steps.taught_by(eps), "detector-training")
    found += _tuning_tasks(context)
    for cell in cells(context):
        found += cell_tasks(context, cell, "test")
    for eps in context.limits.budgets:
        found += score_tasks(context, eps, _scored(context, eps))
    return found


def _network_tasks(context: Context) -> Iterator[Task]:
    """What is trained here, and the look at the classifier after its training."""
    steps, recipe, arch = context.steps, context.recipe, context.plan.network.arch
    if recipe.trains:
        yield from tasks_of(context, steps.train, "train the classifier", arch, cost=200)
        look = "check whether it has learnt"
        yield from tasks_of(context, steps.learnt, look, arch, cost=2)
    if recipe.needs("reference_network"):
        stage, arch = "train the reference network", recipe.reference_network_arch
        yield from tasks_of(context, steps.reference_network, stage, arch, cost=300)


def _extract_tasks(
    context: Context, condition: str, parts: Sequence[str]
) -> Iterator[Task]:
    """What the networks show of the images of a condition that are not attacked."""
    for part in parts:
        step = context.steps.extract(condition, part)
        yield from tasks_of(context, step, "extract", f"{condition}, {part}")


def _tuning_tasks(context: Context) -> list[Task]:
    """One search for lambda for each objective and budget that wants it."""
    stage = "tune lambda on the detector-training split"
    found = [
        task
        for cell in cells(context)
        if cell.objective.weight == "auto"
        for task in tasks_of(
            context, context.steps.tune(cell), stage, cell.objective.name, cost=60
        )
    ]
    # attacks share it
    return list({task.key: task for task in found}.values())


def cell_tasks(context: Context, cell: Cell, part: str) -> list[Task]:
    """One attack on a split, and what the detectors see of it."""
    attack = context.steps.attack(cell, part)
    cost = attack_of(context, cell, None).passes + 1.0
    title = f"{cell.name} at {cell.eps:.4g}"
    attacks = tasks_of(context, attack, "attack", title, cost=cost)
    seen = context.steps.extract_attacked(cell, part)
    looks = tasks_of(context, seen, "extract", cell.name)
    return [task for both in zip(attacks, looks, strict=True) for task in both]


def score_tasks(
    context: Context, eps: float, wanted: Sequence[tuple[str, str]]
) -> list[Task]:
    """Every detector of a budget on the stored outputs of the ``wanted`` (condition, part)."""
    return [
        task
        for detector in context.plan.detectors
        for condition, part in wanted
        for task in tasks_of(
            context,
            context.steps.score(detector, eps, condition, part),
            "score",
            detector,
            cost=0.2,
        )
    ]


def _scored(context: Context, eps: float) -> list[tuple[str, str]]:
    """The conditions and splits that the detectors of a budget judge."""
    negatives = [(c, p) for c in ("clean", noisy_at(eps)) for p in ("calibration", "test")]
    shifts = [(shifted_by(shift), "test") for shift in HARMLESS]
    own = [c for c in cells(context) if c.eps == eps]
    return [*negatives, *shifts, *((context.steps.condition(c), "test") for c in own)]


# --- from steps to tasks ------------------------------------------------------------------------


def tasks_of(
    context: Context, step: Step, stage: str, title: str = "", *, cost: float = 1.0
) -> list[Task]:
    """The tasks that make the files of a step. ``stage``, ``title`` and ``cost`` are for the
    display.
    """
    json = context.plan.model_dump_json()
    before, beside = keys_of(step.needs()), step.follows()
    found = []
    for i, key in enumerate(step.keys):
        arguments = step.arguments if step.batches is None else (*step.arguments, i)
        needs = dict.fromkeys((*before, *(other.keys[i] for other in beside)))
        work = partial(_in_context, step.work, json, arguments)
        found.append(Task(key, tuple(needs), work, stage, title, cost))
    return found


def keys_of(steps: Iterable[Step]) -> tuple[str, ...]:
    """The keys of all files of some steps."""
    return tuple(key for step in steps for key in step.keys)


def needed(context: Context, cell: Cell) -> tuple[str, ...]:
    """The keys of what an attacker must have before the attack starts, but for a tuned lambda."""
    return keys_of(context.steps.known(cell))


def _in_context(
    work: Callable[..., Arrays], json: str, arguments: tuple[Any, ...], store: Store
) -> Arrays:
    """A step's work, in whatever process."""
    return work(context_of(json, store), *arguments)
