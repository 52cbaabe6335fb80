"""What a plan may not ask: features of layers that nobody can watch, dropout draws and gradients
where there are none, attacks that hide where they cannot.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from feathide.catalog import ABILITIES, DETECTORS, OBJECTIVES, ability_of
from feathide.detectors import DETECTORS as OUR_DETECTORS
from feathide.errors import InputError, expected, first_line
from feathide.execution.packing import taught
from feathide.losses.hiding import score_of, without_gradient
from feathide.models.classifier import FeatureClassifier
from feathide.models.memory import lacks_memory
from feathide.pipeline.context import Context
from feathide.pipeline.listing import why_not_hidden
from feathide.pipeline.network_checks import check_classifier
from feathide.plans.sections import ObjectivePlan
from feathide.types import Evidence, Outputs

__all__ = ["check_fitness", "check_hiding", "without_slope"]


def check_hiding(context: Context) -> None:
    """Refuse an objective that no attack of the plan can carry, or not the one that its weight is
    tuned with, where attacks of others, and not only the shortness of ours, are the reason.
    """
    foreign, tuned = (
        [a for a in context.plan.attacks if not ability_of(a.name).ours],
        context.plan.learnt_from,
    )
    for objective in context.plan.objectives:
        if (
            objective.weight == "auto"
            and not ability_of(tuned.name).ours
            and (reason := why_not_hidden(context, tuned, objective))
        ):
            raise InputError(
                f"the weight of {objective.name} is tuned with train_attack: {reason}"
            )
        reasons = [
            why_not_hidden(context, attack, objective)
            for attack in (*foreign, *context.plan.attacks)
        ]
        if foreign and all(reasons):
            raise InputError(
                f"no attack of the plan can hide by {objective.name}: {reasons[0]}, or "
                f"leave {objective.name} out"
            )


def check_fitness(context: Context, classifier: FeatureClassifier) -> None:
    """Refuse, before any long work, attacks and detectors that need what the classifier, trained
    or not yet, does not show. Raises ``InputError`` with the reason.
    """
    out = _shown(context, classifier)
    stuck = not context.recipe.trains and any(
        "no gradient" in caveat for caveat in check_classifier(context)
    )
    if not out.logits.requires_grad or stuck:
        _without_gradients(context)
    if not out.features:
        _without_features(context, out.logits.shape[1])
    flat = [name for name, f in out.features.items() if not f.requires_grad]
    if flat and out.logits.requires_grad:
        raise expected(
            (
                "features must carry a gradient to the image, or nobody can attack a guard "
                "that reads them"
            ),
            got=f"detached ones in {', '.join(flat[:5])}",
            do=(
                "leave these out of network.layers, or take detach() and no_grad out of the "
                "network"
            ),
        )
    _check_draws(context, classifier)
    _check_aims(context, classifier)


def without_slope(context: Context, classifier: FeatureClassifier) -> list[str]:
    """The detectors of others whose scores have no gradient, so that no attack can aim at them;
    tried on random outputs of the classifier's form, and guards as shipped on two images.

    Raises ``InputError`` for one whose code fails on outputs that carry a gradient, if an attack
    or a sanity check will show it such."""
    aimed = [
        d
        for o in context.plan.objectives
        if OBJECTIVES[o.kind].needs == "detectors"
        for d in _aimed(context, o)
    ]
    names = [
        n
        for n in dict.fromkeys((*context.plan.detectors, *aimed))
        if n not in OUR_DETECTORS
    ]
    if not names:
        return []
    frozen = context.recipe.frozen(names)
    looks = {name: guard.look for name, guard in frozen.items()}
    seen = _shown(context, replace(classifier, guards=looks)).guards or {}
    flat = [name for name, score in seen.items() if not score.requires_grad]
    out, labels = _random_outputs(_shown(context, classifier))
    for name in names:
        if name in frozen:
            continue
        # it may want more or other images than these, which stand for none
        try:
            guard = taught(name, Evidence(out, labels, out, out, out))
            guard.score(out)
        except Exception as error:
            # but no option that scikit-learn does not know
            if type(error.__cause__).__name__ == "InvalidParameterError":
                raise
            continue
        try:
            if not score_of(
                guard, out._each(lambda v: v.detach().requires_grad_())
            ).requires_grad:
                flat.append(name)
        except InputError:
            if name in aimed or context.plan.sanity_checks != "off":
                raise
            flat.append(name)
    return flat


def _aimed(context: Context, objective: ObjectivePlan) -> tuple[str, ...]:
    return objective.aimed_at(context.plan.detectors)


def _check_aims(context: Context, classifier: FeatureClassifier) -> None:
    """Refuse an objective that is aimed at scores without a gradient: by name, or as all that
    there are.
    """
    flat = without_slope(context, classifier)
    for objective in context.plan.objectives if flat else ():
        if OBJECTIVES[objective.kind].needs == "detectors":
            aimed = _aimed(context, objective)
            blind = [name for name in aimed if name in flat]
            if blind and (objective.aim or len(blind) == len(aimed)):
                raise without_gradient(objective.name, blind)


def _check_draws(context: Context, classifier: FeatureClassifier) -> None:
    """Refuse detectors that read dropout draws of a network that gives none, or one and the
    same.
    """
    names = [
        name for name in context.plan.detectors if context.recipe.needs("dropout", [name])
    ]
    if not names:
        return
    leave = (
        f"leave out {', '.join(names)}, or use a network that has a dropout or ends in a linear "
        "layer"
    )
    x = context.data.images(context.data.rows("train")[:2])
    try:
        with torch.no_grad():
            out = replace(classifier, dropout_samples=context.plan.dropout_samples)(x)
    except Exception as error:
        if lacks_memory(error):
            return  # fewer images at once may do
        reason = (
            first_line(error).partition(";")[0]
            if isinstance(error, InputError)
            else first_line(error)
        )
        raise InputError(f"{', '.join(names)} cannot be had: {reason}; {leave}") from error
    draws = out.stochastic
    if draws is None or draws.shape != (
        len(x),
        context.plan.dropout_samples,
        out.logits.shape[1],
    ):
        got = (
            "none"
            if draws is None
            else f"draws {tuple(draws.shape)} from a linear layer that does not give the logits"
        )
        raise expected(
            f"dropout draws for {', '.join(names)} must be those of the logits",
            got=got,
            do=leave,
        )
    if bool((draws == draws[:, :1]).all()):
        got = "the same in all draws: its dropout modules do not run"
        raise expected(
            f"dropout draws for {', '.join(names)} must differ", got=got, do=leave
        )


def _shown(context: Context, classifier: FeatureClassifier) -> Outputs:
    """Outputs of two images that carry a gradient to these, where the classifier lets one
    through.
    """
    x = context.data.images(context.data.rows("train")[:2]).requires_grad_()
    with torch.enable_grad():
        return classifier(x)


def _random_outputs(like: Outputs, n: int = 60, draws: int = 20) -> tuple[Outputs, Tensor]:
    """Random numbers of the form of ``like`` for ``n`` images, and their classes."""
    generator, classes = torch.Generator().manual_seed(0), like.logits.shape[1]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(n) % classes
    features = {
        name: random(n, f.shape[1]) + labels[:, None] for name, f in like.features.items()
    }
    logits = random(n, classes)
    stochastic = logits[:, None] * torch.linspace(0.5, 1.5, draws).double()[:, None]
    reference_network = Outputs(logits, features)
    return Outputs(
        logits,
        features,
        stochastic,
        reference_network=reference_network,
        statistics=logits,
        squeezed=stochastic[:, :2],
    ), labels


def _without_gradients(context: Context) -> None:
    names = dict.fromkeys(
        [a.name for a in context.plan.attacks] + [context.plan.train_attack]
    )
    refused = [n for n in names if ":" not in n and ability_of(n).gradient]
    known = " and ".join(n for n, ability in ABILITIES.items() if not ability.gradient)
    if refused:
        raise expected(
            f"a network without gradients can be attacked by {known} only",
            got=", ".join(refused),
            do="choose these, for train_attack as well",
        )
    if context.plan.sanity_checks != "off":
        raise expected(
            "the sanity checks attack by gradients, which the network does not have",
            got=f"sanity_checks: {context.plan.sanity_checks}",
            do="say sanity_checks: off",
        )


def _without_features(context: Context, classes: int) -> None:
    needs: Mapping[str, str] = {
        o.name: OBJECTIVES[o.kind].needs for o in context.plan.objectives
    }
    hiding = [name for name, need in needs.items() if need in ("bank", "train")]
    if hiding:
        raise expected(
            "the network shows no layers (layers: []), so that there are no features to hide in",
            got=", ".join(hiding),
            do="choose plain or evade",
        )
    out, labels = _random_outputs(Outputs(torch.zeros(1, classes), {}))
    for name in context.plan.detectors:
        try:
            DETECTORS[name]().fit(Evidence(out, labels, out, out, out)).score(out)
        except InputError as error:
            raise InputError(
                f"detector {name} reads features, and the network shows no layers (layers: "
                f"[]): {error}"
            ) from None
