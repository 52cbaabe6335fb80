"""Training a classifier to be audited: Lightning does the loop, the best validation loss decides.

N images, K classes or F findings, C channels, S the spatial axes; the same code for pictures and
volumes."""

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from feathide.data.cases import Cases
from feathide.errors import expected, unknown
from feathide.models.device import device_of
from feathide.models.loading import check_network
from feathide.models.logits import logits_of
from feathide.models.weights import (
    Rename,
    Taken,
    load_weights,
    read_about,
    save_weights,
    start_from,
    weights_digest,
)
from feathide.models.zoo import Stem, build
from feathide.training.adversarial import Adversary
from feathide.training.augmentation import Augment
from feathide.training.data import (
    Images,
    changer,
    loader,
    measure,
    normaliser,
    reader,
    windowed,
)
from feathide.types import Box

__all__ = [
    "Adversary",
    "Augment",
    "Head",
    "Progress",
    "TrainResult",
    "load_trained",
    "train_classifier",
]

Head = Literal["softmax", "sigmoid", "findings"]
Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is being done


@dataclass(frozen=True)
class TrainResult:
    """A trained network in evaluation mode on the CPU, and how it came about.

    It sees ``(x - mean) / std`` with x in the box, or the window as [0, 1], and one mean and std
    per channel, measured on the training split: declare them to ``FeatureClassifier``.
    ``history`` has one row per epoch (epoch, train_loss, val_loss, val_accuracy, val_auc);
    ``val_accuracy`` and ``val_auc`` (NaN where no class has validation images both in and out)
    are those of ``epoch``, the one that was kept."""

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
    adversary: Adversary | None = None,
    window: Box | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train ``arch``, a name of ``MODELS`` or a user's own network (which is copied), on the
    training split.

    ``head``: "softmax" (K outputs), "sigmoid" (one, for two classes) or "findings" (F, for labels
    with one column per finding); None: what the labels call for. The loss is cross-entropy in
    which every class weighs the same in all; AdamW with a one-cycle schedule of peak ``lr``. What
    is validated and kept is a running average of the weights, which does not jump about as the
    weights do while ``lr`` is high. Training stops when its validation loss has not improved for
    ``patience`` epochs; the best epoch is kept. ``window`` (lo, hi): the network sees this part
    of the box as [0, 1], as in ``FeatureClassifier``; mean and std are those of what it sees.
    ``augment``: True for ``Augment()``.
    ``adversary``: makes every batch harder, those of the validation too, so that what is kept and
    reported is what withstands it. ``weights``: a user's file to start from, with ``rename`` (see
    ``start_from``). ``out``: a safetensors file for ``load_trained``, written when training has
    ended. On ``device``, or on a GPU where there is one; on a GPU in bfloat16. The same seed gives
    the same weights on a CPU; the global random state stays as it was. Splits of up to 4 GiB are
    held in memory, larger ones are read batch by batch.

    Raises ``InputError`` for a split or a class without images, a network that does not fit the
    images, and a loss that is not finite."""
    started = time.perf_counter()
    head = _checked_head(cases, head)
    train, val = _checked_rows(cases)
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr)):
        if not value > 0:
            raise expected(
                f"{name} must be positive", got=value, do="leave it out for the default"
            )
    network = _network(cases, arch, head=head, stem=stem, seed=seed, window=window)
    begun = None
    if weights is not None:
        begun = start_from(network, weights, rename=rename)
    read = windowed(reader(cases, train), window)
    mean, std = measure(read, len(train))
    normalise = normaliser(mean, std)
    change = changer(Augment() if augment is True else augment or None, seed)
    batches = loader(Images(read, cases.labels[train], normalise, change), batch_size, seed)
    held_out = loader(
        Images(windowed(reader(cases, val), window), cases.labels[val], normalise),
        batch_size,
        None,
    )
    loss = _loss(cases.labels[train], len(cases.class_names), head)
    # (C,): a unit of the normalised images in the box
    unit = torch.tensor(std) * (1.0 if window is None else window[1] - window[0])
    outputs = 1 if head == "sigmoid" else len(cases.class_names)

    def told(answer: object, y: Tensor) -> Tensor:
        return loss(logits_of(answer, len(y), outputs), y)

    harder = None if adversary is None else partial(adversary, loss=told, scale=unit)
    training = _Training(
        network,
        loss,
        head=head,
        outputs=outputs,
        lr=lr,
        steps=epochs * len(batches),
        progress=progress,
        harder=harder,
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        _fit(
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
    )
    if out is not None:
        save_weights(
            network, out, about=_about(cases, arch, stem, result) | {"window": window}
        )
    return result


def load_trained(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a file that ``train_classifier`` wrote, in evaluation mode, and what the
    file says about it.

    That is: arch, channels, outputs, stem, head, mean, std, window, class_names, size,
    val_accuracy, val_auc. Raises ``InputError`` for any other file."""
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
    }


