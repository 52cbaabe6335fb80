"""One iterate of an attack, judged: the losses, the lead beyond the decision boundary, the
gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from feathide.attacks.grid import Grid
from feathide.data.noise import Noise
from feathide.errors import expected
from feathide.losses import BoundLoss, Objective
from feathide.types import Aim, Box, Outputs, Rows

__all__ = [
    "Classifier",
    "Watch",
]

Watch = Callable[[int, Tensor, Outputs], None]


class Classifier(Protocol):
    """What an attack needs of a classifier: ``FeatureClassifier`` is one."""

    @property
    def box(self) -> Box: ...
    def __call__(self, x: Tensor) -> Outputs: ...


@dataclass(frozen=True)
class Case:
    """What all runs of one call share."""

    classifier: Classifier
    x: Tensor
    goal: Aim
    objective: "BoundObjective"
    grid: Grid | None
    mask: Tensor | None
    watch: Watch | None


class BoundObjective:
    """The objective, bound to the images at the first look at them.

    It is bound to the clean outputs if it reads them, else to those of the first iterate, which
    have the same layers and classes: a random start then saves the clean pass. Where the first
    iterate is the clean image, its outputs are the clean ones."""

    def __init__(
        self,
        objective: Objective,
        classifier: Classifier,
        x: Tensor,
        goal: Aim,
        noise: Noise,
    ) -> None:
        self._objective, self._goal, self._noise = objective, goal, noise
        self._classifier, self._x = classifier, x
        self._bound: BoundLoss | None = None

    @property
    def name(self) -> str:
        return "" if self._bound is None else self._bound.name

    def bound(self, out: Outputs, shown: Tensor) -> tuple[BoundLoss, int]:
        """The loss, and how many forward passes were made up to here for the outputs ``out`` of
        the images ``shown``.
        """
        if self._bound is not None:
            return self._bound, 1
        # the other findings are held where they were
        reads = self._objective.reads.clean or out.others is not None
        again = reads and not torch.equal(shown, self._x)
        with torch.no_grad():
            clean = self._classifier(self._x) if again else out.detach()
            self._goal.check_outputs(clean)
            self._bound = self._objective.bind(clean, self._goal, self._noise)
        return self._bound, 1 + again


@dataclass(frozen=True)
class Seen:
    """What is known of the iterates of ``rows``: J, S, the lead, what they are compared by before
    they fool, the gradient, and the passes that it took.
    """

    fool: Tensor
    hide: Tensor | None
    margin: Tensor
    rank: Tensor
    grad: Tensor | None
    gradients: int
    forwards: int

    @property
    def loss(self) -> Tensor:
        return self.fool if self.hide is None else self.fool + self.hide

    def at(self, rows: Tensor) -> "Seen":
        hide = None if self.hide is None else self.hide[rows]
        grad = None if self.grad is None else self.grad[rows]
        return Seen(
            self.fool[rows],
            hide,
            self.margin[rows],
            self.rank[rows],
            grad,
            self.gradients,
            self.forwards,
        )


def numbers(rows: Rows, x: Tensor) -> Tensor:
    """The images ``rows`` of ``x`` as numbers."""
    return torch.arange(len(x), device=x.device) if isinstance(rows, slice) else rows


def slope(loss: Tensor, leaf: Tensor, *, retain: bool) -> Tensor:
    """The gradient of ``loss`` with respect to ``leaf``; refuses a loss that has none."""
    grad = None
    if loss.requires_grad:
        (grad,) = torch.autograd.grad(loss, leaf, retain_graph=retain, allow_unused=True)
    if grad is None:
        raise expected(
            "the loss of a gradient attack must depend on the image",
            got="one that is detached from it",
            do=(
                "take detach(), no_grad or numpy out of the network or the detector, or attack "
                "with square"
            ),
        )
    return grad


@dataclass(frozen=True)
class Terms:
    """What the objective says of iterates, each (N,): J, what is differentiated in its place, S,
    and the lead; all but S in ``Attack.unit``.
    """

    fool: Tensor
    pushed: Tensor
    hide: Tensor | None
    margin: Tensor


def terms(
    bound: BoundLoss, out: Outputs, rows: Rows, unit: float, share: float = 0.0
) -> Terms:
    """The terms of ``bound``; ``share``: of the steps that are done, in [0, 1]."""
    hide = None if bound.hide is None else bound.hide(out, rows)
    if unit != 1.0:
        out = replace(
            out,
            logits=out.logits / unit,
            others=None if out.others is None else out.others / unit,
        )
    fool = out.logits.new_zeros(len(out)) if bound.fool is None else bound.fool(out, rows)
    pushed = fool if bound.paced is None else bound.paced(out, rows, share)
    margin = torch.ones_like(fool) if bound.margin is None else bound.margin(out, rows)
    return Terms(fool, pushed, hide, margin)


def masked(value: Tensor, mask: Tensor | None, rows: Rows) -> Tensor:
    """``value`` where pixels may change, else 0."""
    if mask is None:
        return value
    m = mask.to(value)
    return value * (m[rows] if len(m) > 1 else m)
