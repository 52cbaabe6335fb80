"""Holm's correction and the permutation test by patient, against independent computations."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from feathide.errors import InputError
from feathide.metrics.multiplicity import differs, holm


def test_holm_is_the_step_down_method_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03, 0.005]).tolist() == pytest.approx(
        [0.03, 0.04, 0.04, 0.02]
    )
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []
    with pytest.raises(InputError, match="p-values"):
        holm([1.2])


def test_holm_keeps_the_share_of_families_with_a_false_alarm() -> None:
    p = np.random.default_rng(0).random((2000, 20))
    wrong = np.mean([(holm(row) <= 0.05).any() for row in p])
    assert wrong < 0.065


def test_with_one_image_a_patient_it_is_fishers_exact_test() -> None:
    hits = np.array([1] * 14 + [0] * 6 + [1] * 5 + [0] * 25, dtype=bool)
    inside = np.arange(50) < 20
    table = [[14, 6], [5, 25]]
    found = differs(hits, inside, groups=np.arange(50))
    exact = fisher_exact(table).pvalue
    assert exact / 3 < found < 3 * exact + 2e-4


def test_images_of_one_patient_are_no_evidence_of_their_own() -> None:
    """Ten copies of each patient do not make the difference more certain."""
    hits = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0], dtype=bool)
    inside, patients = np.arange(10) < 4, np.arange(10)
    once = differs(hits, inside, groups=patients)
    copied = differs(
        *(np.repeat(a, 10) for a in (hits, inside)), groups=np.repeat(patients, 10)
    )
    alone = differs(*(np.repeat(a, 10) for a in (hits, inside)), groups=np.arange(100))
    assert copied == once
    assert alone < once / 10


def test_under_no_difference_p_is_uniform() -> None:
    rng = np.random.default_rng(1)
    inside = np.arange(60) < 20
    p = [differs(rng.random(60) < 0.4, inside, groups=np.arange(60)) for _ in range(60)]
    assert np.mean(np.array(p) <= 0.2) < 0.35


def test_a_group_of_all_is_refused() -> None:
    with pytest.raises(InputError, match="rest"):
        differs([1, 0], [True, True], groups=[0, 1])
