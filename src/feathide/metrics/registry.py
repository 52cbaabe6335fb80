"""The metrics of a results table. One entry of ``METRICS`` is all that a metric is: the table,
``--fail-if``, the report, the model card and comparisons of runs read it here.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from feathide.metrics.calibration import brier_score, calibration_error
from feathide.metrics.intervals import Interval, bootstrap, proportion
from feathide.metrics.metric import ARCHIVE, RATES, SHIFTS, Metric, Scope, per_cent
from feathide.metrics.paired import difference_at, paired_difference
from feathide.metrics.rates import above
from feathide.metrics.roc import auc
from feathide.metrics.uncertain_threshold import share_at
from feathide.metrics.views import Answers, AttackView, DetectorView, PastView, RunView

__all__ = [
    "METRICS",
    "RATES",
    "SHIFTS",
    "Metric",
    "Scope",
    "in_order",
    "metric_of",
    "per_cent",
    "title_of",
]

# how ``formats.archive.Codec`` names an archive
ARCHIVES = r"(jpeg\d+|jpeg2000x\d+)"


def metric_of(name: str) -> Metric | None:
    """The metric that a table calls ``name``, those of archives, too; None if there is none."""
    entry, archive = _entry(name)
    metric = METRICS.get(entry)
    return metric.of_archive(archive) if metric and archive else metric


def in_order(names: Iterable[str]) -> list[str]:
    """Names of a table's metrics, each once, in the order of display; others come last."""
    places = {name: place for place, name in enumerate(METRICS)}
    return sorted(dict.fromkeys(names), key=lambda n: places.get(_entry(n)[0], len(places)))


def _entry(name: str) -> tuple[str, str]:
    """The key in ``METRICS`` of a table's metric, and the archive in its name, if there is one."""
    for key in (m.name for m in METRICS.values() if m.per_archive):
        before, after = map(re.escape, key.split(ARCHIVE))
        if found := re.fullmatch(before + ARCHIVES + after, name):
            return key, found[1]
    return name, ""


def title_of(name: str) -> str:
    """The title of a metric; the name itself, in words, of one that is not in ``METRICS``."""
    metric = metric_of(name)
    return name.replace("_", " ").capitalize() if metric is None else metric.title


# --- the classifier on clean images -------------------------------------------------------------


def _accuracy(answers: Answers) -> Interval:
    return proportion(answers.right, groups=answers.groups)


def _of_probabilities(statistic: Callable[[ArrayLike, ArrayLike], float]) -> Any:
    def measure(run: RunView) -> Interval:
        found = bootstrap(
            statistic,
            run.test.probabilities,
            run.test.labels,
            groups=run.test.groups,
            seed=run.seed,
        )
        return replace(found, n=len(run.test.labels))

    return measure


def _accuracy_under(shift: str) -> Metric:
    return Metric(
        f"accuracy_shifted_{shift}",
        "run",
        f"Accuracy under {SHIFTS[shift]}",
        lambda run: _accuracy(run.shifted(shift)),
    )


RUN = (
    Metric("accuracy", "run", "Accuracy", lambda run: _accuracy(run.test)),
    Metric(
        "calibration_error",
        "run",
        "Calibration error",
        _of_probabilities(calibration_error),
        says=(
            "how far, on average over 15 bins, the largest probability lies from the share of "
            "right answers; less is better"
        ),
        unit="score",
    ),
    Metric(
        "brier_score",
        "run",
        "Brier score",
        _of_probabilities(brier_score),
        says="mean squared error of the probabilities, 0 to 1; less is better",
        unit="score",
    ),
    Metric(
        "accuracy_train", "run", "Accuracy in training", lambda run: _accuracy(run.train)
    ),
    Metric(
        "accuracy_calibration",
        "run",
        "Accuracy in calibration",
        lambda run: _accuracy(run.calibration),
    ),
    *map(_accuracy_under, SHIFTS),
    Metric(
        "accuracy_{archive}",
        "run",
        "Accuracy after {archive}",
        lambda run: _accuracy(run.test),
    ),
)


# --- a detector on clean images -----------------------------------------------------------------


def _alarms(detector: DetectorView, rate: str, score: np.ndarray) -> Interval:
    return share_at(detector.thresholds[rate], above(score), groups=detector.groups)


