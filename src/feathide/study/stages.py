"""The stages of an audit, in a straight line: each task makes one file from files that are there.

    train the classifier -> extract -> fit mixtures -> attack -> extract -> score

``tasks(lab)`` lists them; a task's work is a module-level function with plain arguments, so that it can run in another process.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feathide.addon import Foreign
from feathide.attack import Attack
from feathide.catalog import ATTACKS, ITERATIVE, OBJECTIVES, OUR_ATTACKS, WALKS
from feathide.classifier import FeatureClassifier
from feathide.data import Cases
from feathide.ensemble import Ensemble
from feathide.errors import InputError, expected
from feathide.geometry import Grid
from feathide.memory import in_halves
from feathide.mixture import MixtureBank
from feathide.objectives import CrossEntropy, Objective
from feathide.ood import HARMLESS
from feathide.recipes import noise
from feathide.study.engine import Task, tell
from feathide.study.lab import PLAIN, Attacker, Lab, lab_of, noisy_at
from feathide.study.learnt import learnt_key, learnt_task
from feathide.study.packing import change, packed, scored
from feathide.study.parts import AttackPlan, ObjectivePlan, TrainPlan
from feathide.study.plan import Cell
from feathide.study.store import Store
from feathide.train import Head, TrainResult, train_classifier
from feathide.types import Box, Outputs

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


def cells(lab: Lab) -> list[Cell]:
    """Every attack with every objective that it can carry, at every budget."""
    return [
        Cell(attack, objective, eps)
        for eps in lab.budgets
        for attack in lab.plan.attacks
        for objective in lab.plan.objectives
        if not plain_only(lab, attack, objective)
    ]


def plain_only(lab: Lab, attack: AttackPlan, objective: ObjectivePlan) -> str:
    """Why an attack cannot hide by an objective; "" where it can. Our one-step and random attacks have no steps to hide in; the others say it themselves."""
    hiding = OBJECTIVES[objective.kind]
    if hiding.make is None or attack.name in ITERATIVE:
        return ""
    if attack.name in OUR_ATTACKS:
        return f"{attack.name} has no steps to hide in"
    try:
        ATTACKS[attack.name](lab.threat(lab.budgets[0]), hide=CrossEntropy(), blend=hiding.blend)
    except InputError as reason:
        return str(reason)
    return ""


def tasks(lab: Lab) -> list[Task]:
    """All tasks of the lab's plan."""
    json = lab.plan.model_dump_json()
    found: list[Task] = []
    if lab.trains:
        found.append(
            Task(lab.classifier_key, (), partial(_train, json), "train the classifier", lab.plan.network.arch, 200)
        )
        found.append(learnt_task(lab))
    network: tuple[str, ...] = (lab.classifier_key, learnt_key(lab)) if lab.trains else ()
    if lab.needs("witness"):
        found.append(
            Task(lab.witness_key, (), partial(_train_witness, json), "train the witness", lab.witness_arch, 300)
        )
        network += (lab.witness_key,)
    found += _extract_tasks(lab, json, "clean", ("train", "fit", "calibrate", "test"), network)
    for shift in HARMLESS:
        found += _extract_tasks(lab, json, f"shifted-{shift}", ("test",), network)
    if any(OBJECTIVES[o.kind].needs == "bank" for o in lab.plan.objectives):
        needs = _outputs(lab, "clean", "train")
        found.append(Task(lab.mixture_key, needs, partial(_mixtures, json), "fit the mixtures", "", 10))
    for eps in lab.budgets:
        found += _extract_tasks(lab, json, noisy_at(eps), ("fit", "calibrate", "test"), network)
        learnt = Cell(lab.plan.learnt_from, PLAIN, eps)
        found += cell_tasks(lab, learnt, "fit")
    for cell in cells(lab):
        if cell.objective.weight == "auto" and lab.tune_key(cell) not in {t.key for t in found}:
            needs = (*needed(lab, cell), *_outputs(lab, "clean", "fit"))
            work = partial(_tune, json, lab.tuned(cell))
            found.append(Task(lab.tune_key(cell), needs, work, "tune lambda on the fit part", cell.objective.name, 60))
        found += cell_tasks(lab, cell, "test")
    for eps in lab.budgets:
        wanted = [(c, p) for c in ("clean", noisy_at(eps)) for p in ("calibrate", "test")]
        wanted += [(f"shifted-{shift}", "test") for shift in HARMLESS]
        found += score_tasks(lab, eps, [*wanted, *((lab.condition(c), "test") for c in cells(lab) if c.eps == eps)])
    return found


