"""The duel: defender and attacker answer each other. Each round the defender refits every detector with the attacker's last images added to what it
learns from; then the attacker attacks again, first without looking at the detector (HFC), then knowing it (evasion).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from feathide.attack import Attack
from feathide.catalog import OBJECTIVES
from feathide.errors import expected
from feathide.metrics import cut, share_at, threshold
from feathide.objectives import HFC, Evade, Objective
from feathide.study.digest import digest
from feathide.study.engine import Task
from feathide.study.lab import Lab, lab_of, noisy_at
from feathide.study.packing import packed, scored, taught, unpacked
from feathide.study.parts import ObjectivePlan
from feathide.study.plan import Cell
from feathide.study.probes import probe_cell
from feathide.study.stages import Arrays, attack_of, needed, observe
from feathide.study.store import Store
from feathide.study.table import slipping
from feathide.types import Evidence, Outputs

__all__ = ["DUEL", "duel"]

DUEL = ("round", "detector", "objective", "knowledge", "metric", "value", "low", "high", "n")
AIMS = {"hfc": "feature-aware", "evade": "detector-aware"}


def duel(lab: Lab, *, rounds: int, work_off: Callable[[Sequence[Task]], None]) -> pd.DataFrame:
    """At most ``rounds`` rounds after round 0, in which the detectors are those of the audit; it ends when no case changes sides.

    ``work_off`` runs tasks that are not done yet and what they need of the audit. One row is the share of the test cases that the classifier gets
    right which slips through at 10 % false alarms in a round past a detector, under each objective and (``worst``) under the better one of each
    case. Columns: ``DUEL``. Raises ``InputError`` for a plan without HFC.
    """
    if not any(OBJECTIVES[o.kind].needs == "bank" for o in lab.plan.objectives):
        raise expected(
            "a duel begins with HFC", got=f"objectives {[o.name for o in lab.plan.objectives]}", do="add hfc to them"
        )
    json = lab.plan.model_dump_json()
    order = [
        Task(_oblivious_key(lab, part), _needs(lab), partial(_oblivious, json, part), "duel", "hfc", 60)
        for part in ("fit", "test")
    ]
    rows: list[tuple[object, ...]] = []
    before: dict[str, np.ndarray] = {}
    for number in range(rounds + 1):
        order += [_task(lab, name, number) for name in lab.plan.detectors]
        work_off(order)
        now = {}
        for name in lab.plan.detectors:
            found = lab.store.load(_key(lab, name, number))
            slips = {o: slipping(found[f"fooled/{o}"], found[f"score/{o}"]) for o in ("hfc", "evade")}
            slips["worst"] = partial(_any, tuple(slips.values()))
            held = np.tile(lab.cases.patients[lab.rows("calibrate")], 2)
            limit = cut(found["negatives"], 0.10, groups=held, seed=lab.plan.seed)
            now[name] = np.stack([hit(limit.value) for hit in slips.values()])
            for objective, hit in slips.items():
                share = share_at(limit, hit, groups=lab.cases.patients[found["tested"]])
                knowledge = AIMS.get(objective, "detector-aware")
                head = (number, name, objective, knowledge, "slips_through_fpr10")
                rows.append((*head, share.value, share.low, share.high, share.n))
        if before and all((now[name] == before[name]).all() for name in now):
            break
        before = now
    return pd.DataFrame(rows, columns=list(DUEL))


def _any(slips: Sequence[Callable[[float], np.ndarray]], t: float) -> np.ndarray:
    """Who slips through by any of them, at a threshold."""
    return np.any([hit(t) for hit in slips], axis=0)


def _task(lab: Lab, detector: str, number: int) -> Task:
    needs = (*_needs(lab), *(_oblivious_key(lab, p) for p in ("fit", "test")))
    earlier = tuple(_key(lab, detector, k) for k in range(number))
    work = partial(_round, lab.plan.model_dump_json(), detector, number)
    return Task(_key(lab, detector, number), (*needs, *earlier), work, f"duel, round {number}", detector, 60)


def _key(lab: Lab, detector: str, number: int) -> str:
    return f"{_folder(lab)}/{digest(detector)}-round-{number}"


def _oblivious_key(lab: Lab, part: str) -> str:
    return f"{_folder(lab)}/hfc-{part}"


def _folder(lab: Lab) -> str:
    p = lab.plan
    return f"duel/{digest([lab.condition(_cell(lab, 'hfc')), lab.condition(_cell(lab, 'evade')), p.learnt_from, p.mixture, 'scores'])}"


def _cell(lab: Lab, objective: str) -> Cell:
    """The probed attack with an objective at its usual weight."""
    return replace(probe_cell(lab), objective=ObjectivePlan(name=objective))


def _needs(lab: Lab) -> tuple[str, ...]:
    both = (*needed(lab, _cell(lab, "evade")), lab.mixture_key)
    return tuple(dict.fromkeys(both))


def _attack(lab: Lab, kind: str, hide: Objective) -> Attack:
    attack = attack_of(lab, _cell(lab, kind), OBJECTIVES[kind].weight, hide=hide)
    assert isinstance(attack, Attack)
    return attack


def _attacked(lab: Lab, attack: Attack, part: str) -> tuple[Outputs, np.ndarray, np.ndarray]:
    """The guard's view of the attacked images of a part, their rows, and which of them fool; only what the classifier gets right."""
    rows = lab.right(part)
    seen, fooled = [], []
    for batch in np.split(rows, range(lab.plan.batch_size, len(rows), lab.plan.batch_size)):
        goal = lab.goal(batch)
        x = lab.images(batch)
        found = attack(lab.observer, x, goal, **lab.terms(batch, x))
        seen.append(observe(lab.observer, found.adversarial))
        fooled.append((seen[-1].predicted == goal.target.cpu()).numpy())
    return Outputs.cat(seen), rows, np.concatenate(fooled)


