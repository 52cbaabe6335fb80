"""The subjects of a plan: its images, their parts, what is to become of them, and within which
limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feathide.attacks.grid import Grid
from feathide.attacks.threats import L2, Linf, ThreatModel
from feathide.data import Cases, three_way
from feathide.data.budgets import parse_eps
from feathide.data.noise import Noise
from feathide.data.region import Region, load_region
from feathide.errors import expected
from feathide.execution.store import Store
from feathide.models.device import device_of
from feathide.pipeline.moved import cases_of
from feathide.plans.plan import Plan
from feathide.types import Goal

__all__ = ["PARTS", "Subjects"]

PARTS = ("detector-training", "calibration", "test")


@dataclass(frozen=True)
class Subjects:
    """The images of one plan, on the device that computes; ``store`` is where its run lies."""

    plan: Plan
    store: Store

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.plan.device)

    @cached_property
    def cases(self) -> Cases:
        """The images, checked: no patient and no image stands in two splits."""
        return cases_of(self.plan.data, self.plan.seed, self.store.folder)

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

    @property
    def division(self) -> list[Any]:
        """What decides which images stand where, and in which order: a part of the keys."""
        split = self.plan.split
        return [split] if split.most is None else [split, "most limits the attacked"]

    def batches(self, part: str, *, attacked: bool = False) -> int:
        """How many batches a part has; of what is attacked in it with ``attacked``."""
        return -(
            -len(self.attacked(part) if attacked else self.rows(part))
            // self.plan.batch_size
        )

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

    @cached_property
    def region(self) -> Region | None:
        """Where pixels may change; None for everywhere."""
        plan = self.plan
        return (
            None
            if plan.mask is None
            else load_region(plan.mask, self.cases, trust=plan.network.trust)
        )

    @cached_property
    def organ(self) -> Region | None:
        """Where generated lesions may lie; None for everywhere."""
        plan = self.plan
        return (
            None
            if plan.organ is None
            else load_region(plan.organ, self.cases, trust=plan.network.trust)
        )

    def mask(self, x: Tensor) -> Tensor | None:
        """Which pixels of the images ``x`` may change, (N or 1, C or 1, *S); None for all of
        them.
        """
        return None if self.region is None else self.region.of(x)

    def terms(self, rows: np.ndarray, x: Tensor) -> dict[str, Any]:
        """What every attack on the images ``x`` of ``rows`` is bound to: ids, seed, what a file
        can hold, where it may change.
        """
        return {
            "ids": self.ids(rows),
            "seed": self.plan.seed,
            "grid": self.grid,
            "mask": self.mask(x),
        }

    @cached_property
    def grid(self) -> Grid | None:
        """What a file of this data can hold; None for floating-point files."""
        return Grid(self.cases.step) if self.cases.step > 0 else None

    def _check_large(self, given: float | str, eps: float) -> None:
        """Refuse a budget beyond a quarter of the range of values, which is mostly a number in
        other units.
        """
        low, high = self.cases.box
        if (
            self.plan.norm != "linf"
            or self.plan.large_eps
            or eps <= (high - low) / 4 * (1 + 1e-6)
        ):
            return
        plain = (
            isinstance(given, int | float) or given.strip().replace(".", "", 1).isdigit()
        )
        meant = (
            f"did you mean {float(given):g}/255? "
            if plain and (low, high) == (0.0, 1.0) and eps >= 1
            else ""
        )
        raise expected(
            f"eps must be at most a quarter of the range of values [{low:g}, {high:g}]",
            got=f"eps: {given}",
            do=f"{meant}say large_eps: true if you mean it",
        )

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """The eps of the plan, in box units."""
        found = tuple(float(parse_eps(e, self.cases)) for e in self.plan.eps)
        for given, eps in zip(self.plan.eps, found, strict=True):
            if not eps > 0:
                raise expected(
                    "eps must be positive", got=given, do="give a budget such as 4/255"
                )
            self._check_large(given, eps)
            if (
                self.grid is not None
                and self.plan.norm == "linf"
                and eps < self.grid.step * 0.999
            ):
                unit = self.cases.unit if self.cases.unit != "grey level" else "grey levels"
                do = "a smaller change cannot be written to a file of this format"
                if self.cases.box != (0.0, 1.0):
                    do += (
                        f"; a plain number is in units of the box {self.cases.box}: say for "
                        f"example '{4 * self.grid.step:g} {unit}'"
                    )
                raise expected(
                    (
                        f"eps must be at least one stored grey level ({self.grid.step:g} in box "
                        "units)"
                    ),
                    got=given,
                    do=do,
                )
        return found

    def threat(self, eps: float) -> ThreatModel:
        return Linf(eps) if self.plan.norm == "linf" else L2(eps)
