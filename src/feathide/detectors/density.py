"""How thinly the training features of the predicted class lie around a sample: kernel density,
neighbours, mixtures.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from feathide.detectors.base import (
    Detector,
    Layered,
    Layers,
    class_features,
    features,
    fitted,
    layer_names,
    per_class,
    spread,
)
from feathide.detectors.distance import in_chunks, log_of, nearest, squared
from feathide.errors import expected
from feathide.mixtures import Covariance, MixtureBank
from feathide.types import Evidence, Outputs

__all__ = ["KernelDensity", "MixtureEnergy", "NearestNeighbours"]


def log_kernel(distances: Tensor, channels: int, bandwidth: float) -> Tensor:
    """Log of the Gaussian kernel density (N,) from squared distances (N, R) to R references of C
    = ``channels``.
    """
    constant = math.log(distances.shape[1]) + channels / 2 * math.log(
        2 * math.pi * bandwidth**2
    )
    return torch.logsumexp(distances / (-2 * bandwidth**2), 1) - constant


@dataclass(frozen=True)
class ClassKernels:
    """The Gaussian kernel density of one layer for each class: ``references`` per class (N_c, C),
    one bandwidth.
    """

    references: tuple[Tensor, ...]
    bandwidth: float

    def log_density(self, x: Tensor, classes: Tensor) -> Tensor:
        """log p(x | class), (N,), of ``x`` (N, C)."""

        def of_class(c: int, rows: Tensor) -> Tensor:
            reference = self.references[c].to(x)
            return in_chunks(
                lambda part: log_kernel(
                    squared(part, reference), x.shape[1], self.bandwidth
                ),
                x[rows],
                len(reference),
            )

        return per_class(classes, of_class)


def held_out_bandwidth(references: tuple[Tensor, ...], x: Tensor, classes: Tensor) -> float:
    """The bandwidth that makes ``x`` likeliest, of 40 from 0.001 to 1 times the r.m.s. distance
    to the class mean.
    """
    unit = (
        torch.cat([r - r.mean(0) for r in references]).square().sum(1).mean().sqrt().item()
    )
    grid = [unit * 10 ** (-3 + 3 * i / 39) for i in range(40)]
    total = torch.zeros(len(grid), dtype=torch.float64)
    for c in classes.unique():
        reference = references[int(c)]

        def likelihoods(part: Tensor, reference: Tensor = reference) -> Tensor:
            distances = squared(part, reference)
            # (n, 40)
            return torch.stack([log_kernel(distances, part.shape[1], h) for h in grid], 1)

        total += in_chunks(likelihoods, x[classes == c], len(reference)).sum(0).cpu()
    return grid[int(total.argmax())]


@dataclass(frozen=True)
class KernelDensity(Layered):
    """KD (Feinman et al. 2017): minus the log density among the training features of the
    predicted class.

    score = - sum_l log( 1 / N_c sum_i N(f_l; f_l(x_i), h_l^2 I) ), i over the training images of
    the predicted class c; the last layer by default. The bandwidth h_l, in the units of the
    features and the same for all classes, is ``bandwidth`` or the one that makes the evidence's
    clean images likeliest. Sums of logarithms: no underflow however far a sample lies."""

    name: str = "kd"
    layers: Layers = "last"
    bandwidth: float | None = None
    kernels_: dict[str, ClassKernels] | None = field(
        default=None, repr=False, compare=False
    )

    def fit(self, evidence: Evidence) -> "KernelDensity":
        clean = evidence.clean.detach()
        if not len(clean) and self.bandwidth is None:
            raise expected(
                "clean images must be given to choose the bandwidth",
                got="none",
                do="pass bandwidth=...",
            )
        kernels = {}
        for name in layer_names(evidence.train, self.layers):
            references = class_features(evidence, name)
            x = features(clean, [name])[0].to(references[0])
            kernels[name] = ClassKernels(
                references,
                self.bandwidth or held_out_bandwidth(references, x, clean.normal_class),
            )
        return replace(self, kernels_=kernels)

    def score(self, out: Outputs) -> Tensor:
        return self.columns(out).sum(1)

    def columns(self, out: Outputs) -> Tensor:
        """Minus the log density in each layer, (N, L)."""
        kernels = fitted(self.kernels_, self)
        x = features(out, list(kernels))
        scores = [
            -kernel.log_density(f, out.normal_class)
            for f, kernel in zip(x, kernels.values(), strict=True)
        ]
        return torch.stack(scores, 1)


@dataclass(frozen=True)
class NearestNeighbours(Detector):
    """kNN (Sun et al. 2022): the distance of a feature to its ``neighbours``-th nearest training
    feature.

    Features are scaled to unit length first, as in the paper, unless ``unit_length`` is False.
    All classes count. Duplicates among the training features count once, and a training image
    does not count itself."""

    name: str = "knn"
    neighbours: int = 10
    unit_length: bool = True
    layer: str = "last"
    reference_: tuple[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "NearestNeighbours":
        name = layer_names(evidence.train, self.layer)[0]
        x = features(evidence.train, [name])[0].detach().double()
        spread(x, name)
        reference = (normalize(x) if self.unit_length else x).unique(dim=0)
        if len(reference) <= self.neighbours:
            raise expected(
                (
                    f"more than {self.neighbours} different training features are needed in "
                    f"layer {name!r}"
                ),
                got=len(reference),
                do="pass a smaller neighbours=...",
            )
        return replace(self, reference_=(name, reference))

    def score(self, out: Outputs) -> Tensor:
        name, reference = fitted(self.reference_, self)
        x = features(out, [name])[0]
        return nearest(
            normalize(x) if self.unit_length else x, reference.to(x), self.neighbours
        )[:, -1]


@dataclass(frozen=True)
class MixtureEnergy(Layered):
    """The energy that HFC lowers, as a detector: sum_l E_l(x, c), c the predicted class (see
    ``MixtureBank``).

    All layers by default. ``components`` "auto": chosen by held-out likelihood for each layer and
    class."""

    name: str = "gmm"
    layers: Layers = "all"
    components: int | Literal["auto"] = 1
    covariance: Covariance = "full"
    seed: int = 0
    bank_: MixtureBank | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "MixtureEnergy":
        names = layer_names(evidence.train, self.layers)
        for name in names:
            class_features(evidence, name)  # the checks
        bank = MixtureBank.fit(
            evidence.train.detach(),
            evidence.train_labels,
            components=self.components,
            covariance=self.covariance,
            layers=names,
            seed=self.seed,
        )
        return replace(self, bank_=bank)

    def score(self, out: Outputs) -> Tensor:
        return self._energies(out).sum(1)

    def columns(self, out: Outputs) -> Tensor:
        """The logarithm of the energy of each layer, (N, L)."""
        return log_of(self._energies(out))

    def _energies(self, out: Outputs) -> Tensor:
        bank = fitted(self.bank_, self)
        features(out, bank.layers)
        return bank.energy(out, out.normal_class, layers=bank.layers)
