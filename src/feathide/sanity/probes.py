"""Probes: small extra attacks on the detector-training split whose outcome is known in advance if
the evaluation is sound. The sanity checks judge them.

A ``Trial`` is all that a probe needs; ``measure`` runs the probes and gives plain arrays;
``probe_tasks(context)`` are the tasks of an audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.attacks.grid import Grid
from feathide.attacks.leave import never, when_fooled, when_hidden
from feathide.attacks.loop import Attack
from feathide.attacks.presets import fgsm, noise, pgd, square
from feathide.attacks.threats import Linf
from feathide.attacks.updates import Selective
from feathide.catalog import OBJECTIVES, ability_of
from feathide.data.noise import Noise
from feathide.detectors import Detector
from feathide.detectors.base import needs_of
from feathide.execution.digests import digest
from feathide.execution.engine import Task
from feathide.execution.store import Store
from feathide.losses import BoundLoss, Evade, Objective
from feathide.losses.hiding import score_of
from feathide.metrics.statistics import spearman
from feathide.models.classifier import FeatureClassifier
from feathide.models.loading import check_network
from feathide.pipeline.context import PLAIN, Attacker, Context, context_of
from feathide.pipeline.steps import Arrays, attack_of, needed, weight_of
from feathide.plans.plan import Cell
from feathide.plans.sections import AttackPlan, ObjectivePlan
from feathide.sanity.surrogate import surrogate_key, surrogate_of, surrogate_task
from feathide.types import ALL, Aim, Goal, Outputs, Rows

__all__ = [
    "FLAGS",
    "Guard",
    "Readout",
    "Trial",
    "measure",
    "numbered",
    "planted",
    "probe_key",
    "probe_tasks",
    "probes_in",
    "trial_of",
]

CASES = 16
# images, steps and queries by which the gradient of each guard is tried
LOOKED, STEPS, QUERIES = 8, 12, 32
SMALL = 0.05  # the ball of the stability probe, as a share of eps
DRAWS = 4
# how much more a standard deviation of suspicion costs than a unit of the readout
STRICT = 10.0
# of a score's spread: so much more suspicious than the planted image may be what finds it
SLACK = 0.1
# images that a readout is fitted on: inside the ball, and candidates for the planted one
INNER, CORNERS = 24, 8
FLAGS = {
    "random": "the network is random",
    "probabilities": "the outputs look like prob",
    "blind": "no gradient",
}


@dataclass(frozen=True)
class Guard:
    """A fitted detector, its threshold at 10 % false alarms and the spread of its clean
    scores.
    """

    detector: Detector
    limit: float
    scale: float


@dataclass(frozen=True)
class Trial:
    """Some images that the classifier gets right, the plain ``attack`` of the audit, its
    ``hidden`` ones and the guards.
    """

    classifier: FeatureClassifier
    # as the guards read it, with dropout draws or a reference network where one needs them
    observer: FeatureClassifier
    surrogate: FeatureClassifier  # another network for the same images
    x: Tensor
    goal: Goal
    ids: Sequence[str]
    attack: Attack
    hidden: Mapping[str, Attack] = field(default_factory=dict)
    guards: Mapping[str, Guard] = field(default_factory=dict)
    grid: Grid | None = None
    # where pixels may change; the unbounded attack and the planted point are free of it
    mask: Tensor | None = None
    seed: int = 0


def measure(trial: Trial) -> dict[str, np.ndarray]:
    """All probes. Keys, with n images, S steps and m images with a planted point:

    ``flag/<name>``: a flag of the network; ``gradient`` (n,): the largest slope of the attack's
    loss at the clean image; ``noise``, ``single``, ``base``, ``double``, ``whole``, ``transfer``
    (n,): who was fooled by random noise, one step, the attack, twice its steps, a budget as large
    as the box, and the attack on the surrogate; ``trace`` (S + 1, n); ``kept`` (n,): the share of
    a small ball that keeps the attack's decision; ``base/<objective>`` and ``double/<objective>``
    (n,); ``rank/<objective>`` (D,): rank correlation of the hiding loss with each detector's
    score; ``lower/<detector>`` (3, 2 k): by how many spreads of clean scores a score fell from
    the first k images, clean and attacked, by its own gradient, by a search without gradients and
    in the images that were made for other ends; NaN for the first where no gradient leads from
    the score to the image; ``undifferentiable/<detector>``: whether it says so;
    ``planted`` (m,): who found it with all detectors in the loop, ``planted/<detector>`` with
    one; ``batch/<detector>``: how far a score depends on its batch."""
    arrays = {f"flag/{name}": np.asarray(raised) for name, raised in _flags(trial).items()}
    arrays["gradient"] = _slope(trial)
    plain = trial.attack
    quick = replace(plain, leave=when_fooled)
    base = _run(trial, plain)
    for name, attack in {
        "noise": noise(plain.threat),
        "single": fgsm(plain.threat),
        "double": replace(quick, steps=2 * plain.steps),
        "whole": replace(
            quick, steps=2 * plain.steps, threat=plain.threat.scaled(_whole(trial))
        ),
    }.items():
        arrays[name] = _run(trial, attack, free=name == "whole")[1]
    arrays["transfer"] = _run(trial, plain, trial.surrogate)[1]
    arrays |= {"base": base[1], "trace": base[2], "kept": _kept(trial, base[0])}
    others = [base[0]]
    for name, attack in trial.hidden.items():
        found = _run(trial, attack, trial.observer)
        arrays[f"base/{name}"] = found[1]
        arrays[f"double/{name}"] = _run(
            trial, replace(attack, steps=2 * attack.steps), trial.observer
        )[1]
        arrays[f"rank/{name}"] = _ranks(trial, attack, torch.cat([base[0], found[0]]))
        others.append(found[0])
    with torch.no_grad():
        out = trial.observer(trial.x).to("cpu")
    arrays |= {
        f"batch/{name}": np.asarray(_batch_gap(g.detector, out))
        for name, g in trial.guards.items()
    }
    arrays |= {
        f"undifferentiable/{n}": np.asarray(not g.detector.differentiable)
        for n, g in trial.guards.items()
    }
    return arrays | lowered(trial, base[0], others) | planted(trial)


def _run(
    trial: Trial,
    attack: Attack,
    classifier: FeatureClassifier | None = None,
    *,
    free: bool = False,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """The images, who is fooled by them (predicted again), and the trace."""
    c = classifier or trial.classifier
    found = attack(
        c,
        trial.x,
        trial.goal,
        ids=trial.ids,
        seed=trial.seed,
        grid=trial.grid,
        mask=None if free else trial.mask,
    )
    with torch.no_grad():
        fooled = trial.classifier(found.adversarial).predicted == trial.goal.target
    return found.adversarial, fooled.cpu().numpy(), found.trace.cpu().numpy()


def _whole(trial: Trial) -> float:
    """How many times eps is a budget from which every image of the box can be reached."""
    low, high = trial.classifier.box
    reach = (high - low) * (
        1.0 if isinstance(trial.attack.threat, Linf) else float(trial.x[0].numel()) ** 0.5
    )
    return reach / float(torch.as_tensor(trial.attack.threat.eps).min())


def _flags(trial: Trial) -> dict[str, bool]:
    c = trial.classifier
    with torch.no_grad():
        classes = c(trial.x[:1]).logits.shape[1]
    said = check_network(c.model, c.prepared(trial.x[:8]), classes, c.head, output=c.output)
    return {name: any(s.startswith(start) for s in said) for name, start in FLAGS.items()}


def _slope(trial: Trial) -> np.ndarray:
    """max |d J / d x| of each image, (n,)."""
    x = trial.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        out = trial.classifier(x)
        bound = trial.attack.objective.bind(
            out.detach(), trial.goal, Noise(trial.seed, tuple(trial.ids))
        )
        assert bound.fool is not None
        (grad,) = torch.autograd.grad(bound.fool(out, ALL).sum(), x)
    return grad.flatten(1).abs().amax(1).cpu().numpy()


def _kept(trial: Trial, adversarial: Tensor) -> np.ndarray:
    """The share of random points in a small ball around each attacked image at which the decision
    is the same, (n,).
    """
    small, drawn = trial.attack.threat.scaled(SMALL), Noise(trial.seed, tuple(trial.ids))
    with torch.no_grad():
        decision = trial.classifier(adversarial).predicted
        same = []
        for k in range(DRAWS):
            delta = small.project(
                small.start(adversarial, drawn, draw=f"ball {k}"),
                adversarial,
                trial.classifier.box,
            )
            same.append(trial.classifier(adversarial + delta).predicted == decision)
    return torch.stack(same).double().mean(0).cpu().numpy()


def _ranks(trial: Trial, attack: Attack, images: Tensor) -> np.ndarray:
    """Spearman's rho of the attacker's hiding loss and each detector's score over ``images``,
    plain and hidden ones of each case, (D,).
    """
    goal = Goal(trial.goal.source.repeat(2), trial.goal.target.repeat(2))
    with torch.no_grad():
        clean = trial.observer(trial.x.repeat(2, *[1] * (trial.x.ndim - 1)))
        bound = attack.objective.bind(clean, goal, Noise(trial.seed, tuple(trial.ids) * 2))
        out = trial.observer(images)
        assert bound.hide is not None
        hide = bound.hide(out, ALL).cpu().numpy()
        scores = [
            g.detector.score(replace(out, assumed=goal.target)).cpu().numpy()
            for g in trial.guards.values()
        ]
    return np.array([spearman(hide, s) for s in scores])


def _batch_gap(detector: Detector, out: Outputs) -> float:
    """The largest change of a score when its row stands alone, in units of the scores' spread."""
    out = out.to(torch.float64)
    with torch.no_grad():
        whole = detector.score(out)
        alone = torch.cat([detector.score(out[i : i + 1]) for i in range(len(out))])
    return float((whole - alone).abs().max() / whole.std().clamp_min(1e-12))


