"""LID: adversarial features lie where the training features look locally higher-dimensional (Ma
et al. 2018).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from feathide.detectors.base import Detector, Layers, features, fitted, layer_names, trials
from feathide.detectors.distance import ITSELF, in_chunks
from feathide.detectors.head import Combine, Head, held_out_auc
from feathide.errors import expected
from feathide.types import Evidence, Outputs

__all__ = ["LocalDimension", "local_dimension"]

# tried on the detector-training split; on a tie the first, as published
NEIGHBOURS = (20, 10, 30, 40, 50, 60, 70, 80, 90)
SIZES = (100, 200)
SEARCH = 500  # images of the detector-training split that decide

References = dict[str, tuple[Tensor, ...]]  # of each layer, its draws (R, C)


def log_distances(x: Tensor, reference: Tensor, k: int) -> Tensor:
    """The logarithms of the distances of ``x`` (N, C) to its ``k`` nearest of ``reference`` (R,
    C), ascending, (N, k).

    There must be more than k references, all different. A sample that is itself a reference does
    not count itself. Each distance is taken from the differences, hence exact, and its gradient
    needs no memory but for the distances."""

    def rows(part: Tensor) -> Tensor:
        distance = torch.cdist(part, reference, compute_mode="donot_use_mm_for_euclid_dist")
        found = distance.topk(k + 1, largest=False, sorted=True).values
        itself = (found[:, :1] <= ITSELF * found[:, 1:2]).detach()
        return (
            torch.where(itself, found[:, 1:], found[:, :-1])
            .clamp_min(torch.finfo(x.dtype).tiny)
            .log()
        )

    return in_chunks(rows, x, len(reference))


def dimension(log_r: Tensor, k: int) -> Tensor:
    """Local dimensionality (N,) from ascending logarithms of distances (N, >= k)."""
    return 1 / (log_r[:, k - 1 : k] - log_r[:, :k]).mean(1).clamp_min(1e-6)


def local_dimension(x: Tensor, reference: Tensor, k: int) -> Tensor:
    """Maximum-likelihood local intrinsic dimensionality -( (1/k) sum_i log(r_i / r_k) )^-1, (N,).

    r_1 <= ... <= r_k are the distances of ``x`` (N, C) to its k nearest among ``reference`` (R,
    C), itself not counted. Where all are equal the dimension is infinite; it is cut at one
    million."""
    return dimension(log_distances(x, reference, k), k)


@dataclass(frozen=True)
class Fitted:
    """The references that were drawn, the number of neighbours, and the weights of the layers."""

    references: References
    neighbours: int
    head: Head


@dataclass(frozen=True)
class LocalDimension(Detector):
    """LID: the local intrinsic dimensionality of a sample's features in every layer, combined by
    a ``Head``.

    It is measured in references as small as the mini-batches of Ma et al., and averaged over
    ``draws`` of them: the training images of each are drawn with ``seed`` at the fit and kept,
    duplicates counting once, so that a score does not depend on the batch. The number of
    ``neighbours``, 10 to 90, and of images in a ``reference``, 100 or 200, are those with the
    best AUC of adversarial against clean and noisy in three-fold cross-validation over at most
    500 detector-training images, all rows of an image in one fold, unless they are given
    (``reference=None``: all training images, once). Where training images are few, references are
    smaller. ``combine="mean"`` is the one-class version that never sees an adversarial example:
    20 neighbours of 100, as published, unless given."""

    name: str = "lid"
    neighbours: int | Literal["auto"] = "auto"
    reference: int | Literal["auto"] | None = "auto"
    draws: int = 5
    layers: Layers = "all"
    combine: Combine = "logistic"
    seed: int = 0
    learnt_: Fitted | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "LocalDimension":
        references, k = self._chosen(evidence)
        head = Head.fit(self.combine, lambda out: dimensions(references, k, out), evidence)
        return replace(self, learnt_=Fitted(references, k, head))

    def score(self, out: Outputs) -> Tensor:
        learnt = fitted(self.learnt_, self)
        return learnt.head(dimensions(learnt.references, learnt.neighbours, out))

    def _chosen(self, evidence: Evidence) -> tuple[References, int]:
        """The references and the number of neighbours: as given, or those with the best AUC on
        the detector-training split.
        """
        choices = self._choices(evidence.train.detach())
        if len(choices) == 1 or self.combine == "mean":
            return choices[0]
        negative, positive = trials(evidence, least=3)
        some = torch.randperm(
            len(positive), generator=torch.Generator().manual_seed(self.seed)
        )[:SEARCH]
        rows = Outputs.cat([negative[some], negative[some + len(positive)], positive[some]])
        best, chosen = -math.inf, choices[0]
        for references, offered in grouped(choices):
            for k, columns in curve(references, offered, rows).items():
                found = held_out_auc(columns)
                if found > best:
                    best, chosen = found, (references, k)
        return chosen

    def _choices(self, train: Outputs) -> list[tuple[References, int]]:
        """References and numbers of neighbours that can be tried, the published ones first."""
        sizes = SIZES if self.reference == "auto" else (self.reference or len(train),)
        wanted = NEIGHBOURS if self.neighbours == "auto" else (self.neighbours,)
        drawn = {min(size, len(train)): self._drawn(train, size) for size in sizes}
        found = [(r, k) for r in drawn.values() for k in wanted if k < narrowest(r)[0]]
        if not found:
            different, name = max(narrowest(r) for r in drawn.values())
            raise expected(
                (
                    f"more than {min(wanted)} different reference features are needed in layer "
                    f"{name!r}"
                ),
                got=different,
                do=(
                    "pass a smaller neighbours=..., a larger reference=..., more training "
                    "images, or leave the layer out of layers=..."
                ),
            )
        return found

    def _drawn(self, train: Outputs, size: int) -> References:
        """``draws`` references of ``size`` training images, the same images in every layer; one
        of all where there are no more.
        """
        random = torch.Generator().manual_seed(self.seed)
        draws = 1 if size >= len(train) else self.draws
        rows = [torch.randperm(len(train), generator=random)[:size] for _ in range(draws)]
        names = layer_names(train, self.layers)
        pairs = zip(names, features(train, names), strict=True)
        return {
            name: tuple(x[drawn].double().unique(dim=0) for drawn in rows)
            for name, x in pairs
        }


def narrowest(references: References) -> tuple[int, str]:
    """How many different features the smallest reference has, and the layer of it."""
    return min(
        (len(reference), name) for name, draws in references.items() for reference in draws
    )


def grouped(
    choices: list[tuple[References, int]],
) -> Iterator[tuple[References, list[int]]]:
    """The choices by their references, in order."""
    for _, group in groupby(choices, key=lambda choice: id(choice[0])):
        same = list(group)
        yield same[0][0], [k for _, k in same]


def curve(
    references: References, offered: Sequence[int], out: Outputs
) -> dict[int, Tensor]:
    """The columns (N, L) for each number of neighbours, the mean over the draws of a layer."""
    columns: dict[int, list[Tensor]] = {k: [] for k in offered}
    for x, draws in zip(features(out, list(references)), references.values(), strict=True):
        logs = [log_distances(x, reference.to(x), max(offered)) for reference in draws]
        for k, column in columns.items():
            column.append(torch.stack([dimension(log_r, k) for log_r in logs]).mean(0))
    return {k: torch.stack(column, 1) for k, column in columns.items()}


def dimensions(references: References, k: int, out: Outputs) -> Tensor:
    """The dimensionality of each sample in each layer, (N, L)."""
    return curve(references, (k,), out)[k]
