"""The values that every other file speaks of: Outputs, Goal, Evidence.

N samples, K classes, C channels of a layer, S dropout draws. Rows are samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Box", "Evidence", "Goal", "Knowledge", "Outputs", "Rows", "Space", "per_sample"]

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
            which has the same probabilities, cross-entropy and decision.
        features: The pooled output (N, C) of each layer, by name, in network order; the last one is
            what "last layer" means.
        stochastic: The logits (N, S, K) of S dropout draws, if the classifier was asked for them.
        others: The logits (N, F) of the remaining findings of a multi-label network, if any.
        assumed: Classes (N,) that take the place of the predicted ones: an attacker who is not
            there yet asks a detector for the score that the image will have as the target class.
        reference_network: What a second network shows of the same images.
        statistics: Numbers (N, F) computed from the images alone.
        squeezed: The logits (N, Q, K) of Q coarser versions of the images.
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
    guards: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: Rows) -> "Outputs":
        return self._each(lambda v: v[rows])

    @property
    def predicted(self) -> Tensor:
        """The predicted class, (N,); a tie goes to the lower class."""
        return self.logits.argmax(1) if self.assumed is None else self.assumed

    @property
    def last(self) -> Tensor:
        """The features of the last layer, (N, C)."""
        return next(reversed(list(self.features.values())))

    def detach(self) -> "Outputs":
        return self._each(Tensor.detach)

    def to(self, target: torch.device | torch.dtype | str) -> "Outputs":
        """On another device, or in another floating type (class indices keep theirs)."""
        return self._each(
            lambda v: (
                v
                if isinstance(target, torch.dtype) and not v.is_floating_point()
                else v.to(target)
            )
        )

    def _each(self, change) -> "Outputs":  # type: ignore[no-untyped-def]
        return Outputs(
            change(self.logits),
            {name: change(v) for name, v in self.features.items()},
            None if self.stochastic is None else change(self.stochastic),
            None if self.others is None else change(self.others),
            None if self.assumed is None else change(self.assumed),
            None
            if self.reference_network is None
            else self.reference_network._each(change),
            None if self.statistics is None else change(self.statistics),
            None if self.squeezed is None else change(self.squeezed),
            None
            if self.guards is None
            else {name: change(v) for name, v in self.guards.items()},
        )

    @staticmethod
    def cat(parts: "Sequence[Outputs]") -> "Outputs":
        """The rows of all parts, one below the other."""
        first = parts[0]
        return Outputs(
            torch.cat([p.logits for p in parts]),
            {name: torch.cat([p.features[name] for p in parts]) for name in first.features},
            None
            if first.stochastic is None
            else torch.cat([p.stochastic for p in parts if p.stochastic is not None]),
            None
            if first.others is None
            else torch.cat([p.others for p in parts if p.others is not None]),
            None
            if first.assumed is None
            else torch.cat([p.assumed for p in parts if p.assumed is not None]),
            None
            if first.reference_network is None
            else Outputs.cat(
                [p.reference_network for p in parts if p.reference_network is not None]
            ),
            None
            if first.statistics is None
            else torch.cat([p.statistics for p in parts if p.statistics is not None]),
            None
            if first.squeezed is None
            else torch.cat([p.squeezed for p in parts if p.squeezed is not None]),
            None
            if first.guards is None
            else {
                name: torch.cat([p.guards[name] for p in parts if p.guards is not None])
                for name in first.guards
            },
        )


@dataclass(frozen=True)
class Goal:
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


def per_sample(value: Tensor | float, like: Tensor) -> Tensor:
    """``value``, a number or one per sample (N,), shaped to broadcast against ``like`` (N,
    ...).
    """
    v = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return v if v.ndim == 0 else v.reshape(-1, *[1] * (like.ndim - 1))