# --- what is trained on what --------------------------------------------------------------------


def _checked_head(cases: Cases, head: Head | None) -> Head:
    if cases.multi_label:
        fitting: tuple[Head, ...] = ("findings",)
    else:
        fitting = ("softmax", "sigmoid") if len(cases.class_names) == 2 else ("softmax",)
    if head is not None and head not in ("softmax", "sigmoid", "findings"):
        raise unknown("head", head, ("softmax", "sigmoid", "findings"))
    if head is not None and head not in fitting:
        raise expected(
            f"head for these labels must be {' or '.join(fitting)}",
            got=head,
            do="leave it out",
        )
    return head or fitting[0]


def _checked_rows(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    train, val = cases.where("train"), cases.where("val")
    for split, rows in (("train", train), ("val", val)):
        if len(rows) == 0:
            raise expected(
                f"the {split} split must hold images",
                got="none",
                do=f"mark some cases as {split}",
            )
    labels = cases.labels[train]
    columns = labels.T if cases.multi_label else [labels]
    for column in columns:
        present = set(column.tolist())
        wanted = 2 if cases.multi_label else len(cases.class_names)
        if len(present) < wanted or wanted < 2:
            raise expected(
                "the train split must hold images of every class (of both values of a finding)",
                got=f"only {sorted(present)}",
                do="add such images or name only the classes that occur",
            )
    return train, val


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


def _loss(labels: np.ndarray, k: int, head: Head) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy in which all classes, or both values of a finding, weigh the same, however
    rare.
    """
    y = torch.from_numpy(labels)
    if head == "softmax":
        weight = len(y) / (k * torch.bincount(y, minlength=k).float())  # (K,)
        return lambda z, t: F.cross_entropy(z.float(), t, weight.to(z.device))
    share = y.reshape(len(y), -1).float().mean(0)  # (F,) of positives

    def loss(z: Tensor, t: Tensor) -> Tensor:
        truth = t.reshape(len(t), -1).float()
        p = share.to(z.device)
        weight = truth / (2 * p) + (1 - truth) / (2 * (1 - p))
        return F.binary_cross_entropy_with_logits(
            z.float().reshape(truth.shape), truth, weight
        )

    return loss


# --- the loop -----------------------------------------------------------------------------------


class _Training(L.LightningModule):
    """What Lightning's loop calls: the loss, AdamW with a one-cycle schedule, and the memory of
    the best epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        head: Head,
        outputs: int,
        lr: float,
        steps: int,
        progress: Progress | None,
        harder: Callable[..., Tensor] | None,
    ) -> None:
        super().__init__()
        self.network, self.loss = network, loss
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.head, self.outputs, self.lr, self.steps = head, outputs, lr, steps
        self.progress, self.harder = progress, harder
        self.losses: list[Tensor] = []
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.lr, weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=self.steps
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        x, y = batch
        if self.harder is not None:
            x = self.harder(self.network, x, y, draw=self.global_step)
        loss = self.loss(logits_of(self.network(x), len(x), self.outputs), y)
        self.losses.append(loss.detach())
        if self.progress is not None:
            last = (
                f", validation accuracy {self.history[-1]['val_accuracy']:.3f}"
                if self.history
                else ""
            )
            epoch = f"epoch {self.current_epoch + 1} of {self.trainer.max_epochs}{last}"
            self.progress(self.global_step + 1, self.steps, epoch)
        return loss

    def on_train_batch_end(self, _outputs: Any, _batch: Any, _index: int) -> None:
        """Move the average towards the network: at first a plain mean, later one over about half
        an epoch.
        """
        share = min(
            1.0, max(2 / self.trainer.num_training_batches, 1 / (self.global_step + 1))
        )
        now = self.network.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(now[name], share)
            else:
                value.copy_(now[name])

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        x, y = batch
        if self.harder is not None:
            x = self.harder(self.average, x, y, draw="held out")
        self.seen.append(
            (logits_of(self.average(x), len(x), self.outputs).float().cpu(), y.cpu())
        )

    def on_validation_epoch_end(self) -> None:
        z, y = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        row = {
            "epoch": float(self.current_epoch),
            "train_loss": float(torch.stack(self.losses).mean()),
            "val_loss": float(self.loss(z, y)),
            "val_accuracy": _accuracy(z, y, self.head),
            "val_auc": _auc(z, y, self.head),
        }
        if row["val_loss"] < min((h["val_loss"] for h in self.history), default=math.inf):
            self.best = {
                k: v.detach().cpu().clone() for k, v in self.average.state_dict().items()
            }
        self.history.append(row)
        self.losses, self.seen = [], []
        self.log("val_loss", row["val_loss"])

    def keep_best(self) -> dict[str, float]:
        """Give the network the weights of the best epoch, in evaluation mode on the CPU; that
        epoch's row.
        """
        if not self.best:
            raise expected(
                "the validation loss must be finite",
                got="NaN from the first epoch on",
                do="lower lr",
            )
        self.network.load_state_dict(self.best)
        self.network.cpu().eval()
        return min(
            self.history,
            key=lambda h: h["val_loss"] if math.isfinite(h["val_loss"]) else math.inf,
        )


