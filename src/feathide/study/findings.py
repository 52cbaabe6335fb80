"""What the report is made from: the files of a finished audit, and of the analyses beside it, as a ``report.Run``."""

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from feathide.analysis.outliers import curves as outlier_curves
from feathide.catalog import DETECTORS, OBJECTIVES
from feathide.data.eps import format_eps
from feathide.metrics import proportion
from feathide.report import Case, Run
from feathide.report.curves import stress_curve, transfer_curve
from feathide.study.caveats import caveats_of
from feathide.study.gates import effective_aims, masked_in
from feathide.study.lab import Lab, noisy_at
from feathide.study.order import audit_tasks
from feathide.study.plan import Cell
from feathide.study.stages import cells, decode
from feathide.study.table import Found, found_in, scores_in, seconds_of, thresholds_of

__all__ = ["run_of", "versions"]

PICTURES = 200  # cases of each condition in the report, and
PIXELS = 2**23  # at most so many pixels of them
PACKAGES = ("feathide", "torch", "torchvision", "numpy", "scikit-learn", "monai", "lightning")
NUMBERS = ("eps", "value", "low", "high", "mean", "least", "greatest")

BESIDE = (
    ("explain-stress.csv", "stress", stress_curve),
    ("explain-transfer.csv", "transfer", transfer_curve),
    ("duel.csv", "duel", lambda table: table[table.objective == "worst"]),
)  # fmt: skip


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def run_of(lab: Lab, table: pd.DataFrame, *, gates: Sequence[Mapping[str, str]] = ()) -> Run:
    """What the report is made from."""
    plan, eps = lab.plan, _worst_budget(lab, table)
    shown = [(c, found_in(lab, c)) for c in cells(lab) if c.eps == eps]
    return Run(
        title=f"Audit of {plan.network.arch} on {lab.cases.name}",
        synthetic="synthetic" in lab.cases.name,
        plan=plan.model_dump(mode="json"),
        versions=versions(),
        table=table,
        threat=_threat(lab, eps),
        class_names=lab.class_names,
        thresholds={d: thresholds_of(lab, d, eps) for d in plan.detectors},
        scores=_scores(lab, eps, shown),
        curves=_curves(lab, table, eps),
        gates=gates,
        caveats=caveats_of(lab, table),
        cases={c.name: _cases(lab, c, f) for c, f in shown},
        cost=_cost(lab),
        seeds=_beside(lab, "seeds.csv") if plan.network.seeds else None,
        held_out=_beside(lab, "held_out.csv") if plan.held_out else None,
        budgets=lab.budgets,
        counts=counts(lab),
        aims=effective_aims(lab),
        reads={d: DETECTORS[d]().reads for d in plan.detectors},
        masked=masked_in(lab),
    )


def _worst_budget(lab: Lab, table: pd.DataFrame) -> float:
    """The budget that the report is about: where the best guard lets most through under its worst attack; of equals the largest."""
    slips = table[table.metric == "slips_through_fpr10"]
    best = slips.groupby(["eps", "detector"]).value.max().groupby("eps").min()
    return max(lab.budgets, key=lambda eps: (best.get(eps, 0.0), eps))


def _cost(lab: Lab) -> pd.DataFrame:
    """Seconds of work by stage, of one process; a task whose note is lost counts as none."""
    rows = [(task.stage, seconds_of(lab, task.key)) for task in audit_tasks(lab)]
    found = pd.DataFrame(rows, columns=["stage", "seconds"]).groupby("stage", sort=False).seconds
    return found.agg(tasks="size", seconds="sum").reset_index()


def counts(lab: Lab) -> dict[str, Any]:
    """How many images stand where, and how many of them the classifier gets right and are attacked."""
    found: dict[str, Any] = {}
    for part in ("train", "fit", "calibrate", "test"):
        out, rows = lab.outputs("clean", part)
        right = int((out.predicted.numpy() == lab.labels[rows]).sum())
        patients = len(set(map(str, lab.cases.patients[rows])))
        found[part] = {"images": len(rows), "patients": patients, "correct": right}
    found["attacked"] = len(lab.right("test"))
    found["skipped"] = len(lab.cases.skipped)
    return found


def _threat(lab: Lab, eps: float) -> dict[str, Any]:
    knowledge = {o.name: OBJECTIVES[o.kind].knowledge for o in lab.plan.objectives}
    box, step = lab.cases.box, lab.cases.step or (lab.cases.box[1] - lab.cases.box[0]) / 255
    found: dict[str, Any] = {
        "goal": "a correctly classified image is taken for another, chosen class, and the guard accepts it",
        "eps_in_words": format_eps(eps, lab.cases),
        "where": "anywhere" if lab.plan.mask is None else f"inside the mask {lab.plan.mask}",
        "knowledge": "; ".join(f"{n}: {k}" for n, k in knowledge.items()),
        "norm": {"linf": "L-infinity", "l2": "L2"}[lab.plan.norm],
        "eps": eps,
        "box": tuple(box),
        "step": step,
        "unit": lab.cases.unit + "s" * (lab.cases.unit == "grey level"),
        "success": "the image as stored and read back is classified as the target",
    }
    if lab.cases.unit != "grey level":
        found["native_box"] = tuple(box)
    return found


