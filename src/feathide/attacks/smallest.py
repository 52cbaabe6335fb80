"""The smallest change: per image the least budget at which an attack succeeds, by bisection with
the same loop.

    eps*(image) = min { eps : the attack of budget eps gives an image that succeeds }

to one level of the file. Success need not grow with the budget: an attack that does not know a
guard is often caught when it has much room. So what fools is bisected, and what also passes is
looked for from there upwards, on a ladder, before it is bisected."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from feathide.errors import expected

__all__ = ["FOOL", "Judge", "SmallestChange", "smallest_change", "whole_levels"]

FOOL = "fool"
RUNGS = 8  # of the ladder on which a guard that catches the largest change is tried

# (levels (n,), rows (n,)) -> the attacked images (n, C, *S) of these budgets
Attacked = Callable[[np.ndarray, np.ndarray], Tensor]
# (images, rows) -> by criterion, which of them meet it (n,); ``FOOL`` is one, and all need it
Judge = Callable[[Tensor, np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class SmallestChange:
    """What the search has found; row i is image i.

    Args:
        least: By criterion, the least level (N,) that met it; infinity where none did.
        runs: How many attacks were run on each image (N,).
    """

    least: Mapping[str, np.ndarray]
    runs: np.ndarray


@dataclass
class _Tried:
    """What is known of one image: by criterion, the level of the least success, and of every
    level at which the attack was run whether it met it.
    """

    top: int
    least: dict[str, float] = field(default_factory=dict)
    met: dict[str, dict[int, bool]] = field(default_factory=dict)

    def note(self, level: int, size: int, met: Mapping[str, bool]) -> None:
        for name, good in met.items():
            self.met.setdefault(name, {})[level] = good
            if good:
                # an image that changed less than it might is in the smaller ball, too
                self.least[name] = min(self.least.get(name, np.inf), size)

    def next(self, names: Sequence[str]) -> int | None:
        """The level to try next; None where nothing is left to find."""
        if not self.met:
            return self.top
        if FOOL not in self.least:
            return None
        for name in names:
            from_level = 0 if name == FOOL else int(self.least[FOOL]) - 1
            level = self._between(name, from_level)
            if level is not None:
                return level
        return None

    def _between(self, name: str, below: int) -> int | None:
        """A level between the largest failure and the least success, or on the ladder."""
        least, tried = self.least.get(name), self.met[name]
        if least is None:
            return self._rung(sorted({below, *(k for k in tried if k > below)}))
        failed = [k for k, good in tried.items() if not good and below < k < least]
        low = max([below, *failed])
        return (low + int(least)) // 2 if least - low > 1 else None

    def _rung(self, tried: Sequence[int]) -> int | None:
        """The least change that fools; then the middle of the widest gap between levels that
        failed, while it is wide.
        """
        least = tried[0] + 1
        if least not in tried:
            return least
        gaps = [(high - low, low) for low, high in pairwise(tried)]
        wide, low = max(gaps, default=(0, 0), key=lambda gap: gap[0])
        if wide <= max(1, (self.top - tried[0]) / RUNGS):
            return None
        return low + wide // 2


def smallest_change(
    attacked: Attacked,
    judge: Judge,
    sizes: Callable[[Tensor, np.ndarray], Tensor],
    n: int,
    *,
    top: int,
) -> SmallestChange:
    """The least level of each of ``n`` images that meets each criterion of a judge.

    Args:
        attacked: Attacks some images, each with the budget of its own level.
        judge: Says which images meet which criterion; ``FOOL`` must be among them, and no image
            meets another one without it.
        sizes: The size of the change of images in levels (n,), at most that of its budget.
        n: The number of images.
        top: The largest level, 1 or more.

    Returns:
        The least levels, and how many attacks it took.

    Raises:
        InputError: ``top`` is below 1.
    """
    if top < 1:
        raise expected(
            "the largest change must be 1 level or more", got=top, do="raise eps"
        )
    known, runs = [_Tried(top) for _ in range(n)], np.zeros(n, np.int64)
    names: list[str] = []
    while True:
        wanted = {i: level for i, t in enumerate(known) if (level := t.next(names))}
        if not wanted:
            break
        rows, levels = np.array(list(wanted)), np.array(list(wanted.values()))
        images = attacked(levels, rows)
        met = judge(images, rows)
        size = np.ceil(sizes(images, rows).double().cpu().numpy() - 1e-4).astype(np.int64)
        names = [FOOL, *(name for name in met if name != FOOL)]
        for j, i in enumerate(rows):
            found = {name: bool(met[name][j] and met[FOOL][j]) for name in names}
            known[i].note(int(levels[j]), max(1, int(size[j])), found)
        runs[rows] += 1
    least = {name: np.array([t.least.get(name, np.inf) for t in known]) for name in names}
    return SmallestChange(least, runs)


def whole_levels(eps: float, unit: float) -> int:
    """How many whole levels fit into a budget."""
    return int(torch.floor(torch.tensor(eps / unit + 1e-4, dtype=torch.float64)))
