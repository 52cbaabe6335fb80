"""Pictures reach the page without loss, once each, within the budget."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from feathide.report import Case, Run
from feathide.report.pictures import Album, busiest, difference, tile, view
from feathide.report.results import Scale

GREY = Scale(0.0, 1.0, 256, 0.0, 255.0, "grey levels")
CT = Scale(-1024.0, 3071.0, 4096, -1024.0, 3071.0, "HU")


def case_of(clean: np.ndarray, adversarial: np.ndarray) -> Case:
    return Case("a", 0, 1, 1, True, 0, clean, adversarial)


def planes(text: str, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """What the page's script reads from a picture: written independently, plane by plane."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    *_, h, w = shape
    count, across = int(np.prod(shape[:-2])), pixels.shape[1] // shape[-1]
    parts = [
        pixels[k // across * h :, k % across * w :][:h, :w]
        for k in range(count * bits // 8)
    ]
    low = np.stack(parts[:count]).astype(np.int64)
    return (
        low + 256 * np.stack(parts[count:]).astype(np.int64) if bits == 16 else low
    ).reshape(shape)


@pytest.mark.parametrize("shape", [(1, 7, 6), (3, 5, 9), (1, 5, 4, 3), (2, 1, 8, 8)])
@pytest.mark.parametrize("scale", [GREY, CT])
def test_levels_survive_the_page(shape: tuple[int, ...], scale: Scale) -> None:
    rng = np.random.default_rng(0)
    clean, adversarial = rng.integers(0, scale.levels, (2, *shape))
    box = [
        scale.low + x * (scale.high - scale.low) / (scale.levels - 1)
        for x in (clean, adversarial)
    ]
    album = Album(scale)
    place = album.add(case_of(*box))
    assert place is not None and place["shape"] == shape
    back = planes(album.pictures[place["clean"]], shape, album.bits)
    delta = planes(album.pictures[place["delta"]], shape, album.bits)
    np.testing.assert_array_equal(back, clean)
    np.testing.assert_array_equal((back + delta) % 2**album.bits, adversarial)


def test_clean_image_is_stored_once_and_the_budget_is_kept(run: Run) -> None:
    first, second = (run.cases[c][0] for c in ("pgd+plain", "pgd+hfc"))
    album = Album(run.scale)
    album.add(first)
    album.add(second)
    assert len(album.pictures) == 3 and album.spent == sum(map(len, album.pictures))
    small = Album(run.scale, budget=album.spent - 1)
    assert small.add(first) is not None
    assert small.add(second) is None and small.spent == sum(map(len, small.pictures))


def test_colours_of_the_difference() -> None:
    clean = np.full((1, 1, 3), 100 / 255)
    d = difference(case_of(clean, clean + np.array([1, 0, -1]) / 255), GREY, 0, 255.0)
    assert d[0].tolist() == [[150, 60, 150], [255, 255, 255], [0, 114, 178]]
    colour = np.full((3, 1, 1), 128 / 255)
    assert difference(case_of(colour, colour), GREY, 0, 8.0)[0, 0].tolist() == [
        128,
        128,
        128,
    ]


def test_slice_of_a_volume_is_the_middlemost_of_the_most_changed() -> None:
    clean = np.zeros((1, 9, 4, 4))
    one, many = clean.copy(), clean + 1 / 255
    one[0, 7] = 1
    assert busiest(case_of(clean, one)) == 7
    assert busiest(case_of(clean, many)) == 4
    assert view(one, GREY, 7).tolist() == [[255] * 4] * 4


def test_tile_is_near_square() -> None:
    image = Image.open(
        io.BytesIO(base64.b64decode(tile(np.zeros((1, 64, 32, 32), np.uint16), 8)))
    )
    assert image.size == (256, 256)
