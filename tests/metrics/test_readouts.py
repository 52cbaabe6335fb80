"""Read-outs: values that are known, and MONAI's."""

import math

import pytest
import torch

from feathide.metrics.readouts import dice, hausdorff95_mm, landmark_distance_mm, volume_ml


def masks(n: int = 3, shape: tuple[int, ...] = (9, 11, 10)) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(s) for s in shape], indexing="ij"), -1)
    centres = 3 + 3 * torch.rand((n, 1, 1, 1, 3), generator=random)
    return (grid - centres).norm(dim=-1) < 3.2


def test_dice_is_that_of_sets() -> None:
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()
    b = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    found = dice(a, b)
    assert found[:2].tolist() == [0.4, 0.0]
    assert math.isnan(found[2])


def test_a_volume_counts_millilitres_through_the_spacing() -> None:
    mask = torch.zeros(2, 10, 10, 10, dtype=torch.bool)
    mask[0, :5] = True
    spacing = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    assert volume_ml(mask, spacing).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.0, 3.0)])
def test_the_surface_distance_is_that_of_monai(spacing: tuple[float, ...]) -> None:
    metrics = pytest.importorskip("monai.metrics")
    a, b = masks(), masks().roll(1, 0)
    ours = hausdorff95_mm(a, b, torch.tensor([spacing] * len(a)))
    theirs = metrics.compute_hausdorff_distance(
        a[:, None],
        b[:, None],
        include_background=True,
        percentile=95,
        spacing=list(spacing),
    )
    assert ours.tolist() == pytest.approx(theirs[:, 0].tolist(), rel=1e-6)


def test_a_missing_structure_is_infinitely_far() -> None:
    a, none = masks(1), torch.zeros(1, 9, 11, 10, dtype=torch.bool)
    one = torch.ones(1, 3)
    assert hausdorff95_mm(none, a, one).tolist() == [math.inf]
    assert math.isnan(hausdorff95_mm(none, none, one))
    assert hausdorff95_mm(a, a, one).tolist() == [0.0]


def test_landmarks_are_apart_in_mm() -> None:
    a = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    b = torch.tensor([[[3.0, 2.0], [1.0, 1.0]]])
    assert landmark_distance_mm(a, b, torch.tensor([[1.0, 2.0]])).tolist() == [[5.0, 0.0]]
