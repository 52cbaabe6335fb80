"""Goals of landmarks: one moves, the others stay."""

import pytest
import torch

from feathide.errors import InputError
from feathide.goals import MoveLandmark
from feathide.types import Outputs

POINTS = torch.tensor([[[2.0, 8.0], [10.0, 10.0]]])


def test_one_landmark_is_wanted_elsewhere_and_the_others_where_they_were() -> None:
    goal = MoveLandmark(0, by_mm=4, direction=(0, 3)).goal(
        POINTS, size=(16, 16), spacing=(1.0, 2.0)
    )
    assert goal.target.tolist() == [[[2.0, 10.5], [10.0, 10.0]]]


@pytest.mark.parametrize(
    ("places", "hit"),
    [
        ([[2.0, 10.0], [10.0, 10.0]], True),
        ([[2.0, 9.5], [10.0, 10.0]], False),  # 3 mm
        ([[2.0, 10.0], [12.0, 10.0]], True),  # 2 mm, as far as it may
        ([[2.0, 10.0], [10.0, 11.5]], False),  # 3 mm
    ],
)
def test_it_counts_in_mm(places: list[list[float]], hit: bool) -> None:
    goal = MoveLandmark(0, by_mm=4, keep_mm=2).goal(
        POINTS, size=(16, 16), spacing=(1.0, 2.0)
    )
    assert goal.hit(Outputs(torch.tensor([places]), {})).tolist() == [hit]


def test_heat_maps_of_another_size_are_read_in_voxels_of_the_image() -> None:
    goal = MoveLandmark(0, by_mm=4).goal(POINTS, size=(16, 16), spacing=(1.0, 1.0))
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0, 3, 4] = maps[0, 1, 5, 5] = 1
    read = goal.measured(Outputs(maps, {}))
    # centres of coarse voxels: 6.5 and 8.5 from (2, 8), 10.5 from (10, 10)
    assert read["landmark 0 moved [mm]"].tolist() == pytest.approx(
        [(4.5**2 + 0.5**2) ** 0.5]
    )
    assert read["others than landmark 0 moved [mm]"].tolist() == pytest.approx([0.5**0.5])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="needs the size of a voxel"):
        MoveLandmark(0).goal(POINTS, size=(16, 16))
    with pytest.raises(InputError, match="the landmark must be 0 to 1, got 2"):
        MoveLandmark(2).goal(POINTS, size=(16, 16), spacing=(1.0, 1.0))
    with pytest.raises(InputError, match="points must be"):
        MoveLandmark(0).goal(POINTS, size=(16, 16, 16), spacing=(1.0, 1.0, 1.0))
    goal = MoveLandmark(0).goal(POINTS, size=(16, 16), spacing=(1.0, 1.0))
    with pytest.raises(InputError, match="the network must give 2 landmarks"):
        goal.check_outputs(Outputs(torch.zeros(1, 3, 16, 16), {}))
    with pytest.raises(InputError, match="must be made for the size of the images"):
        goal.check(torch.zeros(1, 1, 8, 8), ("a",))
