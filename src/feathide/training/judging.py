"""How good logits are: accuracy, AUC and calibration of a network on labelled images, for each
kind of head.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from feathide.data.cases import Cases
from feathide.metrics.calibration import calibration_error
from feathide.models.logits import logits_of
from feathide.training.data import normaliser, reader, windowed
from feathide.types import Box

__all__ = ["Head", "accuracy_of", "area_of", "calibration_of", "judge"]

Head = Literal["softmax", "sigmoid", "findings"]


def accuracy_of(z: Tensor, y: Tensor, head: Head) -> float:
    """The share of labels ``y`` that the logits ``z`` get right."""
    predicted = z.argmax(1) if head == "softmax" else (z.reshape(y.shape) > 0).long()
    return float((predicted == y).float().mean())


def area_of(z: Tensor, y: Tensor, head: Head) -> float:
    """Area under the ROC curve: of the two classes, or the mean over classes (one against the
    rest) or findings; NaN where none of them has both kinds of images, or an output is not
    finite.
    """
    if not bool(z.isfinite().all()):
        return math.nan
    if head == "softmax" and z.shape[1] == 2:
        z, y = z[:, 1:] - z[:, :1], y.reshape(-1, 1)
    elif head == "softmax":
        z, y = z.softmax(1), F.one_hot(y, z.shape[1])
    z, y = z.reshape(len(z), -1), y.reshape(len(y), -1)
    mixed = [j for j in range(y.shape[1]) if 0 < int(y[:, j].sum()) < len(y)]
    return (
        float(np.mean([roc_auc_score(y[:, j].numpy(), z[:, j].numpy()) for j in mixed]))
        if mixed
        else math.nan
    )


def calibration_of(z: Tensor, y: Tensor, head: Head) -> float:
    """The expected calibration error (``metrics.statistics.calibration_error``); of findings the
    mean over them. NaN where an output is not finite.
    """
    if not bool(z.isfinite().all()):
        return math.nan
    if head == "softmax":
        return calibration_error(z.double().softmax(1).numpy(), y.numpy())
    p = z.double().reshape(len(z), -1).sigmoid()  # (N, F)
    truth = y.reshape(len(y), -1)
    each = [
        calibration_error(
            torch.stack([1 - p[:, j], p[:, j]], 1).numpy(), truth[:, j].numpy()
        )
        for j in range(p.shape[1])
    ]
    return float(np.mean(each))


def judge(
    model: nn.Module,
    cases: Cases,
    split: str,
    *,
    head: Head,
    mean: Sequence[float],
    std: Sequence[float],
    window: Box | None = None,
    batch_size: int = 16,
) -> dict[str, float]:
    """How a trained network does on the images of ``split``: n, accuracy, auc, calibration_error;
    empty without images.
    """
    rows = cases.where(split)
    if len(rows) == 0:
        return {}
    outputs = 1 if head == "sigmoid" else len(cases.class_names)
    normalise = normaliser(tuple(mean), tuple(std))
    read = windowed(lambda at: reader(cases, rows[at])(np.arange(len(at))), window)
    parts = np.array_split(np.arange(len(rows)), -(-len(rows) // batch_size))
    with torch.no_grad():
        z = torch.cat(
            [logits_of(model(normalise(read(at))), len(at), outputs) for at in parts]
        )
    y = torch.from_numpy(cases.labels[rows])
    return {
        "n": float(len(rows)),
        "accuracy": accuracy_of(z, y, head),
        "auc": area_of(z, y, head),
        "calibration_error": calibration_of(z, y, head),
    }
