"""Conformance checks of detectors: what a score may depend on, which way it points, and what must
raise. A conformance check takes what makes the detector.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import wraps

import torch
from torch import Tensor

from feathide.checks.detector_faults import (
    constant_channel,
    constant_layer,
    missing_layer,
    not_a_number,
    one_class,
)
from feathide.checks.detector_scores import (
    IMAGE,
    PARTS,
    Make,
    apart,
    area,
    close,
    exchanged,
    raises,
    says,
    score,
)
from feathide.checks.verdicts import Broken, NotApplicable, require, untouched_random_state
from feathide.checks.worlds import evidence, mixed, sample, with_reference_network
from feathide.detectors.base import unguarded
from feathide.errors import InputError
from feathide.types import Outputs, Space

__all__ = [
    "DETECTOR_LAWS",
]


def separates(make: Make) -> None:
    """Gaussians far apart are told apart, and the strange ones score higher."""
    found = area(score(make))
    require(
        found > 0.99,
        "an AUC above 0.99 on separated Gaussians, higher scores being more suspicious",
        got=f"{found:.3f}",
    )


def swapped(make: Make) -> None:
    """Shown strange images as clean and clean ones as attacks, a detector turns round if it
    learns from attacks, and does not change if not.
    """
    e = evidence()
    turned = score(
        make, replace(e, clean=e.adversarial, noisy=e.adversarial, adversarial=e.clean)
    )
    try:
        blind = score(make, replace(e, noisy=e.noisy[:0], adversarial=e.adversarial[:0]))
    except InputError:  # it cannot learn without attacks
        require(
            area(turned) < 0.01,
            "an AUC below 0.01 after learning with the roles swapped",
            got=f"{area(turned):.3f}",
        )
        return
    same = torch.equal(blind, score(make))
    require(
        same,
        "a detector that fits without attacks never to look at them",
        got="other scores without them",
    )
    require(
        area(turned) > 0.99,
        "an AUC above 0.99 whatever the attacks are",
        got=f"{area(turned):.3f} with the roles swapped",
    )


def rows_alone(make: Make) -> None:
    """A row's score depends on that row only, not on its neighbours nor on their number."""
    detector, out = make().fit(evidence()), mixed()
    whole = detector.score(out)
    close(
        "the scores of the batch for each row alone",
        torch.cat([detector.score(out[i : i + 1]) for i in range(len(out))]),
        whole,
    )
    some = torch.arange(0, len(out), 7)
    close("the scores of the batch for a subset", detector.score(out[some]), whole[some])


def permutation(make: Make) -> None:
    """Shuffled rows have shuffled scores."""
    detector, out = make().fit(evidence()), mixed()
    order = torch.randperm(len(out), generator=torch.Generator().manual_seed(6))
    close(
        "the scores to follow their rows",
        detector.score(out[order]),
        detector.score(out)[order],
    )


def idempotent(make: Make) -> None:
    """Fitting a fitted detector again gives the same: what was learnt before is forgotten."""
    recipe, e = make(), evidence()
    other = replace(
        e,
        train=e.train[40:],
        train_labels=e.train_labels[40:],
        clean=e.clean[10:],
        noisy=e.noisy[10:],
        adversarial=e.adversarial[10:],
    )
    again, once = recipe.fit(other).fit(e).score(mixed()), recipe.fit(e).score(mixed())
    require(
        torch.equal(again, once),
        "the same bits from fit(other).fit(e) and fit(e)",
        got=f"{apart(again, once):.2g} off",
    )


def unfitted(make: Make) -> None:
    """A recipe that was not fitted raises, also after it made a fitted copy; one that learns
    nothing may score.
    """
    recipe = make()
    fitted = recipe.fit(evidence()).score(mixed())
    try:
        found = recipe.score(mixed())
    except InputError as error:
        says(error, "fit")
        return
    e = evidence()
    strange = replace(
        e, train=replace(e.train, features={k: v + 5 for k, v in e.train.features.items()})
    )
    learns = not torch.equal(recipe.fit(strange).score(mixed()), fitted)
    require(
        not learns and torch.equal(found, fitted),
        "an InputError from score before fit, fit giving a copy",
        got="scores",
    )


def untouched(make: Make) -> None:
    """Neither the evidence nor the outputs nor global random numbers are changed."""
    e, out = deepcopy(evidence()), deepcopy(mixed())
    with untouched_random_state():
        make().fit(e).score(out)
    pairs = [(f"evidence.{n}", getattr(e, n), getattr(evidence(), n)) for n in PARTS] + [
        ("outputs", out, mixed())
    ]
    for name, mine, original in pairs:
        whole = torch.equal(mine.logits, original.logits)
        whole &= all(torch.equal(mine.features[k], v) for k, v in original.features.items())
        require(whole, f"{name} as they were", got="changed values")


