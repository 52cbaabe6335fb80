"""The values that every other file speaks of: Outputs, Goal, Evidence.

N samples, K classes, C channels of a layer, S dropout draws. Rows are samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.errors import expected

__all__ = [
    "Aim",
    "Box",
    "Evidence",
    "Goal",
    "Knowledge",
    "LabelAim",
    "Outputs",
    "Rows",
    "Space",
    "per_sample",
    "tensors",
]

Box = tuple[float, float]
Rows = Tensor | slice
Space = Literal["features", "logits", "image"]
Knowledge = Literal["none", "oblivious", "feature-aware", "detector-aware", "transfer"]

ALL: Rows = slice(None)


@dataclass(frozen=True)
class Outputs:
    """What one forward pass of a classifier shows; row i of every field is image i.

    Args:
        logits: The logits (N, K), K >= 2. A network with one sigmoid output z is shown as (0, z),
            which has the same probabilities, cross-entropy and decision. Of a dense network: the
            logits (N, K, *S) of every voxel, or the heat maps (N, P, *S) or coordinates (N, P, D)
            of P landmarks.
        features: The pooled output (N, C) of each layer, by name, in network order; the last one is
            what "last layer" means. ``layer@region`` is pooled over a region of a dense network's
            prediction; its rows are NaN where an image lacks the region.
        stochastic: The logits (N, S, K) of S dropout draws, if the classifier was asked for them.
        others: The logits (N, F) of the remaining findings of a multi-label network, if any.
        assumed: Classes (N,) that take the place of the predicted ones: an attacker who is not
            there yet asks a detector for the score that the image will have as the target class.
        reference_network: What a second network shows of the same images.
        statistics: Numbers (N, F) computed from the images alone.
        squeezed: The logits (N, Q, K) of Q coarser versions of the images.
        uncertainty: The log variance (N, 1 + R) of a dense network's dropout draws, averaged over
            the voxels of the whole image and of each of R regions.
        guards: The score (N,) that each guard as shipped gives the images, by its name.

    Examples:
        >>> out = Outputs(torch.tensor([[0.0, 2.0]]), {"last": torch.zeros(1, 8)})
        >>> out.predicted
        tensor([1])
    """

    logits: Tensor
    features: Mapping[str, Tensor]
    stochastic: Tensor | None = None
    others: Tensor | None = None
    assumed: Tensor | None = None
    reference_network: "Outputs | None" = None
    statistics: Tensor | None = None
    squeezed: Tensor | None = None
    uncertainty: Tensor | None = None
    guards: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: Rows) -> "Outputs":
        return self._each(lambda v: v[rows])

    @property
    def dense(self) -> bool:
        """Whether the network says something of every voxel, or of landmarks."""
        return self.logits.ndim > 2

    @property
    def predicted(self) -> Tensor:
        """The predicted class (N,), or the label of every voxel (N, *S); a tie goes to the lower
        class.
        """
        return self.logits.argmax(1) if self.assumed is None else self.assumed

    @property
    def normal_class(self) -> Tensor:
        """The class (N,) of which an image is normal or not: the predicted one; of a dense network
        0, as all its images are of one kind.
        """
        if self.dense and self.assumed is None:
            return torch.zeros(len(self), dtype=torch.long, device=self.logits.device)
        return self.predicted

    @property
    def classes(self) -> int:
        """How many classes an image can be of: K; 1 for a dense network."""
        return 1 if self.dense else self.logits.shape[1]

    @property
    def last(self) -> Tensor:
        """The features of the last layer, (N, C)."""
        return next(reversed(list(self.features.values())))

    def detach(self) -> "Outputs":
        return self._each(Tensor.detach)

    def to(self, target: torch.device | torch.dtype | str) -> "Outputs":
        """On another device, or in another floating type (class indices keep theirs)."""

        def move(v: Tensor) -> Tensor:
            keeps = isinstance(target, torch.dtype) and not v.is_floating_point()
            return v if keeps else v.to(target)

        return self._each(move)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        return tensors(self, change)

    @staticmethod
    def cat(parts: "Sequence[Outputs]") -> "Outputs":
        """The rows of all parts, one below the other."""
        return _joined(parts)


def tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``change`` made to every tensor in it, in dataclasses, mappings and tuples."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: tensors(v, change) for name, v in value.items()}
    if isinstance(value, tuple):
        return tuple(tensors(v, change) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: tensors(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **changed)
    return value


def _joined(parts: Sequence[Any]) -> Any:
    """The tensors of all parts, one below the other; of what only some of them have, those."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([p for p in parts if p is not None])
    if isinstance(first, Mapping):
        return {name: _joined([p[name] for p in parts]) for name in first}
    if first is None:
        return None
    there = [p for p in parts if p is not None]
    return replace(
        first,
        **{f.name: _joined([getattr(p, f.name) for p in there]) for f in fields(first)},
    )