# --- the gradient of each guard -----------------------------------------------------------------


def lowered(
    trial: Trial, attacked: Tensor, others: Sequence[Tensor]
) -> dict[str, np.ndarray]:
    """How far each detector's score falls within the budget, ``lower/<detector>`` (3, 2 k): from
    the clean images, and from the ``attacked`` ones, which the detector may find so suspicious
    that it is flat there. Whoever has its gradient does at least as well as a search without one
    (Square), and as
    ``others``: images of the same cases that were made for other ends; those made against the
    other detectors and the clean ones are among them.
    """
    k, threat, box = min(LOOKED, len(trial.x)), trial.attack.threat, trial.classifier.box
    x = torch.cat([trial.x[:k], attacked[:k]])
    mask = (
        trial.mask
        if trial.mask is None or len(trial.mask) == 1
        else trial.mask[:k].repeat(2, *[1] * (x.ndim - 1))
    )
    goal = Goal(trial.goal.source[:k].repeat(2), trial.goal.target[:k].repeat(2))
    ids = [f"{side} {name}" for side in ("clean", "attacked") for name in trial.ids[:k]]
    few = replace(trial, x=x, goal=goal, ids=ids, mask=mask, grid=None)
    own, blind = {}, {}
    for name, guard in trial.guards.items():
        aim, seen = Evade((guard.detector,), scales=(guard.scale,)), _watcher(few, guard)
        if _leads(few, guard):
            schedule = pgd(
                threat, objective=aim, steps=STEPS, step_size=0.25, decay="cosine"
            )
            own[name] = _run(few, schedule, seen)[0]
        blind[name] = _run(
            few, square(threat, objective=aim, queries=QUERIES, leave=never), seen
        )[0]
    shared = [image[:k].repeat(2, *[1] * (x.ndim - 1)) for image in (trial.x, *others)]
    found: dict[str, np.ndarray] = {}
    for name, guard in trial.guards.items():
        rest = shared + [image for n, image in own.items() if n != name]
        # what lies outside the ball, at its rim
        near = [x + threat.project(image - x, x, box) for image in rest]
        least = np.min([_scores(few, guard, image) for image in near], axis=0)
        first = _scores(few, guard, own[name]) if name in own else np.full(2 * k, np.nan)
        found[f"lower/{name}"] = (
            _scores(few, guard, x)
            - np.stack([first, _scores(few, guard, blind[name]), least])
        ) / guard.scale
    return found


