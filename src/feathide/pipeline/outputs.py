"""The outputs that an audit has stored, read back, and what is plain from them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from feathide.execution.packing import unpacked
from feathide.execution.store import Store
from feathide.pipeline.data import Data
from feathide.pipeline.steps import Steps
from feathide.plans.plan import Plan
from feathide.types import Outputs

__all__ = ["StoredOutputs"]


@dataclass(frozen=True, eq=False)
class StoredOutputs:
    """What the classifier showed of the images of each condition ("clean", "noisy-<eps>", an
    attack's) and split.
    """

    plan: Plan
    store: Store
    data: Data
    steps: Steps

    def of(self, condition: str, part: str) -> tuple[Outputs, np.ndarray]:
        """The stored outputs of a condition on a split, and the cases' rows."""
        loaded = [self.store.load(key) for key in self.steps.extract(condition, part).keys]
        rows = np.concatenate([a["rows"] for a in loaded])
        return Outputs.cat([unpacked(a) for a in loaded]), rows

    def at(self, condition: str, part: str, rows: np.ndarray) -> Outputs:
        """The outputs of a condition at some rows, in their order."""
        out, have = self.of(condition, part)
        place = {int(r): i for i, r in enumerate(have)}
        return out[torch.tensor([place[int(r)] for r in rows], dtype=torch.long)]

    def train(self) -> tuple[Outputs, Tensor]:
        """Those of the clean training images, and their labels."""
        return _train(self)

    def right(self, part: str) -> np.ndarray:
        """The rows of a split that are attacked and that the classifier gets right."""
        out, rows = self.of("clean", part)
        right = out.predicted.numpy() == self.data.labels[rows]
        return rows[right & np.isin(rows, self.data.attacked(part))]

    def typical_lead(self) -> float:
        """The median lead of the true class, in logits, on the clean training images that are
        right: as sure as usual. 1 if none is right.
        """
        return _typical_lead(self)

    def enough(self) -> float:
        """The lead at which an attacker who hides stops pushing, in typical leads: as planned, or
        the lower quartile over the clean images of the detector-training split that are right.
        Surer, an image is harder to hide; less sure, it stands out among clean ones.
        """
        lead = self.plan.schedule.lead
        return _lower_quartile(self) if lead == "auto" else lead


@lru_cache(maxsize=1)
def _train(outputs: StoredOutputs) -> tuple[Outputs, Tensor]:
    out, rows = outputs.of("clean", "train")
    return out, torch.from_numpy(outputs.data.labels[rows].astype(np.int64))


@lru_cache(maxsize=1)
def _typical_lead(outputs: StoredOutputs) -> float:
    right = _leads(*outputs.train())
    return float(right.median()) if len(right) else 1.0


@lru_cache(maxsize=1)
def _lower_quartile(outputs: StoredOutputs) -> float:
    out, rows = outputs.of("clean", "detector-training")
    labels = torch.from_numpy(outputs.data.labels[rows].astype(np.int64))
    right = _leads(out, labels)
    return float(right.quantile(0.25)) / outputs.typical_lead() if len(right) else 1.0


def _leads(out: Outputs, labels: Tensor) -> Tensor:
    """By how much the true class leads, in logits, in the images that are right."""
    true = out.logits.gather(1, labels[:, None])[:, 0]
    lead = true - out.logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return lead[lead > 0].double()
