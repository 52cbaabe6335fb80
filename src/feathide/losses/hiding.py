"""What lowers the suspicion: features near the mixtures of the target class, scores of detectors,
features of clean images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.data.noise import Noise
from feathide.errors import InputError, check_kind, expected, first_line
from feathide.losses.base import BoundLoss, Objective, Reads, need_layers
from feathide.mixtures import MixtureBank
from feathide.models.memory import lacks_memory
from feathide.registry.specs import floor_of
from feathide.types import Aim, Outputs, Rows

__all__ = ["HFC", "Evade", "Guide", "Scorer", "score_of", "without_gradient"]


@dataclass(frozen=True, eq=False)
class HFC(Objective):
    """The hierarchical feature constraint (Yao et al. 2023): features close to the target class.

        S = sum_l max(E_l(x, t) - floor_l, 0),
        E_l(x, t) = || (f_l(x) - keep d_l - mu_k*) P_k* ||^2 / C_l,
        k* = argmax_k log w_k + sum log diag P_k - 1/2 || (f_l(x) - keep d_l - mu_k) P_k ||^2,

    with f_l the feature of layer l, and mixtures with weights w, means mu and Cholesky factors P of
    the precision, fitted to clean images of the target class t. k* is chosen without gradient.

    With ``keep`` 0, as in the paper, all images are pulled to the mean of the target class, where
    no clean image lies. With ``keep`` 1 each is pulled to a point of its own that is as far from
    the mean as the clean image was from the mean of its class, and in the same direction: d_l is
    :meth:`MixtureBank.deviation` of the clean image.

    Args:
        bank: The mixtures of every layer and class.
        layers: Names or globs of the layers that are constrained; all of the bank's by default.
        weights: One weight per layer; 1 by default.
        soft: Use all components by log-sum-exp in place of the nearest one.
        floor: The energy below which a layer is not pushed, so that images do not look more normal
            than clean ones: "median" of the clean images that the mixture was fitted to, another
            quantile in [0, 1], or "none" as in the paper.
        keep: The share, in [0, 1], of its own deviation that an image keeps; more than 0 goes
            with floor "none" and without ``soft``.

    References:
        Yao et al.: Adversarial medical image with hierarchical feature hiding. IEEE TMI 2023.

    Examples:
        >>> classifier = FeatureClassifier(network.eval(), "blocks")
        >>> bank = MixtureBank.fit(classifier.extract(train_images), train_labels)
        >>> objective = CrossEntropy() + 0.3 * HFC(bank)
    """

    bank: MixtureBank
    layers: Sequence[str] | None = None
    weights: Sequence[float] | None = None
    soft: bool = False
    floor: Literal["median", "none"] | float = "median"
    keep: float = 0.0

    def __post_init__(self) -> None:
        do = "fit one: MixtureBank.fit(classifier.extract(images), labels)"
        check_kind("the bank", self.bank, MixtureBank, do=do)
        unfloored = floor_of(self.floor) is None
        if not 0 <= self.keep <= 1:
            raise expected(
                "keep must lie in [0, 1]",
                got=self.keep,
                do="give the share of its own deviation that an image keeps",
            )
        if self.keep and not (unfloored and not self.soft):
            raise expected(
                "keep needs floor='none' and soft=False",
                got=f"floor={self.floor!r}, soft={self.soft}",
                do="leave out one of them: both keep images from looking too normal",
            )

    @property
    def reads(self) -> Reads:
        return Reads(
            clean=self.keep > 0,
            layers=self.bank.layers if self.layers is None else tuple(self.layers),
        )

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        names = self.bank.layers if self.layers is None else tuple(self.layers)
        need_layers("HFC", names, clean, self.bank.layers)
        strange = sorted(set(goal.normal_class.tolist()) - set(self.bank.classes))
        if strange:
            raise expected(
                f"targets of the mixtures' classes {list(self.bank.classes)}",
                got=strange,
                do="fit the mixtures on images of every class",
            )
        if self.weights is not None and len(self.weights) != len(names):
            raise expected(
                f"one weight for each of {len(names)} layers",
                got=len(self.weights),
                do="give as many weights as layers",
            )
        weights = None if self.weights is None else torch.tensor(self.weights)
        quantile, least = floor_of(self.floor), None
        if quantile is not None:
            least = self.bank.usual(
                goal.normal_class, quantile, layers=names, soft=self.soft
            ).to(clean.features[names[0]])

        shift: Tensor | None = None
        if self.keep:
            shift = self.keep * self.bank.deviation(
                clean, goal.clean_class, goal.normal_class, layers=names
            )

        def hide(out: Outputs, rows: Rows) -> Tensor:
            # (N, L)
            energy = self.bank.energy(
                out,
                goal.normal_class[rows],
                layers=names,
                soft=self.soft,
                shift=None if shift is None else shift[rows],
            )
            if least is not None:
                energy = F.relu(energy - least[rows].to(energy))
            return (energy if weights is None else energy * weights.to(energy)).sum(1)

        return BoundLoss(hide=hide, name="HFC")


class Scorer(Protocol):
    """What ``Evade`` needs of a detector."""

    def score(self, out: Outputs) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Evade(Objective):
    """The scores of fitted detectors as a hiding term.

        S = sum_d max(s_d(x) - c_d, 0) / scale_d,    c_d = below_d - slack * scale_d

    Without ``below`` the scores are added as they are. ``Evade((kernel_density,))`` is the
    kernel-density constraint of Carlini and Wagner (2017), ``Evade((lid,))`` the LID constraint of
    Athalye et al. (2018).

    Args:
        detectors: Fitted detectors whose scores have a gradient.
        below: The threshold of each detector; one that already accepts the image, with some slack,
            adds nothing.
        scales: The spread of each score on clean images, positive; 1 by default.
        slack: How far below its threshold a score is pushed, in units of its scale.
        assume_target: Ask detectors that read the predicted class for the score that the image will
            have once it is taken for the target.
    """

    detectors: tuple[Scorer, ...]
    below: tuple[float, ...] | None = None
    scales: tuple[float, ...] | None = None
    slack: float = 0.1
    assume_target: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.detectors, tuple | list) or not all(
            callable(getattr(d, "score", None)) for d in self.detectors
        ):
            raise expected(
                "Evade takes a tuple of fitted detectors",
                got=repr(self.detectors)[:200],
                do="say Evade((detector,))",
            )
        if not self.detectors:
            raise expected(
                "detectors to evade", got="none", do="name at least one fitted detector"
            )
        if self.scales is not None and min(self.scales) <= 0:
            raise expected(
                "scales must be positive",
                got=self.scales,
                do="leave out detectors whose score is constant",
            )
        for values in (self.below, self.scales):
            if values is not None and len(values) != len(self.detectors):
                raise expected(
                    f"one number for each of {len(self.detectors)} detectors",
                    got=len(values),
                    do="give as many thresholds and scales as detectors",
                )

    @property
    def reads(self) -> Reads:
        return Reads(clean=False)

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        scales = self.scales or (1.0,) * len(self.detectors)

        def hide(out: Outputs, rows: Rows) -> Tensor:
            seen = replace(out, assumed=goal.assumed(rows)) if self.assume_target else out
            found = [score_of(detector, seen) for detector in self.detectors]
            if _differentiable(out) and not any(score.requires_grad for score in found):
                raise without_gradient("evade", [_named(d) for d in self.detectors])
            total = out.logits.new_zeros(len(out))
            for i, (value, scale) in enumerate(zip(found, scales, strict=True)):
                score = value / scale
                total = total + (
                    score
                    if self.below is None
                    else F.relu(score - self.below[i] / scale + self.slack)
                )
            return total

        return BoundLoss(hide=hide, name="evasion")


def score_of(detector: Scorer, out: Outputs) -> Tensor:
    """The scores of anyone's detector; whatever its code raises becomes one sentence."""
    try:
        return detector.score(out)
    except InputError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        raise expected(
            (
                f"the detector {_named(detector)} must score outputs that carry a gradient, as "
                "attacks show them"
            ),
            got=f"{type(error).__name__}: {first_line(error)}",
            do=(
                "compute its score in torch, or detach the outputs in it, and aim at other "
                "detectors"
            ),
        ) from error