def _watcher(trial: Trial, guard: Guard) -> FeatureClassifier:
    """The classifier as one guard reads it."""
    return trial.observer if needs_of(guard.detector) else trial.classifier


def _scores(trial: Trial, guard: Guard, x: Tensor) -> np.ndarray:
    """What a guard would say of ``x`` once it is taken for the target, (k,)."""
    with torch.no_grad():
        out = _watcher(trial, guard)(x)
        return (
            guard.detector.score(replace(out, assumed=trial.goal.target))
            .double()
            .cpu()
            .numpy()
        )


def _leads(trial: Trial, guard: Guard) -> bool:
    """Whether a gradient leads from a guard's score back to the image at all."""
    with torch.enable_grad():
        out = _watcher(trial, guard)(trial.x.detach().clone().requires_grad_())
        return guard.detector.score(replace(out, assumed=trial.goal.target)).requires_grad


# --- a point that must be found -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Readout(Objective):
    """J = softplus(-g_i), g_i(x) = f(x) w_i - b_i: another question about the last layer's
    features for each image, whose answer is known to be yes somewhere in the ball. Hidden from
    ``guards``: each score is held at or below ``limits`` (D, n).
    """

    weight: Tensor
    bias: Tensor
    guards: tuple[Guard, ...]
    limits: Tensor

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        def answer(out: Outputs, rows: Rows) -> Tensor:
            return (out.last.double() * self.weight[rows]).sum(1) - self.bias[rows]

        def hide(out: Outputs, rows: Rows) -> Tensor:
            excess = [
                STRICT * F.relu(score_of(g.detector, out) - limit[rows]) / g.scale
                for g, limit in zip(self.guards, self.limits, strict=True)
            ]
            return torch.stack(excess).sum(0)

        return BoundLoss(
            fool=lambda out, rows: F.softplus(-answer(out, rows)),
            margin=answer,
            hide=hide if self.guards else None,
            name="readout",
        )


