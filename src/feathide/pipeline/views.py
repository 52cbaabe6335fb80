"""What a finished run, a detector, an attack, and an attack past a detector have left, as metrics
look at it (``metrics.views``). Each part is read from the store when it is first asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from feathide.catalog import OBJECTIVES
from feathide.formats.archive import Codec
from feathide.metrics.registry import Scope
from feathide.metrics.statistics import UncertainThreshold, slipping
from feathide.metrics.views import Answers, LeastChange
from feathide.pipeline.conditions import PLAIN, noisy_at
from feathide.pipeline.context import Context
from feathide.pipeline.coverage import share_constrained
from feathide.pipeline.over_draws import fooled_by_draw
from feathide.pipeline.smallest import Smallest, smallest_in
from feathide.pipeline.stored import Found, found_in, scores_in, uncertain_thresholds_of
from feathide.pipeline.survival import archived, rounding
from feathide.plans.plan import Cell

__all__ = ["Attacked", "Classified", "Guarded", "Head", "Passed", "Worst", "attacked"]

# attack, objective, knowledge, eps, detector
Head = tuple[str, str, str, float, str]
# from least to most
KNOWING = ("none", "oblivious", "transfer", "feature-aware", "detector-aware")


@dataclass(frozen=True)
class Classified:
    """The classifier on images that nobody attacked; the test images as they come back from
    ``archive``, where one is given.
    """

    context: Context
    archive: Codec | None = None
    scope: ClassVar[Scope] = "run"
    head: ClassVar[Head] = ("", "", "none", math.nan, "")

    @property
    def seed(self) -> int:
        return self.context.plan.seed

    @cached_property
    def train(self) -> Answers:
        return self._answers("clean", "train")

    @cached_property
    def calibration(self) -> Answers:
        return self._answers("clean", "calibration")

    @cached_property
    def test(self) -> Answers:
        return self._answers(_kept_by(self.archive, "clean"), "test")

    def shifted(self, shift: str) -> Answers:
        return self._answers(f"shifted-{shift}", "test")

    def through(self, archive: Codec) -> "Classified":
        """The same with the images that an archive gives back."""
        return replace(self, archive=archive)

    def _answers(self, condition: str, part: str) -> Answers:
        out, rows = self.context.outputs.of(condition, part)
        labels = self.context.data.labels[rows]
        return Answers(
            probabilities=out.logits.double().softmax(1).numpy(),
            labels=labels,
            right=out.predicted.numpy() == labels,
            groups=self.context.cases.patients[rows],
        )


@dataclass(frozen=True)
class Guarded:
    """One detector at one budget, on all clean test images. ``seed`` draws the thresholds that
    other calibration cases might have given.
    """

    context: Context
    detector: str
    eps: float
    seed: int
    archive: Codec | None = None
    scope: ClassVar[Scope] = "detector"

    @property
    def head(self) -> Head:
        return ("", "", "none", self.eps, self.detector)

    @cached_property
    def thresholds(self) -> dict[str, UncertainThreshold]:
        return uncertain_thresholds_of(
            self.context, self.detector, self.eps, seed=self.seed
        )

    @cached_property
    def rows(self) -> np.ndarray:
        return self.context.outputs.of("clean", "test")[1]

    @property
    def groups(self) -> np.ndarray:
        return self.context.cases.patients[self.rows]

    @cached_property
    def right(self) -> np.ndarray:
        out, rows = self.context.outputs.of("clean", "test")
        return out.predicted.numpy() == self.context.data.labels[rows]

    @cached_property
    def clean(self) -> np.ndarray:
        return self.scores(_kept_by(self.archive, "clean"), self.rows)

    @cached_property
    def noisy(self) -> np.ndarray:
        return self.scores(noisy_at(self.eps), self.rows)

    def shifted(self, shift: str) -> np.ndarray:
        return self.scores(f"shifted-{shift}", self.rows)

    def scores(self, condition: str, rows: np.ndarray) -> np.ndarray:
        """The scores of a condition of the test split at some rows."""
        return scores_in(self.context, self.detector, self.eps, condition, "test", rows)

    @cached_property
    def chosen(self) -> np.ndarray:
        """The rows of the test images that were chosen for attack, misclassified ones, too."""
        return self.context.data.attacked("test")

    @cached_property
    def unattacked(self) -> tuple[np.ndarray, np.ndarray]:
        """Of these, as they are: whether the classifier is wrong, and the scores."""
        out = self.context.outputs.at("clean", "test", self.chosen)
        wrong = out.predicted.numpy() != self.context.data.labels[self.chosen]
        return wrong, self.scores("clean", self.chosen)

    def missed(self, threshold: float) -> np.ndarray:
        """Which of these are misread and pass as they are, at a threshold."""
        return slipping(*self.unattacked)(threshold)

    def through(self, archive: Codec) -> "Guarded":
        """The same with the images that an archive gives back."""
        return replace(self, archive=archive)


@dataclass(frozen=True)
class Attacked:
    """One attack, by itself; its images as they come back from ``archive``, where one is given.
    ``seed`` draws the patients of its intervals.
    """

    context: Context
    found: Found
    seed: int
    archive: Codec | None = None
    scope: ClassVar[Scope] = "attack"

    @property
    def cell(self) -> Cell:
        return self.found.cell

    @property
    def rows(self) -> np.ndarray:
        return self.found.rows

    @property
    def head(self) -> Head:
        cell = self.cell
        return (cell.attack.name, cell.objective.name, self.knowledge, cell.eps, "")

    @property
    def knowledge(self) -> str:
        return OBJECTIVES[self.cell.objective.kind].knowledge

    @property
    def condition(self) -> str:
        """The condition of the images."""
        return _kept_by(self.archive, self.context.steps.condition(self.cell))

    @property
    def groups(self) -> np.ndarray:
        return self.context.cases.patients[self.rows]

    @cached_property
    def fooled(self) -> np.ndarray:
        if self.archive is None:
            return self.found.fooled
        out = self.context.outputs.at(self.condition, "test", self.rows)
        return out.predicted.numpy() == self.found.target

    @property
    def claimed(self) -> np.ndarray:
        return self.found.first >= 0

    @property
    def linf(self) -> np.ndarray:
        return self.found.linf

    @property
    def gradients(self) -> np.ndarray:
        return self.found.gradients

    @property
    def forwards(self) -> np.ndarray:
        return self.found.forwards

    @property
    def seconds(self) -> float:
        return self.found.seconds

    @property
    def constrained(self) -> tuple[float, int] | None:
        if OBJECTIVES[self.cell.objective.kind].needs != "bank":
            return None
        return share_constrained(self.context, self.cell.objective)

    @property
    def rounded(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Of the attack that the detectors learn from only: the others were not rounded."""
        tried = Cell(self.context.plan.learnt_from, PLAIN, self.cell.eps)
        if self.context.limits.grid is None or self.cell.name != tried.name:
            return None
        stored = self.context.store.load(rounding(self.context, tried).key)
        before = stored["before"]
        return ~stored["after"][before], self.context.cases.patients[stored["rows"][before]]

    @cached_property
    def by_draw(self) -> np.ndarray | None:
        found = fooled_by_draw(self.context, self.cell)
        if found is None:
            return None
        whole = found_in(self.context, self.cell)
        place = {int(r): i for i, r in enumerate(whole.rows)}
        return found[[place[int(r)] for r in self.rows]]

    @cached_property
    def searched(self) -> Smallest | None:
        return smallest_in(self.context, self.cell)

    @property
    def smallest(self) -> LeastChange | None:
        return None if self.searched is None else self._least(self.searched.fool)

    def _least(self, values: np.ndarray) -> LeastChange:
        """Least changes in the order of these rows."""
        assert self.searched is not None
        place = {int(r): i for i, r in enumerate(self.searched.rows)}
        return LeastChange(
            values[[place[int(r)] for r in self.rows]], self.searched.largest
        )

    def least_past(self, detector: str) -> dict[str, LeastChange]:
        """By threshold, the least changes that fool and pass a detector."""
        past = {} if self.searched is None else self.searched.past
        return {rate: self._least(v) for (d, rate), v in past.items() if d == detector}

    def through(self, archive: Codec) -> "Attacked":
        """The same with the images that an archive gives back."""
        return replace(self, archive=archive)

    def in_order(self) -> "Attacked":
        """The same with the images in the order of their rows."""
        return replace(self, found=self.found.at(np.argsort(self.rows)))


