"""The surrogate: a small network trained on some of the classifier's images, as an attacker without access to the classifier would have one."""

from dataclasses import replace
from functools import partial

import numpy as np

from feathide.classifier import FeatureClassifier
from feathide.models import build
from feathide.study.digest import FORMAT, digest
from feathide.study.engine import Task, tell
from feathide.study.lab import Lab, lab_of
from feathide.study.stages import Arrays, packed_network
from feathide.study.store import Store
from feathide.train import train_classifier

__all__ = ["surrogate_key", "surrogate_of", "surrogate_task"]

MOST, LEAST, PIXELS = 512, 32, 30_000_000  # images that it learns from: as many as hold so many pixels
EPOCHS, RATE = 10, 3e-3


def surrogate_key(lab: Lab) -> str:
    """Where its weights are stored."""
    recipe = [lab.cases.digest, lab.finding, lab.small_arch, lab.window, lab.plan.seed, MOST, LEAST, PIXELS, EPOCHS]
    return f"surrogate/{digest([FORMAT, *recipe])}"


def surrogate_task(lab: Lab) -> Task:
    """The one task that trains it."""
    work = partial(_train, lab.plan.model_dump_json())
    return Task(surrogate_key(lab), (), work, "train a surrogate", lab.small_arch, 20)


def surrogate_of(lab: Lab) -> FeatureClassifier:
    """The trained network, of the decision's classes, in the classifier's box."""
    model = build(lab.small_arch, channels=lab.cases.channels, outputs=len(lab.class_names), size=lab.cases.shape)
    mean, std = lab.restored(model, surrogate_key(lab))
    return FeatureClassifier(
        model.to(lab.device).eval(), "last", box=lab.cases.box, mean=mean, std=std, window=lab.window
    )


def _train(json: str, store: Store) -> Arrays:
    lab = lab_of(json, store)
    rows, labels = lab.rows("train"), lab.labels
    most = max(LEAST, min(MOST, PIXELS // (lab.cases.channels * int(np.prod(lab.cases.shape)))))
    classes = range(len(lab.class_names))
    rows = np.concatenate([lab.some(rows[labels[rows] == c], -(-most // len(classes))) for c in classes])
    decision = replace(lab.cases, labels=labels, class_names=lab.class_names).take(rows)
    held = np.where(np.arange(len(rows)) % 5 == 4, "val", "train")
    result = train_classifier(
        replace(decision, splits=held),
        lab.small_arch,
        epochs=EPOCHS,
        lr=RATE,
        patience=EPOCHS,
        augment=False,
        window=lab.window,
        seed=lab.plan.seed + 1,
        progress=tell,
    )
    return packed_network(result)
