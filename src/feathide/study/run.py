"""An audit: from a plan to a folder with the table, the images, the plan as run and the report."""

import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import yaml

from feathide.analysis.outliers import curves as outlier_curves
from feathide.catalog import OBJECTIVES
from feathide.classifier import FeatureClassifier
from feathide.data.eps import format_eps
from feathide.errors import InputError
from feathide.metrics import proportion
from feathide.report import Case, Run, Verdict, render, verdict
from feathide.study.caveats import caveats_of
from feathide.study.engine import Progress
from feathide.study.engine import run as work_off
from feathide.study.gates import gates_of
from feathide.study.lab import Lab, lab_of, noisy_at
from feathide.study.plan import Cell, Plan
from feathide.study.probes import probe_tasks
from feathide.study.ray_engine import run_on_ray
from feathide.study.stages import cells, decode, tasks
from feathide.study.store import Store, digest, open_folder, write_whole
from feathide.study.table import Found, comparisons_of, found_in, scores_in, table_of, thresholds_of

__all__ = ["Audit", "audit", "checked"]

PICTURES = 40  # cases of each condition in the report
PACKAGES = ("feathide", "torch", "torchvision", "numpy", "scikit-learn", "monai", "lightning")


@dataclass(frozen=True)
class Audit:
    """A finished audit: its folder, the table, the report's path, its verdict in words and the gates that failed."""

    folder: Path
    table: pd.DataFrame
    report: Path
    verdict: Verdict
    failed: tuple[str, ...] = ()


def checked(plan: Plan, out: Path) -> Lab:
    """Everything that can be refused is refused here, before any long work: data, network, layers, budgets."""
    lab = lab_of(plan.model_dump_json(), Store(Path(out)))
    _ = lab.budgets, lab.parts, lab.class_names, lab.region
    _check_head(lab)
    if lab.trains:
        _check_layers(lab)
    else:
        lab.check_classifier()
    return lab


def audit(
    plan: Plan,
    out: Path | str,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    reuse: bool = False,
) -> Audit:
    """Run the audit of ``plan`` into the folder ``out`` and give the table and the report.

    ``workers``: processes here; ``shard`` (i, n): begin with the i-th of n parts, for several machines on one folder; ``engine`` "ray": on
    the Ray cluster at ``address``, whose machines see ``out``; ``reuse``: take a folder that holds another plan, where work that both share is kept.

    Finished work in ``out`` is kept: after an interruption the same call goes on. Raises ``InputError`` before any long work for
    whatever cannot be used, and for a folder that holds a different plan.
    """
    lab = checked(plan, Path(out))
    open_folder(out, digest([plan, lab.cases.digest]), reuse=reuse)
    write_plan(lab)
    order = [*tasks(lab), *probe_tasks(lab)]
    if engine == "ray":
        run_on_ray(order, lab.store, address=address, progress=progress)
    else:
        work_off(order, lab.store, progress=progress, workers=workers, shard=shard)
    table = table_of(lab)
    folder = lab.store.folder
    write_whole(folder / "results.csv", table.to_csv(index=False).encode())
    write_whole(folder / "comparisons.csv", comparisons_of(lab).to_csv(index=False).encode())
    _write_parquet(table, folder / "results.parquet")
    gates = gates_of(lab)
    write_whole(folder / "gates.json", json.dumps(gates, indent=1, ensure_ascii=False).encode() + b"\n")
    found = run_of(lab, table, gates=gates)
    write_whole(folder / "report.html", render(found).encode())
    failed = tuple(g["name"] for g in gates if g["status"] == "fail")
    return Audit(folder, table, folder / "report.html", verdict(found), failed)


def write_plan(lab: Lab) -> None:
    """``plan.yaml``: the full plan with versions, seeds and hashes; it can be run again as it is."""
    record = {
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "device": str(lab.device), "threads": torch.get_num_threads()},
        "eps_in_box_units": list(lab.budgets),
        "eps_in_words": [format_eps(e, lab.cases) for e in lab.budgets],
        "data": {
            "digest": lab.cases.digest,
            "images": len(lab.cases),
            "skipped": [f"{s.path}: {s.reason}" for s in lab.cases.skipped],
        },
        "classifier": {"digest": lab.network_digest, "trained_here": lab.trains},
    }
    text = yaml.safe_dump({**lab.plan.model_dump(mode="json"), "record": record}, sort_keys=False, allow_unicode=True)
    write_whole(lab.store.folder / "plan.yaml", text.encode())


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def run_of(lab: Lab, table: pd.DataFrame, *, gates: Sequence[Mapping[str, str]] = ()) -> Run:
    """What the report is made from."""
    plan, eps = lab.plan, lab.budgets[0]
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
        curves=_curves(lab, table),
        gates=gates,
        caveats=caveats_of(lab, table),
        cases={c.name: _cases(lab, c, f) for c, f in shown},
        cost=None,
        counts=counts(lab),
    )


def counts(lab: Lab) -> dict[str, Any]:
    """How many images stand where, and how many of them the classifier gets right and are attacked."""
    found: dict[str, Any] = {}
    for part in ("train", "fit", "calibrate", "test"):
        out, rows = lab.outputs("clean", part)
        right = int((out.predicted.numpy() == lab.labels[rows]).sum())
        patients = len(set(map(str, lab.cases.patients[rows])))
        found[part] = {"images": len(rows), "patients": patients, "correct": right}
    found["attacked"] = found["test"]["correct"]
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
    for i in range(lab.batches("test")):
        stored = lab.store.load(lab.images_key(condition, "test", i))
        adversarial |= dict(
            zip(stored["rows"].tolist(), decode(stored["image"], lab.grid, lab.cases.box).numpy(), strict=True)
        )
    rows = found.rows[:PICTURES]
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


def _curves(lab: Lab, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The report's figures beyond the table: only those whose data this audit has."""
    curves = outlier_curves(lab)
    if len(lab.budgets) > 1:
        curves["eps"] = table[table.metric.isin(["success", "slips_through_fpr10"])]
    tuned = _tuned(lab)
    if tuned:
        curves["lambda"] = pd.DataFrame(tuned, columns=["weight", "metric", "value", "low", "high"])
    if lab.store.done(lab.mixture_key) and lab.bank().curves:
        curves["mixture"] = pd.DataFrame(list(lab.bank().curves))
    return curves


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


def _check_head(lab: Lab) -> None:
    head = lab.plan.network.head
    if head not in ("softmax", "sigmoid") and not head.startswith("finding:"):
        raise InputError(f"head must be softmax, sigmoid or finding:NAME, got {head!r}; correct network.head")
    if head == "sigmoid" and len(lab.class_names) != 2:
        raise InputError(f"a sigmoid head decides between 2 classes, got {len(lab.class_names)}; say head: softmax")


def _check_layers(lab: Lab) -> None:
    """Whether the layers exist, on a network that is not trained yet."""
    model = lab.empty_network().eval()
    x = torch.from_numpy(lab.cases.images(lab.rows("train")[:2]))
    probe = FeatureClassifier(model, lab.plan.network.layers, box=lab.cases.box)
    probe.check(x)
    probe.names(x)


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_whole(path, buffer.getvalue())
