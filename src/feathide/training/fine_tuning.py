"""Fine-tuning: which weights of a network learn, and how fast.

The head is the last linear layer and whatever the file of pretrained weights did not hold; the
rest is the backbone.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from feathide.errors import expected, few

__all__ = ["BACKBONE", "fixed", "frozen_names", "head_names", "learning_rates", "still"]

BACKBONE = "backbone"


def head_names(model: nn.Module, fresh: Collection[str] = ()) -> set[str]:
    """The names of the parameters of the head: those of the last linear layer, and ``fresh``
    ones.
    """
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    last = linear[-1:]
    return {
        name
        for name, _ in model.named_parameters()
        if name in fresh or name.rpartition(".")[0] in last
    }


def frozen_names(model: nn.Module, freeze: str | None, head: Collection[str]) -> set[str]:
    """The names of the parameters that ``freeze`` keeps as they are: ``backbone``, or modules and
    parameters by name or glob, such as ``_conv_stem|_bn0|_blocks.*`` (``|`` stands between
    them).

    Raises ``InputError`` for a name that the network lacks, and where nothing is left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for item in [] if freeze is None else freeze.split("|"):
        item = item.strip()
        if item == BACKBONE:
            hit = {n for n in names if n not in head}
        else:
            hit = {n for n in names if fnmatchcase(n, item) or fnmatchcase(n, f"{item}.*")}
        if not hit:
            parts = [name for name, _ in model.named_children()]
            raise expected(
                f"freeze: {item!r} must name modules of this network",
                got="none that has this name",
                do=f"choose from {BACKBONE}, {few(parts, 12)}, with globs such as {parts[0]}.*",
            )
        found |= hit
    if len(found) == len(names):
        raise expected(
            "freeze must leave weights that learn",
            got=f"all of them frozen by {freeze!r}",
            do=f"say freeze: {BACKBONE}, which leaves the head",
        )
    return found


def learning_rates(
    model: nn.Module, lr: float, lr_backbone: float | None, head: Collection[str]
) -> list[dict[str, Any]]:
    """The groups of parameters for an optimizer, each with its learning rate: one group, or the
    head at ``lr`` and the backbone at ``lr_backbone``.
    """
    if lr_backbone is None:
        return [{"params": list(model.parameters()), "lr": lr}]
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if n in head], "lr": lr},
        {"params": [p for n, p in named if n not in head], "lr": lr_backbone},
    ]
    return [group for group in groups if group["params"]]


@contextmanager
def fixed(model: nn.Module, frozen: Collection[str]) -> Iterator[None]:
    """The parameters ``frozen`` take no gradient for the length of the ``with`` block."""
    learning = [p for n, p in model.named_parameters() if n in frozen and p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def still(model: nn.Module, frozen: Collection[str]) -> Sequence[nn.Module]:
    """The batch norms that are frozen: they keep their running statistics, too, and are to be in
    evaluation mode while the rest learns.
    """
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.affine
        and all(f"{name}.{p}" in frozen for p, _ in module.named_parameters(recurse=False))
    ]
