"""Whether a gradient leads through each guard: a search without it must not do better."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from feathide.attacks.leave import never
from feathide.attacks.presets import pgd, square
from feathide.losses import Evade
from feathide.sanity.trial import LOOKED, Guard, Trial, guard_scores, run_attack, watcher
from feathide.types import Goal

# steps and queries by which the gradient of each guard is tried
STEPS, QUERIES = 12, 32


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
        aim, seen = Evade((guard.detector,), scales=(guard.scale,)), watcher(few, guard)
        if leads(few, guard):
            schedule = pgd(
                threat, objective=aim, steps=STEPS, step_size=0.25, decay="cosine"
            )
            own[name] = run_attack(few, schedule, seen)[0]
        search = square(threat, objective=aim, queries=QUERIES, leave=never)
        blind[name] = run_attack(few, search, seen)[0]
    shared = [image[:k].repeat(2, *[1] * (x.ndim - 1)) for image in (trial.x, *others)]
    found: dict[str, np.ndarray] = {}
    for name, guard in trial.guards.items():
        rest = shared + [image for n, image in own.items() if n != name]
        # what lies outside the ball, at its rim
        near = [x + threat.project(image - x, x, box) for image in rest]
        least = np.min([guard_scores(few, guard, image) for image in near], axis=0)
        first = np.full(2 * k, np.nan)
        if name in own:
            first = guard_scores(few, guard, own[name])
        after = np.stack([first, guard_scores(few, guard, blind[name]), least])
        found[f"lower/{name}"] = (guard_scores(few, guard, x) - after) / guard.scale
    return found


def leads(trial: Trial, guard: Guard) -> bool:
    """Whether a gradient leads from a guard's score back to the image at all."""
    with torch.enable_grad():
        out = watcher(trial, guard)(trial.x.detach().clone().requires_grad_())
        return guard.detector.score(replace(out, assumed=trial.goal.target)).requires_grad
