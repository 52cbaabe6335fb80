"""Several classifiers as one, attacked at once.

A ``Jury`` shows several classifiers as one, and ``Of(i, objective)`` is an objective asked of its
i-th member, so that an ensemble of substitutes is ``Of(0, a) + Of(1, b)``, the sum of their
objectives, minimised by the one loop."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from feathide.attacks.iterate import Classifier
from feathide.attacks.loop import Attack
from feathide.data.noise import Noise
from feathide.losses import BoundLoss, Loss, Objective, Weighted
from feathide.types import Aim, Box, Outputs

__all__ = [
    "Jury",
    "Of",
]


@dataclass(frozen=True, eq=False)
class Jury:
    """Classifiers of the same images as one. The logits are the members' mean; member i's own are
    the feature ``i:logits``, its layers ``i:layer``.
    """

    members: tuple[Classifier, ...]

    @property
    def box(self) -> Box:
        return self.members[0].box

    def __call__(self, x: Tensor) -> Outputs:
        said = [member(x) for member in self.members]
        features = {
            f"{i}:{n}": f for i, out in enumerate(said) for n, f in out.features.items()
        }
        features |= {f"{i}:logits": out.logits for i, out in enumerate(said)}
        return Outputs(torch.stack([out.logits for out in said]).mean(0), features)


def heard(out: Outputs, i: int) -> Outputs:
    """What member i of a jury says."""
    own = {
        n.partition(":")[2]: f
        for n, f in out.features.items()
        if n.partition(":")[0] == str(i)
    }
    return Outputs(own.pop("logits"), own)


@dataclass(frozen=True, eq=False)
class Of(Objective):
    """``objective`` of what the ``member``-th classifier of a jury says. In a sum the wish is
    fulfilled once every member is fooled.
    """

    member: int
    objective: Objective

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        bound = self.objective.bind(heard(clean, self.member), goal, noise)

        def of(loss: Loss | None) -> Loss | None:
            return (
                None
                if loss is None
                else lambda out, rows: loss(heard(out, self.member), rows)
            )

        return BoundLoss(
            of(bound.fool),
            of(bound.margin),
            of(bound.hide),
            f"{bound.name} of {self.member}",
        )


def against_all(attacks: Sequence[Attack]) -> Attack:
    """One attack on a jury: the step schedule of the first of ``attacks``, the sum of all
    objectives.
    """
    asked = tuple(Of(i, attack.objective) for i, attack in enumerate(attacks))
    return replace(attacks[0], objective=Weighted(asked, (1.0,) * len(asked)))
