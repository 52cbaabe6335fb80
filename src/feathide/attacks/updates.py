"""Rules: how an attacker turns a gradient into the next perturbation, and what they differentiate.

A ``Rule`` takes the steps (Plain, Momentum, ...); a ``Blend`` says how fooling and
hiding share the steps (Together, Selective, Orthogonal, Scheduled). Both are frozen recipes
whose ``start`` returns a closure with the batch's state. State is kept for the whole batch and
indexed by ``rows``, since finished images leave the batch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from feathide.attacks.threats import ThreatModel, over_norm
from feathide.data.noise import Noise
from feathide.types import Box, Rows, per_sample

__all__ = [
    "Blend",
    "Momentum",
    "Orthogonal",
    "Plain",
    "Rule",
    "Scheduled",
    "Selective",
    "Setting",
    "Share",
    "Step",
    "Together",
    "needed",
]


@dataclass(frozen=True)
class Setting:
    """What stays the same during one attack on one batch."""

    x: Tensor
    box: Box
    threat: ThreatModel
    steps: int
    step_size: float
    decay: Literal["constant", "linear", "cosine"]
    noise: Noise

    def length(self, k: int) -> float:
        """The step k as a fraction of eps: alpha / eps, constant or falling to zero over the
        steps.
        """
        t = k / max(self.steps, 1)
        fall = {
            "constant": 1.0,
            "linear": 1 - t,
            "cosine": 0.5 * (1 + math.cos(math.pi * t)),
        }[self.decay]
        return self.step_size * fall

    def walk(
        self, delta: Tensor, direction: Tensor, length: Tensor | float, rows: Rows
    ) -> Tensor:
        """project(delta - length * eps * steepest(direction)), one length for all or one for each
        of ``rows``.
        """
        threat = self.threat.at(rows)
        step = per_sample(threat.eps, delta) * per_sample(length, delta)
        return self.project(delta - step * threat.steepest(direction), rows)

    def project(self, delta: Tensor, rows: Rows) -> Tensor:
        """``delta`` of the images ``rows`` brought into the ball and the box."""
        return self.threat.at(rows).project(delta, self.x[rows], self.box)


@dataclass(frozen=True)
class Step:
    """What is known at iterate ``k``: its perturbation, its loss (N,) and, if the rule asks for
    one, the gradient of the loss.
    """

    k: int
    rows: Rows
    delta: Tensor
    loss: Tensor
    grad: Tensor | None


class Rule(ABC):
    """How an attacker steps. ``gradient``: whether the rule needs one."""

    gradient: ClassVar[bool] = True

    @abstractmethod
    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        """A closure from what is known at an iterate to the next perturbation."""


@dataclass(frozen=True)
class Plain(Rule):
    """Steepest descent: delta <- project(delta - alpha * steepest(grad))."""

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        return lambda s: setting.walk(s.delta, needed(s.grad), setting.length(s.k), s.rows)


@dataclass(frozen=True)
class Momentum(Rule):
    """MI-FGSM (Dong et al. 2018): g <- mu * g + grad / ||grad||_1, and a step along g. The norm
    is taken over each whole image, in 2D and 3D alike.
    """

    mu: float = 1.0

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        memory = torch.zeros_like(setting.x)

        def move(s: Step) -> Tensor:
            grad = needed(s.grad)
            memory[s.rows] = self.mu * memory[s.rows] + over_norm(
                grad, grad.flatten(1).abs().sum(1)
            )
            return setting.walk(s.delta, memory[s.rows], setting.length(s.k), s.rows)

        return move


class Blend(ABC):
    """How fooling (J) and hiding (S) share the steps."""

    @abstractmethod
    def start(self, n: int, steps: int) -> "Share":
        """The state for ``n`` images."""


@dataclass(frozen=True)
class Share:
    """``losses(fool, hide, fooled, rows)``: what is differentiated, one backward pass each;
    ``merge(grads, fooled)``: the gradients made one.
    """

    losses: Callable[[Tensor, Tensor, Tensor, Rows], tuple[Tensor, ...]]
    merge: Callable[[tuple[Tensor, ...], Tensor], Tensor]


@dataclass(frozen=True)
class Together(Blend):
    """The gradient of J + S."""

    def start(self, n: int, steps: int) -> Share:
        return Share(
            lambda fool, hide, fooled, rows: (fool + hide,), lambda grads, fooled: grads[0]
        )


@dataclass(frozen=True)
class Selective(Blend):
    """Selective PGD (Bryniarski et al. 2021): J while the classifier is not fooled, S once it
    is.
    """

    def start(self, n: int, steps: int) -> Share:
        return Share(
            lambda fool, hide, fooled, rows: (torch.where(fooled, hide, fool),),
            lambda grads, fooled: grads[0],
        )


@dataclass(frozen=True)
class Orthogonal(Blend):
    """Orthogonal PGD (Bryniarski et al. 2021): as Selective, with the part of the chosen gradient
    that lies along the other one taken out, so that a step on one wish leaves the other where it
    is to first order. Two backward passes a step.
    """

    def start(self, n: int, steps: int) -> Share:
        def merge(grads: tuple[Tensor, ...], fooled: Tensor) -> Tensor:
            hiding = fooled.reshape(-1, *[1] * (grads[0].ndim - 1))
            chosen = torch.where(hiding, grads[1], grads[0])
            other = torch.where(hiding, grads[0], grads[1])
            # so that its square does not vanish
            other = over_norm(other, other.flatten(1).abs().amax(1))
            other = over_norm(other, other.flatten(1).norm(dim=1))
            return chosen - per_sample((chosen * other).flatten(1).sum(1), chosen) * other

        return Share(lambda fool, hide, fooled, rows: (fool, hide), merge)


@dataclass(frozen=True)
class Scheduled(Blend):
    """J + r * S with one r per image: first succeed, then hide. r is multiplied by ``up`` after
    an iterate that fools and by ``down`` after one that does not, and stays in [``least``,
    ``most``].
    """

    up: float = 1.1
    down: float = 0.7
    least: float = 1e-3
    most: float = 1e3

    def start(self, n: int, steps: int) -> Share:
        weight: list[Tensor] = []

        def losses(
            fool: Tensor, hide: Tensor, fooled: Tensor, rows: Rows
        ) -> tuple[Tensor, ...]:
            if not weight:
                weight.append(torch.ones(n, dtype=fool.dtype, device=fool.device))
            r = weight[0][rows] * torch.where(fooled, self.up, self.down).to(fool)
            weight[0][rows] = r.clamp(self.least, self.most)
            return (fool + weight[0][rows] * hide,)

        return Share(losses, lambda grads, fooled: grads[0])


def needed(grad: Tensor | None) -> Tensor:
    """The gradient that the attack gives to every rule that asks for one."""
    assert grad is not None
    return grad
