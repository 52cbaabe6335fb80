"""AutoStep: the step sizes of Auto-PGD as a rule of the one loop."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from feathide.attacks.updates import Rule, Setting, Step, needed

__all__ = ["AutoStep", "checkpoints"]


def checkpoints(steps: int) -> frozenset[int]:
    """The iterates at which the step size is looked at: 22 % of the steps, then each time 3 %
    sooner, at least every 6 %.
    """
    length, least, sooner = (
        max(int(0.22 * steps), 1),
        max(int(0.06 * steps), 1),
        max(int(0.03 * steps), 1),
    )
    marks = [length]
    while marks[-1] < steps:
        length = max(length - sooner, least)
        marks.append(marks[-1] + length)
    return frozenset(marks)


@dataclass(frozen=True)
class AutoStep(Rule):
    """The steps of Auto-PGD (Croce and Hein 2020), with one step size per image.

        z = project(delta_k - alpha * eps * steepest(grad)),
        delta_{k+1} = project(delta_k + a (z - delta_k) + (1 - a) (delta_k - delta_{k-1}))

    alpha starts at ``Attack.step_size`` (2 in the paper), a = ``momentum``, and 1 in the first
    step. At each of the ``checkpoints`` the step of an image is halved, and the image returns to
    its best iterate, if its loss fell in no more than a share ``rho`` of the steps since the last
    one, or if its best loss and its step have not changed since. The first comparison is with the
    loss of the start (the published code compares with zero).

    Args:
        momentum: a, in (0, 1].
        rho: The share of steps that must have lowered the loss, in [0, 1].

    References:
        Croce and Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse
            parameter-free attacks. ICML 2020.
    """

    momentum: float = 0.75
    rho: float = 0.75

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        return _Walk(self, setting)


class _Walk:
    """The state of every image of the batch."""

    def __init__(self, rule: AutoStep, setting: Setting) -> None:
        self.rule, self.setting, self.marks, self.mark = (
            rule,
            setting,
            checkpoints(setting.steps),
            0,
        )
        x = setting.x
        self.length = x.new_full((len(x),), setting.step_size)
        self.before, self.delta, self.grad = (
            torch.zeros_like(x),
            torch.zeros_like(x),
            torch.zeros_like(x),
        )
        self.loss, self.least, self.checked = (
            x.new_full((len(x),), float("inf")) for _ in range(3)
        )
        self.falls = x.new_zeros(len(x))
        self.halved = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def __call__(self, s: Step) -> Tensor:
        rows, grad = s.rows, needed(s.grad)
        loss, delta = s.loss.to(self.loss), s.delta
        before = delta if s.k == 0 else self.before[rows]
        self.falls[rows] += (loss < self.loss[rows]) if s.k else 0
        self.loss[rows] = loss
        better = loss < self.least[rows]
        self.least[rows] = torch.where(better, loss, self.least[rows])
        wide = better.reshape(-1, *[1] * (delta.ndim - 1))
        self.delta[rows] = torch.where(wide, delta, self.delta[rows])
        self.grad[rows] = torch.where(wide, grad, self.grad[rows])
        if s.k == 0:
            self.checked[rows] = loss
        if s.k in self.marks:
            back = self._halve(s).reshape(-1, *[1] * (delta.ndim - 1))
            delta = torch.where(back, self.delta[rows], delta)
            grad = torch.where(back, self.grad[rows], grad)
        step = delta - before  # before it is overwritten
        self.before[rows] = delta
        a = 1.0 if s.k == 0 else self.rule.momentum
        ahead = self.setting.walk(delta, grad, self.length[rows], rows)
        return self.setting.project(delta + a * (ahead - delta) + (1 - a) * step, rows)

    def _halve(self, s: Step) -> Tensor:
        """Which of the images go back to their best iterate with half the step."""
        rows = s.rows
        stuck = ~self.halved[rows] & (self.least[rows] >= self.checked[rows])
        back = (self.falls[rows] <= self.rule.rho * (s.k - self.mark)) | stuck
        self.length[rows] = torch.where(back, self.length[rows] / 2, self.length[rows])
        self.halved[rows], self.checked[rows], self.falls[rows] = back, self.least[rows], 0
        self.mark = s.k
        return back
