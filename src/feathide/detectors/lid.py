"""LID: adversarial features lie where the training features look locally higher-dimensional (Ma et al. 2018)."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from feathide.detectors.base import Detector, Layers, features, fitted, layer_names
from feathide.detectors.distance import nearest
from feathide.detectors.head import Combine, Head
from feathide.errors import expected
from feathide.types import Evidence, Outputs

__all__ = ["LocalDimension", "local_dimension"]


def local_dimension(x: Tensor, reference: Tensor, k: int) -> Tensor:
    """Maximum-likelihood local intrinsic dimensionality -( (1/k) sum_i log(r_i / r_k) )^-1, (N,).

    r_1 <= ... <= r_k are the distances of ``x`` (N, C) to its k nearest among ``reference`` (R, C), itself not
    counted. Where all are equal the dimension is infinite; it is cut at one million.
    """
    log_r = nearest(x, reference, k).log()
    return 1 / (log_r[:, -1:] - log_r).mean(1).clamp_min(1e-6)


@dataclass(frozen=True)
class LocalDimension(Detector):
    """LID: the local intrinsic dimensionality of a sample's features in every layer, combined by a ``Head``.

    Distances go to a fixed reference, ``reference`` training images drawn with ``seed`` (None: all), of which
    duplicates count once: a score does not depend on the batch. ``combine="mean"`` is the one-class version that
    never sees an adversarial example.
    """

    name: str = "lid"
    neighbours: int = 20
    reference: int | None = 2000
    layers: Layers = "all"
    combine: Combine = "logistic"
    seed: int = 0
    learnt_: tuple[dict[str, Tensor], Head] | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "LocalDimension":
        names = layer_names(evidence.train, self.layers)
        drawn = torch.randperm(len(evidence.train), generator=torch.Generator().manual_seed(self.seed))[
            : self.reference
        ]
        references = {}
        for name, x in zip(names, features(evidence.train, names), strict=True):
            references[name] = x.detach()[drawn].double().unique(dim=0)
            if len(references[name]) <= self.neighbours:
                raise expected(
                    f"more than {self.neighbours} different reference features are needed in layer {name!r}",
                    got=len(references[name]),
                    do="pass a smaller neighbours=..., more training images, or leave the layer out of layers=...",
                )
        head = Head.fit(self.combine, lambda out: self._dimensions(references, out), evidence)
        return replace(self, learnt_=(references, head))

    def score(self, out: Outputs) -> Tensor:
        references, head = fitted(self.learnt_, self)
        return head(self._dimensions(references, out))

    def _dimensions(self, references: dict[str, Tensor], out: Outputs) -> Tensor:
        pairs = zip(features(out, list(references)), references.values(), strict=True)
        return torch.stack(
            [local_dimension(x, reference.to(x), self.neighbours) for x, reference in pairs], 1
        )  # (N, L)
