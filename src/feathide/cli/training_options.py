"""The options of ``feathide train``, in the order of its help."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Architecture",
    "Augmented",
    "BackboneRate",
    "BalanceOf",
    "BatchSize",
    "Crop",
    "Epochs",
    "Flips",
    "Freeze",
    "HeadOf",
    "Images",
    "LearningRate",
    "Limit",
    "Patience",
    "Patients",
    "Pretrained",
    "RateSchedule",
    "Rotate",
    "Size",
    "Stem",
    "StopOn",
    "TrainingSeed",
    "ValidRange",
    "WeightsFile",
    "Window",
]

Images = Annotated[
    str,
    typer.Option(
        help=(
            "npz in MedMNIST layout, folder of images per class, CSV manifest, or "
            "'phantoms'."
        )
    ),
]
Architecture = Annotated[
    str,
    typer.Option(
        "--network",
        "--arch",
        help=(
            "A name of the zoo: resnet18, resnet34, resnet50, vgg16_bn, densenet121, tiny, "
            "..."
        ),
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(help="Pretrained weights to start from: a file, or package:NAME."),
]
WeightsFile = Annotated[
    Path, typer.Option("--out", "-o", help="The file of weights (.safetensors).")
]
Epochs = Annotated[
    int,
    typer.Option(min=1, help="The largest number of passes over the training split."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per training step.")]
LearningRate = Annotated[float, typer.Option(help="The peak learning rate.")]
Patience = Annotated[
    int,
    typer.Option(
        min=1, help="Stop after this many epochs without a better validation loss."
    ),
]
Freeze = Annotated[
    str | None,
    typer.Option(help="Modules that do not learn: backbone, or globs: 'layer1|layer2.*'."),
]
BackboneRate = Annotated[
    float | None, typer.Option(help="Learning rate of all but the head.")
]
BalanceOf = Annotated[
    str, typer.Option(help="How rare classes count: weights, sampling or none.")
]
RateSchedule = Annotated[
    str, typer.Option(help="Schedule of the learning rate: one-cycle, cosine or constant.")
]
StopOn = Annotated[
    str, typer.Option(help="The validation metric that decides: loss or auc.")
]
Augmented = Annotated[
    bool, typer.Option(help="Change training images at random: shift, intensity.")
]
Flips = Annotated[
    list[int] | None, typer.Option(help="Mirror this axis, too; 0 is the first one.")
]
Crop = Annotated[
    float, typer.Option(min=0, max=0.9, help="Cut away up to this share of each axis.")
]
Rotate = Annotated[
    float, typer.Option(min=0, max=180, help="Rotate by up to this many degrees.")
]
Patients = Annotated[
    str | None,
    typer.Option(help="A CSV of patient ids, if the data does not hold them."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="At most this many images of each split.")
]
HeadOf = Annotated[
    str | None,
    typer.Option(help="softmax, sigmoid or findings; by default whatever fits the labels."),
]
Stem = Annotated[str, typer.Option(help="standard, or small for images below 64 pixels.")]
Size = Annotated[int | None, typer.Option(help="Resize images to this many pixels.")]
ValidRange = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Legal values in the images' own units: -1024 3071."),
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(help="The part of the box that the network sees."),
]
TrainingSeed = Annotated[int, typer.Option(min=0, help="Seed of the training.")]
