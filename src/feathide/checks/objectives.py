"""Conformance checks of objectives: the gradient is that of the loss, a row depends on itself
only, sums and multiples are what they say. A conformance check takes what makes the objective
from what an attacker may know.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from feathide.checks.verdicts import Broken, require, untouched_random_state
from feathide.checks.worlds import World, images, world
from feathide.data.noise import Noise
from feathide.detectors import Detector, KernelDensity, LocalDimension
from feathide.errors import choose
from feathide.losses import BoundLoss, CrossEntropy, Objective
from feathide.mixtures import MixtureBank
from feathide.types import Evidence, Outputs

__all__ = ["OBJECTIVE_LAWS", "Guard", "Make"]

SHAPE = (3, 7, 6)


@dataclass(frozen=True, eq=False)
class Guard:
    """What an attacker of a small world may know (``catalog.Known``): training outputs, mixtures,
    fitted detectors.
    """

    classes: int

    @property
    def world(self) -> World:
        return world(SHAPE, self.classes)

    @cached_property
    def reference(self) -> Outputs:
        return self.world.classifier.extract(images(150, SHAPE, seed=1))

    def train(self) -> tuple[Outputs, Tensor]:
        return self.reference, self.reference.predicted

    @cached_property
    def _bank(self) -> MixtureBank:
        return MixtureBank.fit(self.reference, self.reference.predicted, components=2)

    def bank(self) -> MixtureBank:
        return self._bank

    def detectors(
        self, names: Sequence[str] | None
    ) -> tuple[Sequence[Detector], Sequence[float], Sequence[float]]:
        table: dict[str, Detector] = {
            "kd": KernelDensity(),
            "lid": LocalDimension(combine="mean"),
        }
        none = self.reference[:0]
        evidence = Evidence(
            *self.train(),
            self.world.classifier.extract(images(40, SHAPE, seed=4)),
            none,
            none,
        )
        found = [choose("detector", n, table).fit(evidence) for n in names or table]
        scores = [d.score(self.reference) for d in found]
        return (
            found,
            [float(s.quantile(0.9)) for s in scores],
            [float(s.std()) for s in scores],
        )


Make = Callable[[Guard], Objective]


@cache
def guard(classes: int) -> Guard:
    return Guard(classes)


def bound(objective: Objective, g: Guard) -> BoundLoss:
    w = g.world
    return objective.bind(w.classifier.extract(w.x), w.goal, Noise(0, w.ids))


def elsewhere(g: Guard) -> Outputs:
    """Outputs that are not the clean ones."""
    moved = (g.world.x + 0.1 * (images(4, SHAPE, seed=7) - 0.5)).clamp(0, 1)
    return g.world.classifier.extract(moved)


def cases(make: Make) -> Iterator[tuple[Guard, Objective, Outputs]]:
    for classes in (2, 3, 5):
        yield guard(classes), make(guard(classes)), elsewhere(guard(classes))


def per_sample(make: Make) -> None:
    """(N,) losses; a row's loss and gradient depend on that row only, also when other images have
    left the batch.
    """
    for g, objective, out in cases(make):
        loss = bound(objective, g)
        whole = loss(out)
        require(
            whole.shape == (4,), "losses (N,), one for each image", got=tuple(whole.shape)
        )
        rows = torch.tensor([2, 0])
        apart = float((loss(out[rows], rows) - whole[rows]).abs().max())
        require(
            apart < 1e-9,
            "loss(out[rows], rows) = loss(out)[rows]",
            got=f"a difference of {apart:.2g}",
        )
        leaves = [v.clone().requires_grad_() for v in (out.logits, *out.features.values())]
        total = loss(_outputs(out, *leaves))[1]
        require(total.requires_grad, "a loss with a gradient", got="none")
        for gradient in torch.autograd.grad(total, leaves, materialize_grads=True):
            require(
                not gradient[[0, 2, 3]].any(),
                "a gradient in the loss's own row only",
                got="one in other rows",
            )


def gradient(make: Make) -> None:
    """The gradient is that of the loss (gradcheck in float64), for 2, 3 and 5 classes."""
    for g, objective, out in cases(make):
        loss = bound(objective, g)
        leaves = [v.clone().requires_grad_() for v in (out.logits, *out.features.values())]
        try:
            torch.autograd.gradcheck(
                lambda *v, loss=loss, out=out: loss(_outputs(out, *v)),
                leaves,
                atol=1e-5,
                rtol=1e-4,
            )
        except (RuntimeError, ValueError) as error:
            raise Broken(
                "expected the gradient of the loss, got another one "
                f"({str(error).splitlines()[0]})"
            ) from None


def algebra(make: Make) -> None:
    """Sums and multiples of objectives have the sums and multiples of their losses."""
    for g, a, out in cases(make):
        b = CrossEntropy()
        va, vb = bound(a, g)(out), bound(b, g)(out)
        parts = {
            "a + b": (a + b, va + vb),
            "b + a": (b + a, va + vb),
            "2 a": (2 * a, 2 * va),
            "0.5 (a + b)": (0.5 * (a + b), (va + vb) / 2),
            "(a + b) + a": ((a + b) + a, 2 * va + vb),
            "0 a + b": (0.0 * a + b, vb),
        }
        for name, (objective, wanted) in parts.items():
            apart = float((bound(objective, g)(out) - wanted).abs().max())
            require(
                apart < 1e-9,
                f"the loss of {name} to be that of its parts",
                got=f"a difference of {apart:.2g}",
            )


def repeatable(make: Make) -> None:
    """Bound twice, the losses are the same: what is drawn at random comes from the noise that is
    given.
    """
    for g, objective, out in cases(make):
        with untouched_random_state():
            first, again = bound(objective, g)(out), bound(objective, g)(out)
        require(
            torch.equal(first, again), "the same losses when bound again", got="other ones"
        )


def untouched(make: Make) -> None:
    """The outputs are not changed."""
    for g, objective, out in cases(make):
        before = out[torch.arange(len(out))]
        bound(objective, g)(out)
        same = torch.equal(before.logits, out.logits)
        same &= all(torch.equal(before.features[k], v) for k, v in out.features.items())
        require(same, "the outputs untouched", got="changed values")


OBJECTIVE_LAWS: dict[str, Callable[[Make], None]] = {
    "one loss per image": per_sample,
    "gradient of the loss": gradient,
    "sums and multiples": algebra,
    "bound again, the same": repeatable,
    "outputs untouched": untouched,
}


def _outputs(like: Outputs, logits: Tensor, *features: Tensor) -> Outputs:
    return Outputs(logits, dict(zip(like.features, features, strict=True)))
