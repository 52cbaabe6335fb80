"""Function: a plain function of the outputs as an objective."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from feathide.data.noise import Noise
from feathide.errors import expected
from feathide.losses.base import BoundLoss, Objective, Reads
from feathide.losses.fooling import decision
from feathide.types import Aim, Outputs, Rows

__all__ = ["Function", "ObjectiveLike", "as_objective"]


@dataclass(frozen=True)
class Function(Objective):
    """J(x) = ``function(outputs)``, one number an image (N,), to be minimised.

    It hides; with ``fools`` it takes the place of the loss that changes the decision, and whether
    it has is told by the target's lead, as for the margin. A function that needs something of
    each image, its label for example, is an ``Objective`` of its own: it sees some of the images
    at a time.

    Example:
        >>> pgd(Linf(4 / 255), hide=lambda out: out.last.square().mean(1))  # doctest: +SKIP
    """

    function: Callable[[Outputs], Tensor]
    fools: bool = False

    @property
    def reads(self) -> Reads:
        return Reads(clean=False)

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        name = getattr(self.function, "__name__", type(self.function).__name__)

        def loss(out: Outputs, rows: Rows) -> Tensor:
            value = self.function(out)
            if not isinstance(value, Tensor) or value.shape != (len(out),):
                shape = (
                    f"shape {tuple(value.shape)}"
                    if isinstance(value, Tensor)
                    else f"a {type(value).__name__}"
                )
                raise expected(
                    f"the objective {name} must give one number for each image, a tensor of shape "
                    f"({len(out)},)",
                    got=shape,
                    do="reduce over all axes but the first, as in values.flatten(1).sum(1)",
                )
            return value

        if not self.fools:
            return BoundLoss(hide=loss, name=name)
        return BoundLoss(fool=loss, margin=decision(goal, clean), name=name)


ObjectiveLike = Objective | Callable[[Outputs], Tensor]


def as_objective(given: object, *, fools: bool = False) -> Objective:
    """An objective as it is; a function of the outputs as ``Function``."""
    if isinstance(given, Objective):
        return given
    if isinstance(given, type) and issubclass(given, Objective):
        raise expected(
            "an objective must be made first",
            got=f"the class {given.__name__}",
            do=f"give it its arguments: {given.__name__}(...)",
        )
    if callable(given):
        return Function(given, fools)
    scores = "; of a fitted detector Evade((detector,))" if _is_scorer(given) else ""
    raise expected(
        "an objective must be one such as HFC(bank), or a function of the outputs",
        got=f"a {type(given).__name__}",
        do=f"give one of them{scores}",
    )


def _is_scorer(given: object) -> bool:
    return callable(getattr(given, "score", None))
