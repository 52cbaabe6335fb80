"""One mixture for every layer and class: the normal range of a classifier's features."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feathide.data.valid_range import check_tensor
from feathide.errors import check_kind, choose, expected
from feathide.mixtures.components import CANDIDATES, best_of, components_of, curve_of
from feathide.mixtures.energy import Fields, Groups, energies
from feathide.mixtures.fit import fit_mixture
from feathide.mixtures.mixture import Covariance, Mixture
from feathide.models.regions import AT
from feathide.types import Outputs

__all__ = [
    "MixtureBank",
]

FORMAT = "feathide mixtures 2"
# quantiles of clean energies that are kept: the least, each percentile, the largest
PERCENT = 101
ROWS = 256  # samples at once
TENSORS = tuple(f.name for f in fields(Mixture) if f.type is Tensor)
VALUES = tuple(f.name for f in fields(Mixture) if f.init and f.type is not Tensor)


@dataclass(frozen=True, eq=False)
class MixtureBank:
    """One ``Mixture`` for every layer and class: the normal range that HFC hides in.

    Args:
        mixtures: ``mixtures[layer][c]`` is the mixture of class c.
        curves: How the number of components was chosen: rows {layer, class, components, heldout,
            bic}, with the mean log-likelihood of held-out samples in nats (None if none were held
            out).
        quantiles: ``quantiles[layer][c]`` (2, 101): the percentiles of the energy, and of the soft
            one, of the samples that the mixture was fitted to; see ``usual``.

    Examples:
        >>> classifier = FeatureClassifier(network.eval(), "blocks")
        >>> out = classifier.extract(train_images)
        >>> bank = MixtureBank.fit(out, train_labels)
        >>> bank.energy(out, train_labels).shape
        torch.Size([24, 1])
    """

    mixtures: Mapping[str, Mapping[int, Mixture]]
    curves: tuple[dict[str, Any], ...] = ()
    quantiles: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    _ready: dict[tuple[Any, ...], Fields] = field(
        default_factory=dict, init=False, repr=False
    )

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
        rank: int = 8,
    ) -> "MixtureBank":
        """Fit the mixtures to the features of clean training images.

        Args:
            outputs: Outputs of the images, with features (N, C_l) of at least one layer.
            labels: Their classes (N,), int64.
            components: The number of components, or candidates of which the best is taken for each
                layer and class; "auto" means 1, 2, 4, ... 64. Candidates are tried in ascending
                order until two in a row are no better; the chosen number is fitted again to all
                samples.
            covariance: "full", "tied", "diag" or "lowrank"; see ``fit_mixture``.
            layers: The layers to fit; all by default.
            seed: The seed of the initial means and of the held-out share.
            holdout: The share of the samples, in [0, 1), whose log-likelihood chooses among the
                candidates; with 0, BIC chooses.
            shrinkage: The share of the diagonal in the covariance, in [0, 1), or "auto".
            rank: The rank of a "lowrank" covariance.

        Returns:
            The fitted mixtures.

        Raises:
            InputError: Features that are not finite, labels that do not fit, arguments out of
                range.
        """
        _check_fit(outputs, labels, holdout)
        candidates = sorted(
            CANDIDATES if components == "auto" else components_of(components)
        )

        def fit(x: Tensor, m: int) -> Mixture:
            return fit_mixture(
                x,
                components=m,
                covariance=covariance,
                shrinkage=shrinkage,
                rank=rank,
                seed=seed,
            )

        mixtures: dict[str, dict[int, Mixture]] = {}
        quantiles: dict[str, dict[int, Tensor]] = {}
        curves: list[dict[str, Any]] = []
        for name in outputs.features if layers is None else layers:
            features = choose("layer", name, outputs.features)
            mixtures[name], quantiles[name] = {}, {}
            for label in labels.unique().tolist():
                x = features[labels.to(features.device) == label]
                if AT in name:  # images without the region say nothing of it
                    x = x[~x.isnan().any(1)]
                    check_region(name, len(x))
                curve = []
                if len(candidates) > 1:
                    curve = curve_of(x, candidates, fit, holdout=holdout, seed=seed)
                curves += [{"layer": name, "class": label, **row} for row in curve]
                mixture = fit(x, best_of(curve) if curve else candidates[0])
                mixtures[name][label] = mixture
                quantiles[name][label] = _quantiles(mixture, x)
        return cls(mixtures, tuple(curves), quantiles)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.mixtures)

    def width(self, layer: str) -> int:
        """The number of channels of a layer."""
        return next(iter(self.mixtures[layer].values())).channels

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(next(iter(self.mixtures.values())))

    def energy(
        self,
        out: Outputs,
        classes: Tensor,
        *,
        layers: Sequence[str] | None = None,
        soft: bool = False,
        shift: Tensor | None = None,
    ) -> Tensor:
        """The energy of every sample under the mixtures of its own class; differentiable.

        Args:
            out: Outputs of N samples.
            classes: The class of each sample (N,).
            layers: The layers to use; all of the bank's by default.
            soft: Use all components in place of the nearest one.
            shift: What is subtracted from the features first: (N, D), the layers side by side;
                see :meth:`deviation`. Not with ``soft``.

        Returns:
            The energies (N, L): squared Mahalanobis distances to the nearest component, per
            channel; 0 where an image lacks a layer's region.
        """
        if soft:
            return self._each(
                out, classes, layers, lambda mixture, f: mixture.energy(f, soft=True)
            )
        names, groups = self._layers(layers), self._groups(classes)
        features = [choose("layer", name, out.features) for name in names]
        absent = _absent(names, features)
        if absent is not None:
            features = [torch.where(f.isnan(), 0.0, f) for f in features]
        found = energies(
            features,
            {label: self._fields(label, names, features[0]) for label in groups.labels},
            groups,
            shift,
        )
        return found if absent is None else torch.where(absent, 0.0, found)

    def deviation(
        self,
        out: Outputs,
        classes: Tensor,
        targets: Tensor,
        *,
        layers: Sequence[str] | None = None,
    ) -> Tensor:
        """How every sample deviates from its own class, as a deviation from another class.

            d_l = f_l - m_c,    r_l^2 = E_l(f_l, c) / E_l(m_t + d_l, t)

        with m_c and m_t the means of the components of both classes that are nearest to f_l. A
        sample at m_t + r_l d_l is as far from its target as it was from its own class, in the same
        direction: not unusual, and not too usual either.

        Args:
            out: Outputs of N samples.
            classes: The class of each sample (N,).
            targets: The other class (N,).
            layers: The layers to use; all of the bank's by default.

        Returns:
            r_l d_l, the layers side by side (N, D), without gradient.
        """
        names = self._layers(layers)
        with torch.no_grad():
            own, other = (self._means(out, c, names) for c in (classes, targets))
            away = {n: out.features[n] - own[n] for n in names}
            moved = replace(out, features={n: other[n] + away[n] for n in names})
            before = self.energy(out, classes, layers=names)
            after = self.energy(moved, targets, layers=names)
            longer = (before / after.clamp_min(torch.finfo(after.dtype).tiny)).sqrt()
            longer = torch.where(after > 0, longer, torch.zeros_like(longer))
            found = [away[n] * longer[:, i : i + 1] for i, n in enumerate(names)]
            # an image that lacks a region deviates nowhere in it
            return torch.where(torch.cat(found, 1).isnan(), 0.0, torch.cat(found, 1))

    def _means(
        self, out: Outputs, classes: Tensor, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """The mean nearest to each sample among the components of its class, for each layer."""
        groups = self._groups(classes)
        found = {}
        for name in names:
            parts = choose("layer", name, out.features)[groups.order].split(groups.sizes)
            mixtures = [self.mixtures[name][label] for label in groups.labels]
            means = [m.mean(part) for m, part in zip(mixtures, parts, strict=True)]
            found[name] = torch.cat(means)[groups.back]
        return found

    def usual(
        self,
        classes: Tensor,
        quantile: float = 0.5,
        *,
        layers: Sequence[str] | None = None,
        soft: bool = False,
    ) -> Tensor:
        """The energy (N, L) below which the share ``quantile`` of the clean samples of each class
        of ``classes`` (N,) lay in each layer, when the mixtures were fitted; in between, the
        percentiles are interpolated.
        """
        names, labels = self._layers(layers), self._groups(classes).labels
        if any(
            label not in self.quantiles.get(name, {}) for name in names for label in labels
        ):
            raise expected(
                "mixtures must know the energies of the clean images that they were fitted to",
                got="none",
                do="make them with MixtureBank.fit, or ask HFC for floor='none'",
            )
        below, share = divmod(quantile * (PERCENT - 1), 1)
        first, last = int(below), min(int(below) + 1, PERCENT - 1)
        rows = [
            [self.quantiles[name][label][int(soft)] for name in names] for label in labels
        ]
        table = torch.stack(
            [
                torch.stack([q[first] + share * (q[last] - q[first]) for q in row])
                for row in rows
            ]
        )
        return table.to(classes.device)[
            torch.searchsorted(classes.new_tensor(labels), classes)
        ]

    def log_prob(
        self, out: Outputs, classes: Tensor, *, layers: Sequence[str] | None = None
    ) -> Tensor:
        """The log-density (N, L) of every sample under the mixtures of its own class ``classes``
        (N,); differentiable.
        """
        return self._each(out, classes, layers, Mixture.log_prob)

    def describe(self) -> list[dict[str, Any]]:
        """A row for each layer and class: what was fitted to what, and how it went."""
        return [
            {
                "layer": name,
                "class": label,
                "samples": m.samples,
                "channels": m.channels,
                "degenerate": m.degenerate,
                "components": m.components,
                "covariance": m.covariance,
                "shrinkage": m.shrinkage,
                "pooling": m.pooling,
                "converged": m.converged,
                "n_iter": m.n_iter,
                "lower_bound": m.lower_bound,
                "notes": m.notes,
            }
            for name, by_class in self.mixtures.items()
            for label, m in by_class.items()
        ]

    def packed(self) -> tuple[dict[str, Tensor], str]:
        """Everything as named tensors and a text of JSON: equal banks give equal bytes."""
        tensors: dict[str, Tensor] = {}
        rows: list[dict[str, Any]] = []
        for name, by_class in self.mixtures.items():
            for label, m in by_class.items():
                tensors |= {
                    f"{len(rows)}.{t}": getattr(m, t).cpu().contiguous() for t in TENSORS
                }
                if label in self.quantiles.get(name, {}):
                    tensors[f"{len(rows)}.quantiles"] = (
                        self.quantiles[name][label].cpu().contiguous()
                    )
                rows.append(
                    {"layer": name, "class": label, **{v: getattr(m, v) for v in VALUES}}
                )
        return tensors, json.dumps({"mixtures": rows, "curves": self.curves})

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor], text: str) -> "MixtureBank":
        """The inverse of :meth:`packed`."""
        content = json.loads(text)
        mixtures: dict[str, dict[int, Mixture]] = {}
        quantiles: dict[str, dict[int, Tensor]] = {}
        for i, row in enumerate(content["mixtures"]):
            values = {v: row[v] for v in VALUES} | {t: tensors[f"{i}.{t}"] for t in TENSORS}
            mixture = Mixture(**values | {"notes": tuple(row["notes"])})
            mixtures.setdefault(row["layer"], {})[row["class"]] = mixture
            if f"{i}.quantiles" in tensors:
                quantiles.setdefault(row["layer"], {})[row["class"]] = tensors[
                    f"{i}.quantiles"
                ]
        return cls(mixtures, tuple(content["curves"]), quantiles)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file."""
        tensors, text = self.packed()
        save_file(tensors, path, metadata={"format": FORMAT, "content": text})

    @classmethod
    def load(cls, path: str | Path) -> "MixtureBank":
        """The mixtures that :meth:`save` wrote; InputError for any other file."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise expected(
                f"{path} must be a safetensors file",
                got=error,
                do="give a file of MixtureBank.save",
            ) from None
        if metadata.get("format") != FORMAT:
            raise expected(
                f"{path} must hold {FORMAT!r}",
                got=metadata.get("format"),
                do="give a file of MixtureBank.save",
            )
        return cls.unpacked(tensors, metadata["content"])

    def _layers(self, layers: Sequence[str] | None) -> tuple[str, ...]:
        return (
            self.layers
            if layers is None
            else tuple(name for name in layers if choose("layer", name, self.mixtures))
        )

    def _fields(self, label: int, names: tuple[str, ...], like: Tensor) -> Fields:
        """The mixtures of a class in these layers, in the dtype and on the device of ``like``;
        made once for each.
        """
        key = (label, names, like.dtype, like.device)
        if key not in self._ready:
            self._ready[key] = Fields.of(
                [self.mixtures[name][label].field(like) for name in names]
            )
        return self._ready[key]

    def _groups(self, classes: Tensor) -> Groups:
        groups = Groups.of(classes)
        if missing := set(groups.labels) - set(self.classes):
            raise expected(
                "classes must have mixtures",
                got=f"class {min(missing)}, fitted: {', '.join(map(str, self.classes))}",
                do="fit on samples of every class that occurs as a target",
            )
        return groups

    def _each(
        self,
        out: Outputs,
        classes: Tensor,
        layers: Sequence[str] | None,
        measure: Callable[[Mixture, Tensor], Tensor],
    ) -> Tensor:
        """``measure`` of the rows of each class under the mixtures of that class, in the order of
        the rows, (N, L).
        """
        groups, names = self._groups(classes), self._layers(layers)
        features = [choose("layer", name, out.features) for name in names]
        absent = _absent(names, features)
        columns = []
        for name, f in zip(names, features, strict=True):
            known = f if absent is None else torch.where(f.isnan(), 0.0, f)
            parts = known[groups.order].split(groups.sizes)
            mixtures = [self.mixtures[name][label] for label in groups.labels]
            columns.append(
                torch.cat(
                    [measure(m, part) for m, part in zip(mixtures, parts, strict=True)]
                )
            )
        found = torch.stack(columns, 1)[groups.back]
        return found if absent is None else torch.where(absent, 0.0, found)


def _absent(names: Sequence[str], features: Sequence[Tensor]) -> Tensor | None:
    """Which images lack the region of which layer (N, L); None where no layer has a region."""
    if not any(AT in name for name in names):
        return None
    return torch.stack([f.detach().isnan().any(1) for f in features], 1)


def check_region(name: str, images: int) -> None:
    """Refuse a region that hardly any image has."""
    if images < 2:
        raise expected(
            f"two images or more must have the region of {name}",
            got=images,
            do="name the layers to fit, layers=..., without it",
        )


def _check_fit(outputs: Outputs, labels: Tensor, holdout: float) -> None:
    """Refuse labels that do not belong to the outputs, and a share that is none."""
    check_kind("outputs", outputs, Outputs, do="give classifier.extract(images)")
    check_tensor("labels", labels)
    if len(labels) != len(outputs) or not len(labels):
        raise expected(
            "labels must be one class for each sample",
            got=f"{len(labels)} for {len(outputs)}",
            do="align",
        )
    if not 0 <= holdout < 1:
        raise expected(
            "holdout must lie in [0, 1)",
            got=holdout,
            do="give a share, or 0 to choose by BIC",
        )


def _quantiles(mixture: Mixture, x: Tensor) -> Tensor:
    """The percentiles of the energy of the samples ``x`` (N, C), and of the soft one, (2,
    101).
    """
    at = torch.linspace(0, 1, PERCENT, dtype=torch.float64, device=x.device)
    parts = x.detach().double().split(ROWS)
    kinds = [
        torch.cat([mixture.energy(part, soft=soft) for part in parts])
        for soft in (False, True)
    ]
    return torch.stack([energy.quantile(at) for energy in kinds]).cpu()
