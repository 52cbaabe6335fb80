"""Out-of-distribution detection on an audit's classifier: generated lesions, acquisition shifts, near and far foreign data, by the same scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from feathide.analysis.rows import entry, frame, point
from feathide.data import Cases, load_cases
from feathide.detectors import Detector, MixtureEnergy
from feathide.errors import expected
from feathide.metrics import auc, aupr, bootstrap, fpr95, proportion
from feathide.ood import OOD_SCORES, SHIFTS, clean_evidence
from feathide.report.results import Scale
from feathide.study.digest import digest
from feathide.study.engine import Task
from feathide.study.lab import Lab, lab_of
from feathide.study.packing import packed, scored, unpacked
from feathide.study.stages import decode, encode, observe, tasks
from feathide.study.store import Store
from feathide.types import Outputs

__all__ = ["Foreign", "foreign", "lesion_pictures", "ood_frame", "ood_tasks", "scale_of"]

METRICS = {"auc": auc, "aupr": aupr, "fpr95": fpr95}
EXTRA = ("layer", "versus", "kind")


@dataclass(frozen=True)
class Foreign:
    """A foreign data set of the study's shape: its path, and whether it is near (the same kind of image) or far."""

    path: str
    kind: str
    size: tuple[int, ...]
    channels: int
    limit: int | None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2].removesuffix(".npz")

    @lru_cache(maxsize=8)  # noqa: B019 (a few data sets for the length of a run)
    def cases(self, seed: int) -> Cases:
        return load_cases(self.path, size=self.size, channels=self.channels, limit=self.limit, seed=seed)


def foreign(lab: Lab, path: str, kind: str) -> Foreign:
    """The data set at ``path``, brought to the shape of the lab's images, with as many images as its test part. Raises ``InputError`` if its box differs."""
    chosen = Foreign(path, kind, tuple(lab.cases.shape), lab.cases.channels, len(lab.rows("test")))
    box = chosen.cases(lab.plan.seed).box
    if tuple(box) != tuple(lab.cases.box):
        raise expected(f"{path} must lie in the box {tuple(lab.cases.box)}", got=tuple(box), do="rescale its images")
    return chosen


# --- tasks -----------------------------------------------------------------------------------------------------------


def _shift_key(lab: Lab, name: str, index: int) -> str:
    where = [] if lab.organ is None else [lab.organ.digest]
    return f"ood/{digest([lab.base, *lab.division, lab.plan.batch_size, name, *where])}/test-{index:04d}"


def _foreign_key(lab: Lab, data: Foreign) -> str:
    return f"ood/{digest([lab.base, data.cases(lab.plan.seed).digest, data])}/all"


def ood_tasks(lab: Lab, strangers: Sequence[Foreign]) -> list[Task]:
    """The audit's clean outputs, one task for each shift and batch of the test part, and one for each foreign data set."""
    parts = ("train", "fit", "test")
    clean = {lab.outputs_key("clean", part, i) for part in parts for i in range(lab.batches(part))}
    found = [task for task in tasks(lab) if task.key in clean]
    json, needs = lab.plan.model_dump_json(), tuple(sorted(clean))
    for name in SHIFTS:
        for i in range(lab.batches("test")):
            work = partial(_shifted, json, name, i)
            found.append(Task(_shift_key(lab, name, i), needs, work, "shift the images", name))
    for data in strangers:
        work = partial(_strange, json, data)
        found.append(Task(_foreign_key(lab, data), needs, work, "look at foreign images", data.name))
    return found


def shifted(lab: Lab, name: str, rows: np.ndarray) -> torch.Tensor:
    """The images of ``rows`` after a shift of ``SHIFTS``, as a file holds them; lesions lie inside the plan's organ."""
    kind, change = SHIFTS[name]
    x = lab.images(rows)
    if kind == "lesion" and lab.organ is not None:
        change = partial(change, mask=lab.organ.of(x).any(1))
    x = change(x, lab.ids(rows), lab.plan.seed, lab.cases.box)
    return decode(encode(x, lab.grid, lab.cases.box), lab.grid, lab.cases.box).to(lab.device)


def _shifted(json: str, name: str, index: int, store: Store) -> Mapping[str, np.ndarray]:
    lab = lab_of(json, store)
    rows = lab.batch("test", index)
    return packed(observe(lab.classifier, shifted(lab, name, rows)), rows)


