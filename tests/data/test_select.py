"""Some classes of a data set, and slices of its volumes."""

import numpy as np
import pytest

from feathide.data import Cases, load_cases
from feathide.errors import InputError


def _npz(path, images: np.ndarray, labels: np.ndarray) -> str:
    n = len(images) // 3
    parts = {"train": slice(0, n), "val": slice(n, 2 * n), "test": slice(2 * n, None)}
    arrays = {f"{s}_images": images[r] for s, r in parts.items()}
    np.savez(
        path, **arrays, **{f"{s}_labels": labels[r][:, None] for s, r in parts.items()}
    )
    return str(path)


@pytest.fixture
def volumes(tmp_path) -> str:
    images = np.random.default_rng(0).integers(0, 256, (36, 5, 4, 6), dtype=np.uint8)
    return _npz(tmp_path / "v.npz", images, np.arange(36) % 4)


def _load(path: str, **how) -> Cases:
    return load_cases(path, class_names=("a", "b", "c", "d"), **how)


def test_classes_are_renumbered_in_the_order_given(volumes: str) -> None:
    whole, part = _load(volumes), _load(volumes, classes=("c", "0"))
    assert part.class_names == ("c", "a") and len(part) == 18
    for i in range(len(part)):
        j = whole.ids.tolist().index(part.ids[i])
        assert whole.labels[j] == (2, 0)[part.labels[i]]
        assert np.array_equal(part.images([i]), whole.images([j]))


def test_limit_counts_what_is_left(volumes: str) -> None:
    part = _load(volumes, classes=("a", "d"), limit=4)
    assert [
        int((part.labels[part.splits == s] == c).sum())
        for s in ("train", "test")
        for c in (0, 1)
    ] == [2, 2, 2, 2]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_the_middle_of_its_volume(volumes: str, axis: int) -> None:
    whole, part = _load(volumes), _load(volumes, slice=axis)
    assert part.shape == tuple(np.delete(whole.shape, axis))
    assert np.array_equal(
        part.images([3]), whole.images([3]).take((5, 4, 6)[axis] // 2, axis=axis + 2)
    )
    assert (
        part.digest != whole.digest
        and part.digest != _load(volumes, slice=(axis + 1) % 3).digest
    )


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"classes": ("a", "z")}, "z"),
        ({"classes": ("a",)}, "two"),
        ({"slice": 3}, "axis 3"),
    ],
)
def test_what_cannot_be_chosen_is_refused(volumes: str, how: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        _load(volumes, **how)
