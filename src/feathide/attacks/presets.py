"""Recipes: the attacks of the literature as values of the one loop. Steps are fractions of eps,
so a recipe does not depend on the budget.

Every recipe takes the threat model and an optional ``hide``, an objective that is added to its
own (``pgd(Linf(4 / 255), hide=0.3 * HFC(bank))``), or a function from ``Outputs`` to one number an
image. The fields of ``Attack`` that ``Fields`` names pass through (``restarts=5``,
``objective=AwayFrom()``), except those that make the recipe what it is: FGSM stays one step.
``kappa``: the lead of the target from which on the loss has no slope, so that all of the step goes
to ``hide``; in ``Attack.unit``, infinite unless said."""

from typing import Any, Unpack

from feathide.attacks.ensemble import Ensemble
from feathide.attacks.loop import Attack
from feathide.attacks.recipe import (
    Fields,
    apgd_of,
    build_attack,
    leave_of,
    recipe,
    square_of,
)
from feathide.attacks.threats import ThreatModel
from feathide.attacks.transforms import GaussianSmooth, LowPass, ResizeAndPad
from feathide.attacks.updates import Momentum, Plain
from feathide.losses import DLR, AwayFrom, CrossEntropy, Margin, Objective, ObjectiveLike
from feathide.losses.dense import JensenShannon, MaskedCrossEntropy

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
    "standard_dense",
    "tim",
]

J: Objective = CrossEntropy()


@recipe
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
    return build_attack(threat, J, hide, fields, steps=1, step_size=1.0, decay="constant")


@recipe
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
    return build_attack(threat, J, hide, fields)


@recipe
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
    return build_attack(
        threat, J, hide, fields, random_start="one-sided" if one_sided else True
    )


@recipe
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
    return build_attack(threat, J, hide, fields, random_start=True, limit=LowPass(share))


@recipe
def mim(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    mu: float = 1.0,
    **fields: Unpack[Fields],
) -> Attack:
    """MIM / MI-FGSM (Dong et al. 2018): momentum ``mu`` on gradients of unit L1 norm."""
    return build_attack(threat, J, hide, fields, rule=Momentum(mu))


@recipe
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
    return build_attack(
        threat, J, hide, fields, rule=Momentum(mu) if mu else Plain(), view=ResizeAndPad(p)
    )


@recipe
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
    return build_attack(
        threat,
        J,
        hide,
        fields,
        rule=Momentum(mu) if mu else Plain(),
        smooth=GaussianSmooth(taps),
    )


@recipe
def cw(
    threat: ThreatModel,
    *,
    hide: ObjectiveLike | None = None,
    **fields: Unpack[Fields],
) -> Attack:
    """CW-Linf (Carlini & Wagner 2017, as in Madry et al. 2018): PGD on the margin to the best
    other class in place of the cross-entropy.
    """
    return build_attack(threat, Margin(), hide, fields, random_start=True)


@recipe
def apgd_ce(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Attack:
    """APGD-CE (Croce & Hein 2020): PGD whose step sizes choose themselves, on the
    cross-entropy.
    """
    return apgd_of(threat, J, hide, fields)


@recipe
def apgd_dlr(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Attack:
    """APGD on the targeted difference-of-logits ratio, or on the margin where there are fewer
    than four classes (``AttackResult.losses`` says which).
    """
    return apgd_of(threat, DLR(), hide, fields)


@recipe
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
    return square_of(threat, Margin(), hide, fields, queries)


@recipe
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
    chosen: dict[str, Any] = {"leave": leave_of(hide), **fields}
    aims: tuple[Objective, ...] = (J, DLR())
    if classes is not None:
        aims = (AwayFrom(), *(DLR(rank) for rank in range(1, min(classes, 10))))
    last = Margin() if classes is None else AwayFrom("margin")
    walks = [apgd_of(threat, aim, hide, chosen) for aim in aims]
    return Ensemble(
        (*walks, square_of(threat, last, hide, chosen, queries)), chosen["leave"]
    )


@recipe
def standard_dense(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Ensemble:
    """APGD on the masked cross-entropy, the balanced masked cross-entropy and the Jensen-Shannon
    divergence, one after the other, on a network that segments: each attacks what the ones before
    it left, and the worst case of each image is kept.

    Of SEA (Croce et al. 2024) it leaves out the larger budget that the first steps have there.
    With ``hide`` no image is finished early.

    References:
        Croce, Singh and Hein: Towards reliable evaluation and fast training of robust semantic
            segmentation models. ECCV 2024.
    """
    chosen: dict[str, Any] = {"leave": leave_of(hide), **fields}
    losses = (MaskedCrossEntropy(), MaskedCrossEntropy(balanced=True), JensenShannon())
    return Ensemble(
        tuple(apgd_of(threat, loss, hide, chosen) for loss in losses), chosen["leave"]
    )


@recipe
def noise(
    threat: ThreatModel, *, hide: ObjectiveLike | None = None, **fields: Unpack[Fields]
) -> Attack:
    """No attack at all: random noise in the ball. What every attack must beat, and the "noisy"
    negatives of the detectors.
    """
    return build_attack(threat, J, None, fields, steps=0, random_start=True)
