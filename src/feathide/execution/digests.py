"""Digests: names of values, by which results are stored and found again."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from torch import Tensor, uint8

__all__ = ["FORMAT", "digest", "dumped", "fields_of"]

FORMAT = 3  # raise when the meaning of a stored file changes


def digest(value: object) -> str:
    """Sixteen hexadecimal digits that name ``value``: equal in every process, different when
    anything in it differs.

    Takes None, bool, int, float, str, bytes, paths, lists and tuples (which are the same), sets,
    mappings, dataclasses and pydantic models (by class name and fields, but those named in
    ``UNDIGESTED``), arrays and tensors (by type, shape and content; arrays of strings by their
    strings). Raises ``TypeError`` for anything else, because a default ``repr`` would hold an
    address."""
    return hashlib.sha256(dumped(_canonical(value)).encode()).hexdigest()[:16]


def fields_of(value: object) -> dict[str, object]:
    """What of a dataclass, a pydantic model or a mapping decides its digest, by name; {} for any
    other value.
    """
    if isinstance(value, BaseModel):
        apart = getattr(value, "UNDIGESTED", ())
        return {name: v for name, v in value if name not in apart}
    if isinstance(value, Mapping):
        return {str(name): v for name, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {}


def _canonical(value: object) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value.item() if isinstance(value, np.generic) else value
        case np.generic():
            return _canonical(value.item())
        case bytes():
            return {"bytes": value.hex()}
        case Path():
            return {"path": value.as_posix()}
        case Mapping():
            return {
                "map": sorted(
                    ([_canonical(k), _canonical(v)] for k, v in value.items()), key=dumped
                )
            }
        case list() | tuple():
            return [_canonical(v) for v in value]
        case set() | frozenset():
            return {"set": sorted((_canonical(v) for v in value), key=dumped)}
        case BaseModel():
            parts = fields_of(value)
            return {type(value).__name__: {n: _canonical(v) for n, v in parts.items()}}
        case np.ndarray() if value.dtype.kind in "US":
            return {"array": ["str", list(value.shape), _canonical(value.tolist())]}
        case np.ndarray() if value.dtype.kind in "biufc":
            little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
            return {
                "array": [
                    little.dtype.str,
                    list(value.shape),
                    hashlib.sha256(little.tobytes()).hexdigest(),
                ]
            }
        case Tensor():
            raw = (
                value.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().tobytes()
            )
            return {
                "tensor": [
                    str(value.dtype),
                    list(value.shape),
                    hashlib.sha256(raw).hexdigest(),
                ]
            }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = fields_of(value)
        return {type(value).__name__: {n: _canonical(v) for n, v in parts.items()}}
    raise TypeError(
        "a value that has a digest is made of plain values, arrays and dataclasses, got "
        f"{type(value).__name__}"
    )


def dumped(value: object) -> str:
    """``value`` as JSON, equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
