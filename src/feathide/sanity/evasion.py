"""What the sanity checks read of the stored results: who was fooled, who slipped through, which
scores fell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from feathide.catalog import OBJECTIVES, ability_of
from feathide.pipeline.accuracy import Learnt, learnt_stored
from feathide.pipeline.conditions import PLAIN, noisy_at
from feathide.pipeline.context import Context
from feathide.pipeline.data import PARTS
from feathide.pipeline.listing import cells
from feathide.pipeline.stored import Found, found_in, negatives_in, scores_in, thresholds_of
from feathide.plans.plan import Cell

__all__ = [
    "Evasion",
    "effective_aims",
]

# of the spread (interquartile range) of clean scores: what an effective attack lowers the score
# it aims at by
LEAST_FALL = 0.1
# of the plain attack's images: where so many pass, there is nothing to lower
ACCEPTED = 0.9


@dataclass(frozen=True)
class Evasion:
    """What the sanity checks read of the stored results.

    ``learnt``: how often the classifier is right on labelled images;
    ``silent``: images that fooled on the way and were counted as failures; ``budgets``: success
    of each iterative plain attack by rising eps; ``aware``: for each detector who slips through
    (n,) under the best oblivious and the best aimed attack, or None; ``patients``: of each part;
    ``taught``: at each budget, the success on the detector-training split of the attack that the
    detectors learn from, and the share of images whose features it left;
    ``hidden``: who (n,) is fooled without and with HFC, by attack; ``falls``: by objective and
    detector aimed at, by how much (n,) the score of an image lies below that of the plain attack,
    in spreads of clean scores, or None where the plan has no plain attack beside it;
    ``still``: noisy images that equal the clean ones; ``clean``: for each detector the clean
    scores of the calibration and the test split;
    ``thresholds``: for each detector its calibration scores, clean and noisy, a threshold and the
    rate of false alarms that it stands for."""

    learnt: Learnt | None = None
    silent: int = 0
    attacked: int = 1
    budgets: Mapping[str, Sequence[float]] = field(default_factory=dict)
    aware: Mapping[str, tuple[np.ndarray, np.ndarray] | None] = field(default_factory=dict)
    taught: Sequence[tuple[float, float]] = ()
    hidden: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    falls: Mapping[tuple[str, str], np.ndarray | None] = field(default_factory=dict)
    patients: Mapping[str, frozenset[str]] = field(default_factory=dict)
    still: int = 0
    clean: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    thresholds: Mapping[str, tuple[np.ndarray, float, float]] = field(default_factory=dict)


def is_effective(falls: np.ndarray | None) -> bool:
    """Whether an attack lowered the score that it aimed at: the median fall is at least
    ``LEAST_FALL``. What could not be measured counts.
    """
    return falls is None or not len(falls) or float(np.median(falls)) >= LEAST_FALL


def evasion_of(context: Context) -> Evasion:
    found = [found_in(context, c) for c in cells(context)]
    at = {(f.cell.attack.name, f.cell.objective.name, f.cell.eps): f for f in found}
    detectors = context.plan.detectors
    return Evasion(
        learnt=learnt_stored(context),
        silent=sum(int(((f.first >= 0) & ~f.fooled).sum()) for f in found),
        attacked=sum(len(f.rows) for f in found),
        budgets=_by_budget(context, at),
        taught=[_training_attack(context, eps) for eps in context.limits.budgets],
        hidden={
            f.cell.name: (at[f.cell.attack.name, "plain", f.cell.eps].fooled, f.fooled)
            for f in found
            if OBJECTIVES[f.cell.objective.kind].needs == "bank"
            and (f.cell.attack.name, "plain", f.cell.eps) in at
            and len(f.rows)
        },
        falls=falls_of(context, found),
        aware={d: _best_of(context, d, found) for d in detectors},
        patients={
            part: frozenset(map(str, context.cases.patients[context.data.rows(part)]))
            for part in ("train", *PARTS)
        },
        still=_still(context),
        clean={d: _clean_scores(context, d) for d in detectors},
        thresholds={d: _threshold(context, d) for d in detectors},
    )


def _by_budget(
    context: Context, at: Mapping[tuple[str, str, float], Found]
) -> dict[str, list[float]]:
    """The success of each iterative plain attack by rising eps."""
    order = sorted(context.limits.budgets)
    plain = [a.name for a in context.plan.attacks if ability_of(a.name).hides]
    return {
        name: [float(at[name, "plain", eps].fooled.mean()) for eps in order]
        for name in plain
        if (name, "plain", order[0]) in at and len(at[name, "plain", order[0]].rows)
    }


def _still(context: Context) -> int:
    """How many noisy test images equal the clean ones."""
    noisy, rows = context.outputs.of(noisy_at(context.limits.budgets[0]), "test")
    clean = context.outputs.at("clean", "test", rows)
    same = [(noisy.features[n] == f).all(1).numpy() for n, f in clean.features.items()]
    return int(np.all(same, axis=0).sum())


def _clean_scores(context: Context, detector: str) -> tuple[np.ndarray, np.ndarray]:
    """The clean scores of the calibration and the test split."""
    eps = context.limits.budgets[0]
    return (
        scores_in(context, detector, eps, "clean", "calibration"),
        scores_in(context, detector, eps, "clean", "test"),
    )


def _threshold(context: Context, detector: str) -> tuple[np.ndarray, float, float]:
    """A detector's calibration scores, its threshold, and the rate that this stands for."""
    eps = context.limits.budgets[0]
    threshold = thresholds_of(context, detector, eps)["fpr10"]
    return negatives_in(context, detector, eps), threshold, 0.10