def attacked(context: Context, cell: Cell, *, seed: int | None = None) -> Attacked:
    """The view of a cell's attack on the test split; ``seed``: the plan's unless said."""
    seed = context.plan.seed if seed is None else seed
    return Attacked(context, found_in(context, cell), seed)


@dataclass(frozen=True)
class Passed:
    """One attack past one detector of the same budget."""

    attack: Attacked
    guard: Guarded
    scope: ClassVar[Scope] = "attack x detector"

    @property
    def context(self) -> Context:
        return self.attack.context

    @property
    def head(self) -> Head:
        return (*self.attack.head[:-1], self.guard.detector)

    @property
    def seed(self) -> int:
        return self.attack.seed

    @property
    def thresholds(self) -> dict[str, UncertainThreshold]:
        return self.guard.thresholds

    @property
    def groups(self) -> np.ndarray:
        return self.attack.groups

    @property
    def fooled(self) -> np.ndarray:
        return self.attack.fooled

    @cached_property
    def score(self) -> np.ndarray:
        return self.guard.scores(self.attack.condition, self.attack.rows)

    @cached_property
    def negatives(self) -> np.ndarray:
        conditions = ("clean", noisy_at(self.guard.eps))
        return np.concatenate([self.guard.scores(c, self.attack.rows) for c in conditions])

    def slips(self, threshold: float) -> np.ndarray:
        return slipping(self.fooled, self.score)(threshold)

    @property
    def smallest(self) -> dict[str, LeastChange]:
        return self.attack.least_past(self.guard.detector)

    @property
    def all_groups(self) -> np.ndarray:
        return self.context.cases.patients[self.guard.chosen]

    def slips_of_all(self, threshold: float) -> np.ndarray:
        by_attack = np.isin(self.guard.chosen, self.attack.rows[self.slips(threshold)])
        return self.guard.missed(threshold) | by_attack

    def through(self, archive: Codec) -> "Passed":
        """The same with the images that an archive gives back."""
        return replace(self, attack=self.attack.through(archive))


