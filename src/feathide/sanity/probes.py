"""Probes: small extra attacks on the detector-training split whose outcome is known in advance if
the evaluation is sound. The sanity checks judge them.

A ``Trial`` is all that a probe needs; ``measure`` runs the probes and gives plain arrays;
``probe_tasks(context)`` are the tasks of an audit."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from feathide.attacks.leave import when_fooled
from feathide.attacks.presets import fgsm, noise
from feathide.catalog import OBJECTIVES, ability_of
from feathide.execution.digests import digest
from feathide.execution.graph import Task
from feathide.execution.store import Store
from feathide.pipeline.attacker import Attacker
from feathide.pipeline.attacking import attack_of, weight_of
from feathide.pipeline.conditions import PLAIN
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import needed
from feathide.pipeline.step import Arrays
from feathide.plans.plan import Cell
from feathide.plans.sections import AttackPlan, ObjectivePlan
from feathide.sanity.guard_gradients import QUERIES, STEPS, leads, lowered
from feathide.sanity.network_probes import (
    batch_gap,
    flags_of,
    kept_share,
    ranks_of,
    slope_of,
    whole_box,
)
from feathide.sanity.planted import planted
from feathide.sanity.surrogate import surrogate_key, surrogate_of, surrogate_task
from feathide.sanity.trial import LOOKED, Guard, Trial, run_attack
from feathide.types import Outputs

__all__ = [
    "measure",
    "numbered",
    "probe_key",
    "probe_tasks",
    "probes_in",
    "trial_of",
]

CASES = 16


def measure(trial: Trial) -> dict[str, np.ndarray]:
    """All probes. Keys, with n images, S steps and m images with a planted point:

    ``flag/<name>``: a flag of the network; ``gradient`` (n,): the largest slope of the attack's
    loss at the clean image; ``noise``, ``single``, ``base``, ``double``, ``whole``, ``transfer``
    (n,): who was fooled by random noise, one step, the attack, twice its steps, a budget as large
    as the box, and the attack on the surrogate; ``trace`` (S + 1, n); ``kept`` (n,): the share of
    a small ball that keeps the attack's decision; ``base/<objective>`` and ``double/<objective>``
    (n,); ``rank/<objective>`` (D,): rank correlation of the hiding loss with each detector's
    score; ``lower/<detector>`` (3, 2 k): by how many spreads of clean scores a score fell from
    the first k images, clean and attacked, by its own gradient, by a search without gradients and
    in the images that were made for other ends; NaN for the first where no gradient leads from
    the score to the image; ``undifferentiable/<detector>``: whether it says so;
    ``planted`` (m,): who found it with all detectors in the loop, ``planted/<detector>`` with
    one; ``batch/<detector>``: how far a score depends on its batch."""
    arrays = {
        f"flag/{name}": np.asarray(raised) for name, raised in flags_of(trial).items()
    }
    arrays["gradient"] = slope_of(trial)
    plain = trial.attack
    quick = replace(plain, leave=when_fooled)
    base = run_attack(trial, plain)
    for name, attack in {
        "noise": noise(plain.threat),
        "single": fgsm(plain.threat),
        "double": replace(quick, steps=2 * plain.steps),
        "whole": replace(
            quick, steps=2 * plain.steps, threat=plain.threat.scaled(whole_box(trial))
        ),
    }.items():
        arrays[name] = run_attack(trial, attack, free=name == "whole")[1]
    arrays["transfer"] = run_attack(trial, plain, trial.surrogate)[1]
    arrays |= {"base": base[1], "trace": base[2], "kept": kept_share(trial, base[0])}
    others = [base[0]]
    for name, attack in trial.hidden.items():
        found = run_attack(trial, attack, trial.observer)
        arrays[f"base/{name}"] = found[1]
        arrays[f"double/{name}"] = run_attack(
            trial, replace(attack, steps=2 * attack.steps), trial.observer
        )[1]
        arrays[f"rank/{name}"] = ranks_of(trial, attack, torch.cat([base[0], found[0]]))
        others.append(found[0])
    with torch.no_grad():
        out = trial.observer(trial.x).to("cpu")
    alone = _alone(trial)
    for name, g in trial.guards.items():
        shipped = g.detector.needs_guards
        gap = batch_gap(g.detector, out, alone if shipped else ())
        arrays[f"batch/{name}"] = np.asarray(gap)
        # a guard as shipped declares nothing: it has a gradient or not
        flat = not g.detector.differentiable or (shipped and not leads(trial, g))
        arrays[f"undifferentiable/{name}"] = np.asarray(flat)
    return arrays | lowered(trial, base[0], others) | planted(trial)


def _alone(trial: Trial) -> list[Outputs]:
    """What is seen of each image by itself, where a guard as shipped looks at images."""
    if not any(g.detector.needs_guards for g in trial.guards.values()):
        return []
    with torch.no_grad():
        return [trial.observer(x[None]).to("cpu") for x in trial.x]


def probe_cell(context: Context) -> Cell:
    """The plain attack that is probed, at the audited budget: the one that the detectors learn
    from, else the first that has steps.
    """
    wanted = [
        a
        for a in (context.plan.learnt_from, *context.plan.attacks)
        if ability_of(a.name).hides and not ability_of(a.name).several
    ]
    return Cell((wanted or [AttackPlan(name="pgd")])[0], PLAIN, context.limits.budgets[0])


def probe_key(context: Context) -> str:
    """Where the probes of a context are stored."""
    p = context.plan
    parts = [context.steps.condition(c) for c in (probe_cell(context), *_hidden(context))]
    what = [
        *parts,
        p.detectors,
        p.learnt_from,
        p.mixture,
        CASES,
        LOOKED,
        STEPS,
        QUERIES,
        surrogate_key(context),
        *context.steps.sight.values(),
    ]
    return f"sanity_checks/{digest([*what, 'by number'])}"


def probe_tasks(context: Context) -> list[Task]:
    """The tasks of the probes; none with ``sanity_checks: off``."""
    if context.plan.sanity_checks == "off":
        return []
    surrogate = surrogate_task(context)
    needs = [
        surrogate.key,
        *needed(
            context, replace(probe_cell(context), objective=ObjectivePlan(name="evade"))
        ),
    ]
    for cell in _hidden(context):
        needs += [
            *needed(context, cell),
            *([context.steps.tune(cell).key] if cell.objective.weight == "auto" else []),
        ]
    work = partial(_probe, context.plan.model_dump_json())
    return [
        surrogate,
        Task(
            probe_key(context),
            tuple(dict.fromkeys(needs)),
            work,
            "check the evaluation",
            "sanity_checks",
            60,
        ),
    ]


def _hidden(context: Context) -> list[Cell]:
    """The probed attack with the objective of the plan that knows most of the guard, if any
    hides.
    """
    known = sorted(
        (o for o in context.plan.objectives if o.kind != "plain"),
        key=_knows_detectors,
        reverse=True,
    )
    return [replace(probe_cell(context), objective=o) for o in known[:1]]


def _knows_detectors(objective: ObjectivePlan) -> bool:
    return OBJECTIVES[objective.kind].knowledge == "detector-aware"


def _probe(json: str, store: Store) -> Arrays:
    return numbered(measure(trial_of(context_of(json, store))))


def numbered(arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays by number, with a list of their names: names of detectors and objectives may
    hold brackets and arguments, those of the store may not.
    """
    names = list(arrays)
    return {f"a{i:04d}": arrays[name] for i, name in enumerate(names)} | {
        "names": np.array(names)
    }


def probes_in(arrays: Arrays) -> Arrays:
    """The inverse of ``numbered``."""
    return {str(name): arrays[f"a{i:04d}"] for i, name in enumerate(arrays["names"])}


def trial_of(context: Context) -> Trial:
    """A few images of the detector-training split that the classifier gets right."""
    rows = context.outputs.right("detector-training")[:CASES]
    cell = probe_cell(context)
    found = Attacker(context, cell.eps).detectors(None)
    guards = {
        n: Guard(*g)
        for n, g in zip(context.plan.detectors, zip(*found, strict=True), strict=True)
    }
    hidden = {
        c.objective.name: attack_of(context, c, weight_of(context, c))
        for c in _hidden(context)
    }
    x = context.data.images(rows)
    return Trial(
        context.networks.classifier,
        context.networks.observer,
        surrogate_of(context),
        x,
        context.data.goal(rows),
        context.data.ids(rows),
        attack_of(context, cell, None),  # type: ignore[arg-type]  # an ensemble is never probed
        hidden,  # type: ignore[arg-type]
        guards,
        context.limits.grid,
        context.limits.mask(x),
        context.plan.seed,
    )
