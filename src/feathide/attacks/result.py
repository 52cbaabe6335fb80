"""AttackResult: what an attack found; and the best iterate of each image, kept while it runs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from feathide.attacks.iterate import Seen
from feathide.attacks.leave import Leave
from feathide.types import Rows

__all__ = [
    "AttackResult",
]


@dataclass(frozen=True)
class AttackResult:
    """What an attack found; row i is image i.

    Args:
        adversarial: The best iterates (N, C, *S): among those that fool, the one with the lowest J
            + S; before any fools, the one with the lowest J.
        fooled: Whether the classifier takes the image for what the attacker wants (N,), bool.
        margin: How far the image is beyond the decision boundary, in logits (N,); positive if
            fooled.
        hide: The suspicion S that the attacker knows (N,); NaN without a hiding term.
        trace: The fooling loss of each iterate (steps + 1, N), NaN after an image has left; with
            restarts, the lowest.
        first: The first iterate that fooled (N,), or -1.
        gradients: The number of backward passes for each image (N,).
        forwards: The number of forward passes for each image (N,).
        losses: The names of the losses that were used.
    """

    adversarial: Tensor
    fooled: Tensor
    margin: Tensor
    hide: Tensor
    trace: Tensor
    first: Tensor
    gradients: Tensor
    forwards: Tensor
    losses: tuple[str, ...] = ()


class Best:
    """The best iterate of each image so far, and the counts."""

    def __init__(self, x: Tensor, steps: int, confidence: float) -> None:
        n = len(x)
        nan = torch.full((n,), float("nan"), dtype=x.dtype, device=x.device)
        self.confidence = confidence
        self.x, self.margin, self.hide = x.clone(), nan.clone(), nan.clone()
        self.value = torch.full_like(nan, float("inf"))
        self.tier = torch.full((n,), -1, device=x.device)
        self.trace = nan.repeat(steps + 1, 1)
        self.first = torch.full((n,), -1, device=x.device)
        self.gradients = torch.zeros(n, dtype=torch.long, device=x.device)
        self.forwards = torch.zeros(n, dtype=torch.long, device=x.device)

    def take(self, stored: Tensor, seen: Seen, rows: Rows, k: int) -> None:
        """Keep what fools with confidence (tier 2) before what fools (1) before the rest (0),
        then the lowest loss J + S, before it fools J; of a dense network, before its read-out
        crosses its bound, the read-out.

        S alone would keep the image that lies nearest to the decision boundary, and uncertainty
        is what many detectors look for."""
        tier = (seen.margin > 0).long() + (seen.margin > self.confidence)
        value = torch.where(tier == 2, seen.loss, seen.rank)
        better = (tier > self.tier[rows]) | (
            (tier == self.tier[rows]) & (value < self.value[rows])
        )

        def keep(old: Tensor, new: Tensor) -> Tensor:
            wide = better.reshape(-1, *[1] * (new.ndim - 1))
            return put(old, rows, torch.where(wide, new.to(old), old[rows]))

        self.x, self.tier = keep(self.x, stored.detach()), keep(self.tier, tier)
        self.value, self.margin = keep(self.value, value), keep(self.margin, seen.margin)
        if seen.hide is not None:
            self.hide = keep(self.hide, seen.hide)
        self.trace[k, rows] = torch.fmin(self.trace[k, rows], seen.fool.to(self.trace))
        fresh = (seen.margin > 0) & (self.first[rows] < 0)
        self.first[rows] = torch.where(fresh, k, self.first[rows])
        self.gradients[rows] += seen.gradients
        self.forwards[rows] += seen.forwards

    def unfinished(self, leave: Leave) -> Tensor:
        """The images that ``leave`` would not let go with their best iterate."""
        hide = None if bool(self.hide.isnan().all()) else self.hide
        return (~leave(self.margin - self.confidence, hide)).nonzero().flatten()

    def result(self, name: str) -> AttackResult:
        return AttackResult(
            self.x,
            self.margin > 0,
            self.margin,
            self.hide,
            self.trace,
            self.first,
            self.gradients,
            self.forwards,
            (name,),
        )


def put(old: Tensor, rows: Rows, new: Tensor) -> Tensor:
    """``old`` with ``new`` at ``rows``, in place where that is not all of it."""
    if isinstance(rows, slice):
        return new
    old[rows] = new
    return old
