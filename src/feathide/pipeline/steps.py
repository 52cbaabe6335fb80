"""The stages of an audit, in a straight line: each task makes one file from files that are there.

    train the classifier -> extract -> fit mixtures -> attack -> extract -> score

``tasks(context)`` lists them; a task's work is a module-level function with plain arguments, so
that it can run in another process."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from feathide.attacks.ensemble import Ensemble
from feathide.attacks.grid import Grid
from feathide.attacks.loop import Attack
from feathide.attacks.presets import noise
from feathide.catalog import ATTACKS, OBJECTIVES, ability_of
from feathide.data import Cases
from feathide.data.shifts import HARMLESS
from feathide.errors import InputError, expected
from feathide.execution.engine import Task, tell
from feathide.execution.packing import change, packed, scored
from feathide.execution.store import Store
from feathide.integrations import Foreign
from feathide.losses import CrossEntropy, Objective
from feathide.mixtures import MixtureBank
from feathide.models.classifier import FeatureClassifier
from feathide.models.memory import in_halves
from feathide.pipeline.accuracy import learnt_key, learnt_task
from feathide.pipeline.context import PLAIN, Attacker, Context, context_of, noisy_at
from feathide.plans.plan import Cell
from feathide.plans.sections import AttackPlan, ObjectivePlan, TrainPlan
from feathide.types import Box, Outputs

if TYPE_CHECKING:
    from feathide.training.trainer import Head, TrainResult

__all__ = [
    "attack_of",
    "cell_tasks",
    "cells",
    "decode",
    "encode",
    "needed",
    "observe",
    "plain_only",
    "right_in",
    "score_tasks",
    "tasks",
    "trained",
    "weight_of",
]

Arrays = Mapping[str, np.ndarray]
TUNE_CASES = 32
SURE = 5.0  # units of the logits, in which cross-entropy has hardly a slope left


def cells(context: Context) -> list[Cell]:
    """Every attack with every objective that it can carry, at every budget."""
    return [
        Cell(attack, objective, eps)
        for eps in context.budgets
        for attack in context.plan.attacks
        for objective in context.plan.objectives
        if not plain_only(context, attack, objective)
    ]


def plain_only(context: Context, attack: AttackPlan, objective: ObjectivePlan) -> str:
    """Why an attack cannot hide by an objective; "" where it can. Our one-step and random attacks
    have no steps to hide in; the others say it themselves.
    """
    hiding = OBJECTIVES[objective.kind]
    ability = ability_of(attack.name)
    if hiding.make is None or ability.hides:
        return ""
    if ability.ours:
        return f"{attack.name} has no steps to hide in"
    try:
        ATTACKS[attack.name](
            context.threat(context.budgets[0]), hide=CrossEntropy(), blend=hiding.blend
        )
    except InputError as reason:
        return str(reason)
    return ""


def tasks(context: Context) -> list[Task]:
    """All tasks of the context's plan."""
    json = context.plan.model_dump_json()
    found: list[Task] = []
    if context.trains:
        found.append(
            Task(
                context.classifier_key,
                (),
                partial(_train, json),
                "train the classifier",
                context.plan.network.arch,
                200,
            )
        )
        found.append(learnt_task(context))
    network: tuple[str, ...] = (
        (context.classifier_key, learnt_key(context)) if context.trains else ()
    )
    if context.needs("reference_network"):
        found.append(
            Task(
                context.reference_network_key,
                (),
                partial(_train_reference_network, json),
                "train the reference network",
                context.reference_network_arch,
                300,
            )
        )
        network += (context.reference_network_key,)
    found += _extract_tasks(
        context,
        json,
        "clean",
        ("train", "detector-training", "calibration", "test"),
        network,
    )
    for shift in HARMLESS:
        found += _extract_tasks(context, json, f"shifted-{shift}", ("test",), network)
    if any(OBJECTIVES[o.kind].needs == "bank" for o in context.plan.objectives):
        needs = _outputs(context, "clean", "train")
        found.append(
            Task(
                context.mixture_key,
                needs,
                partial(_mixtures, json),
                "fit the mixtures",
                "",
                10,
            )
        )
    for eps in context.budgets:
        found += _extract_tasks(
            context,
            json,
            noisy_at(eps),
            ("detector-training", "calibration", "test"),
            network,
        )
        learnt = Cell(context.plan.learnt_from, PLAIN, eps)
        found += cell_tasks(context, learnt, "detector-training")
    for cell in cells(context):
        if cell.objective.weight == "auto" and context.tune_key(cell) not in {
            t.key for t in found
        }:
            needs = (
                *needed(context, cell),
                *_outputs(context, "clean", "detector-training"),
            )
            work = partial(_tune, json, context.tuned(cell))
            found.append(
                Task(
                    context.tune_key(cell),
                    needs,
                    work,
                    "tune lambda on the detector-training split",
                    cell.objective.name,
                    60,
                )
            )
        found += cell_tasks(context, cell, "test")
    for eps in context.budgets:
        wanted = [(c, p) for c in ("clean", noisy_at(eps)) for p in ("calibration", "test")]
        wanted += [(f"shifted-{shift}", "test") for shift in HARMLESS]
        found += score_tasks(
            context,
            eps,
            [
                *wanted,
                *((context.condition(c), "test") for c in cells(context) if c.eps == eps),
            ],
        )
    return found


