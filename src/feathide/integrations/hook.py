"""Our objectives inside other libraries' attacks: a network with the same logits whose gradient
also leads where our objective wants.

Other libraries take a network and differentiate a loss L of its logits by the image. ``Guided``
is such a network: its forward pass gives the logits as they are, its backward pass gives dL/dx +
w * d(sum of our objective)/dx, with the weight w that makes the library's step minimise both."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from feathide.data.noise import Noise
from feathide.errors import InputError, choose, expected
from feathide.integrations.goals import image_ids
from feathide.losses import BoundLoss, Objective
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal

__all__ = ["HOSTS", "Guided", "Host", "host_of", "with_objective"]


@dataclass(frozen=True)
class Host:
    """What a library does with the loss: ``averages`` it over the batch (else it sums);
    ``climbs`` it also when the attack is targeted, having turned its sign (else it descends
    then). ``unit``: its images lie in [0, 1], whatever the box is. ``attacks``: the names, or
    patterns of them, of the attacks that do so.
    """

    averages: bool
    climbs: bool
    unit: bool = False
    attacks: tuple[str, ...] = ()

    def weight(self, n: int, targeted: bool) -> float:
        """What the gradient of our objective, which is to be minimised, is multiplied by for a
        batch of ``n``.
        """
        return (1.0 if targeted and not self.climbs else -1.0) / (n if self.averages else 1)


HOSTS = {
    "art": Host(
        averages=True,
        climbs=False,
        attacks=(
            "FastGradientMethod",
            "BasicIterativeMethod",
            "MomentumIterativeMethod",
            "*ProjectedGradientDescent",
        ),
    ),
    "foolbox": Host(
        averages=False,
        climbs=False,
        attacks=(
            "*FastGradientAttack",
            "*BasicIterativeAttack",
            "*ProjectedGradientDescentAttack",
            "*MomentumIterativeFastGradientMethod",
        ),
    ),
    "torchattacks": Host(
        averages=True,
        climbs=True,
        unit=True,
        attacks=("FGSM", "[!P]*FGSM", "BIM", "PGD", "PGDL2", "EOTPGD"),
    ),
    "torchattacks-apgd": Host(averages=False, climbs=True, unit=True, attacks=("APGD",)),
}


def host_of(attack: type) -> str:
    """The row of ``HOSTS`` whose convention a class of another library follows; an ``InputError``
    where an objective cannot be added to it.
    """
    library, name = attack.__module__.partition(".")[0], attack.__name__
    hosts = {row: host for row, host in HOSTS.items() if row.partition("-")[0] == library}
    for row, host in hosts.items():
        if any(fnmatchcase(name, pattern) for pattern in host.attacks):
            return row
    known = ", ".join(pattern for host in hosts.values() for pattern in host.attacks)
    raise expected(
        (
            "an objective can be added to attacks that differentiate one scalar loss of all "
            f"images at once (of {library}: {known or 'none'})"
        ),
        got=name,
        do="choose one of these, or attack plainly",
    )


@dataclass(frozen=True)
class Pull:
    """Our objective, bound to ``n`` images, and its weight in the backward pass."""

    loss: BoundLoss
    n: int
    weight: float


class Guided(nn.Module):
    """The logits (N, K) of ``classifier``, with the gradient of ``pull`` added to what flows back
    to the image, if there is a pull.

    The user's network is not a part of it: whoever changes modes or gradients of its parameters
    changes nothing. ``unit``: images come in [0, 1] and are brought to the box."""

    def __init__(
        self, classifier: FeatureClassifier, *, pull: Pull | None = None, unit: bool = False
    ) -> None:
        super().__init__()
        self.classifier, self.pull, self.unit = classifier, pull, unit
        # hosts ask for a device
        self.place = nn.Parameter(
            torch.empty(0, device=classifier.device), requires_grad=False
        )
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.unit:
            lo, hi = self.classifier.box
            x = lo + (hi - lo) * x
        if torch.is_grad_enabled() and x.requires_grad:
            return _Pulled.apply(x, self)
        with torch.no_grad():
            return self.classifier(x).logits


class _Pulled(torch.autograd.Function):
    """The network as one function of the image, so that parameters stay out of the host's
    graph.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, guided: Guided) -> Tensor:
        pull = guided.pull
        if pull is not None and len(x) != pull.n:
            raise expected(
                (
                    f"the attack must show all {pull.n} images in every forward pass that it "
                    "differentiates"
                ),
                got=len(x),
                do=(
                    "give its batch_size the number of images, or choose an attack that does "
                    "not drop images on the way"
                ),
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            out = guided.classifier(leaf)
            loss = None if pull is None else pull.loss(out).sum()
        ctx.pull, ctx.inner, ctx.used = pull, (leaf, out.logits, loss), False
        return out.logits.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        leaf, logits, loss = ctx.inner
        if loss is None:
            return torch.autograd.grad(logits, leaf, upstream, retain_graph=True)[0], None
        if ctx.used:
            raise InputError(
                "an objective can be added to attacks that differentiate one scalar loss "
                "per forward pass, and this one takes several"
                " gradients of one forward pass; choose another attack (BIM, PGD, MIM, "
                "DIM, TIM, APGD)"
            )
        ctx.used = True
        weight = torch.full_like(loss, ctx.pull.weight)
        return torch.autograd.grad(
            (logits, loss), leaf, (*upstream, weight), retain_graph=True
        )[0], None


def with_objective(
    classifier: FeatureClassifier,
    objective: Objective,
    x: Tensor,
    goal: Goal,
    *,
    host: str,
    targeted: bool,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network for another library's attack, whose gradient also minimises our objective.

    Its logits are those of ``classifier``. ``host`` decides the weight w of our gradient by the
    library's convention for the sign and the mean of its loss: "foolbox" sums (w = -1, targeted
    +1); "art" averages over the batch (-1/N, +1/N), so ART must be given a loss that averages, as
    torch's do by default; "torchattacks" averages and always climbs (-1/N); its APGD sums
    ("torchattacks-apgd", -1). You tell the library the labels: ``goal.target`` if targeted, else
    ``goal.source``. All images go through the attack as one batch. torchattacks works in [0, 1]:
    for a box (lo, hi), give it ``(x - lo) / (hi - lo)``; its eps is a share of the width of the
    box. Whatever the library reads besides the gradient, such as the loss by which APGD sets its
    step, does not contain the objective.

    Args:
        classifier: The classifier under attack.
        objective: The term that is added, such as ``0.3 * HFC(bank)``.
        x: The images (N, C, *S) that will be attacked, in the classifier's box.
        goal: The true and the wanted class of each image.
        host: A name of ``HOSTS``: "foolbox", "art", "torchattacks" or "torchattacks-apgd".
        targeted: Whether the library's attack is targeted.
        ids: The ids of the images, for objectives that choose at random.
        seed: The seed of such choices.

    Returns:
        A module that maps images to logits.

    Raises:
        InputError: An unknown host; images and goal of different length; when the attack runs, a
            batch of another length, or several gradients of one forward pass.
    """
    convention = choose("host", host, HOSTS)
    if len(x) != len(goal):
        raise expected(
            f"one goal for each of {len(x)} images",
            got=len(goal),
            do="give as many classes as images",
        )
    classifier.check(x)
    x = x.to(classifier.device)
    goal = Goal(goal.source.to(x.device), goal.target.to(x.device))
    with torch.no_grad():
        clean = classifier(x)
    loss = objective.bind(
        clean, goal, Noise(seed, tuple(image_ids(x) if ids is None else ids))
    )
    return Guided(
        classifier,
        pull=Pull(loss, len(x), convention.weight(len(x), targeted)),
        unit=convention.unit,
    )
