"""Sanity checks: conditions that a sound evaluation fulfils, each judged pass, warn or fail, with
what raises it, why it matters and what to do.

Sources: Carlini et al. 2019, Tramer et al. 2020, Pintor et al. 2022 (indicators of attack
failure), Zimmermann et al. 2022 (binarisation test)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np

from feathide.catalog import OBJECTIVES, ability_of
from feathide.metrics.numbers import percent, whole_percent
from feathide.metrics.statistics import auc, paired_difference
from feathide.pipeline.accuracy import Learnt, learnt_stored
from feathide.pipeline.context import PLAIN, Context, noisy_at
from feathide.pipeline.images import PARTS
from feathide.pipeline.steps import cells
from feathide.pipeline.stored import Found, found_in, negatives_in, scores_in, thresholds_of
from feathide.plans.plan import Cell
from feathide.sanity.probes import probe_key, probes_in

__all__ = [
    "CHECKS",
    "SANITY_CHECKS",
    "Evasion",
    "SanityCheck",
    "effective_aims",
    "judge_probes",
    "judge_table",
    "judged",
    "masked",
    "masked_in",
    "sanity_checks_of",
]

Status = Literal["pass", "warn", "fail"]
Arrays = Mapping[str, np.ndarray]
Judged = tuple[Status, str]


@dataclass(frozen=True)
class SanityCheck:
    """A condition: its name, what raises it, why it matters and what to do; once judged, its
    status and what was found.
    """

    name: str
    raised_if: str
    why: str
    do: str
    status: Status = "pass"
    detail: str = ""


SANITY_CHECKS: dict[str, SanityCheck] = {
    g.name: g
    for g in (
        SanityCheck(
            "classifier has learnt",
            "it is right on labelled images hardly more often than chance",
            "images that it gets right by luck are fooled by luck",
            "check class_names, mean, std, window and weights, or train it longer",
        ),
        SanityCheck(
            "deterministic network",
            "two passes over the same images differ",
            "an attack that sees one draw is judged by another",
            "audit the network with its randomness averaged or fixed",
        ),
        SanityCheck(
            "gradient",
            (
                "the attack's loss has no slope at some images, or the outputs lie in [0, 1] "
                "whatever the image"
            ),
            (
                "a gradient attack that cannot move proves nothing, and gradients of "
                "probabilities vanish where the network is sure"
            ),
            "let the network return its logits (or say network.output: probabilities); use "
            "a differentiable stand-in for the step that hides the gradient, "
            "or attack with square",
        ),
        SanityCheck(
            "unbounded attack",
            "a budget as large as the box does not reach every target",
            "any image can be made into any other: the attack is broken",
            "look for a wrong sign, masked gradients or too few steps",
        ),
        SanityCheck(
            "weaker attacks do worse",
            (
                "one step, random noise, an attack on another network or a smaller budget "
                "fools more images than the attack"
            ),
            "its steps or its gradient are wrong: a stronger attack does at least as well",
            (
                "raise steps or step_size; check loss and target; attack with square, which "
                "sees through masked gradients"
            ),
        ),
        SanityCheck(
            "converged",
            (
                "twice the steps change the success by a point or more, or the loss of "
                "unsuccessful images still falls at the end"
            ),
            "the numbers are those of an unfinished attack",
            "raise schedule.steps or schedule.step_size until they no longer change",
        ),
        SanityCheck(
            "success as counted",
            (
                "the decision changes in a small ball around the attacked image, or an image "
                "that fooled the classifier on the way counts as a failure"
            ),
            (
                "a success that a grey level undoes is luck, one that is not counted makes the "
                "attack look weaker"
            ),
            (
                "raise schedule.confidence; look for randomness or rounding in the network; "
                "judge the best iterate as it is stored"
            ),
        ),
        SanityCheck(
            "planted point",
            "the attack misses an accepted image that is known to be there",
            "an attack that cannot find it certifies nothing",
            "look for masked gradients in the network or in a detector",
        ),
        SanityCheck(
            "gradients of the guards",
            "a search without a guard's gradient, or images made for other purposes, lower its "
            "score more than its gradient does, or "
            "a point planted behind this guard alone is missed",
            (
                "its gradient is flat, clipped, cut off or wrong: attacks through it fail "
                "whatever it is worth, so it cannot be said to hold"
            ),
            (
                "give the detector a gradient (a smooth stand-in for steps, floors and clips), "
                "or attack it with square"
            ),
        ),
        SanityCheck(
            "knowing the guard helps",
            "an attack that knows the guard lowers its own loss while the score rises, "
            "slips through less often than one that does "
            "not, or lowers the score by less than a tenth of the spread of clean scores",
            (
                "it pushes the wrong way or not at all; an attack that does nothing is no "
                "evidence for the guard, and the verdict does not count it"
            ),
            (
                "check the sign and the layers of the hiding term; raise its steps; change its "
                "weight"
            ),
        ),
        SanityCheck(
            "training attack",
            (
                "the attack that the detectors learn from fools fewer than half of the images, "
                "or leaves features as they were"
            ),
            "detectors that learnt from clean images alone are judged as if they knew attacks",
            "choose another train_attack, or raise eps or its steps",
        ),
        SanityCheck(
            "hiding keeps success",
            "HFC fools more than two points fewer images than the same attack without it",
            "an attack that hides by not attacking says nothing about the guard",
            "lower its weight (weight: auto), or raise the steps",
        ),
        SanityCheck(
            "scores of single images",
            "a score changes when its image stands alone",
            "a verdict must not depend on the other images of a batch",
            "use a stored reference in place of the batch",
        ),
        SanityCheck(
            "noise is noise",
            "noisy negatives equal the clean images",
            "the guard would be spared its hardest negatives",
            "raise eps or store more grey levels",
        ),
        SanityCheck(
            "test split untouched",
            "a patient is in two splits, clean test and calibration images score "
            "differently, or a threshold is not that of the "
            "calibration scores",
            "the guard would be tested on what it or its threshold learnt from",
            (
                "give the patients' names, remove duplicates; look for test images or labels "
                "that reached a detector; take thresholds from calibration cases only"
            ),
        ),
    )
}
# the checks that ask the question of one sanity check; the others are their own
CHECKS: dict[str, tuple[str, ...]] = {
    "gradient": ("slope", "logits"),
    "weaker attacks do worse": ("one step", "noise", "transfer", "budgets"),
    "converged": ("steps", "loss at rest"),
    "success as counted": ("stable", "silent"),
    "knowing the guard helps": ("hiding loss", "aware and oblivious", "effect"),
    "test split untouched": ("patients", "test and calibrate", "thresholds"),
}
LEAST_FALL = (
    # of the spread (interquartile range) of clean scores: what an effective attack lowers the
    # score it aims at by
    0.1
)
# of the plain attack's images: where so many pass, there is nothing to lower
ACCEPTED = 0.9
LOST = 0.02  # success that hiding may cost
ATTACKS = {
    "unbounded attack",
    "weaker attacks do worse",
    "converged",
    "success as counted",
    "planted point",
}
ROOTS: dict[str, set[str]] = {  # what makes other sanity checks meaningless, gravest first
    **dict.fromkeys(
        ("deterministic network", "gradient", "unbounded attack"),
        ATTACKS | {"gradients of the guards"},
    ),
    "gradients of the guards": {"planted point", "knowing the guard helps"},
}
# a search without the gradient beats it by so many spreads of clean scores and by such a share of
# its own fall of the images: where it does so for more of them the sanity check warns, for more
# than half it fails
BEATEN, SHARE = (
    0.5,
    0.25,
)
BORDER = 0.25


def sanity_checks_of(context: Context) -> list[dict[str, str]]:
    """The sanity checks of a finished run, in the order of ``SANITY_CHECKS``; with
    ``sanity_checks: off`` none, but for a classifier that has not learnt."""
    if context.plan.sanity_checks == "off":
        status, detail = _learnt(learnt_stored(context))
        return [
            asdict(
                replace(
                    SANITY_CHECKS["classifier has learnt"], status=status, detail=detail
                )
            )
        ] * (status == "fail")
    return [
        asdict(g)
        for g in judged(
            judge_probes(probes_in(context.store.load(probe_key(context))))
            | judge_table(_evasion(context))
        )
    ]


def judged(checks: Mapping[str, Judged]) -> list[SanityCheck]:
    """The sanity checks, each as grave as the worst of its ``checks``."""
    return _rooted(
        [
            _merged(check, {n: checks[n] for n in CHECKS.get(check.name, (check.name,))})
            for check in SANITY_CHECKS.values()
        ]
    )


def _merged(check: SanityCheck, checks: Mapping[str, Judged]) -> SanityCheck:
    """What the worst of its checks found, each by its name where there are several."""
    order: tuple[Status, ...] = ("fail", "warn", "pass")
    worst = next(s for s in order if any(status == s for status, _ in checks.values()))
    said = [(name, detail) for name, (status, detail) in checks.items() if status == worst]
    detail = (
        said[0][1]
        if len(checks) == 1
        else "; ".join(f"{name}: {detail}" for name, detail in said)
    )
    return replace(check, status=worst, detail=detail)


def _rooted(sanity_checks: Sequence[SanityCheck]) -> list[SanityCheck]:
    """A failure that follows from a graver one is a warning: the cause stands alone among the
    failures.
    """
    failed = {g.name for g in sanity_checks if g.status == "fail"}
    cause = {
        name: root
        for root in reversed(ROOTS)
        if root in failed
        for name in ROOTS[root] - {root}
    }
    return [
        replace(
            g,
            status="warn",
            detail=f"{g.detail}; may follow from the sanity check {cause[g.name]!r}",
        )
        if g.status == "fail" and g.name in cause
        else g
        for g in sanity_checks
    ]


# --- from the probes ----------------------------------------------------------------------------


def judge_probes(a: Arrays) -> dict[str, Judged]:
    """The checks that rest on ``probes.measure``. With n images, one image more or less (1 / n)
    is a warning, more is a failure.
    """
    n = len(a["base"])
    share = {
        name: float(a[name].mean())
        for name in ("noise", "single", "base", "double", "whole", "transfer")
    }
    blind = float((a["gradient"] <= 0).mean())
    return {
        "deterministic network": _flag(
            a, "random", "two passes agree", "two passes differ"
        ),
        "logits": _flag(
            a, "probabilities", "outputs leave [0, 1]", "outputs stay in [0, 1]"
        ),
        "slope": (
            "fail" if blind or a["flag/blind"] else "pass",
            f"{percent(blind)} of {n} images have no slope",
        ),
        "unbounded attack": _least(
            share["whole"],
            1.0,
            n,
            f"{percent(share['whole'])} of {n} images at eps = the whole box",
        ),
        "one step": _least(
            share["base"],
            share["single"],
            n,
            f"{percent(share['base'])} against {percent(share['single'])} of {n} images",
        ),
        "noise": _above_noise(share["base"], share["noise"], n),
        "transfer": _above_transfer(share["base"], share["transfer"], share["noise"], n),
        "steps": _converged(a, n),
        "loss at rest": _at_rest(a),
        "stable": _stable(a),
        "planted point": _found(a["planted"]),
        "gradients of the guards": _steered(a),
        "hiding loss": _ranked(a),
        "scores of single images": _alone(a),
    }


def _flag(a: Arrays, name: str, fine: str, wrong: str) -> Judged:
    return ("fail", wrong) if a[f"flag/{name}"] else ("pass", fine)


def _least(value: float, least: float, n: int, detail: str) -> Judged:
    """Whether ``value`` reaches ``least``; one image of n below is a warning."""
    short = round((least - value) * n)
    return "pass" if short <= 0 else "warn" if short == 1 else "fail", detail


def _above_noise(base: float, noise: float, n: int) -> Judged:
    detail = f"{percent(base)} against {percent(noise)} of {n} images"
    return (
        "pass" if base > noise or noise == 1.0 else "warn" if noise == 0.0 else "fail",
        detail,
    )


def _above_transfer(base: float, transfer: float, noise: float, n: int) -> Judged:
    """Fails where transfer does better by more than one image; warns where it does worse than
    noise: then the surrogate is no stand-in.
    """
    status, detail = _least(
        base,
        transfer,
        n,
        f"{percent(base)} against {percent(transfer)} by transfer and "
        f"{percent(noise)} by noise of {n} images",
    )
    return "warn" if status == "pass" and transfer < noise else status, detail


def _converged(a: Arrays, n: int) -> Judged:
    gains = {"plain": float(a["double"].mean() - a["base"].mean())}
    gains |= {
        k[5:]: float(a[f"double/{k[5:]}"].mean() - a[k].mean())
        for k in a
        if k.startswith("base/")
    }
    worst = max(gains, key=lambda name: gains[name])
    detail = f"twice the steps: {100 * gains[worst]:+.1f} points for {worst}, {n} images"
    return "pass" if gains[worst] < 0.01 else "warn" if round(
        gains[worst] * n
    ) <= 1 else "fail", detail


def _at_rest(a: Arrays) -> Judged:
    """Of the images that were not fooled: is the loss of the last tenth of the steps still
    falling, by a hundredth of its whole fall?
    """
    trace = np.asarray(a["trace"], np.float64)[:, ~a["base"].astype(bool)]
    if not trace.size:
        return "pass", "every image was fooled"
    best = np.fmin.accumulate(trace, axis=0)
    before = best[-1 - max(1, len(best) // 10)]
    whole = best[0] - best[-1]
    moving = float(((before - best[-1] > 0.01 * whole) & (whole > 1e-9)).mean())
    return (
        "fail" if moving > 0.5 else "warn" if moving else "pass",
        f"{percent(moving)} of {trace.shape[1]} unsuccessful images",
    )


def _stable(a: Arrays) -> Judged:
    fooled = a["base"].astype(bool)
    if not fooled.any():
        return "warn", "no image was fooled"
    kept = float(a["kept"][fooled].mean())
    return (
        "pass" if kept >= 0.95 else "warn" if kept >= 0.75 else "fail",
        f"{percent(kept)} of the points in a ball of eps / 20 agree",
    )


def _found(planted: np.ndarray) -> Judged:
    if not len(planted):
        return (
            "warn",
            "no point could be planted: the rim of the ball looks like its inside",
        )
    found = float(planted.mean())
    detail = f"found {percent(found)} of {len(planted)} planted points"
    return "pass" if found >= 0.9 else "warn" if found >= 0.75 else "fail", detail


def _steered(a: Arrays) -> Judged:
    """Fails where a guard hides its gradient that was made to have one; warns of those that say
    that they have none.
    """
    shares = {name: _beaten(a, name) for name in _guards(a)}
    if not shares:
        return "pass", "no detector"
    hidden = masked(a)
    if hidden:
        undeclared = [name for name in hidden if not a[f"undifferentiable/{name}"]]
        return "fail" if undeclared else "warn", "; ".join(
            f"{name}: {why}" for name, why in hidden.items()
        )
    worst = max(shares, key=lambda name: shares[name])
    n = a[f"lower/{worst}"].shape[1]
    return (
        "warn" if shares[worst] > BORDER else "pass",
        (
            f"{len(shares)} detectors; {worst}: beaten from {percent(shares[worst])} of the "
            f"clean or attacked images, {n // 2} each"
        ),
    )


def masked(a: Arrays) -> dict[str, str]:
    """The detectors through which a gradient does not lead, each with the reason: attacks that
    use it say nothing of what they are worth.
    """
    found = {}
    for name in _guards(a):
        points, beaten = a.get(f"planted/{name}", np.zeros(0)), _beaten(a, name)
        if np.isnan(a[f"lower/{name}"][0]).all():
            found[name] = "no gradient leads from its score to the image"
        elif beaten > 0.5:
            found[name] = (
                f"a search without its gradient lowers its score further, from {percent(beaten)} "
                "of the clean or attacked images that can be changed so"
            )
        elif len(points) and points.mean() < 0.5:
            found[name] = (
                f"its gradient finds {percent(points.mean())} of {len(points)} points planted "
                "behind it"
            )
    return found


def masked_in(context: Context) -> dict[str, str]:
    """``masked`` of a finished run. One that says so, and was attacked by a search that needs no
    gradient, is not among them.
    """
    if context.plan.sanity_checks == "off":
        return {}
    a = probes_in(context.store.load(probe_key(context)))
    searched = any(ability_of(attack.name).searches for attack in context.plan.attacks)
    return {
        name: why
        for name, why in masked(a).items()
        if not (searched and a[f"undifferentiable/{name}"])
    }


def _guards(a: Arrays) -> list[str]:
    return [k.removeprefix("lower/") for k in a if k.startswith("lower/")]


def _beaten(a: Arrays, name: str) -> float:
    """The share of images from which others lower a detector's score clearly more than its
    gradient, of those from which anybody lowers it: of the clean or of the attacked ones, the
    larger. Where fewer than half can be lowered, the share is of half of them.
    """
    fall = a[f"lower/{name}"]
    own, other = np.nan_to_num(fall[0]), fall[1:].max(0)
    liable = other > BEATEN
    lost = liable & (other - own > BEATEN + SHARE * other)
    part, whole = (who.reshape(2, -1).sum(1) for who in (lost, liable))
    return float((part / np.maximum(whole, fall.shape[1] / 4)).max())


def _ranked(a: Arrays) -> Judged:
    """Over plain and hidden images: a detector whose score rises as the loss that hides from it
    falls.
    """
    ranks = {k[5:]: v[~np.isnan(v)] for k, v in a.items() if k.startswith("rank/")}
    if not any(len(v) for v in ranks.values()):
        return (
            "warn" if not ranks else "pass",
            "no hiding objective" if not ranks else "the loss is zero throughout",
        )
    (name, rho), *_ = ranks.items()
    aware = OBJECTIVES[name.partition(":")[0]].knowledge == "detector-aware"
    detail = f"{name}: rank correlation with the scores {rho.min():.2f} to {rho.max():.2f}"
    return ("fail" if aware else "warn") if rho.mean() < -0.3 else "pass", detail


def _alone(a: Arrays) -> Judged:
    gaps = {
        k.removeprefix("batch/"): float(v) for k, v in a.items() if k.startswith("batch/")
    }
    bad = [name for name, gap in gaps.items() if gap > 1e-4]
    return (
        ("fail", f"{', '.join(bad)} changes") if bad else ("pass", f"{len(gaps)} detectors")
    )


# --- from the results ---------------------------------------------------------------------------


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
    ``limits``: for each detector its calibration scores, clean and noisy, a threshold and the
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
    limits: Mapping[str, tuple[np.ndarray, float, float]] = field(default_factory=dict)


def judge_table(e: Evasion) -> dict[str, Judged]:
    """The checks that rest on the stored results."""
    shared = [
        f"{a} and {b}"
        for a in e.patients
        for b in e.patients
        if a < b and e.patients[a] & e.patients[b]
    ]
    return {
        "classifier has learnt": _learnt(e.learnt),
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


def _learnt(found: Learnt | None) -> Judged:
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


def is_effective(falls: np.ndarray | None) -> bool:
    """Whether an attack lowered the score that it aimed at: the median fall is at least
    ``LEAST_FALL``. What could not be measured counts.
    """
    return falls is None or not len(falls) or float(np.median(falls)) >= LEAST_FALL


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
            f"{name}: {percent(np.mean(scores > limit))} of the calibration scores above the "
            f"threshold for {whole_percent(rate)}"
        )
        for name, (scores, limit, rate) in e.limits.items()
        if not np.mean(scores > limit) <= rate + 1e-9 < np.mean(scores >= limit) + 2e-9
    ]
    return ("fail", "; ".join(bad)) if bad else ("pass", f"{len(e.limits)} detectors")


def _evasion(context: Context) -> Evasion:
    found = [found_in(context, c) for c in cells(context)]
    plain = [a.name for a in context.plan.attacks if ability_of(a.name).hides]
    order = sorted(context.budgets)
    at = {(f.cell.attack.name, f.cell.objective.name, f.cell.eps): f for f in found}
    noisy, rows = context.outputs(noisy_at(context.budgets[0]), "test")
    clean = context.at("clean", "test", rows)
    same = np.all(
        [(noisy.features[n] == f).all(1).numpy() for n, f in clean.features.items()], axis=0
    )
    return Evasion(
        learnt=learnt_stored(context),
        silent=sum(int(((f.first >= 0) & ~f.fooled).sum()) for f in found),
        attacked=sum(len(f.rows) for f in found),
        budgets={
            n: [float(at[n, "plain", eps].fooled.mean()) for eps in order]
            for n in plain
            if (n, "plain", order[0]) in at and len(at[n, "plain", order[0]].rows)
        },
        taught=[_training_attack(context, eps) for eps in context.budgets],
        hidden={
            f.cell.name: (at[f.cell.attack.name, "plain", f.cell.eps].fooled, f.fooled)
            for f in found
            if OBJECTIVES[f.cell.objective.kind].needs == "bank"
            and (f.cell.attack.name, "plain", f.cell.eps) in at
            and len(f.rows)
        },
        falls=falls_of(context, found),
        aware={d: _best_of(context, d, found) for d in context.plan.detectors},
        patients={
            part: frozenset(map(str, context.cases.patients[context.rows(part)]))
            for part in ("train", *PARTS)
        },
        still=int(same.sum()),
        clean={
            d: tuple(
                scores_in(context, d, context.budgets[0], "clean", part)
                for part in ("calibration", "test")
            )  # type: ignore[misc]
            for d in context.plan.detectors
        },
        limits={
            d: (
                negatives_in(context, d, context.budgets[0]),
                thresholds_of(context, d, context.budgets[0])["fpr10"],
                0.10,
            )
            for d in context.plan.detectors
        },
    )


def _training_attack(context: Context, eps: float) -> tuple[float, float]:
    """The success on the detector-training split of the attack that the detectors learn from, and
    the share of its images whose features are those of the clean ones.
    """
    cell = Cell(context.plan.learnt_from, PLAIN, eps)
    learnt = found_in(context, cell, "detector-training")
    if not len(learnt.rows):
        return 0.0, 0.0
    attacked, rows = context.outputs(context.condition(cell), "detector-training")
    clean = context.at("clean", "detector-training", rows)
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
        context, detector, eps, context.condition(plain.cell), "test", aware.rows
    )
    if np.mean(before <= thresholds_of(context, detector, eps)["fpr10"]) >= ACCEPTED:
        return None
    after = scores_in(
        context, detector, eps, context.condition(aware.cell), "test", aware.rows
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
    eps = context.budgets[0]
    limit = thresholds_of(context, detector, eps)["fpr10"]
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
            scores_in(context, detector, eps, context.condition(cell), "test", f.rows)
            <= limit
        )
        if kind.knowledge not in best or slips.mean() > best[kind.knowledge].mean():
            best[kind.knowledge] = slips
    pair = best.get("oblivious"), best.get("detector-aware")
    return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])
