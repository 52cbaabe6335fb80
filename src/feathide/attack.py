"""Attack: the one loop. FGSM, BIM, PGD, MIM, DIM, TIM, CW, HFC and every adaptive attack are values of it.

    delta_{k+1} = project(delta_k - alpha_k * steepest(g_k)),      project: the ball, then the box.

The image that is judged, differentiated and kept is the one that a file can hold (``grid``), so that what is counted is what survives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.geometry import Grid, Noise, ThreatModel
from feathide.objectives import BoundLoss, Objective
from feathide.rules import Blend, Plain, Rule, Setting, Share, Step, Together
from feathide.types import ALL, Box, Goal, Outputs, Rows

__all__ = ["Attack", "AttackResult", "Classifier", "View", "never", "when_fooled", "when_hidden"]

View = Callable[[Tensor, Noise, int], Tensor]
Smooth = Callable[[Tensor], Tensor]
Leave = Callable[[Tensor, Tensor | None], Tensor]


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
class when_hidden:  # noqa: N801 (reads as a function where it is used)
    """An image is done once the classifier is fooled and the suspicion is at most ``level``."""

    level: float

    def __call__(self, margin: Tensor, hide: Tensor | None) -> Tensor:
        return (margin > 0) & (hide is None or hide <= self.level)


@dataclass(frozen=True)
class AttackResult:
    """What an attack found. Row i is image i.

    ``adversarial`` (N, C, *S): the best iterate: one that fools if there was any, then the one with the lowest suspicion (else the lowest loss).
    ``fooled`` (N,); ``margin`` (N,): how far the wish is fulfilled, in logits; ``hide`` (N,): suspicion known to the attacker, or NaN;
    ``trace`` (steps + 1, N): the fooling loss of each iterate, NaN after an image left; ``first`` (N,): the first iterate that fooled, or -1;
    ``gradients`` and ``forwards`` (N,): how many backward and forward passes each image took.
    """

    adversarial: Tensor
    fooled: Tensor
    margin: Tensor
    hide: Tensor
    trace: Tensor
    first: Tensor
    gradients: Tensor
    forwards: Tensor


@dataclass(frozen=True, eq=False)
class Attack:
    """An attack as a value.

    ``step_size``: alpha as a fraction of eps. ``decay``: how it falls over the steps. ``rule``: how the gradient becomes a step. ``blend``: how fooling and
    hiding share the steps. ``view``: what the network sees of an iterate (DIM). ``smooth``: what becomes of a gradient (TIM). ``random_start``: the
    first iterate is random in the ball. ``restarts``: the best of so many runs, per image. ``confidence``: the lead in logits from which
    an iterate counts as one that fools when the best is chosen. ``leave``: which images are done before the last step.
    """

    objective: Objective
    threat: ThreatModel
    steps: int
    step_size: float
    decay: Literal["constant", "linear", "cosine"] = "constant"
    rule: Rule = Plain()
    blend: Blend = Together()
    view: View | None = None
    smooth: Smooth | None = None
    random_start: bool = False
    restarts: int = 1
    confidence: float = 0.0
    leave: Leave = never

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
    ) -> AttackResult:
        """Attack the images ``x`` (N, C, *S). ``ids`` name them, so that their random numbers are their own; ``grid``: the values that a file
        can hold; ``mask`` (N or 1, C or 1, *S): 1 where pixels may change. Raises ``InputError`` on arguments that do not fit together."""
        self._check(x, goal, ids)
        if grid is not None:
            grid.check(x, classifier.box)
        noise = Noise(seed, tuple(ids))
        with torch.no_grad():
            bound = self.objective.bind(classifier(x), goal, noise)
        best = _Best(x, self.steps, self.confidence)
        for restart in range(self.restarts):
            self._run(classifier, x, bound, best, noise=noise, restart=restart, grid=grid, mask=mask)
        return best.result()

    def _run(
        self,
        classifier: Classifier,
        x: Tensor,
        bound: BoundLoss,
        best: "_Best",
        *,
        noise: Noise,
        restart: int,
        grid: Grid | None,
        mask: Tensor | None,
    ) -> None:
        n, box = len(x), classifier.box
        setting = Setting(x, box, self.threat, self.steps, self.step_size, self.decay, noise)
        walk, share = self.rule.start(setting), self.blend.start(n, self.steps)
        delta = torch.zeros_like(x)
        if self.random_start:
            delta = self.threat.project(_masked(self.threat.start(x, noise, draw=restart), mask, ALL), x, box)
        rows: Rows = ALL
        if restart and self.leave is not never:
            rows = best.unfinished(self.leave)
            delta = delta[rows]
        for k in range(self.steps + 1):
            if len(delta) == 0:
                return
            stored = x[rows] + delta if grid is None else grid.store(x[rows], delta, self.threat.at(rows), box)
            last = k == self.steps
            seen = self._evaluate(classifier, bound, share, stored, rows, k=k, noise=noise, last=last)
            best.take(stored, seen, rows, k)
            if last:
                return
            done = self.leave(seen.margin, seen.hide)
            grad = seen.grad
            if bool(done.any()):
                stay = torch.arange(n, device=x.device)[rows][~done]
                keep = ~done
                rows, delta, seen = stay, delta[keep], seen.kept(keep)
                grad = seen.grad
            if grad is not None:
                grad = _masked(grad if self.smooth is None else self.smooth(grad), mask, rows)
            delta = _masked(walk(Step(k, rows, delta, seen.loss, grad)), mask, rows)

    def _evaluate(
        self, classifier: Classifier, bound: BoundLoss, share: Share, stored: Tensor, rows: Rows, *, k: int, noise: Noise, last: bool
    ) -> "_Seen":
        """The losses at an iterate and, unless it is the last, the gradient."""
        differentiate = self.rule.gradient and not last
        leaf = stored.detach().requires_grad_(differentiate)
        forwards = 1
        with torch.set_grad_enabled(differentiate):
            shown = leaf if self.view is None or last else self.view(leaf, noise[rows], k)
            out = classifier(shown)
            fool, hide, margin = _terms(bound, out, rows)
        grad, gradients = None, 0
        fooled = margin.detach() > self.confidence
        if differentiate:
            losses = (fool,) if hide is None else share.losses(fool, hide, fooled, rows)
            grads = tuple(
                torch.autograd.grad(loss.sum(), leaf, retain_graph=i + 1 < len(losses))[0] for i, loss in enumerate(losses)
            )
            gradients = len(grads)
            grad = grads[0] if hide is None else share.merge(grads, fooled)
        if shown is not leaf:  # a random view judges nothing: look at the image itself
            forwards += 1
            with torch.no_grad():
                fool, hide, margin = _terms(bound, classifier(stored), rows)
        return _Seen(fool.detach(), None if hide is None else hide.detach(), margin.detach(), grad, gradients, forwards)

    def _check(self, x: Tensor, goal: Goal, ids: Sequence[str]) -> None:
        eps = torch.as_tensor(self.threat.eps)
        if len(goal) != len(x) or len(ids) != len(x):
            raise expected(f"a goal and an id for each of {len(x)} images", got=f"{len(goal)} and {len(ids)}", do="give one of each per image")
        if eps.ndim and eps.shape != (len(x),):
            raise expected(f"eps must be a number or one per image ({len(x)},)", got=tuple(eps.shape), do="give one eps per image")
        if bool((eps < 0).any()) or not bool(torch.isfinite(eps).all()):
            raise expected("eps must be finite and not negative", got=eps.tolist(), do="give a budget in units of the box")
        if bool((goal.source == goal.target).any()):
            raise expected("targets that differ from the sources", got="equal ones", do="choose another class as the target")
        if self.steps < 0 or self.restarts < 1:
            raise expected("steps >= 0 and restarts >= 1", got=(self.steps, self.restarts), do="give at least one run")


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

    def kept(self, keep: Tensor) -> "_Seen":
        hide = None if self.hide is None else self.hide[keep]
        grad = None if self.grad is None else self.grad[keep]
        return _Seen(self.fool[keep], hide, self.margin[keep], grad, self.gradients, self.forwards)


class _Best:
    """The best iterate of each image so far, and the counts."""

    def __init__(self, x: Tensor, steps: int, confidence: float) -> None:
        n = len(x)
        nan = torch.full((n,), float("nan"), dtype=x.dtype, device=x.device)
        self.confidence = confidence
        self.x, self.margin, self.hide = x.clone(), nan.clone(), nan.clone()
        self.value = torch.full_like(nan, float("inf"))
        self.good = torch.zeros(n, dtype=torch.bool, device=x.device)
        self.trace = nan.repeat(steps + 1, 1)
        self.first = torch.full((n,), -1, device=x.device)
        self.gradients = torch.zeros(n, dtype=torch.long, device=x.device)
        self.forwards = torch.ones(n, dtype=torch.long, device=x.device)  # the clean pass that binds the objective

    def take(self, stored: Tensor, seen: _Seen, rows: Rows, k: int) -> None:
        good = seen.margin > self.confidence
        value = torch.where(good, seen.fool if seen.hide is None else seen.hide, seen.fool)
        old_good, old = self.good[rows], self.value[rows]
        better = (good & ~old_good) | ((good == old_good) & (value < old))
        at = torch.arange(len(self.x), device=self.x.device)[rows][better]
        self.x[at] = stored.detach()[better]
        self.value[at], self.good[at], self.margin[at] = value[better], good[better], seen.margin[better]
        if seen.hide is not None:
            self.hide[at] = seen.hide[better]
        self.trace[k, rows] = seen.fool
        fresh = (seen.margin > 0) & (self.first[rows] < 0)
        self.first[rows] = torch.where(fresh, k, self.first[rows])
        self.gradients[rows] += seen.gradients
        self.forwards[rows] += seen.forwards

    def unfinished(self, leave: Leave) -> Tensor:
        """The images that ``leave`` would not let go with their best iterate."""
        done = leave(self.margin, None if bool(self.hide.isnan().all()) else self.hide)
        return torch.arange(len(self.x), device=self.x.device)[~done]

    def result(self) -> AttackResult:
        return AttackResult(
            self.x, self.margin > 0, self.margin, self.hide, self.trace, self.first, self.gradients, self.forwards
        )


def _terms(bound: BoundLoss, out: Outputs, rows: Rows) -> tuple[Tensor, Tensor | None, Tensor]:
    hide = None if bound.hide is None else bound.hide(out, rows)
    fool = torch.zeros_like(out.logits[:, 0]) if bound.fool is None else bound.fool(out, rows)
    margin = torch.ones_like(fool) if bound.margin is None else bound.margin(out, rows)
    return fool, hide, margin


def _masked(value: Tensor, mask: Tensor | None, rows: Rows) -> Tensor:
    if mask is None:
        return value
    m = mask.to(value)
    return value * (m[rows] if len(m) > 1 else m)
