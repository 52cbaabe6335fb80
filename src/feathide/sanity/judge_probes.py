"""Judge what the probes measured: see ``probes.measure`` for the arrays."""

from collections.abc import Mapping

import numpy as np

from feathide.catalog import OBJECTIVES, ability_of
from feathide.metrics.numbers import percent
from feathide.pipeline.context import Context
from feathide.sanity.probes import probe_key, probes_in
from feathide.sanity.status import Judged

__all__ = [
    "judge_probes",
    "masked",
    "masked_in",
]

Arrays = Mapping[str, np.ndarray]


# a search without the gradient beats it by so many spreads of clean scores and by such a share of
# its own fall of the images: where it does so for more of them the sanity check warns, for more
# than half it fails
BEATEN, SHARE = 0.5, 0.25
BORDER = 0.25


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
