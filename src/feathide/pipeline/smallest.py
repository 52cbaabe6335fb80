"""The smallest change that fools the classifier, and that also passes each guard: a step for each
attack at the largest budget of a plan with ``smallest_change: true``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from feathide.attacks.ensemble import Ensemble
from feathide.attacks.loop import Attack
from feathide.attacks.smallest import FOOL, smallest_change, whole_levels
from feathide.attacks.threats import L2, Linf, ThreatModel
from feathide.catalog import ability_of
from feathide.execution.engine import Task
from feathide.execution.packing import scored
from feathide.metrics.intervals import proportion
from feathide.metrics.metric import OWN
from feathide.metrics.statistics import threshold
from feathide.pipeline import attacking
from feathide.pipeline.attacking import attack_of, weight_of
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells, tasks_of
from feathide.pipeline.step import Arrays, Decision, Step
from feathide.pipeline.stored_images import decode, encode
from feathide.plans.plan import Cell

__all__ = ["Smallest", "curve_of", "searched", "smallest_in", "smallest_tasks"]

VERSION = "smallest change 1"
PARTS = 64  # of the largest budget, where no grid gives levels


@dataclass(frozen=True)
class Smallest:
    """The smallest changes of a cell's images, in box units; row i is one attacked image.

    Args:
        rows: The rows of the images (n,).
        fool: The least change that fools (n,); infinity where none up to ``largest`` does.
        past: By detector and threshold ("fpr10", "own"), the least that also passes.
        largest: The largest change that was tried.
        level: The distance of neighbouring sizes.
    """

    rows: np.ndarray
    fool: np.ndarray
    past: Mapping[tuple[str, str], np.ndarray]
    largest: float
    level: float


def searched(context: Context) -> list[Cell]:
    """The cells whose smallest changes are looked for: ours, at the largest budget."""
    if not context.plan.smallest_change:
        return []
    eps = max(context.limits.budgets)
    return [c for c in cells(context) if c.eps == eps and ability_of(c.attack.name).ours]


def smallest_tasks(context: Context) -> list[Task]:
    """The searches of a plan; none unless it asks for them."""
    return [
        task
        for cell in searched(context)
        for task in tasks_of(
            context,
            smallest_step(context, cell),
            "look for the smallest change",
            cell.name,
            cost=4.0 * attack_of(context, cell, None).passes,
        )
    ]


def smallest_step(context: Context, cell: Cell) -> Step:
    """The search for the smallest changes of a cell, on the test split."""
    steps, plan = context.steps, context.plan
    decided_by = {
        "version": VERSION,
        "detectors": plan.detectors,
        "learnt from": steps.condition(steps.taught_by(cell.eps)),
        **steps.sight,
    }
    return Step(
        "smallest",
        _search,
        label=steps.condition(cell),
        decided_by=(Decision(decided_by),),
        batches=lambda: context.data.batches("test", attacked=True),
        needs=lambda: (*steps.evidence(cell.eps), *steps.calibration(cell.eps)),
        follows=lambda: (steps.attack(cell, "test"),),
        arguments=(cell,),
    )


def smallest_in(context: Context, cell: Cell) -> Smallest | None:
    """The stored smallest changes of a cell; None where they were not looked for."""
    if cell not in searched(context):
        return None
    loaded = [context.store.load(key) for key in smallest_step(context, cell).keys]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([a[name] for a in loaded])

    past = joined("past")
    criteria = _criteria(context)
    return Smallest(
        joined("rows"),
        joined("fool"),
        {key: past[:, i] for i, key in enumerate(criteria)},
        cell.eps,
        float(loaded[0]["level"]),
    )


def curve_of(context: Context) -> pd.DataFrame:
    """``smallest_change.csv``: the share of images whose smallest change is at most eps, with
    intervals, for each level; ``detector`` is "" for what fools.
    """
    columns = ["attack", "objective", "detector", "threshold", "eps"]
    rows = [
        (*head, eps, found.value, found.low, found.high, found.n)
        for cell in searched(context)
        if (seen := smallest_in(context, cell)) is not None and len(seen.rows)
        for head, least in _curves(cell, seen)
        for eps in np.arange(1, whole_levels(seen.largest, seen.level) + 1) * seen.level
        for found in [
            proportion(
                least <= eps + seen.level / 2, groups=context.cases.patients[seen.rows]
            )
        ]
    ]
    return pd.DataFrame(rows, columns=[*columns, "share", "low", "high", "n"])


def _curves(
    cell: Cell, seen: Smallest
) -> Iterator[tuple[tuple[str, str, str, str], np.ndarray]]:
    names = (cell.attack.name, cell.objective.name)
    yield (*names, "", ""), seen.fool
    for (detector, rate), least in seen.past.items():
        yield (*names, detector, rate), least


# --- the search ---------------------------------------------------------------------------------


def _criteria(context: Context) -> list[tuple[str, str]]:
    """The guards, each at the thresholds of 10 % false alarms and its own."""
    own = context.recipe.own_thresholds()
    return [
        (d, rate)
        for d in context.plan.detectors
        for rate in (("fpr10", OWN) if d in own else ("fpr10",))
    ]


def _search(context: Context, cell: Cell, index: int) -> Arrays:
    """The smallest changes of a batch. The attack at the largest budget is there already."""
    key = context.steps.attack(cell, "test").keys[index]
    stored = context.store.load(key)
    rows, unit = stored["rows"], _unit(context, cell.eps)
    criteria = _criteria(context)
    if len(rows) == 0:
        none = np.zeros(0)
        past = np.zeros((0, len(criteria)))
        return {"rows": rows, "fool": none, "past": past, "level": np.asarray(unit)}
    x, goal = context.data.images(rows), context.data.goal(rows)
    top = whole_levels(cell.eps, unit)
    grid, box = context.limits.grid, context.cases.box
    made = decode(stored["image"], grid, box).to(x)
    weight = weight_of(context, cell)
    # the same schedule and hiding term at every budget
    attack = attack_of(context, cell, weight)
    reader = attacking.attacked(context, cell)
    limits = _limits(context, cell.eps)

    def attacked(levels: np.ndarray, at: np.ndarray) -> Tensor:
        if (levels == top).all():
            return made[torch.from_numpy(at)]
        threat = _threat(context, torch.from_numpy(levels * unit).to(x))
        terms = context.limits.terms(rows[at], x[at])
        found = _within(attack, threat)(reader, x[at], goal[torch.from_numpy(at)], **terms)
        return decode(encode(found.adversarial, grid, box), grid, box).to(x)

    def judge(images: Tensor, at: np.ndarray) -> Mapping[str, np.ndarray]:
        out = context.networks.observer.observe(images)
        wanted = goal.target.cpu().numpy()[at]
        met = {FOOL: out.predicted.numpy() == wanted}
        scores = {
            d: scored(context.fitted.detector(d, cell.eps), out)
            for d in context.plan.detectors
        }
        return met | {f"{d} {r}": scores[d] <= limits[d, r] for d, r in criteria}

    def sizes(images: Tensor, at: np.ndarray) -> Tensor:
        return context.limits.threat(1.0).size(images - x[at]) / unit

    found = smallest_change(attacked, judge, sizes, len(rows), top=top)
    passing = [found.least[f"{d} {r}"] * unit for d, r in criteria]
    return {
        "rows": rows,
        "fool": found.least[FOOL] * unit,
        "past": np.stack(passing, 1),
        "runs": found.runs,
        "level": np.asarray(unit),
    }


def _unit(context: Context, eps: float) -> float:
    """One level: that of the files where the norm counts these, else a part of the budget."""
    grid = context.limits.grid
    counts = grid is not None and context.plan.norm == "linf"
    return grid.step if counts and grid is not None else eps / PARTS


def _threat(context: Context, eps: Tensor) -> ThreatModel:
    return Linf(eps) if context.plan.norm == "linf" else L2(eps)


def _within(attack: object, threat: ThreatModel) -> Attack | Ensemble:
    """An attack of ours with other budgets."""
    if isinstance(attack, Ensemble):
        return replace(
            attack, attacks=tuple(replace(a, threat=threat) for a in attack.attacks)
        )
    assert isinstance(attack, Attack)
    return replace(attack, threat=threat)


def _limits(context: Context, eps: float) -> dict[tuple[str, str], float]:
    """The threshold of each guard at each rate, as the table has them."""
    own = context.recipe.own_thresholds()
    found = {}
    for detector, rate in _criteria(context):
        scores = context.fitted.calibration(detector, eps)
        found[detector, rate] = own[detector] if rate == OWN else threshold(scores, 0.10)
    return found