def _fit(
    training: _Training,
    batches: DataLoader[Any],
    held_out: DataLoader[Any],
    *,
    epochs: int,
    patience: int,
    device: torch.device,
) -> None:
    """Run Lightning's loop, which says nothing and leaves no file, log or signal handler
    behind.
    """
    gpu = device.type == "cuda"
    halves = gpu and torch.cuda.is_bf16_supported()
    with _quiet():
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if gpu else "cpu",
            devices=[device.index or 0] if gpu else 1,
            precision="bf16-mixed" if halves else "32-true",
            callbacks=[EarlyStopping("val_loss", patience=patience)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # an adversary differentiates what is validated
        )
        try:
            trainer.fit(training, batches, held_out)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from stop


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's greetings and advice are not for the user of this package."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")
    ]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
        warnings.filterwarnings("ignore", module=r"torch(\.|$)", category=FutureWarning)
        for log in loggers:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)


def _accuracy(z: Tensor, y: Tensor, head: Head) -> float:
    predicted = z.argmax(1) if head == "softmax" else (z.reshape(y.shape) > 0).long()
    return float((predicted == y).float().mean())


def _auc(z: Tensor, y: Tensor, head: Head) -> float:
    """Area under the ROC curve: of the two classes, or the mean over classes (one against the
    rest) or findings; NaN where none of them has both kinds of images, or an output is not
    finite.
    """
    if not bool(z.isfinite().all()):
        return math.nan
    if head == "softmax" and z.shape[1] == 2:
        z, y = z[:, 1:] - z[:, :1], y.reshape(-1, 1)
    elif head == "softmax":
        z, y = z.softmax(1), F.one_hot(y, z.shape[1])
    z, y = z.reshape(len(z), -1), y.reshape(len(y), -1)
    mixed = [j for j in range(y.shape[1]) if 0 < int(y[:, j].sum()) < len(y)]
    return (
        float(np.mean([roc_auc_score(y[:, j].numpy(), z[:, j].numpy()) for j in mixed]))
        if mixed
        else math.nan
    )
