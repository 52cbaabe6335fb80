"""The stress test: how far an attacker can drive the mean activation of each layer, down, up or away, within one budget.

With m_l(x) the mean over channels of the features of layer l, x' the image that ``Drift`` finds, and s_l the standard deviation of m_l over
clean training images

    stress_l = |m_l(x') - m_l(x)| / s_l      in the direction asked for (a movement against it counts as negative).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from feathide.analysis.rows import entry, frame, point
from feathide.attack import Attack, Classifier
from feathide.metrics import bootstrap, proportion
from feathide.objectives import Drift
from feathide.recipes import bim
from feathide.study.digest import digest
from feathide.study.engine import Task
from feathide.study.lab import Lab, lab_of
from feathide.study.store import Store
from feathide.types import Goal

__all__ = ["WAYS", "drifts", "stress_frame", "stress_tasks"]

Way = Literal["down", "up", "away"]
WAYS: tuple[Way, ...] = ("down", "up", "away")


def drifts(
    attack: Attack, classifier: Classifier, x: Tensor, goal: Goal, layers: Sequence[str], **call: Any
) -> dict[Way, Tensor]:
    """How far the mean activation of each layer moves in the direction asked for, (N, L) for each of ``WAYS``.

    ``attack`` gives budget and walk; its objective is replaced by ``Drift``. ``call``: ids, seed, grid and mask, as for an attack.
    """
    with torch.no_grad():
        clean = classifier(x)
    start = torch.stack([clean.features[n].mean(1) for n in layers], 1)  # (N, L)
    found: dict[Way, Tensor] = {}
    for way in WAYS:
        ends = []
        for name in layers:
            moved = replace(attack, objective=Drift(name, way))(classifier, x, goal, **call).adversarial
            with torch.no_grad():
                ends.append(classifier(moved).features[name].mean(1))
        change = torch.stack(ends, 1) - start
        found[way] = {"down": -change, "up": change, "away": change.abs()}[way]
    return found


# --- on an audit -----------------------------------------------------------------------------------------------------


def walk_of(lab: Lab) -> Attack:
    """The walk of the plan without a random start: every image begins where it is, so the worst that can be found is no movement."""
    w = lab.plan.walk
    return bim(lab.threat(lab.budgets[0]), steps=w.steps, step_size=w.step_size, decay=w.decay)


def stress_key(lab: Lab, index: int) -> str:
    p = lab.plan
    return f"explain/stress-{digest([lab.base, lab.budgets[0], p.norm, p.walk, *lab.division, p.batch_size])}/test-{index:04d}"


def stress_tasks(lab: Lab) -> list[Task]:
    """One task for each batch of the test part that is attacked."""
    json, walk = lab.plan.model_dump_json(), walk_of(lab)
    clean = (*lab.outputs_keys("clean", "train"), *lab.outputs_keys("clean", "test"))
    return [
        Task(
            stress_key(lab, i),
            clean,
            partial(_stress, json, i),
            "stress the layers",
            lab.cases.name,
            15.0 * walk.passes,
        )
        for i in range(lab.batches("test", attacked=True))
    ]


def _stress(json: str, index: int, store: Store) -> Mapping[str, np.ndarray]:
    lab = lab_of(json, store)
    rows = lab.batch("test", index, attacked=True)
    x = lab.images(rows)
    layers = lab.classifier.names(x)
    found = drifts(walk_of(lab), lab.classifier, x, lab.goal(rows), layers, **lab.terms(rows, x))
    return {"rows": rows, "layers": np.array(layers), **{way: change.cpu().numpy() for way, change in found.items()}}


def stress_frame(lab: Lab) -> pd.DataFrame:
    """The table of a finished run: ``drift_down``, ``drift_up``, ``drift_away`` for each layer, means over test images in clean standard deviations;
    ``activation``, the mean activation in the same unit (drift / activation is the relative change); once, ``accuracy`` and ``training_images``."""
    loaded = [lab.store.load(stress_key(lab, i)) for i in range(lab.batches("test", attacked=True))]
    rows = np.concatenate([a["rows"] for a in loaded])
    patients = lab.cases.patients[rows].astype(str)
    train, _ = lab.train()
    whole, tested = lab.outputs("clean", "test")
    right, clean = whole.predicted.numpy() == lab.labels[tested], lab.at("clean", "test", rows)
    entries = [
        entry(lab, "accuracy", proportion(right, groups=lab.cases.patients[tested].astype(str))),
        entry(lab, "training_images", point(len(train), len(train))),
    ]
    for i, layer in enumerate(map(str, loaded[0]["layers"])):
        mean = train.features[layer].double().mean(1)
        scale = float(mean.std()) or 1.0
        for way in WAYS:
            moved = np.concatenate([a[way] for a in loaded])[:, i] / scale
            interval = bootstrap(np.mean, moved, groups=patients, seed=lab.plan.seed)
            entries.append(entry(lab, f"drift_{way}", interval, layer=layer))
        level = clean.features[layer].double().mean(1).numpy() / scale
        entries.append(
            entry(lab, "activation", bootstrap(np.mean, level, groups=patients, seed=lab.plan.seed), layer=layer)
        )
    return frame(entries)
