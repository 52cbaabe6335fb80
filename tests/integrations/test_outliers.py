"""Our detectors as scikit-learn outlier detectors, and scikit-learn's and pytorch-ood's detectors
as ours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from feathide.detectors import (
    Detector,
    KernelDensity,
    LocalDimension,
    Mahalanobis,
    NearestNeighbours,
)
from feathide.errors import InputError
from feathide.integrations import OutlierDetector, PytorchOODDetector, SklearnDetector
from feathide.types import Evidence, Outputs


@parametrize_with_checks(
    [
        OutlierDetector(),
        OutlierDetector(KernelDensity()),
        OutlierDetector(Mahalanobis(combine="mean")),
        OutlierDetector(NearestNeighbours(neighbours=3, unit_length=False)),
        OutlierDetector(LocalDimension(neighbours=3, combine="mean")),
    ]
)
def test_scikit_learns_own_checks(
    estimator: BaseEstimator, check: Callable[[BaseEstimator], None]
) -> None:
    check(estimator)


def test_the_scores_are_those_of_the_detector() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    guard = OutlierDetector(KernelDensity(bandwidth=0.7), contamination=0.2).fit(x)
    kept = x[np.arange(40) % 4 != 3]
    distances = ((x[:, None] - kept) ** 2).sum(2)
    density = np.exp(-distances / (2 * 0.7**2)).mean(1) / (2 * np.pi * 0.7**2) ** 1.5
    assert np.allclose(guard.score_samples(x), np.log(density))
    assert (guard.predict(x) == -1).sum() == 8
    assert np.array_equal(guard.decision_function(x) < 0, guard.predict(x) == -1)
    far = make_pipeline(StandardScaler(), OutlierDetector()).fit(x).predict(x + 9)
    assert (far == -1).all()


def test_contamination_is_checked() -> None:
    with pytest.raises(InputError, match=r"contamination must be in \(0, 0.5\]"):
        OutlierDetector(contamination=0.7).fit(np.zeros((20, 2)))


def outputs(n: int, *, seed: int, strange: bool = False) -> Outputs:
    """Two classes, two layers; strange ones are far off in the early layer only, and unsure in
    their logits.
    """
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    early, late = (
        torch.randn((n, c), generator=random, dtype=torch.float64) for c in (3, 4)
    )
    early[:, 0] += 8.0 * strange
    late[:, 0] += 6.0 * label
    logits = torch.randn((n, 2), generator=random, dtype=torch.float64) * (
        0.1 if strange else 1.0
    )
    logits[torch.arange(n), label] += 0.0 if strange else 6.0
    return Outputs(logits, {"early": early, "late": late})


TRAIN = outputs(120, seed=0)
EVIDENCE = Evidence(
    TRAIN,
    torch.arange(120) % 2,
    outputs(40, seed=1),
    outputs(40, seed=2),
    outputs(40, seed=3, strange=True),
)
CLEAN, STRANGE = outputs(50, seed=4), outputs(50, seed=5, strange=True)


def auc(detector: Detector) -> float:
    scores = torch.cat([detector.score(CLEAN), detector.score(STRANGE)])
    assert scores.shape == (100,)
    assert scores.dtype == torch.float64
    rows = torch.tensor([70, 3, 41])
    assert torch.allclose(
        detector.score(Outputs.cat([CLEAN, STRANGE])[rows]),
        scores[rows],
        rtol=1e-5,
        atol=1e-6,
    )
    return float(roc_auc_score([0] * 50 + [1] * 50, scores.numpy()))


FOREST = IsolationForest(n_estimators=30, random_state=0)


@pytest.mark.parametrize(
    "estimator",
    [
        FOREST,
        OneClassSVM(gamma="scale"),
        LocalOutlierFactor(novelty=True),
        RandomForestClassifier(n_estimators=20, random_state=0),
        make_pipeline(StandardScaler(), IsolationForest(n_estimators=30, random_state=0)),
        OutlierDetector(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_scikit_learn_detectors(estimator: Any) -> None:
    detector = SklearnDetector(estimator, layers="all")
    assert auc(detector.fit(EVIDENCE)) > 0.9
    assert detector.name == type(estimator).__name__.lower()
    with pytest.raises(InputError, match="fitted"):
        detector.score(CLEAN)


def test_scikit_learn_detectors_see_the_layers_they_are_given() -> None:
    late = SklearnDetector(FOREST, layers="late", name="forest").fit(EVIDENCE)
    assert auc(late) < 0.7
    assert late.name == "forest"
    direct = IsolationForest(n_estimators=30, random_state=0).fit(
        TRAIN.features["late"].numpy()
    )
    assert np.allclose(
        late.score(CLEAN).numpy(), -direct.score_samples(CLEAN.features["late"].numpy())
    )


def test_what_gives_no_score_is_refused() -> None:
    with pytest.raises(InputError, match="novelty=True"):
        SklearnDetector(LocalOutlierFactor())
    with pytest.raises(InputError, match="feature maps"):
        PytorchOODDetector(IsolationForest())


def test_pytorch_ood_detectors() -> None:
    ood = pytest.importorskip("pytorch_ood.detector", reason="needs pytorch-ood")
    early, late = (
        PytorchOODDetector(ood.Mahalanobis(None), layer=name).fit(EVIDENCE)
        for name in ("early", "late")
    )
    assert auc(early) > 0.97
    assert auc(late) < 0.7
    with pytest.raises(InputError, match="fitted"):
        PytorchOODDetector(ood.Mahalanobis(None)).score(CLEAN)
    ours = NearestNeighbours(neighbours=5).fit(EVIDENCE)
    theirs = PytorchOODDetector(ood.KNN(None, k=5)).fit(EVIDENCE)
    assert torch.allclose(theirs.score(CLEAN), ours.score(CLEAN), atol=1e-6)
    for theirs in (ood.MaxSoftmax(None), ood.EnergyBased(None)):
        assert auc(PytorchOODDetector(theirs).fit(EVIDENCE)) > 0.97
    softmax = PytorchOODDetector(ood.MaxSoftmax(None)).fit(EVIDENCE)
    assert torch.allclose(softmax.score(CLEAN), -CLEAN.logits.softmax(1).amax(1), atol=1e-6)
    assert softmax.name == "maxsoftmax"
