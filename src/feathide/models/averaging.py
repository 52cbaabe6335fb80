"""Outputs of several draws of something random, averaged; and draws that are the same again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from feathide.types import Outputs

__all__ = ["averaged", "seeded"]

T = TypeVar("T")


def averaged(parts: Sequence[Outputs]) -> Outputs:
    """The logarithm of the mean probabilities over draws, as logits, and the mean of the rest.

        z = log (1 / D) sum_d softmax(z_d)

    The gradient of a loss of z is an expectation over the draws (EOT, Athalye et al. 2018). One
    draw stays as it is."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    spread = torch.stack([p.logits.log_softmax(1) for p in parts])
    logits = spread.logsumexp(0) - torch.log(torch.tensor(float(len(parts))))
    features = {
        name: torch.stack([p.features[name] for p in parts]).mean(0)
        for name in first.features
    }
    return replace(
        first,
        logits=logits.to(first.logits.dtype),
        features=features,
        stochastic=_mean([p.stochastic for p in parts]),
        others=_mean([p.others for p in parts]),
    )


def _mean(values: Sequence[Tensor | None]) -> Tensor | None:
    known = [v for v in values if v is not None]
    return torch.stack(known).mean(0) if known else None


@contextmanager
def seeded(
    seed: int, draw: int, device: torch.device
) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Gives a function that does some work with torch's random numbers of this seed and draw;
    the caller's random state comes back in the end.
    """
    devices = [device] if device.type == "cuda" else []

    def again(work: Callable[[], T]) -> T:
        torch.manual_seed(seed * 1_000_003 + draw)
        return work()

    with torch.random.fork_rng(devices=devices):
        yield again