def without_gradient(objective: str, detectors: Sequence[str]) -> InputError:
    """The error that an attack is aimed at scores that lead it nowhere."""
    return expected(
        f"{objective} needs a detector whose score has a gradient",
        got=", ".join(detectors),
        do="aim it at others (options: {detectors: [...]}) or leave it out",
    )


def _known(values: Tensor) -> Tensor:
    """``values``, 0 where an image lacks a region."""
    return torch.where(values.isnan(), 0.0, values)


def _spread(f: Tensor) -> Tensor:
    """The standard deviation of a layer, averaged over channels, times the root of their number."""
    known = f[~f.isnan().any(1)]
    if len(known) < 2:  # a region that the reference lacks guides nobody
        return f.new_tensor(torch.nan)
    return known.var(0).mean().sqrt().clamp_min(1e-8) * f.shape[1] ** 0.5


def _apart(f: Tensor, guides: Tensor) -> Tensor:
    """The squared distances (N, R); 0 where one of the two lacks a region."""
    return _known(torch.cdist(f, guides) ** 2)


def _named(detector: Scorer) -> str:
    return str(getattr(detector, "name", type(detector).__name__))


def _differentiable(out: Outputs) -> bool:
    return any(t.requires_grad for t in (out.logits, *out.features.values()))


