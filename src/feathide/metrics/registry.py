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
from feathide.metrics.metric import (
    ARCHIVE,
    OWN,
    RATES,
    SHIFTS,
    Metric,
    Scope,
    at_rate,
    per_cent,
)
from feathide.metrics.over_draws import share_over_draws
from feathide.metrics.paired import difference_at, paired_difference
from feathide.metrics.rates import above
from feathide.metrics.roc import auc
from feathide.metrics.uncertain_threshold import share_at
from feathide.metrics.views import (
    Answers,
    AttackView,
    DetectorView,
    LeastChange,
    PastView,
    RunView,
)

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


def _alarms(
    detector: DetectorView, rate: str, score: Callable[[], np.ndarray]
) -> Interval | None:
    """The share above a threshold; None for a detector that has no such threshold."""
    if rate not in detector.thresholds:
        return None
    return share_at(detector.thresholds[rate], above(score()), groups=detector.groups)


def _false_alarms(rate: str) -> Metric:
    return Metric(
        f"false_alarms_{rate}",
        "detector",
        f"False alarms at {at_rate(rate)}",
        lambda detector: _alarms(detector, rate, lambda: detector.clean),
        says="share of clean test images above the threshold",
        best=0.0,
        worst=1.0,
    )


def _false_alarms_on_noise(rate: str) -> Metric:
    return Metric(
        f"false_alarms_{rate}_noise",
        "detector",
        f"On noise of eps, at {at_rate(rate)}",
        lambda detector: _alarms(detector, rate, lambda: detector.noisy),
        best=0.0,
        worst=1.0,
    )


def _false_alarms_under(shift: str, rate: str = "fpr10") -> Metric:
    return Metric(
        f"false_alarms_{rate}_shifted_{shift}",
        "detector",
        f"On {SHIFTS[shift]}, at {at_rate(rate)}",
        lambda detector: _alarms(detector, rate, lambda: detector.shifted(shift)),
        best=0.0,
        worst=1.0,
    )


def _accuracy_accepted(rate: str) -> Metric:
    def measure(detector: DetectorView) -> Interval | None:
        threshold = detector.thresholds.get(rate)
        if threshold is None or not (detector.clean <= threshold.value).any():
            return None

        def right(t: float) -> np.ndarray:
            return np.where(detector.clean <= t, detector.right, np.nan)

        return share_at(threshold, right, groups=detector.groups)

    title = f"Accuracy on what passes at {at_rate(rate)}"
    return Metric(f"accuracy_accepted_{rate}", "detector", title, measure)


DETECTOR = (
    *map(_false_alarms, (*RATES, OWN)),
    *map(_false_alarms_on_noise, (*RATES, OWN)),
    *map(_false_alarms_under, SHIFTS),
    *(_false_alarms_under(shift, OWN) for shift in SHIFTS),
    Metric(
        "false_alarms_fpr10_{archive}",
        "detector",
        "After {archive}, at 10 %",
        lambda detector: _alarms(detector, "fpr10", lambda: detector.clean),
        best=0.0,
        worst=1.0,
    ),
    *map(_accuracy_accepted, ("fpr10", OWN)),
)


# --- an attack by itself ------------------------------------------------------------------------


def _success(attack: AttackView) -> Interval:
    return proportion(attack.fooled, groups=attack.groups)


def _success_over_draws(attack: AttackView) -> Interval | None:
    if attack.by_draw is None:
        return None
    return share_over_draws(attack.by_draw, groups=attack.groups, seed=attack.seed)


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


def _least_change(
    found: LeastChange, share: float, view: AttackView | PastView
) -> Interval:
    """The change at which a share of the images succeed; infinity, beyond the largest tried."""
    beyond = 2 * found.largest
    values = np.minimum(found.values, beyond)

    def quantile(sizes: ArrayLike) -> float:
        return float(np.quantile(np.asarray(sizes), share, method="inverted_cdf"))

    drawn = bootstrap(quantile, values, groups=view.groups, seed=view.seed)

    def told(size: float) -> float:
        return math.inf if size > found.largest * (1 + 1e-6) else size

    return Interval(told(drawn.value), told(drawn.low), told(drawn.high), drawn.n)


