"""When an attack lets go of an image: functions of the lead beyond the decision boundary and of
the suspicion, both (N,).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Leave",
    "never",
    "when_fooled",
    "when_hidden",
]

Leave = Callable[[Tensor, Tensor | None], Tensor]


def never(margin: Tensor, hide: Tensor | None) -> Tensor:
    """No image leaves before the last step."""
    return torch.zeros_like(margin, dtype=torch.bool)


def when_fooled(margin: Tensor, hide: Tensor | None) -> Tensor:
    """An image is done as soon as the classifier is fooled."""
    return margin > 0


@dataclass(frozen=True)
class when_hidden:
    """An image is done once the classifier is fooled and the suspicion is at most ``level``."""

    level: float

    def __call__(self, margin: Tensor, hide: Tensor | None) -> Tensor:
        return (margin > 0) & (hide is None or hide <= self.level)
