"""The share of successes over cases and draws: its value, and both uncertainties."""

import numpy as np
import pytest

from feathide.metrics.intervals import proportion
from feathide.metrics.over_draws import share_over_draws


def test_the_same_at_every_draw_is_a_share_of_cases() -> None:
    hits = np.arange(40) % 4 == 0
    found, plain = share_over_draws(np.tile(hits[:, None], 20)), proportion(hits)
    assert found.value == plain.value and found.n == 40
    assert found.low == pytest.approx(plain.low, abs=0.02)
    assert found.high == pytest.approx(plain.high, abs=0.02)


def test_draws_that_decide_for_all_images_are_uncertain_however_many_images() -> None:
    by_draw = np.arange(20) % 2 == 0
    found = share_over_draws(np.tile(by_draw, (2000, 1)))
    assert found.value == 0.5
    assert found.high - found.low > 0.3


def test_nothing_ever_succeeds() -> None:
    found = share_over_draws(np.zeros((30, 20)))
    assert found.value == found.low == 0 and 0.05 < found.high < 0.2


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_interval_holds_the_truth(share: float) -> None:
    """Cases and draws of random effects: at least 90 % of the intervals hold the share."""
    rng, held = np.random.default_rng(0), 0
    for k in range(60):
        case, draw = rng.normal(0, 0.7, (60, 1)), rng.normal(0, 0.5, (1, 20))
        noise = rng.normal(0, 0.5, (60, 20))
        size = (0.7**2 + 0.5**2 + 0.5**2) ** 0.5
        from scipy.stats import norm

        hits = case + draw + noise < size * norm.ppf(share)
        found = share_over_draws(hits, seed=k, draws=300)
        held += found.low <= share <= found.high
    assert held >= 54