class Aim(ABC):
    """What the attacker wants of a batch of images, and when they have it; rows are images."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, rows: Rows) -> Self: ...

    @abstractmethod
    def to(self, device: torch.device) -> Self: ...

    @property
    @abstractmethod
    def normal_class(self) -> Tensor:
        """The class (N,) among whose clean images an attacked one must not stand out."""

    @property
    @abstractmethod
    def clean_class(self) -> Tensor:
        """The class (N,) of the clean images."""

    @property
    @abstractmethod
    def in_logits(self) -> bool:
        """Whether the outputs that it is measured in are logits, which have a unit."""

    @abstractmethod
    def assumed(self, rows: Rows) -> Tensor | None:
        """What a detector is to take the images for before they have changed sides, if anything."""

    @abstractmethod
    def check(self, x: Tensor, ids: Sequence[str]) -> None:
        """Refuse images that the goal does not fit."""

    @abstractmethod
    def check_outputs(self, out: Outputs) -> None:
        """Refuse a network that the goal does not fit."""

    @abstractmethod
    def margin(self, out: Outputs, rows: Rows) -> Tensor:
        """(N,), positive once the attacker has it."""

    @abstractmethod
    def rank(self, fool: Tensor, margin: Tensor) -> Tensor:
        """What is compared (N,), lower is better, between iterates that have not got there."""


class LabelAim(Aim):
    """A goal for labels: one an image (N,), or one a voxel (N, *S)."""

    @abstractmethod
    def towards(self, z: Tensor, rows: Rows) -> Tensor:
        """The cross-entropy of the logits z to what is wanted, one a label."""

    @abstractmethod
    def lead(self, z: Tensor, rows: Rows) -> Tensor:
        """The lead of what is wanted in the logits z, one a label."""

    @abstractmethod
    def mean(self, values: Tensor, rows: Rows) -> Tensor:
        """One number an image (N,) of ``values``, one a label."""


@dataclass(frozen=True)
class Goal(LabelAim):
    """What the attacker wants: images of class ``source`` taken for class ``target``.

    Args:
        source: The true classes (N,), int64 in 0..K-1.
        target: The wanted classes (N,), different from ``source``.

    Examples:
        >>> Goal(torch.tensor([0, 1]), torch.tensor([1, 0])).target
        tensor([1, 0])
    """

    source: Tensor
    target: Tensor

    def __getitem__(self, rows: Rows) -> "Goal":
        return Goal(self.source[rows], self.target[rows])

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device) -> "Goal":
        return Goal(self.source.to(device), self.target.to(device))

    @property
    def normal_class(self) -> Tensor:
        return self.target

    @property
    def clean_class(self) -> Tensor:
        return self.source

    @property
    def in_logits(self) -> bool:
        return True

    def assumed(self, rows: Rows) -> Tensor:
        return self.target[rows]

    def check(self, x: Tensor, ids: Sequence[str]) -> None:
        same = self.source == self.target.to(self.source.device)
        if bool(same.any()):
            first = int(same.nonzero().flatten()[0])
            raise expected(
                "targets must differ from the sources",
                got=f"equal ones for {ids[first]!r}",
                do="choose another class as the target",
            )

    def check_outputs(self, out: Outputs) -> None:
        if out.dense:
            raise expected(
                "a goal of classes needs a network with one answer an image, logits (N, K)",
                got=f"outputs of shape {tuple(out.logits.shape)}",
                do="say what is to change: feathide.goals has Erase, Grow, MoveLandmark, ...",
            )
        classes = out.logits.shape[1]
        both = torch.cat([self.source, self.target])
        if int(both.amin()) < 0 or int(both.amax()) >= classes:
            raise expected(
                f"sources and targets must be classes 0 to {classes - 1}",
                got=f"{int(both.amin())} to {int(both.amax())}",
                do="number them as the network's outputs",
            )

    def towards(self, z: Tensor, rows: Rows) -> Tensor:
        return F.cross_entropy(z, self.target[rows], reduction="none")

    def lead(self, z: Tensor, rows: Rows) -> Tensor:
        return label_lead(z, self.target[rows])

    def mean(self, values: Tensor, rows: Rows) -> Tensor:
        return values

    def margin(self, out: Outputs, rows: Rows) -> Tensor:
        return self.lead(out.logits, rows)

    def rank(self, fool: Tensor, margin: Tensor) -> Tensor:
        return fool


@dataclass(frozen=True)
class Evidence:
    """What a detector may learn from.

    Row i of ``clean``, ``noisy`` and ``adversarial`` is the same image of the detector-training
    split.

    Args:
        train: Outputs of the classifier's clean training images.
        train_labels: Their classes (N,), int64.
        clean: Outputs of the held-out images as they are.
        noisy: Outputs of the same images with random noise of the attack's budget.
        adversarial: Outputs of the same images, attacked by a conventional attack.
    """

    train: Outputs
    train_labels: Tensor
    clean: Outputs
    noisy: Outputs
    adversarial: Outputs


def label_lead(z: Tensor, labels: Tensor) -> Tensor:
    """z_t - max_{j != t} z_j: the lead (N, *S) of the labels (N, *S) in the logits (N, K, *S)."""
    t = labels.unsqueeze(1)
    others = z.scatter(1, t, float("-inf")).amax(1)
    return z.gather(1, t).squeeze(1) - others


def per_sample(value: Tensor | float, like: Tensor) -> Tensor:
    """``value``, a number or one per sample (N,), shaped to broadcast against ``like`` (N,
    ...).
    """
    v = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return v if v.ndim == 0 else v.reshape(-1, *[1] * (like.ndim - 1))
