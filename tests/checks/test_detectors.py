"""The conformance checks of detectors (``feathide.checks``) hold for every row of the catalogue,
and what holds for ours beyond them.
"""

import pytest
import torch

from feathide.checks import DETECTOR_LAWS, NotApplicable
from feathide.checks.worlds import evidence, mixed
from feathide.detectors import DETECTORS

pytestmark = pytest.mark.parametrize("name", DETECTORS)


@pytest.mark.parametrize("check", DETECTOR_LAWS)
def test_law(check: str, name: str) -> None:
    try:
        DETECTOR_LAWS[check](DETECTORS[name])
    except NotApplicable as reason:
        pytest.fail(f"a detector of ours is differentiable: {reason}")


def test_is_called_what_the_table_calls_it(name: str) -> None:
    assert DETECTORS[name]().name == name


def test_score_depends_on_its_row_only(name: str) -> None:
    detector, out = DETECTORS[name]().fit(evidence()), mixed()
    whole = detector.score(out)
    alone = torch.cat([detector.score(out[i : i + 1]) for i in range(len(out))])
    order = torch.randperm(len(out), generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(alone, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        detector.score(out[order]), whole[order], rtol=1e-9, atol=1e-9
    )
