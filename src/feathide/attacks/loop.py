"""Attack: the one loop. FGSM, BIM, PGD, MIM, DIM, TIM, CW, HFC and every adaptive attack are
values of it.

    delta_{k+1} = project(delta_k - alpha_k * steepest(g_k)),      project: the ball, then the
    box.

The image that is judged, differentiated and kept is the one that a file can hold (``grid``), so
that what is counted is what survives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from feathide.attacks.grid import Grid
from feathide.attacks.threats import ThreatModel, check_threat, over_norm
from feathide.attacks.updates import Blend, Plain, Rule, Setting, Share, Step, Together
from feathide.data.noise import Noise
from feathide.data.valid_range import check_images, check_tensor
from feathide.errors import check_kind, expected, few, unknown
from feathide.losses import BoundLoss, Objective
from feathide.models.classifier import FeatureClassifier
from feathide.types import ALL, Box, Goal, Outputs, Rows, per_sample

__all__ = [
    "Attack",
    "AttackResult",
    "Classifier",
    "Leave",
    "View",
    "Watch",
    "never",
    "when_fooled",
    "when_hidden",
]

Decay = Literal["constant", "linear", "cosine"]
View = Callable[[Tensor, Noise, int], Tensor]
Smooth = Callable[[Tensor], Tensor]
Leave = Callable[[Tensor, Tensor | None], Tensor]
Watch = Callable[[int, Tensor, Outputs], None]


class Classifier(Protocol):
    """What an attack needs of a classifier: ``FeatureClassifier`` is one."""

    @property
    def box(self) -> Box: ...
    def __call__(self, x: Tensor) -> Outputs: ...


def never(margin: Tensor, hide: Tensor | None) -> Tensor:
    """No image leaves before the last step."""
    return torch.zeros_like(margin, dtype=torch.bool)


def when_fooled(margin: Tensor, hide: Tensor | None) -> Tensor:
    """An image is done as soon as the classifier is fooled."""
    return margin > 0


@dataclass(frozen=True)
class when_hidden:
    """An image is done once the classifier is fooled and the suspicion is at most ``level``."""

    level: float

    def __call__(self, margin: Tensor, hide: Tensor | None) -> Tensor:
        return (margin > 0) & (hide is None or hide <= self.level)


@dataclass(frozen=True)
class AttackResult:
    """What an attack found; row i is image i.

    Args:
        adversarial: The best iterates (N, C, *S): among those that fool, the one with the lowest J
            + S; before any fools, the one with the lowest J.
        fooled: Whether the classifier takes the image for what the attacker wants (N,), bool.
        margin: How far the image is beyond the decision boundary, in logits (N,); positive if
            fooled.
        hide: The suspicion S that the attacker knows (N,); NaN without a hiding term.
        trace: The fooling loss of each iterate (steps + 1, N), NaN after an image has left; with
            restarts, the lowest.
        first: The first iterate that fooled (N,), or -1.
        gradients: The number of backward passes for each image (N,).
        forwards: The number of forward passes for each image (N,).
        losses: The names of the losses that were used.
    """

    adversarial: Tensor
    fooled: Tensor
    margin: Tensor
    hide: Tensor
    trace: Tensor
    first: Tensor
    gradients: Tensor
    forwards: Tensor
    losses: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Attack:
    """An attack as a value: the one loop with an objective, a threat model and a step schedule.

        delta_{k+1} = project(delta_k - alpha_k * eps * steepest(gradient of J + S))

    ``fgsm``, ``bim``, ``pgd`` and the other recipes make it with the usual fields.

    Args:
        objective: What is minimised: J to fool, and S to hide where there is a hiding term.
        threat: The norm and the budget.
        steps: The number of steps, 0 or more.
        step_size: alpha, the length of a step as a share of eps, 0 or more.
        decay: How alpha falls over the steps: "constant", "linear" or "cosine".
        rule: How a gradient becomes a step: ``Plain``, ``Momentum``, ``AutoStep``, ``Square``.
        blend: How fooling and hiding share the steps: ``Together``, ``Selective``, ``Orthogonal``,
            ``Scheduled``.
        view: What the network is shown of an iterate, as in DIM; None for the iterate itself.
        smooth: How a gradient is smoothed, as in TIM; None for not at all.
        limit: A linear projection within which perturbations are kept, such as ``LowPass``. Each is
            projected, then shrunk into the ball; box and grid may undo some of it.
        random_start: Start at a random point of the ball; "one-sided": at its absolute value.
        restarts: The number of runs of which the best is kept for each image, at least 1.
        confidence: The lead, in units of ``unit``, from which an iterate counts as one that fools
            when the best is chosen.
        leave: Which images are finished before the last step.
        unit: The unit of the logits, positive, in which the fooling loss and the lead are measured,
            so that the weight of a hiding term does not depend on their scale. A fifth of the
            typical lead of clean images is a good choice.

    Examples:
        >>> attack = Attack(CrossEntropy(), Linf(4 / 255), steps=10, step_size=0.25)
        >>> attack.passes
        11
    """

    objective: Objective
    threat: ThreatModel
    steps: int
    step_size: float
    decay: Decay = "constant"
    rule: Rule = Plain()
    blend: Blend = Together()
    view: View | None = None
    smooth: Smooth | None = None
    limit: Smooth | None = None
    random_start: bool | Literal["one-sided"] = False
    restarts: int = 1
    confidence: float = 0.0
    leave: Leave = never
    unit: float = 1.0

    def __post_init__(self) -> None:
        check_threat(self.threat)
        if not isinstance(self.objective, Objective):
            raise expected(
                "the objective must be one such as CrossEntropy() + HFC(bank)",
                got=f"a {type(self.objective).__name__}",
                do="wrap a function of the outputs as Function(f, fools=True)",
            )
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise expected(
                    f"{name} must be a whole number",
                    got=repr(value),
                    do=f"give {name} as an int",
                )
        if not isinstance(self.step_size, int | float):
            raise expected(
                "step_size must be a number, a share of eps",
                got=repr(self.step_size),
                do="say 0.1, for example",
            )
        if self.decay not in get_args(Decay):
            raise unknown("decay", str(self.decay), get_args(Decay))

    @property
    def passes(self) -> int:
        """The iterates that are judged, each with one forward pass, where no image is finished
        early.
        """
        return (self.steps + 1) * self.restarts

    def __call__(
        self,
        classifier: Classifier,
        x: Tensor,
        goal: Goal,
        *,
        ids: Sequence[str],
        seed: int = 0,
        grid: Grid | None = None,
        mask: Tensor | None = None,
        watch: Watch | None = None,
    ) -> AttackResult:
        """Attack images.

        The result for an image depends on its id, the seed and the image, not on the rest of the
        batch.

        Args:
            classifier: What is attacked; it must let gradients through if the rule needs them.
            x: Clean images (N, C, *S) with values in the classifier's box.
            goal: The true and the wanted class of each image.
            ids: The id of each image (N,), which names its random numbers.
            seed: The seed of all random numbers.
            grid: The values that a file can hold; every iterate is judged as it would be stored.
            mask: 1 where pixels may change, else 0: (N or 1, C or 1, *S); None for everywhere.
            watch: Is called as ``watch(k, rows, outputs)`` with the outputs for the k-th iterate of
                the images ``rows``, in every run.

        Returns:
            The best image that was found for each clean one, and how it was found.

        Raises:
            InputError: Arguments that do not fit together.
        """
        _check_classifier(classifier)
        self.check(x, goal, ids, mask)
        if isinstance(classifier, FeatureClassifier):
            classifier.check(x)
        else:
            check_images(x, classifier.box)
        if grid is not None:
            check_kind("grid", grid, Grid, do="say Grid(1 / 255) for pictures of 8 bits")
            grid.check(x, classifier.box)
        layers = self.objective.reads.layers
        if (
            watch is None
            and layers is not None
            and isinstance(classifier, FeatureClassifier)
        ):
            classifier = classifier.narrowed(layers, x)
        noise = Noise(seed, tuple(ids))
        goal = Goal(goal.source.to(x.device), goal.target.to(x.device))
        case = _Case(
            classifier,
            x,
            _Wish(self.objective, classifier, x, goal, noise),
            grid,
            mask,
            watch,
        )
        best = _Best(x, self.steps, self.confidence)
        for restart in range(self.restarts):
            rows = best.unfinished(self.leave) if restart else ALL
            if isinstance(rows, slice) or len(rows):
                self._run(case, best, rows, noise.within(restart))
        return best.result(case.wish.name)

    def _run(self, case: "_Case", best: "_Best", rows: Rows, noise: Noise) -> None:
        """One run on the images ``rows``."""
        box, mask = case.classifier.box, case.mask
        setting = Setting(
            case.x, box, self.threat, self.steps, self.step_size, self.decay, noise
        )
        walk, share = self.rule.start(setting), self.blend.start(len(case.x), self.steps)
        delta = torch.zeros_like(case.x[rows])
        if self.random_start:
            delta = self.threat.at(rows).start(case.x[rows], noise[rows], draw="start")
            delta = delta.abs() if self.random_start == "one-sided" else delta
            delta = self._allowed(
                setting, setting.project(_masked(delta, mask, rows), rows), mask, rows
            )
        for k in range(self.steps + 1):
            threat, clean = self.threat.at(rows), case.x[rows]
            stored = (
                (clean + delta).clamp_(*box)
                if case.grid is None
                else case.grid.store(clean, delta, threat, box)
            )
            seen, out = self._evaluate(case, share, stored, rows, k=k, noise=noise)
            if case.watch is not None:
                case.watch(k, _numbers(rows, case.x), out.detach())
            best.take(stored, seen, rows, k)
            if self.leave is not never:
                stay = ~self.leave(seen.margin - self.confidence, seen.hide)
                if not bool(stay.all()):
                    rows, delta, seen = (
                        _numbers(rows, case.x)[stay],
                        delta[stay],
                        seen.at(stay),
                    )
            if k == self.steps or len(delta) == 0:
                return
            grad = seen.grad
            if grad is not None:
                grad = _masked(
                    grad if self.smooth is None else self.smooth(grad), mask, rows
                )
                grad = grad if self.limit is None else self.limit(grad)
            delta = self._allowed(
                setting,
                _masked(walk(Step(k, rows, delta, seen.loss, grad)), mask, rows),
                mask,
                rows,
            )

    def _allowed(
        self, setting: Setting, delta: Tensor, mask: Tensor | None, rows: Rows
    ) -> Tensor:
        """``delta`` brought into the ``limit``, shrunk into the ball, and into the box."""
        if self.limit is None:
            return delta
        threat, low = self.threat.at(rows), self.limit(delta)
        room = over_norm(per_sample(threat.eps, low).expand_as(low), threat.size(low))
        return _masked(setting.project(low * room.clamp_max(1), rows), mask, rows)

    def _evaluate(
        self,
        case: "_Case",
        share: Share,
        stored: Tensor,
        rows: Rows,
        *,
        k: int,
        noise: Noise,
    ) -> tuple["_Seen", Outputs]:
        """The losses at an iterate and, unless it is the last, the gradient; and what the
        classifier says of it.
        """
        differentiate = self.rule.gradient and k < self.steps
        leaf = stored.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            shown = (
                self.view(leaf, noise[rows], k)
                if self.view is not None and differentiate
                else leaf
            )
            out = case.classifier(shown)
            bound, forwards = case.wish.bound(out, shown)
            fool, hide, margin = _terms(bound, out, rows, self.unit)
            fooled = margin.detach() > self.confidence
            shared = hide is not None and bound.fool is not None
            single = fool if hide is None else hide
            losses = share.losses(fool, single, fooled, rows) if shared else (single,)
            totals = [loss.sum() for loss in losses] if differentiate else []
        grads = tuple(_slope(t, leaf, retain=t is not totals[-1]) for t in totals)
        grad = None if not grads else share.merge(grads, fooled) if shared else grads[0]
        if shown is not leaf:  # a random view judges nothing: look at the image itself
            forwards += 1
            with torch.no_grad():
                out = case.classifier(stored)
                fool, hide, margin = _terms(bound, out, rows, self.unit)
        hide = None if hide is None else hide.detach()
        return _Seen(fool.detach(), hide, margin.detach(), grad, len(grads), forwards), out

    def check(
        self, x: Tensor, goal: Goal, ids: Sequence[str], mask: Tensor | None = None
    ) -> None:
        """Refuse arguments that do not fit together."""
        check_tensor("images", x)
        _check_goal(goal)
        n, eps = len(x), _eps_of(self.threat)
        if len(goal.source) != n or len(goal.target) != n or len(ids) != n:
            got = (
                f"{len(goal.source)} sources, {len(goal.target)} targets and {len(ids)} ids"
            )
            raise expected(
                f"a source, a target and an id for each of {n} images",
                got=got,
                do="give one of each per image",
            )
        if len(set(ids)) != n:
            seen = list(ids)
            twice = sorted({str(i) for i in seen if seen.count(i) > 1})
            raise expected(
                "the ids of the images must differ, as random numbers are drawn by them",
                got=f"{few(twice)} more than once",
                do="name every image once",
            )
        if eps.ndim and eps.shape != (n,):
            raise expected(
                f"eps must be a number or one per image ({n},)",
                got=tuple(eps.shape),
                do="give one eps per image",
            )
        if bool((eps < 0).any()) or not bool(torch.isfinite(eps).all()):
            raise expected(
                "eps must be finite and not negative",
                got=eps.tolist(),
                do="give a budget in units of the box",
            )
        same = (
            (goal.source == goal.target.to(goal.source.device)).nonzero().flatten().tolist()
        )
        if same:
            raise expected(
                "targets must differ from the sources",
                got=f"equal ones for {ids[same[0]]!r}",
                do="choose another class as the target",
            )
        if self.steps < 0 or self.restarts < 1 or self.step_size < 0 or self.confidence < 0:
            got = (
                f"steps={self.steps}, restarts={self.restarts}, step_size={self.step_size:g}, "
                f"confidence={self.confidence:g}"
            )
            raise expected(
                "at least one run, and no negative steps, step_size or confidence",
                got=got,
                do="correct it",
            )
        if not self.unit > 0:
            raise expected(
                "the unit of the logits must be positive",
                got=self.unit,
                do="leave it out for 1",
            )
        if mask is not None and (
            mask.ndim != x.ndim
            or any(m not in (1, s) for m, s in zip(mask.shape, x.shape, strict=True))
        ):
            raise expected(
                f"mask must be (N or 1, C or 1, *S) for images {tuple(x.shape)}",
                got=tuple(mask.shape),
                do="give it the images' axes",
            )


def _check_classifier(classifier: object) -> None:
    if isinstance(classifier, nn.Module):
        raise expected(
            "an attack needs a classifier that shows its features",
            got=f"the bare network {type(classifier).__name__}",
            do='wrap it: FeatureClassifier(network.eval(), "blocks")',
        )


def _check_goal(goal: object) -> None:
    if not isinstance(goal, Goal):
        raise expected(
            "the goal must say the classes before and after",
            got=f"a {type(goal).__name__}",
            do="give Goal(labels, targets)",
        )
    for name, classes in (("source", goal.source), ("target", goal.target)):
        check_tensor(f"the {name} classes of the goal", classes)
        if classes.ndim != 1 or classes.is_floating_point():
            raise expected(
                f"the {name} classes of the goal must be whole numbers, one for each image (N,)",
                got=f"{classes.dtype} of shape {tuple(classes.shape)}",
                do="give labels as torch.long",
            )


def _eps_of(threat: ThreatModel) -> Tensor:
    try:
        return torch.as_tensor(threat.eps)
    except (TypeError, ValueError, RuntimeError):
        raise expected(
            "eps must be a number in units of the box, or one for each image (N,)",
            got=repr(threat.eps),
            do="compute it, as in 4 / 255",
        ) from None


@dataclass(frozen=True)
class _Case:
    """What all runs of one call share."""

    classifier: Classifier
    x: Tensor
    wish: "_Wish"
    grid: Grid | None
    mask: Tensor | None
    watch: Watch | None


class _Wish:
    """The objective, bound to the images at the first look at them.

    It is bound to the clean outputs if it reads them, else to those of the first iterate, which
    have the same layers and classes: a random start then saves the clean pass. Where the first
    iterate is the clean image, its outputs are the clean ones."""

    def __init__(
        self,
        objective: Objective,
        classifier: Classifier,
        x: Tensor,
        goal: Goal,
        noise: Noise,
    ) -> None:
        self._objective, self._classifier, self._x, self._goal, self._noise = (
            objective,
            classifier,
            x,
            goal,
            noise,
        )
        self._bound: BoundLoss | None = None

    @property
    def name(self) -> str:
        return "" if self._bound is None else self._bound.name

    def bound(self, out: Outputs, shown: Tensor) -> tuple[BoundLoss, int]:
        """The loss, and how many forward passes were made up to here for the outputs ``out`` of
        the images ``shown``.
        """
        if self._bound is not None:
            return self._bound, 1
        # the other findings are held where they were
        reads = self._objective.reads.clean or out.others is not None
        again = reads and not torch.equal(shown, self._x)
        with torch.no_grad():
            clean = self._classifier(self._x) if again else out.detach()
            _check_classes(self._goal, clean.logits.shape[1])
            self._bound = self._objective.bind(clean, self._goal, self._noise)
        return self._bound, 1 + again


def _check_classes(goal: Goal, classes: int) -> None:
    both = torch.cat([goal.source, goal.target])
    if int(both.amin()) < 0 or int(both.amax()) >= classes:
        got = f"{int(both.amin())} to {int(both.amax())}"
        raise expected(
            f"sources and targets must be classes 0 to {classes - 1}",
            got=got,
            do="number them as the network's outputs",
        )


@dataclass(frozen=True)
class _Seen:
    fool: Tensor
    hide: Tensor | None
    margin: Tensor
    grad: Tensor | None
    gradients: int
    forwards: int

    @property
    def loss(self) -> Tensor:
        return self.fool if self.hide is None else self.fool + self.hide

    def at(self, rows: Tensor) -> "_Seen":
        hide = None if self.hide is None else self.hide[rows]
        grad = None if self.grad is None else self.grad[rows]
        return _Seen(
            self.fool[rows], hide, self.margin[rows], grad, self.gradients, self.forwards
        )


class _Best:
    """The best iterate of each image so far, and the counts."""

    def __init__(self, x: Tensor, steps: int, confidence: float) -> None:
        n = len(x)
        nan = torch.full((n,), float("nan"), dtype=x.dtype, device=x.device)
        self.confidence = confidence
        self.x, self.margin, self.hide = x.clone(), nan.clone(), nan.clone()
        self.value = torch.full_like(nan, float("inf"))
        self.tier = torch.full((n,), -1, device=x.device)
        self.trace = nan.repeat(steps + 1, 1)
        self.first = torch.full((n,), -1, device=x.device)
        self.gradients = torch.zeros(n, dtype=torch.long, device=x.device)
        self.forwards = torch.zeros(n, dtype=torch.long, device=x.device)

    def take(self, stored: Tensor, seen: _Seen, rows: Rows, k: int) -> None:
        """Keep what fools with confidence (tier 2) before what fools (1) before the rest (0),
        then the lowest loss J + S, before it fools J.

        S alone would keep the image that lies nearest to the decision boundary, and uncertainty
        is what many detectors look for."""
        tier = (seen.margin > 0).long() + (seen.margin > self.confidence)
        value = torch.where(tier == 2, seen.loss, seen.fool)
        better = (tier > self.tier[rows]) | (
            (tier == self.tier[rows]) & (value < self.value[rows])
        )

        def keep(old: Tensor, new: Tensor) -> Tensor:
            wide = better.reshape(-1, *[1] * (new.ndim - 1))
            return _put(old, rows, torch.where(wide, new.to(old), old[rows]))

        self.x, self.tier = keep(self.x, stored.detach()), keep(self.tier, tier)
        self.value, self.margin = keep(self.value, value), keep(self.margin, seen.margin)
        if seen.hide is not None:
            self.hide = keep(self.hide, seen.hide)
        self.trace[k, rows] = torch.fmin(self.trace[k, rows], seen.fool.to(self.trace))
        fresh = (seen.margin > 0) & (self.first[rows] < 0)
        self.first[rows] = torch.where(fresh, k, self.first[rows])
        self.gradients[rows] += seen.gradients
        self.forwards[rows] += seen.forwards

    def unfinished(self, leave: Leave) -> Tensor:
        """The images that ``leave`` would not let go with their best iterate."""
        hide = None if bool(self.hide.isnan().all()) else self.hide
        return (~leave(self.margin - self.confidence, hide)).nonzero().flatten()

    def result(self, name: str) -> AttackResult:
        return AttackResult(
            self.x,
            self.margin > 0,
            self.margin,
            self.hide,
            self.trace,
            self.first,
            self.gradients,
            self.forwards,
            (name,),
        )


def _numbers(rows: Rows, x: Tensor) -> Tensor:
    """The images ``rows`` of ``x`` as numbers."""
    return torch.arange(len(x), device=x.device) if isinstance(rows, slice) else rows


def _put(old: Tensor, rows: Rows, new: Tensor) -> Tensor:
    """``old`` with ``new`` at ``rows``, in place where that is not all of it."""
    if isinstance(rows, slice):
        return new
    old[rows] = new
    return old


def _slope(loss: Tensor, leaf: Tensor, *, retain: bool) -> Tensor:
    grad = None
    if loss.requires_grad:
        (grad,) = torch.autograd.grad(loss, leaf, retain_graph=retain, allow_unused=True)
    if grad is None:
        raise expected(
            "the loss of a gradient attack must depend on the image",
            got="one that is detached from it",
            do=(
                "take detach(), no_grad or numpy out of the network or the detector, or attack "
                "with square"
            ),
        )
    return grad


def _terms(
    bound: BoundLoss, out: Outputs, rows: Rows, unit: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    hide = None if bound.hide is None else bound.hide(out, rows)
    if unit != 1.0:
        out = replace(
            out,
            logits=out.logits / unit,
            others=None if out.others is None else out.others / unit,
        )
    fool = (
        torch.zeros_like(out.logits[:, 0]) if bound.fool is None else bound.fool(out, rows)
    )
    margin = torch.ones_like(fool) if bound.margin is None else bound.margin(out, rows)
    return fool, hide, margin


def _masked(value: Tensor, mask: Tensor | None, rows: Rows) -> Tensor:
    if mask is None:
        return value
    m = mask.to(value)
    return value * (m[rows] if len(m) > 1 else m)
