"""What changes the decision: cross-entropy, margin and their untargeted forms."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.data.noise import Noise
from feathide.errors import expected
from feathide.losses.base import LOGITS, BoundLoss, Loss, Objective, Reads
from feathide.types import Aim, Goal, LabelAim, Outputs, Rows

__all__ = ["DLR", "AwayFrom", "CrossEntropy", "Margin"]


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """The cross-entropy to the target class, the usual loss of targeted attacks.

        J = max(-log softmax(z)_t, log(1 + e^-kappa))

    With several findings (``Outputs.others``), a hinge for each other finding is added so that it
    stays on its side, and an image counts as fooled only while none of them has changed sides.

    Args:
        kappa: The lead over one other class at which J has no more slope, in logits; infinite by
            default.

    Examples:
        >>> out = Outputs(torch.zeros(1, 2), {})
        >>> goal = Goal(torch.tensor([0]), torch.tensor([1]))
        >>> CrossEntropy().bind(out, goal, Noise(0, ("a",)))(out)
        tensor([0.6931])
    """

    kappa: float = float("inf")

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        aim = label_goal(goal, "CrossEntropy")
        least = math.log1p(math.exp(-self.kappa))

        def fool(out: Outputs, rows: Rows) -> Tensor:
            loss = aim.towards(out.logits, rows)
            return aim.mean(loss.clamp_min(least) if least else loss, rows)

        return _keeping_others(
            BoundLoss(fool=fool, margin=aim.margin, name="cross-entropy"), clean
        )


@dataclass(frozen=True)
class Margin(Objective):
    """The margin loss of Carlini and Wagner (2017).

        J = max(max_{j != t} z_j - z_t, -kappa)

    Args:
        kappa: The lead of the target at which J has no more slope, in logits; infinite by default.

    References:
        Carlini and Wagner: Towards evaluating the robustness of neural networks. IEEE S&P 2017.
    """

    kappa: float = float("inf")

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        aim = label_goal(goal, "Margin")

        def fool(out: Outputs, rows: Rows) -> Tensor:
            return aim.mean((-aim.lead(out.logits, rows)).clamp_min(-self.kappa), rows)

        return _keeping_others(
            BoundLoss(fool=fool, margin=aim.margin, name="margin"), clean
        )


@dataclass(frozen=True)
class DLR(Objective):
    """The targeted difference-of-logits ratio of Croce and Hein (2020).

        J = (z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)

    With fewer than four classes the margin z_y - z_t takes its place, and the bound loss says so.

    Args:
        rank: If given, the attack is untargeted: t is the class with the rank-th largest clean
            logit among those that are not the source, and any class but the source will do.
        kappa: The lead of z_t over z_y at which J has no more slope, in logits.

    References:
        Croce and Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse
            parameter-free attacks. ICML 2020.
    """

    rank: int | None = None
    kappa: float = float("inf")

    @property
    def reads(self) -> Reads:
        return Reads(clean=self.rank is not None, layers=())

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        goal = class_goal(goal, "DLR")
        classes = clean.logits.shape[1]
        source, target = goal.source, goal.target
        margin: Loss = goal.margin
        if self.rank is not None:
            if not 1 <= self.rank < classes:
                raise expected(
                    f"rank must be 1 to {classes - 1}",
                    got=self.rank,
                    do="there is one rank for each class but the source",
                )
            others = clean.logits.scatter(1, source[:, None], float("-inf"))
            target, margin = (
                others.argsort(dim=1, descending=True, stable=True)[:, self.rank - 1],
                _away(goal),
            )

        def fool(out: Outputs, rows: Rows) -> Tensor:
            z = out.logits
            gap = _at(z, source[rows]) - _at(z, target[rows])
            done, gap = gap <= -self.kappa, gap.clamp_min(-self.kappa)
            if classes < 4:
                return gap
            top = z.topk(4, dim=1).values
            spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
            return gap / torch.where(done, spread.detach(), spread)

        return _keeping_others(
            BoundLoss(fool=fool, margin=margin, name=self.name(classes)), clean
        )

    @staticmethod
    def name(classes: int) -> str:
        """The loss that is used for so many classes."""
        return "DLR" if classes >= 4 else "margin"


@dataclass(frozen=True)
class AwayFrom(Objective):
    """The untargeted attack: any class but the source y will do.

        J = log softmax(z)_y, or with ``loss="margin"`` J = z_y - max_{j != y} z_j

    Args:
        loss: "cross-entropy" or "margin".
    """

    loss: Literal["cross-entropy", "margin"] = "cross-entropy"

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        goal = class_goal(goal, "AwayFrom")
        margin, source = _away(goal), goal.source

        def fool(out: Outputs, rows: Rows) -> Tensor:
            if self.loss == "margin":
                return -margin(out, rows)
            return -F.cross_entropy(out.logits, source[rows], reduction="none")

        return _keeping_others(
            BoundLoss(fool=fool, margin=margin, name=f"untargeted {self.loss}"), clean
        )


def _at(z: Tensor, classes: Tensor) -> Tensor:
    return z.gather(1, classes[:, None])[:, 0]


def _away(goal: Goal) -> Loss:
    """max_{j != y} z_j - z_y."""
    back = Goal(goal.target, goal.source)
    return lambda out, rows: -back.margin(out, rows)


def decision(goal: Aim, clean: Outputs) -> Loss | None:
    """The margin of ``goal``, with the other findings held on their side."""
    return _keeping_others(BoundLoss(fool=goal.margin, margin=goal.margin), clean).margin


def class_goal(goal: Aim, loss: str) -> Goal:
    """The goal of a loss that is made for one class an image."""
    if not isinstance(goal, Goal):
        raise expected(
            f"{loss} aims at a class of the image",
            got=f"a {type(goal).__name__}",
            do="give objective=CrossEntropy() or one of feathide.losses.dense",
        )
    return goal


def label_goal(goal: Aim, loss: str) -> LabelAim:
    """The goal of a loss of labels."""
    if not isinstance(goal, LabelAim):
        raise expected(
            f"{loss} aims at labels",
            got=f"a {type(goal).__name__}",
            do="give objective=AdaptiveLandmarks()",
        )
    return goal


def _keeping_others(bound: BoundLoss, clean: Outputs) -> BoundLoss:
    """The same wish with the other findings of a multi-label network held on their side."""
    if (
        clean.others is None
        or clean.others.shape[1] == 0
        or bound.fool is None
        or bound.margin is None
    ):
        return bound
    side = torch.where(clean.others > 0, 1.0, -1.0)  # (N, F)
    fool, margin = bound.fool, bound.margin

    def held(out: Outputs, rows: Rows) -> Tensor:
        assert out.others is not None
        return side[rows] * out.others

    return replace(
        bound,
        fool=lambda out, rows: fool(out, rows) + F.relu(0.5 - held(out, rows)).sum(1),
        margin=lambda out, rows: torch.minimum(margin(out, rows), held(out, rows).amin(1)),
    )
