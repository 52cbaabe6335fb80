"""Recipes: the attacks of the literature as values of the one loop. Steps are fractions of eps,
so a recipe does not depend on the budget.

Every recipe takes the threat model and an optional ``hide``, an objective that is added to its
own (``pgd(Linf(4 / 255), hide=0.3 * HFC(bank))``), or a function from ``Outputs`` to one number an
image. The fields of ``Attack`` that ``Fields`` names pass through (``restarts=5``,
``objective=AwayFrom()``), except those that make the recipe what it is: FGSM stays one step.
``kappa``: the lead of the target from which on the loss has no slope, so that all of the step goes
to ``hide``; in ``Attack.unit``, infinite unless said."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from functools import wraps
from inspect import Parameter, signature
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, Unpack

from feathide.attacks.apgd import AutoStep
from feathide.attacks.ensemble import Ensemble
from feathide.attacks.loop import Attack, Leave, Smooth, View, never, when_fooled
from feathide.attacks.square import Square
from feathide.attacks.threats import ThreatModel, check_threat
from feathide.attacks.transforms import GaussianSmooth, LowPass, ResizeAndPad
from feathide.attacks.updates import Blend, Momentum, Plain, Rule
from feathide.errors import expected, unknown
from feathide.losses import (
    DLR,
    AwayFrom,
    CrossEntropy,
    Margin,
    Objective,
    ObjectiveLike,
    as_objective,
)

__all__ = [
    "apgd_ce",
    "apgd_dlr",
    "bim",
    "cw",
    "dim",
    "fgsm",
    "mim",
    "noise",
    "pgd",
    "pgd_smooth",
    "square",
    "standard",
    "tim",
]

J: Objective = CrossEntropy()

P = ParamSpec("P")
A = TypeVar("A", Attack, Ensemble)


class Fields(TypedDict, total=False):
    """What every recipe takes beside its own arguments; ``Attack`` says what they mean."""

    objective: ObjectiveLike
    steps: int
    step_size: float
    decay: Literal["constant", "linear", "cosine"]
    rule: Rule
    blend: Blend
    view: View | None
    smooth: Smooth | None
    limit: Smooth | None
    random_start: bool | Literal["one-sided"]
    restarts: int
    confidence: float
    leave: Leave
    unit: float
    kappa: float


def _recipe(make: Callable[P, A]) -> Callable[P, A]:
    """A recipe whose signature names the ``Fields``, and that answers a wrong name with the
    nearest one.
    """
    written = signature(make)
    own: list[Parameter] = [
        p for p in written.parameters.values() if p.kind is not Parameter.VAR_KEYWORD
    ]
    usual = {f.name: f.default for f in fields(Attack) if f.default is not MISSING}
    passed: list[Parameter] = [
        Parameter(
            name, Parameter.KEYWORD_ONLY, default=usual.get(name, ...), annotation=kind
        )
        for name, kind in Fields.__annotations__.items()
    ]
    names = [p.name for p in (*own, *passed)]

    @wraps(make)
    def made(*threat: P.args, **given: P.kwargs) -> A:
        for name in given:
            if name not in names:
                raise unknown(f"argument of {make.__name__}", name, names)
        _check_call(make.__name__, threat, given)
        return make(*threat, **given)

    made.__signature__ = written.replace(parameters=[*own, *passed])  # type: ignore[attr-defined]
    return made


def _check_call(recipe: str, threat: tuple[object, ...], fields: Mapping[str, Any]) -> None:
    """Refuse what no recipe can use: no threat model, more than one, no step at all."""
    given = [*threat, *([fields["threat"]] if "threat" in fields else [])]
    if len(given) != 1:
        raise expected(
            f"{recipe} takes one threat model; the rest are named",
            got=f"{len(given)} unnamed arguments",
            do=f"say {recipe}(Linf(4 / 255), ...)",
        )
    check_threat(given[0])
    for name in ("steps", "queries"):
        if name in fields and isinstance(fields[name], int | float) and fields[name] < 1:
            raise expected(
                f"{name} of {recipe} must be 1 or more",
                got=fields[name],
                do=f"raise {name}, or take noise(...) for a random start alone",
            )


@_recipe
def fgsm(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Attack:
    """FGSM (Goodfellow et al. 2015): one step of length eps along the steepest direction.

        delta = -eps * steepest(gradient of J)

    Args:
        threat: The norm and the budget, such as ``Linf(4 / 255)``.
        hide: A term that is added to the cross-entropy, such as ``0.3 * HFC(bank)``.
        **fields: Further fields of ``Attack``.

    Returns:
        The attack, to be called with a classifier, images and a goal.

    References:
        Goodfellow, Shlens and Szegedy: Explaining and harnessing adversarial examples. ICLR 2015.

    Examples:
        >>> attack = fgsm(Linf(4 / 255))
        >>> attack.steps, attack.step_size
        (1, 1.0)
    """
    return _attack(threat, J, hide, fields, steps=1, step_size=1.0, decay="constant")


@_recipe
def bim(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Attack:
    """BIM, also called I-FGSM (Kurakin et al. 2017): many small steps from the clean image.

        delta_{k+1} = project(delta_k - alpha * eps * steepest(gradient of J))

    Args:
        threat: The norm and the budget, such as ``Linf(4 / 255)``.
        hide: A term that is added to the cross-entropy, such as ``0.3 * HFC(bank)``.
        **fields: Further fields of ``Attack``, such as ``steps``, ``step_size`` or ``decay``.

    Returns:
        The attack, to be called with a classifier, images and a goal.

    References:
        Kurakin, Goodfellow and Bengio: Adversarial examples in the physical world. ICLR workshop
            2017.

    Examples:
        >>> bim(Linf(4 / 255), steps=20).steps
        20
    """
    return _attack(threat, J, hide, fields)


@_recipe
def pgd(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    one_sided: bool = False,
    **fields: Unpack[Fields],
) -> Attack:
    """PGD (Madry et al. 2018): BIM from a random start in the ball.

        delta_0 uniform in the ball, delta_{k+1} = project(delta_k - alpha * eps * steepest(gradient
        of J))

    Args:
        threat: The norm and the budget, such as ``Linf(4 / 255)``.
        hide: A term that is added to the cross-entropy, such as ``0.3 * HFC(bank)``.
        one_sided: Start in [0, eps] only, a flaw of published code that is kept for comparison.
        **fields: Further fields of ``Attack``, such as ``steps``, ``step_size`` or ``restarts``.

    Returns:
        The attack, to be called with a classifier, images and a goal.

    References:
        Madry et al.: Towards deep learning models resistant to adversarial attacks. ICLR 2018.

    Examples:
        >>> classifier = FeatureClassifier(network.eval(), "blocks")
        >>> attack = pgd(Linf(4 / 255), steps=5)
        >>> found = attack(classifier, images, Goal(labels, targets), ids=ids)
        >>> bool((found.adversarial - images).abs().max() <= 4 / 255 + 1e-6)
        True
    """
    return _attack(threat, J, hide, fields, random_start="one-sided" if one_sided else True)


@_recipe
def pgd_smooth(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    share: float = 0.5,
    **fields: Unpack[Fields],
) -> Attack:
    """PGD whose perturbations have only the lowest ``share`` of the frequencies of each axis:
    against guards that look for roughness in the image itself.
    """
    return _attack(threat, J, hide, fields, random_start=True, limit=LowPass(share))


@_recipe
def mim(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    mu: float = 1.0,
    **fields: Unpack[Fields],
) -> Attack:
    """MIM / MI-FGSM (Dong et al. 2018): momentum ``mu`` on gradients of unit L1 norm."""
    return _attack(threat, J, hide, fields, rule=Momentum(mu))


@_recipe
def dim(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    p: float = 0.5,
    mu: float = 1.0,
    **fields: Unpack[Fields],
) -> Attack:
    """DIM / DI-FGSM (Xie et al. 2019): MIM whose gradient is taken at a resized and padded view
    with probability ``p``.
    """
    return _attack(
        threat, J, hide, fields, rule=Momentum(mu) if mu else Plain(), view=ResizeAndPad(p)
    )


@_recipe
def tim(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    taps: int = 7,
    mu: float = 1.0,
    **fields: Unpack[Fields],
) -> Attack:
    """TIM / TI-FGSM (Dong et al. 2019): MIM with the gradient smoothed by a Gaussian of ``taps``
    taps per axis.
    """
    return _attack(
        threat,
        J,
        hide,
        fields,
        rule=Momentum(mu) if mu else Plain(),
        smooth=GaussianSmooth(taps),
    )


@_recipe
def cw(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    **fields: Unpack[Fields],
) -> Attack:
    """CW-Linf (Carlini & Wagner 2017, as in Madry et al. 2018): PGD on the margin to the best
    other class in place of the cross-entropy.
    """
    return _attack(threat, Margin(), hide, fields, random_start=True)


@_recipe
def apgd_ce(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Attack:
    """APGD-CE (Croce & Hein 2020): PGD whose step sizes choose themselves, on the
    cross-entropy.
    """
    return _apgd(threat, J, hide, fields)


@_recipe
def apgd_dlr(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Attack:
    """APGD on the targeted difference-of-logits ratio, or on the margin where there are fewer
    than four classes (``AttackResult.losses`` says which).
    """
    return _apgd(threat, DLR(), hide, fields)


@_recipe
def square(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    queries: int = 5000,
    **fields: Unpack[Fields],
) -> Attack:
    """Square (Andriushchenko et al. 2020): random search on the margin with ``queries`` forward
    passes and no gradient.
    """
    return _square(threat, Margin(), hide, fields, queries)


@_recipe
def standard(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    classes: int | None = None,
    queries: int = 5000,
    **fields: Unpack[Fields],
) -> Ensemble:
    """APGD-CE, then APGD-DLR, then Square, after AutoAttack (Croce & Hein 2020), for any number
    of classes and axes: each attacks what the ones before it left.

    Towards the goal's target; or, with the number of ``classes``, untargeted, where APGD-DLR aims
    at up to nine other classes in turn, as AutoAttack does. AutoAttack's FAB, a minimal-norm
    attack, is left out. With ``hide`` no image is finished early."""
    chosen: dict[str, Any] = {"leave": _leave(hide), **fields}
    aims: tuple[Objective, ...] = (J, DLR())
    if classes is not None:
        aims = (AwayFrom(), *(DLR(rank) for rank in range(1, min(classes, 10))))
    last = Margin() if classes is None else AwayFrom("margin")
    walks = [_apgd(threat, aim, hide, chosen) for aim in aims]
    return Ensemble((*walks, _square(threat, last, hide, chosen, queries)), chosen["leave"])


@_recipe
def noise(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Attack:
    """No attack at all: random noise in the ball. What every attack must beat, and the "noisy"
    negatives of the detectors.
    """
    return _attack(threat, J, None, fields, steps=0, random_start=True)


def _attack(
    threat: ThreatModel,
    base: Objective,
    hide: ObjectiveLike | None,
    fields: Mapping[str, Any],
    **own: Any,
) -> Attack:
    """``own``, what the recipe is, goes before ``fields``, what the caller chose."""
    chosen = dict(fields)
    if (kappa := chosen.pop("kappa", None)) is not None:
        if not isinstance(base, CrossEntropy | Margin | DLR):
            raise expected(
                "kappa is the lead of a target",
                got="an untargeted attack",
                do="leave kappa out",
            )
        base = replace(base, kappa=kappa)
    objective = base if hide is None else base + as_objective(hide)
    if "objective" in chosen:
        chosen["objective"] = as_objective(chosen["objective"], fools=True)
    return Attack(
        **{
            "objective": objective,
            "threat": threat,
            "steps": 40,
            "step_size": 0.1,
            **chosen,
            **own,
        }
    )


def _apgd(
    threat: ThreatModel,
    base: Objective,
    hide: ObjectiveLike | None,
    fields: Mapping[str, Any],
) -> Attack:
    own = {"rule": AutoStep(), "random_start": True, "step_size": 2.0, "decay": "constant"}
    return _attack(threat, base, hide, {"steps": 100, **fields}, **own)


def _square(
    threat: ThreatModel,
    base: Objective,
    hide: ObjectiveLike | None,
    fields: Mapping[str, Any],
    queries: int,
) -> Attack:
    own = {"rule": Square(), "steps": queries, "random_start": False}
    return _attack(threat, base, hide, {"leave": _leave(hide), **fields}, **own)


def _leave(hide: ObjectiveLike | None) -> Leave:
    return when_fooled if hide is None else never
