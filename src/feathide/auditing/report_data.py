"""What the report is made from: the files of a finished audit, and of the analyses beside it, as
a ``report.Run``.
"""

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from feathide.auditing.outliers import curves as outlier_curves
from feathide.auditing.record import date_of
from feathide.auditing.tasks import audit_tasks
from feathide.catalog import DETECTORS, OBJECTIVES
from feathide.data.budgets import format_eps
from feathide.metrics.statistics import proportion
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.stored import Found, found_in, scores_in, seconds_of, thresholds_of
from feathide.pipeline.stored_images import decode
from feathide.plans.plan import Cell
from feathide.report import About, Case, Run
from feathide.report.curves import stress_curve, transfer_curve
from feathide.sanity.caveats import caveats_of
from feathide.sanity.checks import effective_aims, masked_in

__all__ = ["about_of", "run_of", "versions"]

PICTURES = 200  # cases of each condition in the report, and
PIXELS = 2**23  # at most so many pixels of them
PACKAGES = (
    "feathide",
    "torch",
    "torchvision",
    "numpy",
    "scikit-learn",
    "monai",
    "lightning",
)
NUMBERS = (
    "eps",
    "value",
    "low",
    "high",
    "mean",
    "least",
    "greatest",
    "rest",
    "p",
    "p_holm",
)

BESIDE = (
    ("explain-stress.csv", "stress", stress_curve),
    ("explain-transfer.csv", "transfer", transfer_curve),
    ("arms_race.csv", "arms_race", lambda table: table[table.objective == "worst"]),
)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def run_of(
    context: Context,
    table: pd.DataFrame,
    *,
    sanity_checks: Sequence[Mapping[str, str]] = (),
) -> Run:
    """What the report is made from."""
    plan, eps = context.plan, _worst_budget(context, table)
    shown = [(c, found_in(context, c)) for c in cells(context) if c.eps == eps]
    return Run(
        title=_title(context),
        about=about_of(context),
        synthetic="synthetic" in context.cases.name,
        plan=plan.model_dump(mode="json", exclude={"device"}),
        versions=versions(),
        table=table,
        threat=_threat(context, eps),
        class_names=context.data.class_names,
        thresholds={d: thresholds_of(context, d, eps) for d in plan.detectors},
        scores=_scores(context, eps, shown),
        curves=_curves(context, table, eps),
        sanity_checks=sanity_checks,
        caveats=caveats_of(context, table),
        cases={c.name: _cases(context, c, f) for c, f in shown},
        cost=_cost(context),
        seeds=_beside(context, "seeds.csv") if plan.network.seeds else None,
        held_out=_beside(context, "held_out.csv") if plan.held_out else None,
        subgroups=_beside(context, "subgroups.csv") if plan.subgroups.columns else None,
        budgets=context.limits.budgets,
        counts=counts(context),
        aims=effective_aims(context),
        reads={d: DETECTORS[d]().reads for d in plan.detectors},
        masked=masked_in(context),
    )


def _title(context: Context) -> str:
    plan = context.plan
    what = "Audit of" if plan.quick is None else "Quick look at"
    return plan.about.title or f"{what} {plan.network.arch} on {context.cases.name}"


def about_of(context: Context) -> About:
    """What the head of the page says: who, when, which network, which images."""
    said = context.plan.about
    return About(
        date=date_of(context),
        made_by=said.made_by or "",
        made_for=said.made_for or "",
        model=context.plan.network.arch,
        model_digest=context.steps.classifier.digest,
        data=context.cases.name,
        data_digest=context.cases.digest,
        docs=said.docs or "",
    )


def _worst_budget(context: Context, table: pd.DataFrame) -> float:
    """The budget that the report is about: where the best guard lets most through under its worst
    attack; among equals, the largest.
    """
    slips = table[table.metric == "slips_through_fpr10"]
    best = slips.groupby(["eps", "detector"]).value.max().groupby("eps").min()
    return max(context.limits.budgets, key=lambda eps: (best.get(eps, 0.0), eps))


def _cost(context: Context) -> pd.DataFrame:
    """Seconds of work by stage, of one process; a task whose note is lost counts as none."""
    rows = [(task.stage, seconds_of(context, task.key)) for task in audit_tasks(context)]
    found = (
        pd.DataFrame(rows, columns=["stage", "seconds"])
        .groupby("stage", sort=False)
        .seconds
    )
    return found.agg(tasks="size", seconds="sum").reset_index()


def counts(context: Context) -> dict[str, Any]:
    """How many images stand where, and how many of them the classifier gets right and are
    attacked.
    """
    found: dict[str, Any] = {}
    for part in ("train", "detector-training", "calibration", "test"):
        out, rows = context.outputs.of("clean", part)
        right = int((out.predicted.numpy() == context.data.labels[rows]).sum())
        patients = len(set(map(str, context.cases.patients[rows])))
        found[part] = {"images": len(rows), "patients": patients, "correct": right}
    found["attacked"] = len(context.outputs.right("test"))
    found["skipped"] = len(context.cases.skipped)
    return found


