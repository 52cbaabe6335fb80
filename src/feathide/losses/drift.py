"""Drift: the objective of the stress test."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from feathide.data.noise import Noise
from feathide.losses.base import BoundLoss, Objective, Reads, need_layers
from feathide.types import Aim, Outputs, Rows

__all__ = ["Drift"]


@dataclass(frozen=True)
class Drift(Objective):
    """The stress test: drive the mean activation m of one layer as far as the budget allows.

        J = m(x), -m(x) or -|m(x) - m(x_clean)|

    Args:
        layer: The name of the layer.
        direction: "down", "up" or "away" from the clean value.
    """

    layer: str
    direction: Literal["down", "up", "away"] = "down"

    @property
    def reads(self) -> Reads:
        return Reads(clean=self.direction == "away", layers=(self.layer,))

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        need_layers("drift", (self.layer,), clean, (self.layer,))
        start = clean.features[self.layer].mean(1)

        def fool(out: Outputs, rows: Rows) -> Tensor:
            m = out.features[self.layer].mean(1)
            if self.direction == "away":
                u = m - start[rows]
                # |u| with a slope at 0, where the attack starts
                return -torch.where(u < 0, -u, u)
            return m if self.direction == "down" else -m

        return BoundLoss(fool=fool, name=f"drift {self.direction}")
