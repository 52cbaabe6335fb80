"""Outlierness: how far the features of clean, noisy, attacked and hidden images lie from the
clean model of the class that they are taken for.

For layer l and predicted class c, with the mixture and the training features of c

    log_density = log p_lc(f) / C_l (nats a channel),   distance = sqrt(E_l) (clean standard
    deviations, r.m.s. over channels), neighbour   = Euclidean distance to the nearest training
    feature of c, over its median among clean test images.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from feathide.detectors.base import per_class
from feathide.detectors.distance import in_chunks, squared
from feathide.errors import expected
from feathide.execution.engine import Task
from feathide.metrics.statistics import (
    Interval,
    above,
    auc,
    bootstrap,
    proportion,
    share_at,
    uncertain_threshold,
)
from feathide.mixtures import MixtureBank
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells, tasks
from feathide.pipeline.rows import entry, first_cells, frame
from feathide.pipeline.stored import found_in
from feathide.plans.plan import Cell
from feathide.types import Outputs

__all__ = ["PICTURES", "Normal", "curves", "embedding", "outlier_frame", "outlier_tasks"]

SHOWN = 200  # points of each condition in the picture


@dataclass(frozen=True)
class Normal:
    """The clean model: mixtures, and the training features ``references[layer][c]`` (N_c, C), in
    float64.
    """

    bank: MixtureBank
    references: Mapping[str, tuple[Tensor, ...]]

    @staticmethod
    def of(bank: MixtureBank, train: Outputs, labels: Tensor) -> "Normal":
        groups = {
            n: tuple(train.features[n][labels == c].double() for c in bank.classes)
            for n in bank.layers
        }
        return Normal(bank, groups)

    def measure(self, out: Outputs) -> dict[str, Tensor]:
        """``log_density``, ``distance`` and ``neighbour`` (not yet over its clean median), (N, L)
        each, under the predicted class.
        """
        out = out.to(torch.float64)
        channels = torch.tensor([out.features[n].shape[1] for n in self.bank.layers])
        with torch.no_grad():
            return {
                "log_density": self.bank.log_prob(out, out.predicted) / channels,
                "distance": self.bank.energy(out, out.predicted).sqrt(),
                "neighbour": torch.stack(
                    [self._nearest(out, n) for n in self.bank.layers], 1
                ),
            }

    def _nearest(self, out: Outputs, name: str) -> Tensor:
        f, groups = out.features[name], self.references[name]

        def of_class(c: int, rows: Tensor) -> Tensor:
            reference = groups[self.bank.classes.index(c)]
            return in_chunks(
                lambda part: squared(part, reference).amin(1).sqrt(),
                f[rows],
                len(reference),
            )

        return per_class(out.predicted, of_class)


def embedding(
    groups: Mapping[str, Tensor], *, most: int = SHOWN, how: str = "pca"
) -> pd.DataFrame:
    """The features (N, C) of all conditions together in two dimensions: condition, x, y. By
    principal components, or by UMAP (the extra ``umap``).

    Channels are divided by their standard deviation over the condition "clean". The sign of a
    component is such that its largest loading is positive."""
    scale = groups["clean"].double().std(0)
    scale = torch.where(scale > 1e-3 * scale.amax(), scale, scale.amax())
    kept = {name: (f[:most].double() / scale).numpy() for name, f in groups.items()}
    xy = PICTURES[how](np.concatenate(list(kept.values())))
    names = np.repeat(list(kept), [len(f) for f in kept.values()])
    return pd.DataFrame({"condition": names, "x": xy[:, 0], "y": xy[:, 1]})


def _principal(x: np.ndarray) -> np.ndarray:
    pca = PCA(2, svd_solver="full").fit(x)
    return pca.transform(x) * np.sign(
        [axis[np.abs(axis).argmax()] for axis in pca.components_]
    )


def _umap(x: np.ndarray) -> np.ndarray:
    try:
        from umap import UMAP
    except ImportError:
        raise expected(
            "the picture by UMAP needs umap-learn",
            got="none",
            do="pip install 'feathide[umap]'",
        ) from None
    return np.asarray(
        UMAP(n_neighbors=min(15, len(x) - 1), random_state=0, n_jobs=1).fit_transform(x)
    )


PICTURES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "pca": _principal,
    "umap": _umap,
}


# --- on an audit --------------------------------------------------------------------------------


def outlier_tasks(context: Context) -> list[Task]:
    """The audit's own tasks whose files are looked at; nothing is computed that an audit does not
    compute.
    """
    eps, parts = context.limits.budgets[0], ("train", "calibration", "test")
    keys = {key for part in parts for key in context.steps.extract("clean", part).keys}
    keys |= {
        key for part in parts[1:] for key in context.steps.extract(noisy_at(eps), part).keys
    }
    keys |= {
        key
        for c in first_cells(context)
        for key in context.steps.extract(context.steps.condition(c), "test").keys
    }
    return [
        task for task in tasks(context) if task.key in keys | {context.steps.mixtures.key}
    ]


@dataclass(frozen=True)
class Seen:
    """One condition: its measures (N, L) and the last layer's features, of the images ``rows``
    (N,).
    """

    rows: np.ndarray
    measures: Mapping[str, np.ndarray]
    last: Tensor
    cell: Cell | None = None


def normal_of(context: Context) -> Normal:
    """The mixtures of the audit, or plain Gaussians where it has none."""
    train, labels = context.outputs.train()
    bank = (
        context.fitted.bank()
        if context.store.done(context.steps.mixtures.key)
        else MixtureBank.fit(train, labels)
    )
    return Normal.of(bank, train, labels)


def conditions(context: Context, normal: Normal, eps: float) -> dict[str, Seen]:
    """Clean and noisy images, and those that fool the classifier at a budget, of the test images
    that it gets right.
    """
    found = [(c, found_in(context, c)) for c in cells(context) if c.eps == eps]
    rows = found[0][1].rows
    wanted: list[tuple[str, str, np.ndarray, Cell | None]] = [
        ("clean", "clean", rows, None)
    ]
    wanted.append(("noisy", noisy_at(eps), rows, None))
    wanted += [
        (c.name, context.steps.condition(c), f.rows[f.fooled], c)
        for c, f in found
        if f.fooled.any()
    ]
    seen = {}
    for name, condition, at, cell in wanted:
        out = context.outputs.at(condition, "test", at)
        seen[name] = Seen(
            at, {k: v.numpy() for k, v in normal.measure(out).items()}, out.last, cell
        )
    unit = np.median(seen["clean"].measures["neighbour"], 0)
    for s in seen.values():
        s.measures["neighbour"][:] /= np.where(unit > 0, unit, 1.0)
    return seen


def curves(
    context: Context, eps: float | None = None, *, how: str = "pca"
) -> dict[str, pd.DataFrame]:
    """The report's curves "outlierness" (median ``distance`` by layer) and "embedding" of a
    finished audit, from what it stored, at a budget (its first unless said).
    """
    normal = normal_of(context)
    seen = conditions(context, normal, context.limits.budgets[0] if eps is None else eps)
    rows = []
    for name, s in seen.items():
        for i, layer in enumerate(normal.bank.layers):
            interval = _median(context, s, s.measures["distance"][:, i])
            rows.append((name, layer, interval.value, interval.low, interval.high))
    lines = pd.DataFrame(rows, columns=["condition", "layer", "value", "low", "high"])
    points = embedding({name: s.last for name, s in seen.items()}, how=how)
    last = list(normal.bank.layers)[-1]
    return {"outlierness": lines, "embedding": points.assign(layer=last, method=how)}


def outlier_frame(context: Context) -> pd.DataFrame:
    """The table. For each condition and layer the medians ``log_density``, ``distance`` and
    ``neighbour``; for attacks also

    ``auc_density``, ``auc_neighbour``: against clean and noisy test images; ``caught_fpr10``: the
    share whose log-density lies below that of 90 % of the clean and noisy calibration images;
    ``most_suspicious``: the share for which this layer, of all, has the lowest log-density in
    calibration standard
    deviations: which layer caught it. The attacks "clean" and "noisy" are not attacked.
    """
    normal = normal_of(context)
    held = Outputs.cat(
        [
            context.outputs.of(c, "calibration")[0]
            for c in ("clean", noisy_at(context.limits.budgets[0]))
        ]
    )
    calibrate = -normal.measure(held)["log_density"].numpy()
    seen = conditions(context, normal, context.limits.budgets[0])
    entries = []
    for name, s in seen.items():
        named: dict[str, Any] = {"cell": s.cell} if s.cell is not None else {"attack": name}
        for i, layer in enumerate(normal.bank.layers):
            for metric, values in s.measures.items():
                entries.append(
                    entry(
                        context,
                        metric,
                        _median(context, s, values[:, i]),
                        layer=layer,
                        **named,
                    )
                )
        if s.cell is not None:
            entries += [
                entry(context, m, v, layer=n, **named)
                for m, n, v in _caught(context, s, seen, calibrate, normal)
            ]
    return frame(entries)


def _caught(
    context: Context,
    s: Seen,
    seen: Mapping[str, Seen],
    calibrate: np.ndarray,
    normal: Normal,
) -> Iterator[tuple[str, str, Interval]]:
    """Metric, layer and interval of what each layer makes of one attack."""
    groups = context.cases.patients[s.rows].astype(str)
    harmless = [seen["clean"], seen["noisy"]]
    names = np.concatenate([context.cases.patients[h.rows].astype(str) for h in harmless])
    standard = (-s.measures["log_density"] - calibrate.mean(0)) / calibrate.std(0).clip(
        1e-12
    )
    worst = standard.argmax(1)
    for i, layer in enumerate(normal.bank.layers):
        for metric, kind, sign in (
            ("auc_density", "log_density", -1),
            ("auc_neighbour", "neighbour", 1),
        ):
            negatives = np.concatenate([sign * h.measures[kind][:, i] for h in harmless])
            positives = sign * s.measures[kind][:, i]
            yield (
                metric,
                layer,
                bootstrap(
                    auc,
                    negatives,
                    positives,
                    groups=(names, groups),
                    seed=context.plan.seed,
                ),
            )
        held, suspicion = (
            np.tile(context.cases.patients[context.data.rows("calibration")], 2),
            -s.measures["log_density"][:, i],
        )
        threshold = uncertain_threshold(
            calibrate[:, i], 0.10, groups=held, seed=context.plan.seed
        )
        caught = share_at(threshold, above(suspicion), groups=groups)
        yield "caught_fpr10", layer, caught
        yield "most_suspicious", layer, proportion(worst == i, groups=groups)


def _median(context: Context, s: Seen, values: np.ndarray) -> Interval:
    groups = context.cases.patients[s.rows].astype(str)
    return bootstrap(np.median, values, groups=groups, seed=context.plan.seed, draws=300)
