"""Supervised detectors: a support-vector machine on the last layer, small networks on every
layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from feathide.detectors.base import (
    Detector,
    Layers,
    features,
    fitted,
    layer_names,
    spread,
    trials,
)
from feathide.detectors.distance import in_chunks, squared
from feathide.detectors.head import standardise
from feathide.types import Evidence, Outputs

__all__ = ["LayerNetworks", "Machine", "Search", "SupportVectors"]


@dataclass(frozen=True)
class Machine:
    """A fitted support-vector machine: vectors (V, C) of standardised columns, coefficients
    (V,).
    """

    centre: Tensor
    scale: Tensor
    vectors: Tensor
    coefficients: Tensor
    bias: float
    gamma: float

    def __call__(self, x: Tensor) -> Tensor:
        z = (x - self.centre.to(x)) / self.scale.to(x)
        vectors, coefficients = self.vectors.to(x), self.coefficients.to(x)
        return in_chunks(
            lambda part: (
                torch.exp(-self.gamma * squared(part, vectors)) @ coefficients + self.bias
            ),
            z,
            len(vectors),
        )

    @staticmethod
    def fit(parts: Sequence[Tensor], search: "Search") -> "Machine":
        """From the negatives (2n, C), n images clean and then noisy, and the positives (n, C)."""
        x = torch.cat([part.double() for part in parts])
        centre, scale = standardise(x)
        images = len(parts[1])
        z, y, image = (
            ((x - centre) / scale).cpu().numpy(),
            np.repeat([0, 0, 1], images),
            np.tile(np.arange(images), 3),
        )
        some = np.isin(
            image, np.random.default_rng(search.seed).permutation(images)[: search.most]
        )
        grid = {"C": search.costs, "gamma": [w / z.shape[1] for w in search.widths]}
        # nothing from the global generator
        machine = SVC(kernel="rbf", class_weight="balanced", random_state=0)
        tried = GridSearchCV(
            machine, grid, scoring="roc_auc", cv=GroupKFold(3), refit=False
        )
        best = tried.fit(z[some], y[some], groups=image[some]).best_params_
        machine.set_params(**best).fit(z, y)
        vectors, coefficients = (
            torch.as_tensor(v).to(centre)
            for v in (machine.support_vectors_, machine.dual_coef_[0])
        )
        return Machine(
            centre,
            scale,
            vectors,
            coefficients,
            float(machine.intercept_[0]),
            best["gamma"],
        )


@dataclass(frozen=True)
class Search:
    """What a support-vector machine is chosen from: costs C and widths, gamma = width / columns;
    the ones with the best AUC in three-fold cross-validation over at most ``most`` images, drawn
    with ``seed``, all rows of an image in one fold.
    """

    costs: tuple[float, ...] = (1.0, 10.0, 100.0)
    widths: tuple[float, ...] = (0.3, 1.0, 3.0)
    most: int = 500
    seed: int = 0


@dataclass(frozen=True)
class SupportVectors(Detector):
    """SVM: the decision value of an RBF support-vector machine on the standardised features of
    the last layer.

    score = sum_v a_v exp(-gamma || z - z_v ||^2) + b, with the exact gradient. Adversarial
    against clean and noisy, classes balanced. The cost C and gamma = width / channels are those
    of ``costs`` and ``widths`` with the best AUC in three-fold cross-validation over at most
    ``search`` of the detector-training images, drawn with ``seed``, all rows of an image in one
    fold."""

    name: str = "svm"
    layer: str = "last"
    costs: tuple[float, ...] = (1.0, 10.0, 100.0)
    widths: tuple[float, ...] = (0.3, 1.0, 3.0)
    search: int = 500
    seed: int = 0
    machine_: tuple[str, Machine] | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "SupportVectors":
        name = layer_names(evidence.clean, self.layer)[0]
        parts = [features(part, [name])[0] for part in trials(evidence, least=3)]
        spread(torch.cat(parts), name)
        machine = Machine.fit(
            parts, Search(self.costs, self.widths, self.search, self.seed)
        )
        return replace(self, machine_=(name, machine))

    def score(self, out: Outputs) -> Tensor:
        name, machine = fitted(self.machine_, self)
        return machine(features(out, [name])[0])


def perceptron(z: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """relu(z inner + shift) outer + bias, (N,), from ``weights`` inner (C, H), shift (H,), outer
    (H,), bias ().
    """
    inner, shift, outer, bias = weights
    return (z @ inner + shift).relu() @ outer + bias


@dataclass(frozen=True)
class Network:
    """The fitted network of one layer: the log-odds of being adversarial, (N,), from features (N,
    C).
    """

    centre: Tensor
    scale: Tensor
    weights: tuple[Tensor, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return perceptron(
            (x - self.centre.to(x)) / self.scale.to(x), [w.to(x) for w in self.weights]
        )


@dataclass(frozen=True)
class LayerNetworks(Detector):
    """DNN (after Metzen et al. 2017): a network with one hidden layer on each layer's features,
    probabilities averaged.

    score = log(p / (1 - p)), p the mean over layers of the probability of being adversarial: the
    order of p without its ties near 0 and 1. Each network learns adversarial against clean and
    noisy (balanced) from standardised features by Adam, and keeps the weights with the lowest
    loss on a fifth of the images (all rows of an image together); it stops after ``patience``
    epochs that lower this loss by less than 0.001."""

    name: str = "dnn"
    layers: Layers = "all"
    hidden: int = 64
    epochs: int = 100
    patience: int = 5
    step_size: float = 1e-3
    seed: int = 0
    networks_: dict[str, Network] | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "LayerNetworks":
        parts = trials(evidence, least=5)
        names = layer_names(evidence.clean, self.layers)
        pairs = zip(names, *(features(part, names) for part in parts), strict=True)
        return replace(
            self,
            networks_={name: self._train(torch.cat([n, p]), name) for name, n, p in pairs},
        )

    def score(self, out: Outputs) -> Tensor:
        networks = fitted(self.networks_, self)
        pairs = zip(features(out, list(networks)), networks.values(), strict=True)
        odds = torch.stack([network(x) for x, network in pairs], 1)  # (N, L)
        return logsigmoid(odds).logsumexp(1) - logsigmoid(-odds).logsumexp(1)

    def _train(self, x: Tensor, name: str) -> Network:
        """``x`` (3 n, C): the features of one layer, of n images clean, noisy and adversarial."""
        spread(x, name)
        random = torch.Generator().manual_seed(self.seed)
        images = len(x) // 3
        shuffled = torch.randperm(images, generator=random)
        held, rest = (
            (torch.arange(3)[:, None] * images + part).flatten()
            for part in shuffled.tensor_split([images // 5])
        )
        centre, scale = standardise(x[rest].double())
        z, y = (
            ((x - centre) / scale).float(),
            (torch.arange(len(x)) >= 2 * images).float().to(x.device),
        )
        inner = (
            torch.randn(x.shape[1], self.hidden, generator=random) * (2 / x.shape[1]) ** 0.5
        )
        outer = torch.randn(self.hidden, generator=random) / self.hidden**0.5
        weights = [
            w.to(z).requires_grad_()
            for w in (inner, torch.zeros(self.hidden), outer, torch.zeros(()))
        ]
        optimiser = torch.optim.Adam(weights, self.step_size)
        lowest, waited, best = torch.inf, 0, weights
        for _ in range(self.epochs):
            for rows in rest[torch.randperm(len(rest), generator=random)].split(128):
                gradients = torch.autograd.grad(
                    balanced_loss(perceptron(z[rows], weights), y[rows]), weights
                )
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.grad = gradient
                optimiser.step()
            loss = balanced_loss(perceptron(z[held], weights), y[held]).item()
            waited = 0 if loss < lowest - 1e-3 else waited + 1
            if loss < lowest:
                lowest, best = loss, [w.detach().clone() for w in weights]
            if waited >= self.patience:
                break
        return Network(centre, scale, tuple(w.detach().double() for w in best))


def balanced_loss(odds: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in which the one positive of an image weighs as much as its two negatives."""
    return binary_cross_entropy_with_logits(odds, y, pos_weight=y.new_tensor(2.0))