def cell_tasks(lab: Lab, cell: Cell, part: str) -> list[Task]:
    """One attack on a part, and what the guards see of it."""
    json, condition, found = lab.plan.model_dump_json(), lab.condition(cell), []
    before = needed(lab, cell) + ((lab.tune_key(cell),) if cell.objective.weight == "auto" else ())
    for i in range(lab.batches(part, attacked=True)):
        images, clean = lab.images_key(condition, part, i), lab.outputs_key("clean", part, i)
        passes = attack_of(lab, cell, None).passes
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
        key = lab.outputs_key(condition, part, i)
        found.append(
            Task(key, (images,), partial(_extract_attacked, json, condition, part, i), "extract", cell.name, 1.0)
        )
    return found


def _extract_tasks(lab: Lab, json: str, condition: str, parts: tuple[str, ...], needs: tuple[str, ...]) -> list[Task]:
    return [
        Task(
            lab.outputs_key(condition, part, i),
            needs,
            partial(_extract, json, condition, part, i),
            "extract",
            f"{condition}, {part}",
        )
        for part in parts
        for i in range(lab.batches(part))
    ]


def score_tasks(lab: Lab, eps: float, wanted: Sequence[tuple[str, str]]) -> list[Task]:
    """Every detector of a budget on the stored outputs of the ``wanted`` (condition, part)."""
    json, found = lab.plan.model_dump_json(), []
    base = (*_evidence(lab, eps), *_outputs(lab, "clean", "calibrate"), *_outputs(lab, noisy_at(eps), "calibrate"))
    for detector in lab.plan.detectors:
        for condition, part in wanted:
            key = lab.scores_key(detector, eps, condition, part)
            needs = tuple(dict.fromkeys((*base, *_outputs(lab, condition, part))))
            work = partial(_score, json, detector, eps, condition, part)
            found.append(Task(key, needs, work, "score", detector, 0.2))
    return found


def _outputs(lab: Lab, condition: str, part: str) -> tuple[str, ...]:
    return lab.outputs_keys(condition, part)


def _evidence(lab: Lab, eps: float) -> tuple[str, ...]:
    """What must be there before the detectors can be fitted."""
    learnt = lab.condition(Cell(lab.plan.learnt_from, PLAIN, eps))
    sources = (("clean", "train"), ("clean", "fit"), (noisy_at(eps), "fit"), (learnt, "fit"))
    return tuple(key for condition, part in sources for key in _outputs(lab, condition, part))


def needed(lab: Lab, cell: Cell) -> tuple[str, ...]:
    """What an attacker must have before he starts."""
    hiding = OBJECTIVES[cell.objective.kind]
    if hiding.make is None:
        return ()
    usual = (
        *_outputs(lab, "clean", "train"),
        *_outputs(lab, "clean", "fit"),
    )  # how sure the classifier is of them, too
    match hiding.needs:
        case "bank":
            return (lab.mixture_key, *usual)
        case "detectors":
            calibrate = (*_outputs(lab, "clean", "calibrate"), *_outputs(lab, noisy_at(cell.eps), "calibrate"))
            return (*_evidence(lab, cell.eps), *calibrate)
    return usual


# --- the work --------------------------------------------------------------------------------------------------------


def attack_of(
    lab: Lab, cell: Cell, weight: float | None, *, hide: Objective | None = None
) -> Attack | Ensemble | Foreign:
    """The attack of a cell. ``weight``: lambda; None leaves the hiding term out (its walk is the same). ``hide``: a hiding term in place of the cell's."""
    walk, a = lab.plan.walk, cell.attack
    fields: dict[str, Any] = {"confidence": walk.confidence} | ({} if a.share is None else {"share": a.share})
    names = WALKS.get(a.name, ())
    fields |= {n: getattr(walk, n) if getattr(a, n) is None else getattr(a, n) for n in names}
    if a.name == "square" and a.steps is not None:
        fields["queries"] = a.steps
    hiding = OBJECTIVES[cell.objective.kind]
    if hiding.make is not None and weight is not None:
        options = dict(cell.objective.options)
        if hiding.needs == "detectors" and cell.objective.aim:
            options["detectors"] = cell.objective.aim
        hide = weight * (hiding.make(Attacker(lab, cell.eps), options) if hide is None else hide)
        fields["blend"] = hiding.blend
        if (
            ":" not in a.name
        ):  # a clean image leads by ``SURE`` units: an attacker who hides wants to look as sure, no surer
            kappa = lab.enough() * SURE
            fields |= {
                "unit": lab.typical_lead() / SURE,
                "kappa": kappa,
                "confidence": min(walk.confidence, kappa),
            }
    return ATTACKS[a.name](lab.threat(cell.eps), hide=hide, **fields)