def cell_tasks(context: Context, cell: Cell, part: str) -> list[Task]:
    """One attack on a part, and what the guards see of it."""
    json, condition, found = context.plan.model_dump_json(), context.condition(cell), []
    before = needed(context, cell) + (
        (context.tune_key(cell),) if cell.objective.weight == "auto" else ()
    )
    for i in range(context.batches(part, attacked=True)):
        images, clean = (
            context.images_key(condition, part, i),
            context.outputs_key("clean", part, i),
        )
        passes = attack_of(context, cell, None).passes
        found.append(
            Task(
                images,
                (*before, clean),
                partial(_attack, json, cell, part, i),
                "attack",
                f"{cell.name} at {cell.eps:.4g}",
                passes + 1.0,
            )
        )
        key = context.outputs_key(condition, part, i)
        found.append(
            Task(
                key,
                (images,),
                partial(_extract_attacked, json, condition, part, i),
                "extract",
                cell.name,
                1.0,
            )
        )
    return found


def _extract_tasks(
    context: Context,
    json: str,
    condition: str,
    parts: tuple[str, ...],
    needs: tuple[str, ...],
) -> list[Task]:
    return [
        Task(
            context.outputs_key(condition, part, i),
            needs,
            partial(_extract, json, condition, part, i),
            "extract",
            f"{condition}, {part}",
        )
        for part in parts
        for i in range(context.batches(part))
    ]


def score_tasks(
    context: Context, eps: float, wanted: Sequence[tuple[str, str]]
) -> list[Task]:
    """Every detector of a budget on the stored outputs of the ``wanted`` (condition, part)."""
    json, found = context.plan.model_dump_json(), []
    base = (
        *_evidence(context, eps),
        *_outputs(context, "clean", "calibration"),
        *_outputs(context, noisy_at(eps), "calibration"),
    )
    for detector in context.plan.detectors:
        for condition, part in wanted:
            key = context.scores_key(detector, eps, condition, part)
            needs = tuple(dict.fromkeys((*base, *_outputs(context, condition, part))))
            work = partial(_score, json, detector, eps, condition, part)
            found.append(Task(key, needs, work, "score", detector, 0.2))
    return found


def _outputs(context: Context, condition: str, part: str) -> tuple[str, ...]:
    return context.outputs_keys(condition, part)


def _evidence(context: Context, eps: float) -> tuple[str, ...]:
    """What must be there before the detectors can be fitted."""
    learnt = context.condition(Cell(context.plan.learnt_from, PLAIN, eps))
    sources = (
        ("clean", "train"),
        ("clean", "detector-training"),
        (noisy_at(eps), "detector-training"),
        (learnt, "detector-training"),
    )
    return tuple(
        key for condition, part in sources for key in _outputs(context, condition, part)
    )


