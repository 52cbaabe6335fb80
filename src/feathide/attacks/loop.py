"""Attack: the one loop. FGSM, BIM, PGD, MIM, DIM, TIM, CW, HFC and every adaptive attack are
values of it.

    delta_{k+1} = project(delta_k - alpha_k * steepest(g_k)),      project: the ball, then the
    box.

The image that is judged, differentiated and kept is the one that a file can hold (``grid``), so
that what is counted is what survives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from feathide.attacks.arguments import (
    check_classifier,
    check_images_and_goal,
    check_mask,
    check_values,
)
from feathide.attacks.grid import Grid
from feathide.attacks.iterate import (
    BoundObjective,
    Case,
    Classifier,
    Seen,
    Watch,
    masked,
    numbers,
    slope,
    terms,
)
from feathide.attacks.leave import Leave, never
from feathide.attacks.result import AttackResult, Best
from feathide.attacks.threats import ThreatModel, check_threat, over_norm
from feathide.attacks.updates import Blend, Plain, Rule, Setting, Share, Step, Together
from feathide.data.noise import Noise
from feathide.errors import expected, unknown
from feathide.losses import Objective
from feathide.models.classifier import FeatureClassifier
from feathide.types import ALL, Aim, Goal, Outputs, Rows, per_sample

__all__ = [
    "Attack",
    "View",
]

Decay = Literal["constant", "linear", "cosine"]
View = Callable[[Tensor, Noise, int], Tensor]
Smooth = Callable[[Tensor], Tensor]


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
        goal: Aim,
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
            goal: The true and the wanted class of each image; of a dense network, what is to
                happen to a structure or a landmark: see ``feathide.goals``.
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
        check_classifier(classifier)
        self.check(x, goal, ids, mask)
        check_values(classifier, x, grid)
        if watch is None:
            classifier = self._narrowed(classifier, x)
        noise = Noise(seed, tuple(ids))
        goal = goal.to(x.device)
        case = Case(
            classifier,
            x,
            goal,
            BoundObjective(self.objective, classifier, x, goal, noise),
            grid,
            mask,
            watch,
        )
        best = Best(x, self.steps, self.confidence)
        for restart in range(self.restarts):
            rows = best.unfinished(self.leave) if restart else ALL
            if isinstance(rows, slice) or len(rows):
                self._run(case, best, rows, noise.within(restart))
        return best.result(case.objective.name)

    def _narrowed(self, classifier: Classifier, x: Tensor) -> Classifier:
        """The classifier, showing no layer that the objective does not read."""
        layers = self.objective.reads.layers
        if layers is None or not isinstance(classifier, FeatureClassifier):
            return classifier
        return classifier.narrowed(layers, x)

    def _run(self, case: Case, best: Best, rows: Rows, noise: Noise) -> None:
        """One run on the images ``rows``."""
        box, mask = case.classifier.box, case.mask
        setting = Setting(
            case.x, box, self.threat, self.steps, self.step_size, self.decay, noise
        )
        walk, share = self.rule.start(setting), self.blend.start(len(case.x), self.steps)
        delta = self._start(setting, case, rows)
        for k in range(self.steps + 1):
            stored = self._stored(case, delta, rows)
            seen, out = self._evaluate(case, share, stored, rows, k=k, noise=noise)
            if case.watch is not None:
                case.watch(k, numbers(rows, case.x), out.detach())
            best.take(stored, seen, rows, k)
            if self.leave is not never:
                stay = ~self.leave(seen.margin - self.confidence, seen.hide)
                if not bool(stay.all()):
                    rows = numbers(rows, case.x)[stay]
                    delta, seen = delta[stay], seen.at(stay)
            if k == self.steps or len(delta) == 0:
                return
            grad = self._smoothed(seen.grad, mask, rows)
            delta = masked(walk(Step(k, rows, delta, seen.loss, grad)), mask, rows)
            delta = self._allowed(setting, delta, mask, rows)

    def _start(self, setting: Setting, case: Case, rows: Rows) -> Tensor:
        """The perturbation before the first step: none, or a random one."""
        if not self.random_start:
            return torch.zeros_like(case.x[rows])
        draws = setting.noise[rows]
        delta = self.threat.at(rows).start(case.x[rows], draws, draw="start")
        if self.random_start == "one-sided":
            delta = delta.abs()
        delta = setting.project(masked(delta, case.mask, rows), rows)
        return self._allowed(setting, delta, case.mask, rows)

    def _stored(self, case: Case, delta: Tensor, rows: Rows) -> Tensor:
        """The iterate as a file will hold it."""
        clean, box = case.x[rows], case.classifier.box
        if case.grid is None:
            return (clean + delta).clamp_(*box)
        return case.grid.store(clean, delta, self.threat.at(rows), box)

    def _smoothed(
        self, grad: Tensor | None, mask: Tensor | None, rows: Rows
    ) -> Tensor | None:
        """The gradient, smoothed and limited, where pixels may change."""
        if grad is None:
            return None
        if self.smooth is not None:
            grad = self.smooth(grad)
        grad = masked(grad, mask, rows)
        return grad if self.limit is None else self.limit(grad)

    def _allowed(
        self, setting: Setting, delta: Tensor, mask: Tensor | None, rows: Rows
    ) -> Tensor:
        """``delta`` brought into the ``limit``, shrunk into the ball, and into the box."""
        if self.limit is None:
            return delta
        threat, low = self.threat.at(rows), self.limit(delta)
        room = over_norm(per_sample(threat.eps, low).expand_as(low), threat.size(low))
        return masked(setting.project(low * room.clamp_max(1), rows), mask, rows)

    def _evaluate(
        self,
        case: Case,
        share: Share,
        stored: Tensor,
        rows: Rows,
        *,
        k: int,
        noise: Noise,
    ) -> tuple[Seen, Outputs]:
        """The losses at an iterate and, unless it is the last, the gradient; and what the
        classifier says of it.
        """
        differentiate = self.rule.gradient and k < self.steps
        leaf = stored.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            shown = leaf
            if self.view is not None and differentiate:
                shown = self.view(leaf, noise[rows], k)
            out = case.classifier(shown)
            bound, forwards = case.objective.bound(out, shown)
            done = k / max(self.steps, 1)
            term = terms(bound, out, rows, self.unit, done)
            fooled = term.margin.detach() > self.confidence
            # where there is something to share, the blend says which losses are differentiated
            shared = term.hide is not None and bound.fool is not None
            single = term.pushed if term.hide is None else term.hide
            losses = (
                share.losses(term.pushed, single, fooled, rows) if shared else (single,)
            )
            totals = [loss.sum() for loss in losses] if differentiate else []
        grads = tuple(slope(t, leaf, retain=t is not totals[-1]) for t in totals)
        grad = None if not grads else share.merge(grads, fooled) if shared else grads[0]
        if shown is not leaf:  # a random view judges nothing: look at the image itself
            forwards += 1
            with torch.no_grad():
                out = case.classifier(stored)
                term = terms(bound, out, rows, self.unit, done)
        fool, margin = term.fool.detach(), term.margin.detach()
        seen = Seen(
            fool,
            None if term.hide is None else term.hide.detach(),
            margin,
            case.goal.rank(fool, margin),
            grad,
            len(grads),
            forwards,
        )
        return seen, out

    def check(
        self, x: Tensor, goal: Aim, ids: Sequence[str], mask: Tensor | None = None
    ) -> None:
        """Refuse arguments that do not fit together."""
        check_images_and_goal(x, goal, ids, self.threat)
        self._check_fields()
        self._check_dense(goal)
        check_mask(mask, x)

    def _check_dense(self, goal: Aim) -> None:
        """Refuse what only makes sense of one answer an image."""
        if isinstance(goal, Goal):
            return
        if self.view is not None:
            raise expected(
                "an attack on a dense network must show it the images where they are",
                got="a view that moves them, as DIM has",
                do="choose another attack, such as mim",
            )
        if self.unit != 1.0 and not goal.in_logits:
            raise expected(
                "positions have a unit of their own, voxels",
                got=f"unit={self.unit:g}",
                do="leave unit out",
            )

    def _check_fields(self) -> None:
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
