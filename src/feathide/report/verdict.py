"""The verdict: what the table says about each guard, in the worst case over the attacks, in plain
words.

It is honest in both directions. A guard *holds* only if the upper end of the interval is low
under every attack, if somebody who knows the guard attacked it, if a gradient leads through it,
if the attacks do fool the unguarded classifier, if it accepts images that nobody attacked,
harmlessly changed ones too, and if no sanity check failed; a guard *fails* only if the lower end
is high."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from feathide.errors import expected
from feathide.metrics.metric import RATES, per_cent
from feathide.metrics.numbers import bare, percent
from feathide.metrics.rates import cases_needed, enough
from feathide.registry.specs import aimed_at
from feathide.report.naming import label
from feathide.report.results import Run

__all__ = [
    "ALARMS",
    "FAILS",
    "HOLDS",
    "INVALID",
    "LEVELS",
    "STRONG",
    "WORDS",
    "Finding",
    "Rate",
    "Verdict",
    "at_budget",
    "by_budget",
    "kind_of",
    "verdict",
]

# false alarms, per cent
LEVELS = tuple(map(per_cent, RATES))
# a guard holds if at most this share slips through at 10 % false alarms: the upper end, every
# attack
HOLDS = 0.05
FAILS = 0.50  # and fails if the lower end is at least this, under one attack
# attacks that fool the unguarded classifier less often than this say little about the guard
STRONG = 0.90
# a guard whose false alarms on harmlessly changed images lie above this, the lower end, does not
# hold: three times what was asked for
ALARMS = 0.30
INVALID = "no evidence"  # the word of a run in which a sanity check failed
# best first
WORDS = {
    "holds": "holds",
    "unproven": "not broken, not proven",
    "undecided": "undecided",
    "leaks": "leaks",
    "fails": "fails",
}


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] with its 95 % interval and the number of images behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{percent(self.value)} ({bare(self.low)}–{bare(self.high)})"


@dataclass(frozen=True)
class Finding:
    """One guard: its worst rates of slipping through, the attack behind them, what that amounts
    to, and the spaces that it reads, where they are known.
    """

    detector: str
    word: str
    why: str
    attack: str
    plain: Rate | None
    worst: Mapping[int, Rate]
    aware: bool
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The findings, the best guard first, and the sentences of the first screen.

    ``evidence`` is False where a sanity check failed: ``word`` is then "invalid", and the
    headline says so before anything else. The findings keep what the table would say if the
    evaluation were right."""

    word: str
    headline: str
    attacked: str
    strength: str
    slipped: str
    sanity_checks: str
    findings: tuple[Finding, ...]
    success: Rate | None
    evidence: bool = True


