"""Batches of one split for training: read, normalised, changed, in a seeded order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from feathide.data.cases import Cases
from feathide.training.augmentation import Augment
from feathide.types import Box

__all__ = [
    "Images",
    "changer",
    "loader",
    "measure",
    "normaliser",
    "reader",
    "sampling_weights",
    "windowed",
]

Read = Callable[[np.ndarray], Tensor]  # positions in a split (n,) -> images (n, C, *S)
Change = Callable[[Tensor], Tensor]

HELD = 4 * 2**30  # bytes: a split up to this size is read once and held in memory


def reader(cases: Cases, rows: np.ndarray) -> Read:
    """The images at positions of ``rows``, (n, C, *S): read once and held where they fit, else
    read when asked for.
    """
    if 4 * len(rows) * cases.channels * int(np.prod(cases.shape)) > HELD:
        return lambda at: torch.from_numpy(cases.images(rows[at]))
    held = torch.from_numpy(cases.images(rows))
    return lambda at: held[torch.from_numpy(at)]


def windowed(read: Read, window: Box | None) -> Read:
    """The images with the part ``window`` of the box shown as [0, 1] and cut there; as they are
    without one.
    """
    if window is None:
        return read
    low, high = window
    return lambda at: (read(at).clamp(low, high) - low) / (high - low)


def measure(read: Read, n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over ``n`` images, in float64, a few images at
    a time.

    The variance is summed about the first image's mean, so that a large offset costs no digits.
    """
    shift = read(np.arange(1)).double().flatten(2).mean((0, 2))  # (C,)
    total, squares, count = torch.zeros_like(shift), torch.zeros_like(shift), 0
    for part in np.array_split(np.arange(n), -(-n // 32)):
        x = read(part).double().flatten(2) - shift[:, None]  # (n, C, P)
        total, squares, count = (
            total + x.sum((0, 2)),
            squares + x.square().sum((0, 2)),
            count + len(x) * x.shape[2],
        )
    std = (squares / count - (total / count) ** 2).clamp(min=0).sqrt()
    return tuple((shift + total / count).tolist()), tuple(
        torch.where(std > 0, std, 1.0).tolist()
    )


def normaliser(mean: tuple[float, ...], std: tuple[float, ...]) -> Change:
    """``(x - mean) / std`` per channel, for any number of axes."""
    m, s = torch.tensor(mean), torch.tensor(std)
    return lambda x: (
        (x - m.reshape(-1, *[1] * (x.ndim - 2))) / s.reshape(-1, *[1] * (x.ndim - 2))
    )


def changer(augment: Augment | None, seed: int) -> Change | None:
    """The augmentation with its own stream of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return None if augment is None else lambda x: augment(x, generator)


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Normalised batches of one split, as ``change`` leaves them: index with a list of
    positions.
    """

    def __init__(
        self,
        read: Read,
        labels: np.ndarray,
        normalise: Change,
        change: Change | None = None,
    ) -> None:
        self.read, self.labels = read, torch.from_numpy(labels)
        self.normalise, self.change = normalise, change

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        x = self.normalise(self.read(np.asarray(positions)))
        return (self.change(x) if self.change else x), self.labels[positions]


def sampling_weights(labels: np.ndarray) -> Tensor:
    """How often each image (N,) of the classes ``labels`` is drawn, such that all classes are
    drawn as often.
    """
    y = torch.from_numpy(labels)
    return 1 / torch.bincount(y).double()[y]


def loader(
    images: Images,
    batch_size: int,
    shuffle_seed: int | None,
    *,
    weights: Tensor | None = None,
) -> DataLoader[Any]:
    """Batches in order, or shuffled by a seed anew in every epoch, or, with ``weights`` (N,),
    drawn with replacement.

    A shuffled last batch of fewer images is left out: of a single image batch normalisation
    cannot measure anything."""
    if shuffle_seed is None:
        order: Any = SequentialSampler(images)
    else:
        stream = torch.Generator().manual_seed(shuffle_seed)
        order = (
            RandomSampler(images, generator=stream)
            if weights is None
            else WeightedRandomSampler(weights.tolist(), len(images), generator=stream)
        )
    size = min(batch_size, len(images))
    return DataLoader(
        images,
        sampler=BatchSampler(order, size, drop_last=shuffle_seed is not None),
        batch_size=None,
    )
