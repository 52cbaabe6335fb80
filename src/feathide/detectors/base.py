"""Detector: learns from evidence, then gives each sample one number, HIGHER = MORE SUSPICIOUS.

A detector is a frozen recipe; ``fit`` returns a copy that holds what was learnt, so a recipe can be fitted many times.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from feathide.errors import expected, unknown
from feathide.types import Evidence, Outputs, Space

__all__ = [
    "Detector",
    "Layered",
    "Layers",
    "class_features",
    "features",
    "fitted",
    "layer_names",
    "per_class",
    "spread",
    "trials",
]

Layers = str | Sequence[str]  # "last", "all", a name, several names
T = TypeVar("T")


class Detector(ABC):
    """Gives each sample a suspicion: statistics in float64, scores in the dtype and on the device of ``out``.

    ``needs_dropout``, ``needs_witness``, ``needs_statistics``, ``needs_squeezed``: whether ``score`` reads ``out.stochastic``, ``out.witness``,
    ``out.statistics`` or ``out.squeezed``, so that whoever extracts outputs knows to ask for it. ``reads``: the spaces in which it looks, which reports
    say beside it; whoever asks the network about other images than the one that was sent reads "image" and "logits". The predicted class is read by all.
    """

    needs_dropout: ClassVar[bool] = False
    needs_witness: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False
    needs_squeezed: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("features",)

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @abstractmethod
    def fit(self, evidence: Evidence) -> Self:
        """A copy that has learnt from ``evidence``; what an earlier fit learnt is forgotten.

        Raises:
            InputError: the evidence is too small, not finite, constant, or lacks a layer, a class or the dropout draws.
        """

    @abstractmethod
    def score(self, out: Outputs) -> Tensor:
        """The suspicion of each sample, (N,): of a row that row alone decides, differentiably almost everywhere.

        Raises:
            InputError: not fitted yet; ``out`` lacks a layer or the dropout draws, or is not finite.
        """


class Layered(Detector):
    """A detector that measures each layer by itself before it makes one number of them."""

    @abstractmethod
    def columns(self, out: Outputs) -> Tensor:
        """What it finds in each layer, (N, L), on a scale with two tails: logarithms of densities, distances, energies."""


def fitted(learnt: T | None, detector: Detector) -> T:
    """``learnt``, or the error that ``detector`` has not been fitted."""
    if learnt is None:
        raise expected(
            "score needs a fitted detector",
            got=f"the recipe {detector!r}",
            do="use the detector that .fit(evidence) returns",
        )
    return learnt


def layer_names(out: Outputs, layers: Layers) -> tuple[str, ...]:
    """The layers of ``out`` that ``layers`` speaks of: in the order of the network, or in that of the names given."""
    names = tuple(out.features)
    if not names:
        raise expected(
            "outputs must hold the features of at least one layer", got="none", do="give the classifier layers"
        )
    if layers == "all":
        return names
    if layers == "last":
        return names[-1:]
    return (layers,) if isinstance(layers, str) else tuple(layers)


def features(out: Outputs, names: Sequence[str]) -> list[Tensor]:
    """The features (N, C) of the layers ``names``, found and finite."""
    for name in names:
        if name not in out.features:
            raise unknown("layer", name, out.features)
    chosen = [out.features[name] for name in names]
    if not torch.stack(
        [f.detach().isfinite().all() for f in chosen]
    ).all():  # one wait for the device, not one per layer
        bad = next(name for name, f in zip(names, chosen, strict=True) if not f.isfinite().all())
        raise expected(
            f"features must be finite, those of layer {bad!r} are",
            got="NaN or infinity",
            do="check the images and weights",
        )
    return chosen


def spread(x: Tensor, name: str) -> Tensor:
    """The standard deviation of each channel of ``x`` (N, C), (C,); a layer that is constant is an error."""
    std = x.double().std(0, correction=0)
    if not (std > 1e-12 * x.abs().amax(0)).any():
        raise expected(
            f"features of layer {name!r} must vary over the images",
            got="the same for all",
            do="leave it out of layers=...",
        )
    return std


def class_features(evidence: Evidence, name: str) -> tuple[Tensor, ...]:
    """The training features of layer ``name`` in float64, one (N_c, C) for each class of the classifier."""
    x, labels = features(evidence.train, [name])[0].detach().double(), evidence.train_labels
    if len(labels) != len(x):
        raise expected(
            f"train_labels must have one label for each of the {len(x)} training rows",
            got=len(labels),
            do="pass both whole",
        )
    classes = evidence.train.logits.shape[1]
    empty = [c for c in range(classes) if not (labels == c).any()]
    if empty:
        raise expected(
            f"all {classes} classes must have training features", got=f"none of class {empty}", do="add images of it"
        )
    spread(x, name)
    return tuple(x[labels.to(x.device) == c] for c in range(classes))


def per_class(classes: Tensor, score: Callable[[int, Tensor], Tensor]) -> Tensor:
    """``score(c, rows)`` (n,) of the rows of each class that occurs in ``classes`` (N,), put back in order, (N,)."""
    present = classes.unique().tolist() or [0]
    rows = [(classes == c).nonzero().flatten() for c in present]
    return torch.cat([score(c, r) for c, r in zip(present, rows, strict=True)])[torch.cat(rows).argsort()]


def trials(evidence: Evidence, *, least: int = 2) -> tuple[Outputs, Outputs]:
    """The negatives (clean, then noisy) and the positives (adversarial) of a supervised detector, without gradient."""
    rows = [len(evidence.clean), len(evidence.noisy), len(evidence.adversarial)]
    if len(set(rows)) > 1 or rows[0] < least:
        raise expected(
            f"clean, noisy and adversarial must be the same images, at least {least}",
            got=f"{rows} rows",
            do="give more images to the fit part",
        )
    return Outputs.cat([evidence.clean, evidence.noisy]).detach(), evidence.adversarial.detach()
