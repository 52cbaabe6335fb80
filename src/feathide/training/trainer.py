"""Training a classifier to be audited: Lightning does the loop, the best validation loss decides.

N images, K classes or F findings, C channels, S the spatial axes; the same code for pictures and
volumes."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from feathide.data.cases import Cases
from feathide.errors import expected
from feathide.models.device import device_of
from feathide.models.loading import check_network
from feathide.models.logits import logits_of
from feathide.models.weight_files import read_about
from feathide.models.weight_names import Rename
from feathide.models.weights import (
    Taken,
    load_weights,
    save_weights,
    start_from,
    weights_digest,
)
from feathide.models.zoo import Stem, build
from feathide.training.adversarial import Adversary
from feathide.training.arguments import (
    check_numbers,
    check_recipe,
    checked_head,
    checked_rows,
)
from feathide.training.augmentation import Augment
from feathide.training.data import (
    Change,
    Images,
    changer,
    loader,
    measure,
    normaliser,
    reader,
    sampling_weights,
    windowed,
)
from feathide.training.fine_tuning import fixed, frozen_names, head_names, learning_rates
from feathide.training.judging import Head
from feathide.training.loop import Progress, Schedule, StopOn, Training, fit
from feathide.training.losses import Balance, losses_of
from feathide.types import Box

__all__ = [
    "Adversary",
    "Augment",
    "Balance",
    "Head",
    "Progress",
    "Schedule",
    "StopOn",
    "TrainResult",
    "load_trained",
    "train_classifier",
]


@dataclass(frozen=True)
class TrainResult:
    """A trained network, and how it was trained.

    It sees ``(x - mean) / std`` with x in the box, or the window as [0, 1]: give these to
    ``FeatureClassifier``.

    Args:
        model: The network in evaluation mode, on the CPU.
        head: "softmax", "sigmoid" or "findings".
        mean: The mean of each channel over the training split.
        std: The standard deviation of each channel over the training split.
        history: One row per epoch: epoch, train_loss, val_loss, val_accuracy, val_auc,
            val_calibration_error.
        epoch: The epoch that was kept.
        val_accuracy: The validation accuracy of that epoch, in [0, 1].
        val_auc: Its validation AUC; NaN where no class has validation images both in and out.
        digest: A digest of the weights.
        seconds: How long the training took.
        begun: Which weights the training started from, if any.
        val_calibration_error: The validation calibration error of the epoch that was kept.
        frozen: How many of the network's parameters did not learn.
    """

    model: nn.Module
    head: Head
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: tuple[Mapping[str, float], ...]
    epoch: int
    val_accuracy: float
    val_auc: float
    digest: str
    seconds: float
    begun: Taken | None = None
    val_calibration_error: float = math.nan
    frozen: int = 0


def train_classifier(
    cases: Cases,
    arch: str | nn.Module,
    *,
    head: Head | None = None,
    stem: Stem = "standard",
    weights: str | Path | None = None,
    rename: Rename | None = None,
    epochs: int = 15,
    batch_size: int = 16,
    lr: float = 1e-3,
    patience: int = 5,
    augment: Augment | bool = True,
    freeze: str | None = None,
    lr_backbone: float | None = None,
    balance: Balance = "weights",
    schedule: Schedule = "one-cycle",
    stop_on: StopOn = "loss",
    adversary: Adversary | None = None,
    window: Box | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a classifier on the training split, with early stopping on the validation split.

    The loss is a cross-entropy in which every class has the same total weight, unless ``balance``
    says otherwise; the optimiser is AdamW. What is validated and kept is a running average of the
    weights, which is steadier than the weights while the learning rate is high. The same seed gives
    the same weights on a CPU; the global random state is not changed. A GPU computes in bfloat16.
    Splits of up to 4 GiB are held in memory, larger ones are read batch by batch.

    Args:
        cases: The images, with a "train" and a "val" split.
        arch: A name of the zoo, such as "resnet18", or your own network, which is copied.
        head: "softmax" (K outputs), "sigmoid" (one output, for two classes) or "findings" (one
            output per finding); None for what the labels call for.
        stem: "standard", or "small" for images below 64 pixels.
        weights: A file of weights to start from.
        rename: How names in that file become names of the network.
        epochs: The largest number of epochs.
        batch_size: Images per step.
        lr: The peak learning rate.
        patience: Stop when the validation loss has not improved for this many epochs.
        augment: True for ``Augment()``, False for none, or an ``Augment`` of your own.
        freeze: What of ``weights`` does not learn, its batch norms included: "backbone", or globs
            of modules with ``|`` between them.
        lr_backbone: The peak learning rate of all but the head (the last linear layer and what the
            file of weights lacks).
        balance: How rare classes count: by "weights" of the loss, by "sampling" (each class drawn
            as often; labels of one class only), or "none".
        schedule: The learning rate over the steps: "one-cycle", "cosine" (from ``lr`` to 0 after a
            rise over the first twentieth) or "constant".
        stop_on: What decides which epoch is kept and when training stops: "loss" of the validation
            images, or their "auc" (of equal ones the lower loss).
        adversary: Makes every batch harder, those of the validation too, so that the epoch that
            withstands most is kept.
        window: The part (lo, hi) of the box that the network sees as [0, 1].
        seed: The seed of weights, batches and augmentation.
        out: A safetensors file for ``load_trained``, written at the end.
        device: Where to train; None for a GPU if there is one, else the CPU.
        progress: Is called after each step: with the steps done, all steps, and a line about the
            epoch.

    Returns:
        The network of the best epoch, with the normalisation that belongs to it.

    Raises:
        InputError: A split or a class without images, a network that does not fit the images, a
            loss that is not finite.

    Examples:
        ```python
        cases = load_cases("chest.npz")
        trained = train_classifier(cases, "resnet18", epochs=5, out="chest.safetensors")
        classifier = FeatureClassifier(trained.model, mean=trained.mean, std=trained.std)
        ```
    """
    started = time.perf_counter()
    head = checked_head(cases, head)
    train, val = checked_rows(cases)
    check_recipe(cases, balance, schedule, stop_on)
    check_numbers(lr_backbone, epochs=epochs, batch_size=batch_size, lr=lr)
    network = _network(cases, arch, head=head, stem=stem, seed=seed, window=window)
    begun = None
    if weights is not None:
        begun = start_from(network, weights, rename=rename)
    own_head = head_names(network, () if begun is None else begun.fresh)
    frozen = frozen_names(network, freeze, own_head)
    batches, held_out, (mean, std) = _batches(
        cases,
        train,
        val,
        change=changer(Augment() if augment is True else augment or None, seed),
        sampling=balance == "sampling",
        batch_size=batch_size,
        window=window,
        seed=seed,
    )
    k = len(cases.class_names)
    outputs = 1 if head == "sigmoid" else k
    loss, val_loss = losses_of(cases.labels[train], k, head, balance)
    # (C,): a unit of the normalised images in the box
    unit = torch.tensor(std) * (1.0 if window is None else window[1] - window[0])
    training = Training(
        network,
        loss,
        val_loss,
        head=head,
        outputs=outputs,
        rates=learning_rates(network, lr, lr_backbone, own_head),
        schedule=schedule,
        stop_on=stop_on,
        frozen=frozen,
        steps=epochs * len(batches),
        progress=progress,
        harder=_harder(adversary, loss, outputs, unit),
    )
    with (
        fixed(network, frozen),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        torch.manual_seed(seed)
        fit(
            training,
            batches,
            held_out,
            epochs=epochs,
            patience=patience,
            device=device_of("auto") if device is None else device,
        )
    kept = training.keep_best()
    result = TrainResult(
        model=network,
        head=head,
        mean=mean,
        std=std,
        history=tuple(training.history),
        epoch=int(kept["epoch"]),
        val_accuracy=kept["val_accuracy"],
        val_auc=kept["val_auc"],
        digest=weights_digest(network),
        seconds=time.perf_counter() - started,
        begun=begun,
        val_calibration_error=kept["val_calibration_error"],
        frozen=sum(p.numel() for n, p in network.named_parameters() if n in frozen),
    )
    if out is not None:
        about = _about(cases, arch, stem, result) | {"window": window}
        save_weights(network, out, about=about)
    return result


def _batches(
    cases: Cases,
    train: np.ndarray,
    val: np.ndarray,
    *,
    change: Change | None,
    sampling: bool,
    batch_size: int,
    window: Box | None,
    seed: int,
) -> tuple[DataLoader[Any], DataLoader[Any], tuple[tuple[float, ...], tuple[float, ...]]]:
    """The batches of both splits, normalised by the mean and the standard deviation of the
    training split, which come with them.
    """
    read = windowed(reader(cases, train), window)
    mean, std = measure(read, len(train))
    normalise = normaliser(mean, std)
    labels = cases.labels[train]
    batches = loader(
        Images(read, labels, normalise, change),
        batch_size,
        seed,
        weights=sampling_weights(labels) if sampling else None,
    )
    read = windowed(reader(cases, val), window)
    held_out = loader(Images(read, cases.labels[val], normalise), batch_size, None)
    return batches, held_out, (mean, std)


def _harder(
    adversary: Adversary | None,
    loss: Callable[[Tensor, Tensor], Tensor],
    outputs: int,
    unit: Tensor,
) -> Callable[..., Tensor] | None:
    """What makes a batch harder, if anything does; ``unit``: (C,), of the normalised images."""
    if adversary is None:
        return None

    def told(answer: object, y: Tensor) -> Tensor:
        return loss(logits_of(answer, len(y), outputs), y)

    return partial(adversary, loss=told, scale=unit)


def load_trained(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a file that ``train_classifier`` wrote.

    Args:
        path: The safetensors file.

    Returns:
        The network in evaluation mode, and what the file says about it: arch, channels, outputs,
        stem, head, mean, std, window, class_names, size, val_accuracy, val_auc,
        val_calibration_error.

    Raises:
        InputError: Any other file.
    """
    about = read_about(path)
    if not about.get("arch"):
        raise expected(
            f"{path} must say how its network is built",
            got="no such note",
            do="name the architecture and load its weights",
        )
    model = build(
        about["arch"],
        channels=about["channels"],
        outputs=about["outputs"],
        stem=about["stem"],
    )
    load_weights(model, path)
    return model.eval(), about


def _about(
    cases: Cases, arch: str | nn.Module, stem: Stem, result: TrainResult
) -> dict[str, Any]:
    return {
        "arch": arch if isinstance(arch, str) else "",
        "channels": cases.channels,
        "outputs": 1 if result.head == "sigmoid" else len(cases.class_names),
        "stem": stem,
        "head": result.head,
        "mean": result.mean,
        "std": result.std,
        "class_names": cases.class_names,
        "size": cases.shape,
        "val_accuracy": result.val_accuracy,
        "val_auc": result.val_auc,
        "val_calibration_error": result.val_calibration_error,
    }


def _network(
    cases: Cases,
    arch: str | nn.Module,
    *,
    head: Head,
    stem: Stem,
    seed: int,
    window: Box | None,
) -> nn.Module:
    k = len(cases.class_names)
    if isinstance(arch, str):
        outputs = 1 if head == "sigmoid" else k
        return build(
            arch,
            channels=cases.channels,
            outputs=outputs,
            size=cases.shape,
            stem=stem,
            seed=seed,
        )
    network = copy.deepcopy(arch).cpu().eval()
    check_network(
        network,
        windowed(reader(cases, cases.where("train")[:2]), window)(np.arange(2)),
        k,
        head,
    )
    return network.train()
