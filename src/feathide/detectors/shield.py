"""Shield: do the logits agree with what shallow layers say they should be?"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from feathide.detectors.base import Detector, class_features, features, fitted, layer_names
from feathide.errors import expected
from feathide.types import Evidence, Outputs, Space

__all__ = ["Shield"]


@dataclass(frozen=True)
class Network:
    """A small network that predicts the logits of one class: relu(z inner + shift) outer + bias."""

    inner: Tensor
    shift: Tensor
    outer: Tensor
    # (K,), the spread of what it leaves unexplained in training images
    spread: Tensor

    def hidden(self, z: Tensor) -> Tensor:
        """The hidden layer with a column of ones, (N, H + 1)."""
        seen = (z @ self.inner.to(z) + self.shift.to(z)).relu()
        return torch.cat([seen, torch.ones_like(seen[:, :1])], 1)

    def apart(self, z: Tensor, logits: Tensor) -> Tensor:
        """How far the logits lie from the prediction, in units of the spread, (N,)."""
        left = (logits - self.hidden(z) @ self.outer.to(z)) / self.spread.to(z)
        return (left.square().mean(1) + 1e-12).sqrt()


@dataclass(frozen=True)
class Shield(Detector):
    """Shield of Medical Aegis (Yao et al., arXiv 2111.10969), after its summary: one small network
    for each class predicts the classifier's logits from its shallow layers.

        score = sqrt( mean_k ((z_k - g_c(shallow features)_k) / s_ck)^2 ),  c the predicted class,

    z the logits less their mean, s_ck the spread of z_k - g_c in training images of class c. An
    attack changes the logits through the deep layers, while the shallow ones hardly change: the
    two no longer agree. The summary leaves details open. Our choices: ``layers``, the first third
    of those that are watched; their channel means, standardised; g_c has one hidden layer of
    ``width`` units drawn at random, and its outer layer is a ridge regression on the clean
    training images of class c. No attacked image is needed to learn.

    Args:
        name: What tables call it.
        layers: "shallow", or what ``layer_names`` takes.
        width: The units of the hidden layer.
        ridge: The weight of the ridge, as a share of the number of images.
        seed: The seed of the hidden layers.
        networks_: What ``fit`` learnt; leave it out.
    """

    name: str = "shield"
    layers: Literal["shallow", "all", "last"] | tuple[str, ...] = "shallow"
    width: int = 64
    ridge: float = 0.01
    seed: int = 0
    networks_: tuple[tuple[str, ...], Tensor, Tensor, tuple[Network, ...]] | None = field(
        default=None, repr=False, compare=False
    )

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("features", "logits")

    def fit(self, evidence: Evidence) -> "Shield":
        names = self._names(evidence.train)
        for name in names:
            class_features(
                evidence, name
            )  # refuses constant layers and classes without images
        x = torch.cat(features(evidence.train, names), 1).detach().double()
        mean, std = x.mean(0), x.std(0, correction=0)
        std = std.where(std > 1e-12 * x.abs().amax(0), 1.0)
        logits, labels = (
            _centred(evidence.train.logits.detach().double()),
            evidence.train_labels.to(x.device),
        )
        rows = [labels == c for c in range(logits.shape[1])]
        z = (x - mean) / std
        networks = tuple(self._learn(z[r], logits[r], c) for c, r in enumerate(rows))
        return replace(self, networks_=(names, mean, std, networks))

    def score(self, out: Outputs) -> Tensor:
        names, mean, std, networks = fitted(self.networks_, self)
        if not bool(out.logits.detach().isfinite().all()):
            do = "check the images and weights"
            raise expected("logits must be finite", got="NaN or infinity", do=do)
        x = torch.cat(features(out, names), 1)
        z = (x - mean.to(x)) / std.to(x)
        logits = _centred(out.logits)
        each = torch.stack([network.apart(z, logits) for network in networks], 1)
        return each.gather(1, out.predicted[:, None])[:, 0]

    def _names(self, out: Outputs) -> tuple[str, ...]:
        if self.layers != "shallow":
            return layer_names(out, self.layers)
        every = layer_names(out, "all")
        return every[: math.ceil(len(every) / 3)]

    def _learn(self, z: Tensor, logits: Tensor, label: int) -> Network:
        """The network of one class, from its training images."""
        random = torch.Generator().manual_seed(self.seed * 1009 + label)
        channels = z.shape[1]
        inner = torch.randn(channels, self.width, generator=random, dtype=torch.float64)
        shift = torch.randn(self.width, generator=random, dtype=torch.float64)
        empty = Network(inner.to(z) / channels**0.5, shift.to(z), z.new_zeros(0), z[:0])
        hidden = empty.hidden(z)
        weight = self.ridge * len(z) * torch.eye(hidden.shape[1]).to(z)
        # the mean itself is not shrunk
        weight[-1, -1] = 1e-9 * len(z)
        outer = torch.linalg.solve(hidden.T @ hidden + weight, hidden.T @ logits)
        left = (logits - hidden @ outer).square().mean(0).sqrt()
        floor = 1e-6 * (1 + logits.abs().amax())
        return replace(empty, outer=outer, spread=left.clamp_min(floor))


def _centred(logits: Tensor) -> Tensor:
    """Logits less their mean: a shift of all changes no decision."""
    return logits - logits.mean(1, keepdim=True)
