"""Conformance checks of detectors on faulty data: a message, or finite scores."""

from dataclasses import replace

import torch
from torch import Tensor

from feathide.checks.detector_scores import (
    IMAGE,
    Make,
    every,
    raises_or_scores,
    says,
    score,
    with_layer,
)
from feathide.checks.verdicts import require
from feathide.checks.worlds import evidence, mixed
from feathide.errors import InputError


def one_class(make: Make) -> None:
    """Training images of one class only: a message, or scores that are finite."""
    e = evidence()
    raises_or_scores(
        make, replace(e, train_labels=torch.zeros_like(e.train_labels)), mixed(), "class"
    )


def constant_layer(make: Make) -> None:
    """A layer that is the same for all images: a message, or scores that are finite."""
    raises_or_scores(
        make,
        every(torch.ones_like),
        with_layer(torch.ones_like, mixed()),
        "late",
        "constant",
    )


def constant_channel(make: Make) -> None:
    """A channel that is the same for all images, such as a dead ReLU, does no harm."""

    def flat(f: Tensor) -> Tensor:
        return torch.cat([f[:, :-1], torch.full_like(f[:, :1], 0.7)], 1)

    found = score(make, every(flat), with_layer(flat, mixed()))
    require(
        found.isfinite().all(), "finite scores beside a dead channel", got="NaN or infinity"
    )


def not_a_number(make: Make) -> None:
    """NaN in the evidence or in the outputs: a message, or scores that are finite because they
    are not read.
    """
    e = evidence()
    for part in ("train", "clean", "adversarial"):
        spoilt = with_layer(lambda f: f * torch.nan, getattr(e, part))
        bad = replace(e, **{part: spoilt})  # type: ignore[arg-type]
        raises_or_scores(make, bad, mixed(), "finite", "nan")
    for out in (
        with_layer(
            lambda f: f.where(torch.arange(len(f))[:, None] != 3, torch.nan), mixed()
        ),
        *(replace(mixed(), **{name: getattr(mixed(), name) * torch.nan}) for name in IMAGE),
    ):
        raises_or_scores(make, e, out, "finite", "nan")


def missing_layer(make: Make) -> None:
    """A layer that the detector learnt from and that is not there is missed by name."""
    out = mixed()
    out = replace(
        out, features={"early": out.features["early"], "late_": out.features["late"]}
    )
    detector = make().fit(evidence())
    try:
        found = detector.score(out)
    except InputError as error:
        says(error, "late")
        return
    require(
        torch.equal(found, detector.score(mixed())),
        "an InputError that names the missing layer",
        got="other scores",
    )
