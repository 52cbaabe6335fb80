"""Out-of-distribution detection on an audit's classifier: generated lesions, acquisition shifts,
near and far foreign data, by the same scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from feathide.data import Cases, load_cases
from feathide.data.shifts import SHIFTS
from feathide.detectors import Detector, MixtureEnergy
from feathide.detectors.ood import OOD_SCORES, clean_evidence
from feathide.errors import expected
from feathide.execution.digests import digest
from feathide.execution.graph import Task
from feathide.execution.packing import packed, scored, unpacked
from feathide.execution.store import Store
from feathide.metrics.intervals import bootstrap, proportion
from feathide.metrics.roc import auc, aupr, fpr95
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import tasks
from feathide.pipeline.rows import entry, frame, point
from feathide.pipeline.stored_images import decode, encode
from feathide.report.results import Scale
from feathide.types import Outputs

__all__ = ["Foreign", "foreign", "lesion_pictures", "ood_frame", "ood_tasks", "scale_of"]

METRICS = {"auc": auc, "aupr": aupr, "fpr95": fpr95}
EXTRA = ("layer", "versus", "kind")


@dataclass(frozen=True)
class Foreign:
    """A foreign data set of the study's shape: its path, and whether it is near (the same kind of
    image) or far.
    """

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
        return load_cases(
            self.path, size=self.size, channels=self.channels, limit=self.limit, seed=seed
        )


def foreign(context: Context, path: str, kind: str) -> Foreign:
    """The data set at ``path``, brought to the shape of the context's images, with as many images
    as its test split. Raises ``InputError`` if its box differs.
    """
    chosen = Foreign(
        path,
        kind,
        tuple(context.cases.shape),
        context.cases.channels,
        len(context.data.rows("test")),
    )
    box = chosen.cases(context.plan.seed).box
    if tuple(box) != tuple(context.cases.box):
        raise expected(
            f"{path} must lie in the box {tuple(context.cases.box)}",
            got=tuple(box),
            do="rescale its images",
        )
    return chosen


# --- tasks --------------------------------------------------------------------------------------


def _shift_key(context: Context, name: str, index: int) -> str:
    where = [] if context.limits.organ is None else [context.limits.organ.digest]
    about = [
        context.steps.reading.digest,
        *context.steps.batching.values(),
        name,
        *where,
    ]
    return f"ood/{digest(about)}/test-{index:04d}"


def _foreign_key(context: Context, data: Foreign) -> str:
    cases = data.cases(context.plan.seed)
    return f"ood/{digest([context.steps.reading.digest, cases.digest, data])}/all"


def ood_tasks(context: Context, strangers: Sequence[Foreign]) -> list[Task]:
    """The audit's clean outputs, one task for each shift and batch of the test split, and one for
    each foreign data set.
    """
    parts = ("train", "detector-training", "test")
    clean = {
        context.steps.extract("clean", part).keys[i]
        for part in parts
        for i in range(context.data.batches(part))
    }
    found = [task for task in tasks(context) if task.key in clean]
    json, needs = context.plan.model_dump_json(), tuple(sorted(clean))
    for name in SHIFTS:
        for i in range(context.data.batches("test")):
            work = partial(_shifted, json, name, i)
            found.append(
                Task(_shift_key(context, name, i), needs, work, "shift the images", name)
            )
    for data in strangers:
        work = partial(_strange, json, data)
        found.append(
            Task(
                _foreign_key(context, data),
                needs,
                work,
                "look at foreign images",
                data.name,
            )
        )
    return found


def shifted(context: Context, name: str, rows: np.ndarray) -> torch.Tensor:
    """The images of ``rows`` after a shift of ``SHIFTS``, as a file holds them; lesions lie
    inside the plan's organ.
    """
    kind, change = SHIFTS[name]
    x = context.data.images(rows)
    if kind == "lesion" and context.limits.organ is not None:
        change = partial(change, mask=context.limits.organ.of(x).any(1))
    x = change(x, context.data.ids(rows), context.plan.seed, context.cases.box)
    return decode(
        encode(x, context.limits.grid, context.cases.box),
        context.limits.grid,
        context.cases.box,
    ).to(context.data.device)


def _shifted(json: str, name: str, index: int, store: Store) -> Mapping[str, np.ndarray]:
    context = context_of(json, store)
    rows = context.data.batch("test", index)
    return packed(context.networks.classifier.observe(shifted(context, name, rows)), rows)


def _strange(json: str, data: Foreign, store: Store) -> Mapping[str, np.ndarray]:
    context = context_of(json, store)
    cases = data.cases(context.plan.seed)
    rows = cases.where("test")
    parts = np.array_split(rows, -(-len(rows) // context.plan.batch_size))
    said = [
        context.networks.classifier.observe(
            torch.from_numpy(cases.images(p)).to(context.data.device)
        )
        for p in parts
    ]
    return {**packed(Outputs.cat(said), rows), "patients": cases.patients[rows].astype(str)}


# --- the table ----------------------------------------------------------------------------------


def scores_of(context: Context) -> dict[str, Detector]:
    """Every score of ``OOD_SCORES``, fitted to clean images alone, with the plan's mixtures."""
    train, labels = context.outputs.train()
    evidence = clean_evidence(
        train, labels, context.outputs.of("clean", "detector-training")[0]
    )
    m, found = context.plan.mixture, {}
    for name, make in OOD_SCORES.items():
        score = make()
        if isinstance(score, MixtureEnergy) and not isinstance(m.components, tuple):
            score = replace(
                score,
                components=m.components,
                covariance=m.covariance,
                seed=context.plan.seed,
            )
        found[name] = score.fit(evidence)
    return found


