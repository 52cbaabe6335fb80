"""The generated images: labelled synthetic, repeatable, and not solvable by brightness."""

import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from feathide.data import load_cases, phantoms
from feathide.errors import InputError


def test_the_embedded_set() -> None:
    start = time.process_time()
    cases = load_cases("phantoms")
    assert time.process_time() - start < 5
    assert cases.name == "phantoms (synthetic)" and cases.class_names == (
        "clear",
        "opacity",
    )
    assert [len(cases.where(s)) for s in ("train", "val", "test")] == [300, 60, 240]
    assert (cases.shape, cases.channels, cases.step) == ((64, 64), 1, 1 / 255)
    assert 240 < len(set(cases.patients)) < 400  # several images per patient
    assert np.bincount(cases.labels).tolist() == [300, 300]


def test_brightness_alone_does_not_tell_the_class_but_the_lungs_do() -> None:
    cases = load_cases("phantoms")
    train, test = cases.where("train"), cases.where("test")

    def auc(feature) -> float:
        x, y = feature(cases.images(train)[:, 0]), feature(cases.images(test)[:, 0])
        mean, std = x.mean(0), x.std(0)
        model = LogisticRegression(max_iter=1000).fit((x - mean) / std, cases.labels[train])
        return roc_auc_score(cases.labels[test], model.decision_function((y - mean) / std))

    # the brightest soft spot of the lungs against their median
    def lungs(x: np.ndarray) -> np.ndarray:
        field = np.concatenate([x[:, 16:36, 12:24], x[:, 16:36, 40:52]], axis=2).reshape(
            len(x), -1
        )
        return (np.quantile(field, 0.9, axis=1) - np.median(field, axis=1))[:, None]

    assert auc(lambda x: x.mean((1, 2))[:, None]) < 0.7
    assert auc(lungs) > 0.75


def test_same_arguments_same_images() -> None:
    few = {"train": 4, "test": 2}
    assert (
        phantoms(counts=few).digest
        == phantoms(counts=few).digest
        != phantoms(counts=few, seed=1).digest
    )


def test_volumes_colour_and_other_sizes() -> None:
    cases = phantoms(shape=(16, 20, 24), counts={"train": 4, "test": 2})
    assert cases.shape == (16, 20, 24) and cases.images([0]).shape == (1, 1, 16, 20, 24)
    assert len(load_cases("phantoms", limit=4, size=32, channels=3)) == 12
    colour = phantoms(shape=(32, 32), channels=3, counts={"train": 2}).images([1])
    assert colour.shape == (1, 3, 32, 32) and (colour[:, 0] == colour[:, 2]).all()


def test_too_small_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 16"):
        phantoms(shape=(8, 8))