def weight_of(lab: Lab, cell: Cell) -> float:
    """Lambda: as planned, tuned, or the catalogue's."""
    weight = cell.objective.weight
    if weight == "auto":
        return float(lab.store.load(lab.tune_key(cell))["weight"])
    return OBJECTIVES[cell.objective.kind].weight if weight is None else weight


def _train(json: str, store: Store) -> Arrays:
    lab = lab_of(json, store)
    n = lab.plan.network
    return packed_network(trained(lab, n.arch, n.train, seed=lab.network_seed, weights=n.start_from, rename=n.rename))


def _train_witness(json: str, store: Store) -> Arrays:
    lab = lab_of(json, store)
    t = lab.plan.witness.train
    return packed_network(trained(lab, lab.witness_arch, t, seed=lab.plan.seed, adversary=lab.adversary))


def trained(lab: Lab, arch: str, t: TrainPlan, *, cases: Cases | None = None, **how: Any) -> TrainResult:
    """A network of the lab's decision, trained on its images or on ``cases``: the classifier, a witness, a substitute all learn the same."""
    n = lab.plan.network
    head: Head | None = None if n.head == "softmax" else "findings" if lab.finding is not None else "sigmoid"
    return train_classifier(
        cases or lab.cases, arch, epochs=t.epochs, batch_size=t.batch_size, lr=t.lr, patience=t.patience, augment=t.augment,
        stem=t.stem, head=head, window=lab.window, progress=tell, **how,
    )  # fmt: skip


def packed_network(result: TrainResult) -> Arrays:
    """A trained network as arrays for the store; ``Lab.restored`` is the inverse."""
    arrays = {f"w/{k}": v.cpu().numpy() for k, v in result.model.state_dict().items()}
    arrays |= {"mean": np.asarray(result.mean, np.float64), "std": np.asarray(result.std, np.float64)}
    return arrays | {"val_accuracy": np.asarray(result.val_accuracy), "val_auc": np.asarray(result.val_auc)}


def _extract(json: str, condition: str, part: str, index: int, store: Store) -> Arrays:
    lab = lab_of(json, store)
    rows = lab.batch(part, index)
    x = lab.images(rows)
    lab.classifier.check(x)
    if condition.startswith("shifted-"):
        shifted = HARMLESS[condition.removeprefix("shifted-")](x, lab.ids(rows), lab.plan.seed, lab.cases.box)
        x = decode(encode(shifted, lab.grid, lab.cases.box), lab.grid, lab.cases.box).to(x)
    elif condition != "clean":
        eps = next(e for e in lab.budgets if noisy_at(e) == condition)
        x = _noisy(lab, x, rows, eps)
    return packed(observe(lab.observer, x), rows)


def _noisy(lab: Lab, x: Tensor, rows: np.ndarray, eps: float) -> Tensor:
    """Random noise of the budget, as stored; noise that changes nothing is refused."""
    attack = noise(lab.threat(eps))
    goal = lab.goal(rows)
    noisy = attack(lab.classifier, x, goal, **lab.terms(rows, x)).adversarial
    same = (noisy == x).flatten(1).all(1)
    if bool(same.any()):
        got = f"{int(same.sum())} unchanged images at eps {eps:g}"
        raise expected(
            "noisy negatives must differ from the clean images", got=got, do="raise eps or store more grey levels"
        )
    return noisy


def _mixtures(json: str, store: Store) -> Arrays:
    lab = lab_of(json, store)
    out, labels = lab.train()
    m = lab.plan.mixture
    bank = MixtureBank.fit(
        out, labels, components=m.components, covariance=m.covariance, shrinkage=m.shrinkage, seed=lab.plan.seed
    )
    tensors, content = bank.packed()
    return {k: v.numpy() for k, v in tensors.items()} | {"content": np.array(content)}


def _attack(json: str, cell: Cell, part: str, index: int, store: Store) -> Arrays:
    lab = lab_of(json, store)
    started = time.perf_counter()
    rows = right_in(lab, part, index)
    arrays = attack_rows(lab, cell, rows)
    store.save_json(f"seconds/{lab.images_key(lab.condition(cell), part, index)}", time.perf_counter() - started)
    return arrays


