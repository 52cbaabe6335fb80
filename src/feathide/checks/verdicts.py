"""A conformance check: a function that raises ``Broken``, with what was expected and got, or
``NotApplicable``; ``judge`` turns it into a verdict.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

__all__ = [
    "Broken",
    "NotApplicable",
    "Verdict",
    "judge",
    "require",
    "untouched_random_state",
]


class Broken(AssertionError):
    """A conformance check does not hold; the message says what was expected and what was got."""


class NotApplicable(Exception):
    """A conformance check says nothing about this object; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """What became of one check: "pass"; "fail", with what was expected and got; "none", with the
    reason why it does not apply.
    """

    check: str
    status: Literal["pass", "fail", "none"]
    detail: str = ""


def require(held: object, expected: str, *, got: object) -> None:
    """Raise ``Broken`` unless ``held``."""
    if not held:
        raise Broken(f"expected {expected}, got {got}")


def judge(checks: Mapping[str, Callable[[Any], None]], subject: Any) -> Iterator[Verdict]:
    """One verdict per check, in order. Whatever a conformance check trips over is a failure of
    the object under test, not of the judge.
    """
    for name, check in checks.items():
        try:
            check(subject)
        except NotApplicable as reason:
            yield Verdict(name, "none", str(reason))
        except Broken as broken:
            yield Verdict(name, "fail", str(broken))
        except Exception as error:  # of code that we do not know
            yield Verdict(
                name,
                "fail",
                f"expected no error, got {type(error).__name__}: {' '.join(str(error).split())}",
            )
        else:
            yield Verdict(name, "pass")


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Raise ``Broken`` if the block draws from, or seeds, a global generator of torch or
    numpy.
    """
    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    yield
    for name, same in (
        ("torch", torch.equal(torch.get_rng_state(), before[0])),
        ("numpy", repr(np.random.get_state()) == before[1]),  # noqa: NPY002
    ):
        require(
            same,
            "numbers from a generator of its own",
            got=f"draws from the global generator of {name}",
        )
