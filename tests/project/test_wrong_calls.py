"""Wrong calls of the public functions: one sentence that says what was expected, not a traceback
from within.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from feathide import (
    DETECTORS,
    HFC,
    L2,
    Evade,
    FeatureClassifier,
    Goal,
    Grid,
    InputError,
    Linf,
    MixtureBank,
    audit,
    load_cases,
    load_plan,
    pgd,
)


@pytest.fixture(scope="module")
def w() -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ).eval()
    labels = torch.tensor([0, 1, 0, 1])
    classifier = FeatureClassifier(network, "conv")
    x = torch.rand((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return {
        "network": network,
        "classifier": classifier,
        "x": x,
        "labels": labels,
        "outputs": classifier.extract(x),
        "goal": Goal(labels, 1 - labels),
        "ids": list("abcd"),
    }


def attacked(w: dict[str, Any], **change: Any) -> Any:
    """A call of an attack, with something in it changed."""
    given = {**w, **change}
    more = {name: given[name] for name in ("ids", "grid", "mask") if name in given}
    attack = given.get("attack", pgd(Linf(0.1), steps=2))
    return attack(given["classifier"], given["x"], given["goal"], **more)


CALLS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a wrong name": (lambda w: pgd(Linf(0.1), step=20), "did you mean 'steps'"),
    "a number for a ball": (lambda w: pgd(4 / 255), "say Linf"),
    "steps as text": (lambda w: pgd(Linf(0.1), steps="20"), "whole number"),
    "no restart": (
        lambda w: attacked(w, attack=pgd(Linf(0.1), restarts=0)),
        "at least one run",
    ),
    "a step as text": (
        lambda w: pgd(Linf(0.1), step_size="a"),
        "step_size must be a number",
    ),
    "an unknown decay": (lambda w: pgd(Linf(0.1), decay="cosin"), "did you mean 'cosine'"),
    "eps as text": (
        lambda w: attacked(w, attack=pgd(Linf("4/255"))),
        "eps must be a number",
    ),
    "eps below zero": (lambda w: attacked(w, attack=pgd(L2(-1.0))), "not negative"),
    "arrays": (lambda w: attacked(w, x=w["x"].numpy()), "must be a torch tensor"),
    "one image": (lambda w: attacked(w, x=w["x"][0]), "for each of 1 images"),
    "equal ids": (lambda w: attacked(w, ids=["a"] * 4), "must differ"),
    "a number for a grid": (lambda w: attacked(w, grid=1 / 255), "grid must be a Grid"),
    "a grid without step": (lambda w: Grid(0), "must be a positive number"),
    "labels for a goal": (lambda w: attacked(w, goal=w["labels"]), "give Goal"),
    "a bare network": (lambda w: attacked(w, classifier=w["network"]), "wrap it"),
    "a name for a network": (lambda w: FeatureClassifier("resnet18"), "must be a Module"),
    "a number for a mean": (
        lambda w: FeatureClassifier(w["network"], "conv", mean=0.5, std=0.2),
        "one number a channel",
    ),
    "too many means": (
        lambda w: FeatureClassifier(w["network"], "conv", mean=[0.5] * 2, std=[1.0] * 2)(
            w["x"]
        ),
        "got 2 for 1 channels",
    ),
    "images of three colours": (
        lambda w: w["classifier"].extract(w["x"].repeat(1, 3, 1, 1)),
        "images of 1 channels",
    ),
    "batches of none": (
        lambda w: w["classifier"].extract(w["x"], batch_size=0),
        "1 or more",
    ),
    "images for a bank": (
        lambda w: MixtureBank.fit(w["x"], w["labels"]),
        "must be an Outputs",
    ),
    "a network for a bank": (lambda w: HFC(w["network"]), "must be a MixtureBank"),
    "a name for a guard": (lambda w: Evade("maha"), "a tuple of fitted detectors"),
    "outputs for evidence": (
        lambda w: DETECTORS["maha"]().fit(w["outputs"]),
        "an Evidence",
    ),
    "no plan": (lambda w: load_plan(None), "got a NoneType"),
    "a path for a plan": (
        lambda w: audit("plan.yaml", "out"),
        'say load_plan("plan.yaml")',
    ),
    "a field of no plan": (lambda w: load_plan({"data": "a"}, ep=1), "did you mean 'eps'"),
    "arrays for a path": (lambda w: load_cases(w["x"].numpy()), "named by a path"),
}


@pytest.mark.parametrize("call, words", CALLS.values(), ids=CALLS)
def test_a_wrong_call_is_one_sentence(
    w: dict[str, Any], call: Callable[[dict[str, Any]], Any], words: str
) -> None:
    with pytest.raises(InputError) as told:
        call(w)
    assert words in str(told.value) and "\n" not in str(told.value)
