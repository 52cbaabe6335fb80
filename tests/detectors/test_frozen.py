"""A guard as it is shipped learns nothing, keeps its threshold, and shows its gradient."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from feathide.checks.worlds import images, network
from feathide.detectors.frozen import Answer, FrozenGuard
from feathide.errors import InputError
from feathide.execution.packing import packed, unpacked
from feathide.models.classifier import FeatureClassifier
from feathide.types import Evidence, Outputs

SHAPES = [(1, 9), (3, 7, 6), (1, 5, 4, 3)]


def roughness(x: Tensor, logits: Tensor) -> Tensor:
    """Differences of neighbours, and how sure the classifier is."""
    return x.diff(dim=-1).square().flatten(1).mean(1) + 0.01 * logits.softmax(1).amax(1)


def frozen(name: str, answer: Answer, *more: Any, **fields: Any) -> FrozenGuard:
    return FrozenGuard(answer, name, *more, **fields)


GUARD = frozen("rough", roughness, threshold=0.2, reads_logits=True)


def watched(shape: tuple[int, ...], guard: FrozenGuard = GUARD) -> FeatureClassifier:
    return FeatureClassifier(network(shape, 3), ["first"], guards={guard.name: guard.look})


@pytest.mark.parametrize("shape", SHAPES)
def test_each_image_alone_decides_its_score(shape: tuple[int, ...]) -> None:
    classifier, x = watched(shape), images(5, shape, seed=0)
    whole = GUARD.score(classifier(x))
    alone = torch.cat([GUARD.score(classifier(x[i : i + 1])) for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole, roughness(x, classifier(x).logits))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_that_of_the_guard_down_to_the_pixels(
    shape: tuple[int, ...],
) -> None:
    classifier, x = watched(shape), images(2, shape, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: GUARD.score(classifier(v)), x)


def test_nothing_is_learnt() -> None:
    out = watched((1, 9))(images(6, (1, 9), seed=2)).detach()
    labels = torch.arange(6) % 3
    fitted = GUARD.fit(Evidence(out, labels, out, out, out))
    assert torch.equal(fitted.score(out), GUARD.score(out))
    assert fitted.own_threshold == GUARD.own_threshold == 0.2


def test_a_guard_whose_high_answers_are_normal_is_turned_with_its_threshold() -> None:
    x, logits = images(40, (1, 9), seed=3), torch.zeros(40, 2).double()
    turned = frozen(
        "quality", lambda v, z: 1 - roughness(v, z), threshold=0.9, higher="normal"
    )
    rejects = (1 - roughness(x, logits)) < 0.9
    assert 0 < int(rejects.sum()) < 40
    assert torch.equal(turned.look(x, logits) > turned.own_threshold, rejects)


@pytest.mark.parametrize("higher", ["suspicious", "normal"])
def test_verdicts_need_no_threshold(higher: str) -> None:
    x, logits = images(8, (1, 9), seed=4), torch.zeros(8, 2).double()
    said = x.flatten(1).mean(1) > x.mean()
    guard = frozen("verdict", lambda v, z: said, higher=higher)
    flagged = guard.look(x, logits) > guard.own_threshold
    assert torch.equal(flagged, said if higher == "suspicious" else ~said)


def test_the_score_is_stored_beside_the_outputs() -> None:
    other = frozen("other, (with=brackets)", lambda x, z: x.flatten(1).sum(1), 1.0)
    both = {g.name: g.look for g in (GUARD, other)}
    classifier = replace(watched((1, 9)), guards=both)
    out = classifier(images(4, (1, 9), seed=5)).detach()
    again = Outputs.cat([unpacked(packed(out, np.arange(4)))[:2], out[2:]])
    for guard in (GUARD, other):
        assert torch.equal(guard.score(again), guard.score(out))


def test_the_images_of_the_caller_are_untouched() -> None:
    def greedy(x: Tensor, logits: Tensor) -> Tensor:
        return x.mul_(0).flatten(1).sum(1)

    x = images(3, (1, 9), seed=6)
    before = x.clone()
    watched((1, 9), frozen("greedy", greedy, 0.0))(x)
    assert torch.equal(x, before)


def broken(x: Tensor, logits: Tensor) -> Tensor:
    raise RuntimeError("no licence")


@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        (frozen("g", lambda x, z: x.flatten(1).mean(1)), "own threshold"),
        (frozen("g", lambda x, z: x.flatten(1), 0.5), "one number for each of 3"),
        (frozen("g", lambda x, z: x.mean(), 0.5), "one number for each of 3"),
        (frozen("g", lambda x, z: "accept", 0.5), "must give a tensor or an array"),
        (frozen("g", broken, 0.5), "RuntimeError: no licence"),
        (
            frozen("g", lambda x, z: x.flatten(1).sum(1) / 0 * 0, 0.5),
            "must be finite for g",
        ),
    ],
)
def test_what_a_guard_does_wrong_is_one_sentence(guard: FrozenGuard, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        guard.score(watched((1, 9), guard)(images(3, (1, 9), seed=7)))


def test_a_score_that_was_not_asked_for_is_missed_by_name() -> None:
    with pytest.raises(InputError, match="guard rough"):
        GUARD.score(Outputs(torch.zeros(2, 2), {}))
    for wrong in ({"threshold": "high"}, {"higher": "up"}):
        with pytest.raises(InputError):
            frozen("g", roughness, **wrong)  # type: ignore[arg-type]