def differentiable(make: Make) -> None:
    """The gradient of a score is that of its formula (gradcheck in float64), and is not zero."""
    detector, out = make().fit(evidence()), mixed()[torch.tensor([0, 31])]
    assert (
        out.stochastic is not None
        and out.statistics is not None
        and out.squeezed is not None
    )
    layers = list(out.features)

    def scores(
        logits: Tensor,
        stochastic: Tensor,
        statistics: Tensor,
        squeezed: Tensor,
        *features: Tensor,
    ) -> Tensor:
        shown = dict(zip(layers, features, strict=True))
        return detector.score(
            with_reference_network(
                Outputs(logits, shown, stochastic, statistics=statistics, squeezed=squeezed)
            )
        )

    given = (
        out.logits,
        out.stochastic,
        out.statistics,
        out.squeezed,
        *out.features.values(),
    )
    leaves = [v.clone().requires_grad_() for v in given]
    found = scores(*leaves)
    if not found.requires_grad:
        raise NotApplicable(
            "its scores have no gradient, so that attacks cannot aim at it; say so beside "
            "its numbers"
        )
    try:
        torch.autograd.gradcheck(scores, leaves)
    except RuntimeError as error:
        raise Broken(
            f"expected the gradient of the score, got another one ({str(error).splitlines()[0]})"
        ) from None
    gradients = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
    reached = any(
        g is not None and bool((g.flatten(1).abs().sum(1) > 0).all()) for g in gradients
    )
    require(reached, "a gradient in every row", got="zero")


def dtype(make: Make) -> None:
    """Scores are in the dtype of the outputs; float32 gives what float64 gives, as far as it
    can.
    """
    single = score(make, out=mixed().to(torch.float32))
    require(
        single.dtype == torch.float32,
        "float32 scores for float32 outputs",
        got=single.dtype,
    )
    close("the scores of float64", single.double(), score(make), tolerance=1e-3)


def asks_for_what_it_reads(make: Make) -> None:
    """``needs_dropout``, ``needs_reference_network``, ``needs_statistics`` and ``needs_squeezed``
    say exactly what ``score`` reads; without it there is a message.
    """
    detector, whole = make().fit(evidence()), mixed()
    for word, field in (
        ("dropout", "stochastic"),
        ("reference_network", "reference_network"),
        *zip(IMAGE, IMAGE, strict=True),
    ):
        out = replace(whole, **{field: None})  # type: ignore[arg-type]
        if getattr(detector, f"needs_{word}"):
            raises(lambda out=out: detector.score(out), word)  # type: ignore[misc]
        else:
            same = torch.equal(detector.score(out), detector.score(whole))
            require(
                same,
                f"needs_{word} = True, as the score depends on them",
                got=f"needs_{word} = False",
            )


def says_where_it_looks(make: Make) -> None:
    """``reads`` names the spaces that ``score`` looks in: features, logits (beyond the predicted
    class), those of a reference network alike, the image; no others.
    """
    detector, whole = make().fit(evidence()), mixed()
    other = sample(60, seed=8, strange=True)
    # the same predicted classes
    other = with_reference_network(replace(other, logits=0.5 * whole.logits))
    changes: dict[Space, tuple[str, ...]] = {
        "features": ("features",),
        "logits": ("logits", "stochastic"),
        "image": IMAGE,
    }
    for space, fields in changes.items():
        moved = exchanged(whole, other, fields)
        same = torch.equal(detector.score(moved), detector.score(whole))
        wanted = f"the score to depend on {space} if and only if reads holds it"
        require(
            same == (space not in detector.reads), wanted, got=f"reads = {detector.reads}"
        )


def own(check: Callable[[Make], None]) -> Callable[[Make], None]:
    """The check for the detector's own code, not for the border that stands before it."""

    @wraps(check)
    def judged(make: Make) -> None:
        with unguarded():
            check(make)

    return judged


CHECKS: dict[str, Callable[[Make], None]] = {
    "separated Gaussians": separates,
    "swapped roles": swapped,
    "rows alone": rows_alone,
    "permuted rows": permutation,
    "idempotent fit": idempotent,
    "unfitted raises": unfitted,
    "inputs untouched": untouched,
    "differentiable": differentiable,
    "float32": dtype,
    "asks for what it reads": asks_for_what_it_reads,
    "says where it looks": says_where_it_looks,
    "one class": one_class,
    "constant layer": constant_layer,
    "constant channel": constant_channel,
    "not a number": not_a_number,
    "missing layer": missing_layer,
}
DETECTOR_LAWS = {name: own(check) for name, check in CHECKS.items()}