def _none_succeeds(found: LeastChange, view: AttackView | PastView) -> Interval:
    return proportion(np.isinf(found.values), groups=view.groups)


QUARTILES = {"": 0.5, "_q25": 0.25, "_q75": 0.75}
WHICH = {"": "Median of", "_q25": "Lower quartile of", "_q75": "Upper quartile of"}


def _eps_to_fool(part: str) -> Metric:
    def measure(attack: AttackView) -> Interval | None:
        found = attack.smallest
        return None if found is None else _least_change(found, QUARTILES[part], attack)

    return Metric(
        f"eps_to_fool{part}",
        "attack",
        f"{WHICH[part]} the smallest change that fools",
        measure,
        says="infinity: beyond the largest change that was tried",
        unit="box",
    )


def _never_fools(attack: AttackView) -> Interval | None:
    found = attack.smallest
    return None if found is None else _none_succeeds(found, attack)


def _eps_to_pass(rate: str, part: str) -> Metric:
    def measure(past: PastView) -> Interval | None:
        found = past.smallest.get(rate)
        return None if found is None else _least_change(found, QUARTILES[part], past)

    end = "" if rate == "fpr10" else f"_{rate}"
    return Metric(
        f"eps_to_pass{end}{part}",
        "attack x detector",
        f"{WHICH[part]} the smallest change that fools and passes at {at_rate(rate)}",
        measure,
        says="infinity: beyond the largest change that was tried",
        unit="box",
    )


def _never_passes(rate: str) -> Metric:
    def measure(past: PastView) -> Interval | None:
        found = past.smallest.get(rate)
        return None if found is None else _none_succeeds(found, past)

    end = "" if rate == "fpr10" else f"_{rate}"
    return Metric(
        f"eps_to_pass{end}_beyond",
        "attack x detector",
        f"No change that was tried fools and passes at {at_rate(rate)}",
        measure,
        says="share of attacked images for which no change up to the largest does both",
    )


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
        "success_over_draws",
        "attack",
        "Attack success over draws",
        _success_over_draws,
        says=(
            "chance that an attacked image fools the classifier at a fresh draw of what is "
            "random in it"
        ),
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
    *map(_eps_to_fool, QUARTILES),
    Metric(
        "eps_to_fool_beyond",
        "attack",
        "No change that was tried fools",
        _never_fools,
        says="share of attacked images that no change up to the largest fools with",
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
    def measure(past: PastView) -> Interval | None:
        if rate not in past.thresholds:
            return None
        return share_at(past.thresholds[rate], past.slips, groups=past.groups)

    at = at_rate(rate) if rate == OWN else f"{at_rate(rate)} false alarms"
    return Metric(
        f"slips_through_{rate}",
        "attack x detector",
        f"Slips through at {at}",
        measure,
        says=(
            f"share of all attacked images that fool the classifier and pass the guard, at {at}"
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


def _caught(rate: str) -> Metric:
    def measure(past: PastView) -> Interval | None:
        if rate not in past.thresholds or not past.fooled.any():
            return None
        hits = above(past.score[past.fooled])
        return share_at(past.thresholds[rate], hits, groups=past.groups[past.fooled])

    return Metric(
        f"tpr_at_{rate}",
        "attack x detector",
        f"Caught at {at_rate(rate)}",
        measure,
        says="share of the images that fool the classifier and raise an alarm",
        best=1.0,
        worst=0.1 if rate == "fpr10" else 0.0,
    )


PAST = (
    *map(_slips_through, (*RATES, OWN)),
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
    *map(_caught, ("fpr10", OWN)),
    *(_eps_to_pass(rate, part) for rate in ("fpr10", OWN) for part in QUARTILES),
    *map(_never_passes, ("fpr10", OWN)),
)
# in the order of display
METRICS: dict[str, Metric] = {m.name: m for m in (*RUN, *DETECTOR, *ATTACK, *PAST)}
