"""Detector: learns from evidence, then gives each sample one number, HIGHER = MORE SUSPICIOUS.

A detector is a frozen recipe; ``fit`` returns a copy that holds what was learnt, so a recipe can
be fitted many times."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from feathide.errors import InputError, check_kind, expected, first_line, unknown
from feathide.models.memory import lacks_memory
from feathide.types import Evidence, Outputs, Space

__all__ = [
    "Detector",
    "Layered",
    "Layers",
    "class_features",
    "features",
    "fitted",
    "layer_names",
    "needs_of",
    "per_class",
    "spread",
    "trials",
    "unguarded",
]

Layers = str | Sequence[str]  # "last", "all", a name, several names
T = TypeVar("T")
OPEN = ContextVar("OPEN", default=False)  # the border is open: see ``unguarded``


NEEDS = ("dropout", "reference_network", "statistics", "squeezed", "guards")


class Detector(ABC):
    """Learns from evidence, then gives each sample one number: higher is more suspicious.

    A detector is a frozen recipe with a ``name``; ``fit`` returns a fitted copy. Statistics are
    kept in float64; scores have the dtype and the device of the outputs. Every ``fit`` and
    ``score``, also of foreign code, is checked at one border: outputs that are not finite, and
    scores that are not one number per row, raise an ``InputError`` of one sentence.

    Attributes:
        needs_dropout: Whether ``score`` reads ``out.stochastic``.
        needs_reference_network: Whether ``score`` reads ``out.reference_network``.
        needs_statistics: Whether ``score`` reads ``out.statistics``.
        needs_squeezed: Whether ``score`` reads ``out.squeezed``.
        needs_guards: Whether ``score`` reads ``out.guards``.
        differentiable: Whether attacks can follow the gradient of ``score``. A detector that claims
            this and hides its gradient fails a sanity check.

    Examples:
        >>> detector = DETECTORS["maha"]()
        >>> detector.name, detector.reads
        ('maha', ('features',))
    """

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        for name, border in (("fit", _fitting), ("score", _scoring)):
            if name in cls.__dict__:
                setattr(cls, name, border(cls.__dict__[name]))

    needs_dropout: ClassVar[bool] = False
    needs_reference_network: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    needs_statistics: ClassVar[bool] = False
    needs_squeezed: ClassVar[bool] = False
    needs_guards: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[Space, ...]:
        return ("features",)

    @property
    def own_threshold(self) -> float | None:
        """The score above which the detector itself rejects an image; None where it is set from
        calibration images alone.
        """
        return None

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @abstractmethod
    def fit(self, evidence: Evidence) -> Self:
        """A copy that has learnt from the evidence; what an earlier fit learnt is forgotten.

        Args:
            evidence: Clean training images, and clean, noisy and attacked images of the
                detector-training split.

        Returns:
            The fitted detector.

        Raises:
            InputError: The evidence is too small, not finite, constant, or lacks a layer, a class
                or the dropout draws.
        """

    @abstractmethod
    def score(self, out: Outputs) -> Tensor:
        """The suspicion of each sample; each row alone decides its score.

        Args:
            out: The outputs of N samples.

        Returns:
            One score per sample (N,), higher is more suspicious; differentiable almost everywhere
            unless ``differentiable`` is False.

        Raises:
            InputError: The detector is not fitted, or ``out`` lacks a layer or the dropout draws,
                or is not finite.
        """


def _fitting(fit: Callable[[Any, Evidence], Any]) -> Callable[[Any, Evidence], Any]:
    @wraps(fit)
    def behind(self: Detector, evidence: Evidence) -> Any:
        if OPEN.get():
            return fit(self, evidence)
        do = "say Evidence(train, train_labels, clean, noisy, adversarial)"
        check_kind("what a detector learns from", evidence, Evidence, do=do)
        parts = ("train", "clean", "noisy", "adversarial")
        return _behind(
            self,
            "learn from the evidence",
            {p: getattr(evidence, p) for p in parts},
            lambda: fit(self, evidence),
        )

    return behind


def _scoring(score: Callable[[Any, Outputs], Tensor]) -> Callable[[Any, Outputs], Tensor]:
    @wraps(score)
    def behind(self: Detector, out: Outputs) -> Tensor:
        if OPEN.get():
            return score(self, out)
        found = _behind(self, "score the outputs", {"": out}, lambda: score(self, out))
        if not isinstance(found, Tensor) or found.shape != (len(out),):
            got = f"{type(found).__name__} {tuple(getattr(found, 'shape', ()))}"
            raise expected(
                f"detector {self.name} must give a tensor of {len(out)} scores, one a row",
                got=got,
                do="flatten it",
            )
        if bool(found.detach().isnan().any()):
            _refuse(self, {"": out})
            bad = int(found.detach().isnan().sum())
            do = "leave this detector out, or check it for a division by zero"
            raise expected(
                f"scores of {self.name} must be numbers",
                got=f"NaN for {bad} of {len(out)} rows",
                do=do,
            )
        return found

    return behind


def needs_of(detector: Detector) -> tuple[str, ...]:
    """What a detector reads beside logits and features: "dropout", "reference_network",
    "statistics", "squeezed", "guards".
    """
    return tuple(name for name in NEEDS if getattr(detector, f"needs_{name}"))


@contextmanager
def unguarded() -> Iterator[None]:
    """Detectors without their border: what their own code does, for conformance checks that judge
    it.
    """
    token = OPEN.set(True)
    try:
        yield
    finally:
        OPEN.reset(token)


def _behind(
    detector: Detector, act: str, given: Mapping[str, Outputs], work: Callable[[], T]
) -> T:
    """``work()``, with whatever it raises as one sentence; errors of our own detectors on sound
    input are ours and stay as they are.
    """
    for part, out in given.items():
        # whose largest would be taken for the prediction
        if bool(out.logits.detach().isnan().any()):
            _refuse(detector, given)
        for name, values in _read(out):
            if not values.is_floating_point():
                got = str(values.dtype).removeprefix("torch.")
                raise expected(
                    f"{_of(name, part)} must be floating-point numbers",
                    got=got,
                    do="convert them with .float()",
                )
    try:
        return work()
    except InputError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        _refuse(detector, given)
        module = type(detector).__module__
        if module.startswith("feathide.") and not module.startswith(
            "feathide.integrations."
        ):
            raise
        do = "correct its options or its code, or leave it out"
        got = f"{type(error).__name__}: {first_line(error)}"
        raise expected(
            f"detector {detector.name} must be able to {act}", got=got, do=do
        ) from error


def _refuse(detector: Detector, given: Mapping[str, Outputs]) -> None:
    """Say which of the values that a detector was given are not finite, if any are."""
    for part, out in given.items():
        for name, values in _read(out):
            if not values.detach().isfinite().all():
                do = "check the images and weights"
                raise expected(
                    f"{_of(name, part)} must be finite for {detector.name}",
                    got="NaN or infinity",
                    do=do,
                )


def _read(out: Outputs) -> Iterator[tuple[str, Tensor]]:
    yield "logits", out.logits
    yield from ((f"features of layer {name!r}", f) for name, f in out.features.items())
    if out.stochastic is not None:
        yield "logits of the dropout draws", out.stochastic
    if out.statistics is not None:
        yield "statistics of the image", out.statistics
    if out.squeezed is not None:
        yield "logits of the squeezed images", out.squeezed
    if out.guards is not None:
        yield from ((f"scores of guard {name}", v) for name, v in out.guards.items())
    if out.reference_network is not None:
        yield from (
            (f"{name} of the reference network", values)
            for name, values in _read(out.reference_network)
        )


def _of(name: str, part: str) -> str:
    return f"{name} ({part})" if part else name


class Layered(Detector):
    """A detector that measures each layer by itself before it makes one number of them."""

    @abstractmethod
    def columns(self, out: Outputs) -> Tensor:
        """What it finds in each layer, (N, L), on a scale with two tails: logarithms of
        densities, distances, energies.
        """


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
    """The layers of ``out`` that ``layers`` speaks of: in the order of the network, or in that of
    the names given.
    """
    names = tuple(out.features)
    if not names:
        raise expected(
            "outputs must hold the features of at least one layer",
            got="none",
            do="give the classifier layers",
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
    # one wait for the device, not one per layer
    if not torch.stack([f.detach().isfinite().all() for f in chosen]).all():
        bad = next(
            name for name, f in zip(names, chosen, strict=True) if not f.isfinite().all()
        )
        raise expected(
            f"features must be finite, those of layer {bad!r} are",
            got="NaN or infinity",
            do="check the images and weights",
        )
    return chosen


def spread(x: Tensor, name: str) -> Tensor:
    """The standard deviation of each channel of ``x`` (N, C), (C,); a layer that is constant is
    an error.
    """
    std = x.double().std(0, correction=0)
    if not (std > 1e-12 * x.abs().amax(0)).any():
        raise expected(
            f"features of layer {name!r} must vary over the images",
            got="the same for all",
            do="leave it out of layers=...",
        )
    return std


def class_features(evidence: Evidence, name: str) -> tuple[Tensor, ...]:
    """The training features of layer ``name`` in float64, one (N_c, C) for each class of the
    classifier.
    """
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
            f"all {classes} classes must have training features",
            got=f"none of class {empty}",
            do="add images of it",
        )
    spread(x, name)
    return tuple(x[labels.to(x.device) == c] for c in range(classes))


def per_class(classes: Tensor, score: Callable[[int, Tensor], Tensor]) -> Tensor:
    """``score(c, rows)`` (n,) of the rows of each class that occurs in ``classes`` (N,), put back
    in order, (N,).
    """
    present = classes.unique().tolist() or [0]
    rows = [(classes == c).nonzero().flatten() for c in present]
    return torch.cat([score(c, r) for c, r in zip(present, rows, strict=True)])[
        torch.cat(rows).argsort()
    ]


def trials(evidence: Evidence, *, least: int = 2) -> tuple[Outputs, Outputs]:
    """The negatives (clean, then noisy) and the positives (adversarial) of a supervised detector,
    without gradient.
    """
    rows = [len(evidence.clean), len(evidence.noisy), len(evidence.adversarial)]
    if len(set(rows)) > 1 or rows[0] < least:
        raise expected(
            f"clean, noisy and adversarial must be the same images, at least {least}",
            got=f"{rows} rows",
            do="give more images to the detector-training split",
        )
    return Outputs.cat(
        [evidence.clean, evidence.noisy]
    ).detach(), evidence.adversarial.detach()
