"""Probes of the network and of the plain attack: flags, slope, stability, ranks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from feathide.attacks.loop import Attack
from feathide.attacks.threats import Linf
from feathide.data.noise import Noise
from feathide.detectors import Detector
from feathide.metrics.scores import spearman
from feathide.models.loading import check_network
from feathide.sanity.trial import Trial
from feathide.types import ALL, Goal, Outputs

__all__ = [
    "FLAGS",
]

SMALL = 0.05  # the ball of the stability probe, as a share of eps
DRAWS = 4


FLAGS = {
    "random": "the network is random",
    "probabilities": "the outputs look like prob",
    "blind": "no gradient",
}


def whole_box(trial: Trial) -> float:
    """How many times eps is a budget from which every image of the box can be reached."""
    low, high = trial.classifier.box
    reach = (high - low) * (
        1.0 if isinstance(trial.attack.threat, Linf) else float(trial.x[0].numel()) ** 0.5
    )
    return reach / float(torch.as_tensor(trial.attack.threat.eps).min())


def flags_of(trial: Trial) -> dict[str, bool]:
    c = trial.classifier
    with torch.no_grad():
        classes = c(trial.x[:1]).logits.shape[1]
    said = check_network(c.model, c.prepared(trial.x[:8]), classes, c.head, output=c.output)
    flags = {name: any(s.startswith(start) for s in said) for name, start in FLAGS.items()}
    # what is random is averaged over recorded draws
    return flags | {"random": flags["random"] and not c.draws}


def slope_of(trial: Trial) -> np.ndarray:
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


def kept_share(trial: Trial, adversarial: Tensor) -> np.ndarray:
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


def ranks_of(trial: Trial, attack: Attack, images: Tensor) -> np.ndarray:
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


def batch_gap(detector: Detector, out: Outputs, single: Sequence[Outputs] = ()) -> float:
    """The largest change of a score when its row stands alone, in units of the scores' spread;
    ``single``: what was seen of each image alone, for a guard that looks at images itself.
    """
    out = out.to(torch.float64)
    rows = [s.to(torch.float64) for s in single] or [
        out[i : i + 1] for i in range(len(out))
    ]
    with torch.no_grad():
        whole = detector.score(out)
        alone = torch.cat([detector.score(row) for row in rows])
    return float((whole - alone).abs().max() / whole.std().clamp_min(1e-12))
