"""Weights in files: written as safetensors, read without ever running code that a file may hold."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from feathide.errors import expected

__all__ = ["load_weights", "read_about", "read_weights", "save_weights", "start_from", "weights_digest"]

WRAPPERS = ("state_dict", "model_state_dict", "model")  # where a checkpoint keeps the state dict
NOTE = "feathide"  # the entry of the file header under which the notes are
PREFIXES = ("", "model.", "net.", "network.", "module.", "_orig_mod.")  # what a wrapping module puts before its names


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_weights(model: nn.Module, path: str | Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Write the state dict as a safetensors file, which appears whole or not at all.

    ``about``: values that JSON can hold, kept in the file's header for ``read_about``.
    """
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
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


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the weights of a file into ``model``; every name and shape must agree.

    Files: safetensors, or a torch file (``.pt``, ``.pth``, ``.ckpt``) with a state dict, alone or in a checkpoint under
    ``state_dict``, ``model_state_dict`` or ``model``. A prefix that a wrapping module left on the names (``model.``,
    ``net.``, ``module.``, ...) is dropped. Raises ``InputError`` for an unreadable file, a pickled module, missing or
    unexpected names and other shapes; ``model`` is then as it was.
    """
    own, state = model.state_dict(), _fitting(read_weights(path), model)
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in own]
    if missing or surplus:
        parts = [f"{len(v)} {what} ({some(v)})" for v, what in ((missing, "missing"), (surplus, "unexpected")) if v]
        raise expected(
            f"{path} must hold the network's {len(own)} weights",
            got=" and ".join(parts),
            do="load weights that were saved from this architecture",
        )
    wrong = [f"{k} {tuple(v.shape)}, here {tuple(own[k].shape)}" for k, v in state.items() if v.shape != own[k].shape]
    if wrong:
        raise expected(
            f"the shapes in {path} must be the network's",
            got=some(wrong),
            do="build the network with the outputs and channels that the weights were trained with",
        )
    model.load_state_dict(state, strict=False)


def start_from(model: nn.Module, path: str | Path) -> list[str]:
    """Take over the pretrained weights in a user's file wherever name and shape agree, to train on from there.

    A first convolution that was trained on three channels is summed over them for a network of one, which gives what
    the grey image repeated three times would have given. The rest, such as the head for other classes, keeps its random
    start. Returns the names that were not taken over; raises ``InputError`` if less than half of them fit.
    """
    own, state = model.state_dict(), _fitting(read_weights(path), model)
    for name, value in state.items():
        if name in own and value.ndim > 2 and (value.shape[1], own[name].shape[1]) == (3, 1):
            state[name] = value.sum(1, keepdim=True)
    taken = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if len(taken) < len(own) / 2:
        raise expected(
            f"{path} must hold weights of this architecture",
            got=f"{len(taken)} of {len(own)} that fit",
            do="choose the architecture that the weights belong to",
        )
    model.load_state_dict(taken, strict=False)
    return [k for k in own if k not in taken]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a safetensors or torch file (read with ``weights_only=True``); raises ``InputError``."""
    path = Path(path)
    again = "save the network anew with torch.save(model.state_dict(), path)"
    if not os.path.isfile(path):
        raise expected("weights must be a file", got=path, do="correct the path")
    try:
        found = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # whatever the readers raise on foreign bytes
        pickled = "weights_only" in str(error).lower()
        got = "a pickled module or other objects" if pickled else f"an unreadable file ({type(error).__name__})"
        raise expected(f"{path} must hold a state dict", got=got, do=again) from error
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise expected(f"{path} must hold a state dict", got=type(found).__name__, do=again)
    if not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise expected(f"{path} must hold a state dict", got=f"a dictionary of ({some([*map(str, found)])})", do=again)
    return dict(found)


def read_about(path: str | Path) -> dict[str, Any]:
    """What ``save_weights`` was told about the network in this file; empty for the files of others."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            note = (file.metadata() or {}).get(NOTE)
        return dict(json.loads(note)) if note else {}
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise expected("weights must be a safetensors file", got=path, do="correct the path") from error


def some(names: Sequence[str], at_most: int = 4) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TorchScript archive")
        return torch.load(path, map_location="cpu", weights_only=True)


def _fitting(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the prefix that makes most names agree with the network's."""
    own = model.state_dict().keys()
    tries = [{k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in PREFIXES]
    return max(tries, key=lambda t: len(own & t.keys()))  # the first of equals: no prefix
