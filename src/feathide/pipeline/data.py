"""The data of a plan: its images and labels, the splits and batches that they stand in, and the
class that each is to be taken for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feathide.data import Cases, three_way
from feathide.data.noise import Noise
from feathide.errors import expected
from feathide.models.device import device_of
from feathide.pipeline.moved import cases_of, file_near
from feathide.plans.plan import Plan
from feathide.types import Goal

__all__ = ["PARTS", "Data"]

PARTS = ("detector-training", "calibration", "test")


@dataclass(frozen=True, eq=False)
class Data:
    """The images of one plan, on the device that computes; ``run`` is the folder of its run."""

    plan: Plan
    run: Path

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.plan.device)

    @cached_property
    def cases(self) -> Cases:
        """The images, checked: no patient and no image stands in two splits."""
        return cases_of(self.plan.data, self.plan.seed, self.run)

    @cached_property
    def weights(self) -> str | None:
        """The file of the classifier's weights, wherever it is now."""
        return file_near(self.plan.network.weights, self.run)

    @cached_property
    def begins_with(self) -> str | None:
        """The file of weights that a training starts from, wherever it is now."""
        return file_near(self.plan.network.start_from, self.run)

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of each case (N,), in the classes of the decision: for one finding of
        several, 0 absent and 1 present.
        """
        labels = self.cases.labels
        return labels if self.finding is None else labels[:, self.finding]

    @property
    def finding(self) -> int | None:
        """The finding that is attacked, for a multi-label network."""
        head = self.plan.network.head
        names = list(self.cases.class_names)
        if self.cases.labels.ndim == 1:
            return None
        name = head.removeprefix("finding:")
        if not head.startswith("finding:") or name not in names:
            raise expected(
                (
                    "images with several findings need head: finding:NAME, NAME of "
                    f"{', '.join(names)}"
                ),
                got=head,
                do="name one",
            )
        return names.index(name)

    @property
    def class_names(self) -> tuple[str, ...]:
        names = tuple(self.cases.class_names)
        return (
            names
            if self.finding is None
            else (f"no {names[self.finding]}", names[self.finding])
        )

    @cached_property
    def parts(self) -> Mapping[str, np.ndarray]:
        """Rows of the held-out images: detector-training, calibration, test, by patient;
        the classifier never saw them. What is attacked of a part comes first in it.
        """
        held = self.cases.where("test")
        s = self.plan.split
        part = three_way(
            self.cases.patients[held],
            fractions=(s.detector_training, s.calibration, s.test),
            seed=self.plan.seed,
        )
        rows = {name: held[part == name] for name in PARTS}
        return {
            name: r if name == "calibration" or s.most is None else self._first(r, s.most)
            for name, r in rows.items()
        }

    def _first(self, rows: np.ndarray, most: int) -> np.ndarray:
        chosen = self.some(rows, most)
        return np.concatenate([chosen, rows[~np.isin(rows, chosen)]])

    def some(self, rows: np.ndarray, most: int) -> np.ndarray:
        """At most ``most`` of ``rows``, chosen by a hash of the id: the same ones whatever else
        is there.
        """
        rank = [
            sha256(f"{self.plan.seed}|{self.cases.ids[r]}".encode()).hexdigest()
            for r in rows
        ]
        return np.sort(rows[np.argsort(rank)[:most]])

    def rows(self, part: str) -> np.ndarray:
        """The rows of a part; ``train`` are the classifier's own training images."""
        return self.cases.where("train") if part == "train" else self.parts[part]

    def attacked(self, part: str) -> np.ndarray:
        """The rows of a part that are attacked, if the classifier gets them right: at most
        ``split.most``, the first of ``rows``.
        """
        return self.rows(part)[: self.plan.split.most]

    def batches(self, part: str, *, attacked: bool = False) -> int:
        """How many batches a part has; of what is attacked in it with ``attacked``."""
        if not self.plan.batch_size:
            raise expected(
                "batch_size must be a number before work is divided into batches",
                got="auto",
                do="take the plan.yaml of a run, or the plan of auditing.run.checked(plan, out)",
            )
        rows = self.attacked(part) if attacked else self.rows(part)
        return -(-len(rows) // self.plan.batch_size)

    def batch(self, part: str, index: int, *, attacked: bool = False) -> np.ndarray:
        """The rows of a batch; those that are attacked are the first of the whole batch of the
        same number.
        """
        size = self.plan.batch_size
        return (self.attacked(part) if attacked else self.rows(part))[
            index * size : (index + 1) * size
        ]

    def images(self, rows: np.ndarray) -> Tensor:
        """The images of ``rows`` in box units, on the classifier's device."""
        return torch.from_numpy(self.cases.images(rows)).to(self.device)

    def ids(self, rows: np.ndarray) -> tuple[str, ...]:
        return tuple(str(i) for i in self.cases.ids[rows])

    def goal(self, rows: np.ndarray) -> Goal:
        """From the true class to another one: the other of two, else drawn from the image's own
        random numbers.
        """
        source = torch.from_numpy(self.labels[rows].astype(np.int64))
        k = max(len(self.class_names), 2)
        u = Noise(self.plan.seed, self.ids(rows)).uniform((), draw="target")
        shift = 1 + (u * (k - 1)).long().clamp_max(k - 2)
        return Goal(source.to(self.device), ((source + shift) % k).to(self.device))