def needed(context: Context, cell: Cell) -> tuple[str, ...]:
    """What an attacker must have before the attack starts."""
    hiding = OBJECTIVES[cell.objective.kind]
    if hiding.make is None:
        return ()
    # how sure the classifier is of them, too
    usual = (
        *_outputs(context, "clean", "train"),
        *_outputs(context, "clean", "detector-training"),
    )
    match hiding.needs:
        case "bank":
            return (context.mixture_key, *usual)
        case "detectors":
            calibrate = (
                *_outputs(context, "clean", "calibration"),
                *_outputs(context, noisy_at(cell.eps), "calibration"),
            )
            return (*_evidence(context, cell.eps), *calibrate)
    return usual


# --- the work -----------------------------------------------------------------------------------


def attack_of(
    context: Context, cell: Cell, weight: float | None, *, hide: Objective | None = None
) -> Attack | Ensemble | Foreign:
    """The attack of a cell. ``weight``: lambda; None leaves the hiding term out (its steps are the
    same). ``hide``: a hiding term in place of the cell's.
    """
    schedule, a = context.plan.schedule, cell.attack
    fields: dict[str, Any] = {"confidence": schedule.confidence} | (
        {} if a.share is None else {"share": a.share}
    )
    ability = ability_of(a.name)
    for name in ability.schedule:
        own = getattr(a, name)
        fields[name] = getattr(schedule, name) if own is None else own
    if ability.queries and a.steps is not None:
        fields["queries"] = a.steps
    hiding = OBJECTIVES[cell.objective.kind]
    if hiding.make is not None and weight is not None:
        options = dict(cell.objective.options)
        if hiding.needs == "detectors" and cell.objective.aim:
            options["detectors"] = cell.objective.aim
        hide = weight * (
            hiding.make(Attacker(context, cell.eps), options) if hide is None else hide
        )
        fields["blend"] = hiding.blend
        # a clean image leads by ``SURE`` units: an attacker who hides wants to look as sure, no
        # surer
        if ":" not in a.name:
            kappa = context.enough() * SURE
            fields |= {
                "unit": context.typical_lead() / SURE,
                "kappa": kappa,
                "confidence": min(schedule.confidence, kappa),
            }
    return ATTACKS[a.name](context.threat(cell.eps), hide=hide, **fields)


def weight_of(context: Context, cell: Cell) -> float:
    """Lambda: as planned, tuned, or the catalogue's."""
    weight = cell.objective.weight
    if weight == "auto":
        return float(context.store.load(context.tune_key(cell))["weight"])
    return OBJECTIVES[cell.objective.kind].weight if weight is None else weight


def _train(json: str, store: Store) -> Arrays:
    context = context_of(json, store)
    n = context.plan.network
    return packed_network(
        trained(
            context,
            n.arch,
            n.train,
            seed=context.network_seed,
            weights=context.begins_with,
            rename=n.rename,
        )
    )


def _train_reference_network(json: str, store: Store) -> Arrays:
    context = context_of(json, store)
    t = context.plan.reference_network.train
    return packed_network(
        trained(
            context,
            context.reference_network_arch,
            t,
            seed=context.plan.seed,
            adversary=context.adversary,
        )
    )


def trained(
    context: Context, arch: str, t: TrainPlan, *, cases: Cases | None = None, **how: Any
) -> "TrainResult":
    """A network of the context's decision, trained on its images or on ``cases``: the classifier,
    a reference network, a substitute all learn the same.
    """
    # Lightning, which this imports, is slow to load
    from feathide.training.augmentation import Augment
    from feathide.training.trainer import train_classifier

    n = context.plan.network
    head: Head | None = (
        None
        if n.head == "softmax"
        else "findings"
        if context.finding is not None
        else "sigmoid"
    )
    return train_classifier(
        cases or context.cases,
        arch,
        epochs=t.epochs,
        batch_size=t.batch_size,
        lr=t.lr,
        patience=t.patience,
        augment=(
            t.augment if isinstance(t.augment, bool) else Augment(**t.augment.model_dump())
        ),
        freeze=t.freeze,
        lr_backbone=t.lr_backbone,
        balance=t.balance,
        schedule=t.schedule,
        stop_on=t.stop_on,
        stem=t.stem,
        head=head,
        window=context.window,
        device=context.device,
        progress=tell,
        **how,
    )


