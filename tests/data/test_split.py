"""Splits by patient: stable, disjoint, independent of each other."""

import numpy as np
import pytest

from feathide.data import by_hash, three_way
from feathide.data.split import thin
from feathide.errors import InputError

PATIENTS = np.array([f"p{i // 3}" for i in range(3000)])


def test_a_patient_has_one_part_and_keeps_it_when_others_come() -> None:
    part = three_way(PATIENTS)
    assert all(len(set(part[p == PATIENTS])) == 1 for p in ("p0", "p1", "p999"))
    order = np.random.default_rng(0).permutation(len(PATIENTS))
    np.testing.assert_array_equal(
        three_way(np.concatenate([PATIENTS[order], ["new"]]))[:-1], part[order]
    )
    assert (three_way(PATIENTS, seed=1) != part).any()


def test_parts_have_the_wanted_sizes() -> None:
    part = three_way(PATIENTS, fractions=(0.5, 0.2, 0.3))
    shares = [(part == p).mean() for p in ("detector-training", "calibration", "test")]
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.05)


def test_a_second_split_of_the_test_patients_is_independent_of_the_first() -> None:
    first = by_hash(PATIENTS, {"train": 0.7, "val": 0.1, "test": 0.2})
    part = three_way(PATIENTS[first == "test"])
    np.testing.assert_allclose(
        [(part == p).mean() for p in ("detector-training", "calibration", "test")],
        [0.4, 0.2, 0.4],
        atol=0.12,
    )


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(InputError, match=r"nobody in .* of 1; "):
        three_way(["a", "a", "a"])
    with pytest.raises(InputError, match="sum to 1"):
        three_way(PATIENTS, fractions=(0.5, 0.5, 0.5))


def test_a_limit_keeps_every_class_of_every_split() -> None:
    labels, splits = np.array(([0] * 90 + [1] * 10) * 2), np.repeat(["train", "test"], 100)
    rows = thin(labels, splits, limit=20)
    for split in ("train", "test"):
        kept = labels[rows][splits[rows] == split]
        assert np.bincount(kept).tolist() == [18, 2]
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, thin(labels, splits, limit=20))
    assert (rows != thin(labels, splits, limit=20, seed=1)).any()
    assert (
        len(thin(labels, splits, limit=None)) == 200
        and len(thin(labels, splits, limit=2)) == 4
    )
