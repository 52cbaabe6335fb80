"""What a report is made from: ``Run``, the results of one audit, and ``Case``, one attacked image
of it.

The report computes nothing that belongs to the audit: thresholds, intervals and scores come in
ready. A condition is the name of a kind of image: "clean", "noisy", or "<attack>+<objective>"
such as "pgd+hfc"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from feathide.errors import expected, unknown
from feathide.metrics.numbers import number
from feathide.metrics.rates import independent

__all__ = ["COLUMNS", "CURVES", "About", "Case", "Run", "Scale"]

COLUMNS = (
    *(
        "dataset",
        "classifier",
        "attack",
        "objective",
        "knowledge",
        "eps",
        "detector",
        "metric",
    ),
    *("value", "low", "high", "n", "seed"),
)
SCORES = ("condition", "detector", "id", "score", "fooled")
THREAT = ("goal", "knowledge", "norm", "eps", "box", "step", "unit", "success")
CURVES: dict[str, tuple[str, ...]] = {
    "eps": COLUMNS,
    "mixture": ("layer", "class", "components", "heldout"),
    "lambda": ("weight", "metric", "value", "low", "high"),
    "outlierness": ("condition", "layer", "value", "low", "high"),
    "embedding": ("condition", "x", "y", "layer", "method"),
    "stress": ("group", "layer", "value", "low", "high"),
    "transfer": ("condition", "substitute", "victim", "value"),
    "arms_race": ("round", "detector", "value", "low", "high"),
}


@dataclass(frozen=True)
class Case:
    """One attacked test image under one attack and objective.

    ``clean`` and ``adversarial`` are (C, *S), 2D or 3D, in box units and on the stored grey
    levels. ``scores`` and ``clean_scores`` map a detector to its score, ``energies`` a layer to
    the energy of the adversarial image under the clean model of the target class."""

    id: str
    label: int
    target: int
    predicted: int
    fooled: bool
    clean_predicted: int
    clean: np.ndarray
    adversarial: np.ndarray
    scores: Mapping[str, float] = field(default_factory=dict)
    clean_scores: Mapping[str, float] = field(default_factory=dict)
    energies: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What the head of the page says: when the audit began, who ran it and for whom, which
    network and which images it saw. What is "" is not known.

    ``docs``: the address where the documentation is served, for links."""

    date: str = ""
    made_by: str = ""
    made_for: str = ""
    model: str = ""
    model_digest: str = ""
    data: str = ""
    data_digest: str = ""
    docs: str = ""


@dataclass(frozen=True)
class Scale:
    """How box units become stored levels 0 .. levels - 1 and native units (grey levels, HU)."""

    low: float
    high: float
    levels: int
    native_low: float
    native_high: float
    unit: str

    def quantise(self, x: np.ndarray) -> np.ndarray:
        """The stored level of each value of ``x``, uint16."""
        span = (np.asarray(x, np.float64) - self.low) / (self.high - self.low)
        return np.clip(np.rint(span * (self.levels - 1)), 0, self.levels - 1).astype(
            np.uint16
        )

    def native(self, distance: float) -> float:
        """A distance in box units, in native units."""
        return distance * (self.native_high - self.native_low) / (self.high - self.low)


