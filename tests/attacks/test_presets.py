"""Recipes name their parameters, and say in one sentence what cannot be used."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from feathide.attacks import presets as recipes
from feathide.attacks.loop import Attack
from feathide.attacks.presets import fgsm, noise, pgd, square
from feathide.attacks.threats import Linf
from feathide.errors import InputError
from feathide.losses import HFC, CrossEntropy
from feathide.mixtures import MixtureBank
from feathide.types import Goal, Outputs
from worlds.classifiers import run, world

BALL = Linf(0.1)
W = world((3, 7, 6))


def call(attack: Attack | None = None, **changed: Any) -> Any:
    """``attack`` on the images of the world, with some arguments replaced."""
    given = {"classifier": W.classifier, "x": W.x, "goal": W.goal, "ids": W.ids, **changed}
    return (attack or pgd(BALL, steps=1))(**given)


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_recipe_names_every_parameter(name: str) -> None:
    recipe = getattr(recipes, name)
    kinds = {p.kind for p in signature(recipe).parameters.values()}
    assert kinds == {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}
    assert {"threat", "hide", "steps", "restarts"} <= set(signature(recipe).parameters)
    assert recipe(threat=BALL).passes == recipe(BALL).passes
    with pytest.raises(
        InputError, match=f"argument of {name} 'restart'; did you mean 'restarts'"
    ):
        recipe(BALL, restart=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pgd(step=20), "unknown argument of pgd 'step'; did you mean 'steps'"),
        (lambda: square(BALL, querys=9), "did you mean 'queries'"),
        (lambda: pgd(), r"pgd takes one threat model.*say pgd\(Linf"),
        (lambda: pgd(BALL, CrossEntropy()), "the rest are named"),
        (lambda: pgd(0.03), r"got 0.03; say Linf\(0.03\)"),
        (lambda: fgsm("4/255"), r"must be a ball.*got '4/255'"),
        (lambda: Attack(CrossEntropy(), 0.03, 1, 1.0), "must be a ball"),
        (lambda: pgd(BALL, steps=0), r"steps of pgd must be 1 or more, got 0.*noise"),
        (lambda: square(BALL, queries=0), "queries of square must be 1 or more"),
        (lambda: pgd(BALL, steps=2.5), "steps must be a whole number, got 2.5"),
        (lambda: pgd(BALL, hide="hfc"), "or a function of the outputs, got a str"),
        (lambda: pgd(BALL, hide=HFC), r"got the class HFC; give it its arguments: HFC\("),
        (lambda: pgd(BALL, objective=3), "got a int"),
        (lambda: Attack(len, BALL, 1, 1.0), r"Function\(f, fools=True\)"),
        (lambda: CrossEntropy() + len, r"wrap a function of the outputs as Function\(f\)"),
    ],
)
def test_what_is_no_attack_is_refused_in_one_sentence(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classifier": W.classifier.model}, "got the bare network.*FeatureClassifier"),
        ({"x": W.x.numpy()}, "images must be a torch tensor, got ndarray"),
        (
            {"x": W.x[0], "ids": W.ids[:3], "goal": W.goal[:3]},
            r"a single image; .*image\[None\]",
        ),
        ({"goal": (W.goal.source, W.goal.target)}, "got a tuple; give Goal"),
        (
            {"goal": Goal(W.goal.source.numpy(), W.goal.target)},
            "source classes.*torch tensor",
        ),
        (
            {"goal": Goal(W.goal.source, W.goal.target.double())},
            "give labels as torch.long",
        ),
        (
            {"ids": [W.ids[0], *W.ids[:-1]]},
            "ids of the images must differ.*got .* more than once",
        ),
        ({"attack": pgd(Linf("4/255"), steps=1)}, "eps must be a number.*got '4/255'"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_one_sentence(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(**changed)


def test_arrays_and_single_images_are_refused_outside_attacks_too() -> None:
    with pytest.raises(InputError, match=r"got ndarray; convert with torch\.as_tensor"):
        W.classifier.extract(W.x.numpy())
    with pytest.raises(InputError, match="a single image"):
        W.classifier.extract(W.x[0])
    with pytest.raises(InputError, match="labels must be a torch tensor"):
        MixtureBank.fit(W.classifier.extract(W.x), np.zeros(len(W.x)))


def test_noise_has_no_steps_and_no_gradient() -> None:
    assert run(noise(BALL), W).gradients.tolist() == [0] * len(W.x)


# --- a plain function as an objective -----------------------------------------------------------


def small_features(out: Outputs) -> Tensor:
    return out.last.square().mean(1)


def test_a_function_of_the_outputs_hides() -> None:
    plain, hiding = (
        W.classifier.extract(run(pgd(BALL, steps=8, hide=hide), W).adversarial)
        for hide in (None, lambda out: 5000 * small_features(out))
    )
    assert float(small_features(hiding).sum()) < 0.9 * float(small_features(plain).sum())


def test_a_function_of_the_outputs_fools_as_the_margin_it_writes_out_does() -> None:
    target = int(W.goal.target[0])
    goal = Goal(
        torch.full_like(W.goal.source, (target + 1) % 3),
        torch.full_like(W.goal.target, target),
    )

    def margin(out: Outputs) -> Tensor:
        rest = [k for k in range(out.logits.shape[1]) if k != target]
        return out.logits[:, rest].amax(1) - out.logits[:, target]

    ours = call(recipes.cw(BALL, steps=8), goal=goal)
    theirs = call(pgd(BALL, steps=8, objective=margin), goal=goal)
    assert torch.equal(theirs.adversarial, ours.adversarial)
    assert torch.equal(theirs.fooled, ours.fooled)
    assert theirs.losses == ("margin",)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [(lambda out: out.last.mean(), r"shape \(\)"), (lambda out: 0.0, "a float")],
)
def test_a_function_that_mixes_images_is_refused(wrong: Callable, got: str) -> None:
    with pytest.raises(InputError, match=f"one number for each image.*got {got}"):
        run(pgd(BALL, steps=1, hide=wrong), W)