def packed_network(result: "TrainResult") -> Arrays:
    """A trained network as arrays for the store; ``Context.restored`` is the inverse."""
    arrays = {f"w/{k}": v.cpu().numpy() for k, v in result.model.state_dict().items()}
    arrays |= {
        "mean": np.asarray(result.mean, np.float64),
        "std": np.asarray(result.std, np.float64),
    }
    return arrays | {
        "val_accuracy": np.asarray(result.val_accuracy),
        "val_auc": np.asarray(result.val_auc),
        "val_calibration_error": np.asarray(result.val_calibration_error),
    }


def _extract(json: str, condition: str, part: str, index: int, store: Store) -> Arrays:
    context = context_of(json, store)
    rows = context.batch(part, index)
    x = context.images(rows)
    context.classifier.check(x)
    if condition.startswith("shifted-"):
        shifted = HARMLESS[condition.removeprefix("shifted-")](
            x, context.ids(rows), context.plan.seed, context.cases.box
        )
        x = decode(
            encode(shifted, context.grid, context.cases.box),
            context.grid,
            context.cases.box,
        ).to(x)
    elif condition != "clean":
        eps = next(e for e in context.budgets if noisy_at(e) == condition)
        x = _noisy(context, x, rows, eps)
    return packed(observe(context.observer, x), rows)


def _noisy(context: Context, x: Tensor, rows: np.ndarray, eps: float) -> Tensor:
    """Random noise of the budget, as stored; noise that changes nothing is refused."""
    attack = noise(context.threat(eps))
    goal = context.goal(rows)
    noisy = attack(context.classifier, x, goal, **context.terms(rows, x)).adversarial
    same = (noisy == x).flatten(1).all(1)
    if bool(same.any()):
        got = f"{int(same.sum())} unchanged images at eps {eps:g}"
        raise expected(
            "noisy negatives must differ from the clean images",
            got=got,
            do="raise eps or store more grey levels",
        )
    return noisy


def _mixtures(json: str, store: Store) -> Arrays:
    context = context_of(json, store)
    out, labels = context.train()
    m = context.plan.mixture
    bank = MixtureBank.fit(
        out,
        labels,
        components=m.components,
        covariance=m.covariance,
        shrinkage=m.shrinkage,
        seed=context.plan.seed,
    )
    tensors, content = bank.packed()
    return {k: v.numpy() for k, v in tensors.items()} | {"content": np.array(content)}


def _attack(json: str, cell: Cell, part: str, index: int, store: Store) -> Arrays:
    context = context_of(json, store)
    started = time.perf_counter()
    rows = right_in(context, part, index)
    arrays = attack_rows(context, cell, rows)
    store.save_json(
        f"seconds/{context.images_key(context.condition(cell), part, index)}",
        time.perf_counter() - started,
    )
    return arrays


def right_in(context: Context, part: str, index: int) -> np.ndarray:
    """What is attacked of a batch: only what the attacked classifier gets right."""
    rows = context.batch(part, index, attacked=True)
    logits = context.store.load(context.outputs_key("clean", part, index))["logits"][
        : len(rows)
    ]
    return rows[logits.argmax(1) == context.labels[rows]]


