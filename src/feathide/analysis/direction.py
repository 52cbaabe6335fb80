"""The fixed direction: a targeted attack pushes the penultimate feature the same way at every
step, in every image, whatever the attack.

With v the input of the linear head, logits z = W v + b, p = softmax(z), J the cross-entropy to
the target t, and w_j the rows of W (K, C)

    dJ/dv = sum_j (p_j - 1[j = t]) w_j,        for two classes  (1 - p_t) (w_{1-t} - w_t).

N images, T iterates, C channels; a *change* is the feature at an iterate minus that of the clean
image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feathide.attacks.loop import Attack
from feathide.errors import expected
from feathide.execution.digests import digest
from feathide.execution.graph import Task
from feathide.execution.store import Store
from feathide.metrics.intervals import Interval, bootstrap
from feathide.models.classifier import FeatureClassifier
from feathide.pipeline.attacking import attack_of, right_in, weight_of
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import tasks
from feathide.pipeline.rows import entry, first_cells, frame
from feathide.plans.plan import Cell
from feathide.types import Outputs

__all__ = [
    "Trail",
    "between_images",
    "cosine",
    "direction_frame",
    "direction_tasks",
    "head_weights",
    "penultimate_gradient",
    "steps_agree",
]

MARKS = 8  # iterates of an attack that are kept


# --- the closed form ----------------------------------------------------------------------------


def head_weights(classifier: FeatureClassifier) -> Tensor:
    """W (K, C) of the last linear layer, as ``Outputs.logits`` show it: one sigmoid output w is
    shown as the rows (0, w).

    Raises ``InputError`` for a network without a linear layer.
    """
    heads = [m for m in classifier.model.modules() if isinstance(m, nn.Linear)]
    if not heads:
        raise expected(
            "a network that ends in a linear layer",
            got="none",
            do="leave out the fixed direction",
        )
    weight = heads[-1].weight.detach()
    if classifier.head == "softmax":
        return weight
    w = weight[0 if classifier.head == "sigmoid" else int(classifier.head[1])]
    return torch.stack([torch.zeros_like(w), w])


def penultimate_gradient(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """dJ/dv (N, C) in closed form, from logits (N, K), targets (N,) and head weights (K, C)."""
    wanted = F.one_hot(target, logits.shape[1]).to(logits)
    return (logits.softmax(1) - wanted) @ weights.to(logits)


def check_head(out: Outputs, weights: Tensor) -> None:
    """Refuse outputs whose last layer is not the input of the head: logits - v W^T must be the
    same for all images.
    """
    rest = (
        out.logits
        if out.last.shape[1] != weights.shape[1]
        else out.logits - out.last @ weights.to(out.last).T
    )
    if float((rest - rest.mean(0)).abs().amax()) > 1e-3 * float(
        out.logits.abs().amax().clamp_min(1.0)
    ):
        name = next(reversed(list(out.features)))
        raise expected(
            "the last feature layer must be the input of the linear head",
            got=name,
            do="add 'last' to network.layers",
        )


# --- how alike changes are ----------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of the rows of ``a`` and ``b`` (..., C); 0 where one of them is 0."""
    return F.cosine_similarity(a.double(), b.double(), dim=-1, eps=1e-30)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over channels of the rows of ``a`` and ``b`` (N, C)."""
    return cosine(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))


def iterates_agree(trail: Tensor) -> Tensor:
    """Mean cosine (N,) of the changes at earlier iterates with that at the last, of a trail (T,
    N, C).
    """
    return cosine(trail[:-1], trail[-1:]).mean(0)


def steps_agree(trail: Tensor) -> Tensor:
    """Mean cosine (N,) of two different stretches of the way, over all pairs, of a trail (T, N,
    C) that starts at 0.

    Stricter than ``iterates_agree``: two changes share the way that they have in common, two
    stretches share nothing."""
    stretch = F.normalize(
        torch.diff(trail.double(), dim=0, prepend=torch.zeros_like(trail[:1]).double()),
        dim=2,
    )
    t = len(stretch)
    total = stretch.sum(0).square().sum(1) - stretch.square().sum((0, 2))
    return total / (t * (t - 1))


def between_images(
    change: Tensor, patients: np.ndarray, kinds: np.ndarray, *, seed: int = 0
) -> Interval:
    """Mean cosine of the changes (N, C) of two images of one kind (such as source and target) and
    of different ``patients``, over all pairs.
    """
    unit = F.normalize(change.double(), dim=1).numpy()
    pair = (patients[:, None] != patients[None, :]) & (kinds[:, None] == kinds[None, :])
    alike = np.where(pair, unit @ unit.T, 0.0)

    def mean(rows: np.ndarray) -> float:
        at = np.ix_(rows, rows)
        count = pair[at].sum()
        return float(alike[at].sum() / count) if count else 0.0

    return bootstrap(mean, np.arange(len(unit)), groups=patients, seed=seed, draws=300)


@dataclass
class Trail:
    """Keeps the features of some iterates of an attack: pass it as ``watch``. ``features[layer]``
    is (T, N, C) once the attack has run.
    """

    marks: tuple[int, ...]
    images: int
    features: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, k: int, rows: Tensor, out: Outputs) -> None:
        if k not in self.marks:
            return
        for name, f in out.features.items():
            kept = self.features.setdefault(
                name, torch.full((len(self.marks), self.images, f.shape[1]), torch.nan)
            )
            kept[self.marks.index(k), rows.cpu()] = f.cpu().to(kept)

    @staticmethod
    def over(attack: Attack, images: int) -> "Trail":
        """A trail of up to ``MARKS`` iterates of an attack, evenly spaced, the last among
        them.
        """
        marks = np.unique(np.linspace(0, attack.steps, MARKS + 1).round().astype(int))
        return Trail(tuple(int(k) for k in marks if k or not attack.steps), images)


# --- on an audit --------------------------------------------------------------------------------


def followed(context: Context) -> list[tuple[Cell, Attack]]:
    """The attacks of the plan that follow a gradient, at the first budget, one run each."""
    found = [(cell, attack_of(context, cell, None)) for cell in first_cells(context)]
    return [
        (c, a) for c, a in found if isinstance(a, Attack) and a.rule.gradient and a.steps
    ]


def trail_key(context: Context, cell: Cell, index: int) -> str:
    return f"explain/direction-{digest([context.steps.condition(cell), MARKS])}/test-{index:04d}"


def direction_tasks(context: Context) -> list[Task]:
    """One task for each attack and batch of the test split: the attack again, with its features
    watched.
    """
    audit = {task.key: task for task in tasks(context)}
    json, found = context.plan.model_dump_json(), []
    noisy = context.steps.extract(noisy_at(context.limits.budgets[0]), "test").keys
    train, clean = (
        context.steps.extract("clean", "train").keys,
        context.steps.extract("clean", "test").keys,
    )
    for cell, attack in followed(context):
        for i in range(context.data.batches("test", attacked=True)):
            needs = audit[context.steps.attack(cell, "test").keys[i]].needs
            work = partial(_follow, json, cell, i)
            key = trail_key(context, cell, i)
            found.append(
                Task(
                    key,
                    (*needs, *noisy, *train, *clean),
                    work,
                    "follow the features",
                    cell.name,
                    attack.passes,
                )
            )
    return found


def _follow(json: str, cell: Cell, index: int, store: Store) -> Mapping[str, np.ndarray]:
    context = context_of(json, store)
    rows = right_in(context, "test", index)
    attack = attack_of(context, cell, weight_of(context, cell))
    assert isinstance(attack, Attack)
    trail = Trail.over(attack, len(rows))
    if len(rows):
        x, goal = context.data.images(rows), context.data.goal(rows)
        once = replace(attack, restarts=1)
        once(
            context.networks.classifier,
            x,
            goal,
            **context.limits.terms(rows, x),
            watch=trail,
        )
    arrays = {f"f{i:03d}": f.numpy() for i, f in enumerate(trail.features.values())}
    return {
        "rows": rows,
        "marks": np.array(trail.marks),
        "layers": np.array(list(trail.features), dtype=str),
        **arrays,
    }


@dataclass(frozen=True)
class Changes:
    """The changes of one attack: ``layers[name]`` (T, N, C) for the images ``rows`` (N,)."""

    rows: np.ndarray
    layers: dict[str, Tensor]


def changes_of(context: Context, cell: Cell) -> Changes:
    """The stored trail of a cell, less the clean features."""
    loaded = [
        context.store.load(trail_key(context, cell, i))
        for i in range(context.data.batches("test", attacked=True))
    ]
    loaded = [a for a in loaded if len(a["rows"])]
    rows = np.concatenate([a["rows"] for a in loaded])
    clean = context.outputs.at("clean", "test", rows).features
    names = [str(n) for n in loaded[0]["layers"]]
    whole = {
        n: torch.from_numpy(np.concatenate([a[f"f{i:03d}"] for a in loaded], 1))
        for i, n in enumerate(names)
    }
    return Changes(rows, {n: f - clean[n] for n, f in whole.items()})


def direction_frame(context: Context) -> pd.DataFrame:
    """The table of a finished run. Metrics, for each attack and layer (``layer``), means over
    images unless said otherwise:

    ``cosine_iterates``, ``cosine_steps``: see ``iterates_agree``, ``steps_agree``;
    ``cosine_images``: see ``between_images``; ``cosine_attacks``: with the change by the attack
    ``versus``, same image; ``cosine_means``: with the difference of the clean training means of
    target and source. In the last layer also ``cosine_weights`` and ``correlation_weights``: with
    w_t - w_y; ``cosine_gradient``: with -dJ/dv at the clean image. The attack ``noise`` is random
    noise of the same budget."""
    weights = head_weights(context.networks.classifier).cpu()
    check_head(context.outputs.of("clean", "test")[0], weights)
    found = [(cell, changes_of(context, cell)) for cell, _ in followed(context)]
    if not found:
        raise expected(
            "an attack with steps", got="none", do="add pgd or bim to the plan's attacks"
        )
    rows = found[0][1].rows
    noisy, clean = (
        context.outputs.at(noisy_at(context.limits.budgets[0]), "test", rows),
        context.outputs.at("clean", "test", rows),
    )
    noise = Changes(
        rows, {n: (f - clean.features[n])[None] for n, f in noisy.features.items()}
    )
    entries = list(_rows(context, None, noise, weights))
    for cell, changes in found:
        entries += _rows(context, cell, changes, weights)
    for (a, left), (b, right) in combinations(found, 2):
        for layer, change in left.layers.items():
            alike = cosine(change[-1], right.layers[layer][-1])
            entries.append(
                _mean(
                    context,
                    "cosine_attacks",
                    alike,
                    left.rows,
                    cell=a,
                    layer=layer,
                    versus=b.name,
                )
            )
    return frame(entries)


def _rows(
    context: Context, cell: Cell | None, changes: Changes, weights: Tensor
) -> Iterator[dict[str, Any]]:
    rows, named = (
        changes.rows,
        {"cell": cell} if cell is not None else {"cell": None, "attack": "noise"},
    )
    goal, clean = context.data.goal(rows), context.outputs.at("clean", "test", rows)
    source, target = goal.source.cpu(), goal.target.cpu()
    kinds = (source * len(weights) + target).numpy()
    train, labels = context.outputs.train()
    for layer, trail in changes.layers.items():
        if len(trail) > 1:
            yield _mean(
                context,
                "cosine_iterates",
                iterates_agree(trail),
                rows,
                layer=layer,
                **named,
            )
            yield _mean(
                context, "cosine_steps", steps_agree(trail), rows, layer=layer, **named
            )
        alike = between_images(
            trail[-1],
            context.cases.patients[rows].astype(str),
            kinds,
            seed=context.plan.seed,
        )
        yield entry(context, "cosine_images", alike, layer=layer, **named)
        means = torch.stack(
            [train.features[layer][labels == c].mean(0) for c in range(len(weights))]
        )
        yield _mean(
            context,
            "cosine_means",
            cosine(trail[-1], means[target] - means[source]),
            rows,
            layer=layer,
            **named,
        )
    last, change = list(changes.layers)[-1], list(changes.layers.values())[-1][-1]
    towards = weights[target] - weights[source]
    down = -penultimate_gradient(clean.logits, target, weights)
    for metric, values in (
        ("cosine_weights", cosine(change, towards)),
        ("correlation_weights", correlation(change, towards)),
        ("cosine_gradient", cosine(change, down)),
    ):
        yield _mean(context, metric, values, rows, layer=last, **named)


def _mean(
    context: Context, metric: str, values: Tensor, rows: np.ndarray, **more: Any
) -> dict[str, Any]:
    interval = bootstrap(
        np.mean,
        values.numpy(),
        groups=context.cases.patients[rows].astype(str),
        seed=context.plan.seed,
    )
    return entry(context, metric, interval, **more)
