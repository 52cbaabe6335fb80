"""Memory: how many images at once, and what to do where they are too many."""

import math
import resource
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from feathide.errors import InputError

__all__ = [
    "BUDGET",
    "MOST",
    "activations",
    "batch_for",
    "in_halves",
    "lacks_memory",
    "peak",
]

T = TypeVar("T")
R = TypeVar("R", Tensor, np.ndarray)
SIGNS = ("out of memory", "not enough memory", "can't allocate memory")
BUDGET = 2**31  # bytes that the activations of a batch may take
MOST = 128


def activations(model: nn.Module, x: Tensor) -> float:
    """Bytes that a step keeps for one image: the outputs of all layers, and half as much again
    for gradients on their way; measured on ``x`` (1, C, *S).
    """
    held = [0]

    def count(_module: nn.Module, _args: object, output: object) -> None:
        held[0] += (
            output.numel() * output.element_size() if isinstance(output, Tensor) else 0
        )

    handles = [
        m.register_forward_hook(count) for m in model.modules() if not list(m.children())
    ]
    try:
        with torch.no_grad():
            model(x.clone())  # a first layer may work in place
    finally:
        for handle in handles:
            handle.remove()
    return 1.5 * held[0]


def batch_for(image: float) -> int:
    """The largest power of two of images of ``image`` bytes that fit in ``BUDGET``, at most
    ``MOST``.

    It is the same on every machine, since stored results are kept by batch: a run can go on
    elsewhere, and parts of it can run on different machines. One with less memory halves the
    batches that are too much for it."""
    return int(min(MOST, 2 ** math.floor(math.log2(max(BUDGET / max(image, 1.0), 1)))))


def peak() -> float:
    """The most memory that this process, or one that it has started and waited for, has held up
    to now, in MiB.
    """
    most = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice."""
    return isinstance(error, MemoryError) or any(
        sign in str(error).lower() for sign in SIGNS
    )


def in_halves(work: Callable[[R], T], whole: R, *, join: Callable[[list[T]], T]) -> T:
    """``work(whole)``; where memory does not suffice for it, ``join`` of the same for its two
    halves, and so on down to one row.

    It is for work in which rows do not depend on each other. A ``RuntimeWarning`` says at how
    many rows memory ran out.

    Raises:
        InputError: not even one row fits.
    """
    try:
        return work(whole)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not lacks_memory(error):
            raise
    if len(whole) < 2:
        raise InputError(
            "memory does not suffice for one image; use smaller images or a machine with more"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(whole) // 2
    warnings.warn(  # noqa: B028
        f"memory does not suffice for {len(whole)} images at once: going on with {middle}",
        RuntimeWarning,
    )
    return join(
        [in_halves(work, part, join=join) for part in (whole[:middle], whole[middle:])]
    )