def _false_alarms(rate: str) -> Metric:
    return Metric(
        f"false_alarms_{rate}",
        "detector",
        f"False alarms at {per_cent(rate)} %",
        lambda detector: _alarms(detector, rate, detector.clean),
        says="share of clean test images above the threshold",
        best=0.0,
        worst=1.0,
    )


def _false_alarms_on_noise(rate: str) -> Metric:
    return Metric(
        f"false_alarms_{rate}_noise",
        "detector",
        f"On noise of eps, at {per_cent(rate)} %",
        lambda detector: _alarms(detector, rate, detector.noisy),
        best=0.0,
        worst=1.0,
    )


def _false_alarms_under(shift: str) -> Metric:
    return Metric(
        f"false_alarms_fpr10_shifted_{shift}",
        "detector",
        f"On {SHIFTS[shift]}, at 10 %",
        lambda detector: _alarms(detector, "fpr10", detector.shifted(shift)),
        best=0.0,
        worst=1.0,
    )


def _accuracy_accepted(detector: DetectorView) -> Interval | None:
    threshold = detector.thresholds["fpr10"]
    if not (detector.clean <= threshold.value).any():
        return None

    def right(t: float) -> np.ndarray:
        return np.where(detector.clean <= t, detector.right, np.nan)

    return share_at(threshold, right, groups=detector.groups)


DETECTOR = (
    *map(_false_alarms, RATES),
    *map(_false_alarms_on_noise, RATES),
    *map(_false_alarms_under, SHIFTS),
    Metric(
        "false_alarms_fpr10_{archive}",
        "detector",
        "After {archive}, at 10 %",
        lambda detector: _alarms(detector, "fpr10", detector.clean),
        best=0.0,
        worst=1.0,
    ),
    Metric(
        "accuracy_accepted_fpr10",
        "detector",
        "Accuracy on what passes at 10 %",
        _accuracy_accepted,
    ),
)


# --- an attack by itself ------------------------------------------------------------------------


def _success(attack: AttackView) -> Interval:
    return proportion(attack.fooled, groups=attack.groups)


def _success_difference(one: AttackView, other: AttackView) -> Interval:
    return paired_difference(
        np.mean,
        (one.fooled,),
        (other.fooled,),
        groups=one.groups,
        seed=one.seed,
    )


def _point(value: float, n: int) -> Interval:
    """A number that describes the run itself and has no sampling interval."""
    return Interval(float(value), math.nan, math.nan, n)


def _lost_on_disk(attack: AttackView) -> Interval | None:
    claimed = attack.claimed
    if not claimed.any():
        return None
    return proportion(~attack.fooled[claimed], groups=attack.groups[claimed])


def _lost_if_rounded(attack: AttackView) -> Interval | None:
    if attack.rounded is None or not len(attack.rounded[0]):
        return None
    lost, groups = attack.rounded
    return proportion(lost, groups=groups)


def _layers_constrained(attack: AttackView) -> Interval | None:
    return None if attack.constrained is None else _point(*attack.constrained)


ATTACK = (
    Metric(
        "success",
        "attack",
        "Attack success",
        _success,
        says="share of attacked images that fool the classifier",
        difference=_success_difference,
    ),
    Metric(
        "success_{archive}",
        "attack",
        "Attack success after {archive}",
        _success,
        says="share of attacked images that fool the classifier as the archive gives them back",
    ),
    Metric(
        "linf_max",
        "attack",
        "Largest change",
        lambda attack: _point(attack.linf.max(), len(attack.linf)),
        unit="box",
    ),
    Metric(
        "layers_constrained",
        "attack",
        "Layers constrained by HFC",
        _layers_constrained,
        says="share of the layers that the guards read",
    ),
    Metric(
        "seconds_per_image",
        "attack",
        "Seconds per image",
        lambda attack: _point(attack.seconds / len(attack.linf), len(attack.linf)),
        unit="seconds",
    ),
    Metric(
        "gradients_per_image",
        "attack",
        "Gradients per image",
        lambda attack: _point(attack.gradients.mean(), len(attack.gradients)),
        unit="passes",
    ),
    Metric(
        "forwards_per_image",
        "attack",
        "Forward passes per image",
        lambda attack: _point(attack.forwards.mean(), len(attack.forwards)),
        unit="passes",
    ),
    Metric(
        "lost_on_disk",
        "attack",
        "Lost on reading back",
        _lost_on_disk,
        says="share of the attack's successes that the stored images no longer are",
    ),
    Metric(
        "lost_if_rounded_afterwards",
        "attack",
        "Lost if rounded afterwards",
        _lost_if_rounded,
        says=(
            "share of a floating-point attack's successes, on the detector-training split, that "
            "are lost when its images are rounded to the grid afterwards"
        ),
    ),
)


