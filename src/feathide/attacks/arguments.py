"""What an attack refuses before its first step, each with what to do instead."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from feathide.attacks.grid import Grid
from feathide.attacks.iterate import Classifier
from feathide.attacks.threats import ThreatModel
from feathide.data.valid_range import check_images, check_tensor
from feathide.errors import check_kind, expected, few
from feathide.models.classifier import FeatureClassifier
from feathide.types import Aim, Goal


def check_images_and_goal(
    x: Tensor, goal: Aim, ids: Sequence[str], threat: ThreatModel
) -> None:
    """Refuse images, classes, ids and a budget that do not belong together."""
    check_tensor("images", x)
    check_goal(goal)
    _check_ids(ids, goal, len(x))
    _check_eps(eps_of(threat), len(x))
    goal.check(x, ids)


def _check_ids(ids: Sequence[str], goal: Aim, n: int) -> None:
    sizes = (len(goal), len(goal))
    if isinstance(goal, Goal):
        sizes = (len(goal.source), len(goal.target))
    if sizes != (n, n) or len(ids) != n:
        got = f"{sizes[0]} sources, {sizes[1]} targets and {len(ids)} ids"
        raise expected(
            f"a source, a target and an id for each of {n} images",
            got=got,
            do="give one of each per image",
        )
    if len(set(ids)) != n:
        seen = list(ids)
        twice = sorted({str(i) for i in seen if seen.count(i) > 1})
        raise expected(
            "the ids of the images must differ, as random numbers are drawn by them",
            got=f"{few(twice)} more than once",
            do="name every image once",
        )


def _check_eps(eps: Tensor, n: int) -> None:
    if eps.ndim and eps.shape != (n,):
        raise expected(
            f"eps must be a number or one per image ({n},)",
            got=tuple(eps.shape),
            do="give one eps per image",
        )
    if bool((eps < 0).any()) or not bool(torch.isfinite(eps).all()):
        raise expected(
            "eps must be finite and not negative",
            got=eps.tolist(),
            do="give a budget in units of the box",
        )


def check_mask(mask: Tensor | None, x: Tensor) -> None:
    """Refuse a mask that has other axes than the images."""
    if mask is None:
        return
    if mask.ndim != x.ndim or any(
        m not in (1, s) for m, s in zip(mask.shape, x.shape, strict=True)
    ):
        raise expected(
            f"mask must be (N or 1, C or 1, *S) for images {tuple(x.shape)}",
            got=tuple(mask.shape),
            do="give it the images' axes",
        )


def check_classifier(classifier: object) -> None:
    if isinstance(classifier, nn.Module):
        raise expected(
            "an attack needs a classifier that shows its features",
            got=f"the bare network {type(classifier).__name__}",
            do='wrap it: FeatureClassifier(network.eval(), "blocks")',
        )


def check_values(classifier: Classifier, x: Tensor, grid: Grid | None) -> None:
    """Refuse images outside the valid range, or between the values that a file can hold."""
    if isinstance(classifier, FeatureClassifier):
        classifier.check(x)
    else:
        check_images(x, classifier.box)
    if grid is not None:
        check_kind("grid", grid, Grid, do="say Grid(1 / 255) for pictures of 8 bits")
        grid.check(x, classifier.box)


def check_goal(goal: object) -> None:
    if not isinstance(goal, Aim):
        raise expected(
            "the goal must say the classes before and after",
            got=f"a {type(goal).__name__}",
            do="give Goal(labels, targets)",
        )
    if not isinstance(goal, Goal):
        return
    for name, classes in (("source", goal.source), ("target", goal.target)):
        check_tensor(f"the {name} classes of the goal", classes)
        if classes.ndim != 1 or classes.is_floating_point():
            raise expected(
                f"the {name} classes of the goal must be whole numbers, one for each image (N,)",
                got=f"{classes.dtype} of shape {tuple(classes.shape)}",
                do="give labels as torch.long",
            )


def eps_of(threat: ThreatModel) -> Tensor:
    try:
        return torch.as_tensor(threat.eps)
    except (TypeError, ValueError, RuntimeError):
        raise expected(
            "eps must be a number in units of the box, or one for each image (N,)",
            got=repr(threat.eps),
            do="compute it, as in 4 / 255",
        ) from None