def planted(trial: Trial) -> dict[str, np.ndarray]:
    """The binarisation test (Zimmermann et al. 2022) with the detectors in the loop: who found
    the planted point, (m,) of at most n images, with all of them, ``planted``, and, where there
    are several, with each of them on fewer images, ``planted/<detector>``.

    Of ``CORNERS`` random images at the rim of the ball the one is planted that a linear readout
    of the last layer tells best from ``INNER`` random images inside half of the ball. The attack
    must find an image that the readout calls planted and that no detector finds more suspicious,
    by ``SLACK``, than its threshold or the planted image. Images whose rim cannot be told from
    the inside are left out."""
    n, threat, box = len(trial.x), trial.attack.threat, trial.classifier.box
    drawn = Noise(trial.seed, tuple(trial.ids))

    def around(share: float, k: int) -> Outputs:
        ball = threat.scaled(share)
        delta = ball.start(trial.x, drawn, draw=f"{share} {k}")
        delta = (
            delta
            if share < 1
            else ball.steepest(delta) * float(torch.as_tensor(threat.eps).min())
        )
        with torch.no_grad():
            return trial.observer(trial.x + threat.project(delta, trial.x, box))

    # (n, INNER, C)
    inner = torch.stack([around(0.5, k).last for k in range(INNER)], 1).double()
    rim = [around(1.0, k) for k in range(CORNERS)]
    corner = torch.stack([r.last for r in rim], 1).double()  # (n, CORNERS, C)
    centre, spread = inner.mean(1, keepdim=True), inner.std(1, keepdim=True).clamp_min(1e-9)
    way = (corner - centre) / spread**2  # (n, CORNERS, C)
    # the corner itself answers 1
    way = way / ((corner - centre) * way).sum(2, keepdim=True).clamp_min(1e-12)
    gap = 1 - torch.einsum("nic,nkc->nki", inner - centre, way).amax(2)  # (n, CORNERS)
    best, k = gap.max(1)
    rows = (best > 0.1).nonzero().flatten()
    if not len(rows):
        return {"planted": np.zeros(0, bool)}
    at = torch.arange(n, device=k.device)
    weight = (way[at, k] / best[:, None] * 4)[rows]
    bias = (weight * centre[rows, 0]).sum(1) + (4 / best - 2)[rows]

    def hit(guards: Sequence[Guard], most: int) -> np.ndarray:
        some = rows[:most]
        with torch.no_grad():
            scores = [
                torch.stack([g.detector.score(r) for r in rim], 1)[at, k][some]
                for g in guards
            ]
        limits = (
            torch.stack([s.clamp_min(g.limit) for s, g in zip(scores, guards, strict=True)])
            if guards
            else bias[:0]
        )
        aim = Readout(weight[:most], bias[:most], tuple(guards), limits)
        attack = replace(
            trial.attack,
            objective=aim,
            blend=Selective(),
            leave=when_hidden(0.0),
            confidence=0.0,
        )
        names, goal = [trial.ids[i] for i in some.tolist()], trial.goal[some]
        seen = _watcher(trial, guards[0]) if len(guards) == 1 else trial.observer
        found = attack(seen, trial.x[some], goal, ids=names, seed=trial.seed)
        with torch.no_grad():
            out = seen(found.adversarial)
            answered = aim.bind(out, goal, drawn).margin(out, ALL) > 0  # type: ignore[misc]
            for g, limit in zip(guards, limits, strict=True):
                answered &= g.detector.score(out) <= limit + SLACK * g.scale
        return answered.cpu().numpy()

    each = trial.guards if len(trial.guards) > 1 else {}
    found = {f"planted/{name}": hit([guard], LOOKED) for name, guard in each.items()}
    return {"planted": hit(list(trial.guards.values()), n)} | found


