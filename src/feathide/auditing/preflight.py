"""A look before a long run: one step of each attack on two images, the number of tasks and an
estimate of the time.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from feathide.auditing.disk_space import check_room
from feathide.auditing.forecast import START_UP, Pace, by_stage, classifier_of, pace_of
from feathide.auditing.run import checked
from feathide.auditing.tasks import audit_tasks
from feathide.metrics.numbers import whole_percent
from feathide.metrics.registry import RATES
from feathide.metrics.statistics import cases_needed, enough
from feathide.models.classifier import FeatureClassifier
from feathide.models.memory import peak
from feathide.models.packaged import ChannelsLast
from feathide.pipeline.accuracy import has_network, learnt_of
from feathide.pipeline.context import Context
from feathide.pipeline.listing import unhidden
from feathide.plans.plan import Plan
from feathide.sanity.caveats import calibrated, foreseen
from feathide.sanity.fitness import without_slope

__all__ = ["Forecast", "check_plan"]


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
    started = time.perf_counter()
    context = checked(plan, out)
    begins = START_UP + time.perf_counter() - started
    classifier = classifier_of(context)
    order = audit_tasks(context)
    pace = pace_of(context, classifier, order)
    left = [t for t in order if not context.store.done(t.key)]
    # an audit reads and checks the images, and makes the trial, as was just done
    stages = {"start-up": begins, **by_stage(context, left, pace)} if left else {}
    mebibytes = peak() + pace.grown / 2**20
    room = check_room(context, order)
    says = (
        *_of_the_data(context),
        *_of_the_network(context, classifier, pace),
        *filter(None, [unhidden(context)]),
        f"tasks: {len(order)}, {len(order) - len(left)} of them already done",
        _time(stages),
        f"disk: about {room / 2**20:.0f} MiB",
        f"memory: about {mebibytes:.0f} MiB for each process",
        *(f"caveat: {caveat}" for caveat in foreseen(context)),
    )
    return Forecast(says, stages, mebibytes)


def _of_the_data(context: Context) -> Iterator[str]:
    """The images, what is assumed of them, and what each split is good for."""
    cases = context.cases
    shape = " x ".join(map(str, cases.shape))
    yield f"data: {len(cases)} images of {cases.channels} x {shape} in {cases.box}"
    yield from (f"assumed: {note}" for note in cases.notes)
    sizes = ", ".join(f"{part} {len(rows)}" for part, rows in context.data.parts.items())
    yield f"held out: {sizes}{_attacked(context)}"
    yield _thresholds(context)


def _of_the_network(
    context: Context, classifier: FeatureClassifier, pace: Pace
) -> Iterator[str]:
    """The classifier, its weights, and what is read from it."""
    network = context.plan.network
    x = context.data.images(context.data.rows("train")[:1])
    reads = classifier.read_outs(x)
    yield (
        f"classifier: {network.arch}, {len(reads)} feature layers; one attack step takes "
        f"{pace.step * 1000:.1f} ms per image"
    )
    if isinstance(classifier.model, ChannelsLast):
        yield "network: it expects channels last; the images are transposed for it"
    if taken := context.recipe.taken():
        yield f"weights: {taken.words}"
    if has_network(context):
        yield f"labelled images: {learnt_of(context)}"
    if network.output != "logits":
        yield "outputs: probabilities; their logarithms are used as logits"
    if reads:
        layers, ways = list(reads), Counter(read.words for read in reads.values())
        ends = " to ".join([layers[0], *layers[1:][-1:]])
        yield f"features: {ends}; {', '.join(f'{n} x {way}' for way, n in ways.items())}"
    if flat := without_slope(context, classifier):
        yield (
            f"no gradient: the scores of {', '.join(flat)} have none, so attacks cannot aim at "
            "them"
        )


def _time(stages: Mapping[str, float]) -> str:
    """How long it will take in all, and what takes long."""
    long = [f"{name} {seconds:.0f} s" for name, seconds in stages.items() if seconds >= 0.5]
    return (
        f"time: about {_duration(sum(stages.values()))} with one process on this machine "
        f"({', '.join(long) or 'nothing is left to do'})"
    )


def _attacked(context: Context) -> str:
    """How many images are attacked, where the plan limits them."""
    limited = context.plan.split.most is not None
    told = ", ".join(
        f"{len(context.data.attacked(part))} of the {part} split"
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
    needs = ", ".join(
        f"{cases_needed(rate)} for {whole_percent(rate)}" for rate in RATES.values()
    )
    few = [whole_percent(rate) for rate in RATES.values() if not enough(n, rate)]
    missing = (
        f"; {n} are too few to conclude that a guard holds at {', '.join(few)}: add held-out "
        "images or raise split.calibration"
    )
    return f"thresholds: {said}; false alarms need {needs}{missing if few else ''}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return (
        f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
    )
