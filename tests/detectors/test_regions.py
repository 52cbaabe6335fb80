"""Detectors of dense networks: per region, and on voxels."""

from functools import cache

import pytest
import torch

from feathide.attacks import Linf, pgd
from feathide.detectors import DETECTORS, Detector
from feathide.detectors.regions import PerRegion
from feathide.errors import InputError
from feathide.goals import LowerDice
from feathide.losses.dense import MaskedCrossEntropy
from feathide.types import Evidence, Outputs
from worlds import dense

SHAPE = (14, 12)
IMAGES = 40


@cache
def evidence() -> Evidence:
    classifier = dense.small(SHAPE, dropout_samples=4)
    x = dense.blobs(SHAPE, 2 * IMAGES)
    train, x = x[:IMAGES], x[IMAGES:]
    out = classifier.extract(x)
    wish = LowerDice(1, to=0.1)
    rows = wish.applies(out.predicted)
    x = x[rows]
    goal = wish.goal(out.predicted[rows])
    ids = [str(i) for i in range(len(x))]
    found = pgd(Linf(0.1), steps=5, objective=MaskedCrossEntropy())(
        classifier, x, goal, ids=ids
    )
    noisy = (
        x + 0.02 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    ).clamp(0, 1)
    reference = classifier.extract(train)
    return Evidence(
        reference,
        reference.normal_class,
        *[classifier.extract(v) for v in (x, noisy, found.adversarial)],
    )


DENSE = ["kd", "bu", "kd+bu", "lid", "maha", "svm", "dnn", "knn", "msp", "energy", "joint"]


@pytest.mark.parametrize("name", [n for n in DENSE if n in DETECTORS])
def test_detectors_of_classifiers_guard_dense_networks(name: str) -> None:
    known = evidence()
    detector = DETECTORS[name]().fit(known)
    clean, wild = detector.score(known.clean), detector.score(known.adversarial)
    assert clean.shape == (len(known.clean),) and clean.isfinite().all()
    rows = torch.tensor([3, 1])
    assert torch.allclose(detector.score(known.clean[rows]), clean[rows], atol=1e-6)
    if name not in ("msp", "energy"):
        assert wild.mean() > clean.mean()


@pytest.mark.parametrize("name", ["bu-logit", "feature-squeezing"])
def test_detectors_of_one_answer_an_image_say_so(name: str) -> None:
    make = DETECTORS.get(name) or next(m for n, m in DETECTORS.items() if "squeez" in n)
    with pytest.raises(InputError, match="guards networks with one answer an image"):
        make().fit(evidence())


def test_a_score_is_the_largest_over_the_regions_that_an_image_has() -> None:
    known = evidence()
    detector = PerRegion().fit(known)
    each = detector.regional(known.clean)
    assert {"whole", "a", "rest"} <= set(each)
    stacked = torch.stack(list(each.values()), 1)
    assert torch.allclose(
        detector.score(known.clean), stacked.nan_to_num(-torch.inf).amax(1)
    )


def without(out: Outputs, region: str) -> Outputs:
    features = {
        n: torch.full_like(f, torch.nan) if n.endswith(f"@{region}") else f
        for n, f in out.features.items()
    }
    return Outputs(out.logits, features, uncertainty=out.uncertainty)


def test_an_image_without_a_region_has_no_score_there() -> None:
    known = evidence()
    detector = PerRegion().fit(known)
    lacking = without(known.clean, "a")
    each = detector.regional(lacking)
    assert each["a"].isnan().all() and not each["rest"].isnan().any()
    assert detector.score(lacking).isfinite().all()


def test_a_region_that_too_few_images_have_is_left_out_and_named() -> None:
    known = evidence()
    less = Evidence(
        known.train,
        known.train_labels,
        known.clean,
        known.noisy,
        without(known.adversarial, "a"),
    )
    detector: Detector = PerRegion().fit(less)
    assert isinstance(detector, PerRegion) and "a" in detector.left_out
    assert "a" not in detector.regional(known.clean)
