"""A look before a long run: one step of each attack on two images, the number of tasks and an estimate of the time."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from feathide.classifier import FeatureClassifier
from feathide.memory import activations, peak
from feathide.metrics import cases_needed, enough
from feathide.packaged import ChannelsLast
from feathide.recipes import pgd
from feathide.study.caveats import calibrated, foreseen
from feathide.study.engine import Task
from feathide.study.fitness import without_slope
from feathide.study.lab import FALSE_ALARMS, Lab
from feathide.study.learnt import has_network, learnt_of
from feathide.study.order import audit_tasks
from feathide.study.plan import Plan
from feathide.study.probes import CASES
from feathide.study.room import check_room
from feathide.study.run import checked
from feathide.study.stages import TUNE_CASES, attack_of, cells

__all__ = ["Forecast", "check_plan"]

TRIED = 8  # images of the trial
SMALL = 0.05  # seconds of a task that fits or scores


@dataclass(frozen=True)
class Forecast:
    """What a plan will cost: ``says`` in sentences, ``stages`` (seconds by stage of one process), ``mebibytes`` of memory for each process."""

    says: tuple[str, ...]
    stages: Mapping[str, float]
    mebibytes: float

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())


def check_plan(plan: Plan, out: Path) -> Forecast:
    """What a plan that could run as it is will cost; raises ``InputError`` with what is wrong otherwise. Nothing is written."""
    lab = checked(plan, out)
    classifier = _classifier(lab)
    order = audit_tasks(lab)
    step, grown = _step_seconds(lab, classifier)
    left = [t for t in order if not lab.store.done(t.key)]
    stages, mebibytes = _stages(lab, left, step), peak() + grown / 2**20
    shown = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items() if seconds >= 0.5)
    reads = classifier.read_outs(lab.images(lab.rows("train")[:1]))
    ways = Counter(read.words for read in reads.values())
    flat = without_slope(lab, classifier)
    layers, ends = len(reads), [*reads][:1] + [*reads][1:][-1:]
    says = (
        f"data: {len(lab.cases)} images of {lab.cases.channels} x {' x '.join(map(str, lab.cases.shape))} in {lab.cases.box}",
        *(f"assumed: {note}" for note in lab.cases.notes),
        "held out: " + ", ".join(f"{part} {len(rows)}" for part, rows in lab.parts.items()) + _attacked(lab),
        _thresholds(lab),
        f"classifier: {plan.network.arch}, {layers} feature layers; one attack step takes {step * 1000:.1f} ms an image",
        *(
            ["network: it takes its channels last; the images are turned for it"]
            if isinstance(classifier.model, ChannelsLast)
            else []
        ),
        *([f"weights: {taken.words}"] if (taken := lab.taken()) else []),
        *([f"labelled images: {learnt_of(lab)}"] if has_network(lab) else []),
        *(["outputs: probabilities, taken as logits by their logarithm"] if plan.network.output != "logits" else []),
        *([f"features: {' to '.join(ends)}; {', '.join(f'{n} x {way}' for way, n in ways.items())}"] if reads else []),
        *([f"no gradient: that of the scores of {', '.join(flat)}, so that no attack aims at them"] if flat else []),
        f"tasks: {len(order)}, {len(order) - len(left)} of them done already",
        f"time: about {_duration(sum(stages.values()))} with one process on this machine ({shown or 'nothing is left to do'})",
        f"disk: about {check_room(lab, order) / 2**20:.0f} MiB",
        f"memory: about {mebibytes:.0f} MiB for each process",
        *(f"caveat: {caveat}" for caveat in foreseen(lab)),
    )
    return Forecast(says, stages, mebibytes)


def _attacked(lab: Lab) -> str:
    """How many images are attacked, where the plan limits them."""
    limited = lab.plan.split.most is not None
    told = ", ".join(f"{len(lab.attacked(part))} of the {part} part" for part in ("fit", "test"))
    return f"; attacked are at most {told}, and clean accuracy and false alarms are of all" if limited else ""


def _thresholds(lab: Lab) -> str:
    """How many calibrate cases each threshold needs, how many there are, and what is missing."""
    n, said = calibrated(lab)
    needs = ", ".join(f"{cases_needed(rate)} for {rate:.0%}" for rate in FALSE_ALARMS.values())
    few = [f"{rate:.0%}" for rate in FALSE_ALARMS.values() if not enough(n, rate)]
    missing = (
        f"; with {n} no guard can be said to hold at {', '.join(few)}: add held-out images or raise split.calibrate"
    )
    return f"thresholds: {said}; false alarms need {needs}{missing if few else ''}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _classifier(lab: Lab) -> FeatureClassifier:
    if has_network(lab):
        return lab.classifier
    network = lab.empty_network().eval().to(lab.device)
    return lab.shown(network, lab.plan.network.layers)


def _step_seconds(lab: Lab, classifier: FeatureClassifier) -> tuple[float, float]:
    """Seconds of one step for one image, and the bytes that a batch's activations take (outputs of all layers, float32)."""
    rows = lab.rows("test")[:TRIED]
    x, goal = lab.images(rows), lab.goal(rows)
    attack = pgd(lab.threat(lab.budgets[0]), steps=3)
    attack(classifier, x, goal, **lab.terms(rows, x))
    started = time.perf_counter()
    attack(classifier, x, goal, **lab.terms(rows, x))
    seconds = (time.perf_counter() - started) / 3.3 / len(rows)  # a last forward pass stands beside three steps
    return seconds, activations(classifier.model, classifier.prepared(x[:1])) * lab.plan.batch_size


def _stages(lab: Lab, order: Sequence[Task], step: float) -> dict[str, float]:
    """Seconds by stage of the tasks that are left, from those of one attack step for one image.

    Attacks and probes are counted in steps. Training takes about one step an image, a forward pass half of one; what has no image in it is small.
    """
    size, hit = (min(lab.plan.batch_size, len(rows)) for rows in (lab.rows("test"), lab.attacked("test")))
    walk = attack_of(lab, cells(lab)[-1], None).passes
    tuned = max((len(o.weights) + 1 for o in lab.plan.objectives), default=1)
    training = 5 + step * lab.plan.network.train.epochs * len(lab.rows("train"))
    each = {
        "train the classifier": lambda task: training,
        "train the witness": lambda task: training * (1 + lab.plan.witness.steps),
        "train a surrogate": lambda task: training / 2,
        "extract": lambda task: size * step / 2,
        "attack": lambda task: hit * step * task.weight,
        "tune lambda on the fit part": lambda task: TUNE_CASES * tuned * walk * step,
        "round afterwards": lambda task: size * step,
        "check the evaluation": lambda task: CASES * (4 + 2 * len(lab.plan.objectives)) * walk * step,
    }
    found: dict[str, float] = {}
    for task in order:
        found[task.stage] = found.get(task.stage, 0.0) + each.get(task.stage, lambda task: SMALL)(task)
    return found
