"""Adversary: while a network learns, each batch is made as hard for it as a threat model
allows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feathide.attacks.threats import ThreatModel
from feathide.data.noise import Noise
from feathide.types import Box

__all__ = ["Adversary"]

EVERYWHERE: Box = (float("-inf"), float("inf"))


@dataclass(frozen=True)
class Adversary:
    """Adversarial training (Madry et al. 2018): ``steps`` steps up the loss from a random start
    in the ball of ``threat``.

    With one step it is the fast variant (Wong et al. 2020). A step is min(1.25, 2.5 / steps) eps
    long. The box is not enforced, since augmented images may lie outside it: the network learns
    to withstand a little more than the threat model."""

    threat: ThreatModel
    steps: int = 2
    seed: int = 0

    def __call__(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        scale: Tensor,
        draw: object,
    ) -> Tensor:
        """The images ``x`` (N, C, *S), in units of ``scale`` (C,) of the box's, made harder for
        ``network``, which is asked in evaluation mode.

        ``draw`` says which random start: the same one for the same draw and place in the batch.
        """
        unit = scale.to(x).reshape(1, -1, *[1] * (x.ndim - 2))
        length = min(1.25, 2.5 / self.steps) * float(torch.as_tensor(self.threat.eps))
        delta = self.threat.start(
            x, Noise(self.seed, tuple(map(str, range(len(x))))), draw=draw
        )
        mode = network.training
        network.eval()
        try:
            for _ in range(self.steps):
                delta = delta.detach().requires_grad_()
                with torch.enable_grad():
                    total = loss(network(x + delta / unit), y)
                (grad,) = torch.autograd.grad(total, delta)
                delta = self.threat.project(
                    delta.detach() + length * self.threat.steepest(grad), x, EVERYWHERE
                )
        finally:
            network.train(mode)
        return x + delta.detach() / unit
