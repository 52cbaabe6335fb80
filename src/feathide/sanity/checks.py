"""Sanity checks: conditions that a sound evaluation fulfils, each judged pass, warn or fail, with
what raises it, why it matters and what to do.

Sources: Carlini et al. 2019, Tramer et al. 2020, Pintor et al. 2022 (indicators of attack
failure), Zimmermann et al. 2022 (binarisation test)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from feathide.pipeline.accuracy import learnt_stored
from feathide.pipeline.context import Context
from feathide.sanity.evasion import effective_aims, evasion_of
from feathide.sanity.judge_probes import judge_probes, masked_in
from feathide.sanity.judge_results import judge_table, learnt_enough
from feathide.sanity.probes import probe_key, probes_in
from feathide.sanity.status import Judged, Status

__all__ = [
    "CHECKS",
    "SANITY_CHECKS",
    "SanityCheck",
    "effective_aims",
    "judged",
    "masked_in",
    "sanity_checks_of",
]


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
    check.name: check
    for check in (
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
            "say network.draws: 16, which averages over draws (expectation over "
            "transformation), or fix its randomness",
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


def sanity_checks_of(context: Context) -> list[dict[str, str]]:
    """The sanity checks of a finished run, in the order of ``SANITY_CHECKS``; with
    ``sanity_checks: off`` none, but for a classifier that has not learnt."""
    if context.plan.sanity_checks == "off":
        status, detail = learnt_enough(learnt_stored(context))
        return [
            asdict(
                replace(
                    SANITY_CHECKS["classifier has learnt"], status=status, detail=detail
                )
            )
        ] * (status == "fail")
    return [
        asdict(check)
        for check in judged(
            judge_probes(probes_in(context.store.load(probe_key(context))))
            | judge_table(evasion_of(context))
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
    failed = {check.name for check in sanity_checks if check.status == "fail"}
    cause = {
        name: root
        for root in reversed(ROOTS)
        if root in failed
        for name in ROOTS[root] - {root}
    }
    return [
        replace(
            check,
            status="warn",
            detail=f"{check.detail}; may follow from the sanity check {cause[check.name]!r}",
        )
        if check.status == "fail" and check.name in cause
        else check
        for check in sanity_checks
    ]
