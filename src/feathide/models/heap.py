"""The heap: freed memory is kept for the next step of an attack instead of going back to the
system.
"""

import ctypes

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, as in malloc.h
NEVER, MAPPED = -1, 2**30  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep what it has freed, and take arrays of up to 1 GiB from there; says
    whether that could be done.

    A step frees and takes the same arrays again and again. By default the GNU C library hands
    large ones back to the system, which fills each page with zeros before it lends it anew: up to
    a quarter of a step on a CPU (benchmarks/step.md). It is a choice for a whole process, so only
    the ``feathide`` command and its workers make it; elsewhere, call it yourself. Other C
    libraries and accelerators are left as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no GNU C library
        return False
    return all([mallopt(TRIM_THRESHOLD, NEVER), mallopt(MMAP_THRESHOLD, MAPPED)])
