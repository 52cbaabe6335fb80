"""Noise that depends on the seed, the image and the draw alone: never on the batch."""

from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor

from feathide.types import Rows

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise:
    """Random numbers as a function of (seed, sample id, draw): the same for an image wherever it
    stands in whatever batch.

    ``scope`` sets apart the draws of one run from those of another, such as a restart.
    """

    seed: int
    ids: tuple[str, ...]
    scope: str = ""

    def __getitem__(self, rows: Rows) -> "Noise":
        ids = (
            self.ids[rows]
            if isinstance(rows, slice)
            else tuple(self.ids[i] for i in rows.tolist())
        )
        return replace(self, ids=ids)

    def within(self, scope: object) -> "Noise":
        """Other random numbers for the same images: those of run ``scope``."""
        return replace(self, scope=f"{self.scope}/{scope}")

    def uniform(self, shape: tuple[int, ...], *, draw: object) -> Tensor:
        """Uniform on [0, 1), (N, *shape), float32, on the CPU."""
        return self._rows(lambda g: torch.rand(shape, generator=g), draw)

    def normal(self, shape: tuple[int, ...], *, draw: object) -> Tensor:
        """Standard normal, (N, *shape), float32, on the CPU."""
        return self._rows(lambda g: torch.randn(shape, generator=g), draw)

    def _rows(self, make, draw: object) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.stack([make(self._generator(name, draw)) for name in self.ids])

    def _generator(self, name: str, draw: object) -> torch.Generator:
        key = sha256(f"{self.seed}{self.scope}|{name}|{draw}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