def _scores(lab: Lab, eps: float, shown: list[tuple[Cell, Found]]) -> pd.DataFrame:
    frames = []
    attacked = shown[0][1]
    for detector in lab.plan.detectors:
        for name, condition in (("clean", "clean"), ("noisy", noisy_at(eps))):
            score = scores_in(lab, detector, eps, condition, "test", attacked.rows)
            frames.append(
                pd.DataFrame(
                    {"condition": name, "detector": detector, "id": attacked.id, "score": score, "fooled": False}
                )
            )
        for cell, found in shown:
            score = scores_in(lab, detector, eps, lab.condition(cell), "test", found.rows)
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


def _cases(lab: Lab, cell: Cell, found: Found) -> list[Case]:
    """A few attacked images of a cell, with what every detector said."""
    condition = lab.condition(cell)
    adversarial: dict[int, np.ndarray] = {}
    for key in lab.images_keys(condition, "test"):
        stored = lab.store.load(key)
        adversarial |= dict(
            zip(stored["rows"].tolist(), decode(stored["image"], lab.grid, lab.cases.box).numpy(), strict=True)
        )
    most = max(4, min(PICTURES, PIXELS // (lab.cases.channels * math.prod(lab.cases.shape))))
    rows = found.rows[:most]
    clean = lab.cases.images(rows)
    detectors, eps = lab.plan.detectors, cell.eps
    score = {d: scores_in(lab, d, eps, condition, "test", rows) for d in detectors}
    before = {d: scores_in(lab, d, eps, "clean", "test", rows) for d in detectors}
    energies = _energies(lab, condition, found, rows)
    return [
        Case(
            id=str(found.id[i]), label=int(found.label[i]), target=int(found.target[i]), predicted=int(found.prediction[i]),
            fooled=bool(found.fooled[i]), clean_predicted=int(found.label[i]), clean=clean[i], adversarial=adversarial[int(rows[i])],
            scores={d: float(score[d][i]) for d in detectors}, clean_scores={d: float(before[d][i]) for d in detectors},
            energies={layer: float(values[i]) for layer, values in energies.items()},
        )
        for i in range(len(rows))
    ]  # fmt: skip


def _energies(lab: Lab, condition: str, found: Found, rows: np.ndarray) -> dict[str, np.ndarray]:
    if not lab.store.done(lab.mixture_key):
        return {}
    out = lab.at(condition, "test", rows)
    with torch.no_grad():
        energy = lab.bank().energy(out, torch.from_numpy(found.target[: len(rows)]))
    return {layer: energy[:, i].numpy() for i, layer in enumerate(lab.bank().layers)}


def _curves(lab: Lab, table: pd.DataFrame, eps: float) -> dict[str, pd.DataFrame]:
    """The report's figures beyond the table: only those whose data this audit has, or an analysis has left beside it."""
    curves = outlier_curves(lab, eps) if lab.train()[0].features else {}
    for file, name, curve in BESIDE:
        if (found := _beside(lab, file)) is not None:
            curves[name] = curve(found)
    if len(lab.budgets) > 1:
        curves["eps"] = table[table.metric.isin(["success", "slips_through_fpr10"])]
    tuned = _tuned(lab)
    if tuned:
        curves["lambda"] = pd.DataFrame(tuned, columns=["weight", "metric", "value", "low", "high"])
    if lab.store.done(lab.mixture_key) and lab.bank().curves:
        curves["mixture"] = pd.DataFrame(list(lab.bank().curves))
    return curves


def _beside(lab: Lab, file: str) -> pd.DataFrame | None:
    """A table that lies in the folder of the audit, if it is there; only numbers may be missing in it."""
    path = lab.store.folder / file
    return pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(NUMBERS, "")) if path.is_file() else None


def _tuned(lab: Lab) -> list[tuple[float, str, float, float, float]]:
    """Success at each lambda that was tried for HFC on the fit part."""
    for cell in cells(lab):
        if cell.objective.kind == "hfc" and cell.objective.weight == "auto":
            found = lab.store.load(lab.tune_key(cell))
            n = int(found["n"])
            shares = [proportion(np.arange(n) < round(s * n)) for s in found["success"]]
            return [
                (float(w), "success", s.value, s.low, s.high) for w, s in zip(found["weights"], shares, strict=True)
            ]
    return []
