"""The room that an audit needs on the disk, known before it begins."""

import os
import shutil
from collections.abc import Sequence
from math import prod

from feathide.detectors.residuals import NAMES
from feathide.detectors.squeezing import SQUEEZERS
from feathide.errors import expected
from feathide.execution.engine import Task
from feathide.pipeline.context import Context
from feathide.pipeline.stored_images import encode

__all__ = ["bytes_ahead", "check_room"]

DOCUMENTS = 16 * 2**20  # bytes of report and tables


def bytes_ahead(context: Context, tasks: Sequence[Task]) -> int:
    """About how many bytes the tasks that are not done will store: weights, and for each batch
    its images as files hold them or its features.
    """
    trained = context.recipe.trains and not context.store.done(context.steps.train.key)
    model = context.recipe.empty_network() if trained else context.networks.classifier.model
    x = context.data.images(context.data.rows("train")[:1])
    out = context.networks.shown(model, context.plan.network.layers).extract(x)
    draws = (
        1
        + context.plan.dropout_samples * context.recipe.needs("dropout")
        + len(SQUEEZERS) * context.recipe.needs("squeezed")
    )
    read = len(NAMES) * context.recipe.needs("statistics")
    weights = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    image = prod(x.shape) * encode(x, context.limits.grid, context.cases.box).itemsize
    features = 4 * (
        sum(f.shape[1] for f in out.features.values()) + out.logits.shape[1] * draws + read
    )
    size = {
        "train": weights,
        "adversarial": image * context.plan.batch_size,
        "outputs": features * context.plan.batch_size,
    }
    kinds = [
        t.key.partition("/")[0].replace("classifier", "train")
        for t in tasks
        if not context.store.done(t.key)
    ]
    return sum(size.get(kind, 0) for kind in kinds) + DOCUMENTS


def check_room(context: Context, tasks: Sequence[Task]) -> int:
    """``bytes_ahead``. Raises ``InputError`` if the disk has less, or may not be written to."""
    folder = context.store.folder.absolute()
    place = next(p for p in (folder, *folder.parents) if os.path.isdir(p))
    # looked at first: a read-only disk has no room either
    if not os.access(place, os.W_OK):
        raise expected(
            f"{folder} must be writable",
            got="a place that is not",
            do="choose another output folder or change its rights",
        )
    need, free = bytes_ahead(context, tasks), shutil.disk_usage(place).free
    if free < need:
        do = "make room, choose another output folder, or attack fewer images (split.most)"
        raise expected(
            f"the disk of {folder} must have about {need / 2**20:.0f} MiB free",
            got=f"{free / 2**20:.0f} MiB",
            do=do,
        )
    return need
