"""How numbers are written, in one style wherever a reader meets them: measured shares with one
decimal, chosen rates whole, scores from 0 to 1 with two decimals, everything else with three digits
that matter.
"""

import math

__all__ = ["bare", "number", "percent", "score", "whole_percent"]

SMALL, LARGE = 1e-4, 1e7  # outside these, a number is written with a power of ten
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float) -> str:
    """A measured share in per cent, with one decimal.

    Example:
        >>> percent(0.1234), percent(1.0), percent(0.0)
        ('12.3 %', '100.0 %', '0.0 %')
    """
    return f"{bare(share)} %"


def bare(share: float) -> str:
    """The same without its sign, for the ends of an interval.

    Example:
        >>> bare(0.1234)
        '12.3'
    """
    return f"{100 * share:.1f}"


def whole_percent(share: float) -> str:
    """A rate that somebody chose, such as that of false alarms, in whole per cent.

    Example:
        >>> whole_percent(0.1)
        '10 %'
    """
    return f"{100 * share:.0f} %"


def score(value: float) -> str:
    """A number from 0 to 1 that is no share, such as an AUC, with two decimals.

    Example:
        >>> score(0.0328), score(1.0)
        ('0.03', '1.00')
    """
    return f"{value:.2f}"


def number(value: float, *, digits: int = 3) -> str:
    """A number with ``digits`` digits that matter, thousands apart, and never as 1.02e+03.

    Example:
        >>> number(1020.4), number(0.04107), number(-40.0), number(2.5e-7)
        ('1,020', '0.0411', '−40', '2.5 × 10⁻⁷')
    """
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if not SMALL <= abs(value) < LARGE:
        return (
            f"{number(value / 10**power, digits=digits)} × 10{str(power).translate(RAISED)}"
        )
    decimals = max(0, digits - 1 - power)
    text = f"{value:,.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if decimals else text).replace("-", "−")
