"""Cases: arrays in memory, and the checks that keep a study honest."""

import re

import numpy as np
import pytest

from feathide.data import cases_of_arrays, check_split
from feathide.data.split import check_classes, without_copies
from feathide.errors import InputError

SPLITS = ["train", "train", "val", "test", "test", "test"]


def made(
    images: np.ndarray | None = None, labels: object = (0, 1, 0, 1, 0, 1), **more: object
):
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (6, 1, 5, 4), dtype=np.uint8)
    return cases_of_arrays(images, np.array(labels), **{"splits": SPLITS, **more})


def classes_of(cases) -> None:
    check_classes(cases.labels, cases.class_names, cases.name)


def refuses(*words: str):
    return pytest.raises(InputError, match=".*".join(re.escape(w) for w in words))


def test_eight_bits_are_shown_in_the_unit_box_exactly() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(6, axis=0)
    cases = made(images)
    shown = cases.images(np.array([4]))
    assert shown.dtype == np.float32 and shown.shape == (1, 1, 16, 16)
    np.testing.assert_array_equal(
        shown[0, 0].ravel(), np.arange(256, dtype=np.float32) / np.float32(255)
    )
    assert (cases.box, cases.step, cases.unit) == ((0.0, 1.0), 1 / 255, "grey level")


@pytest.mark.parametrize(
    ("dtype", "box", "got"),
    [
        ("uint16", None, ((0.0, 1.0), 1 / 65535)),
        ("int16", None, ((0.0, 5.0), 1.0)),
        ("int16", (-1024, 3071), ((-1024.0, 3071.0), 1.0)),
        ("uint8", (0, 255), ((0.0, 255.0), 1.0)),
        ("float32", (0, 5), ((0.0, 5.0), 0.0)),
    ],
)
def test_box_and_step_follow_the_stored_type(
    dtype: str, box: tuple[float, float] | None, got: tuple
) -> None:
    images = np.arange(6 * 8).reshape(6, 1, 8) % 6
    cases = made(images.astype(dtype), box=box)
    assert (cases.box, cases.step) == got
    assert cases.images([5]).max() <= cases.box[1]


def test_rows_of_a_split_and_a_selection() -> None:
    cases = made()
    np.testing.assert_array_equal(cases.where("test"), [3, 4, 5])
    part = cases.take(cases.where("test"))
    np.testing.assert_array_equal(part.images([0, 2]), cases.images([3, 5]))
    assert list(part.ids) == list(cases.ids[3:]) and len(part) == 3


def test_digest_sees_all_that_matters_and_not_the_order() -> None:
    cases = made()
    assert (
        cases.digest
        == made(name="other").digest
        == cases.take(np.array([5, 3, 1, 0, 2, 4])).digest
    )
    changed = cases.images(range(6)) * 255
    changed[2, 0, 0, 0] = 255 - changed[2, 0, 0, 0]
    others = [
        made(changed.astype(np.uint8)),
        made(labels=(1, 0, 0, 1, 0, 1)),
        made(box=(0, 255)),
        made(patients=list("aabcde")),
        made(splits=["train", "val", "val", "test", "test", "test"]),
        made(class_names=("no", "yes")),
    ]
    assert len({cases.digest, *(other.digest for other in others)}) == 7


def test_multi_label_heads() -> None:
    cases = made(labels=[[0, 1, 0]] * 3 + [[1, 1, 0]] * 3, class_names=("a", "b", "c"))
    assert cases.multi_label and cases.labels.shape == (6, 3)
    classes_of(cases)
    with refuses("labels must lie in 0..1", "2"):
        made(labels=[[0, 2]] * 6)
    with refuses("a finding that varies"):
        classes_of(made(labels=[[0, 1]] * 6))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"labels": (0, 1, 0, 1, 0, -1)}, ("labels must lie in 0..1", "-1")),
        (
            {"class_names": ("a", "b"), "labels": (0, 1, 0, 1, 0, 2)},
            ("labels must lie in 0..1", "2", "a, b"),
        ),
        ({"labels": (0.5, 1, 0, 1, 0, 1)}, ("whole numbers",)),
        ({"labels": (0, 1)}, ("labels must have one row per case (6)", "2")),
        ({"ids": list("abcdea")}, ("ids must be unique", "a more than once")),
        ({"splits": ["train"] * 5 + ["holdout"]}, ("train, val or test", "holdout")),
        ({"images": np.full((6, 1, 3), 1.5)}, ("box [0, 1]", "1.5", "rescale")),
        (
            {"images": np.array([0, 1, 0, 1, 0, np.nan]).reshape(6, 1, 1)},
            ("finite", "000005"),
        ),
        ({"images": np.zeros((6, 1, 3), dtype=np.int16)}, ("one grey level",)),
        ({"images": np.zeros((6, 1, 3), dtype=bool)}, ("numbers", "bool")),
    ],
)
def test_bad_input_is_one_sentence(more: dict, words: tuple[str, ...]) -> None:
    with refuses(*words):
        made(**more)


def test_one_class_and_empty_classes_are_refused() -> None:
    with refuses("at least two classes", "only 1"):
        classes_of(made(labels=[1] * 6, class_names=("0", "1")))
    with refuses("every class", "none of 1"):
        classes_of(made(labels=(0, 2, 0, 2, 0, 2)))


def test_a_patient_in_two_splits_is_refused() -> None:
    check_split(made(patients=list("aabcdd")))
    with refuses("no patient", "000003 (test) = 000000 (train)"):
        check_split(made(patients=list("abcade")))


def test_an_image_in_two_splits_is_refused_or_dropped_from_training() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 5, 4), dtype=np.uint8)
    images[1] = images[0]  # twice in train is fine
    check_split(made(images))
    images[2] = images[5] = images[0]
    with refuses("no image", "1: 000005 (test) = 000001 (train)", "skip_bad"):
        check_split(made(images))
    left = without_copies(made(images))
    assert list(left.ids) == ["000003", "000004", "000005"]
    assert [s.path for s in left.skipped] == [
        "000000",
        "000001",
        "000002",
    ] and "000005" in left.skipped[0].reason
    check_split(left)
