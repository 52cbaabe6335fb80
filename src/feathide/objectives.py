"""Objectives: what an attacker wants, as a loss (N,) of the Outputs that he minimises.

An objective is a recipe; ``bind`` fixes it to a batch and returns a ``BoundLoss``. Objectives compose: ``CrossEntropy() + 0.3 * HFC(bank)``.
Losses are per sample and never averaged, so that an image's gradient does not depend on its neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.errors import expected, unknown
from feathide.geometry import Noise
from feathide.mixture import MixtureBank
from feathide.types import ALL, Goal, Outputs, Rows

__all__ = [
    "DLR",
    "HFC",
    "AwayFrom",
    "BoundLoss",
    "CrossEntropy",
    "Drift",
    "Evade",
    "Guide",
    "Loss",
    "Margin",
    "Objective",
    "Reads",
    "Scorer",
]

Loss = Callable[[Outputs, Rows], Tensor]


@dataclass(frozen=True)
class BoundLoss:
    """An objective for one batch. ``rows`` say which of the bound images some outputs belong to.

    ``fool`` is what changes the decision, ``hide`` what lowers the suspicion; either may be absent. ``margin`` (N,) is positive once the
    decision is what the attacker wants. ``name`` says which losses these are.
    """

    fool: Loss | None = None
    margin: Loss | None = None
    hide: Loss | None = None
    name: str = ""

    def __call__(self, out: Outputs, rows: Rows = ALL) -> Tensor:
        """The total loss (N,): ``fool + hide``."""
        terms = [term(out, rows) for term in (self.fool, self.hide) if term is not None]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


@dataclass(frozen=True)
class Reads:
    """What an objective looks at: ``clean``, the outputs of the clean images (else only those of iterates); ``layers``, nothing but the
    logits and the features of these layers (None: everything there is). What nobody reads is not computed."""

    clean: bool = True
    layers: tuple[str, ...] | None = None

    def __or__(self, other: "Reads") -> "Reads":
        some = None if self.layers is None or other.layers is None else (*self.layers, *other.layers)
        return Reads(self.clean or other.clean, some)


LOGITS = Reads(clean=False, layers=())


class Objective(ABC):
    """What an attacker wants. ``a + b`` and ``0.5 * a`` compose."""

    @property
    def reads(self) -> Reads:
        """What it looks at; everything, unless it says otherwise."""
        return Reads()

    @abstractmethod
    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        """The loss for a batch; ``noise`` gives random choices per image. ``clean`` are the outputs of its clean images, or, for an objective that does
        not read them, other outputs of the same layers and classes."""

    def __add__(self, other: "Objective") -> "Objective":
        return Weighted((self, other), (1.0, 1.0))

    def __rmul__(self, weight: float) -> "Objective":
        return Weighted((self,), (float(weight),))


@dataclass(frozen=True)
class Weighted(Objective):
    """The sum of ``weights[i] * parts[i]``."""

    parts: tuple[Objective, ...]
    weights: tuple[float, ...]

    @property
    def reads(self) -> Reads:
        return reduce(or_, (part.reads for part in self.parts))

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        bound = [part.bind(clean, goal, noise) for part in self.parts]
        return BoundLoss(
            fool=_sum([(w, b.fool) for w, b in zip(self.weights, bound, strict=True)]),
            margin=_least([b.margin for b in bound]),
            hide=_sum([(w, b.hide) for w, b in zip(self.weights, bound, strict=True)]),
            name=" + ".join(b.name if w == 1 else f"{w:g} {b.name}" for w, b in zip(self.weights, bound, strict=True)),
        )


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """J = -log softmax(z)_t, the cross-entropy to the target t.

    With several findings (``Outputs.others``) the other findings must stay: a hinge for each is added, and the wish counts as
    fulfilled only while none of them has changed sides.
    """

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        def fool(out: Outputs, rows: Rows) -> Tensor:
            return F.cross_entropy(out.logits, goal.target[rows], reduction="none")

        return _keeping_others(BoundLoss(fool=fool, margin=_lead(goal), name="cross-entropy"), clean)


@dataclass(frozen=True)
class Margin(Objective):
    """J = max(max_{j != t} z_j - z_t, -kappa) (Carlini & Wagner 2017): stops pushing once the target leads by kappa."""

    kappa: float = float("inf")

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        lead = _lead(goal)

        def fool(out: Outputs, rows: Rows) -> Tensor:
            return (-lead(out, rows)).clamp_min(-self.kappa)

        return _keeping_others(BoundLoss(fool=fool, margin=lead, name="margin"), clean)


@dataclass(frozen=True)
class DLR(Objective):
    """J = (z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), the targeted difference-of-logits ratio (Croce & Hein 2020).

    It needs K >= 4; with fewer classes the margin z_y - z_t takes its place, and the bound loss says so. With ``rank`` r the attack is
    untargeted: t is, in place of the goal's target, the class with the r-th largest clean logit of those that are not the source, and any class
    but the source will do.
    """

    rank: int | None = None

    @property
    def reads(self) -> Reads:
        return Reads(clean=self.rank is not None, layers=())

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        classes = clean.logits.shape[1]
        target, margin = goal.target, _lead(goal)
        if self.rank is not None:
            if not 1 <= self.rank < classes:
                raise expected(
                    f"rank must be 1 to {classes - 1}",
                    got=self.rank,
                    do="there is one rank for each class but the source",
                )
            others = clean.logits.scatter(1, goal.source[:, None], float("-inf"))
            target, margin = others.argsort(dim=1, descending=True, stable=True)[:, self.rank - 1], _away(goal)

        def fool(out: Outputs, rows: Rows) -> Tensor:
            z = out.logits
            gap = _at(z, goal.source[rows]) - _at(z, target[rows])
            if classes < 4:
                return gap
            top = z.topk(4, dim=1).values
            return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

        return _keeping_others(BoundLoss(fool=fool, margin=margin, name=self.name(classes)), clean)

    @staticmethod
    def name(classes: int) -> str:
        """The loss that is used for so many classes."""
        return "DLR" if classes >= 4 else "margin"


@dataclass(frozen=True)
class AwayFrom(Objective):
    """Any class but the source y will do (the untargeted attack): J = log softmax(z)_y, or with ``loss`` "margin" J = z_y - max_{j != y} z_j."""

    loss: Literal["cross-entropy", "margin"] = "cross-entropy"

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        margin = _away(goal)

        def fool(out: Outputs, rows: Rows) -> Tensor:
            if self.loss == "margin":
                return -margin(out, rows)
            return -F.cross_entropy(out.logits, goal.source[rows], reduction="none")

        return _keeping_others(BoundLoss(fool=fool, margin=margin, name=f"untargeted {self.loss}"), clean)


@dataclass(frozen=True, eq=False)
class HFC(Objective):
    """The hierarchical feature constraint (Yao et al. 2023): sum over layers of the energy under the mixture of the target class,

        E_l(x, t) = || (f_l(x) - mu_k*) P_k* ||^2 / C_l,    k* = argmax_k log w_k + sum log diag P_k - 1/2 ||(f_l(x) - mu_k) P_k||^2,

    k* without gradient. ``layers``: some of the bank's layers (all by default); ``weights``: one per layer; ``soft``: all components
    by log-sum-exp in place of the nearest one.
    """

    bank: MixtureBank
    layers: Sequence[str] | None = None
    weights: Sequence[float] | None = None
    soft: bool = False

    @property
    def reads(self) -> Reads:
        return Reads(clean=False, layers=self.bank.layers if self.layers is None else tuple(self.layers))

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        names = self.bank.layers if self.layers is None else tuple(self.layers)
        _need_layers("HFC", names, clean, self.bank.layers)
        strange = sorted(set(goal.target.tolist()) - set(self.bank.classes))
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

        def hide(out: Outputs, rows: Rows) -> Tensor:
            energy = self.bank.energy(out, goal.target[rows], layers=names, soft=self.soft)  # (N, L)
            return (energy if weights is None else energy * weights.to(energy)).sum(1)

        return BoundLoss(hide=hide, name="HFC")


class Scorer(Protocol):
    """What ``Evade`` needs of a detector."""

    def score(self, out: Outputs) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Evade(Objective):
    """The score of fitted detectors as a term: sum_d max(s_d(x) - c_d, 0) / scale_d, with c_d = ``below[d]`` - ``slack`` * scale_d.

    Without ``below`` the scores are added as they are. With it, a detector that already accepts the image, with some slack, adds nothing.
    ``scales``: the spread of each score on clean images. ``assume_target``: detectors that look at the predicted class are asked what
    they would say of an image taken for the target. This is the kernel-density constraint for ``Evade(KD)`` (Carlini & Wagner 2017)
    and the LID constraint for ``Evade(LID)`` (Athalye et al. 2018).
    """

    detectors: tuple[Scorer, ...]
    below: tuple[float, ...] | None = None
    scales: tuple[float, ...] | None = None
    slack: float = 0.1
    assume_target: bool = True

    def __post_init__(self) -> None:
        if not self.detectors:
            raise expected("detectors to evade", got="none", do="name at least one fitted detector")
        if self.scales is not None and min(self.scales) <= 0:
            raise expected("scales must be positive", got=self.scales, do="leave out detectors whose score is constant")
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

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        scales = self.scales or (1.0,) * len(self.detectors)

        def hide(out: Outputs, rows: Rows) -> Tensor:
            seen = replace(out, assumed=goal.target[rows]) if self.assume_target else out
            total = torch.zeros_like(out.logits[:, 0])
            for i, (detector, scale) in enumerate(zip(self.detectors, scales, strict=True)):
                score = detector.score(seen) / scale
                total = total + (score if self.below is None else F.relu(score - self.below[i] / scale + self.slack))
            return total

        return BoundLoss(hide=hide, name="evasion")


@dataclass(frozen=True, eq=False)
class Guide(Objective):
    """Feature matching: sum_l || (f_l(x) - f_l(g)) / s_l ||^2 / C_l to one clean image g of the target class.

    ``reference``: outputs of clean training images with ``labels``. ``pick``: "random" (one guide per image, from the image's own random
    numbers) or "closest" in the same distance. s_l: standard deviation of the layer over the reference, averaged over channels, so
    that no layer drowns the others.
    """

    reference: Outputs
    labels: Tensor
    pick: Literal["random", "closest"] = "random"

    @property
    def reads(self) -> Reads:
        return Reads(clean=self.pick == "closest")

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        _need_layers("guides", tuple(clean.features), clean, tuple(self.reference.features))
        if len(self.labels) != len(self.reference) or len(self.labels) < 2:
            raise expected(
                "two or more guides with one label each",
                got=f"{len(self.reference)} and {len(self.labels)}",
                do="give labelled training images",
            )
        like = clean.logits
        reference = {n: self.reference.features[n].to(f) for n, f in clean.features.items()}
        scale = {n: f.var(0).mean().sqrt().clamp_min(1e-8) * f.shape[1] ** 0.5 for n, f in reference.items()}
        reference = {n: f / scale[n] for n, f in reference.items()}
        same = self.labels.to(like.device)[None, :] == goal.target[:, None]  # (N, R)
        if not bool(same.any(1).all()):
            raise expected(
                "clean images of every target class as guides", got="a class without any", do="add training images"
            )
        if self.pick == "random":
            cost = noise.uniform((same.shape[1],), draw="guide").to(like)
        else:
            cost = sum(torch.cdist(clean.features[n].to(like) / scale[n], f) ** 2 for n, f in reference.items())  # type: ignore[assignment]
        chosen = cost.masked_fill(~same, float("inf")).argmin(1)
        guides = {n: f[chosen] for n, f in reference.items()}

        def hide(out: Outputs, rows: Rows) -> Tensor:
            return sum(((out.features[n] / scale[n] - g[rows]) ** 2).sum(1) for n, g in guides.items())

        return BoundLoss(hide=hide, name=f"{self.pick} guide")


@dataclass(frozen=True)
class Drift(Objective):
    """The stress test: drive the mean activation of one layer down, up, or as far as possible from its clean value.

    J = m(x), -m(x) or -|m(x) - m(x_clean)|, with m the mean over the layer's channels.
    """

    layer: str
    direction: Literal["down", "up", "away"] = "down"

    @property
    def reads(self) -> Reads:
        return Reads(clean=self.direction == "away", layers=(self.layer,))

    def bind(self, clean: Outputs, goal: Goal, noise: Noise) -> BoundLoss:
        _need_layers("drift", (self.layer,), clean, (self.layer,))
        start = clean.features[self.layer].mean(1)

        def fool(out: Outputs, rows: Rows) -> Tensor:
            m = out.features[self.layer].mean(1)
            if self.direction == "away":
                u = m - start[rows]
                return -torch.where(u < 0, -u, u)  # |u| with a slope at 0, where the attack starts
            return m if self.direction == "down" else -m

        return BoundLoss(fool=fool, name=f"drift {self.direction}")


def _at(z: Tensor, classes: Tensor) -> Tensor:
    return z.gather(1, classes[:, None])[:, 0]


def _lead(goal: Goal) -> Loss:
    """z_t - max_{j != t} z_j."""

    def lead(out: Outputs, rows: Rows) -> Tensor:
        t = goal.target[rows]
        return _at(out.logits, t) - out.logits.scatter(1, t[:, None], float("-inf")).amax(1)

    return lead


def _away(goal: Goal) -> Loss:
    """max_{j != y} z_j - z_y."""
    lead = _lead(Goal(goal.target, goal.source))
    return lambda out, rows: -lead(out, rows)


def _need_layers(what: str, names: Sequence[str], clean: Outputs, known: Sequence[str]) -> None:
    """Refuse an objective on features if there are none, or not those of ``names``."""
    if not names or not clean.features:
        raise expected(f"{what} needs the features of at least one layer", got="none", do="give the classifier layers")
    for table in (clean.features, known):
        missing = [name for name in names if name not in table]
        if missing:
            raise unknown("layer", missing[0], table)


def _keeping_others(bound: BoundLoss, clean: Outputs) -> BoundLoss:
    """The same wish with the other findings of a multi-label network held on their side."""
    if clean.others is None or clean.others.shape[1] == 0 or bound.fool is None or bound.margin is None:
        return bound
    side = torch.where(clean.others > 0, 1.0, -1.0)  # (N, F)
    fool, margin = bound.fool, bound.margin

    def held(out: Outputs, rows: Rows) -> Tensor:
        assert out.others is not None
        return side[rows] * out.others

    return replace(
        bound,
        fool=lambda out, rows: fool(out, rows) + F.relu(0.5 - held(out, rows)).sum(1),
        margin=lambda out, rows: torch.minimum(margin(out, rows), held(out, rows).amin(1)),
    )


def _sum(terms: Sequence[tuple[float, Loss | None]]) -> Loss | None:
    present = [(w, loss) for w, loss in terms if loss is not None]
    if not present:
        return None

    def total(out: Outputs, rows: Rows) -> Tensor:
        values = [w * loss(out, rows) if w != 1.0 else loss(out, rows) for w, loss in present]
        return values[0] if len(values) == 1 else torch.stack(values).sum(0)

    return total


def _least(margins: Sequence[Loss | None]) -> Loss | None:
    present = [m for m in margins if m is not None]
    if not present:
        return None
    return lambda out, rows: torch.stack([m(out, rows) for m in present]).amin(0)
