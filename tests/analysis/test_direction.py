"""The fixed direction: the closed form against autograd, and the similarities where the answer is
known.
"""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from feathide.analysis.direction import (
    Trail,
    between_images,
    check_head,
    cosine,
    head_weights,
    iterates_agree,
    penultimate_gradient,
    steps_agree,
)
from feathide.attacks.presets import bim, dim, pgd
from feathide.attacks.threats import L2, Linf
from feathide.errors import InputError
from feathide.losses import CrossEntropy
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal
from worlds.linear import SHAPES, Linear, images, linear

# outputs of the network, its head, classes as shown
HEADS: dict[str, tuple[int, str | tuple[str, int], int]] = {
    "binary": (2, "softmax", 2),
    "five classes": (5, "softmax", 5),
    "sigmoid": (1, "sigmoid", 2),
    "one finding": (4, ("finding", 2), 2),
}


@pytest.mark.parametrize("outputs, head, classes", HEADS.values(), ids=HEADS)
def test_closed_form_is_the_gradient(
    outputs: int, head: str | tuple[str, int], classes: int
) -> None:
    classifier = linear((1, 6, 5), outputs, head=head)
    x = images(7, (1, 6, 5))
    out = classifier(x).detach()
    target = torch.arange(7) % classes
    v = out.last.detach().requires_grad_()
    raw = classifier.model.head(v)
    z = (
        raw
        if head == "softmax"
        else torch.stack([torch.zeros(7), raw[:, 0 if head == "sigmoid" else 2]], 1)
    )
    (want,) = torch.autograd.grad(F.cross_entropy(z, target, reduction="sum"), v)
    got = penultimate_gradient(out.logits, target, head_weights(classifier))
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)
    check_head(out, head_weights(classifier))


def test_two_classes_are_the_difference_of_weights() -> None:
    """dJ/dv = (1 - p_t) (w_{1-t} - w_t)."""
    classifier = linear((1, 6, 5), 2)
    out, w = classifier(images(6, (1, 6, 5))), head_weights(classifier)
    t = torch.arange(6) % 2
    p = out.logits.softmax(1).gather(1, t[:, None])
    assert torch.allclose(
        penultimate_gradient(out.logits, t, w), (1 - p) * (w[1 - t] - w[t])
    )


def test_a_layer_that_is_not_the_input_of_the_head_is_refused() -> None:
    model = Linear((1, 6), 2).double().eval()
    model.features = (
        torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU()).double().eval()
    )
    classifier = FeatureClassifier(model, ["features.0"])
    with pytest.raises(InputError, match="'last'"):
        check_head(classifier.extract(images(20, (1, 6)) - 0.5), head_weights(classifier))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2)], ids=["linf", "l2"])
def test_on_a_linear_network_all_changes_have_one_direction(
    shape: tuple[int, ...], threat: Linf | L2
) -> None:
    """Two classes: the gradient in the image is one vector for all images, so steps, images and
    attacks agree exactly.
    """
    classifier = linear(shape, 2)
    x = images(4, shape)
    goal = Goal(torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long))
    clean = classifier(x).detach().last
    ends = []
    for make in (bim, pgd):
        attack = make(threat, steps=10, step_size=0.05)
        trail = Trail.over(attack, 4)
        attack(classifier, x, goal, ids=list("abcd"), watch=trail)
        change = trail.features["features"].double() - clean
        assert change.shape == (8, 4, 5) and not change.isnan().any()
        ends.append(change)
    schedule = ends[0]
    assert torch.allclose(iterates_agree(schedule), torch.ones(4).double(), atol=1e-5)
    assert torch.allclose(steps_agree(schedule), torch.ones(4).double(), atol=1e-5)
    alike = between_images(schedule[-1], np.array(list("wxyz")), np.zeros(4))
    assert abs(alike.value - 1) < 1e-5 and alike.n == 4


def test_watching_changes_nothing_and_sees_what_is_judged() -> None:
    """Also with a random view, where what is differentiated is not what is judged."""
    shape = (3, 7, 6)
    classifier, x = linear(shape, 3), images(3, shape)
    goal = Goal(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
    for attack in (pgd(Linf(0.05), steps=6), dim(Linf(0.05), steps=6, p=1.0)):
        seen: dict[int, torch.Tensor] = {}

        def watch(
            k: int, rows: torch.Tensor, out: object, seen: dict[int, torch.Tensor] = seen
        ) -> None:
            seen[k] = out.logits  # type: ignore[attr-defined]

        watched = attack(classifier, x, goal, ids=list("abc"), watch=watch)
        plain = attack(classifier, x, goal, ids=list("abc"))
        assert torch.equal(watched.adversarial, plain.adversarial)
        assert list(seen) == list(range(7)) and not any(
            v.requires_grad for v in seen.values()
        )
        losses = torch.stack(
            [F.cross_entropy(z, goal.target, reduction="none") for z in seen.values()]
        )
        assert torch.allclose(losses, plain.trace, atol=1e-9)


def test_similarities_are_the_loops() -> None:
    trail = torch.randn(
        (5, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    whole = torch.cat([torch.zeros(1, 3, 4).double(), trail])
    steps = whole[1:] - whole[:-1]
    want = torch.stack(
        [cosine(steps[i], steps[j]) for i, j in combinations(range(5), 2)]
    ).mean(0)
    assert torch.allclose(steps_agree(trail), want)
    assert torch.allclose(
        iterates_agree(trail),
        torch.stack([cosine(t, trail[-1]) for t in trail[:-1]]).mean(0),
    )
    change, patients, kinds = trail.flatten(0, 1), np.arange(15) // 2, np.arange(15) % 2
    pairs = [
        (i, j)
        for i, j in combinations(range(15), 2)
        if patients[i] != patients[j] and kinds[i] == kinds[j]
    ]
    want_images = float(
        torch.stack([cosine(change[i], change[j]) for i, j in pairs]).mean()
    )
    found = between_images(change, patients, kinds)
    assert abs(found.value - want_images) < 1e-12
    assert found.low <= found.value <= found.high


def test_unrelated_changes_have_no_direction() -> None:
    change = torch.randn((60, 200), generator=torch.Generator().manual_seed(1))
    found = between_images(change, np.arange(60), np.zeros(60))
    assert found.low < 0.01 and abs(found.value) < 0.01


def test_trail_keeps_its_marks_also_for_images_that_left() -> None:
    shape = (1, 8)
    classifier, x = linear(shape, 2), images(3, shape)
    attack = bim(Linf(0.5), steps=20, leave=lambda margin, hide: margin > 0)
    trail = Trail.over(attack, 3)
    source = classifier(x).predicted
    attack(classifier, x, Goal(source, 1 - source), ids=list("abc"), watch=trail)
    assert (
        trail.marks == tuple(sorted(set(trail.marks)))
        and trail.marks[-1] == 20
        and 0 not in trail.marks
    )
    assert isinstance(attack.objective, CrossEntropy)
