"""The names of conditions: what was done to the images that a step looks at. "clean",
"noisy-0.0314", "shifted-gamma", or an attack's, which ``Steps.condition`` gives.
"""

from feathide.plans.sections import ObjectivePlan

__all__ = ["PLAIN", "noisy_at", "of_attack", "shifted_by"]

PLAIN = ObjectivePlan(name="plain")  # the attacker who does not hide
SHIFTED = "shifted-"


def of_attack(condition: str) -> bool:
    """Whether a condition is of attacked images: not clean, noisy or shifted ones."""
    return not condition.startswith(("clean", "noisy-", SHIFTED))


def noisy_at(eps: float) -> str:
    """The condition of random noise at a budget."""
    return f"noisy-{eps:.6g}"


def shifted_by(shift: str) -> str:
    """The condition of a harmless shift, such as another gamma."""
    return f"{SHIFTED}{shift}"
