"""Plans: what is refused, and how it is said."""

from typing import Any

import pytest

from feathide.errors import InputError
from feathide.plans.plan import load_plan


@pytest.mark.parametrize(
    ("old", "new", "plan"),
    [
        ("walk", "schedule", {"walk": {"steps": 3}}),
        ("witness", "reference_network", {"witness": {"arch": "tiny"}}),
        ("gates", "sanity_checks", {"gates": "off"}),
        ("split.fit", "split.detector_training", {"split": {"fit": 0.4}}),
        ("split.calibrate", "split.calibration", {"split": {"calibrate": 0.2}}),
        ("witness", "reference-network", {"detectors": "kd,witness"}),
        ("witness-joint", "reference-network-joint", {"detectors": ["witness-joint"]}),
        ("witness", "reference-network", {"objectives": "plain,evade:witness"}),
    ],
)
def test_an_old_name_is_said_with_its_new_one(
    old: str, new: str, plan: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"`{old}` is now called `{new}`"):
        load_plan({"data": "phantoms", **plan})


def test_a_detector_of_no_version_gets_the_closest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'maha'"):
        load_plan({"data": "phantoms", "objectives": "evade:mahaa"})
