"""The limits of an attacker: how far and where pixels may change, and what a file can hold."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from feathide.attacks.grid import Grid
from feathide.attacks.threats import L2, Linf, ThreatModel
from feathide.data.budgets import parse_eps
from feathide.data.region import Region, load_region
from feathide.errors import expected
from feathide.pipeline.data import Data
from feathide.plans.plan import Plan

__all__ = ["Limits"]


@dataclass(frozen=True, eq=False)
class Limits:
    """Budgets, regions and the storage grid of one plan."""

    plan: Plan
    data: Data

    @cached_property
    def region(self) -> Region | None:
        """Where pixels may change; None for everywhere."""
        plan = self.plan
        return (
            None
            if plan.mask is None
            else load_region(plan.mask, self.data.cases, trust=plan.network.trust)
        )

    @cached_property
    def organ(self) -> Region | None:
        """Where generated lesions may lie; None for everywhere."""
        plan = self.plan
        return (
            None
            if plan.organ is None
            else load_region(plan.organ, self.data.cases, trust=plan.network.trust)
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
            "ids": self.data.ids(rows),
            "seed": self.plan.seed,
            "grid": self.grid,
            "mask": self.mask(x),
        }

    @cached_property
    def grid(self) -> Grid | None:
        """What a file of this data can hold; None for floating-point files."""
        return Grid(self.data.cases.step) if self.data.cases.step > 0 else None

    def _check_large(self, given: float | str, eps: float) -> None:
        """Refuse a budget beyond a quarter of the range of values, which is mostly a number in
        other units.
        """
        low, high = self.data.cases.box
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

    def _check_small(self, given: float | str, eps: float) -> None:
        """Refuse a budget below one stored grey level."""
        if self.plan.norm != "linf" or self.grid is None or eps >= self.grid.step * 0.999:
            return
        cases = self.data.cases
        do = "a smaller change cannot be written to a file of this format"
        if cases.box != (0.0, 1.0):
            unit = cases.unit if cases.unit != "grey level" else "grey levels"
            do += (
                f"; a plain number is in units of the box {cases.box}: say for "
                f"example '{4 * self.grid.step:g} {unit}'"
            )
        raise expected(
            f"eps must be at least one stored grey level ({self.grid.step:g} in box units)",
            got=given,
            do=do,
        )

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """The eps of the plan, in box units."""
        found = tuple(float(parse_eps(e, self.data.cases)) for e in self.plan.eps)
        for given, eps in zip(self.plan.eps, found, strict=True):
            if not eps > 0:
                raise expected(
                    "eps must be positive", got=given, do="give a budget such as 4/255"
                )
            self._check_large(given, eps)
            self._check_small(given, eps)
        return found

    def threat(self, eps: float) -> ThreatModel:
        return Linf(eps) if self.plan.norm == "linf" else L2(eps)
