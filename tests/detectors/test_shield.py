"""Shield: logits that do not agree with the shallow layers."""

from dataclasses import replace

import pytest
import torch

from feathide.checks.worlds import evidence, sample
from feathide.detectors.shield import Shield
from feathide.errors import InputError
from feathide.metrics.roc import auc
from feathide.types import Outputs


def test_logits_that_follow_from_shallow_layers_are_explained() -> None:
    e = evidence()
    early = e.train.features["early"]
    explained = replace(e.train, logits=torch.stack([early[:, 2], -early[:, 2]], 1))
    other = sample(100, seed=8)
    seen = other.features["early"][:, 2]
    detector = Shield().fit(replace(e, train=explained))
    as_usual = replace(other, logits=torch.stack([seen, -seen], 1))
    moved = replace(other, logits=torch.stack([seen + 1, -seen - 1], 1))
    assumed = torch.arange(100) % 2
    scores = [
        detector.score(replace(out, assumed=assumed)).numpy() for out in (as_usual, moved)
    ]
    assert auc(*scores) > 0.95


def test_it_reads_the_first_third_of_the_layers_only() -> None:
    e, detector = evidence(), Shield().fit(evidence())
    out = sample(10, seed=9)
    late = replace(out, features={**out.features, "late": 0 * out.features["late"]})
    assert torch.equal(detector.score(out), detector.score(late))
    assert not torch.equal(detector.score(out), Shield(layers="all").fit(e).score(out))


def test_only_clean_training_images_teach_it_and_a_shift_of_all_logits_is_nothing() -> None:
    e, out = evidence(), sample(10, seed=10)
    shuffled = replace(e, adversarial=e.clean, noisy=e.clean)
    assert torch.equal(Shield().fit(e).score(out), Shield().fit(shuffled).score(out))
    moved = replace(out, logits=out.logits + 3)
    torch.testing.assert_close(
        Shield().fit(e).score(out), Shield().fit(e).score(moved), atol=1e-9, rtol=0
    )


def test_unfitted_and_unwatched_are_said() -> None:
    with pytest.raises(InputError, match="fitted"):
        Shield().score(sample(4, seed=0))
    with pytest.raises(InputError, match="layer"):
        Shield().fit(replace(evidence(), train=Outputs(evidence().train.logits, {})))
