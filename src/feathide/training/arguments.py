"""What a training refuses before its first step, each with what to do instead."""

from typing import get_args

import numpy as np

from feathide.data.cases import Cases
from feathide.errors import expected, unknown
from feathide.training.judging import Head
from feathide.training.loop import Schedule, StopOn
from feathide.training.losses import Balance


def check_numbers(lr_backbone: float | None, **positive: float) -> None:
    """Refuse numbers that must be positive and are not."""
    for name, value in positive.items():
        if not value > 0:
            raise expected(
                f"{name} must be positive", got=value, do="leave it out for the default"
            )
    if lr_backbone is not None and not lr_backbone > 0:
        raise expected(
            "lr_backbone must be positive",
            got=lr_backbone,
            do="say freeze: backbone for one that does not learn",
        )


def checked_head(cases: Cases, head: Head | None) -> Head:
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


def checked_rows(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
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


def check_recipe(
    cases: Cases, balance: Balance, schedule: Schedule, stop_on: StopOn
) -> None:
    for what, value, known in (
        ("balance", balance, get_args(Balance)),
        ("schedule", schedule, get_args(Schedule)),
        ("stop_on", stop_on, get_args(StopOn)),
    ):
        if value not in known:
            raise unknown(what, value, known)
    if balance == "sampling" and cases.multi_label:
        raise expected(
            "balance: sampling is for images of one class each",
            got="images with several findings",
            do="say balance: weights",
        )
    columns = cases.labels[cases.where("val")].reshape(len(cases.where("val")), -1).T
    if stop_on == "auc" and not any(len(set(column.tolist())) > 1 for column in columns):
        raise expected(
            "stop_on: auc needs validation images of two classes",
            got="images of one",
            do="say stop_on: loss, or add images",
        )
