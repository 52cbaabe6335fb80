"""An attack of an audit: made from plan and catalogue, tuned, run on a batch of images."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from feathide.attacks.ensemble import Ensemble
from feathide.attacks.loop import Attack
from feathide.catalog import ATTACKS, OBJECTIVES, ability_of
from feathide.execution.packing import linf_distance
from feathide.integrations import Foreign
from feathide.losses import Objective
from feathide.models.classifier import FeatureClassifier
from feathide.models.memory import in_halves
from feathide.pipeline.attacker import Attacker
from feathide.pipeline.conditions import PLAIN
from feathide.pipeline.step import Arrays
from feathide.pipeline.stored_images import decode, encode
from feathide.plans.plan import Cell

if TYPE_CHECKING:
    from feathide.pipeline.context import Context

__all__ = [
    "attack_batch",
    "attack_of",
    "attack_rows",
    "attacked",
    "right_in",
    "tune",
    "weight_of",
]

TUNE_CASES = 32
SURE = 5.0  # units of the logits, in which cross-entropy has hardly a slope left


def attack_of(
    context: "Context", cell: Cell, weight: float | None, *, hide: Objective | None = None
) -> Attack | Ensemble | Foreign:
    """The attack of a cell. ``weight``: lambda; None leaves the hiding term out (its steps are the
    same). ``hide``: a hiding term in place of the cell's.
    """
    hiding = OBJECTIVES[cell.objective.kind]
    fields = _schedule(context, cell)
    if hiding.make is not None and weight is not None:
        term = _hiding_term(context, cell) if hide is None else hide
        hide, fields["blend"] = weight * term, hiding.blend
        if ":" not in cell.attack.name:
            fields |= _as_sure_as_usual(context)
    threat = context.limits.threat(cell.eps)
    return ATTACKS[cell.attack.name](threat, hide=hide, **fields)


def _schedule(context: "Context", cell: Cell) -> dict[str, Any]:
    """Steps, step size and the like: the attack's own where it says them, else the plan's."""
    schedule, attack, ability = (
        context.plan.schedule,
        cell.attack,
        ability_of(cell.attack.name),
    )
    fields: dict[str, Any] = {"confidence": schedule.confidence}
    if attack.share is not None:
        fields["share"] = attack.share
    for name in ability.schedule:
        own = getattr(attack, name)
        fields[name] = getattr(schedule, name) if own is None else own
    if ability.queries and attack.steps is not None:
        fields["queries"] = attack.steps
    return fields


def _hiding_term(context: "Context", cell: Cell) -> Objective:
    """What a cell's attacker hides by, made from what they know."""
    hiding, options = OBJECTIVES[cell.objective.kind], dict(cell.objective.options)
    assert hiding.make is not None
    if hiding.needs == "detectors" and cell.objective.aim:
        options["detectors"] = cell.objective.aim
    return hiding.make(Attacker(context, cell.eps), options)


def _as_sure_as_usual(context: "Context") -> dict[str, float]:
    """A clean image leads by ``SURE`` units: an attacker who hides wants to look as sure, no
    surer.
    """
    kappa = context.outputs.enough() * SURE
    return {
        "unit": context.outputs.typical_lead() / SURE,
        "kappa": kappa,
        "confidence": min(context.plan.schedule.confidence, kappa),
    }


def weight_of(context: "Context", cell: Cell) -> float:
    """Lambda: as planned, tuned, or the catalogue's."""
    weight = cell.objective.weight
    if weight == "auto":
        return float(context.store.load(context.steps.tune(cell).key)["weight"])
    return OBJECTIVES[cell.objective.kind].weight if weight is None else weight


def attack_batch(context: "Context", cell: Cell, part: str, index: int) -> Arrays:
    """The attacked images of a batch; how long they took is noted."""
    started = time.perf_counter()
    arrays = attack_rows(context, cell, right_in(context, part, index))
    key = context.steps.attack(cell, part).keys[index]
    context.store.save_json(f"seconds/{key}", time.perf_counter() - started)
    return arrays


