"""Memory: what is too much at once is done in halves."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from feathide.errors import InputError

__all__ = ["in_halves"]

T = TypeVar("T")
R = TypeVar("R", Tensor, np.ndarray)
SIGNS = ("out of memory", "not enough memory", "can't allocate memory")


def in_halves(work: Callable[[R], T], whole: R, *, join: Callable[[list[T]], T]) -> T:
    """``work(whole)``; where memory does not suffice for it, ``join`` of the same for its two halves, and so on down to one row.

    It is for work in which rows do not depend on each other. A ``RuntimeWarning`` says at how many rows memory ran out.

    Raises:
        InputError: not even one row fits.
    """
    try:
        return work(whole)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in SIGNS):
            raise
    if len(whole) < 2:
        raise InputError("memory does not suffice for one image; use smaller images or a machine with more")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(whole) // 2
    warnings.warn(f"memory does not suffice for {len(whole)} images at once: going on with {middle}", RuntimeWarning)  # noqa: B028
    return join([in_halves(work, part, join=join) for part in (whole[:middle], whole[middle:])])
