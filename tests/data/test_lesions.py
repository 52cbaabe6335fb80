"""Lesions: inside the box and the mask, a function of seed and id, the same in one code for any
number of axes.
"""

import pytest
import torch

from feathide.data.lesions import SIZES, Lesions
from feathide.errors import InputError

SHAPES = [(1, 40), (3, 32, 24), (1, 16, 14, 12)]


def blank(n: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_the_box_and_not_a_no_op(shape: tuple[int, ...]) -> None:
    x = 2 * blank(4, shape) - 1
    found = Lesions()(x, list("abcd"), box=(-1.0, 1.0))
    assert found.shape == x.shape and found.dtype == x.dtype
    assert float(found.amin()) >= -1 and float(found.amax()) <= 1
    assert ((found - x).flatten(1).abs().amax(1) > 0.05).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_depends_on_its_seed_and_id_alone(shape: tuple[int, ...]) -> None:
    x, ids = blank(3, shape), ["a", "b", "c"]
    state = torch.random.get_rng_state()
    whole = Lesions()(x, ids, seed=1)
    alone = torch.cat(
        [Lesions()(x[i : i + 1], ids[i : i + 1], seed=1) for i in (2, 1, 0)]
    ).flip(0)
    assert torch.equal(whole, alone)
    assert torch.equal(state, torch.random.get_rng_state())
    same = x[:1].repeat(2, *[1] * (x.ndim - 1))
    assert not torch.equal(*Lesions()(same, ["a", "b"], seed=1).split(1))
    assert not torch.equal(Lesions()(x, ids, seed=1), Lesions()(x, ids, seed=2))


@pytest.mark.parametrize("shape", SHAPES)
def test_inside_the_mask(shape: tuple[int, ...]) -> None:
    x, mask = blank(2, shape), torch.zeros(2, *shape[1:], dtype=torch.bool)
    mask[0, : shape[1] // 2], mask[1, shape[1] // 2 :] = True, True
    changed = (Lesions()(x, ["a", "b"], mask=mask) != x).any(1)
    assert not (changed & ~mask).any()
    assert changed.flatten(1).any(1).all()


def test_channels_change_alike() -> None:
    x = torch.full((1, 3, 32, 32), 0.5)
    found = Lesions(contrast=(0.2, 0.2), texture=0.1)(x, ["a"])
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])


def test_sizes_grow_as_they_say() -> None:
    """Without deformation a lesion of radius r covers about pi r^2 of the plane."""
    x = torch.full((40, 1, 64, 64), 0.5)
    ids, areas = [str(i) for i in range(40)], []
    for radius in SIZES.values():
        change = (
            Lesions(radius, (1, 1), (0.4, 0.4), texture=0.0, deformation=0.0)(x, ids) - x
        )
        areas.append(float((change.abs() > 0.2).float().sum() / len(x)))
    assert areas == sorted(areas)
    r = SIZES["large"] * 64
    assert 0.6 * torch.pi * r**2 < areas[-1] < 1.3 * torch.pi * r**2


def test_the_border_is_soft_and_irregular() -> None:
    x = torch.full((1, 1, 64, 64), 0.5)
    lesion = Lesions(SIZES["large"], (1, 1), (0.4, 0.4), texture=0.0)
    change = (lesion(x, ["a"]) - x)[0, 0].abs()
    assert ((change > 0.02) & (change < 0.38)).sum() > 20
    round_ = Lesions(SIZES["large"], (1, 1), (0.4, 0.4), texture=0.0, deformation=0.0)
    assert not torch.allclose(change, (round_(x, ["a"]) - x)[0, 0].abs())


def test_counts_are_kept() -> None:
    """One lesion changes less than six."""
    x, ids = torch.full((20, 1, 64, 64), 0.5), [str(i) for i in range(20)]
    one, six = (
        (Lesions(SIZES["small"], (k, k))(x, ids) != x).float().mean() for k in (1, 6)
    )
    assert 3 < float(six / one) < 6.5


def test_bad_arguments_say_what_to_do() -> None:
    x = blank(2, (1, 16, 16))
    with pytest.raises(InputError, match="one id each"):
        Lesions()(x, ["a"])
    with pytest.raises(InputError, match="channel axis"):
        Lesions()(x, ["a", "b"], mask=torch.ones(2, 1, 16, 16))
    with pytest.raises(InputError, match="room"):
        Lesions()(x, ["a", "b"], mask=torch.zeros(1, 16, 16))
    with pytest.raises(InputError, match="lesions"):
        Lesions(count=(3, 2))(x, ["a", "b"])
