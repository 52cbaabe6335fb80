"""One mixture for every layer and class: the normal range of a classifier's features."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from feathide.errors import choose, expected
from feathide.mixture.fit import fit_mixture
from feathide.mixture.model import Covariance, Mixture
from feathide.types import Outputs

__all__ = ["MixtureBank"]


@dataclass(frozen=True, eq=False)
class MixtureBank:
    """One :class:`Mixture` for every layer and class; ``mixtures[layer][c]`` is that of class c."""

    mixtures: Mapping[str, Mapping[int, Mixture]]
    curves: tuple[dict[str, object], ...] = ()

    @classmethod
    def fit(
        cls,
        outputs: Outputs,
        labels: Tensor,
        *,
        components: int | Sequence[int] | Literal["auto"] = 1,
        covariance: Covariance = "full",
        layers: Sequence[str] | None = None,
        seed: int = 0,
        holdout: float = 0.2,
        shrinkage: float | Literal["auto"] = "auto",
    ) -> "MixtureBank":
        mixtures: dict[str, dict[int, Mixture]] = {}
        m = components if isinstance(components, int) else 1
        for name in outputs.features if layers is None else layers:
            f = choose("layer", name, outputs.features)
            mixtures[name] = {
                c: fit_mixture(f[labels == c], components=m, covariance=covariance, seed=seed, shrinkage=shrinkage)
                for c in labels.unique().tolist()
            }
        return cls(mixtures)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.mixtures)

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(next(iter(self.mixtures.values())))

    def energy(
        self, out: Outputs, classes: Tensor, *, layers: Sequence[str] | None = None, soft: bool = False
    ) -> Tensor:
        """The energy (N, L) of every sample under the mixtures of its own class ``classes`` (N,); differentiable."""
        return self._each(out, classes, layers, lambda mixture, f: mixture.energy(f, soft=soft))

    def log_prob(self, out: Outputs, classes: Tensor, *, layers: Sequence[str] | None = None) -> Tensor:
        """The log-density (N, L) of every sample under the mixtures of its own class ``classes`` (N,); differentiable."""
        return self._each(out, classes, layers, Mixture.log_prob)

    def _each(self, out, classes, layers, measure) -> Tensor:  # type: ignore[no-untyped-def]
        names = self.layers if layers is None else layers
        present, counts = classes.unique(return_counts=True)
        order = classes.argsort(stable=True)
        groups = list(zip(present.tolist(), counts.tolist(), strict=True))
        columns = []
        for name in names:
            mixtures = choose("layer", name, self.mixtures)
            f = out.features[name][order] if len(groups) > 1 else out.features[name]
            parts = f.split([n for _, n in groups])
            columns.append(torch.cat([measure(mixtures[c], p) for (c, _), p in zip(groups, parts, strict=True)]))
        values = torch.stack(columns, 1)
        return torch.empty_like(values).index_copy(0, order, values) if len(groups) > 1 else values