def right_in(lab: Lab, part: str, index: int) -> np.ndarray:
    """What is attacked of a batch: only what the attacked classifier gets right."""
    rows = lab.batch(part, index, attacked=True)
    logits = lab.store.load(lab.outputs_key("clean", part, index))["logits"][: len(rows)]
    return rows[logits.argmax(1) == lab.labels[rows]]


def attack_rows(lab: Lab, cell: Cell, rows: np.ndarray, *, weight: float | None = None) -> dict[str, np.ndarray]:
    """Attack some cases, write the images as a file holds them, read them back and predict again; in halves where memory does not suffice."""

    def join(halves: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {k: np.concatenate([h[k] for h in halves], axis=int(k == "trace")) for k in halves[0]}

    return in_halves(lambda part: _attack_rows(lab, cell, part, weight), rows, join=join)


def _attack_rows(lab: Lab, cell: Cell, rows: np.ndarray, weight: float | None) -> dict[str, np.ndarray]:
    grid, box = lab.grid, lab.cases.box
    if len(rows) == 0:
        shape = (0, lab.cases.channels, *lab.cases.shape)
        empty = np.zeros(0, np.int64)
        whole = dict.fromkeys(("rows", "label", "target", "prediction", "first", "gradients", "forwards"), empty)
        return whole | {
            "id": np.zeros(0, "U1"),
            "image": encode(torch.zeros(shape) + box[0], grid, box),
            "linf": empty * 1.0,
        }
    x, goal = lab.images(rows), lab.goal(rows)
    attack = attack_of(lab, cell, weight_of(lab, cell) if weight is None else weight)
    aware = OBJECTIVES[cell.objective.kind].needs == "detectors"
    classifier = lab.observing(cell.objective.aim or lab.plan.detectors) if aware else lab.classifier
    found = attack(classifier, x, goal, **lab.terms(rows, x))
    image = encode(found.adversarial, grid, box)
    again = decode(image, grid, box).to(x)
    prediction = observe(lab.classifier, again).predicted
    return {
        "rows": rows,
        "id": np.array(lab.ids(rows)),
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


def _extract_attacked(json: str, condition: str, part: str, index: int, store: Store) -> Arrays:
    lab = lab_of(json, store)
    stored = store.load(lab.images_key(condition, part, index))
    x = decode(stored["image"], lab.grid, lab.cases.box).to(lab.device)
    if len(x) == 0:
        like = observe(lab.observer, lab.images(lab.rows(part)[:1]))
        return packed(like[:0], stored["rows"])
    return packed(observe(lab.observer, x), stored["rows"])


def _tune(json: str, cell: Cell, store: Store) -> Arrays:
    """Lambda for one objective, on the fit part, by one procedure for all: the largest weight at which the attack succeeds as often as
    the plain one (the smallest weight if there is none). It never looks at a detector's verdict nor at a test case.
    """
    lab = lab_of(json, store)
    rows = lab.right("fit")[:TUNE_CASES]
    best = 0.0
    weights = sorted(cell.objective.weights)
    success = []
    for weight in [0.0, *weights]:
        plain = replace(cell, objective=PLAIN)
        got = attack_rows(lab, plain if weight == 0 else cell, rows, weight=weight)
        success.append(float((got["prediction"] == got["target"]).mean()))
        if weight and success[-1] >= success[0] - 1e-9:
            best = weight
    return {
        "weight": np.asarray(best or weights[0]),
        "weights": np.array([0.0, *weights]),
        "n": np.asarray(len(rows)),
        "success": np.array(success),
    }


def _score(json: str, detector: str, eps: float, condition: str, part: str, store: Store) -> Arrays:
    lab = lab_of(json, store)
    out, rows = lab.outputs(condition, part)
    return {"rows": rows, "score": scored(lab.detector(detector, eps), out)}


# --- images as a file holds them ---------------------------------------------------------------------------------------


def observe(classifier: FeatureClassifier, x: Tensor) -> Outputs:
    """The outputs on ``x`` as the guard reads them, on the CPU."""
    return classifier.observe(x)


def encode(x: Tensor, grid: Grid | None, box: Box) -> np.ndarray:
    """The images as whole grey levels above the box's floor, in the smallest type that holds them; floats where there is no grid."""
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
