"""The surrogate: a small network trained on some of the classifier's images, as an attacker
without access to the classifier would have one.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from feathide.execution.digests import FORMAT, digest
from feathide.execution.graph import Task
from feathide.execution.progress import tell
from feathide.execution.store import Store
from feathide.models.classifier import FeatureClassifier
from feathide.models.zoo import build
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.step import Arrays
from feathide.pipeline.work import packed_network

__all__ = ["surrogate_key", "surrogate_of", "surrogate_task"]

# images that it learns from: as many as hold so many pixels
MOST, LEAST, PIXELS = 512, 32, 30_000_000
EPOCHS, RATE = 10, 3e-3


def surrogate_key(context: Context) -> str:
    """Where its weights are stored."""
    recipe = [
        context.cases.digest,
        context.data.finding,
        context.recipe.small_arch,
        context.recipe.window,
        context.plan.seed,
        MOST,
        LEAST,
        PIXELS,
        EPOCHS,
    ]
    return f"surrogate/{digest([FORMAT, *recipe])}"


def surrogate_task(context: Context) -> Task:
    """The one task that trains it."""
    work = partial(_train, context.plan.model_dump_json())
    return Task(
        surrogate_key(context), (), work, "train a surrogate", context.recipe.small_arch, 20
    )


def surrogate_of(context: Context) -> FeatureClassifier:
    """The trained network, of the decision's classes, in the classifier's box."""
    model = build(
        context.recipe.small_arch,
        channels=context.cases.channels,
        outputs=len(context.data.class_names),
        size=context.cases.shape,
    )
    mean, std = context.networks.restored(model, surrogate_key(context))
    return FeatureClassifier(
        model.to(context.data.device).eval(),
        "last",
        box=context.cases.box,
        mean=mean,
        std=std,
        window=context.recipe.window,
    )


def _train(json: str, store: Store) -> Arrays:
    context = context_of(json, store)
    rows, labels = context.data.rows("train"), context.data.labels
    most = max(
        LEAST,
        min(MOST, PIXELS // (context.cases.channels * int(np.prod(context.cases.shape)))),
    )
    classes = range(len(context.data.class_names))
    rows = np.concatenate(
        [
            context.data.some(rows[labels[rows] == c], -(-most // len(classes)))
            for c in classes
        ]
    )
    decision = replace(
        context.cases, labels=labels, class_names=context.data.class_names
    ).take(rows)
    held = np.where(np.arange(len(rows)) % 5 == 4, "val", "train")
    # Lightning, which this imports, is slow to load
    from feathide.training.trainer import train_classifier

    result = train_classifier(
        replace(decision, splits=held),
        context.recipe.small_arch,
        epochs=EPOCHS,
        lr=RATE,
        patience=EPOCHS,
        augment=False,
        window=context.recipe.window,
        seed=context.plan.seed + 1,
        progress=tell,
    )
    return packed_network(result)
