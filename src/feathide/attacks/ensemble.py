"""Ensemble: several attacks, one after the other, as one: an image that one of them has finished
is spared the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from feathide.attacks.grid import Grid
from feathide.attacks.iterate import Classifier
from feathide.attacks.leave import Leave, when_fooled
from feathide.attacks.loop import Attack
from feathide.attacks.result import AttackResult
from feathide.types import Aim

__all__ = ["Ensemble"]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The worst case over ``attacks``, per image, with the call and the result of one attack.

    An attack runs on the images that ``leave`` would not let go with the best found so far. Of
    two attacks' images the one that fools is kept, then the one of lowest suspicion, else the one
    nearer to fooling. In the result ``trace`` has the attacks' traces one below the other,
    ``first`` counts on through them, passes are added up, and ``losses`` names the losses of the
    attacks that ran."""

    attacks: tuple[Attack, ...]
    leave: Leave = when_fooled

    @property
    def passes(self) -> int:
        """The iterates of all attacks together, where no image is finished early."""
        return sum(attack.passes for attack in self.attacks)

    def __call__(
        self,
        classifier: Classifier,
        x: Tensor,
        goal: Aim,
        *,
        ids: Sequence[str],
        seed: int = 0,
        grid: Grid | None = None,
        mask: Tensor | None = None,
    ) -> AttackResult:
        """As ``Attack.__call__``."""
        for attack in self.attacks:
            attack.check(x, goal, ids, mask)
        best, above = _nothing(x, sum(attack.steps + 1 for attack in self.attacks)), 0
        for attack in self.attacks:
            hide = None if bool(best.hide.isnan().all()) else best.hide
            rows = (
                torch.arange(len(x))
                if not above
                else (~self.leave(best.margin - attack.confidence, hide))
                .nonzero()
                .flatten()
            )
            if len(rows):
                found = replace(attack, threat=attack.threat.at(rows))(
                    classifier,
                    x[rows],
                    goal.to(x.device)[rows.to(x.device)],
                    ids=[ids[i] for i in rows.tolist()],
                    seed=seed,
                    grid=grid,
                    mask=mask if mask is None or len(mask) == 1 else mask[rows],
                )
                best = _merged(best, found, rows.to(x.device), above, attack.confidence)
            above += attack.steps + 1
        return best


def _nothing(x: Tensor, height: int) -> AttackResult:
    """The result before the first attack."""
    n, empty = len(x), x.new_full((len(x),), float("nan"))
    count = torch.zeros(n, dtype=torch.long, device=x.device)
    return AttackResult(
        x,
        count.bool(),
        torch.full_like(empty, -torch.inf),
        empty,
        empty.repeat(height, 1),
        count - 1,
        gradients=count,
        forwards=count,
    )


def _merged(
    best: AttackResult, found: AttackResult, rows: Tensor, above: int, confidence: float
) -> AttackResult:
    """``best`` with what an attack found on the images ``rows``; ``above``: the rows of the trace
    that are taken.
    """
    old = best.margin[rows]
    tier, tier_old = (
        (margin > 0).long() + (margin > confidence) for margin in (found.margin, old)
    )
    nearer = torch.where(tier == 2, found.hide < best.hide[rows], found.margin > old)
    take = (tier > tier_old) | ((tier == tier_old) & nearer)
    first = torch.where(found.first >= 0, found.first + above, -1)

    def put(before: Tensor, after: Tensor, chosen: Tensor) -> Tensor:
        return before.index_copy(0, rows[chosen], after[chosen].to(before))

    every = torch.ones_like(take)
    trace = best.trace.clone()
    trace[above : above + len(found.trace), rows] = found.trace
    return AttackResult(
        adversarial=put(best.adversarial, found.adversarial, take),
        fooled=put(best.fooled, found.fooled, take),
        margin=put(best.margin, found.margin, take),
        hide=put(best.hide, found.hide, take),
        trace=trace,
        first=put(best.first, first, best.first[rows] < 0),
        gradients=put(best.gradients, best.gradients[rows] + found.gradients, every),
        forwards=put(best.forwards, best.forwards[rows] + found.forwards, every),
        losses=tuple(dict.fromkeys((*best.losses, *found.losses))),
    )
