"""A point that must be found: the binarisation test (Zimmermann et al. 2022) with the detectors
in the loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.attacks.leave import when_hidden
from feathide.attacks.updates import Selective
from feathide.data.noise import Noise
from feathide.losses import BoundLoss, Objective
from feathide.losses.hiding import score_of
from feathide.sanity.trial import LOOKED, Guard, Trial, watcher
from feathide.types import ALL, Aim, Outputs, Rows

__all__ = [
    "Readout",
    "planted",
]

# how much more a standard deviation of suspicion costs than a unit of the readout
STRICT = 10.0
# of a score's spread: so much more suspicious than the planted image may be what finds it
SLACK = 0.1
# images that a readout is fitted on: inside the ball, and candidates for the planted one
INNER, CORNERS = 24, 8


@dataclass(frozen=True, eq=False)
class Readout(Objective):
    """J = softplus(-g_i), g_i(x) = f(x) w_i - b_i: another question about the last layer's
    features for each image, whose answer is known to be yes somewhere in the ball. Hidden from
    ``guards``: each score is held at or below ``thresholds`` (D, n).
    """

    weight: Tensor
    bias: Tensor
    guards: tuple[Guard, ...]
    thresholds: Tensor

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        def answer(out: Outputs, rows: Rows) -> Tensor:
            return (out.last.double() * self.weight[rows]).sum(1) - self.bias[rows]

        def hide(out: Outputs, rows: Rows) -> Tensor:
            excess = [
                STRICT * F.relu(score_of(g.detector, out) - threshold[rows]) / g.scale
                for g, threshold in zip(self.guards, self.thresholds, strict=True)
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
    rim, weight, bias, rows, corner = _readouts(trial)
    if not len(rows):
        return {"planted": np.zeros(0, bool)}

    def hit(guards: Sequence[Guard], most: int) -> np.ndarray:
        some = rows[:most]
        with torch.no_grad():
            at_rim = [torch.stack([g.detector.score(r) for r in rim], 1) for g in guards]
        scores = [score[some, corner[some]] for score in at_rim]
        aim = Readout(weight[:most], bias[:most], tuple(guards), _limits(guards, scores))
        return _finds(trial, aim, some)

    each = trial.guards if len(trial.guards) > 1 else {}
    found = {f"planted/{name}": hit([guard], LOOKED) for name, guard in each.items()}
    return {"planted": hit(list(trial.guards.values()), len(trial.x))} | found


def _around(trial: Trial, share: float, k: int) -> Outputs:
    """The outputs for the k-th random images in ``share`` of the ball; of 1, on its rim."""
    threat, drawn = trial.attack.threat, Noise(trial.seed, tuple(trial.ids))
    ball = threat.scaled(share)
    delta = ball.start(trial.x, drawn, draw=f"{share} {k}")
    if share >= 1:
        delta = ball.steepest(delta) * float(torch.as_tensor(threat.eps).min())
    delta = threat.project(delta, trial.x, trial.classifier.box)
    with torch.no_grad():
        return trial.observer(trial.x + delta)


def _readouts(trial: Trial) -> tuple[list[Outputs], Tensor, Tensor, Tensor, Tensor]:
    """The outputs on the rim; weights (m, C) and biases (m,) of the readouts; their images (m,);
    and which corner is planted for each of the n images.
    """
    # (n, INNER, C)
    inner = torch.stack([_around(trial, 0.5, k).last for k in range(INNER)], 1).double()
    rim = [_around(trial, 1.0, k) for k in range(CORNERS)]
    corner = torch.stack([r.last for r in rim], 1).double()  # (n, CORNERS, C)
    centre, spread = inner.mean(1, keepdim=True), inner.std(1, keepdim=True).clamp_min(1e-9)
    way = (corner - centre) / spread**2  # (n, CORNERS, C)
    # the corner itself answers 1
    way = way / ((corner - centre) * way).sum(2, keepdim=True).clamp_min(1e-12)
    gap = 1 - torch.einsum("nic,nkc->nki", inner - centre, way).amax(2)  # (n, CORNERS)
    best, k = gap.max(1)
    rows = (best > 0.1).nonzero().flatten()
    at = torch.arange(len(trial.x), device=k.device)
    weight = (way[at, k] / best[:, None] * 4)[rows]
    bias = (weight * centre[rows, 0]).sum(1) + (4 / best - 2)[rows]
    return rim, weight, bias, rows, k


def _limits(guards: Sequence[Guard], scores: Sequence[Tensor]) -> Tensor:
    """The suspicion that each guard allows, (D, m): its threshold, or the planted image's."""
    if not guards:
        return torch.empty(0)
    allowed = [s.clamp_min(g.threshold) for s, g in zip(scores, guards, strict=True)]
    return torch.stack(allowed)


def _finds(trial: Trial, aim: "Readout", rows: Tensor) -> np.ndarray:
    """Whether the attack finds an image that the readout calls planted and its guards accept."""
    attack = replace(
        trial.attack,
        objective=aim,
        blend=Selective(),
        leave=when_hidden(0.0),
        confidence=0.0,
    )
    ids, goal = [trial.ids[i] for i in rows.tolist()], trial.goal[rows]
    seen = watcher(trial, aim.guards[0]) if len(aim.guards) == 1 else trial.observer
    found = attack(seen, trial.x[rows], goal, ids=ids, seed=trial.seed)
    drawn = Noise(trial.seed, tuple(trial.ids))
    with torch.no_grad():
        out = seen(found.adversarial)
        answered = aim.bind(out, goal, drawn).margin(out, ALL) > 0  # type: ignore[misc]
        for g, threshold in zip(aim.guards, aim.thresholds, strict=True):
            answered &= g.detector.score(out) <= threshold + SLACK * g.scale
    return answered.cpu().numpy()
