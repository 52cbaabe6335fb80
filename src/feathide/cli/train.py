"""The verbs ``feathide train`` and ``feathide datasets``."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathide.cli.ending import said
from feathide.cli.options import SkipBad
from feathide.cli.running import now, progress_display
from feathide.cli.training_options import (
    Architecture,
    Augmented,
    BackboneRate,
    BalanceOf,
    BatchSize,
    Crop,
    Epochs,
    Flips,
    Freeze,
    HeadOf,
    Images,
    LearningRate,
    Limit,
    Patience,
    Patients,
    Pretrained,
    RateSchedule,
    Rotate,
    Size,
    Stem,
    StopOn,
    TrainingSeed,
    ValidRange,
    WeightsFile,
    Window,
)

if TYPE_CHECKING:
    from feathide.data import Cases
    from feathide.execution.progress import Progress
    from feathide.training.trainer import TrainResult

__all__ = ["datasets", "train"]


def train(
    *,
    data: Images,
    network: Architecture = "resnet18",
    weights: Pretrained = None,
    out: WeightsFile = Path("classifier.safetensors"),
    epochs: Epochs = 15,
    batch_size: BatchSize = 16,
    lr: LearningRate = 1e-3,
    patience: Patience = 5,
    freeze: Freeze = None,
    lr_backbone: BackboneRate = None,
    balance: BalanceOf = "weights",
    schedule: RateSchedule = "one-cycle",
    stop_on: StopOn = "loss",
    augment: Augmented = True,
    flips: Flips = None,
    crop: Crop = 0.0,
    rotate: Rotate = 0.0,
    patients: Patients = None,
    limit: Limit = None,
    head: HeadOf = None,
    stem: Stem = "standard",
    size: Size = None,
    box: ValidRange = None,
    window: Window = None,
    skip_bad: SkipBad = False,
    seed: TrainingSeed = 0,
) -> None:
    """Train a classifier on the training split, with early stopping on validation."""
    with said():
        _check_new(out)
        from feathide.data import load_cases
        from feathide.models.device import device_of
        from feathide.training.trainer import Augment, train_classifier

        device = device_of(now().device or "auto")
        cases = load_cases(
            data,
            patients=patients,
            limit=limit,
            size=size,
            box=box,
            skip_bad=skip_bad,
            seed=seed,
        )
        _tell_skipped(cases)
        changed = augment and Augment(flips=tuple(flips or ()), crop=crop, rotate=rotate)
        with progress_display() as display:
            result = train_classifier(
                cases,
                network,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                patience=patience,
                freeze=freeze,
                lr_backbone=lr_backbone,
                balance=balance,  # type: ignore[arg-type]
                schedule=schedule,  # type: ignore[arg-type]
                stop_on=stop_on,  # type: ignore[arg-type]
                augment=changed,
                head=head,  # type: ignore[arg-type]
                stem=stem,  # type: ignore[arg-type]
                window=window,
                seed=seed,
                out=out,
                weights=weights,
                device=device,
                progress=_told(display),
            )
        if result.begun is not None:
            typer.echo(f"started from {weights}: {result.begun.words}")
        _tell_validation(result, network)
        _tell_test(result, cases, window, batch_size)
        typer.echo(
            f"mean {list(result.mean)}, std {list(result.std)}: stored in the file, where "
            "feathide finds them"
        )
        typer.echo(str(out))


def _check_new(out: Path) -> None:
    """Refuse a file that exists, before any long work."""
    if out.exists():
        from feathide.errors import expected

        raise expected(
            f"{out} must not exist", got="a file", do="choose another name or remove it"
        )


def _tell_validation(result: "TrainResult", network: str) -> None:
    typer.echo(
        f"{network}: validation accuracy {result.val_accuracy:.3f}, AUC "
        f"{result.val_auc:.3f}, calibration error {result.val_calibration_error:.3f}, "
        f"epoch {result.epoch + 1} of {len(result.history)}, {result.seconds:.0f} s"
    )


def _tell_test(
    result: "TrainResult",
    cases: "Cases",
    window: tuple[float, float] | None,
    batch_size: int,
) -> None:
    """How good the classifier is on the test split, if there is one."""
    from feathide.training.judging import judge

    tested = judge(
        result.model,
        cases,
        "test",
        head=result.head,
        mean=result.mean,
        std=result.std,
        window=window,
        batch_size=batch_size,
    )
    if tested:
        typer.echo(
            f"{tested['n']:.0f} test images: accuracy {tested['accuracy']:.3f}, AUC "
            f"{tested['auc']:.3f}, calibration error {tested['calibration_error']:.3f}"
        )


def _told(display: "Progress") -> Callable[[int, int, str], None]:
    """Steps of a training, on a display: epochs, rate, time left."""
    from feathide.execution.progress import Status, paced

    started = time.monotonic()

    def told(done: int, total: int, what: str) -> None:
        rate = done / max(time.monotonic() - started, 1e-9)
        left = (total - done) / rate
        title = f"{what}, {paced(rate)}"
        display.show(Status("train", title, done, total, rate, left, (done, total), what))

    return told


def datasets(
    path: Annotated[
        str | None, typer.Argument(help="The data, as for `feathide audit --data`.")
    ] = None,
    *,
    kind: Annotated[
        str,
        typer.Option(
            help="The kind of data set, such as kermany; docs/datasets.md lists the kinds."
        ),
    ] = "auto",
    size: Annotated[
        int | None,
        typer.Option(
            help="Resize to this many pixels; with --fetch, the size to fetch (28 by default)."
        ),
    ] = None,
    fetch: Annotated[
        str | None, typer.Option(help="Download this set of MedMNIST (extra medmnist).")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for what is fetched.")
    ] = Path("images"),
    skip_bad: SkipBad = False,
) -> None:
    """Describe a data set (images, classes, splits, patients, range), or fetch one of
    MedMNIST.
    """
    with said():
        from feathide.data import load_cases
        from feathide.data.public import fetch_medmnist
        from feathide.errors import expected

        if fetch is not None:
            typer.echo(str(fetch_medmnist(fetch, size or 28, out)))
            return
        if path is None:
            raise expected(
                "datasets needs a path, or --fetch and a name",
                got="neither",
                do="say which data",
            )
        cases = load_cases(path, kind=kind, size=size, skip_bad=skip_bad)  # type: ignore[arg-type]
        _tell_skipped(cases)
        _describe(cases)


def _describe(cases: "Cases") -> None:
    """Say what is in a data set."""
    typer.echo(
        f"{cases.name}: {len(cases)} images, {cases.channels} x "
        f"{' x '.join(map(str, cases.shape))}, box {cases.box}, unit {cases.unit}"
    )
    if cases.orientation:
        typer.echo(
            f"  orientation {cases.orientation}: the side of the patient that each axis "
            "runs towards"
        )
    for split in ("train", "val", "test"):
        rows = cases.where(split)
        labels = cases.labels[rows]
        per_class = {
            n: int((labels[:, i] if labels.ndim == 2 else labels == i).sum())
            for i, n in enumerate(cases.class_names)
        }
        typer.echo(
            f"  {split}: {len(rows)} images, {len(set(cases.patients[rows]))} patients, "
            f"{per_class}"
        )
    for note in cases.notes:
        typer.echo(f"  {note}")


def _tell_skipped(cases: "Cases") -> None:
    for skipped in cases.skipped:
        typer.secho(f"left out {skipped.path}: {skipped.reason}", err=True, fg="yellow")
