"""The work of the steps that train, extract, fit and score: each gives the arrays of one file."""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from feathide.attacks.presets import noise
from feathide.data import Cases
from feathide.data.shifts import HARMLESS
from feathide.errors import expected
from feathide.execution.engine import tell
from feathide.execution.packing import packed, scored
from feathide.mixtures import MixtureBank
from feathide.pipeline.conditions import noisy_at, shifted_by
from feathide.pipeline.step import Arrays
from feathide.pipeline.stored_images import decode, encode
from feathide.plans.plan import Cell
from feathide.plans.sections import TrainPlan

if TYPE_CHECKING:
    from feathide.pipeline.context import Context
    from feathide.training.trainer import Head, TrainResult

__all__ = [
    "extract",
    "extract_attacked",
    "mixtures",
    "observed",
    "packed_network",
    "score",
    "train",
    "train_reference_network",
    "trained",
]


# --- networks -----------------------------------------------------------------------------------


def train(context: "Context") -> Arrays:
    """The classifier's weights."""
    n = context.plan.network
    result = trained(
        context,
        n.arch,
        n.train,
        seed=context.recipe.network_seed,
        weights=context.data.begins_with,
        rename=n.rename,
    )
    return packed_network(result)


def train_reference_network(context: "Context") -> Arrays:
    """The weights of the reference network."""
    result = trained(
        context,
        context.recipe.reference_network_arch,
        context.plan.reference_network.train,
        seed=context.plan.seed,
        adversary=context.recipe.adversary,
    )
    return packed_network(result)


def trained(
    context: "Context", arch: str, t: TrainPlan, *, cases: Cases | None = None, **how: Any
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
        if context.data.finding is not None
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
        window=context.recipe.window,
        device=context.data.device,
        progress=tell,
        **how,
    )


def packed_network(result: "TrainResult") -> Arrays:
    """A trained network as arrays for the store; ``Networks.restored`` is the inverse."""
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


# --- what the networks show of the images -------------------------------------------------------


def extract(context: "Context", condition: str, part: str, index: int) -> Arrays:
    """The outputs on a batch of clean, noisy or shifted images."""
    rows = context.data.batch(part, index)
    x = context.data.images(rows)
    context.networks.classifier.check(x)
    noisy = {noisy_at(eps): eps for eps in context.limits.budgets}
    shifts = {shifted_by(name): name for name in HARMLESS}
    if condition in noisy:
        x = _noisy(context, x, rows, noisy[condition])
    elif condition in shifts:
        x = _shifted(context, x, rows, shifts[condition])
    elif condition != "clean":
        raise ValueError(f"no condition {condition!r}")
    return packed(context.networks.observer.observe(x), rows)


def _shifted(context: "Context", x: Tensor, rows: np.ndarray, shift: str) -> Tensor:
    """A harmless change, as stored."""
    grid, box = context.limits.grid, context.cases.box
    shifted = HARMLESS[shift](x, context.data.ids(rows), context.plan.seed, box)
    return decode(encode(shifted, grid, box), grid, box).to(x)


def _noisy(context: "Context", x: Tensor, rows: np.ndarray, eps: float) -> Tensor:
    """Random noise of the budget, as stored; noise that changes nothing is refused."""
    attack = noise(context.limits.threat(eps))
    goal, terms = context.data.goal(rows), context.limits.terms(rows, x)
    noisy = attack(context.networks.classifier, x, goal, **terms).adversarial
    same = (noisy == x).flatten(1).all(1)
    if bool(same.any()):
        raise expected(
            "noisy negatives must differ from the clean images",
            got=f"{int(same.sum())} unchanged images at eps {eps:g}",
            do="raise eps or store more grey levels",
        )
    return noisy


def extract_attacked(context: "Context", cell: Cell, part: str, index: int) -> Arrays:
    """The outputs on a batch of attacked images, read back from their file."""
    stored = context.store.load(context.steps.attack(cell, part).keys[index])
    x = decode(stored["image"], context.limits.grid, context.cases.box)
    return observed(context, x, stored["rows"])


def observed(context: "Context", x: Tensor, rows: np.ndarray) -> Arrays:
    """What the detectors read of the images ``x``, of which there may be none."""
    observer = context.networks.observer
    if len(x) == 0:
        like = observer.observe(context.data.images(context.data.rows("test")[:1]))
        return packed(like[:0], rows)
    return packed(observer.observe(x.to(context.data.device)), rows)


def mixtures(context: "Context") -> Arrays:
    """A mixture for each layer and class, fitted to the clean training features."""
    out, labels = context.outputs.train()
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


def score(
    context: "Context", detector: str, eps: float, condition: str, part: str
) -> Arrays:
    """The scores of a detector on the outputs of a condition."""
    out, rows = context.outputs.of(condition, part)
    return {"rows": rows, "score": scored(context.fitted.detector(detector, eps), out)}
