"""the context: what the tasks of one plan share, made once per process: keys, stored outputs,
mixtures, fitted detectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from feathide.catalog import OBJECTIVES
from feathide.detectors import Detector
from feathide.execution.digests import digest
from feathide.execution.packing import scored, taught, unpacked
from feathide.execution.store import Store
from feathide.integrations import identity
from feathide.metrics.statistics import threshold
from feathide.mixtures import MixtureBank
from feathide.pipeline.networks import Networks
from feathide.plans.plan import Cell, Plan, slug
from feathide.plans.sections import ObjectivePlan
from feathide.types import Evidence, Outputs

__all__ = ["Context", "context_of"]

PLAIN = ObjectivePlan(name="plain")


@dataclass(frozen=True)
class Context(Networks):
    """Everything of one plan that is not a result. ``plan`` decides it all; ``store`` is where
    finished tasks lie.
    """

    # --- keys: each holds a digest of all that decides its content ------------------------------

    def condition(self, cell: Cell) -> str:
        """The name of a cell's results: ``pgd-hfc-<digest>``."""
        p, o = self.plan, cell.objective
        needs = OBJECTIVES[cell.objective.kind].needs
        parts = [self.base, cell, p.norm, p.schedule, *self.division, p.batch_size]
        if needs == "bank":
            parts += [p.mixture, "floor"]
        if ":" in cell.attack.name:
            parts.append(identity(cell.attack.name))
        if needs and ":" not in cell.attack.name:
            parts.append("unit of the logits")
        if needs == "detectors" or o.weight == "auto":
            parts += [
                p.detectors,
                p.learnt_from,
                *(identity(d) for d in p.detectors if ":" in d),
            ]
            parts += self.beside()
        return f"{slug(cell.attack.name)}-{slug(o.name)}-{digest(parts)}"

    def outputs_key(self, condition: str, part: str, index: int) -> str:
        p = self.plan
        if not of_attack(condition):
            norm = p.norm if condition.startswith("noisy-") else ""
            condition = (
                f"{condition}-{digest([self.base, norm, *self.division, p.batch_size])}"
            )
        sight = f"-{digest(self.sight)}" if self.sight else ""
        return f"outputs/{condition}{sight}/{part}-{index:04d}"

    def outputs_keys(self, condition: str, part: str) -> tuple[str, ...]:
        """The keys of all batches: of an attack's condition those that are attacked."""
        count = self.batches(part, attacked=of_attack(condition))
        return tuple(self.outputs_key(condition, part, i) for i in range(count))

    def images_key(self, condition: str, part: str, index: int) -> str:
        return f"adversarial/{condition}/{part}-{index:04d}"

    def images_keys(self, condition: str, part: str) -> tuple[str, ...]:
        """The keys of all batches that are attacked."""
        return tuple(
            self.images_key(condition, part, i)
            for i in range(self.batches(part, attacked=True))
        )

    def tuned(self, cell: Cell) -> Cell:
        """The cell on which lambda of a cell's objective is found: one search for each objective
        and budget, with the attack that the detectors learn from.
        """
        return replace(cell, attack=self.plan.learnt_from)

    def tune_key(self, cell: Cell) -> str:
        return f"tuning/{self.condition(self.tuned(cell))}"

    def scores_key(self, detector: str, eps: float, condition: str, part: str) -> str:
        parts = [
            self.condition(Cell(self.plan.learnt_from, PLAIN, eps)),
            detector,
            *([identity(detector)] if ":" in detector else []),
        ]
        guard = digest([*parts, *self.beside([detector])])
        return f"scores/{slug(detector)}-{guard}/{condition}-{part}"

    # --- what tasks have stored -----------------------------------------------------------------

    def outputs(self, condition: str, part: str) -> tuple[Outputs, np.ndarray]:
        """The stored outputs of a condition ("clean", "noisy-<eps>", an attack's) on a part, and
        the cases' rows.
        """
        loaded = [self.store.load(key) for key in self.outputs_keys(condition, part)]
        return Outputs.cat([unpacked(a) for a in loaded]), np.concatenate(
            [a["rows"] for a in loaded]
        )

    def right(self, part: str) -> np.ndarray:
        """The rows of a part that are attacked and that the classifier gets right."""
        out, rows = self.outputs("clean", part)
        return rows[
            (out.predicted.numpy() == self.labels[rows])
            & np.isin(rows, self.attacked(part))
        ]

    @lru_cache(maxsize=1)  # noqa: B019 (a context lives as long as its process)
    def train(self) -> tuple[Outputs, Tensor]:
        out, rows = self.outputs("clean", "train")
        return out, torch.from_numpy(self.labels[rows].astype(np.int64))

    @lru_cache(maxsize=1)  # noqa: B019
    def typical_lead(self) -> float:
        """The median lead of the true class, in logits, on the clean training images that are
        right: as sure as usual. 1 if none is right.
        """
        right = _leads(*self.train())
        return float(right.median()) if len(right) else 1.0

    @lru_cache(maxsize=1)  # noqa: B019
    def enough(self) -> float:
        """The lead at which an attacker who hides stops pushing, in typical leads: as planned, or
        the lower quartile over the clean images of the detector-training split that are right.
        Surer, an image is harder to hide; less sure, it stands out among clean ones.
        """
        if self.plan.schedule.lead != "auto":
            return self.plan.schedule.lead
        out, rows = self.outputs("clean", "detector-training")
        right = _leads(out, torch.from_numpy(self.labels[rows].astype(np.int64)))
        return float(right.quantile(0.25)) / self.typical_lead() if len(right) else 1.0

    @lru_cache(maxsize=1)  # noqa: B019
    def bank(self) -> MixtureBank:
        arrays = self.store.load(self.mixture_key)
        content = str(arrays.pop("content"))
        return MixtureBank.unpacked(
            {k: torch.from_numpy(v) for k, v in arrays.items()}, content
        )

    @cached_property
    def mixture_key(self) -> str:
        return f"mixtures/{digest([self.base, self.plan.mixture, 'clean energies'])}"

    def evidence(self, eps: float) -> Evidence:
        """What the detectors learn from: rows of the detector-training split that the classifier
        gets right, as they are, noisy and attacked.
        """
        train, labels = self.train()
        cell = Cell(self.plan.learnt_from, PLAIN, eps)
        adversarial, rows = self.outputs(self.condition(cell), "detector-training")
        clean, noisy = (
            self.at("clean", "detector-training", rows),
            self.at(noisy_at(eps), "detector-training", rows),
        )
        return Evidence(train, labels, clean, noisy, adversarial)

    def at(self, condition: str, part: str, rows: np.ndarray) -> Outputs:
        """The outputs of a condition at some rows, in their order."""
        out, have = self.outputs(condition, part)
        place = {int(r): i for i, r in enumerate(have)}
        return out[torch.tensor([place[int(r)] for r in rows], dtype=torch.long)]

    @lru_cache(maxsize=64)  # noqa: B019
    def detector(self, name: str, eps: float) -> Detector:
        return taught(name, self._evidence(eps))

    @lru_cache(maxsize=2)  # noqa: B019
    def _evidence(self, eps: float) -> Evidence:
        return self.evidence(eps)

    def calibration(self, name: str, eps: float) -> np.ndarray:
        """Scores of the calibration split, clean and noisy, misclassified cases included."""
        parts = [self.outputs(c, "calibration")[0] for c in ("clean", noisy_at(eps))]
        return np.concatenate([scored(self.detector(name, eps), p) for p in parts])

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Attacker:
    """What an attacker at one budget may know (``catalog.Known``)."""

    context: Context
    eps: float

    def bank(self) -> MixtureBank:
        return self.context.bank()

    def train(self) -> tuple[Outputs, Tensor]:
        return self.context.train()

    def detectors(
        self, names: Sequence[str] | None
    ) -> tuple[Sequence[Detector], Sequence[float], Sequence[float]]:
        names = tuple(names or self.context.plan.detectors)
        found = [self.context.detector(n, self.eps) for n in names]
        scores = [self.context.calibration(n, self.eps) for n in names]
        return (
            found,
            [threshold(s, 0.10) for s in scores],
            [float(max(np.std(s), 1e-12)) for s in scores],
        )


def _leads(out: Outputs, labels: Tensor) -> Tensor:
    """By how much the true class leads, in logits, in the images that are right."""
    true = out.logits.gather(1, labels[:, None])[:, 0]
    lead = true - out.logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return lead[lead > 0].double()


def of_attack(condition: str) -> bool:
    """Whether a condition is of attacked images: not clean, noisy or shifted ones."""
    return not condition.startswith(("clean", "noisy-", "shifted-"))


def noisy_at(eps: float) -> str:
    """The condition of random noise at a budget."""
    return f"noisy-{eps:.6g}"


@lru_cache(maxsize=2)
def context_of(plan_json: str, store: Store) -> Context:
    """the context of a plan, one per process."""
    return Context(Plan.model_validate_json(plan_json), store)
