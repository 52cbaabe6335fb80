"""Law A3: on a linear classifier the least perturbation is known in closed form; attacks succeed
just above it and fail just below.
"""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from feathide.attacks import presets as recipes
from feathide.attacks.result import AttackResult
from feathide.attacks.threats import L2, Linf
from feathide.catalog import ATTACKS
from feathide.checks.worlds import SHAPES, images
from feathide.losses import DLR, AwayFrom, CrossEntropy, Margin, Objective
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal
from worlds.classifiers import THREATS

HEADS = [1, 2, 3, 5]
EXACT = ["fgsm", "bim", "pgd", "mim", "cw", "apgd", "apgd-dlr", "standard"]
WISHES: dict[str, Objective] = {
    "cross-entropy": CrossEntropy(),
    "margin": Margin(),
    "dlr": DLR(),
    "away": AwayFrom(),
    "away margin": AwayFrom("margin"),
}


@cache
def linear(
    shape: tuple[int, ...], outputs: int, norm: str
) -> tuple[FeatureClassifier, Tensor, Goal, Tensor]:
    """A linear classifier, four images whose next class but one is far, the nearest other class
    of each and the distance to it.

    The boundary between the classes y and j lies at (z_y - z_j) / ||w_y - w_j||, in the dual
    norm: L1 for L-infinity, L2 for L2."""
    x = 0.5 + 0.2 * (images(200, shape, seed=6) - 0.5)
    random = torch.Generator().manual_seed(8)
    layer = nn.Linear(x[0].numel(), outputs).double().requires_grad_(False)
    layer.weight.copy_(
        300 * torch.randn(layer.weight.shape, generator=random, dtype=torch.float64)
    )
    layer.bias.copy_(-0.5 * layer.weight.sum(1))
    model = nn.Sequential(nn.Flatten(), layer).eval()
    classifier = FeatureClassifier(model, (), head="sigmoid" if outputs == 1 else "softmax")
    weight = (
        layer.weight
        if outputs > 1
        else torch.cat([torch.zeros_like(layer.weight), layer.weight])
    )  # of the two logits (0, z)
    z = classifier.extract(x).logits
    source = z.argmax(1)
    gap = z.gather(1, source[:, None]) - z  # (N, K)
    # (N, K)
    slope = (weight[source][:, None] - weight).norm(p=1 if norm == "linf" else 2, dim=2)
    radius = (gap / slope).scatter(1, source[:, None], float("inf"))
    nearest = radius.sort(1).values
    unsaturated = (
        gap.scatter(1, source[:, None], float("inf")).amin(1) < 30
    )  # beyond, log softmax(z)_y has no gradient left
    rows = (unsaturated & (nearest[:, 1] > 2 * nearest[:, 0])).nonzero()[:4, 0]
    # the box does not matter
    assert len(rows) == 4 and float(nearest[rows, 0].max()) < 0.25
    return classifier, x[rows], Goal(source[rows], radius[rows].argmin(1)), nearest[rows, 0]


def attacked(
    name: str,
    shape: tuple[int, ...],
    outputs: int,
    norm: str,
    share: float,
    **fields: object,
) -> AttackResult:
    classifier, x, goal, radius = linear(shape, outputs, norm)
    few = {"queries": 20} if name == "standard" else {}
    return ATTACKS[name](THREATS[norm](share * radius), **{"steps": 40, **few, **fields})(
        classifier, x, goal, ids="abcd"
    )


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("outputs", HEADS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EXACT)
def test_a3_finds_the_nearest_boundary(
    name: str, shape: tuple[int, ...], outputs: int, norm: str
) -> None:
    assert attacked(name, shape, outputs, norm, 1.05).fooled.tolist() == [True] * 4


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("outputs", HEADS)
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "square"])
def test_a3_claims_nothing_below_it(name: str, outputs: int, norm: str) -> None:
    assert attacked(name, (3, 7, 6), outputs, norm, 0.95).fooled.tolist() == [False] * 4


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("outputs", [2, 3, 5])
@pytest.mark.parametrize("wish", WISHES)
def test_a3_with_every_wish(wish: str, outputs: int, norm: str) -> None:
    fields = {"objective": WISHES[wish]}
    assert (
        attacked("pgd", (3, 7, 6), outputs, norm, 1.05, **fields).fooled.tolist()
        == [True] * 4
    )
    assert (
        attacked("pgd", (3, 7, 6), outputs, norm, 0.95, **fields).fooled.tolist()
        == [False] * 4
    )


@pytest.mark.parametrize(("norm", "share"), [("linf", 1.05), ("l2", 1.4)])
@pytest.mark.parametrize("shape", [(1, 8), (1, 3, 3), (1, 2, 3, 2)])
def test_a3_random_search_finds_it_without_gradients(
    shape: tuple[int, ...], norm: str, share: float
) -> None:
    classifier, x, goal, radius = linear(shape, 3, norm)
    found = recipes.square(THREATS[norm](share * radius), queries=600)(
        classifier, x, goal, ids="abcd"
    )
    assert found.fooled.tolist() == [True] * 4 and found.gradients.tolist() == [0] * 4
    below = recipes.square(THREATS[norm](0.95 * radius), queries=100)(
        classifier, x, goal, ids="abcd"
    )
    assert below.fooled.tolist() == [False] * 4


def test_a3_noise_is_far_weaker_than_an_attack() -> None:
    found = attacked("noise", (3, 7, 6), 3, "linf", 1.5)
    assert not bool(found.fooled.any())


def test_the_least_perturbation_is_the_textbook_one() -> None:
    """Two logits (0, z) with z = 3 x_1 + 4 x_2 - 5: distance |z| / 7 in L-infinity and |z| / 5 in
    L2.
    """
    layer = nn.Linear(2, 1).double().requires_grad_(False)
    layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
    layer.bias.fill_(-5.0)
    classifier = FeatureClassifier(
        nn.Sequential(nn.Flatten(), layer).eval(), (), head="sigmoid"
    )
    x = torch.full((1, 1, 2), 0.5, dtype=torch.float64)  # z = -1.5
    goal = Goal(torch.tensor([0]), torch.tensor([1]))
    for ball, distance in ((Linf, 1.5 / 7), (L2, 1.5 / 5)):
        for share, success in ((1.001, True), (0.999, False)):
            found = recipes.bim(ball(share * distance), steps=40)(
                classifier, x, goal, ids=["a"]
            )
            assert found.fooled.item() is success