def attack_rows(
    context: Context, cell: Cell, rows: np.ndarray, *, weight: float | None = None
) -> dict[str, np.ndarray]:
    """Attack some cases, write the images as a file holds them, read them back and predict again;
    in halves where memory does not suffice.
    """

    def join(halves: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {
            k: np.concatenate([h[k] for h in halves], axis=int(k == "trace"))
            for k in halves[0]
        }

    return in_halves(
        lambda part: _attack_rows(context, cell, part, weight), rows, join=join
    )


def _attack_rows(
    context: Context, cell: Cell, rows: np.ndarray, weight: float | None
) -> dict[str, np.ndarray]:
    grid, box = context.grid, context.cases.box
    if len(rows) == 0:
        shape = (0, context.cases.channels, *context.cases.shape)
        empty = np.zeros(0, np.int64)
        whole = dict.fromkeys(
            ("rows", "label", "target", "prediction", "first", "gradients", "forwards"),
            empty,
        )
        return whole | {
            "id": np.zeros(0, "U1"),
            "image": encode(torch.zeros(shape) + box[0], grid, box),
            "linf": empty * 1.0,
        }
    x, goal = context.images(rows), context.goal(rows)
    attack = attack_of(
        context, cell, weight_of(context, cell) if weight is None else weight
    )
    aware = OBJECTIVES[cell.objective.kind].needs == "detectors"
    classifier = (
        context.observing(cell.objective.aim or context.plan.detectors)
        if aware
        else context.classifier
    )
    found = attack(classifier, x, goal, **context.terms(rows, x))
    image = encode(found.adversarial, grid, box)
    again = decode(image, grid, box).to(x)
    prediction = observe(context.classifier, again).predicted
    return {
        "rows": rows,
        "id": np.array(context.ids(rows)),
        "image": image,
        "label": goal.source.cpu().numpy(),
        "target": goal.target.cpu().numpy(),
        "prediction": prediction.numpy(),
        "linf": change(again.cpu().numpy(), x.cpu().numpy(), grid),
        "first": found.first.cpu().numpy(),
        "gradients": found.gradients.cpu().numpy(),
        "forwards": found.forwards.cpu().numpy(),
        "trace": found.trace.cpu().numpy().astype(np.float32),
    }


def _extract_attacked(
    json: str, condition: str, part: str, index: int, store: Store
) -> Arrays:
    context = context_of(json, store)
    stored = store.load(context.images_key(condition, part, index))
    x = decode(stored["image"], context.grid, context.cases.box).to(context.device)
    if len(x) == 0:
        like = observe(context.observer, context.images(context.rows(part)[:1]))
        return packed(like[:0], stored["rows"])
    return packed(observe(context.observer, x), stored["rows"])


def _tune(json: str, cell: Cell, store: Store) -> Arrays:
    """Lambda for one objective, on the detector-training split, by one procedure for all: the
    largest weight at which the attack succeeds as often as the plain one (the smallest weight if
    there is none). It never looks at a detector's verdict nor at a test case."""
    context = context_of(json, store)
    rows = context.right("detector-training")[:TUNE_CASES]
    best = 0.0
    weights = sorted(cell.objective.weights)
    success = []
    for weight in [0.0, *weights]:
        plain = replace(cell, objective=PLAIN)
        got = attack_rows(context, plain if weight == 0 else cell, rows, weight=weight)
        success.append(float((got["prediction"] == got["target"]).mean()))
        if weight and success[-1] >= success[0] - 1e-9:
            best = weight
    return {
        "weight": np.asarray(best or weights[0]),
        "weights": np.array([0.0, *weights]),
        "n": np.asarray(len(rows)),
        "success": np.array(success),
    }


def _score(
    json: str, detector: str, eps: float, condition: str, part: str, store: Store
) -> Arrays:
    context = context_of(json, store)
    out, rows = context.outputs(condition, part)
    return {"rows": rows, "score": scored(context.detector(detector, eps), out)}


# --- images as a file holds them ----------------------------------------------------------------


def observe(classifier: FeatureClassifier, x: Tensor) -> Outputs:
    """The outputs on ``x`` as the guard reads them, on the CPU."""
    return classifier.observe(x)


def encode(x: Tensor, grid: Grid | None, box: Box) -> np.ndarray:
    """The images as whole grey levels above the box's floor, in the smallest type that holds
    them; floats where there is no grid.
    """
    if grid is None:
        return x.cpu().numpy()
    top = round((box[1] - box[0]) / grid.step)
    kind = np.uint8 if top < 2**8 else np.uint16 if top < 2**16 else np.uint32
    return ((x.double() - box[0]) / grid.step).round().cpu().numpy().astype(kind)


def decode(image: np.ndarray, grid: Grid | None, box: Box) -> Tensor:
    """The images that the stored levels stand for, in box units."""
    if grid is None:
        return torch.from_numpy(image)
    return torch.from_numpy(box[0] + image.astype(np.float64) * grid.step).float()
