"""Sanity checks of the evaluation itself, in sentences: what happened, why it matters, what to do."""

import pandas as pd
import torch

from feathide.catalog import ITERATIVE, OBJECTIVES, OUR_ATTACKS
from feathide.data.eps import format_eps
from feathide.metrics import cases_needed, enough, independent
from feathide.study.coverage import coverage_of
from feathide.study.lab import FALSE_ALARMS, Lab
from feathide.study.stages import cells, plain_only

__all__ = ["calibrated", "caveats_of", "foreseen"]


def caveats_of(lab: Lab, table: pd.DataFrame) -> list[str]:
    """The caveats that stand beside the numbers of a finished run."""
    found = foreseen(lab) + _unmoved(lab) + coverage_of(lab)
    success = table[table.metric == "success"]
    for eps in lab.budgets:
        found += _weak(success[success.eps == eps])
    found.append(
        f"the supervised detectors learnt from {lab.plan.train_attack}+plain at the same budget: their numbers on plain attacks are an upper bound"
    )
    return found


def calibrated(lab: Lab) -> tuple[int, str]:
    """How many independent cases the thresholds come from, and what to call them."""
    rows = lab.rows("calibrate")
    return independent("calibrate", len(rows), len(set(map(str, lab.cases.patients[rows]))))


def foreseen(lab: Lab) -> list[str]:
    """The caveats that are known before anything is attacked."""
    found = [] if lab.trains else lab.check_classifier()
    n, said = calibrated(lab)
    for name, rate in FALSE_ALARMS.items():
        if not enough(n, rate):
            found.append(
                f"{said} are few for {rate:.0%} false alarms: a threshold there needs {cases_needed(rate)}; the intervals at {name}"
                " allow for it, and no guard is said to hold at this level"
            )
    found += _budgets(lab) + _plainly(lab)
    if bad := lab.cases.skipped:
        found.append(f"{len(bad)} files could not be used and were left out, among them {bad[0].path}: {bad[0].reason}")
    return found


def _budgets(lab: Lab) -> list[str]:
    """Budgets that hardly change what a file holds, or that were probably meant in other units."""
    found, (low, high) = [], lab.cases.box
    for given, eps in zip(lab.plan.eps, lab.budgets, strict=True):
        said = format_eps(eps, lab.cases)
        if eps < lab.cases.step:
            found.append(
                f"eps {said} is below one stored grey level: hardly any pixel of a file can change; raise eps before concluding anything"
            )
        if (low, high) != (0.0, 1.0) and high - low > 1 and eps < 1 and str(given).strip()[-1].isdigit():
            found.append(
                f"eps {given} was read in units of the box [{low:g}, {high:g}], which makes it {said}; a share of the range is {eps * (high - low):.4g}"
            )
    return found


def _plainly(lab: Lab) -> list[str]:
    """Attacks of others that could not hide as planned."""
    foreign = [(a, o) for a in lab.plan.attacks if a.name not in OUR_ATTACKS for o in lab.plan.objectives]
    reasons = {(a.name, o.name): plain_only(lab, a, o) for a, o in foreign}
    return [f"{attack} did not hide by {by}: {reason}" for (attack, by), reason in reasons.items() if reason]


def _unmoved(lab: Lab) -> list[str]:
    """Attacks of others that took an objective to hide by, and made the images that they make without it."""
    made = {(c.attack.name, c.objective.name, c.eps): c for c in cells(lab) if c.attack.name not in OUR_ATTACKS}
    found = {}
    for (attack, by, eps), cell in made.items():
        plain = made.get((attack, "plain", eps))
        if plain is None or OBJECTIVES[cell.objective.kind].make is None:
            continue
        seen, unhidden = (lab.outputs(lab.condition(c), "test")[0].logits for c in (cell, plain))
        if len(seen) and torch.equal(seen, unhidden):
            found[attack, by] = (
                f"{attack} ignores what it should hide by: its images with {by} are its plain ones; let it minimise ``hide``, or leave {by} out"
            )
    return list(found.values())


def _weak(success: pd.DataFrame) -> list[str]:
    """Attacks that succeed less often than they should."""
    found = []
    plain = success[success.objective == "plain"].set_index("attack").value
    for name in ITERATIVE:
        if name in plain and "fgsm" in plain and plain[name] < plain["fgsm"] - 1e-9:
            found.append(
                f"{name} succeeds less often than one step (fgsm): its steps or its gradient are wrong; do not trust its numbers"
            )
        if name in plain and plain[name] < 0.9:
            found.append(
                f"plain {name} succeeds on {plain[name]:.0%} only: raise eps or the steps before concluding that a guard holds"
            )
    return found
