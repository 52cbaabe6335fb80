"""Sanity checks of the evaluation itself, in sentences: what happened, why it matters, what to
do.
"""

import pandas as pd
import torch

from feathide.catalog import ABILITIES, OBJECTIVES, ability_of
from feathide.data.budgets import format_eps
from feathide.metrics.metric import RATES
from feathide.metrics.numbers import percent, whole_percent
from feathide.metrics.rates import cases_needed, enough, independent
from feathide.pipeline.context import Context
from feathide.pipeline.coverage import coverage_of
from feathide.pipeline.listing import cells, why_not_hidden
from feathide.pipeline.network_checks import check_classifier

__all__ = ["calibrated", "caveats_of", "foreseen"]

# of a grey level: less than this lost to rounding is not worth a caveat
HARDLY = 1e-3


def caveats_of(context: Context, table: pd.DataFrame) -> list[str]:
    """The caveats that stand beside the numbers of a finished run."""
    found = foreseen(context) + _unmoved(context) + coverage_of(context)
    success = table[table.metric == "success"]
    for eps in context.limits.budgets:
        found += _weak(success[success.eps == eps])
    found.append(
        f"the supervised detectors learnt from {context.plan.train_attack}+plain at the "
        "same budget: their numbers on plain attacks are an upper bound"
    )
    return found


def calibrated(context: Context) -> tuple[int, str]:
    """How many independent cases the thresholds come from, and what to call them."""
    rows = context.data.rows("calibration")
    return independent(
        "calibration", len(rows), len(set(map(str, context.cases.patients[rows])))
    )


def foreseen(context: Context) -> list[str]:
    """The caveats that are known before anything is attacked."""
    found = [] if context.recipe.trains else check_classifier(context)
    found += _thresholds(context)
    found += _budgets(context) + _plainly(context)
    if bad := context.cases.skipped:
        found.append(
            f"{len(bad)} files could not be used and were left out, among them "
            f"{bad[0].path}: {bad[0].reason}"
        )
    return found


def _thresholds(context: Context) -> list[str]:
    """At which rates of false alarms the calibration split is too small for a threshold."""
    n, said = calibrated(context)
    short = [rate for rate in RATES.values() if not enough(n, rate)]
    if not short:
        return []
    needs = ", ".join(f"{cases_needed(r)} at {whole_percent(r)}" for r in short)
    return [
        f"{said} are few: a threshold needs {needs} false alarms; the intervals allow for it, and "
        "no guard is said to hold there"
    ]


def _budgets(context: Context) -> list[str]:
    """Budgets that hardly change what a file holds, or that were probably meant in other
    units.
    """
    found, (low, high) = [], context.cases.box
    for given, eps in zip(context.plan.eps, context.limits.budgets, strict=True):
        said = format_eps(eps, context.cases)
        if eps < context.cases.step:
            found.append(
                f"eps {said} is below one stored grey level: hardly any pixel of a file can "
                "change; raise eps before concluding anything"
            )
        found += _rounded_down(context, eps, said)
        if (
            (low, high) != (0.0, 1.0)
            and high - low > 1
            and eps < 1
            and str(given).strip()[-1].isdigit()
        ):
            found.append(
                f"eps {given} was read in units of the box [{low:g}, {high:g}], which makes "
                f"it {said}; a share of the range is {eps * (high - low):.4g}"
            )
    return found


def _rounded_down(context: Context, eps: float, said: str) -> list[str]:
    """A budget that no file can use up, since its pixels change by whole levels."""
    grid = context.limits.grid
    if grid is None or context.plan.norm != "linf":
        return []
    levels = int(context.limits.threat(eps).whole(torch.full((1, 1), eps), grid.step))
    if levels < 1 or eps / grid.step - levels < HARDLY:
        return []
    used = format_eps(levels * grid.step, context.cases)
    return [
        f"eps {said} is rounded down to {used}: a file holds whole grey levels, so no pixel "
        "changes by more"
    ]


def _plainly(context: Context) -> list[str]:
    """Attacks of others that could not hide as planned."""
    foreign = [
        (a, o)
        for a in context.plan.attacks
        if not ability_of(a.name).ours
        for o in context.plan.objectives
    ]
    reasons = {(a.name, o.name): why_not_hidden(context, a, o) for a, o in foreign}
    return [
        f"{attack} did not hide by {by}: {reason}"
        for (attack, by), reason in reasons.items()
        if reason
    ]


def _unmoved(context: Context) -> list[str]:
    """Attacks of others that took an objective to hide by, and made the images that they make
    without it.
    """
    made = {
        (c.attack.name, c.objective.name, c.eps): c
        for c in cells(context)
        if not ability_of(c.attack.name).ours
    }
    found = {}
    for (attack, by, eps), cell in made.items():
        plain = made.get((attack, "plain", eps))
        if plain is None or OBJECTIVES[cell.objective.kind].make is None:
            continue
        seen, unhidden = (
            context.outputs.of(context.steps.condition(c), "test")[0].logits
            for c in (cell, plain)
        )
        if len(seen) and torch.equal(seen, unhidden):
            found[attack, by] = (
                f"{attack} ignores what it should hide by: its images with {by} are its "
                f"plain ones; let it minimise ``hide``, or leave {by} out"
            )
    return list(found.values())


def _weak(success: pd.DataFrame) -> list[str]:
    """Attacks that succeed less often than they should."""
    found = []
    plain = success[success.objective == "plain"].set_index("attack").value
    for name in (n for n, ability in ABILITIES.items() if ability.hides):
        if name in plain and "fgsm" in plain and plain[name] < plain["fgsm"] - 1e-9:
            found.append(
                f"{name} succeeds less often than one step (fgsm): its steps or its "
                "gradient are wrong; do not trust its numbers"
            )
        if name in plain and plain[name] < 0.9:
            found.append(
                f"plain {name} succeeds on {percent(plain[name])} only: raise eps or the steps "
                "before concluding that a guard holds"
            )
    return found
