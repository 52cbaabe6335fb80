"""Budgets in the units that people use: box units, fractions, grey levels, Hounsfield units."""

from fractions import Fraction

from ..errors import expected
from .cases import Cases

__all__ = ["parse_eps"]


def parse_eps(eps: float | str, cases: Cases) -> float:
    """``eps`` in box units: 0.0157, "4/255", or with a unit, "2 HU", "1 grey level" (one stored level is ``cases.step``).

    Raises InputError for anything that is not a number with one of the units of these images.
    """
    text = str(eps).strip()
    number, _, unit = text.partition(" ")
    try:
        value = float(Fraction(number))
    except (ValueError, ZeroDivisionError):
        raise expected(
            'eps must be a number, such as 0.0157, "4/255" or "2 HU"', got=repr(eps), do="correct it"
        ) from None
    unit = unit.strip().lower().removesuffix("s")
    if not unit:
        return value
    if unit in ("grey level", "gray level", "level") and cases.step > 0:
        return value * cases.step
    if unit == cases.unit.lower().removesuffix("s"):
        return value
    raise expected(f"eps must be in box units, grey levels or {cases.unit}", got=repr(eps), do="give one of these")
