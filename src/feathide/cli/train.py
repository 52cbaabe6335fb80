"""The verbs ``feathide train`` and ``feathide datasets``."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feathide.cli.ending import said
from feathide.cli.options import SkipBad
from feathide.cli.running import now, progress_display

if TYPE_CHECKING:
    from feathide.data import Cases
    from feathide.execution.engine import Progress

__all__ = ["datasets", "train"]


def train(
    *,
    data: Annotated[
        str,
        typer.Option(
            help=(
                "npz in MedMNIST layout, folder of images per class, CSV manifest, or "
                "'phantoms'."
            )
        ),
    ],
    network: Annotated[
        str,
        typer.Option(
            "--network",
            "--arch",
            help=(
                "A name of the zoo: resnet18, resnet34, resnet50, vgg16_bn, densenet121, tiny, "
                "..."
            ),
        ),
    ] = "resnet18",
    weights: Annotated[
        str | None,
        typer.Option(help="Pretrained weights to start from: a file, or package:NAME."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file of weights (.safetensors).")
    ] = Path("classifier.safetensors"),
    epochs: Annotated[
        int,
        typer.Option(min=1, help="The largest number of passes over the training split."),
    ] = 15,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per training step.")] = 16,
    lr: Annotated[float, typer.Option(help="The peak learning rate.")] = 1e-3,
    patience: Annotated[
        int,
        typer.Option(
            min=1, help="Stop after this many epochs without a better validation loss."
        ),
    ] = 5,
    freeze: Annotated[
        str | None,
        typer.Option(
            help="What does not learn: backbone, or globs such as 'layer1|layer2.*'."
        ),
    ] = None,
    lr_backbone: Annotated[
        float | None, typer.Option(help="Learning rate of all but the head.")
    ] = None,
    balance: Annotated[
        str, typer.Option(help="How rare classes count: weights, sampling or none.")
    ] = "weights",
    schedule: Annotated[
        str, typer.Option(help="Of the learning rate: one-cycle, cosine or constant.")
    ] = "one-cycle",
    stop_on: Annotated[
        str, typer.Option(help="What of the validation decides: loss or auc.")
    ] = "loss",
    augment: Annotated[
        bool, typer.Option(help="Change training images at random: shift, intensity.")
    ] = True,
    flips: Annotated[
        list[int] | None, typer.Option(help="Mirror this axis, too; 0 is the first one.")
    ] = None,
    crop: Annotated[
        float, typer.Option(min=0, max=0.9, help="Cut away up to this share of each axis.")
    ] = 0.0,
    rotate: Annotated[
        float, typer.Option(min=0, max=180, help="Turn by up to so many degrees.")
    ] = 0.0,
    patients: Annotated[
        str | None,
        typer.Option(help="A CSV of patient ids, where the data does not hold them."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many images of each split.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="softmax, sigmoid or findings; what the labels call for by default."
        ),
    ] = None,
    stem: Annotated[
        str, typer.Option(help="standard, or small for images below 64 pixels.")
    ] = "standard",
    size: Annotated[
        int | None, typer.Option(help="Resize images to this many pixels.")
    ] = None,
    box: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Legal values in the images' own units: -1024 3071."),
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(help="The part of the box that the network sees."),
    ] = None,
    skip_bad: SkipBad = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
) -> None:
    """Train a classifier on the training split, with early stopping on validation."""
    with said():
        if out.exists():
            from feathide.errors import expected

            raise expected(
                f"{out} must not exist", got="a file", do="choose another name or remove it"
            )
        from feathide.data import load_cases
        from feathide.models.device import device_of
        from feathide.training.judging import judge
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
                augment=augment
                and Augment(flips=tuple(flips or ()), crop=crop, rotate=rotate),
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
        typer.echo(
            f"{network}: validation accuracy {result.val_accuracy:.3f}, AUC "
            f"{result.val_auc:.3f}, calibration error {result.val_calibration_error:.3f}, "
            f"epoch {result.epoch + 1} of {len(result.history)}, {result.seconds:.0f} s"
        )
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
        typer.echo(
            f"mean {list(result.mean)}, std {list(result.std)}: stored in the file, where "
            "feathide finds them"
        )
        typer.echo(str(out))


def _told(display: "Progress") -> Callable[[int, int, str], None]:
    """Steps of a training, on a display: epochs, rate, time left."""
    from feathide.execution.engine import Status, paced

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
