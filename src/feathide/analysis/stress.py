"""The stress test: how far an attacker can drive the mean activation of each layer, down, up or
away, within one budget.

With m_l(x) the mean over channels of the features of layer l, x' the image that ``Drift`` finds,
and s_l the standard deviation of m_l over clean training images

    stress_l = |m_l(x') - m_l(x)| / s_l      in the direction asked for (a movement against it
    counts as negative).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from feathide.attacks.iterate import Classifier
from feathide.attacks.loop import Attack
from feathide.attacks.presets import bim
from feathide.execution.digests import digest
from feathide.execution.graph import Task
from feathide.execution.store import Store
from feathide.losses import Drift
from feathide.metrics.intervals import bootstrap, proportion
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.rows import entry, frame, point
from feathide.types import Goal

__all__ = ["WAYS", "drifts", "stress_frame", "stress_tasks"]

Way = Literal["down", "up", "away"]
WAYS: tuple[Way, ...] = ("down", "up", "away")


def drifts(
    attack: Attack,
    classifier: Classifier,
    x: Tensor,
    goal: Goal,
    layers: Sequence[str],
    **call: Any,
) -> dict[Way, Tensor]:
    """How far the mean activation of each layer moves in the direction asked for, (N, L) for each
    of ``WAYS``.

    ``attack`` gives budget and steps; its objective is replaced by ``Drift``. ``call``: ids,
    seed, grid and mask, as for an attack.
    """
    with torch.no_grad():
        clean = classifier(x)
    start = torch.stack([clean.features[n].mean(1) for n in layers], 1)  # (N, L)
    found: dict[Way, Tensor] = {}
    for way in WAYS:
        ends = []
        for name in layers:
            moved = replace(attack, objective=Drift(name, way))(
                classifier, x, goal, **call
            ).adversarial
            with torch.no_grad():
                ends.append(classifier(moved).features[name].mean(1))
        change = torch.stack(ends, 1) - start
        found[way] = {"down": -change, "up": change, "away": change.abs()}[way]
    return found


# --- on an audit --------------------------------------------------------------------------------


def schedule_of(context: Context) -> Attack:
    """The step schedule of the plan without a random start: every image begins where it is, so
    the worst that can be found is no movement."""
    w = context.plan.schedule
    return bim(
        context.limits.threat(context.limits.budgets[0]),
        steps=w.steps,
        step_size=w.step_size,
        decay=w.decay,
    )


def stress_key(context: Context, index: int) -> str:
    p = context.plan
    budget = context.limits.budgets[0]
    about = [
        context.steps.reading.digest,
        budget,
        p.norm,
        p.schedule,
        *context.steps.batching.values(),
    ]
    return f"explain/stress-{digest(about)}/test-{index:04d}"


def stress_tasks(context: Context) -> list[Task]:
    """One task for each batch of the test split that is attacked."""
    json, schedule = context.plan.model_dump_json(), schedule_of(context)
    clean = (
        *context.steps.extract("clean", "train").keys,
        *context.steps.extract("clean", "test").keys,
    )
    return [
        Task(
            stress_key(context, i),
            clean,
            partial(_stress, json, i),
            "stress the layers",
            context.cases.name,
            15.0 * schedule.passes,
        )
        for i in range(context.data.batches("test", attacked=True))
    ]


def _stress(json: str, index: int, store: Store) -> Mapping[str, np.ndarray]:
    context = context_of(json, store)
    rows = context.data.batch("test", index, attacked=True)
    x = context.data.images(rows)
    layers = context.networks.classifier.names(x)
    found = drifts(
        schedule_of(context),
        context.networks.classifier,
        x,
        context.data.goal(rows),
        layers,
        **context.limits.terms(rows, x),
    )
    return {
        "rows": rows,
        "layers": np.array(layers),
        **{way: change.cpu().numpy() for way, change in found.items()},
    }


def stress_frame(context: Context) -> pd.DataFrame:
    """The table of a finished run: ``drift_down``, ``drift_up``, ``drift_away`` for each layer,
    means over test images in clean standard deviations; ``activation``, the mean activation in
    the same unit (drift / activation is the relative change); once, ``accuracy`` and
    ``training_images``.
    """
    loaded = [
        context.store.load(stress_key(context, i))
        for i in range(context.data.batches("test", attacked=True))
    ]
    rows = np.concatenate([a["rows"] for a in loaded])
    patients = context.cases.patients[rows].astype(str)
    train, _ = context.outputs.train()
    whole, tested = context.outputs.of("clean", "test")
    right, clean = (
        whole.predicted.numpy() == context.data.labels[tested],
        context.outputs.at("clean", "test", rows),
    )
    entries = [
        entry(
            context,
            "accuracy",
            proportion(right, groups=context.cases.patients[tested].astype(str)),
        ),
        entry(context, "training_images", point(len(train), len(train))),
    ]
    for i, layer in enumerate(map(str, loaded[0]["layers"])):
        mean = train.features[layer].double().mean(1)
        scale = float(mean.std()) or 1.0
        for way in WAYS:
            moved = np.concatenate([a[way] for a in loaded])[:, i] / scale
            interval = bootstrap(np.mean, moved, groups=patients, seed=context.plan.seed)
            entries.append(entry(context, f"drift_{way}", interval, layer=layer))
        level = clean.features[layer].double().mean(1).numpy() / scale
        entries.append(
            entry(
                context,
                "activation",
                bootstrap(np.mean, level, groups=patients, seed=context.plan.seed),
                layer=layer,
            )
        )
    return frame(entries)
