"""Judge what the stored results say: see ``Evasion``."""

import numpy as np

from feathide.metrics.numbers import percent, whole_percent
from feathide.metrics.paired import paired_difference
from feathide.metrics.roc import auc
from feathide.pipeline.accuracy import Learnt
from feathide.sanity.evasion import Evasion, is_effective
from feathide.sanity.status import Judged, Status

__all__ = [
    "judge_table",
]

LOST = 0.02  # success that hiding may cost


def judge_table(e: Evasion) -> dict[str, Judged]:
    """The checks that rest on the stored results."""
    shared = [
        f"{a} and {b}"
        for a in e.patients
        for b in e.patients
        if a < b and e.patients[a] & e.patients[b]
    ]
    return {
        "classifier has learnt": learnt_enough(e.learnt),
        "silent": (
            "fail" if e.silent else "pass",
            f"{e.silent} of {e.attacked} attacked images",
        ),
        "budgets": _growing(e),
        "training attack": _taught(e),
        "hiding keeps success": _hidden(e),
        "effect": _lowered(e),
        "aware and oblivious": _aware(e),
        "noise is noise": (
            "fail" if e.still else "pass",
            f"{e.still} noisy images equal clean ones",
        ),
        "patients": (
            "fail" if shared else "pass",
            f"shared by {', '.join(shared)}" if shared else "none",
        ),
        "test and calibrate": _alike(e),
        "thresholds": _calibrated(e),
    }


def learnt_enough(found: Learnt | None) -> Judged:
    if found is None:
        return "pass", "not checked"
    return "pass" if found.enough else "fail", str(found)


def _growing(e: Evasion) -> Judged:
    falls = {name: -float(np.diff(v).min()) for name, v in e.budgets.items() if len(v) > 1}
    if not falls:
        return "pass", "one budget only; the unbounded attack is the next larger one"
    worst = max(falls, key=lambda name: falls[name])
    detail = f"{worst}: {', '.join(percent(v) for v in e.budgets[worst])} by rising eps"
    return "pass" if falls[worst] <= 0 else "warn" if falls[
        worst
    ] <= 0.02 else "fail", detail


def _taught(e: Evasion) -> Judged:
    if not e.taught:
        return "pass", "no detector learns from an attack"
    success, left = min(s for s, _ in e.taught), max(k for _, k in e.taught)
    detail = (
        f"it fools {percent(success)} of the images of the detector-training split; "
        f"{percent(left)} keep their features"
    )
    return (
        "fail" if success < 0.5 or left > 0.5 else "warn" if success < 0.9 else "pass",
        detail,
    )


def _hidden(e: Evasion) -> Judged:
    """Fails where the interval of hidden - plain lies below what hiding may cost."""
    if not e.hidden:
        return "pass", "nothing hides by HFC beside a plain attack"
    gap = {
        name: paired_difference(np.mean, (hidden,), (plain,))
        for name, (plain, hidden) in e.hidden.items()
    }
    worst = min(gap, key=lambda name: gap[name].value)
    lost = gap[worst]
    detail = (
        f"{worst}: {100 * lost.value:+.0f} points ({100 * lost.low:.0f} to "
        f"{100 * lost.high:.0f})"
    )
    return (
        "fail" if lost.high < -LOST else "warn" if lost.value < -LOST - 1e-9 else "pass",
        detail,
    )


def _lowered(e: Evasion) -> Judged:
    if not e.falls:
        return (
            "pass",
            "nobody who knows a guard attacked it, or its plain attack passes already",
        )
    idle = [
        f"{objective} at {detector}"
        for (objective, detector), falls in e.falls.items()
        if not is_effective(falls)
    ]
    unknown = [objective for (objective, _), falls in e.falls.items() if falls is None]
    if idle:
        return "warn", f"ineffective, and not counted as evidence: {', '.join(idle)}"
    if unknown:
        return (
            "warn",
            (
                "not measured, since no plain attack stands beside it: "
                f"{', '.join(dict.fromkeys(unknown))}"
            ),
        )
    return "pass", f"{len(e.falls)} pairs of an attack and the detector that it aims at"


def _aware(e: Evasion) -> Judged:
    """Fails where the interval of aimed - oblivious lies below 0 for some detector."""
    pairs = {name: pair for name, pair in e.aware.items() if pair is not None}
    if not pairs:
        return (
            "warn",
            "nobody who knows a guard attacked it; add an objective such as evade",
        )
    gap = {
        n: paired_difference(np.mean, (aimed,), (blind,))
        for n, (blind, aimed) in pairs.items()
    }
    worst = min(gap, key=lambda name: gap[name].high)
    detail = (
        f"{worst}: {100 * gap[worst].value:+.0f} points ({100 * gap[worst].low:.0f} to "
        f"{100 * gap[worst].high:.0f})"
    )
    status: Status = (
        "fail" if gap[worst].high < 0 else "warn" if gap[worst].value < 0 else "pass"
    )
    return status, detail


def _alike(e: Evasion) -> Judged:
    if not e.clean:
        return "pass", "no detector"
    areas = {name: auc(*pair) for name, pair in e.clean.items()}
    least = min(len(v) for pair in e.clean.values() for v in pair)
    # three standard errors of an AUC of two equal samples
    noise = 3 / (12 * max(least, 1) / 2) ** 0.5
    worst = max(areas, key=lambda name: abs(areas[name] - 0.5))
    off = abs(areas[worst] - 0.5)
    detail = f"{worst}: AUC of test against calibration {areas[worst]:.2f}"
    return "pass" if off <= noise else "warn" if off <= 2 * noise else "fail", detail


def _calibrated(e: Evasion) -> Judged:
    """A threshold is the smallest calibration score above which no more than the rate lie."""
    bad = [
        (
            f"{name}: {percent(float(np.mean(scores > threshold)))} of the calibration scores "
            f"above the threshold for {whole_percent(rate)}"
        )
        for name, (scores, threshold, rate) in e.thresholds.items()
        if not np.mean(scores > threshold)
        <= rate + 1e-9
        < np.mean(scores >= threshold) + 2e-9
    ]
    return ("fail", "; ".join(bad)) if bad else ("pass", f"{len(e.thresholds)} detectors")
