"""Recipes: the attacks of the literature as values of the one loop. Steps are fractions of eps, so a recipe does not depend on the budget.

Every recipe takes the threat model and an optional ``hide``, an objective that is added to its own (``pgd(Linf(4 / 255), hide=0.3 * HFC(bank))``); other
fields of ``Attack`` pass through.
"""

from typing import Any

from feathide.attack import Attack
from feathide.geometry import ThreatModel
from feathide.objectives import CrossEntropy, Margin, Objective
from feathide.rules import Momentum, Plain
from feathide.views import GaussianSmooth, ResizeAndPad

__all__ = ["bim", "cw", "dim", "fgsm", "mim", "noise", "pgd", "tim"]

J: Objective = CrossEntropy()


def fgsm(threat: ThreatModel, *, hide: Objective | None = None, **fields: Any) -> Attack:
    """FGSM (Goodfellow et al. 2015): one step of length eps."""
    return _attack(threat, J, hide, fields, steps=1, step_size=1.0, decay="constant")


def bim(threat: ThreatModel, *, hide: Objective | None = None, **fields: Any) -> Attack:
    """BIM / I-FGSM (Kurakin et al. 2017): steps from the clean image."""
    return _attack(threat, J, hide, fields)


def pgd(threat: ThreatModel, *, hide: Objective | None = None, **fields: Any) -> Attack:
    """PGD (Madry et al. 2018): BIM from a random start on both sides of the image."""
    return _attack(threat, J, hide, fields, random_start=True)


def mim(threat: ThreatModel, *, hide: Objective | None = None, mu: float = 1.0, **fields: Any) -> Attack:
    """MIM / MI-FGSM (Dong et al. 2018): momentum ``mu`` on gradients of unit L1 norm."""
    return _attack(threat, J, hide, fields, rule=Momentum(mu))


def dim(threat: ThreatModel, *, hide: Objective | None = None, p: float = 0.5, mu: float = 1.0, **fields: Any) -> Attack:
    """DIM / DI-FGSM (Xie et al. 2019): MIM whose gradient is taken at a resized and padded view with probability ``p``."""
    return _attack(threat, J, hide, fields, rule=Momentum(mu) if mu else Plain(), view=ResizeAndPad(p))


def tim(threat: ThreatModel, *, hide: Objective | None = None, taps: int = 7, mu: float = 1.0, **fields: Any) -> Attack:
    """TIM / TI-FGSM (Dong et al. 2019): MIM with the gradient smoothed by a Gaussian of ``taps`` taps per axis."""
    return _attack(threat, J, hide, fields, rule=Momentum(mu) if mu else Plain(), smooth=GaussianSmooth(taps))


def cw(threat: ThreatModel, *, hide: Objective | None = None, kappa: float = float("inf"), **fields: Any) -> Attack:
    """CW-Linf (Carlini & Wagner 2017, as in Madry et al. 2018): PGD on the margin to the best other class in place of the cross-entropy."""
    return _attack(threat, Margin(kappa), hide, fields, random_start=True)


def noise(threat: ThreatModel, *, hide: Objective | None = None, **fields: Any) -> Attack:
    """No attack at all: random noise in the ball. What every attack must beat, and the "noisy" negatives of the detectors."""
    return _attack(threat, J, None, fields, steps=0, random_start=True)


def _attack(threat: ThreatModel, base: Objective, hide: Objective | None, fields: dict[str, Any], **own: Any) -> Attack:
    """``own``, what the recipe is, goes before ``fields``, what the caller chose."""
    objective = base if hide is None else base + hide
    return Attack(**{"objective": objective, "threat": threat, "steps": 40, "step_size": 0.1, **fields, **own})
