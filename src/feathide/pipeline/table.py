"""The tables: one number a row, with its interval, from the stored scores and images.

``table_of`` has the results, ``comparisons_of`` the paired differences behind every "A beats B".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from feathide.catalog import OBJECTIVES
from feathide.data.shifts import HARMLESS
from feathide.errors import InputError
from feathide.formats.safety import guarded
from feathide.metrics.statistics import (
    Cut,
    Interval,
    auc,
    bootstrap,
    brier_score,
    calibration_error,
    cut,
    difference_at,
    proportion,
    share_at,
    threshold,
)
from feathide.pipeline.context import FALSE_ALARMS, PLAIN, Context, noisy_at
from feathide.pipeline.coverage import share_constrained
from feathide.pipeline.steps import cells
from feathide.pipeline.survival import archived, archives, rounding_key
from feathide.plans.plan import Cell

__all__ = [
    "COLUMNS",
    "COMPARED",
    "Found",
    "above",
    "comparisons_of",
    "cuts_of",
    "found_in",
    "negatives_in",
    "seconds_of",
    "slipping",
    "slips_in",
    "stored_table",
    "table_of",
    "thresholds_of",
]

MOST_ROWS = 10_000_000
COLUMNS = (
    *("dataset", "classifier", "attack", "objective", "knowledge", "eps", "detector"),
    *("metric", "value", "low", "high", "n", "seed"),
)
COMPARED = (
    *("dataset", "classifier", "attack", "eps", "detector", "metric"),
    *("objective", "against", "value", "low", "high", "n", "seed"),
)
# from least to most
KNOWING = ("none", "oblivious", "transfer", "feature-aware", "detector-aware")


Row = tuple[str, str, str, float, str, str, float, float, float, int]


@dataclass(frozen=True)
class Found:
    """What one cell's attack found on the test split. Row i is one attacked image."""

    cell: Cell
    rows: np.ndarray
    id: np.ndarray
    label: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    linf: np.ndarray
    first: np.ndarray
    gradients: np.ndarray
    forwards: np.ndarray
    seconds: float

    @property
    def fooled(self) -> np.ndarray:
        """Misclassified as the target, by the image as stored and read back."""
        return self.prediction == self.target


def found_in(context: Context, cell: Cell, part: str = "test") -> Found:
    """The stored results of a cell, all batches."""
    condition = context.condition(cell)
    keys = context.images_keys(condition, part)
    names = (
        "rows",
        "id",
        "label",
        "target",
        "prediction",
        "linf",
        "first",
        "gradients",
        "forwards",
    )
    loaded = [context.store.load(key) for key in keys]
    seconds = sum(seconds_of(context, key) for key in keys)
    return Found(
        cell, **{n: np.concatenate([a[n] for a in loaded]) for n in names}, seconds=seconds
    )


def seconds_of(context: Context, key: str) -> float:
    """What a task took; NaN where the note of it is lost, for which nobody does it again."""
    try:
        return float(context.store.load_json(f"seconds/{key}"))
    except InputError:
        return math.nan