def ood_frame(context: Context, strangers: Sequence[Foreign]) -> pd.DataFrame:
    """The table: ``auc``, ``aupr``, ``fpr95`` of each score (``detector``) for each set
    (``versus``) of a ``kind`` (lesion, acquisition, near, far) against all clean test images;
    their means over the sets of a kind, named "mean"; and the classifier's ``accuracy`` on each
    shift.
    """
    scores = scores_of(context)
    out, rows = context.outputs.of("clean", "test")
    patients = context.cases.patients[rows].astype(str)
    inside = {name: scored(score, out) for name, score in scores.items()}
    entries = []
    for name, (kind, _) in SHIFTS.items():
        loaded = [
            context.store.load(_shift_key(context, name, i))
            for i in range(context.data.batches("test"))
        ]
        moved = Outputs.cat([unpacked(a) for a in loaded])
        right = moved.predicted.numpy() == context.data.labels[rows]
        entries.append(
            entry(
                context,
                "accuracy",
                proportion(right, groups=patients),
                versus=name,
                kind=kind,
            )
        )
        entries += _told_apart(
            context, scores, inside, moved, patients, patients, versus=name, kind=kind
        )
    for data in strangers:
        arrays = context.store.load(_foreign_key(context, data))
        theirs = np.char.add(f"{data.name} ", arrays["patients"])
        entries += _told_apart(
            context,
            scores,
            inside,
            unpacked(arrays),
            patients,
            theirs,
            versus=data.name,
            kind=data.kind,
        )
    return frame([*entries, *_means(context, frame(entries, EXTRA))], EXTRA)


def _told_apart(
    context: Context,
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
            interval = bootstrap(
                statistic,
                inside[name],
                outside,
                groups=(ours, theirs),
                seed=context.plan.seed,
                draws=300,
            )
            found.append(entry(context, metric, interval, detector=name, **more))
    return found


def _means(context: Context, table: pd.DataFrame) -> list[dict[str, Any]]:
    """OpenOOD's summary: the mean over the sets of each kind."""
    part = table[table.metric.isin(list(METRICS))]
    groups = part.groupby(["kind", "detector", "metric"], sort=False)
    return [
        entry(
            context,
            str(metric),
            point(g.value.mean(), int(g.n.sum())),
            detector=detector,
            kind=kind,
            versus="mean",
        )
        for (kind, detector, metric), g in groups
    ]


def lesion_pictures(context: Context, *, count: int = 4) -> dict[str, list[np.ndarray]]:
    """A few test images (C, *S) as they are ("clean") and with lesions of each size."""
    rows = context.data.rows("test")[:count]
    shown = {"clean": list(context.cases.images(rows))}
    for name, (kind, _) in SHIFTS.items():
        if kind == "lesion":
            shown[name] = list(shifted(context, name, rows).cpu().numpy())
    return shown


def scale_of(context: Context) -> Scale:
    """The grey levels in which the pictures are drawn."""
    low, high = map(float, context.cases.box)
    levels = 256 if not context.cases.step else round((high - low) / context.cases.step) + 1
    return Scale(low, high, levels, 0, levels - 1, context.cases.unit)
