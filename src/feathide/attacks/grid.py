"""The values that a file can hold: a perturbed image as it will be read back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathide.attacks.threats import ThreatModel
from feathide.errors import expected
from feathide.types import Box

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """The values that a file can hold: lo + k * step, with k a whole number.

    Clean images must lie on the grid.

    Args:
        step: The distance between neighbouring values in box units, such as 1 / 255 for 8-bit
            pictures in [0, 1].

    Examples:
        >>> x, delta = torch.tensor([[0.5]]), torch.tensor([[0.2]])
        >>> Grid(0.25).store(x, delta, Linf(0.3), (0, 1))
        tensor([[0.7500]])
    """

    step: float

    def __post_init__(self) -> None:
        if not isinstance(self.step, int | float) or not self.step > 0:
            raise expected(
                "the step of a grid must be a positive number",
                got=repr(self.step),
                do="say 1 / 255 for pictures of 8 bits",
            )

    def store(self, x: Tensor, delta: Tensor, threat: ThreatModel, box: Box) -> Tensor:
        """The images as they will be read back from a file, without leaving the ball.

        Args:
            x: Clean images (N, C, *S) on the grid.
            delta: Perturbations of the same shape.
            threat: The ball.
            box: The least and the greatest valid value.

        Returns:
            Images on the grid, in the ball and in the box.
        """
        base = torch.round((x - box[0]) / self.step)
        top = round((box[1] - box[0]) / self.step)
        levels = (base + threat.whole(delta, self.step)).clamp(0, top)
        return (box[0] + levels * self.step).clamp(*box)

    def check(self, x: Tensor, box: Box) -> None:
        """Refuse clean images that are not on the grid."""
        off = (x - box[0]) / self.step
        gap = float((off - off.round()).abs().amax())
        if gap > 0.02:
            raise expected(
                f"clean images must lie on the storage grid of step {self.step:g}",
                got=f"values up to {gap:.2f} of a step off",
                do=(
                    "give the step of the stored images, or grid=None to keep floating-point "
                    "images"
                ),
            )
