"""Plans: what is refused, and how it is said."""

from pathlib import Path
from typing import Any

import pytest

from feathide.errors import InputError
from feathide.plans.plan import load_merged, load_plan


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


FILE = """\
data: {path: phantoms, limit: 40}
network:
  arch: tiny
  train:
    epochs: many
attacks: [pgd, {name: fgsm, steps: 3}]
detectors:
  - kd
  - maha
"""


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("many", "many", "line 5, column 13", "network.train.epochs"),
        ("epochs: many", "epoch: 3", "line 5, column 5", "unknown field"),
        ("limit: 40", "limit: 0", "line 1, column 31", "data.limit"),
        ("limit: 40", "limits: 40", "line 1, column 24", "did you mean 'data.limit'"),
        ("steps: 3", "steps: -3", "line 6, column 36", "attacks.1"),
        ("steps: 3", "step: 3", "line 6, column 29", "did you mean 'steps'"),
        ("- maha", "- mahaa", "line 9, column 5", "did you mean 'maha'"),
        ("arch: tiny", "arch: tinny", "line 3, column 9", "did you mean 'tiny'"),
        ("- maha", "- kd", "line 7, column 1", "detectors must differ"),
        ("network:", "netwrok:", "line 2, column 1", "did you mean 'network'"),
    ],
)
def test_a_mistake_in_a_file_is_said_with_its_place(
    old: str, new: str, place: str, words: str, tmp_path: Path
) -> None:
    text = FILE if old == new else FILE.replace("many", "3") if old[0] != "e" else FILE
    path = tmp_path / "plan.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError) as told:
        load_plan(path)
    assert f"{path}, {place}: " in str(told.value) and words in str(told.value)


def test_a_value_that_was_given_beside_the_file_has_no_line_in_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(FILE.replace("many", "3"))
    with pytest.raises(InputError, match="did you mean 'maha'") as told:
        load_merged(path, {"detectors": ["kd", "mahaa"]})
    assert ", line " not in str(told.value)
    with pytest.raises(InputError, match="line 1, column 24"):
        path.write_text(path.read_text().replace("limit: 40", "limits: 40"))
        load_merged(path, {"data": {"path": "phantoms3d"}, "seed": 1})