def _oblivious(json: str, part: str, store: Store) -> Arrays:
    lab = lab_of(json, store)
    out, rows, fooled = _attacked(lab, _attack(lab, "hfc", HFC(lab.bank())), part)
    return {**packed(out, rows), "fooled": fooled}


def _round(json: str, detector: str, number: int, store: Store) -> Arrays:
    """One detector in one round: refitted, then attacked on the fit part (for the next round) and on the test part (for the table)."""
    lab = lab_of(json, store)
    eps = lab.budgets[0]
    guard = taught(detector, _evidence(lab, detector, number))
    negatives = np.concatenate([scored(guard, lab.outputs(c, "calibrate")[0]) for c in ("clean", noisy_at(eps))])
    limit, scale = threshold(negatives, 0.10), max(float(np.std(negatives)), 1e-12)
    attack = _attack(lab, "evade", Evade((guard,), below=(limit,), scales=(scale,)))
    fit, fit_rows, _ = _attacked(lab, attack, "fit")
    test, rows, fooled = _attacked(lab, attack, "test")
    oblivious = store.load(_oblivious_key(lab, "test"))
    return {
        **packed(fit, fit_rows),
        "tested": rows,
        "negatives": negatives,
        "fooled/evade": fooled,
        "score/evade": scored(guard, test),
        "fooled/hfc": oblivious["fooled"],
        "score/hfc": scored(guard, unpacked(oblivious)),
    }


def _evidence(lab: Lab, detector: str, number: int) -> Evidence:
    """What the detectors of the audit learn from and, from round 1 on, the attacker's images of the fit part of all earlier rounds."""
    base, eps = lab.evidence(lab.budgets[0]), lab.budgets[0]
    keys = [_oblivious_key(lab, "fit"), *(_key(lab, detector, k) for k in range(number))] if number else []
    stored = [lab.store.load(key) for key in keys]
    adversarial = [base.adversarial, *map(unpacked, stored)]
    parts = {c: [lab.at(c, "fit", a["rows"]) for a in stored] for c in ("clean", noisy_at(eps))}
    return replace(
        base,
        clean=Outputs.cat([base.clean, *parts["clean"]]),
        noisy=Outputs.cat([base.noisy, *parts[noisy_at(eps)]]),
        adversarial=Outputs.cat(adversarial),
    )
