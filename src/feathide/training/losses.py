"""The losses of training and validation: cross-entropies in which classes weigh the same, or
images.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.training.judging import Head

__all__ = [
    "Balance",
]

Balance = Literal["weights", "sampling", "none"]


def losses_of(
    labels: np.ndarray, k: int, head: Head, balance: "Balance"
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """The losses of the training and of the validation images."""
    # drawn as often, all classes weigh the same without weights
    loss = balanced_loss(labels, k, head) if balance == "weights" else plain_loss(head)
    # the validation images are not drawn
    return loss, balanced_loss(labels, k, head) if balance == "sampling" else loss


def balanced_loss(
    labels: np.ndarray, k: int, head: Head
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy in which all classes, or both values of a finding, weigh the same, however
    rare.
    """
    y = torch.from_numpy(labels)
    if head == "softmax":
        weight = len(y) / (k * torch.bincount(y, minlength=k).float())  # (K,)
        return lambda z, t: F.cross_entropy(z.float(), t, weight.to(z.device))
    share = y.reshape(len(y), -1).float().mean(0)  # (F,) of positives

    def loss(z: Tensor, t: Tensor) -> Tensor:
        truth = t.reshape(len(t), -1).float()
        p = share.to(z.device)
        weight = truth / (2 * p) + (1 - truth) / (2 * (1 - p))
        return F.binary_cross_entropy_with_logits(
            z.float().reshape(truth.shape), truth, weight
        )

    return loss


def plain_loss(head: Head) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy in which all images weigh the same."""
    if head == "softmax":
        return lambda z, t: F.cross_entropy(z.float(), t)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        truth = t.reshape(len(t), -1).float()
        return F.binary_cross_entropy_with_logits(z.float().reshape(truth.shape), truth)

    return loss