def right_in(context: "Context", part: str, index: int) -> np.ndarray:
    """What is attacked of a batch: only what the attacked classifier gets right."""
    rows = context.data.batch(part, index, attacked=True)
    stored = context.store.load(context.steps.extract("clean", part).keys[index])
    logits = stored["logits"][: len(rows)]
    return rows[logits.argmax(1) == context.data.labels[rows]]


def attack_rows(
    context: "Context", cell: Cell, rows: np.ndarray, *, weight: float | None = None
) -> dict[str, np.ndarray]:
    """Attack some cases, write the images as a file holds them, read them back and predict again;
    in halves where memory does not suffice.
    """
    return in_halves(
        lambda some: _attack_rows(context, cell, some, weight), rows, join=_joined
    )


def _joined(halves: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all halves; the trace has the steps as its first axis."""
    return {
        k: np.concatenate([h[k] for h in halves], axis=int(k == "trace")) for k in halves[0]
    }


def _attack_rows(
    context: "Context", cell: Cell, rows: np.ndarray, weight: float | None
) -> dict[str, np.ndarray]:
    if len(rows) == 0:
        return _nothing(context)
    grid, box = context.limits.grid, context.cases.box
    x, goal = context.data.images(rows), context.data.goal(rows)
    weight = weight_of(context, cell) if weight is None else weight
    attack = attack_of(context, cell, weight)
    classifier = context.networks.classifier
    found = attack(attacked(context, cell), x, goal, **context.limits.terms(rows, x))
    image = encode(found.adversarial, grid, box)
    again = decode(image, grid, box).to(x)
    return {
        "rows": rows,
        "id": np.array(context.data.ids(rows)),
        "image": image,
        "label": goal.source.cpu().numpy(),
        "target": goal.target.cpu().numpy(),
        "prediction": classifier.observe(again).predicted.numpy(),
        "linf": linf_distance(again.cpu().numpy(), x.cpu().numpy(), grid),
        "first": found.first.cpu().numpy(),
        "gradients": found.gradients.cpu().numpy(),
        "forwards": found.forwards.cpu().numpy(),
        "trace": found.trace.cpu().numpy().astype(np.float32),
    }


def _nothing(context: "Context") -> dict[str, np.ndarray]:
    """The same of a batch in which nothing is right."""
    counts = ("rows", "label", "target", "prediction", "first", "gradients", "forwards")
    empty, cases = np.zeros(0, np.int64), context.cases
    image = torch.zeros((0, cases.channels, *cases.shape)) + cases.box[0]
    return dict.fromkeys(counts, empty) | {
        "id": np.zeros(0, "U1"),
        "image": encode(image, context.limits.grid, cases.box),
        "linf": empty * 1.0,
    }


def attacked(context: "Context", cell: Cell) -> FeatureClassifier:
    """The classifier as the attacker of a cell asks it: with what the detectors read beside,
    where they aim at these; without the purifier where they do not know it.
    """
    if not context.plan.network.known:
        return context.networks.bare
    if OBJECTIVES[cell.objective.kind].needs == "detectors":
        return context.networks.observing(cell.objective.aim or context.plan.detectors)
    return context.networks.classifier


def tune(context: "Context", cell: Cell) -> Arrays:
    """Lambda for one objective, on the detector-training split, by one procedure for all: the
    largest weight at which the attack succeeds as often as the plain one (the smallest weight if
    there is none). It never looks at a detector's verdict nor at a test case.
    """
    rows = context.outputs.right("detector-training")[:TUNE_CASES]
    weights = sorted(cell.objective.weights)
    best, success = 0.0, []
    for weight in [0.0, *weights]:
        tried = cell if weight else replace(cell, objective=PLAIN)
        got = attack_rows(context, tried, rows, weight=weight)
        success.append(float((got["prediction"] == got["target"]).mean()))
        if weight and success[-1] >= success[0] - 1e-9:
            best = weight
    return {
        "weight": np.asarray(best or weights[0]),
        "weights": np.array([0.0, *weights]),
        "n": np.asarray(len(rows)),
        "success": np.array(success),
    }
