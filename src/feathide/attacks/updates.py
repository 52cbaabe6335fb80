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
    """What stays the same during one attack on one batch.

    Args:
        x: The clean images (N, C, *S).
        box: The least and the greatest valid value.
        threat: The norm and the budget.
        steps: The number of steps.
        step_size: The length of a step as a share of eps.
        decay: How that length falls over the steps.
        noise: The random numbers of each image.
    """

    x: Tensor
    box: Box
    threat: ThreatModel
    steps: int
    step_size: float
    decay: Literal["constant", "linear", "cosine"]
    noise: Noise

    def length(self, k: int) -> float:
        """The length of step k as a share of eps: constant, or falling to zero over the steps.

        Args:
            k: The number of the step, from 0.

        Returns:
            alpha_k / eps.
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
        """One step of descent, projected: project(delta - length * eps * steepest(direction)).

        Args:
            delta: The perturbations (n, C, *S) of the images ``rows``.
            direction: What to descend along, the shape of ``delta``.
            length: The length as a share of eps, one for all or one for each image (n,).
            rows: Which images of the batch these are.

        Returns:
            The next perturbations, in the ball and the box.
        """
        threat = self.threat.at(rows)
        step = per_sample(threat.eps, delta) * per_sample(length, delta)
        return self.project(delta - step * threat.steepest(direction), rows)

    def project(self, delta: Tensor, rows: Rows) -> Tensor:
        """Perturbations, projected onto the ball and the box.

        Args:
            delta: The perturbations (n, C, *S) of the images ``rows``.
            rows: Which images of the batch these are.

        Returns:
            The projected perturbations.
        """
        return self.threat.at(rows).project(delta, self.x[rows], self.box)


@dataclass(frozen=True)
class Step:
    """What is known at one iterate.

    Args:
        k: The number of the iterate, from 0.
        rows: Which images of the batch are still attacked (n,).
        delta: Their perturbations (n, C, *S).
        loss: Their losses (n,).
        grad: The gradients of the losses (n, C, *S), if the rule asks for them.
    """

    k: int
    rows: Rows
    delta: Tensor
    loss: Tensor
    grad: Tensor | None


class Rule(ABC):
    """How a gradient becomes the next perturbation.

    Attributes:
        gradient: Whether the rule needs gradients.
    """

    gradient: ClassVar[bool] = True

    @abstractmethod
    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        """Begin one attack on one batch.

        Args:
            setting: What stays the same during the attack.

        Returns:
            A function from what is known at an iterate to the next perturbations (n, C, *S). It
            keeps the state of the whole batch, indexed by ``Step.rows``.
        """


@dataclass(frozen=True)
class Plain(Rule):
    """Steepest descent: delta <- project(delta - alpha * eps * steepest(grad))."""

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        return lambda s: setting.walk(s.delta, needed(s.grad), setting.length(s.k), s.rows)


@dataclass(frozen=True)
class Momentum(Rule):
    """MI-FGSM (Dong et al. 2018): a step along a running sum of normalised gradients.

        g <- mu * g + grad / ||grad||_1

    The norm is taken over each whole image, in 2D and 3D alike.

    Args:
        mu: How much of the sum is kept at each step, in [0, 1].

    References:
        Dong et al.: Boosting adversarial attacks with momentum. CVPR 2018.
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
        """Begin one attack on one batch.

        Args:
            n: The number of images.
            steps: The number of steps.

        Returns:
            What is differentiated at each step, and how the gradients are merged.
        """


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
    """Selective PGD (Bryniarski et al. 2021): J while the classifier is not fooled, S once it is.

    References:
        Bryniarski et al.: Evading adversarial example detection defenses with orthogonal projected
            gradient descent. ICLR 2022.
    """

    def start(self, n: int, steps: int) -> Share:
        return Share(
            lambda fool, hide, fooled, rows: (torch.where(fooled, hide, fool),),
            lambda grads, fooled: grads[0],
        )


@dataclass(frozen=True)
class Orthogonal(Blend):
    """Orthogonal PGD (Bryniarski et al. 2021): as ``Selective``, but one aim at a time.

    The part of the chosen gradient that lies along the other gradient is removed, so that a step
    for one aim leaves the other unchanged to first order. Two backward passes per step.

    References:
        Bryniarski et al.: Evading adversarial example detection defenses with orthogonal projected
            gradient descent. ICLR 2022.
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
    """J + r * S with one r per image: first succeed, then hide.

    Args:
        up: The factor of r after an iterate that fools.
        down: The factor of r after an iterate that does not.
        least: The smallest r.
        most: The largest r.
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
