"""The loop of a training: Lightning runs it, a running average of the weights is validated, and
the best epoch is kept.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader

from feathide.errors import expected
from feathide.models.logits import logits_of
from feathide.training.fine_tuning import still
from feathide.training.judging import Head, accuracy_of, area_of, calibration_of

STOPPED = "training stopped; no weights were written, and the same command starts it again"

__all__ = ["Progress", "Schedule", "StopOn", "Training", "cosine", "fit"]

Schedule = Literal["one-cycle", "cosine", "constant"]
StopOn = Literal["loss", "auc"]
Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is being done

NEVER = (math.inf, math.inf)


class Training(L.LightningModule):
    """What Lightning's loop calls: the loss, AdamW with its schedule, and the memory of the best
    epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        val_loss: Callable[[Tensor, Tensor], Tensor],
        *,
        head: Head,
        outputs: int,
        rates: list[dict[str, Any]],
        schedule: Schedule,
        stop_on: StopOn,
        frozen: Collection[str],
        steps: int,
        progress: Progress | None,
        harder: Callable[..., Tensor] | None,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.val_loss = network, loss, val_loss
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.head, self.outputs, self.steps = head, outputs, steps
        self.rates, self.schedule, self.stop_on = rates, schedule, stop_on
        self.still = still(network, frozen)
        self.progress, self.harder = progress, harder
        self.losses: list[Tensor] = []
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.rates, weight_decay=0.01)
        peaks = [group["lr"] for group in self.rates]
        schedule: Any
        if self.schedule == "one-cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, peaks, total_steps=self.steps
            )
        else:
            share = cosine(self.steps) if self.schedule == "cosine" else lambda step: 1.0
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        x, y = batch
        if self.harder is not None:
            x = self.harder(self.network, x, y, draw=self.global_step)
        for norm in self.still:
            norm.eval()
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
            "val_loss": float(self.val_loss(z, y)),
            "val_accuracy": accuracy_of(z, y, self.head),
            "val_auc": area_of(z, y, self.head),
            "val_calibration_error": calibration_of(z, y, self.head),
        }
        best = min(map(self.rank, self.history), default=NEVER)
        if self.rank(row) < best:
            self.best = {
                k: v.detach().cpu().clone() for k, v in self.average.state_dict().items()
            }
        self.history.append(row)
        self.losses, self.seen = [], []
        # of what decides, lower is better
        self.log("decides", self.rank(row)[0])

    def rank(self, row: Mapping[str, float]) -> tuple[float, float]:
        """What is lowest for the best epoch: the loss; or the AUC, then the loss."""
        loss = row["val_loss"] if math.isfinite(row["val_loss"]) else math.inf
        if self.stop_on == "loss":
            return (loss, loss)
        area = row["val_auc"]
        return (-area if math.isfinite(area) and loss < math.inf else math.inf, loss)

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
        return min(self.history, key=self.rank)


def cosine(steps: int) -> Callable[[int], float]:
    """The share of the peak rate at each of ``steps``: a rise over the first twentieth, then
    half a cosine down to 0.
    """
    rise = max(1, steps // 20)

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, steps - rise)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return share


def fit(
    training: Training,
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
            callbacks=[EarlyStopping("decides", patience=patience)],
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
            raise KeyboardInterrupt(STOPPED) from stop


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
