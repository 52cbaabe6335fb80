"""Law M1 and the other conformance checks of the reported numbers: they agree with references,
and their intervals hold what they say.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm, spearmanr
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    roc_auc_score,
    roc_curve,
)

from feathide.errors import InputError
from feathide.metrics import by_patient, intervals
from feathide.metrics import statistics as metrics

scores = st.lists(st.integers(-4, 4), min_size=1, max_size=30)  # few values: many ties


def labelled(negatives, positives):
    return np.repeat([0, 1], [len(negatives), len(positives)]), np.concatenate(
        [negatives, positives]
    )


@given(scores, scores)
def test_areas_equal_scikit_learn_with_ties(negatives, positives):
    labels, values = labelled(negatives, positives)
    assert metrics.auc(negatives, positives) == pytest.approx(
        roc_auc_score(labels, values), abs=1e-12
    )
    assert metrics.aupr(negatives, positives) == pytest.approx(
        average_precision_score(labels, values), abs=1e-12
    )
    false_alarms, caught, _ = roc_curve(labels, values, drop_intermediate=False)
    assert metrics.fpr95(negatives, positives) == pytest.approx(
        false_alarms[caught >= 0.95 - 1e-9][0], abs=1e-12
    )


@given(scores, scores)
def test_auc_sees_only_the_order(negatives, positives):
    neg, pos = np.array(negatives, float), np.array(positives, float)
    area = metrics.auc(neg, pos)
    for rising in (
        lambda v: v + 1e9,
        lambda v: v * 1e-6,
        np.exp,
        lambda v: v**3,
        lambda v: np.float32(20 + v),
    ):
        assert metrics.auc(rising(neg), rising(pos)) == area
    assert metrics.auc(pos, neg) == pytest.approx(1 - area, abs=1e-12)
    assert metrics.auc(-neg, -pos) == pytest.approx(1 - area, abs=1e-12)


def test_auc_of_large_separated_scores_is_one_and_of_infinities_is_ranked():
    assert metrics.auc([20.0, 30.0], [60.0, 70.0]) == 1.0
    assert metrics.auc([-np.inf, 0.0], [0.0, np.inf]) == 0.875


@given(scores, st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.29, 0.5, 0.9]))
def test_threshold_is_the_smallest_that_flags_at_most_the_rate(negatives, fpr):
    cut = metrics.threshold(negatives, fpr)
    assert metrics.tpr_at(negatives, cut) <= fpr + 1e-9
    lower = [v for v in negatives if v < cut]
    assert not lower or metrics.tpr_at(negatives, max(lower)) > fpr
    assert metrics.tpr_at(negatives, np.nextafter(cut, -np.inf)) > fpr


def test_threshold_counts_in_spite_of_rounding():
    for n in (10, 30, 70, 100, 300):
        for percent in range(1, 100):
            k = percent * n // 100
            assert metrics.threshold(np.arange(n), percent / 100) == n - 1 - k


def test_new_negatives_are_flagged_as_the_threshold_promises():
    rng = np.random.default_rng(0)
    n, fpr = 100, 0.1
    flagged = norm.sf([metrics.threshold(rng.normal(size=n), fpr) for _ in range(3000)])
    assert np.mean(flagged) == pytest.approx(11 / 101, abs=0.002)
    assert metrics.enough(n, fpr) and not metrics.enough(n - 1, fpr)
    assert np.mean((flagged > fpr / 2) & (flagged < 2 * fpr)) > 0.95
    law = beta(11, 90)
    assert np.quantile(flagged, [0.1, 0.9]) == pytest.approx(law.ppf([0.1, 0.9]), abs=0.005)


def test_a_threshold_counts_images_and_not_their_scores():
    for fpr, needed in ((0.1, 100), (0.05, 200), (0.01, 1000)):
        assert metrics.cases_needed(fpr) == needed
        assert metrics.enough(needed, fpr) and not metrics.enough(needed - 1, fpr)
    assert metrics.independent("calibration", 100, 100) == (100, "100 calibration images")
    assert metrics.independent("calibration", 100, 20) == (
        20,
        "100 calibration images of 20 patients",
    )
    scores = np.random.default_rng(0).normal(size=30)
    twice, patients = np.tile(scores, 2), np.tile(np.arange(30), 2)
    alone, grouped = (
        metrics.uncertain_threshold(scores, 0.1),
        metrics.uncertain_threshold(twice, 0.1, groups=patients),
    )
    apart = metrics.uncertain_threshold(twice, 0.1)
    assert alone.value == grouped.value == metrics.threshold(scores, 0.1)
    assert (alone.others == grouped.others).all() and (alone.shares == grouped.shares).all()
    assert apart.shares.max() > grouped.shares.max()  # sixty images would be surer


def test_a_share_at_a_sure_threshold_has_the_interval_of_a_share():
    rng = np.random.default_rng(1)
    scores, patients = rng.normal(size=80), rng.integers(30, size=80)
    sure = metrics.UncertainThreshold(1.0, np.array([1.0]))
    plain, found = (
        metrics.proportion(scores > 1, groups=patients),
        metrics.share_at(sure, lambda t: scores > t, groups=patients),
    )
    assert (found.value, found.n) == (plain.value, plain.n)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-9)
    for hits in (np.zeros(20, bool), np.ones(20, bool)):
        plain, found = (
            metrics.proportion(hits),
            metrics.share_at(sure, lambda t, hits=hits: hits),
        )
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-9)


def test_few_calibrate_cases_leave_the_share_open_and_many_do_not():
    rng = np.random.default_rng(2)
    test = rng.normal(size=400)

    def interval(n, fpr):
        return metrics.share_at(
            metrics.uncertain_threshold(rng.normal(size=n), fpr), lambda t: test > t
        )

    plain = metrics.proportion(test > norm.isf(0.1))
    few, many = interval(16, 0.1), interval(5000, 0.1)
    assert few.high - few.low > 3 * (plain.high - plain.low)
    assert many.high - many.low == pytest.approx(plain.high - plain.low, rel=0.1)
    kept = metrics.share_at(
        metrics.uncertain_threshold([0.0, 1.0], 0.5),
        lambda t: np.where(test <= t, 1.0, np.nan),
    )
    assert (kept.value, kept.n, kept.high) == (1.0, int((test <= 0).sum()), 1.0)


def test_a_difference_at_a_sure_threshold_is_the_paired_difference():
    rng = np.random.default_rng(4)
    a, b, patients = (
        rng.normal(size=120),
        rng.normal(0.3, 1, 120),
        rng.integers(50, size=120),
    )
    sure = metrics.UncertainThreshold(0.5, np.array([0.5]))
    plain = metrics.paired_difference(np.mean, (a <= 0.5,), (b <= 0.5,), groups=patients)
    found = metrics.difference_at(
        (sure, sure), lambda t: a <= t, lambda t: b <= t, groups=patients
    )
    assert (found.value, found.n) == (plain.value, plain.n)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-9)
    few = metrics.uncertain_threshold(a[:20], 0.1)
    doubtful = metrics.difference_at(
        (few, few), lambda t: a <= t, lambda t: b <= t - 1, groups=patients
    )
    # of other draws: what the two have in common is lost
    other = metrics.uncertain_threshold(a[:20], 0.1, seed=1)
    apart = metrics.difference_at(
        (few, other), lambda t: a <= t, lambda t: b <= t, groups=patients
    )
    together = metrics.difference_at(
        (few, few), lambda t: a <= t, lambda t: b <= t, groups=patients
    )
    assert together.high - together.low < apart.high - apart.low
    assert doubtful.high - doubtful.low > plain.high - plain.low
    assert -1 <= doubtful.low <= doubtful.value <= doubtful.high <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("n", "fpr"), [(16, 0.1), (40, 0.05), (100, 0.1)])
def test_intervals_at_a_threshold_cover_the_truth(n, fpr):
    rng, limit, hits, alarms = np.random.default_rng(3), norm.isf(fpr), [], []
    truth, patients = 0.9 * norm.cdf(limit - 2.0), np.tile(np.arange(n), 2)
    for _ in range(200):
        clean = rng.normal(size=n)
        noisy = 0.9 * clean + np.sqrt(1 - 0.9**2) * rng.normal(size=n)
        found = metrics.uncertain_threshold(
            np.concatenate([clean, noisy]), fpr, groups=patients, draws=300
        )
        score, fooled, new = (
            rng.normal(2, 1, 150),
            rng.random(150) < 0.9,
            rng.normal(size=150),
        )
        for truly, told, kept in (
            (
                truth,
                metrics.share_at(found, lambda t, s=score, f=fooled: f & (s <= t)),
                hits,
            ),
            (fpr, metrics.share_at(found, lambda t, s=new: s > t), alarms),
        ):
            kept.append(told.low <= truly <= told.high)
    assert min(np.mean(hits), np.mean(alarms)) >= 0.93


@pytest.mark.slow
def test_intervals_of_differences_at_a_threshold_cover_the_truth():
    rng, limit, held = np.random.default_rng(5), norm.isf(0.1), []
    truth = norm.cdf(limit - 1) - norm.cdf(limit - 2)
    for _ in range(200):
        found = metrics.uncertain_threshold(rng.normal(size=40), 0.1, draws=200)
        ease = rng.normal(size=100)
        one, two = (m + np.sqrt(0.5) * (ease + rng.normal(size=100)) for m in (1, 2))
        told = metrics.difference_at(
            (found, found), lambda t, s=one: s <= t, lambda t, s=two: s <= t, draws=200
        )
        held.append(told.low <= truth <= told.high)
    assert np.mean(held) >= 0.93


def test_slips_through_counts_all_attacked_images_and_the_score_at_the_threshold_passes():
    fooled = np.array([True, True, True, False])
    assert metrics.slips_through(fooled, [0.0, 1.0, 2.0, 0.0], 1.0) == 0.5
    assert metrics.tpr_at([0.0, 1.0, 2.0, 0.0], 1.0) == 0.25
    assert metrics.success([1, 0, 2], [1, 2, 2]) == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=20))
def test_spearman_equals_scipy(pairs):
    a, b = np.array(pairs, float).T
    if np.ptp(a) and np.ptp(b):
        assert metrics.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    else:
        assert np.isnan(metrics.spearman(a, b))


def forecasts(rng, n, classes, sharper=1.0):
    """Probabilities of a classifier whose logits are ``sharper`` times too large, and labels."""
    logits = rng.normal(size=(n, classes)) * 2
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = np.exp(sharper * logits) / np.exp(sharper * logits).sum(1, keepdims=True)
    return said, np.array([rng.choice(classes, p=p) for p in true])


def test_calibration_by_hand():
    sure = [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.4, 0.6]]
    # bin (13/15, 14/15]: three at 0.9, two of them right; bin (8/15, 9/15]: one at 0.6, right
    assert metrics.calibration_error(sure, [0, 1, 1, 1]) == pytest.approx(
        3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.4
    )
    edge = [[0.6, 0.4], [0.45, 0.55]]  # 0.6 = 9/15 is the upper edge of the bin of 0.55
    assert metrics.calibration_error(edge, [0, 0]) == pytest.approx(abs(1 - 0.6 - 0.55) / 2)
    assert metrics.brier_score(sure, [0, 1, 1, 1]) == pytest.approx(
        (0.01 + 0.81 + 0.01 + 0.16) / 4
    )
    assert (
        metrics.calibration_error([[1, 0], [0, 1]], [0, 1])
        == metrics.brier_score([[1, 0], [0, 1]], [0, 1])
        == 0
    )
    assert (
        metrics.calibration_error([[1, 0], [0, 1]], [1, 0])
        == metrics.brier_score([[1, 0], [0, 1]], [1, 0])
        == 1
    )


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_calibration_equals_a_loop_and_scikit_learn(classes):
    p, y = forecasts(np.random.default_rng(classes), 200, classes, 1.7)
    p[:20] = np.eye(classes)[p[:20].argmax(1)]  # quite sure: the edge of the last bin
    error = 0.0
    for m in range(15):
        inside = [i for i in range(200) if m / 15 < p[i].max() <= (m + 1) / 15]
        right = sum(p[i].argmax() == y[i] for i in inside)
        error += abs(right - sum(p[i].max() for i in inside)) / 200
    assert metrics.calibration_error(p, y) == pytest.approx(error)
    reference = (
        sum(brier_score_loss(y == k, p[:, k], pos_label=True) for k in range(classes)) / 2
    )
    assert metrics.brier_score(p, y) == pytest.approx(reference)


@pytest.mark.slow
@pytest.mark.parametrize("sharper", [1.3, 2.0])
def test_intervals_of_calibration_cover_the_truth(sharper):
    rng = np.random.default_rng(8)
    whole = forecasts(rng, 20000, 3, sharper)
    for measure in (metrics.calibration_error, metrics.brier_score):
        truth, found = measure(*whole), []
        for rows in rng.permutation(20000)[:15000].reshape(60, 250):
            found.append(metrics.bootstrap(measure, *(v[rows] for v in whole), draws=200))
        assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.75
        assert all(0 <= i.low <= i.value <= i.high for i in found)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [([0.2, 0.8], [0, 1]), ([[0.2, 0.9]], [0]), ([[0.2, 0.8]], [2]), ([[0.2, 0.8]], [])],
)
def test_what_is_no_forecast_is_refused(probabilities, labels):
    for measure in (metrics.calibration_error, metrics.brier_score):
        with pytest.raises(InputError, match="must be"):
            measure(probabilities, labels)


@pytest.mark.parametrize("name", ["auc", "aupr", "fpr95"])
def test_what_is_no_score_is_refused(name):
    measure = getattr(metrics, name)
    with pytest.raises(InputError, match="1 NaN of 2"):
        measure([0.0, 1.0], [0.0, np.nan])
    with pytest.raises(InputError, match="at least one score, got none"):
        measure([], [1.0])
    with pytest.raises(InputError, match=r"fpr must lie in \[0, 1\), got 10"):
        metrics.threshold([1.0], 10)
    with pytest.raises(InputError, match="use bootstrap"):
        metrics.proportion([0.2, 1.0])
    with pytest.raises(InputError, match=r"patient of each of \[3\] rows, got \[2\]"):
        metrics.proportion([0, 1, 1], groups=["a", "b"])
    with pytest.raises(InputError, match=r"\[2\] and \[3\] rows"):
        metrics.paired_difference(np.mean, ([0, 1],), ([0, 1, 1],))


def clustered_hits(rng, n, size, correlation, p):
    """Hits of n rows in patients of ``size`` rows (beta-binomial), and the patients."""
    patients = np.arange(n) // size
    if not correlation:
        return rng.random(n) < p, patients
    s = 1 / correlation - 1
    return rng.random(n) < rng.beta(p * s, (1 - p) * s, size=n)[patients], patients


@pytest.mark.slow
@pytest.mark.parametrize("size, correlation", [(1, 0.0), (2, 0.0), (2, 0.8), (3, 0.3)])
@pytest.mark.parametrize("n", [50, 300])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_intervals_of_shares_cover_the_truth(n, p, size, correlation):
    rng = np.random.default_rng(1)
    intervals = [
        metrics.proportion(hits, groups=patients)
        for hits, patients in (
            clustered_hits(rng, n, size, correlation, p) for _ in range(1000)
        )
    ]
    assert 0.92 <= np.mean([i.low <= p <= i.high for i in intervals]) <= 0.98


def test_a_share_of_one_keeps_its_doubt():
    alone = metrics.proportion(np.ones(100))
    assert (alone.value, alone.high, alone.n) == (1.0, 1.0, 100)
    assert alone.low == pytest.approx(1 - 3.8415 / 103.8415, abs=1e-4)
    assert metrics.proportion(
        np.ones(100), groups=np.arange(100) // 5
    ).low == pytest.approx(metrics.proportion(np.ones(20)).low)
    perfect = metrics.bootstrap(
        metrics.auc, np.arange(40), np.arange(50, 70), groups=(np.arange(40), np.arange(20))
    )
    assert (
        perfect.low == pytest.approx(intervals._wilson(1 - 0.5 / 20, 20, 0.95)[0])
        and perfect.high == 1.0
    )


AREAS = (0.04, 0.7, 0.9, 0.95, 0.99)
SCORES: dict[
    str, Callable[[Any, float, int], Any]
] = {  # of positives, whose AUC against standard normal negatives is known
    "normal": lambda rng, area, n: norm.ppf(area) * np.sqrt(2) + rng.normal(size=n),
    "wide": lambda rng, area, n: norm.ppf(area) * np.sqrt(10) + 3 * rng.normal(size=n),
    "narrow": lambda rng, area, n: (
        norm.ppf(area) * np.sqrt(1.16) + 0.4 * rng.normal(size=n)
    ),
    "skewed": lambda rng, area, n: norm.isf(
        np.exp(-rng.exponential(area / (1 - area), size=n).clip(max=700))
    ),
    "all or nothing": lambda rng, area, n: np.where(rng.random(n) < area, 9.0, -9.0),
    "few overlap": lambda rng, area, n: np.where(
        rng.random(n) < 2 * min(area, 1 - area), rng.normal(size=n), np.sign(area - 0.5) * 9
    ),
}


def covered(intervals: list[metrics.Interval], area: float) -> float:
    assert all(0 <= i.low <= i.value <= i.high <= 1 for i in intervals)
    return float(np.mean([i.low <= area <= i.high for i in intervals]))


@pytest.mark.slow
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize(("n", "m"), [(20, 20), (100, 20), (60, 60)])
def test_intervals_of_auc_cover_the_truth_of_few_cases_and_near_one(scores, n, m):
    rng, held = np.random.default_rng(n + m), {}
    for area in AREAS:
        drawn = [(rng.normal(size=n), SCORES[scores](rng, area, m)) for _ in range(600)]
        groups = (np.arange(n), n + np.arange(m))
        held[area] = covered(
            [metrics.bootstrap(metrics.auc, *d, groups=groups) for d in drawn], area
        )
    assert min(held.values()) >= 0.93, held


@pytest.mark.slow
@pytest.mark.parametrize(("count", "each"), [(20, 1), (20, 3), (30, 10), (100, 3)])
@pytest.mark.parametrize(("within", "with_clean"), [(0.3, 0.0), (0.8, 0.9), (0.8, 0.0)])
def test_intervals_of_auc_cover_the_truth_of_clean_and_noisy_scores_by_patient(
    count, each, within, with_clean
):
    """As the audit has them: clean and noisy scores of a case are nearly the same, those of a
    patient alike, and some of the cases are not fooled.
    """
    rng, held, patients = np.random.default_rng(each), {}, np.repeat(np.arange(count), each)
    for area in AREAS:
        found = []
        for _ in range(300):
            of_patient, of_case, noise = (
                rng.normal(size=(2, k)) for k in (count, count * each, count * each)
            )
            clean, attack = (
                np.sqrt(within) * of_patient[:, patients] + np.sqrt(1 - within) * of_case
            )
            noisy = 0.97 * clean + np.sqrt(1 - 0.97**2) * noise[0]
            fooled = rng.random(len(clean)) < 0.9
            hidden = (
                norm.ppf(area) * np.sqrt(2)
                + with_clean * clean
                + np.sqrt(1 - with_clean**2) * attack
            )
            groups = (np.tile(patients, 2), patients[fooled])
            found.append(
                metrics.bootstrap(
                    metrics.auc, np.append(clean, noisy), hidden[fooled], groups=groups
                )
            )
        held[area] = covered(found, area)
    assert min(held.values()) >= 0.93, held


def test_intervals_of_auc_are_no_wider_than_they_must_be():
    rng = np.random.default_rng(6)
    for area in (0.6, 0.8, 0.95):
        drawn = [
            (rng.normal(size=300), SCORES["normal"](rng, area, 300)) for _ in range(100)
        ]
        width = np.mean(
            [
                i.high - i.low
                for i in (
                    metrics.bootstrap(
                        metrics.auc, *d, groups=(np.arange(300), 300 + np.arange(300))
                    )
                    for d in drawn
                )
            ]
        )
        assert width < 1.15 * 2 * norm.ppf(0.975) * np.std([metrics.auc(*d) for d in drawn])


def test_patients_who_have_both_scores_make_the_auc_surer():
    rng = np.random.default_rng(2)
    patients, widths = np.arange(300) // 3, {True: [], False: []}
    for shared, apart in ((True, False), (True, True), (False, True), (False, False)):
        own = np.sqrt(0.7) * rng.normal(size=(2, 100))
        drift = own[[0, 0 if shared else 1]][:, patients]
        negatives, positives = (
            drift + np.sqrt(0.3) * rng.normal(size=(2, 300)) + np.array([[0], [1.2]])
        )
        groups = (patients, patients + 100 * apart)
        found = metrics.bootstrap(metrics.auc, negatives, positives, groups=groups)
        widths[shared].append(found.high - found.low)
    assert widths[True][0] < 0.95 * widths[True][1]
    assert widths[False][0] == pytest.approx(widths[False][1], rel=0.15)


def test_the_variance_of_auc_is_that_of_its_draws():
    rng = np.random.default_rng(7)
    patients = np.sort(rng.integers(1000, size=2000))
    neg, pos = rng.normal(size=2000), rng.normal(1, 1, 1500)
    groups = (patients, patients[500:])
    rows, count = by_patient.patients_of([neg, pos], groups)
    drawn = intervals.replicates(
        metrics.auc, [neg, pos], rows, by_patient.draw(rows, count, 1000, 0)
    )
    value = metrics.auc(neg, pos)
    assert value * (1 - value) / intervals._effective_auc(neg, pos, rows) == pytest.approx(
        drawn.var(), rel=0.15
    )
    few = intervals._effective_auc(
        np.arange(20.0),
        np.append(np.arange(20.0, 39.0), 18.5),
        [np.arange(20), np.arange(20, 40)],
    )
    assert 20 < few < 60  # one image overlaps: hardly more is known than of twenty shares
    assert (
        intervals._effective_auc(
            np.arange(20.0), np.arange(20.0, 26.0), [np.arange(20), np.repeat(20, 6)]
        )
        == 1.0
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rates", [(0.9, 0.9), (0.95, 0.8)])
def test_intervals_of_paired_differences_cover_the_truth(rates, size):
    rng = np.random.default_rng(3)
    held = []
    for _ in range(400):
        patients = np.arange(120) // size
        # a patient is easy or hard for both methods
        ease = norm.cdf(rng.normal(size=120))[patients]
        a, b = (ease < rate for rate in rates)
        b = np.where(rng.random(120) < 0.6, rng.random(120) < rates[1], b)
        found = metrics.paired_difference(np.mean, (a,), (b,), groups=patients, draws=200)
        held.append(found.low <= rates[0] - rates[1] <= found.high)
    assert 0.92 <= np.mean(held) <= 0.995  # few cases that differ: on the safe side


def test_methods_that_agree_on_all_cases_differ_by_nothing_but_doubt():
    same = metrics.paired_difference(np.mean, (np.ones(50),), (np.ones(50),))
    assert same.value == 0 and same.low == -same.high and 0.03 < same.high < 0.1
    neg, pos = np.arange(50.0), np.arange(25.0, 75.0)
    better = metrics.paired_difference(metrics.auc, (neg, pos + 20), (neg, pos))
    assert better.low > 0 and better.value == pytest.approx(
        metrics.auc(neg, pos + 20) - metrics.auc(neg, pos)
    )
    worse = metrics.paired_difference(metrics.auc, (neg, pos), (neg, pos + 20))
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))


def test_weights_and_repeated_rows_are_the_same_bootstrap():
    rng = np.random.default_rng(4)
    neg, pos = rng.integers(0, 9, 30), rng.integers(3, 12, 20)
    groups = (rng.integers(0, 10, 30), rng.integers(0, 10, 20))
    fast = metrics.bootstrap(metrics.auc, neg, pos, groups=groups)
    rows, count = by_patient.patients_of([neg, pos], groups)
    drawn = by_patient.draw(rows, count, 50, 0)
    slow = [
        metrics.auc(np.repeat(neg, w[rows[0]]), np.repeat(pos, w[rows[1]])) for w in drawn
    ]
    np.testing.assert_array_equal(
        intervals.replicates(metrics.auc, [neg, pos], rows, drawn), slow
    )
    assert fast.low < fast.value < fast.high and fast.n == 50
    values = rng.normal(size=40)
    named, other = (
        metrics.bootstrap(np.mean, values),
        metrics.bootstrap(lambda v: float(np.mean(v)), values),
    )
    assert (named.low, named.high) == pytest.approx((other.low, other.high))


def test_bootstrap_repeats_with_its_seed_and_leaves_out_draws_without_positives():
    found = [
        metrics.bootstrap(metrics.aupr, [0.0, 1.0, 2.0], [1.5], seed=s) for s in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_a_thousand_draws_of_auc_take_a_tenth_of_a_second():
    rng = np.random.default_rng(5)
    neg, pos = rng.normal(size=300), rng.normal(size=150)
    times = []
    for _ in range(5):
        start = perf_counter()
        metrics.bootstrap(metrics.auc, neg, pos)
        times.append(perf_counter() - start)
    assert min(times) < 0.1
