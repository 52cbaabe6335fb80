"""Whether the classifier has learnt its classes: how often it is right on labelled images, before
anything is attacked.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from feathide.errors import InputError
from feathide.metrics.statistics import auc
from feathide.pipeline.step import Arrays

if TYPE_CHECKING:
    from feathide.pipeline.context import Context

__all__ = [
    "Learnt",
    "check_learnt",
    "has_network",
    "learnt_of",
    "learnt_rows",
    "learnt_stored",
    "look",
]

MOST = 256  # labelled images that are looked at
# of the way from chance to perfection: what is not significantly beyond it is near chance
MARGIN = 0.05
SURE = 1.645  # standard errors: one-sided, 95 %


@dataclass(frozen=True)
class Learnt:
    """How a classifier does on ``n`` labelled images: ``right`` of them; ``auc``, the mean over
    the classes against the rest; the share of the commonest class; ``balanced``: the mean over
    the classes of the share that is right, and its standard ``error``.
    """

    n: int
    right: int
    auc: float
    majority: float
    balanced: float
    error: float
    classes: int

    @property
    def enough(self) -> bool:
        """Whether the balanced accuracy is beyond chance, by more than luck and a little."""
        chance = 1 / self.classes
        return self.balanced - SURE * self.error > chance + MARGIN * (1 - chance)

    def __str__(self) -> str:
        shares = (
            f"accuracy {self.right / self.n:.2f}, AUC {self.auc:.2f}, majority share "
            f"{self.majority:.2f}"
        )
        return f"right on {self.right} of {self.n} labelled images ({shares})"


def learnt(logits: np.ndarray, labels: np.ndarray) -> Learnt:
    """How good ``logits`` (N, K) are for ``labels`` (N,)."""
    n, k = logits.shape
    right = logits.argmax(1) == labels
    sure = torch.from_numpy(logits).double().softmax(1).numpy()
    present = [c for c in range(k) if (labels == c).any()]
    shares = np.array([right[labels == c].mean() for c in present])
    counts = np.array([(labels == c).sum() for c in present])
    # a share of 0 or 1 of few images is not certain
    smooth = (shares * counts + 1) / (counts + 2)
    error = float(np.sqrt((smooth * (1 - smooth) / counts).sum()) / len(present))
    areas = (
        [auc(sure[labels != c, c], sure[labels == c, c]) for c in present]
        if len(present) > 1
        else [float("nan")]
    )
    return Learnt(
        n,
        int(right.sum()),
        float(np.mean(areas)),
        float(counts.max() / n),
        float(shares.mean()),
        error,
        k,
    )


def learnt_rows(context: "Context") -> np.ndarray:
    """Labelled images that the classifier never saw, of the detector-training and the
    calibration split; never of the test split.
    """
    return context.data.some(
        np.concatenate(
            [context.data.rows("detector-training"), context.data.rows("calibration")]
        ),
        MOST,
    )


@lru_cache(maxsize=2)
def learnt_of(context: "Context") -> Learnt:
    """How the context's classifier does."""
    rows = learnt_rows(context)
    size = context.plan.batch_size or 16
    plain = replace(
        context.networks.classifier.narrowed((), context.data.images(rows[:1])),
        compile=None,
    )
    batches = (context.data.images(rows[i : i + size]) for i in range(0, len(rows), size))
    return learnt(plain.extract(batches).logits.numpy(), context.data.labels[rows])


def learnt_stored(context: "Context") -> Learnt:
    """The same from the stored outputs of a finished run."""
    rows, parts = learnt_rows(context), ("detector-training", "calibration")
    chosen = [rows[np.isin(rows, context.data.rows(part))] for part in parts]
    logits = [
        context.outputs.at("clean", part, r).logits.numpy()
        for part, r in zip(parts, chosen, strict=True)
    ]
    return learnt(np.concatenate(logits), context.data.labels[np.concatenate(chosen)])


def has_network(context: "Context") -> bool:
    """Whether the classifier exists: it was not to be trained here, or is trained."""
    return not context.recipe.trains or context.store.done(context.steps.train.key)


def check_learnt(context: "Context", found: Learnt) -> None:
    """Refuse a classifier that is near chance, unless the plan says ``even_so``; and one that is
    never right, which leaves nothing to attack.
    """
    if found.right and (found.enough or context.plan.even_so):
        return
    do = "check class_names, mean, std, window, weights" + (
        ", and how long it is trained" if context.recipe.trains else ""
    )
    on = "; --even-so goes on" if found.right else ""
    raise InputError(
        f"the classifier is {found}: it looks untrained, or normalised differently: {do}{on}"
    )


def look(context: "Context") -> Arrays:
    """The look at a classifier that is trained in the run, as the first thing after its
    training.
    """
    found = learnt_of(context)
    check_learnt(context, found)
    return {
        name: np.asarray(getattr(found, name))
        for name in ("n", "right", "auc", "majority", "balanced")
    }