def _training_attack(context: Context, eps: float) -> tuple[float, float]:
    """The success on the detector-training split of the attack that the detectors learn from, and
    the share of its images whose features are those of the clean ones.
    """
    cell = Cell(context.plan.learnt_from, PLAIN, eps)
    learnt = found_in(context, cell, "detector-training")
    if not len(learnt.rows):
        return 0.0, 0.0
    attacked, rows = context.outputs.of(context.steps.condition(cell), "detector-training")
    clean = context.outputs.at("clean", "detector-training", rows)
    same = [(attacked.features[n] == f).all(1).numpy() for n, f in clean.features.items()]
    return float(learnt.fooled.mean()), float(np.all(same, axis=0).mean()) if same else 0.0


def falls_of(
    context: Context, found: Sequence[Found]
) -> dict[tuple[str, str], np.ndarray | None]:
    """For each objective that knows detectors and each detector that it aims at, the falls (see
    ``Evasion``) of its best attack; without the detectors that accept most images of its plain
    attack anyway.
    """
    at = {(f.cell.attack.name, f.cell.objective.name, f.cell.eps): f for f in found}
    falls: dict[tuple[str, str], np.ndarray | None] = {}
    for f in found:
        objective = f.cell.objective
        if OBJECTIVES[objective.kind].knowledge != "detector-aware" or not len(f.rows):
            continue
        plain = at.get((f.cell.attack.name, "plain", f.cell.eps))
        for detector in objective.aimed_at(context.plan.detectors):
            if detector not in context.plan.detectors:
                continue
            fall = None if plain is None else _fall(context, detector, plain, f)
            old, key = falls.get((objective.name, detector)), (objective.name, detector)
            if fall is None and plain is not None:
                continue
            if old is None or (fall is not None and np.median(fall) > np.median(old)):
                falls[key] = fall
    return falls


def _fall(context: Context, detector: str, plain: Found, aware: Found) -> np.ndarray | None:
    """By how much the score of each image lies below that of the plain attack; None where most of
    that attack's images pass anyway.
    """
    eps = aware.cell.eps
    before = scores_in(
        context, detector, eps, context.steps.condition(plain.cell), "test", aware.rows
    )
    if np.mean(before <= thresholds_of(context, detector, eps)["fpr10"]) >= ACCEPTED:
        return None
    after = scores_in(
        context, detector, eps, context.steps.condition(aware.cell), "test", aware.rows
    )
    clean = scores_in(context, detector, eps, "clean", "calibration")
    spread = (
        float(np.subtract(*np.quantile(clean, (0.75, 0.25)))) or float(clean.std()) or 1.0
    )
    return (before - after) / spread


def effective_aims(context: Context) -> dict[str, tuple[str, ...]]:
    """The detectors that each objective of the plan attacked with effect, which is what a verdict
    may count as an attack on them.
    """
    falls = falls_of(context, [found_in(context, c) for c in cells(context)])
    return {
        o.name: tuple(
            d
            for d in o.aimed_at(context.plan.detectors)
            if is_effective(falls.get((o.name, d)))
        )
        for o in context.plan.objectives
    }


def _best_of(
    context: Context, detector: str, found: Sequence[Found]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Who slips past ``detector`` at 10 % false alarms and the first budget: under the best
    oblivious and the best aimed attack.
    """
    eps = context.limits.budgets[0]
    threshold = thresholds_of(context, detector, eps)["fpr10"]
    best: dict[str, np.ndarray] = {}
    for f in found:
        cell = f.cell
        kind = OBJECTIVES[cell.objective.kind]
        aim = cell.objective.aimed_at((detector,))
        if (
            cell.eps != eps
            or not len(f.rows)
            or (kind.knowledge == "detector-aware" and detector not in aim)
        ):
            continue
        slips = f.fooled & (
            scores_in(context, detector, eps, context.steps.condition(cell), "test", f.rows)
            <= threshold
        )
        if kind.knowledge not in best or slips.mean() > best[kind.knowledge].mean():
            best[kind.knowledge] = slips
    pair = best.get("oblivious"), best.get("detector-aware")
    return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])
