"""Weights of a network: digested, saved as safetensors, and put into a network from a file of
one's own.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from feathide.errors import expected
from feathide.models.weight_files import (
    NOTE,
    file_digest,
    read_about,
    read_weights,
    some,
)
from feathide.models.weight_names import Rename, fitting

__all__ = [
    "Taken",
    "file_digest",
    "load_weights",
    "read_about",
    "save_weights",
    "start_from",
    "weights_digest",
]


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers, in
    hexadecimal.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_weights(
    model: nn.Module, path: str | Path, *, about: Mapping[str, Any] | None = None
) -> None:
    """Write the state dict as a safetensors file, which appears whole or not at all.

    ``about``: values that JSON can hold, kept in the file's header for ``read_about``.
    """
    state = {
        k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(safetensors.torch.save(state, {NOTE: json.dumps(about or {})}))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Taken:
    """What became of the weights in a file: the names that were ``taken`` over, those ``left`` in
    the file, those of the network that stay ``fresh``, how names were changed (``renamed``), and
    the kernels of three channels that were ``summed`` over them for grey images.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    fresh: tuple[str, ...]
    renamed: str = ""
    summed: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Such as ``120 weights taken (names without model.), 2 left in the file (fc.weight,
        fc.bias)``.
        """
        parts = [
            f"{len(self.taken)} weights taken"
            + (f" ({self.renamed})" if self.renamed else "")
        ]
        parts += (
            [f"{len(self.left)} left in the file ({some(self.left)})"] if self.left else []
        )
        parts += [f"{len(self.fresh)} not in it ({some(self.fresh)})"] if self.fresh else []
        parts += (
            [f"{some(self.summed)} summed over its 3 channels for grey images"]
            if self.summed
            else []
        )
        return ", ".join(parts)


def load_weights(
    model: nn.Module, path: str | Path, *, rename: Rename | None = None
) -> Taken:
    """Put the weights of a file into ``model``; every name and shape must agree. Says what was
    taken.

    Files: safetensors, or a torch file (``.pt``, ``.pth``, ``.ckpt``) with a state dict, alone or
    in a checkpoint, under ``state_dict``, ``model``, ``weights``, ``ema`` and the like. Whatever
    prefix wrapping modules left on the names (``model.``, ``backbone.``, ``module._orig_mod.``,
    ...) is dropped; half precision is cast. ``rename``: what names begin with in the file -> in
    the network, such as {"encoder.": "features."}; or "in order", for a file whose weights have
    other names and the order and shapes of the network's. Raises ``InputError`` for an unreadable
    file, a pickled module, missing or unexpected names and other shapes; ``model`` is then as it
    was."""
    own, found = model.state_dict(), read_weights(path)
    state, left, renamed = fitting(found, model, rename)
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in own]
    if missing or surplus:
        parts = [
            f"{len(v)} {what} ({some(v)})"
            for v, what in ((missing, "missing"), (surplus, "unexpected"))
            if v
        ]
        raise expected(
            f"{path} must hold the network's {len(own)} weights",
            got=" and ".join(parts),
            do=(
                "load weights that were saved from this architecture, or rename them "
                "(network.rename)"
            ),
        )
    wrong = [
        f"{k} {tuple(v.shape)}, here {tuple(own[k].shape)}"
        for k, v in state.items()
        if v.shape != own[k].shape
    ]
    if wrong:
        raise expected(
            f"the shapes in {path} must be the network's",
            got=some(wrong),
            do=(
                "build the network with the outputs and channels that the weights were trained "
                "with, or train on from them with another head (network.start_from)"
            ),
        )
    model.load_state_dict(state, strict=False)
    return Taken(tuple(state), left, (), renamed)


def start_from(
    model: nn.Module, path: str | Path, *, rename: Rename | None = None
) -> Taken:
    """Take over the pretrained weights in a user's file wherever name and shape agree, to train
    on from there.

    A first convolution that was trained on three channels is summed over them for a network of
    one, which gives what the grey image repeated three times would have given. The rest, such as
    the head for other classes, keeps its random start. ``rename``: see ``load_weights``. Says
    what was taken; raises ``InputError`` if less than half of the network's weights fit."""
    own = model.state_dict()
    state, left, renamed = fitting(read_weights(path), model, rename)
    summed = [
        name
        for name, value in state.items()
        if name in own and value.ndim > 2 and (value.shape[1], own[name].shape[1]) == (3, 1)
    ]
    state |= {name: state[name].sum(1, keepdim=True) for name in summed}
    taken = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if len(taken) < len(own) / 2:
        raise expected(
            f"{path} must hold weights of this architecture",
            got=f"{len(taken)} of {len(own)} that fit: {_misfits(own, state)}",
            do=(
                "choose the architecture that the weights belong to, or rename them "
                "(network.rename)"
            ),
        )
    model.load_state_dict(taken, strict=False)
    left = (*left, *(k for k in state if k not in taken))
    fresh = tuple(k for k in own if k not in taken)
    return Taken(tuple(taken), left, fresh, renamed, tuple(summed))


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What of a file does not fit the network: names that only one of them has, and shapes."""
    lists = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "other shapes": [
            f"{k} {tuple(v.shape)}, here {tuple(own[k].shape)}"
            for k, v in state.items()
            if k in own and v.shape != own[k].shape
        ],
    }
    return "; ".join(f"{len(v)} {what} ({some(v)})" for what, v in lists.items() if v)