def scores_in(
    context: Context,
    detector: str,
    eps: float,
    condition: str,
    part: str,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Stored scores of a condition, of all its rows or of ``rows`` in their order."""
    arrays = context.store.load(context.scores_key(detector, eps, condition, part))
    if rows is None:
        return arrays["score"]
    place = {int(r): i for i, r in enumerate(arrays["rows"])}
    return arrays["score"][[place[int(r)] for r in rows]]


def thresholds_of(context: Context, detector: str, eps: float) -> dict[str, float]:
    """The thresholds at each rate of false alarms, from the calibration split, clean and noisy,
    misclassified cases included.
    """
    return {
        name: threshold(negatives_in(context, detector, eps), rate)
        for name, rate in FALSE_ALARMS.items()
    }


def cuts_of(
    context: Context, detector: str, eps: float, *, seed: int | None = None
) -> dict[str, Cut]:
    """``thresholds_of`` with those that other calibration cases might have given: the scores of a
    patient, clean and noisy, are drawn together.
    """
    scores, patients = (
        negatives_in(context, detector, eps),
        np.tile(context.cases.patients[context.rows("calibration")], 2),
    )
    seed = context.plan.seed if seed is None else seed
    return {
        name: cut(scores, rate, groups=patients, seed=seed)
        for name, rate in FALSE_ALARMS.items()
    }


def negatives_in(context: Context, detector: str, eps: float) -> np.ndarray:
    """The stored scores of the calibration split, clean and noisy."""
    return np.concatenate(
        [
            scores_in(context, detector, eps, c, "calibration")
            for c in ("clean", noisy_at(eps))
        ]
    )


def table_of(context: Context) -> pd.DataFrame:
    """The whole table of a finished run."""
    rows = list(_accuracy(context))
    for eps in context.budgets:
        rows += _guards(context, eps)
        rows += _rounded(context, eps)
    for cell in cells(context):
        rows += cell_rows(context, cell)
        rows += _survivors(context, cell)
    for eps in context.budgets:
        rows += _worst(context, eps)
    return framed(context, rows)


def framed(context: Context, rows: Sequence[Row]) -> pd.DataFrame:
    """Rows of one context as a table. Columns: ``COLUMNS``."""
    frame = pd.DataFrame(
        rows,
        columns=[
            "attack",
            "objective",
            "knowledge",
            "eps",
            "detector",
            "metric",
            "value",
            "low",
            "high",
            "n",
        ],
    )
    frame.insert(0, "dataset", context.cases.name)
    frame.insert(1, "classifier", context.plan.network.arch)
    frame["seed"] = context.plan.seed
    return frame[list(COLUMNS)]


def comparisons_of(context: Context) -> pd.DataFrame:
    """Paired differences of slips-through at 10 % false alarms on the same cases: HFC, under each
    attack and past each detector, against every other objective. ``objective`` beats ``against``
    where ``low`` is above 0. Columns: ``COMPARED``.
    """
    rows = []
    for ours in (c for c in cells(context) if OBJECTIVES[c.objective.kind].needs == "bank"):
        for other in cells(context):
            if (other.attack, other.eps) != (
                ours.attack,
                ours.eps,
            ) or other.objective == ours.objective:
                continue
            a, b = found_in(context, ours), found_in(context, other)
            for detector in context.plan.detectors if len(a.rows) else ():
                slips = [
                    slipping(
                        f.fooled,
                        scores_in(
                            context,
                            detector,
                            f.cell.eps,
                            context.condition(f.cell),
                            "test",
                            f.rows,
                        ),
                    )
                    for f in (a, b)
                ]
                limit, groups = (
                    cuts_of(context, detector, ours.eps)["fpr10"],
                    context.cases.patients[a.rows],
                )
                d = difference_at(
                    (limit, limit), *slips, groups=groups, seed=context.plan.seed
                )
                names = (ours.objective.name, other.objective.name)
                head = (
                    context.cases.name,
                    context.plan.network.arch,
                    ours.attack.name,
                    ours.eps,
                    detector,
                )
                rows.append(
                    (
                        *head,
                        "slips_through_fpr10",
                        *names,
                        d.value,
                        d.low,
                        d.high,
                        d.n,
                        context.plan.seed,
                    )
                )
    return pd.DataFrame(rows, columns=list(COMPARED))


def _row(
    cell: Cell | None,
    metric: str,
    interval: Interval,
    *,
    detector: str = "",
    eps: float = float("nan"),
) -> Row:
    if cell is None:
        return (
            "",
            "",
            "none",
            eps,
            detector,
            metric,
            interval.value,
            interval.low,
            interval.high,
            interval.n,
        )
    knowledge = OBJECTIVES[cell.objective.kind].knowledge
    head = (cell.attack.name, cell.objective.name, knowledge, cell.eps, detector, metric)
    return (*head, interval.value, interval.low, interval.high, interval.n)


def _point(value: float, n: int) -> Interval:
    """A number that describes the run itself and has no sampling interval."""
    return Interval(float(value), float("nan"), float("nan"), n)


def _accuracy(context: Context) -> Iterator[Row]:
    for part in ("train", "calibration", "test"):
        out, rows = context.outputs("clean", part)
        right = out.predicted.numpy() == context.labels[rows]
        interval = proportion(right, groups=context.cases.patients[rows])
        yield _row(None, "accuracy" if part == "test" else f"accuracy_{part}", interval)
    out, rows = context.outputs("clean", "test")
    sure, groups = out.logits.double().softmax(1).numpy(), context.cases.patients[rows]
    for measure in (calibration_error, brier_score):
        found = bootstrap(
            measure, sure, context.labels[rows], groups=groups, seed=context.plan.seed
        )
        yield _row(None, measure.__name__, replace(found, n=len(rows)))
    for shift in HARMLESS:
        out, rows = context.outputs(f"shifted-{shift}", "test")
        right = out.predicted.numpy() == context.labels[rows]
        yield _row(
            None,
            f"accuracy_shifted_{shift}",
            proportion(right, groups=context.cases.patients[rows]),
        )
    for codec in archives(context):
        out, rows = context.outputs(archived("clean", codec), "test")
        right = out.predicted.numpy() == context.labels[rows]
        yield _row(
            None,
            f"accuracy_{codec.name}",
            proportion(right, groups=context.cases.patients[rows]),
        )


def _guards(context: Context, eps: float) -> Iterator[Row]:
    """False alarms of each detector on clean test cases, all of them, at the thresholds of the
    calibration split: as they are, noisy and harmlessly shifted.
    """
    out, rows = context.outputs("clean", "test")
    right, groups = (
        out.predicted.numpy() == context.labels[rows],
        context.cases.patients[rows],
    )

    def alarms(limit: Cut, score: np.ndarray) -> Interval:
        return share_at(limit, lambda t: score > t, groups=groups)

    for detector in context.plan.detectors:
        score = scores_in(context, detector, eps, "clean", "test")
        noisy = scores_in(context, detector, eps, noisy_at(eps), "test", rows)
        for name, limit in cuts_of(context, detector, eps).items():
            yield _row(
                None,
                f"false_alarms_{name}",
                alarms(limit, score),
                detector=detector,
                eps=eps,
            )
            yield _row(
                None,
                f"false_alarms_{name}_noise",
                alarms(limit, noisy),
                detector=detector,
                eps=eps,
            )
            if name != "fpr10":
                continue
            others = {codec.name: archived("clean", codec) for codec in archives(context)}
            others |= {f"shifted_{shift}": f"shifted-{shift}" for shift in HARMLESS}
            for other, condition in others.items():
                changed = scores_in(context, detector, eps, condition, "test", rows)
                yield _row(
                    None,
                    f"false_alarms_fpr10_{other}",
                    alarms(limit, changed),
                    detector=detector,
                    eps=eps,
                )
            if (score <= limit.value).any():
                accuracy = share_at(limit, _accepted(right, score), groups=groups)
                yield _row(
                    None, "accuracy_accepted_fpr10", accuracy, detector=detector, eps=eps
                )


def _accepted(right: np.ndarray, score: np.ndarray) -> Callable[[float], np.ndarray]:
    """Who of the accepted is classified rightly, at a threshold; NaN where a score is above
    it.
    """
    return lambda t: np.where(score <= t, right, np.nan)


def slipping(fooled: np.ndarray, score: np.ndarray) -> Callable[[float], np.ndarray]:
    """Who fools the classifier and passes, at a threshold."""
    return lambda t: fooled & (score <= t)


def above(score: np.ndarray) -> Callable[[float], np.ndarray]:
    """Who is caught, at a threshold."""
    return lambda t: score > t


def cell_rows(context: Context, cell: Cell) -> Iterator[Row]:
    """What one attack achieves, by itself and past each detector."""
    found = found_in(context, cell)
    n, groups = len(found.rows), context.cases.patients[found.rows]
    if n == 0:
        return
    fooled = found.fooled
    yield _row(cell, "success", proportion(fooled, groups=groups))
    yield _row(cell, "linf_max", _point(found.linf.max(), n))
    if OBJECTIVES[cell.objective.kind].needs == "bank":
        yield _row(
            cell, "layers_constrained", _point(*share_constrained(context, cell.objective))
        )
    yield _row(cell, "seconds_per_image", _point(found.seconds / n, n))
    yield _row(cell, "gradients_per_image", _point(found.gradients.mean(), n))
    yield _row(cell, "forwards_per_image", _point(found.forwards.mean(), n))
    for detector in context.plan.detectors:
        score = scores_in(
            context, detector, cell.eps, context.condition(cell), "test", found.rows
        )
        limits = cuts_of(context, detector, cell.eps)
        negatives = np.concatenate(
            [
                scores_in(context, detector, cell.eps, c, "test", found.rows)
                for c in ("clean", noisy_at(cell.eps))
            ]
        )
        if fooled.any():
            interval = bootstrap(
                auc,
                negatives,
                score[fooled],
                groups=(np.concatenate([groups, groups]), groups[fooled]),
                seed=context.plan.seed,
            )
            yield _row(cell, "auc", interval, detector=detector)
            hit = share_at(limits["fpr10"], above(score[fooled]), groups=groups[fooled])
            yield _row(cell, "tpr_at_fpr10", hit, detector=detector)
        for name, limit in limits.items():
            slips = share_at(limit, slipping(fooled, score), groups=groups)
            yield _row(cell, f"slips_through_{name}", slips, detector=detector)
            if name == "fpr10":
                whole = _slips_of_all(context, found, detector, limit)
                yield _row(cell, "slips_through_fpr10_all", whole, detector=detector)


def _rounded(context: Context, eps: float) -> Iterator[Row]:
    """The share of a floating-point attack's successes, on the detector-training split, that are
    lost when its images are rounded to the grid afterwards.
    """
    cell = Cell(context.plan.learnt_from, PLAIN, eps)
    if context.grid is None or cell.name not in {c.name for c in cells(context)}:
        return
    tried = context.store.load(rounding_key(context, cell))
    before, after = tried["before"], tried["after"]
    if before.any():
        lost = proportion(
            ~after[before], groups=context.cases.patients[tried["rows"][before]]
        )
        yield _row(cell, "lost_if_rounded_afterwards", lost)


def _survivors(context: Context, cell: Cell) -> Iterator[Row]:
    """What is lost of a cell on the way: when the stored images are read back, and in each
    archive of the plan.
    """
    found = found_in(context, cell)
    groups = context.cases.patients[found.rows]
    claimed = found.first >= 0
    if claimed.any():
        yield _row(
            cell, "lost_on_disk", proportion(~found.fooled[claimed], groups=groups[claimed])
        )
    for codec in archives(context) if len(groups) else ():
        condition = archived(context.condition(cell), codec)
        fooled = context.outputs(condition, "test")[0].predicted.numpy() == found.target
        yield _row(cell, f"success_{codec.name}", proportion(fooled, groups=groups))
        for detector in context.plan.detectors:
            score = scores_in(context, detector, cell.eps, condition, "test", found.rows)
            slips = share_at(
                cuts_of(context, detector, cell.eps)["fpr10"],
                slipping(fooled, score),
                groups=groups,
            )
            yield _row(cell, f"slips_through_fpr10_{codec.name}", slips, detector=detector)


def slips_in(
    context: Context, detector: str, found: Found, level: str = "fpr10"
) -> np.ndarray:
    """Which attacked images fool the classifier and pass the detector, (n,)."""
    eps = found.cell.eps
    score = scores_in(
        context, detector, eps, context.condition(found.cell), "test", found.rows
    )
    return found.fooled & (score <= thresholds_of(context, detector, eps)[level])


def _slips_of_all(context: Context, found: Found, detector: str, limit: Cut) -> Interval:
    """The share of *all* test images that were chosen for attack which are misread and pass: by
    the attack, or as they are where the classifier is wrong.
    """
    eps, rows = found.cell.eps, context.attacked("test")
    wrong = context.at("clean", "test", rows).predicted.numpy() != context.labels[rows]
    before = scores_in(context, detector, eps, "clean", "test", rows)
    after = scores_in(
        context, detector, eps, context.condition(found.cell), "test", found.rows
    )

    def slips(t: float) -> np.ndarray:
        return (wrong & (before <= t)) | np.isin(
            rows, found.rows[found.fooled & (after <= t)]
        )

    return share_at(limit, slips, groups=context.cases.patients[rows])


def _worst(context: Context, eps: float) -> Iterator[Row]:
    """Per-case worst case: a case slips through if it does under any attack of the budget."""
    found = [
        f
        for f in (found_in(context, c) for c in cells(context) if c.eps == eps)
        if len(f.rows)
    ]
    if not found:
        return
    knowledge = max(
        (OBJECTIVES[f.cell.objective.kind].knowledge for f in found), key=KNOWING.index
    )
    rows = found[0].rows
    groups = context.cases.patients[rows]
    for detector in context.plan.detectors:
        scores = [
            scores_in(context, detector, eps, context.condition(f.cell), "test", f.rows)
            for f in found
        ]
        for name, limit in cuts_of(context, detector, eps).items():
            share = share_at(limit, _slipping_anyhow(rows, found, scores), groups=groups)
            head = ("worst", "any", knowledge, eps, detector, f"slips_through_{name}")
            yield (*head, share.value, share.low, share.high, share.n)


def _slipping_anyhow(
    rows: np.ndarray, found: Sequence[Found], scores: Sequence[np.ndarray]
) -> Callable[[float], np.ndarray]:
    """Which of ``rows`` slip through under any of the attacks, at a threshold."""

    def slips(t: float) -> np.ndarray:
        through = [
            f.rows[f.fooled & (score <= t)] for f, score in zip(found, scores, strict=True)
        ]
        return np.isin(rows, np.concatenate(through))

    return slips


def stored_table(path: Path) -> pd.DataFrame:
    """A table in a parquet file. A small one can hold more rows than there is memory for: beyond
    ``MOST_ROWS`` it is refused.
    """

    import pyarrow.parquet as pq

    def read() -> pd.DataFrame:
        if (rows := pq.read_metadata(path).num_rows) > MOST_ROWS:
            raise ValueError(f"{rows} rows")
        return pd.read_parquet(path)

    return guarded(path, read)
