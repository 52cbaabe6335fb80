"""From what other libraries speak of, images and labels, to what our attacks ask for: goals and
names of images.
"""

from hashlib import sha256

import torch
from torch import Tensor

from feathide.types import Goal

__all__ = ["goal_of", "image_ids"]


def image_ids(x: Tensor) -> tuple[str, ...]:
    """A name for each image, made of its values: the same image draws the same random numbers in
    whatever batch.
    """
    return tuple(
        sha256(image.numpy().tobytes()).hexdigest()[:16]
        for image in x.detach().cpu().contiguous()
    )


def goal_of(logits: Tensor, labels: Tensor, *, targeted: bool) -> Goal:
    """The goal of an attack that is told one label per image: the target's, or else the true one.

    The class that is not told, the source of a targeted attack or the target of an untargeted
    one, is the likeliest other class in the clean ``logits`` (N, K). A targeted attack on an
    image that is already taken for the target thus still has a goal."""
    labels = labels.to(logits.device).long()
    other = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
    return Goal(other, labels) if targeted else Goal(labels, other)
