"""The least level is found to one level, also where success does not grow with the budget."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from feathide.attacks.grid import Grid
from feathide.attacks.presets import pgd
from feathide.attacks.smallest import FOOL, SmallestChange, smallest_change, whole_levels
from feathide.attacks.threats import Linf
from feathide.checks.worlds import network
from feathide.errors import InputError
from feathide.losses import Margin
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal
from worlds.linear import images, linear

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def search(
    rules: Mapping[str, Rule], n: int, top: int, *, spare: int = 0
) -> SmallestChange:
    """The search where an "image" is the level that was asked for, less ``spare`` that the attack
    leaves unused.
    """

    def attacked(levels: np.ndarray, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.maximum(levels - spare, 1)).double()

    def judge(found: Tensor, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: rule(found.numpy(), rows) for name, rule in rules.items()}

    return smallest_change(attacked, judge, lambda found, rows: found, n, top=top)


@pytest.mark.parametrize("top", [1, 2, 7, 16, 255, 4095])
def test_a_boundary_is_found_exactly(top: int) -> None:
    wanted = np.unique(np.linspace(1, top, 40).round())
    found = search({FOOL: lambda level, rows: level >= wanted[rows]}, len(wanted), top)
    np.testing.assert_array_equal(found.least[FOOL], wanted)
    assert found.runs.max() <= np.ceil(np.log2(top)) + 1


def test_what_the_attack_leaves_unused_does_not_count() -> None:
    rule = {FOOL: lambda level, rows: level >= 1}
    found = search(rule, 3, 16, spare=9)
    assert (found.least[FOOL] == 1).all()


def test_beyond_the_largest_change_there_is_infinity_and_one_try() -> None:
    found = search({FOOL: lambda level, rows: level > 20}, 4, 16)
    assert np.isinf(found.least[FOOL]).all() and (found.runs == 1).all()


def test_a_guard_that_catches_large_changes_only_is_passed_where_it_does_not() -> None:
    rules = {
        FOOL: lambda level, rows: level >= 3,
        "blind to small": lambda level, rows: level <= 5,
        "blind to large": lambda level, rows: level >= 11,
        "a window": lambda level, rows: (level >= 9) & (level <= 10),
        "closed": lambda level, rows: level < 0,
    }
    found = search(rules, 2, 16).least
    assert (found["blind to small"] == 3).all() and (found["blind to large"] == 11).all()
    assert (found["a window"] == 9).all() and np.isinf(found["closed"]).all()


def test_a_window_between_two_failures_is_found_on_the_ladder() -> None:
    rules = {
        FOOL: lambda level, rows: level >= 3,
        "a window": lambda level, rows: (level >= 9) & (level <= 10),
    }
    assert (search(rules, 2, 16).least["a window"] == 9).all()


def test_nothing_passes_that_does_not_fool() -> None:
    rules = {
        FOOL: lambda level, rows: level >= 6,
        "open": lambda level, rows: level > 0,
    }
    found = search(rules, 1, 16).least
    assert found["open"] == found[FOOL] == 6


def test_each_image_is_searched_by_itself() -> None:
    wanted = np.array([2, 9, 5, 16])

    def of(rows: np.ndarray) -> SmallestChange:
        rule = {FOOL: lambda level, at: level >= wanted[rows][at]}
        return search(rule, len(rows), 16)

    whole = of(np.arange(4)).least[FOOL]
    alone = [of(np.array([i])).least[FOOL][0] for i in range(4)]
    np.testing.assert_array_equal(whole, alone)


def test_levels_are_counted_whole() -> None:
    assert whole_levels(8 / 255, 1 / 255) == 8 and whole_levels(0.05, 1 / 255) == 12
    with pytest.raises(InputError, match="1 level"):
        search({FOOL: lambda level, rows: level > 0}, 1, 0)


def test_on_a_linear_network_it_is_the_distance_to_the_boundary() -> None:
    classifier, step = linear((1, 8), 2), 1 / 1000
    x = (images(12, (1, 8), seed=0) / step).round() * step
    weights = classifier.model.head.weight @ classifier.model.features.weight  # type: ignore[operator,union-attr]
    z = classifier(x).logits.detach()
    distance = (z[:, 0] - z[:, 1]).abs() / (weights[0] - weights[1]).detach().abs().sum()
    source = classifier(x).predicted
    goal, grid = Goal(source, 1 - source), Grid(step)
    ids = [str(i) for i in range(len(x))]

    def attacked(levels: np.ndarray, rows: np.ndarray) -> Tensor:
        threat = Linf(torch.from_numpy(levels * step))
        attack = pgd(threat, steps=5, step_size=1.0, random_start=False)
        names = [ids[i] for i in rows]
        at = torch.from_numpy(rows)
        return attack(classifier, x[at], goal[at], ids=names, grid=grid).adversarial

    def judge(found: Tensor, rows: np.ndarray) -> dict[str, np.ndarray]:
        wanted = goal.target[torch.from_numpy(rows)]
        return {FOOL: (classifier(found).predicted == wanted).numpy()}

    def sizes(found: Tensor, rows: np.ndarray) -> Tensor:
        return Linf(1.0).size(found - x[torch.from_numpy(rows)]) / step

    least = smallest_change(attacked, judge, sizes, len(x), top=200).least[FOOL] * step
    close = distance.numpy() < 0.19
    assert close.sum() >= 4
    assert np.all(np.abs(least - distance.numpy())[close] <= 1.5 * step)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_median_is_not_larger_than_that_of_fmn(seed: int) -> None:
    """Fast minimum-norm (Pintor et al. 2021) of adv-lib, on an unguarded network."""
    attacks = pytest.importorskip("adv_lib.attacks")
    shape, step = (1, 12, 12), 1 / 4096
    classifier = FeatureClassifier(network(shape, 3).float(), ["first"])
    x = (images(40, shape, seed=seed).float() / step).round() * step
    goal = Goal(classifier(x).predicted, (classifier(x).predicted + 1) % 3)
    theirs = attacks.fmn(
        classifier.model, x, goal.target, norm=float("inf"), targeted=True, steps=200
    )
    fooled = classifier(theirs).predicted == goal.target
    sizes = (theirs - x).flatten(1).abs().amax(1).where(fooled, torch.tensor(torch.inf))
    ids = [str(i) for i in range(len(x))]

    def attacked(levels: np.ndarray, rows: np.ndarray) -> Tensor:
        threat = Linf(torch.from_numpy(levels * step).float())
        attack = pgd(threat, objective=Margin(), steps=50, step_size=0.25, decay="cosine")
        at = torch.from_numpy(rows)
        names = [ids[i] for i in rows]
        return attack(classifier, x[at], goal[at], ids=names, grid=Grid(step)).adversarial

    def judge(found: Tensor, rows: np.ndarray) -> dict[str, np.ndarray]:
        wanted = goal.target[torch.from_numpy(rows)]
        return {FOOL: (classifier(found).predicted == wanted).numpy()}

    def change(found: Tensor, rows: np.ndarray) -> Tensor:
        return Linf(1.0).size(found - x[torch.from_numpy(rows)]) / step

    ours = smallest_change(attacked, judge, change, len(x), top=2048).least[FOOL] * step
    assert 0.01 < np.median(ours) < 0.4
    assert np.median(ours) <= float(sizes.quantile(0.5)) * 1.01 + step