# --- an attack past a detector ------------------------------------------------------------------


def _slips_through(rate: str) -> Metric:
    return Metric(
        f"slips_through_{rate}",
        "attack x detector",
        f"Slips through at {per_cent(rate)} % false alarms",
        lambda past: share_at(past.thresholds[rate], past.slips, groups=past.groups),
        says=(
            "share of all attacked images that fool the classifier and pass the guard, at "
            f"{per_cent(rate)} % false alarms"
        ),
        best=0.0,
        worst=1.0,
        difference=_slips_difference if rate == "fpr10" else None,
        over_attacks=True,
    )


def _slips_difference(one: PastView, other: PastView) -> Interval:
    return difference_at(
        (one.thresholds["fpr10"], other.thresholds["fpr10"]),
        one.slips,
        other.slips,
        groups=one.groups,
        seed=one.seed,
    )


def _slips_of_all(past: PastView) -> Interval:
    return share_at(past.thresholds["fpr10"], past.slips_of_all, groups=past.all_groups)


def _auc(past: PastView) -> Interval | None:
    """Fooled images against all negatives."""
    if not past.fooled.any():
        return None
    return bootstrap(
        auc,
        past.negatives,
        past.score[past.fooled],
        groups=(np.tile(past.groups, 2), past.groups[past.fooled]),
        seed=past.seed,
    )


def _auc_difference(one: PastView, other: PastView) -> Interval | None:
    """Over the images that fool both classifiers, so that positives, too, are paired."""
    both = one.fooled & other.fooled
    if not both.any():
        return None
    found = paired_difference(
        auc,
        (one.negatives, one.score[both]),
        (other.negatives, other.score[both]),
        groups=(np.tile(one.groups, 2), one.groups[both]),
        seed=one.seed,
    )
    return replace(found, n=int(both.sum()))


def _caught(past: PastView) -> Interval | None:
    if not past.fooled.any():
        return None
    hits = above(past.score[past.fooled])
    return share_at(past.thresholds["fpr10"], hits, groups=past.groups[past.fooled])


PAST = (
    *map(_slips_through, RATES),
    Metric(
        "slips_through_fpr10_all",
        "attack x detector",
        "Slips through, with those wrong by themselves",
        _slips_of_all,
        says=(
            "share of all test images that the classifier takes for a wrong class, attacked or "
            "by its own mistake, and that pass the guard, at 10 % false alarms"
        ),
        best=0.0,
        worst=1.0,
    ),
    Metric(
        "slips_through_fpr10_{archive}",
        "attack x detector",
        "Slips through after {archive}, at 10 % false alarms",
        lambda past: share_at(past.thresholds["fpr10"], past.slips, groups=past.groups),
        says=(
            "share of all attacked images that fool the classifier and pass the guard, as the "
            "archive gives them back"
        ),
        best=0.0,
        worst=1.0,
    ),
    Metric(
        "auc",
        "attack x detector",
        "AUC",
        _auc,
        says=(
            "chance that an attacked image scores above a harmless one: 0.5 is a coin toss, "
            "less misled"
        ),
        best=1.0,
        worst=0.5,
        unit="score",
        difference=_auc_difference,
    ),
    Metric(
        "tpr_at_fpr10",
        "attack x detector",
        "Caught at 10 %",
        _caught,
        says="share of the images that fool the classifier and raise an alarm",
        best=1.0,
        worst=0.1,
    ),
)
# in the order of display
METRICS: dict[str, Metric] = {m.name: m for m in (*RUN, *DETECTOR, *ATTACK, *PAST)}
