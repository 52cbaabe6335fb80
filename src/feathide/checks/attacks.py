"""Conformance checks of attacks: where their images lie, what these depend on, and what must not
change. A conformance check takes what makes the attack for a threat model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from feathide.attacks.threats import L2, Linf, ThreatModel
from feathide.checks.verdicts import Broken, NotApplicable, require, untouched_random_state
from feathide.checks.worlds import SHAPES, World, linear, world
from feathide.errors import InputError
from feathide.models.classifier import FeatureClassifier
from feathide.models.layers import hooked
from feathide.types import Goal

__all__ = ["ATTACK_LAWS", "Attacks", "Run"]

Run = Callable[[FeatureClassifier, Tensor, Goal, Sequence[str], int], Tensor]
Attacks = Callable[[ThreatModel], Run]

KINDS: dict[str, Callable[[Tensor | float], ThreatModel]] = {"linf": Linf, "l2": L2}
EPS = {"linf": 0.2, "l2": 0.5}


def images_of(
    run: Run, w: World, rows: slice | Tensor = slice(None), *, seed: int = 0
) -> Tensor:
    """The adversarial images of some images of the world, finite and of their shape."""
    ids = [w.ids[i] for i in torch.arange(len(w.x))[rows].tolist()]
    found = run(w.classifier, w.x[rows].clone(), w.goal[rows], ids, seed)
    shaped = (
        isinstance(found, Tensor)
        and found.shape == w.x[rows].shape
        and bool(found.isfinite().all())
    )
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    require(shaped, f"finite images {tuple(w.x[rows].shape)}", got=got)
    return found.detach().to(w.x)


def taken(attacks: Attacks) -> Iterator[tuple[World, str, Run]]:
    """Every small world and norm that the attack does not refuse with an ``InputError``; at least
    one.
    """
    refused: list[str] = []
    for shape in SHAPES:
        for norm, kind in KINDS.items():
            try:
                run = attacks(kind(EPS[norm]))
                images_of(run, world(shape), slice(0, 1))
            except InputError as error:
                refused.append(str(error))
            else:
                yield world(shape), norm, run
    if len(refused) == len(SHAPES) * len(KINDS):
        raise Broken(
            "expected an attack on signals, images or volumes in L-infinity or L2, got "
            f"{refused[0]}"
        )


def ball_and_box(attacks: Attacks) -> None:
    """The images lie in the ball, for one eps and for one per image, and in the box."""
    sized(attacks)
    for w, norm, run in taken(attacks):
        runs: list[tuple[Tensor | float, Run]] = [(EPS[norm], run)]
        each = torch.tensor([0.0, 0.02, 0.3, 2.0], dtype=torch.float64)
        with suppress(InputError):  # of an attack that takes one eps for all
            runs.append((each, attacks(KINDS[norm](each))))
        for eps, attack in runs:
            found = images_of(attack, w)
            over = float((KINDS[norm](eps).size(found - w.x) - torch.as_tensor(eps)).max())
            require(
                over < 1e-6,
                f"images within eps in {norm}{place(w)}",
                got=f"{over:.2g} more",
            )
            low, high = float(found.min()), float(found.max())
            require(
                low >= -1e-9 and high <= 1 + 1e-9,
                f"images in the box [0, 1]{place(w)}",
                got=f"[{low:g}, {high:g}]",
            )


def singletons(attacks: Attacks) -> None:
    """A batch gives what its images give one by one."""
    for w, norm, run in taken(attacks):
        alone = torch.cat([images_of(run, w, slice(i, i + 1)) for i in range(len(w.x))])
        apart = float((images_of(run, w) - alone).abs().max())
        require(
            apart < 1e-6,
            f"the same images from a batch and one by one{place(w)} in {norm}",
            got=f"a difference of {apart:.2g}",
        )


def order(attacks: Attacks) -> None:
    """The order of the images does not matter."""
    shuffled = torch.tensor([2, 0, 3, 1])
    for w, norm, run in taken(attacks):
        apart = float(
            (images_of(run, w, shuffled) - images_of(run, w)[shuffled]).abs().max()
        )
        require(
            apart < 1e-6,
            f"images that follow their ids{place(w)} in {norm}",
            got=f"a difference of {apart:.2g}",
        )


def same_bits(attacks: Attacks) -> None:
    """The seed and the ids decide every bit, whatever state the global generators are in."""
    for w, _, run in taken(attacks):
        first = images_of(run, w, seed=5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12345)
            again = images_of(run, w, seed=5)
        require(
            torch.equal(first, again),
            f"the same bits from the same seed{place(w)}",
            got="others",
        )


def no_budget(attacks: Attacks) -> None:
    """eps 0 gives the images back."""
    sized(attacks)
    for w, norm, _ in taken(attacks):
        moved = float((images_of(attacks(KINDS[norm](0.0)), w) - w.x).abs().max())
        require(
            moved < 1e-9, f"x itself at eps 0{place(w)}", got=f"a change of {moved:.2g}"
        )


def moves(attacks: Attacks) -> None:
    """With a budget, images change."""
    for w, _, run in taken(attacks):
        changed = (images_of(run, w) - w.x).flatten(1).abs().amax(1)
        require((changed > 1e-6).any(), f"a change of some image{place(w)}", got="none")


def untouched(attacks: Attacks) -> None:
    """The network, its hooks, modes and gradients, the images and the global random numbers stay
    as they are.
    """
    for w, _, run in taken(attacks):
        model = w.classifier.model
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        before, x, goal = (
            state(model),
            w.x.clone(),
            (w.goal.source.clone(), w.goal.target.clone()),
        )
        with untouched_random_state():
            run(w.classifier, w.x, w.goal, w.ids, 0)
        require(
            torch.equal(w.x, x) and not w.x.requires_grad,
            "x untouched",
            got="changed images",
        )
        same = torch.equal(w.goal.source, goal[0]) and torch.equal(w.goal.target, goal[1])
        require(same, "the goal untouched", got="changed classes")
        same = all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
        require(same, "the network's weights untouched", got="changed weights")
        require(
            state(model) == before,
            "hooks, modes and gradients of the network untouched",
            got="changed ones",
        )


def radius(attacks: Attacks) -> None:
    """On a linear classifier, whose nearest boundary is known, every image is fooled at 1.05
    times that distance, and none at 0.95 times.
    """
    sized(attacks)
    norms = {norm for w, norm, _ in taken(attacks)}
    w, direction = linear((3, 7, 6))
    graphs: list[bool] = []
    with hooked(
        {"": lambda _module, _args, out: graphs.append(out.requires_grad)},
        w.classifier.model,
    ):
        images_of(attacks(KINDS[min(norms)](0.1)), w)
    if not any(graphs):
        raise NotApplicable(
            "it uses no gradient, and a random search need not find the boundary"
        )
    lead = w.classifier.extract(w.x).logits.diff(dim=1)[:, 0].abs()
    for norm in sorted(norms):
        distance = lead / direction.norm(p=1 if norm == "linf" else 2)
        for share, wanted in ((1.05, True), (0.95, False)):
            fooled = [
                _fools(attacks(KINDS[norm](float(share * d))), w, i)
                for i, d in enumerate(distance)
            ]
            what = "every image" if wanted else "no image"
            require(
                all(f == wanted for f in fooled),
                (
                    f"{what} of a linear classifier fooled at {share} times the distance to the "
                    f"boundary in {norm}"
                ),
                got=f"{sum(fooled)} of {len(fooled)}",
            )


def _fools(run: Run, w: World, i: int) -> bool:
    found = images_of(run, w, slice(i, i + 1))
    return bool(w.classifier.extract(found).predicted[0] == w.goal.target[i])


ATTACK_LAWS: dict[str, Callable[[Attacks], None]] = {
    "ball and box": ball_and_box,
    "batch is singletons": singletons,
    "order of images": order,
    "same seed, same bits": same_bits,
    "eps 0 gives x": no_budget,
    "not a no-op": moves,
    "network and inputs untouched": untouched,
    "radius of a linear network": radius,
}


def sized(attacks: Any) -> None:
    """Conformance checks of eps say nothing about a function that is not told eps."""
    if getattr(attacks, "takes_eps", True) is False:
        raise NotApplicable(
            "it takes no eps; an audit projects its images onto the ball and the box"
        )


def state(model: torch.nn.Module) -> list[object]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    return [
        hooks,
        modes,
        [p.requires_grad for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
    ]


def place(w: World) -> str:
    return f" for images {tuple(w.x.shape[1:])}"
