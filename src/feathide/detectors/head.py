"""Head: one number from several columns of scores (one per layer), the same affine form whether
supervised or not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from feathide.detectors.base import trials
from feathide.types import Evidence, Outputs

__all__ = ["Combine", "Head", "held_out_auc", "standardise"]

Combine = Literal["logistic", "mean"]


def standardise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, both (L,); a constant column keeps its unit."""
    scale = x.std(0, correction=0)
    return x.mean(0), torch.where(scale > 0, scale, 1.0)


def held_out_auc(columns: Tensor) -> float:
    """The AUC of a logistic regression on images that it has not learnt from, mean over three
    folds.

    ``columns`` (3n, L): n images clean, then noisy, then adversarial; the three rows of an image
    lie in one fold."""
    images = len(columns) // 3
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000)
    )
    labels, image = np.repeat([0, 0, 1], images), np.tile(np.arange(images), 3)
    found = cross_val_score(
        model,
        columns.double().cpu().numpy(),
        labels,
        groups=image,
        cv=GroupKFold(3),
        scoring="roc_auc",
    )
    return float(found.mean())


@dataclass(frozen=True)
class Head:
    """score = bias + sum_l weight_l (column_l - centre_l) / scale_l, statistics (L,) in
    float64.
    """

    centre: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, columns: Tensor) -> Tensor:
        centre, scale, weight, bias = (
            v.to(columns) for v in (self.centre, self.scale, self.weight, self.bias)
        )
        return (columns - centre) / scale @ weight + bias

    @staticmethod
    def fit(
        combine: Combine, columns: Callable[[Outputs], Tensor], evidence: Evidence
    ) -> "Head":
        """Fits on ``columns(outputs)`` (N, L) of the evidence.

        ``logistic``: the log-odds of an L2-regularised, class-balanced logistic regression of
        adversarial against clean and noisy. ``mean``: the average of the columns standardised by
        the clean part; adversarial and noisy are never looked at."""
        if combine == "mean":
            values = columns(evidence.clean.detach()).double()
            weight = torch.full_like(values[0], 1 / values.shape[1])
            return Head(*standardise(values), weight, weight.new_zeros(()))
        parts = [columns(part).double() for part in trials(evidence)]
        values = torch.cat(parts)
        centre, scale = standardise(values)
        labels = [label for label, part in enumerate(parts) for _ in range(len(part))]
        model = LogisticRegression(class_weight="balanced", max_iter=5000).fit(
            ((values - centre) / scale).cpu().numpy(), labels
        )
        return Head(
            centre,
            scale,
            torch.as_tensor(model.coef_[0]).to(centre),
            torch.as_tensor(model.intercept_[0]).to(centre),
        )
