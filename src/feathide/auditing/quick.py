"""``quick_look``: a plan cut down to a first page within five minutes on two cores, and marked as
such.

What is cut: images, steps of the attacks, attacks, detectors that cost extra passes, the training
of a network that is trained here. How far is decided by the measured time of one attack step; a
look that was begun goes on with what was decided then."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from feathide.auditing.forecast import classifier_of, pace_of
from feathide.auditing.run import checked
from feathide.catalog import DETECTORS, OBJECTIVES, ability_of
from feathide.data.cases import Cases
from feathide.errors import InputError
from feathide.execution.digests import digest
from feathide.execution.remote import near
from feathide.execution.store import Store
from feathide.pipeline.context import Context, context_of
from feathide.plans.plan import Plan, load_plan
from feathide.plans.sections import (
    AttackPlan,
    DataPlan,
    NetworkPlan,
    ObjectivePlan,
    QuickPlan,
)

__all__ = ["quick_look"]

# seconds from reading the images to the last step: what imports, tables and the page leave of five
# minutes
SECONDS = 230.0
# sides of the images on which a network is trained here, by their number of axes
SIDES = {2: 64, 3: 24}
# a step of training in steps of an attack: weights have gradients, moments and an average, too
TRAINING = 2.0
# layers that are watched at most: distances in wide ones cost more than the attacks
LAYERS = 6
# passes over every held-out image: clean, noisy, harmlessly changed
PASSES = 6


@dataclass(frozen=True)
class Rung:
    """How much is looked at: images of each split, images that are attacked in each part, steps
    of the attacks, epochs of a training.
    """

    limit: int
    most: int
    steps: int
    epochs: int


RUNGS = (
    Rung(1000, 64, 30, 15),
    Rung(1000, 48, 20, 10),
    Rung(600, 40, 20, 10),
    Rung(400, 32, 15, 8),
    Rung(300, 24, 12, 6),
    Rung(200, 24, 8, 5),
    Rung(120, 20, 5, 4),
    # large networks on large images. Fewer images would not tell whether a classifier has learnt
    # anything, and fewer attacked ones leave a detector nothing to learn from
    Rung(120, 14, 3, 2),
    Rung(80, 12, 3, 2),
)
# what is tried first: the step is timed on it
TRIAL = Rung(120, 12, 3, 2)


def quick_look(plan: Plan, out: Path | str, *, command: str) -> Plan:
    """``plan`` cut down to a first look; ``command`` is what runs the whole audit, and stands on
    the page.
    """
    whole = digest([plan])
    begun = _begun(near(out), whole)
    if begun is not None:
        return begun.model_copy(update={"about": plan.about})
    store, mark = Store(near(out)), QuickPlan(whole=whole, command=command)
    started = time.perf_counter()
    cut = _cut(plan, TRIAL, None, mark)
    cases = context_of(cut.model_dump_json(), store).cases
    reading = (time.perf_counter() - started) / max(len(cases), 1)
    size = _side(plan, cases)
    if size is not None:
        cut = _cut(plan, TRIAL, size, mark)
    smallest = checked(cut, store.folder)
    classifier = classifier_of(smallest)
    step = pace_of(smallest, classifier).step
    reads = [*classifier.read_outs(smallest.data.images(smallest.data.rows("train")[:1]))]
    costs = [_seconds(smallest, rung, step, reading) for rung in RUNGS]
    left = SECONDS - (time.perf_counter() - started)
    fitting = (r for r, cost in zip(RUNGS, costs, strict=True) if cost <= left)
    rung = next(fitting, RUNGS[-1])
    says = [*_said(plan, smallest, rung, min(costs))]
    if len(reads) > LAYERS:
        says.append(f"{LAYERS} of {len(reads)} layers read")
        plan = _watching(plan, reads)
    return _cut(plan, rung, size, mark.model_copy(update={"says": tuple(says)}))


def _begun(out: Path, whole: str) -> Plan | None:
    """The plan of a look at the same plan that was begun in ``out``."""
    path = out / "plan.yaml"
    if not os.path.isfile(path):
        return None
    try:
        held = load_plan(path)
    except InputError:
        return None
    return held if held.quick is not None and held.quick.whole == whole else None


def _watching(plan: Plan, names: list[str]) -> Plan:
    """The plan with a few of the layers ``names``, evenly spread, the last among them."""
    last = len(names) - 1
    chosen = tuple(names[round(last * (i + 1) / LAYERS)] for i in range(LAYERS))
    network = plan.network.model_copy(update={"layers": chosen})
    return plan.model_copy(update={"network": network})


def _side(plan: Plan, cases: Cases) -> int | None:
    """The side to which images are made smaller, where the network is trained here and nothing
    says how large they are; None where they stay as they are.
    """
    side = SIDES.get(len(cases.shape))
    apart = plan.data.size is not None or plan.mask is not None or plan.organ is not None
    if apart or side is None or not _trains(plan) or max(cases.shape) <= side:
        return None
    return side


# --- what is cut --------------------------------------------------------------------------------


def _cut(plan: Plan, rung: Rung, size: int | None, quick: QuickPlan) -> Plan:
    """The plan as this rung leaves it; ``size``: of the images, where they are made smaller."""
    attack = _attack_of(plan)
    steps = min(rung.steps, attack.steps or plan.schedule.steps)
    schedule = plan.schedule.model_copy(update={"steps": steps, "restarts": 1})
    return plan.model_copy(
        update={
            "data": _data_of(plan.data, rung, size),
            "network": _network_of(plan, rung),
            "eps": plan.eps[:1],
            "archive": (),
            "attacks": (attack.model_copy(update={"steps": None, "restarts": None}),),
            "objectives": _objectives_of(plan),
            "schedule": schedule,
            "detectors": _detectors_of(plan),
            "train_attack": attack.name,
            "held_out": False,
            "split": plan.split.model_copy(
                update={"most": min(rung.most, plan.split.most or rung.most)}
            ),
            "sanity_checks": "off",
            # a short training is ours: what it has not learnt is said on the page
            "even_so": plan.even_so or _trains(plan),
            "quick": quick,
        }
    )


def _trains(plan: Plan) -> bool:
    return not plan.network.own and plan.network.weights is None


def _attack_of(plan: Plan) -> AttackPlan:
    """The attack that the detectors learn from, if it has steps; else the first that has."""
    wanted = (plan.learnt_from, *plan.attacks)
    able = ((a, ability_of(a.name)) for a in wanted)
    return next(
        (a for a, can in able if can.hides and not can.several), AttackPlan(name="pgd")
    )


def _objectives_of(plan: Plan) -> tuple[ObjectivePlan, ...]:
    """Plain, and the first two that hide, at a fixed weight: a guard that sees HFC may not see
    typical HFC.
    """
    hiding = [o for o in plan.objectives if OBJECTIVES[o.kind].make is not None]
    kept = (ObjectivePlan(name="plain"), *hiding[:2])
    return tuple(
        o.model_copy(update={"weight": None}) if o.weight == "auto" else o for o in kept
    )


def _detectors_of(plan: Plan) -> tuple[str, ...]:
    """Those that need neither many passes nor a second network; all, where each of them does."""
    made = {name: DETECTORS[name]() for name in plan.detectors}
    cheap = [
        name
        for name, d in made.items()
        if not (d.needs_dropout or d.needs_reference_network)
    ]
    return tuple(cheap) or plan.detectors


def _data_of(data: DataPlan, rung: Rung, size: int | None) -> DataPlan:
    limit = min(rung.limit, data.limit or rung.limit)
    return data.model_copy(update={"limit": limit, "size": size or data.size})


def _network_of(plan: Plan, rung: Rung) -> NetworkPlan:
    network = plan.network
    train = network.train.model_copy(
        update={"epochs": min(rung.epochs, network.train.epochs)}
    )
    return network.model_copy(update={"train": train, "seeds": ()})


# --- what it takes, and what is said ------------------------------------------------------------


def _seconds(smallest: Context, rung: Rung, step: float, reading: float) -> float:
    """What a rung takes, from the seconds of one attack step for one image, and of reading it."""
    plan = smallest.plan
    # a split that is not filled up now has no more images
    known = {s: len(smallest.cases.where(s)) for s in ("train", "val", "test")}
    least = plan.data.limit or 0
    n = {
        s: rung.limit if held >= least else min(held, rung.limit)
        for s, held in known.items()
    }
    passes = 0.5 * (n["train"] + PASSES * n["test"])
    training = TRAINING * rung.epochs * n["train"] if smallest.recipe.trains else 0.0
    cells = len(plan.objectives) + 1
    attacks = cells * rung.most * (rung.steps + 2)
    return step * (passes + training + attacks) + reading * sum(n.values())


def _said(plan: Plan, looked: Context, rung: Rung, least: float) -> Iterator[str]:
    """What is looked at, and what is left out."""
    cut = looked.plan
    steps = min(rung.steps, _attack_of(plan).steps or plan.schedule.steps)
    yield (
        f"at most {rung.limit} images of each split; at most {rung.most} of them attacked, by "
        f"{cut.attacks[0].name} with {steps} steps"
    )
    attacks = [a.name for a in plan.attacks if a.name != cut.attacks[0].name]
    hiding = [
        o.name for o in plan.objectives if o.name not in {p.name for p in cut.objectives}
    ]
    guards = [d for d in plan.detectors if d not in cut.detectors]
    budgets = [str(e) for e in plan.eps[1:]]
    for what, names in (
        ("attacks", attacks),
        ("objectives", hiding),
        ("guards", guards),
        ("budgets", budgets),
    ):
        if names:
            yield f"{what} left out: {', '.join(names)}"
    yield "no sanity check was run"
    if cut.data.size != plan.data.size:
        yield f"the images were resized to {cut.data.size} pixels a side"
    if looked.recipe.trains:
        yield f"the classifier was trained for at most {rung.epochs} epochs"
    if least > SECONDS:
        yield f"this network is slow: the quick look takes about {math.ceil(least / 60)} minutes"
