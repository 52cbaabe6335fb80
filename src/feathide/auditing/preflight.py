"""A look before a long run: one step of each attack on two images, the number of tasks and an
estimate of the time.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feathide.attacks.presets import pgd
from feathide.auditing.disk_space import check_room
from feathide.auditing.run import checked
from feathide.auditing.tasks import audit_tasks
from feathide.execution.engine import Task
from feathide.metrics.registry import RATES
from feathide.metrics.statistics import cases_needed, enough
from feathide.models.classifier import FeatureClassifier
from feathide.models.memory import activations, peak
from feathide.models.packaged import ChannelsLast
from feathide.pipeline.accuracy import has_network, learnt_of
from feathide.pipeline.context import Context
from feathide.pipeline.steps import TUNE_CASES, attack_of, cells
from feathide.plans.plan import Plan
from feathide.sanity.caveats import calibrated, foreseen
from feathide.sanity.fitness import without_slope
from feathide.sanity.probes import CASES

__all__ = ["Forecast", "check_plan"]

TRIED = 8  # images of the trial
SMALL = 0.05  # seconds of a task that fits or scores


@dataclass(frozen=True)
class Forecast:
    """What a plan will cost: ``says`` in sentences, ``stages`` (seconds by stage of one process),
    ``mebibytes`` of memory for each process.
    """

    says: tuple[str, ...]
    stages: Mapping[str, float]
    mebibytes: float

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())


def check_plan(plan: Plan, out: Path) -> Forecast:
    """What a plan that could run as it is will cost; raises ``InputError`` with what is wrong
    otherwise. Nothing is written.
    """
    context = checked(plan, out)
    classifier = _classifier(context)
    order = audit_tasks(context)
    step, grown = _step_seconds(context, classifier)
    left = [t for t in order if not context.store.done(t.key)]
    stages, mebibytes = _stages(context, left, step), peak() + grown / 2**20
    shown = ", ".join(
        f"{name} {seconds:.0f} s" for name, seconds in stages.items() if seconds >= 0.5
    )
    reads = classifier.read_outs(context.images(context.rows("train")[:1]))
    ways = Counter(read.words for read in reads.values())
    flat = without_slope(context, classifier)
    layers, ends = len(reads), [*reads][:1] + [*reads][1:][-1:]
    says = (
        (
            f"data: {len(context.cases)} images of {context.cases.channels} x "
            f"{' x '.join(map(str, context.cases.shape))} in {context.cases.box}"
        ),
        *(f"assumed: {note}" for note in context.cases.notes),
        "held out: "
        + ", ".join(f"{part} {len(rows)}" for part, rows in context.parts.items())
        + _attacked(context),
        _thresholds(context),
        (
            f"classifier: {plan.network.arch}, {layers} feature layers; one attack step takes "
            f"{step * 1000:.1f} ms an image"
        ),
        *(
            ["network: it expects channels last; the images are transposed for it"]
            if isinstance(classifier.model, ChannelsLast)
            else []
        ),
        *([f"weights: {taken.words}"] if (taken := context.taken()) else []),
        *([f"labelled images: {learnt_of(context)}"] if has_network(context) else []),
        *(
            ["outputs: probabilities, taken as logits by their logarithm"]
            if plan.network.output != "logits"
            else []
        ),
        *(
            [
                (
                    f"features: {' to '.join(ends)}; "
                    f"{', '.join(f'{n} x {way}' for way, n in ways.items())}"
                )
            ]
            if reads
            else []
        ),
        *(
            [
                (
                    f"no gradient: the scores of {', '.join(flat)} have none, so no attack "
                    "aims at them"
                )
            ]
            if flat
            else []
        ),
        f"tasks: {len(order)}, {len(order) - len(left)} of them done already",
        (
            f"time: about {_duration(sum(stages.values()))} with one process on this machine "
            f"({shown or 'nothing is left to do'})"
        ),
        f"disk: about {check_room(context, order) / 2**20:.0f} MiB",
        f"memory: about {mebibytes:.0f} MiB for each process",
        *(f"caveat: {caveat}" for caveat in foreseen(context)),
    )
    return Forecast(says, stages, mebibytes)


def _attacked(context: Context) -> str:
    """How many images are attacked, where the plan limits them."""
    limited = context.plan.split.most is not None
    told = ", ".join(
        f"{len(context.attacked(part))} of the {part} split"
        for part in ("detector-training", "test")
    )
    return (
        f"; at most {told} are attacked; clean accuracy and false alarms use all images"
        if limited
        else ""
    )


def _thresholds(context: Context) -> str:
    """How many calibration cases each threshold needs, how many there are, and what is
    missing.
    """
    n, said = calibrated(context)
    needs = ", ".join(f"{cases_needed(rate)} for {rate:.0%}" for rate in RATES.values())
    few = [f"{rate:.0%}" for rate in RATES.values() if not enough(n, rate)]
    missing = (
        f"; with {n} no guard can be said to hold at {', '.join(few)}: add held-out images or "
        "raise split.calibration"
    )
    return f"thresholds: {said}; false alarms need {needs}{missing if few else ''}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return (
        f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
    )


def _classifier(context: Context) -> FeatureClassifier:
    if has_network(context):
        return context.classifier
    network = context.empty_network().eval().to(context.device)
    return context.shown(network, context.plan.network.layers)


def _step_seconds(context: Context, classifier: FeatureClassifier) -> tuple[float, float]:
    """Seconds of one step for one image, and the bytes that a batch's activations take (outputs
    of all layers, float32).
    """
    rows = context.rows("test")[:TRIED]
    x, goal = context.images(rows), context.goal(rows)
    attack = pgd(context.threat(context.budgets[0]), steps=3)
    attack(classifier, x, goal, **context.terms(rows, x))
    started = time.perf_counter()
    attack(classifier, x, goal, **context.terms(rows, x))
    # a last forward pass stands beside three steps
    seconds = (time.perf_counter() - started) / 3.3 / len(rows)
    return seconds, activations(
        classifier.model, classifier.prepared(x[:1])
    ) * context.plan.batch_size


def _stages(context: Context, order: Sequence[Task], step: float) -> dict[str, float]:
    """Seconds by stage of the tasks that are left, from those of one attack step for one image.

    Attacks and probes are counted in steps. Training takes about one step an image, a forward
    pass half of one; what has no image in it is small."""
    size, hit = (
        min(context.plan.batch_size, len(rows))
        for rows in (context.rows("test"), context.attacked("test"))
    )
    schedule = attack_of(context, cells(context)[-1], None).passes
    tuned = max((len(o.weights) + 1 for o in context.plan.objectives), default=1)
    training = 5 + step * context.plan.network.train.epochs * len(context.rows("train"))
    each = {
        "train the classifier": lambda task: training,
        "train the reference network": lambda task: (
            training * (1 + context.plan.reference_network.steps)
        ),
        "train a surrogate": lambda task: training / 2,
        "extract": lambda task: size * step / 2,
        "attack": lambda task: hit * step * task.weight,
        "tune lambda on the detector-training split": lambda task: (
            TUNE_CASES * tuned * schedule * step
        ),
        "round afterwards": lambda task: size * step,
        "check the evaluation": lambda task: (
            CASES * (4 + 2 * len(context.plan.objectives)) * schedule * step
        ),
    }
    found: dict[str, float] = {}
    for task in order:
        found[task.stage] = found.get(task.stage, 0.0) + each.get(
            task.stage, lambda task: SMALL
        )(task)
    return found