# --- as a task of an audit ----------------------------------------------------------------------


def probe_cell(context: Context) -> Cell:
    """The plain attack that is probed, at the audited budget: the one that the detectors learn
    from, else the first that has steps.
    """
    wanted = [
        a
        for a in (context.plan.learnt_from, *context.plan.attacks)
        if ability_of(a.name).hides and not ability_of(a.name).several
    ]
    return Cell((wanted or [AttackPlan(name="pgd")])[0], PLAIN, context.budgets[0])


def probe_key(context: Context) -> str:
    """Where the probes of a context are stored."""
    p = context.plan
    parts = [context.condition(c) for c in (probe_cell(context), *_hidden(context))]
    what = [
        *parts,
        p.detectors,
        p.learnt_from,
        p.mixture,
        CASES,
        LOOKED,
        STEPS,
        QUERIES,
        surrogate_key(context),
        *context.sight,
    ]
    return f"sanity_checks/{digest([*what, 'by number'])}"


def probe_tasks(context: Context) -> list[Task]:
    """The tasks of the probes; none with ``sanity_checks: off``."""
    if context.plan.sanity_checks == "off":
        return []
    surrogate = surrogate_task(context)
    needs = [
        surrogate.key,
        *needed(
            context, replace(probe_cell(context), objective=ObjectivePlan(name="evade"))
        ),
    ]
    for cell in _hidden(context):
        needs += [
            *needed(context, cell),
            *([context.tune_key(cell)] if cell.objective.weight == "auto" else []),
        ]
    work = partial(_probe, context.plan.model_dump_json())
    return [
        surrogate,
        Task(
            probe_key(context),
            tuple(dict.fromkeys(needs)),
            work,
            "check the evaluation",
            "sanity_checks",
            60,
        ),
    ]


def _hidden(context: Context) -> list[Cell]:
    """The probed attack with the objective of the plan that knows most of the guard, if any
    hides.
    """
    known = sorted(
        (o for o in context.plan.objectives if o.kind != "plain"),
        key=_knows_detectors,
        reverse=True,
    )
    return [replace(probe_cell(context), objective=o) for o in known[:1]]


def _knows_detectors(objective: ObjectivePlan) -> bool:
    return OBJECTIVES[objective.kind].knowledge == "detector-aware"


def _probe(json: str, store: Store) -> Arrays:
    return numbered(measure(trial_of(context_of(json, store))))


def numbered(arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays by number, with a list of their names: names of detectors and objectives may
    hold brackets and arguments, those of the store may not.
    """
    names = list(arrays)
    return {f"a{i:04d}": arrays[name] for i, name in enumerate(names)} | {
        "names": np.array(names)
    }


def probes_in(arrays: Arrays) -> Arrays:
    """The inverse of ``numbered``."""
    return {str(name): arrays[f"a{i:04d}"] for i, name in enumerate(arrays["names"])}


def trial_of(context: Context) -> Trial:
    """A few images of the detector-training split that the classifier gets right."""
    rows = context.right("detector-training")[:CASES]
    cell = probe_cell(context)
    found = Attacker(context, cell.eps).detectors(None)
    guards = {
        n: Guard(*g)
        for n, g in zip(context.plan.detectors, zip(*found, strict=True), strict=True)
    }
    hidden = {
        c.objective.name: attack_of(context, c, weight_of(context, c))
        for c in _hidden(context)
    }
    x = context.images(rows)
    return Trial(
        context.classifier,
        context.observer,
        surrogate_of(context),
        x,
        context.goal(rows),
        context.ids(rows),
        attack_of(context, cell, None),  # type: ignore[arg-type]  # an ensemble is never probed
        hidden,  # type: ignore[arg-type]
        guards,
        context.grid,
        context.mask(x),
        context.plan.seed,
    )