@dataclass(frozen=True)
class Run:
    """The results of one audit.

    ``table`` has one number a row, with the columns ``COLUMNS``; metrics named
    ``slips_through_fpr10`` and so on are shares in [0, 1]. ``threat`` holds ``goal``,
    ``knowledge``, ``norm``, ``eps`` (box units), ``box`` (lo, hi), ``step`` (the distance of two
    stored levels, box units), ``unit`` ("grey levels", "HU"), ``success`` (what counts as
    success) and, where the unit is not the stored level, ``native_box`` (lo, hi in ``unit``);
    ``where`` (which pixels may change) and ``eps_in_words`` are shown where they are given.
    ``thresholds`` maps detector -> {"fpr10": t, "fpr5": t, "fpr1": t}. ``scores`` has one score a
    row: condition, detector, id, score, fooled. ``curves`` may hold any of the frames of
    ``CURVES``; a figure appears where its data is. ``sanity_checks`` are mappings with name,
    status (pass, warn, fail), raised_if, why, do, detail. ``cases`` maps a condition to its
    cases. ``cost`` is a table of what the run took, one row a stage. ``seeds`` has every number
    over the seeds of the classifier (``mean``, ``least``, ``greatest``, ``seeds`` in place of
    ``value``, ``low``, ``high``, ``n``, ``seed``), ``held_out`` the numbers of guards by the
    attack that they ``learnt_from``. ``budgets`` are all budgets that were audited;
    ``threat["eps"]`` is the one that the page is about. ``aims`` maps an objective to the
    detectors that it attacks; where it does not say, the objective's name does
    (``spelling.aimed_at``). ``reads`` maps a detector to the spaces in which it looks
    ("features", "logits", "image"). ``masked`` maps detectors through which no gradient leads to
    the reason: none of them is said to hold. ``counts`` says how many images stand where:
    ``counts["calibrate"]`` (images, patients) decides which thresholds can be trusted.

    Raises InputError where a column or an entry is missing: a report never leaves something out
    in silence."""

    title: str
    synthetic: bool
    plan: Mapping[str, Any]
    versions: Mapping[str, Any]
    table: pd.DataFrame
    threat: Mapping[str, Any]
    class_names: Sequence[str]
    thresholds: Mapping[str, Mapping[str, float]]
    scores: pd.DataFrame
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    sanity_checks: Sequence[Mapping[str, str]] = ()
    caveats: Sequence[str] = ()
    cases: Mapping[str, Sequence[Case]] = field(default_factory=dict)
    cost: pd.DataFrame | None = None
    seeds: pd.DataFrame | None = None
    held_out: pd.DataFrame | None = None
    subgroups: pd.DataFrame | None = None
    budgets: Sequence[float] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)
    aims: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    masked: Mapping[str, str] = field(default_factory=dict)
    about: About = About()

    def __post_init__(self) -> None:
        _needs("the results table", COLUMNS, self.table.columns)
        _needs("the scores", SCORES, self.scores.columns)
        _needs("the threat model", THREAT, self.threat)
        for name, frame in self.curves.items():
            if name not in CURVES:
                raise unknown("curve", name, CURVES)
            _needs(f"the curve {name!r}", CURVES[name], frame.columns)
        if self.seeds is not None:
            _needs(
                "the table of seeds",
                (*COLUMNS[:8], "mean", "least", "greatest", "seeds"),
                self.seeds.columns,
            )
        if self.held_out is not None:
            _needs(
                "the table of held-out attacks",
                (*COLUMNS, "learnt_from"),
                self.held_out.columns,
            )
        for check in self.sanity_checks:
            if check["status"] not in ("pass", "warn", "fail"):
                raise unknown(
                    "sanity check status", check["status"], ("pass", "warn", "fail")
                )

    @property
    def calibrated(self) -> tuple[int, str] | None:
        """How many independent calibration cases the thresholds come from, and what to call them,
        as ``counts`` says; None where it does not.
        """
        part = self.counts.get("calibration")
        if not isinstance(part, Mapping):
            return None
        images = int(part["images"])
        return independent("calibration", images, int(part.get("patients", images)))

    @property
    def quick(self) -> Mapping[str, Any] | None:
        """What marks a quick look (``command``, ``says``); None for an audit."""
        found = self.plan.get("quick")
        return found if isinstance(found, Mapping) else None

    @property
    def scale(self) -> Scale:
        """Box units, stored levels and native units of the images."""
        low, high = map(float, self.threat["box"])
        levels = round((high - low) / float(self.threat["step"])) + 1
        native_low, native_high = map(float, self.threat.get("native_box", (0, levels - 1)))
        return Scale(low, high, levels, native_low, native_high, str(self.threat["unit"]))

    def size(self, eps: float) -> str:
        """A budget (box units) in native units."""
        size = number(self.scale.native(eps))
        unit = self.scale.unit
        return f"{size} {unit.removesuffix('s') if size == '1' else unit}"

    @property
    def budget(self) -> str:
        """The budget in native units, in words."""
        scale, norm = self.scale, str(self.threat["norm"])
        size = self.size(float(self.threat["eps"]))
        where = (
            "at every pixel"
            if "inf" in norm.lower()
            else f"over all pixels together ({norm})"
        )
        return (
            f"A change of at most {size} {where}, on a range of "
            f"{number(scale.native_high - scale.native_low, digits=4)}"
        )


def _needs(what: str, wanted: Sequence[str], got: Any) -> None:
    missing = [name for name in wanted if name not in got]
    if missing:
        raise expected(
            f"{what} must have {', '.join(wanted)}",
            got=f"none of {', '.join(missing)}",
            do="add what is missing",
        )
