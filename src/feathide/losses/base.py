"""What an objective is: a recipe, which ``bind`` fixes to a batch as a ``BoundLoss``; recipes
compose to sums.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from feathide.data.noise import Noise
from feathide.errors import expected, unknown
from feathide.types import ALL, Aim, Outputs, Rows

__all__ = [
    "LOGITS",
    "BoundLoss",
    "Loss",
    "Objective",
    "Paced",
    "Reads",
    "Weighted",
    "need_layers",
]

Loss = Callable[[Outputs, Rows], Tensor]
Paced = Callable[[Outputs, Rows, float], Tensor]


@dataclass(frozen=True)
class BoundLoss:
    """An objective, bound to one batch of images.

    Args:
        fool: The loss (N,) that changes the decision, or None.
        margin: (N,), positive once the decision is what the attacker wants, or None.
        hide: The loss (N,) that lowers the suspicion, or None.
        name: Which losses these are.
        paced: What is differentiated in place of ``fool``, for a loss whose weights change: a
            function of the outputs, the rows and the share of the steps that are done, in [0, 1].
            Iterates are compared by ``fool``, which does not change.
    """

    fool: Loss | None = None
    margin: Loss | None = None
    hide: Loss | None = None
    name: str = ""
    paced: Paced | None = None

    def __call__(self, out: Outputs, rows: Rows = ALL) -> Tensor:
        """The total loss (N,): ``fool + hide``.

        Args:
            out: Outputs of some of the bound images.
            rows: Which of the bound images these are; all by default.

        Returns:
            One loss per image, differentiable in ``out``.
        """
        terms = [term(out, rows) for term in (self.fool, self.hide) if term is not None]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


@dataclass(frozen=True)
class Reads:
    """What an objective looks at: ``clean``, the outputs of the clean images (else only those of
    iterates); ``layers``, nothing but the logits and the features of these layers (None:
    everything there is). What nobody reads is not computed.
    """

    clean: bool = True
    layers: tuple[str, ...] | None = None

    def __or__(self, other: "Reads") -> "Reads":
        some = (
            None
            if self.layers is None or other.layers is None
            else (*self.layers, *other.layers)
        )
        return Reads(self.clean or other.clean, some)


LOGITS = Reads(clean=False, layers=())


class Objective(ABC):
    """What an attacker wants, as a recipe. Objectives compose: ``a + b``, ``0.5 * a``."""

    @property
    def reads(self) -> Reads:
        """What it looks at; everything, unless it says otherwise."""
        return Reads()

    @abstractmethod
    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        """The loss for one batch.

        Args:
            clean: The outputs of the clean images; for an objective that does not read them, any
                outputs of the same layers and classes.
            goal: The true and the wanted class of each image.
            noise: The random numbers of each image, for objectives that choose at random.

        Returns:
            The loss, a function of the outputs of some of the images.
        """

    def __add__(self, other: "Objective") -> "Objective":
        if not isinstance(other, Objective):
            raise expected(
                "what is added to an objective must be one",
                got=f"a {type(other).__name__}",
                do="wrap a function of the outputs as Function(f)",
            )
        return Weighted((self, other), (1.0, 1.0))

    def __rmul__(self, weight: float) -> "Objective":
        return Weighted((self,), (float(weight),))


@dataclass(frozen=True)
class Weighted(Objective):
    """A weighted sum of objectives: sum_i weights[i] * parts[i].

    Args:
        parts: The objectives.
        weights: One weight per objective.
    """

    parts: tuple[Objective, ...]
    weights: tuple[float, ...]

    @property
    def reads(self) -> Reads:
        return reduce(or_, (part.reads for part in self.parts))

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        bound = [part.bind(clean, goal, noise) for part in self.parts]
        return BoundLoss(
            fool=_sum([(w, b.fool) for w, b in zip(self.weights, bound, strict=True)]),
            margin=_least([b.margin for b in bound]),
            hide=_sum([(w, b.hide) for w, b in zip(self.weights, bound, strict=True)]),
            name=" + ".join(
                b.name if w == 1 else f"{w:g} {b.name}"
                for w, b in zip(self.weights, bound, strict=True)
            ),
            paced=_paced(list(zip(self.weights, bound, strict=True))),
        )


def need_layers(
    what: str, names: Sequence[str], clean: Outputs, known: Sequence[str]
) -> None:
    """Refuse an objective on features if there are none, or not those of ``names``."""
    if not names or not clean.features:
        raise expected(
            f"{what} needs the features of at least one layer",
            got="none",
            do="give the classifier layers",
        )
    for table in (clean.features, known):
        missing = [name for name in names if name not in table]
        if missing:
            raise unknown("layer", missing[0], table)


def _sum(terms: Sequence[tuple[float, Loss | None]]) -> Loss | None:
    present = [(w, loss) for w, loss in terms if loss is not None]
    if not present:
        return None

    def total(out: Outputs, rows: Rows) -> Tensor:
        values = [
            w * loss(out, rows) if w != 1.0 else loss(out, rows) for w, loss in present
        ]
        return values[0] if len(values) == 1 else torch.stack(values).sum(0)

    return total


def _paced(parts: Sequence[tuple[float, BoundLoss]]) -> Paced | None:
    """The sum of what is differentiated, where some part says what."""
    if all(b.paced is None for _, b in parts):
        return None

    def total(out: Outputs, rows: Rows, share: float) -> Tensor:
        values = [
            w * (b.fool(out, rows) if b.paced is None else b.paced(out, rows, share))
            for w, b in parts
            if b.fool is not None
        ]
        return torch.stack(values).sum(0)

    return total


def _least(margins: Sequence[Loss | None]) -> Loss | None:
    present = [m for m in margins if m is not None]
    if not present:
        return None
    return lambda out, rows: torch.stack([m(out, rows) for m in present]).amin(0)