@dataclass(frozen=True)
class Worst:
    """The worst case for each image: it slips through if it does under any attack of the budget.
    It has what metrics with ``over_attacks`` look at.
    """

    every: Sequence[Passed]
    scope: ClassVar[Scope] = "attack x detector"

    @property
    def context(self) -> Context:
        return self.every[0].context

    @property
    def head(self) -> Head:
        knowledge = max((p.attack.knowledge for p in self.every), key=KNOWING.index)
        guard = self.every[0].guard
        return ("worst", "any", knowledge, guard.eps, guard.detector)

    @property
    def thresholds(self) -> dict[str, UncertainThreshold]:
        return self.every[0].thresholds

    @property
    def groups(self) -> np.ndarray:
        return self.every[0].groups

    def slips(self, threshold: float) -> np.ndarray:
        rows = self.every[0].attack.rows
        through = [p.attack.rows[p.slips(threshold)] for p in self.every]
        return np.isin(rows, np.concatenate(through))

    def through(self, archive: Codec) -> "Worst":
        """The same with the images that an archive gives back."""
        return replace(self, every=[p.through(archive) for p in self.every])


def _kept_by(archive: Codec | None, condition: str) -> str:
    """A condition's name, or that of its images as an archive gives them back."""
    return condition if archive is None else archived(condition, archive)