def at_budget(run: Run, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """The rows of the table, the run's unless said, at the audited budget, ``threat["eps"]``:
    sweeps and unbounded sanity attacks do not count.
    """
    eps = float(run.threat["eps"])
    table = run.table if table is None else table
    rows = table[np.isclose(table["eps"].astype(float), eps, rtol=1e-4, atol=1e-9)]
    if rows.empty:
        known = ", ".join(f"{e:g}" for e in sorted(set(table["eps"])))
        raise expected(
            f"the table must have rows at eps = {eps:g}",
            got=known,
            do="set threat['eps'] to the audited budget",
        )
    return rows


def worst(rows: pd.DataFrame) -> Rate | None:
    """The worst case over the rows: the largest value, lower end and upper end; a missing end
    counts as 0 or 1.
    """
    rows = rows[rows["value"].notna()]
    if rows.empty:
        return None
    ends = float(rows["low"].fillna(0.0).max()), float(rows["high"].fillna(1.0).max())
    return Rate(float(rows["value"].max()), *ends, int(rows["n"].min()))


def verdict(run: Run) -> Verdict:
    """What the run shows, from its table at the audited budget.

    For each detector the worst case over attacks (and classifiers, seeds) of slips-through: the
    share of *all* attacked images that fool the classifier and stay below the threshold at 10, 5
    and 1 % false alarms. At 10 %: *fails* if the lower end is at least ``FAILS``, *leaks* if it
    is above ``HOLDS``, *undecided* if only the upper end is above ``HOLDS``, otherwise *holds*. A
    guard that would hold is *unproven* while no detector-aware attack was run against it or its
    gradient is ``run.masked``, and *undecided* while the attacks fool the unguarded classifier in
    less than ``STRONG`` of the cases, a sanity check failed, it rejects more than ``ALARMS`` of
    clean or harmlessly changed images, or the threshold comes from fewer than 10 / 0.10
    calibration cases, of different patients. The word of the run is that of its best guard, or
    "invalid" where a sanity check failed: headline and colour then say that the numbers are not
    evidence."""
    rows = at_budget(run)
    success = worst(rows[rows["metric"] == "success"])
    failed = [str(c["name"]) for c in run.sanity_checks if c["status"] == "fail"]
    found = [
        _finding(str(d), part, success, failed, run)
        for d, part in rows[rows["detector"] != ""].groupby("detector", sort=False)
    ]
    order = list(WORDS)
    findings = sorted(
        (f for f in found if f is not None),
        key=lambda f: (order.index(f.word), f.worst[10].value),
    )
    if not findings:
        raise expected(
            "the table must have slips_through_fpr10 of a detector",
            got="none",
            do="audit at least one detector",
        )
    return Verdict(
        word="invalid" if failed else findings[0].word,
        headline=_marked(
            run,
            _no_evidence(failed) if failed else _headline(findings, success, _few(run, 10)),
        ),
        attacked=_attacked(run),
        strength=_strength(run, rows, success),
        slipped=_slipped(findings, run),
        sanity_checks=_sanity_checks(run, failed),
        findings=tuple(findings),
        success=success,
        evidence=not failed,
    )


def by_budget(run: Run) -> Iterator[tuple[float, Verdict]]:
    """The verdict at each audited budget, where there are several; smallest first."""
    for eps in sorted(run.budgets) if len(run.budgets) > 1 else ():
        yield eps, verdict(replace(run, threat={**run.threat, "eps": eps}))


def _finding(
    detector: str,
    rows: pd.DataFrame,
    success: Rate | None,
    failed: list[str],
    run: Run,
) -> Finding | None:
    at = {level: rows[rows["metric"] == f"slips_through_fpr{level}"] for level in LEVELS}
    rates = {level: rate for level, part in at.items() if (rate := worst(part)) is not None}
    if 10 not in rates:
        return None
    top = at[10].iloc[int(at[10]["value"].fillna(-1.0).argmax())]
    aware = any(
        k == "detector-aware"
        and a != "worst"
        and detector in run.aims.get(str(o), aimed_at(str(o), {}, (detector,)))
        for k, a, o in zip(
            at[10]["knowledge"], at[10]["attack"], at[10]["objective"], strict=True
        )
    )
    alarms, masked = _alarms(rows), run.masked.get(detector, "")
    word, why = _word(
        rates[10],
        aware,
        success,
        failed,
        alarms,
        masked,
        _few(run, 10),
        run.quick is not None,
    )
    plain = worst(at[10][at[10]["objective"] == "plain"])
    reads = tuple(run.reads.get(detector, ()))
    return Finding(
        detector,
        word,
        why,
        f"{top['attack']}+{top['objective']}",
        plain,
        rates,
        aware,
        reads,
    )


def _alarms(rows: pd.DataFrame) -> str:
    """What a guard makes of images that nobody attacked, where it rejects too many of them at 10
    %: "" or the reason why it does not hold.
    """
    named = {
        "false_alarms_fpr10": "as they are",
        "false_alarms_fpr10_noise": "under noise of the budget",
    }
    shifted = "false_alarms_fpr10_shifted_"
    named |= {
        m: f"under {m.removeprefix(shifted)}"
        for m in rows["metric"].unique()
        if m.startswith(shifted)
    }
    found = {said: worst(rows[rows["metric"] == metric]) for metric, said in named.items()}
    many = [
        f"{rate} {said}"
        for said, rate in found.items()
        if rate is not None and rate.low > ALARMS
    ]
    return f"it also rejects harmlessly changed images: {', '.join(many)}" if many else ""


def _word(
    rate: Rate,
    aware: bool,
    success: Rate | None,
    failed: list[str],
    alarms: str,
    masked: str,
    few: str,
    quick: bool,
) -> tuple[str, str]:
    if rate.low >= FAILS:
        return "fails", f"at least {percent(rate.low)} slip through"
    if rate.low > HOLDS:
        return "leaks", f"at least {percent(rate.low)} slip through"
    if alarms or few:
        return "undecided", alarms or few
    if rate.high > HOLDS:
        return (
            "undecided",
            (
                f"{rate.n} images leave everything from {percent(rate.low)} to "
                f"{percent(rate.high)} possible"
            ),
        )
    if success is None or success.value < STRONG:
        return "undecided", "the attacks are too weak to test it"
    if masked:
        return "unproven", f"attacks through it prove nothing: {masked}"
    if failed:
        return "undecided", f"sanity check failed: {', '.join(failed)}"
    if quick:
        return "undecided", "a quick look attacks too little to show that a guard holds"
    if not aware:
        return "unproven", "no effective attack by somebody who knows this guard was run"
    return "holds", f"at most {percent(rate.high)} slip through, under every attack tried"


def _few(run: Run, level: int) -> str:
    """Why the threshold at a level (per cent) cannot be trusted; "" where it can, or where the
    run does not say how many images it comes from.
    """
    if run.calibrated is None or enough(run.calibrated[0], level / 100):
        return ""
    needed = cases_needed(level / 100)
    return (
        f"{run.calibrated[1]} are too few for a threshold at {level} % false alarms, which "
        f"needs {needed}"
    )


def _no_evidence(failed: list[str]) -> str:
    checks = f"sanity check{'s' * (len(failed) > 1)}"
    return (
        f"Nothing can be concluded: these numbers are not evidence, since the {checks} failed: "
        f"{', '.join(failed)}."
    )


def _marked(run: Run, headline: str) -> str:
    """The headline; that of a quick look says so before anything else."""
    return headline if run.quick is None else f"Quick look: {headline}"


def kind_of(findings: Sequence[Finding]) -> str:
    """What kind of guards these are, with a space behind it: "feature-space ", "logit-space " or
    both; "" where one reads the image, or nobody knows.
    """
    spaces = {space for f in findings for space in f.reads or ("unknown",)}
    adjectives = {"features": "feature", "logits": "logit"}
    if not spaces <= set(adjectives):
        return ""
    return (
        "- and ".join(word for space, word in adjectives.items() if space in spaces)
        + "-space "
    )


def _headline(findings: list[Finding], success: Rate | None, thin: str) -> str:
    best, n, kind = findings[0], len(findings), kind_of(findings)
    name = label(best.detector)
    good = [label(f.detector) for f in findings if f.word == best.word]
    few = f"{', '.join(good)}" if len(good) > 1 else name
    match best.word:
        case "holds":
            return f"{len(good)} of {n} {kind}guards hold{'s' if len(good) == 1 else ''}: {few}."
        case "unproven":
            return f"Not broken, not proven: {few}." + (
                f" Only {kind}guards were audited." if kind else ""
            )
        case "undecided":
            if success is not None and success.value < STRONG:
                return (
                    f"Little is learnt about the {kind}guards: the attacks fool the classifier "
                    f"in {percent(success.value)} of the cases."
                )
            if thin:
                return f"No {kind}guard can be shown to hold: {thin}."
            return f"No {kind}guard is shown to hold, and not every guard is shown to fail."
        case "leaks":
            return f"No {kind}guard holds. The best of {n}, {name}, leaks."
        case _:
            return (
                f"No {kind}guard holds. All {n} fail."
                if n > 1
                else f"The {kind}guard {name} fails."
            )


def _attacked(run: Run) -> str:
    names = [
        ", ".join(dict.fromkeys(run.table[c].astype(str)))
        for c in ("classifier", "dataset")
    ]
    n = (
        int(run.table.loc[run.table["metric"] == "success", "n"].max())
        if (run.table["metric"] == "success").any()
        else 0
    )
    clean = run.table[
        (run.table["metric"] == "accuracy")
        & run.table["attack"].isin(["", "none", "clean"])
    ]
    accuracy = worst(clean)
    right = f"; it is right on {accuracy} of the test images" if accuracy else ""
    made = " All images are synthetic." if run.synthetic else ""
    return (
        f"{names[0]} on {names[1]}{right}. {n} test images that it gets right were "
        f"attacked.{made}{_look(run)}"
    )


def _look(run: Run) -> str:
    """What a quick look leaves out, and the command of the whole audit."""
    if run.quick is None:
        return ""
    says = f": {'; '.join(map(str, run.quick['says']))}" if run.quick["says"] else ""
    command = str(run.quick["command"])
    whole = f" The whole audit: {command}" if command else ""
    return f" This is a quick look, not an audit{says}.{whole}"


def _strength(run: Run, rows: pd.DataFrame, success: Rate | None) -> str:
    names = [
        label(f"{a}+{o}")
        for a, o in dict.fromkeys(zip(rows["attack"], rows["objective"], strict=True))
        if a not in ("", "none", "worst")
    ]
    fooled = (
        f" Without a guard the strongest attack fools the classifier on {success} of the images."
        if success
        else ""
    )
    return f"{run.budget}{_others(run)}: {', '.join(names)}.{fooled}"


def _others(run: Run) -> str:
    """Which of several budgets this is."""
    others = [run.size(e) for e in run.budgets if e != float(run.threat["eps"])]
    return (
        f" (the budget at which the best guard does worst; also audited: {', '.join(others)})"
        if others
        else ""
    )


def _slipped(findings: list[Finding], run: Run) -> str:
    best = findings[0]
    rates = "; ".join(
        f"{best.worst[k]} at {k} % false alarms" for k in LEVELS if k in best.worst
    )
    text = (
        f"Past the best guard, {label(best.detector)}, under its worst attack "
        f"({label(best.attack)}): {rates}."
    )
    if best.plain is not None and best.plain.value < best.worst[10].value:
        text += f" Attacks that do not hide get {best.plain} past it at 10 %."
    if run.calibrated and (few := [k for k in LEVELS if k in best.worst and _few(run, k)]):
        needs = ", ".join(f"{cases_needed(k / 100)} at {k} %" for k in few)
        text += (
            f" From {run.calibrated[1]} a threshold is uncertain, and the intervals allow for "
            f"it: it needs {needs}."
        )
    return f"{text} {best.why[0].upper()}{best.why[1:]}."


def _sanity_checks(run: Run, failed: list[str]) -> str:
    if not run.sanity_checks:
        return "No sanity check was computed: nothing in this run checks the evaluation itself."
    count = {
        s: sum(c["status"] == s for c in run.sanity_checks)
        for s in ("pass", "warn", "fail")
    }
    text = (
        f"{count['pass']} of {len(run.sanity_checks)} sanity checks passed, {count['warn']} gave "
        f"a warning, {count['fail']} failed."
    )
    return (
        f"{text} Until it is repaired, nothing here is a proof of safety: {', '.join(failed)}."
        if failed
        else text
    )
