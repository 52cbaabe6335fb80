"""Budgets in the units that people use: box units, fractions, grey levels, Hounsfield units."""

import re
from math import isfinite

from feathide.data.cases import Cases
from feathide.errors import expected

__all__ = ["format_eps", "parse_eps"]

LEVEL = re.compile(r"(?:gr[ea]y )?level(?: of (\d+) bits?)?")


def parse_eps(eps: float | str, cases: Cases) -> float:
    """``eps`` in box units: 0.0157, "4/255", or with a unit: "2 HU", "1 grey level", "1 grey
    level of 12 bit".

    A grey level is the distance of two neighbouring stored numbers, ``cases.step``; of B bit, it
    is 1 / (2^B - 1) of images shown in [0, 1], and ``cases.step`` where the images do not have
    more than 2^B levels. Raises InputError for anything that is not a number with a unit of these
    images."""
    # "8 / 255" as "8/255"
    text = re.sub(r"\s*/\s*", "/", str(eps))
    found = re.fullmatch(r"\s*([-+.\d/eE]+)\s*(.*?)\s*", text)
    try:
        over, _, under = found.group(1).partition("/") if found else ("", "", "")
        value = float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        value = float("nan")
    if found is None or not isfinite(value):
        do = "correct it"
        raise expected(
            'eps must be a number, such as 0.0157, "4/255" or "2 HU"', got=repr(eps), do=do
        )
    unit = found.group(2).lower().removesuffix("s").replace("levels", "level")
    level = LEVEL.fullmatch(unit)
    if level and cases.step > 0:
        return value * _level(cases, int(level.group(1) or 0), eps)
    if unit in ("", cases.unit.lower()):
        return value
    known = f"{cases.unit}s or " * (cases.unit == "HU") + (
        "grey levels" if cases.step > 0 else "plain numbers"
    )
    raise expected(
        f"eps of {cases.name} must be in box units, {known}",
        got=repr(eps),
        do="give one of these",
    )


def format_eps(eps: float, cases: Cases) -> str:
    """A budget in both units: "0.01569 (4 grey levels of 1/255)", "2 HU (2 grey levels)", "0.1"
    where no levels are stored.
    """
    own = f"{eps:.4g}" + (f" {cases.unit}" if cases.unit == "HU" else "")
    if cases.step == 0:
        return own
    count = eps / cases.step
    levels = f"{count:.4g} grey level{'' if abs(count - 1) < 1e-6 else 's'}"
    return (
        f"{own} ({levels} of 1/{round(1 / cases.step)})"
        if cases.box == (0.0, 1.0)
        else f"{own} ({levels})"
    )


def _level(cases: Cases, bits: int, eps: float | str) -> float:
    if bits and cases.box == (0.0, 1.0):
        return 1 / (2**bits - 1)
    stored = round((cases.box[1] - cases.box[0]) / cases.step) + 1
    if bits and stored > 2**bits:
        raise expected(
            f"{cases.name} must have at most {2**bits} grey levels for {eps!r}",
            got=stored,
            do="leave out the bits",
        )
    return cases.step
