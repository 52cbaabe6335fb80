"""What the tasks of an audit will take: from the measured time of one attack step for one image.

Attacks and probes are counted in steps; what has no image in it is small."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from feathide.attacks.presets import pgd
from feathide.execution.engine import Task
from feathide.models.classifier import FeatureClassifier
from feathide.models.memory import activations
from feathide.pipeline.accuracy import has_network
from feathide.pipeline.attacking import TUNE_CASES, attack_of
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.sanity.probes import CASES

__all__ = ["FINISH", "START_UP", "Pace", "by_stage", "classifier_of", "foreseen", "pace_of"]

TRIED = 8  # images of the trial
SMALL = 0.05  # seconds of a task that fits or scores
TRAINING = 1.5  # a step of training, in steps of an attack
BEGIN = 2.0  # seconds of what a training needs: Lightning, optimiser, data
START_UP = 4.0  # seconds of the imports
FINISH = 4.0  # seconds of tables and the page


@dataclass(frozen=True)
class Pace:
    """Seconds of one attack ``step`` for one image, of the classifier and of the ``reference``
    network (0 where there is none), and the bytes by which a batch's activations grow.
    """

    step: float
    reference: float
    grown: float


def classifier_of(context: Context) -> FeatureClassifier:
    """The classifier; untrained, where its training is part of the audit."""
    if has_network(context):
        return context.networks.classifier
    network = context.recipe.empty_network().eval().to(context.data.device)
    return context.networks.shown(network, context.plan.network.layers)


def pace_of(
    context: Context, classifier: FeatureClassifier, order: Sequence[Task] = ()
) -> Pace:
    """Measured on a few images; the reference network only where ``order`` trains one."""
    rows = context.data.rows("test")[:TRIED]
    x = context.data.images(rows)
    reference = 0.0
    if any(t.stage == "train the reference network" for t in order):
        network = context.recipe.empty_reference_network().eval().to(context.data.device)
        reference = _step_seconds(context, context.networks.shown(network, "blocks"))
    grown = activations(classifier.model, classifier.prepared(x[:1]))
    return Pace(
        _step_seconds(context, classifier), reference, grown * context.plan.batch_size
    )


def _step_seconds(context: Context, classifier: FeatureClassifier) -> float:
    """Seconds of one step for one image."""
    rows = context.data.rows("test")[:TRIED]
    x, goal = context.data.images(rows), context.data.goal(rows)
    attack = pgd(context.limits.threat(context.limits.budgets[0]), steps=3)
    attack(classifier, x, goal, **context.limits.terms(rows, x))
    started = time.perf_counter()
    attack(classifier, x, goal, **context.limits.terms(rows, x))
    # a last forward pass stands beside three steps
    return (time.perf_counter() - started) / 3.3 / len(rows)


def foreseen(context: Context, order: Sequence[Task]) -> list[Task]:
    """The tasks with the seconds that each will take as their weights."""
    pace = pace_of(context, classifier_of(context), order)
    return [replace(t, weight=_seconds(context, t, pace)) for t in order]


def by_stage(context: Context, order: Sequence[Task], pace: Pace) -> dict[str, float]:
    """Seconds by stage of one process, tables and the page included."""
    found: dict[str, float] = {}
    for task in order:
        found[task.stage] = found.get(task.stage, 0.0) + _seconds(context, task, pace)
    if found:
        found["tables and the page"] = FINISH
    return found


def _seconds(context: Context, task: Task, pace: Pace) -> float:
    """Seconds of one task. A forward pass takes half of an attack step."""
    plan, step = context.plan, pace.step
    size, hit = (
        min(plan.batch_size, len(rows))
        for rows in (context.data.rows("test"), context.data.attacked("test"))
    )
    schedule = attack_of(context, cells(context)[-1], None).passes
    tuned = max((len(o.weights) + 1 for o in plan.objectives), default=1)
    images = len(context.data.rows("train"))
    training = BEGIN + TRAINING * step * plan.network.train.epochs * images
    guard = plan.reference_network
    robust = pace.reference * guard.train.epochs * images * (TRAINING + guard.steps)
    robust += BEGIN
    each: Mapping[str, float] = {
        "train the classifier": training,
        "train the reference network": robust,
        "train a surrogate": training / 2,
        "extract": size * step / 2,
        "attack": hit * step * task.weight,
        "tune lambda on the detector-training split": TUNE_CASES * tuned * schedule * step,
        "round afterwards": size * step,
        "check the evaluation": CASES * (4 + 2 * len(plan.objectives)) * schedule * step,
    }
    return each.get(task.stage, SMALL)