def _threat(context: Context, eps: float) -> dict[str, Any]:
    knowledge = {o.name: OBJECTIVES[o.kind].knowledge for o in context.plan.objectives}
    box, step = (
        context.cases.box,
        context.cases.step or (context.cases.box[1] - context.cases.box[0]) / 255,
    )
    found: dict[str, Any] = {
        "goal": (
            "a correctly classified image is taken for another, chosen class, and the guard "
            "accepts it"
        ),
        "eps_in_words": format_eps(eps, context.cases),
        "where": "anywhere"
        if context.plan.mask is None
        else f"inside the mask {context.plan.mask}",
        "knowledge": "; ".join(f"{n}: {k}" for n, k in knowledge.items()),
        "norm": {"linf": "L-infinity", "l2": "L2"}[context.plan.norm],
        "eps": eps,
        "box": tuple(box),
        "step": step,
        "unit": context.cases.unit + "s" * (context.cases.unit == "grey level"),
        "success": "the image as stored and read back is classified as the target",
    }
    if context.cases.unit != "grey level":
        found["native_box"] = tuple(box)
    return found


def _scores(context: Context, eps: float, shown: list[tuple[Cell, Found]]) -> pd.DataFrame:
    frames = []
    attacked = shown[0][1]
    for detector in context.plan.detectors:
        for name, condition in (("clean", "clean"), ("noisy", noisy_at(eps))):
            score = scores_in(context, detector, eps, condition, "test", attacked.rows)
            frames.append(
                pd.DataFrame(
                    {
                        "condition": name,
                        "detector": detector,
                        "id": attacked.id,
                        "score": score,
                        "fooled": False,
                    }
                )
            )
        for cell, found in shown:
            score = scores_in(
                context, detector, eps, context.steps.condition(cell), "test", found.rows
            )
            frames.append(
                pd.DataFrame(
                    {
                        "condition": cell.name,
                        "detector": detector,
                        "id": found.id,
                        "score": score,
                        "fooled": found.fooled,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def _cases(context: Context, cell: Cell, found: Found) -> list[Case]:
    """A few attacked images of a cell, with what every detector said."""
    condition = context.steps.condition(cell)
    adversarial: dict[int, np.ndarray] = {}
    for key in context.steps.attack(cell, "test").keys:
        stored = context.store.load(key)
        adversarial |= dict(
            zip(
                stored["rows"].tolist(),
                decode(stored["image"], context.limits.grid, context.cases.box).numpy(),
                strict=True,
            )
        )
    most = max(
        4,
        min(PICTURES, PIXELS // (context.cases.channels * math.prod(context.cases.shape))),
    )
    rows = found.rows[:most]
    clean = context.cases.images(rows)
    detectors, eps = context.plan.detectors, cell.eps
    score = {d: scores_in(context, d, eps, condition, "test", rows) for d in detectors}
    before = {d: scores_in(context, d, eps, "clean", "test", rows) for d in detectors}
    energies = _energies(context, condition, found, rows)
    return [
        Case(
            id=str(found.id[i]),
            label=int(found.label[i]),
            target=int(found.target[i]),
            predicted=int(found.prediction[i]),
            fooled=bool(found.fooled[i]),
            clean_predicted=int(found.label[i]),
            clean=clean[i],
            adversarial=adversarial[int(rows[i])],
            scores={d: float(score[d][i]) for d in detectors},
            clean_scores={d: float(before[d][i]) for d in detectors},
            energies={layer: float(values[i]) for layer, values in energies.items()},
        )
        for i in range(len(rows))
    ]


def _energies(
    context: Context, condition: str, found: Found, rows: np.ndarray
) -> dict[str, np.ndarray]:
    if not context.store.done(context.steps.mixtures.key):
        return {}
    out = context.outputs.at(condition, "test", rows)
    with torch.no_grad():
        energy = context.fitted.bank().energy(
            out, torch.from_numpy(found.target[: len(rows)])
        )
    return {
        layer: energy[:, i].numpy() for i, layer in enumerate(context.fitted.bank().layers)
    }


def _curves(context: Context, table: pd.DataFrame, eps: float) -> dict[str, pd.DataFrame]:
    """The report's figures beyond the table: only those whose data this audit has, or an analysis
    has left beside it.
    """
    curves = outlier_curves(context, eps) if context.outputs.train()[0].features else {}
    for file, name, curve in BESIDE:
        if (found := _beside(context, file)) is not None:
            curves[name] = curve(found)
    if len(context.limits.budgets) > 1:
        curves["eps"] = table[table.metric.isin(["success", "slips_through_fpr10"])]
    tuned = _tuned(context)
    if tuned:
        curves["lambda"] = pd.DataFrame(
            tuned, columns=["weight", "metric", "value", "low", "high"]
        )
    if context.store.done(context.steps.mixtures.key) and context.fitted.bank().curves:
        curves["mixture"] = pd.DataFrame(list(context.fitted.bank().curves))
    return curves


def _beside(context: Context, file: str) -> pd.DataFrame | None:
    """A table that lies in the folder of the audit, if it is there; only numbers may be missing
    in it.
    """
    path = context.store.folder / file
    return (
        pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(NUMBERS, ""))
        if path.is_file()
        else None
    )


def _tuned(context: Context) -> list[tuple[float, str, float, float, float]]:
    """Success at each lambda that was tried for HFC on the detector-training split."""
    for cell in cells(context):
        if cell.objective.kind == "hfc" and cell.objective.weight == "auto":
            found = context.store.load(context.steps.tune(cell).key)
            n = int(found["n"])
            shares = [proportion(np.arange(n) < round(s * n)) for s in found["success"]]
            return [
                (float(w), "success", s.value, s.low, s.high)
                for w, s in zip(found["weights"], shares, strict=True)
            ]
    return []
