"""What older versions called the fields of a plan, detectors and verbs: whoever uses an old name
is told the new one.
"""

from collections.abc import Iterable

from feathide.errors import InputError, expected, unknown

__all__ = [
    "DETECTORS",
    "FIELDS",
    "VERBS",
    "unknown_detector",
    "unknown_field",
    "was_renamed",
]

FIELDS = {
    "walk": "schedule",
    "witness": "reference_network",
    "gates": "sanity_checks",
    "split.fit": "split.detector_training",
    "split.calibrate": "split.calibration",
}
DETECTORS = {
    "witness": "reference-network",
    "witness-joint": "reference-network-joint",
}
VERBS = {"duel": "arms-race", "laws": "conformance"}


def was_renamed(old: str, new: str) -> InputError:
    """The error for a name that has changed."""
    return expected(f"`{old}` is now called `{new}`", got="the old name", do="rename it")


def unknown_field(name: str, options: Iterable[str]) -> InputError:
    """The error for a field that no plan has."""
    if name in FIELDS:
        return was_renamed(name, FIELDS[name])
    return unknown("field", name, options)


def unknown_detector(name: str, options: Iterable[str]) -> InputError:
    """The error for a detector that no table holds."""
    if name in DETECTORS:
        return was_renamed(name, DETECTORS[name])
    return unknown("detector", name, options)
