"""The arms race: defender and attacker answer each other. Each round the defender refits every
detector with the attacker's last images added to what it learns from; then the attacker attacks
again, first without looking at the detector (HFC), then knowing it (evasion)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from feathide.attacks.loop import Attack
from feathide.catalog import OBJECTIVES
from feathide.errors import expected
from feathide.execution.digests import digest
from feathide.execution.graph import Task
from feathide.execution.packing import packed, scored, taught, unpacked
from feathide.execution.store import Store
from feathide.losses import HFC, Evade, Objective
from feathide.metrics.rates import slipping, threshold
from feathide.metrics.uncertain_threshold import share_at, uncertain_threshold
from feathide.pipeline.attacking import attack_of
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import needed
from feathide.pipeline.step import Arrays
from feathide.plans.plan import Cell
from feathide.plans.sections import ObjectivePlan
from feathide.sanity.probes import probe_cell
from feathide.types import Evidence, Outputs

__all__ = ["ARMS_RACE", "arms_race"]

ARMS_RACE = (
    "round",
    "detector",
    "objective",
    "knowledge",
    "metric",
    "value",
    "low",
    "high",
    "n",
)
AIMS = {"hfc": "feature-aware", "evade": "detector-aware"}


def arms_race(
    context: Context, *, rounds: int, work_off: Callable[[Sequence[Task]], None]
) -> pd.DataFrame:
    """At most ``rounds`` rounds after round 0, in which the detectors are those of the audit; it
    ends when no case changes sides.

    ``work_off`` runs tasks that are not done yet and what they need of the audit. One row is the
    share of the test cases that the classifier gets right which slips through at 10 % false
    alarms in a round past a detector, under each objective and (``worst``) under the better one
    of each case. Columns: ``ARMS_RACE``. Raises ``InputError`` for a plan without HFC."""
    if not any(OBJECTIVES[o.kind].needs == "bank" for o in context.plan.objectives):
        raise expected(
            "an arms race begins with HFC",
            got=f"objectives {[o.name for o in context.plan.objectives]}",
            do="add hfc to them",
        )
    json = context.plan.model_dump_json()
    order = [
        Task(
            _oblivious_key(context, part),
            _needs(context),
            partial(_oblivious, json, part),
            "arms_race",
            "hfc",
            60,
        )
        for part in ("detector-training", "test")
    ]
    rows: list[tuple[object, ...]] = []
    before: dict[str, np.ndarray] = {}
    for number in range(rounds + 1):
        order += [_task(context, name, number) for name in context.plan.detectors]
        work_off(order)
        now = {}
        for name in context.plan.detectors:
            found = context.store.load(_key(context, name, number))
            slips = {
                o: slipping(found[f"fooled/{o}"], found[f"score/{o}"])
                for o in ("hfc", "evade")
            }
            slips["worst"] = partial(_any, tuple(slips.values()))
            held = np.tile(context.cases.patients[context.data.rows("calibration")], 2)
            threshold = uncertain_threshold(
                found["negatives"], 0.10, groups=held, seed=context.plan.seed
            )
            now[name] = np.stack([hit(threshold.value) for hit in slips.values()])
            for objective, hit in slips.items():
                share = share_at(
                    threshold, hit, groups=context.cases.patients[found["tested"]]
                )
                knowledge = AIMS.get(objective, "detector-aware")
                head = (number, name, objective, knowledge, "slips_through_fpr10")
                rows.append((*head, share.value, share.low, share.high, share.n))
        if before and all((now[name] == before[name]).all() for name in now):
            break
        before = now
    return pd.DataFrame(rows, columns=list(ARMS_RACE))


def _any(slips: Sequence[Callable[[float], np.ndarray]], t: float) -> np.ndarray:
    """Who slips through by any of them, at a threshold."""
    return np.any([hit(t) for hit in slips], axis=0)


def _task(context: Context, detector: str, number: int) -> Task:
    needs = (
        *_needs(context),
        *(_oblivious_key(context, p) for p in ("detector-training", "test")),
    )
    earlier = tuple(_key(context, detector, k) for k in range(number))
    work = partial(_round, context.plan.model_dump_json(), detector, number)
    return Task(
        _key(context, detector, number),
        (*needs, *earlier),
        work,
        f"arms race, round {number}",
        detector,
        60,
    )


def _key(context: Context, detector: str, number: int) -> str:
    return f"{_folder(context)}/{digest(detector)}-round-{number}"


def _oblivious_key(context: Context, part: str) -> str:
    return f"{_folder(context)}/hfc-{part}"


def _folder(context: Context) -> str:
    p = context.plan
    hiding = context.steps.condition(_cell(context, "hfc"))
    evading = context.steps.condition(_cell(context, "evade"))
    return f"arms_race/{digest([hiding, evading, p.learnt_from, p.mixture, 'scores'])}"


def _cell(context: Context, objective: str) -> Cell:
    """The probed attack with an objective at its usual weight."""
    return replace(probe_cell(context), objective=ObjectivePlan(name=objective))


def _needs(context: Context) -> tuple[str, ...]:
    both = (*needed(context, _cell(context, "evade")), context.steps.mixtures.key)
    return tuple(dict.fromkeys(both))


def _attack(context: Context, kind: str, hide: Objective) -> Attack:
    attack = attack_of(context, _cell(context, kind), OBJECTIVES[kind].weight, hide=hide)
    assert isinstance(attack, Attack)
    return attack


def _attacked(
    context: Context, attack: Attack, part: str
) -> tuple[Outputs, np.ndarray, np.ndarray]:
    """The guard's view of the attacked images of a part, their rows, and which of them fool; only
    what the classifier gets right.
    """
    rows = context.outputs.right(part)
    seen, fooled = [], []
    for batch in np.split(
        rows, range(context.plan.batch_size, len(rows), context.plan.batch_size)
    ):
        goal = context.data.goal(batch)
        x = context.data.images(batch)
        found = attack(context.networks.observer, x, goal, **context.limits.terms(batch, x))
        seen.append(context.networks.observer.observe(found.adversarial))
        fooled.append((seen[-1].predicted == goal.target.cpu()).numpy())
    return Outputs.cat(seen), rows, np.concatenate(fooled)


def _oblivious(json: str, part: str, store: Store) -> Arrays:
    context = context_of(json, store)
    out, rows, fooled = _attacked(
        context, _attack(context, "hfc", HFC(context.fitted.bank())), part
    )
    return {**packed(out, rows), "fooled": fooled}


def _round(json: str, detector: str, number: int, store: Store) -> Arrays:
    """One detector in one round: refitted, then attacked on the detector-training split (for the
    next round) and on the test split (for the table).
    """
    context = context_of(json, store)
    eps = context.limits.budgets[0]
    guard = taught(detector, _evidence(context, detector, number))
    negatives = np.concatenate(
        [
            scored(guard, context.outputs.of(c, "calibration")[0])
            for c in ("clean", noisy_at(eps))
        ]
    )
    level, scale = threshold(negatives, 0.10), max(float(np.std(negatives)), 1e-12)
    attack = _attack(context, "evade", Evade((guard,), below=(level,), scales=(scale,)))
    fit, fit_rows, _ = _attacked(context, attack, "detector-training")
    test, rows, fooled = _attacked(context, attack, "test")
    oblivious = store.load(_oblivious_key(context, "test"))
    return {
        **packed(fit, fit_rows),
        "tested": rows,
        "negatives": negatives,
        "fooled/evade": fooled,
        "score/evade": scored(guard, test),
        "fooled/hfc": oblivious["fooled"],
        "score/hfc": scored(guard, unpacked(oblivious)),
    }


def _evidence(context: Context, detector: str, number: int) -> Evidence:
    """What the detectors of the audit learn from and, from round 1 on, the attacker's images of
    the detector-training split of all earlier rounds.
    """
    base, eps = (
        context.fitted.evidence(context.limits.budgets[0]),
        context.limits.budgets[0],
    )
    keys = (
        [
            _oblivious_key(context, "detector-training"),
            *(_key(context, detector, k) for k in range(number)),
        ]
        if number
        else []
    )
    stored = [context.store.load(key) for key in keys]
    adversarial = [base.adversarial, *map(unpacked, stored)]
    parts = {
        c: [context.outputs.at(c, "detector-training", a["rows"]) for a in stored]
        for c in ("clean", noisy_at(eps))
    }
    return replace(
        base,
        clean=Outputs.cat([base.clean, *parts["clean"]]),
        noisy=Outputs.cat([base.noisy, *parts[noisy_at(eps)]]),
        adversarial=Outputs.cat(adversarial),
    )