def _strange(json: str, data: Foreign, store: Store) -> Mapping[str, np.ndarray]:
    lab = lab_of(json, store)
    cases = data.cases(lab.plan.seed)
    rows = cases.where("test")
    parts = np.array_split(rows, -(-len(rows) // lab.plan.batch_size))
    said = [observe(lab.classifier, torch.from_numpy(cases.images(p)).to(lab.device)) for p in parts]
    return {**packed(Outputs.cat(said), rows), "patients": cases.patients[rows].astype(str)}


# --- the table -------------------------------------------------------------------------------------------------------


def scores_of(lab: Lab) -> dict[str, Detector]:
    """Every score of ``OOD_SCORES``, fitted to clean images alone, with the plan's mixtures."""
    train, labels = lab.train()
    evidence = clean_evidence(train, labels, lab.outputs("clean", "fit")[0])
    m, found = lab.plan.mixture, {}
    for name, make in OOD_SCORES.items():
        score = make()
        if isinstance(score, MixtureEnergy) and not isinstance(m.components, tuple):
            score = replace(score, components=m.components, covariance=m.covariance, seed=lab.plan.seed)
        found[name] = score.fit(evidence)
    return found


def ood_frame(lab: Lab, strangers: Sequence[Foreign]) -> pd.DataFrame:
    """The table: ``auc``, ``aupr``, ``fpr95`` of each score (``detector``) for each set (``versus``) of a ``kind`` (lesion, acquisition, near, far)
    against all clean test images; their means over the sets of a kind, named "mean"; and the classifier's ``accuracy`` on each shift."""
    scores = scores_of(lab)
    out, rows = lab.outputs("clean", "test")
    patients = lab.cases.patients[rows].astype(str)
    inside = {name: scored(score, out) for name, score in scores.items()}
    entries = []
    for name, (kind, _) in SHIFTS.items():
        loaded = [lab.store.load(_shift_key(lab, name, i)) for i in range(lab.batches("test"))]
        moved = Outputs.cat([unpacked(a) for a in loaded])
        right = moved.predicted.numpy() == lab.labels[rows]
        entries.append(entry(lab, "accuracy", proportion(right, groups=patients), versus=name, kind=kind))
        entries += _told_apart(lab, scores, inside, moved, patients, patients, versus=name, kind=kind)
    for data in strangers:
        arrays = lab.store.load(_foreign_key(lab, data))
        theirs = np.char.add(f"{data.name} ", arrays["patients"])
        entries += _told_apart(
            lab, scores, inside, unpacked(arrays), patients, theirs, versus=data.name, kind=data.kind
        )
    return frame([*entries, *_means(lab, frame(entries, EXTRA))], EXTRA)


def _told_apart(
    lab: Lab,
    scores: Mapping[str, Detector],
    inside: Mapping[str, np.ndarray],
    out: Outputs,
    ours: np.ndarray,
    theirs: np.ndarray,
    **more: Any,
) -> list[dict[str, Any]]:
    found = []
    for name, score in scores.items():
        outside = scored(score, out)
        for metric, statistic in METRICS.items():
            interval = bootstrap(statistic, inside[name], outside, groups=(ours, theirs), seed=lab.plan.seed, draws=300)
            found.append(entry(lab, metric, interval, detector=name, **more))
    return found


def _means(lab: Lab, table: pd.DataFrame) -> list[dict[str, Any]]:
    """OpenOOD's summary: the mean over the sets of each kind."""
    part = table[table.metric.isin(list(METRICS))]
    groups = part.groupby(["kind", "detector", "metric"], sort=False)
    return [
        entry(lab, str(metric), point(g.value.mean(), int(g.n.sum())), detector=detector, kind=kind, versus="mean")
        for (kind, detector, metric), g in groups
    ]


def lesion_pictures(lab: Lab, *, count: int = 4) -> dict[str, list[np.ndarray]]:
    """A few test images (C, *S) as they are ("clean") and with lesions of each size."""
    rows = lab.rows("test")[:count]
    shown = {"clean": list(lab.cases.images(rows))}
    for name, (kind, _) in SHIFTS.items():
        if kind == "lesion":
            shown[name] = list(shifted(lab, name, rows).cpu().numpy())
    return shown


def scale_of(lab: Lab) -> Scale:
    """The grey levels in which the pictures are drawn."""
    low, high = map(float, lab.cases.box)
    levels = 256 if not lab.cases.step else round((high - low) / lab.cases.step) + 1
    return Scale(low, high, levels, 0, levels - 1, lab.cases.unit)