@dataclass(frozen=True, eq=False)
class Guide(Objective):
    """Feature matching to one clean image g of the target class.

        S = sum_l || (f_l(x) - f_l(g)) / s_l ||^2 / C_l

    s_l is the standard deviation of the layer over the reference, averaged over channels, so that
    no layer dominates.

    Args:
        reference: Outputs of clean training images.
        labels: The classes of the reference (N,).
        pick: "random" (drawn from the random numbers of each image) or "closest" in this distance.
    """

    reference: Outputs
    labels: Tensor
    pick: Literal["random", "closest"] = "random"

    @property
    def reads(self) -> Reads:
        return Reads(clean=self.pick == "closest")

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        need_layers("guides", tuple(clean.features), clean, tuple(self.reference.features))
        if len(self.labels) != len(self.reference) or len(self.labels) < 2:
            raise expected(
                "two or more guides with one label each",
                got=f"{len(self.reference)} and {len(self.labels)}",
                do="give labelled training images",
            )
        like = clean.logits
        reference = {n: self.reference.features[n].to(f) for n, f in clean.features.items()}
        scale = {n: _spread(f) for n, f in reference.items()}
        reference = {n: f / scale[n] for n, f in reference.items()}
        same = self.labels.to(like.device)[None, :] == goal.normal_class[:, None]  # (N, R)
        if not bool(same.any(1).all()):
            raise expected(
                "clean images of every target class as guides",
                got="a class without any",
                do="add training images",
            )
        if self.pick == "random":
            cost = noise.uniform((same.shape[1],), draw="guide").to(like)
        else:
            cost = sum(
                _apart(clean.features[n].to(like) / scale[n], f)
                for n, f in reference.items()
            )  # type: ignore[assignment]
        chosen = cost.masked_fill(~same, float("inf")).argmin(1)
        guides = {n: f[chosen] for n, f in reference.items()}

        def hide(out: Outputs, rows: Rows) -> Tensor:
            apart = [
                _known((out.features[n] / scale[n] - g[rows]) ** 2).sum(1)
                for n, g in guides.items()
            ]
            return reduce(torch.add, apart)  # one by one, which keeps every digit

        return BoundLoss(hide=hide, name=f"{self.pick} guide")
