"""Images in memory: a study from plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from feathide.data.cases import Cases
from feathide.errors import expected, few
from feathide.formats.safety import check_not_one_hot, names_up_to
from feathide.formats.stored import box_of, content_hash, grid_of, to_values
from feathide.types import Box

__all__ = [
    "Memory",
    "cases_of_arrays",
]


@dataclass(frozen=True, eq=False)
class Memory:
    """Images held in memory as stored, (N, C, *S)."""

    stored: np.ndarray
    slope: float

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return to_values(self.stored[rows], self.slope, 0.0)

    def take(self, rows: np.ndarray) -> "Memory":
        return replace(self, stored=self.stored[rows])


def cases_of_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    splits: np.ndarray | Sequence[str],
    name: str = "arrays",
    ids: np.ndarray | Sequence[str] | None = None,
    patients: np.ndarray | Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    box: Box | None = None,
) -> Cases:
    """A study from arrays: images (N, C, *S) as stored, labels (N,), (N, 1) or (N, F) of 0 and 1.

    uint8 and uint16 are shown in [0, 1] with a step of one grey level; floats must lie in ``box``
    (default [0, 1]); other whole numbers are taken as they are, in ``box`` or the range of the
    data. With ``box`` all stored numbers are taken as they are. Raises InputError for NaN, values
    outside the box, channels on the last axis and one-hot labels."""
    _check_axes(images, name)
    check_not_one_hot(labels_of(labels), f"labels of {name}")
    return checked_cases(images, labels, splits, name, ids, patients, class_names, box)


def _check_axes(images: np.ndarray, name: str) -> None:
    """Refuse images that are likely to have no axis of channels, or to have it last."""
    many = images.ndim > 2 and images.shape[1] > 4
    if images.ndim < 3 or (many and images.ndim == 3):
        do = "add the axis: images[:, None]"
        raise expected(
            f"images of {name} must be N x C x H x W or N x C x D x H x W",
            got=images.shape,
            do=do,
        )
    if many and images.shape[-1] in (1, 3):
        do = "move the channels: numpy.moveaxis(images, -1, 1)"
        raise expected(
            f"images of {name} must have their channels on axis 1", got=images.shape, do=do
        )


def checked_cases(
    images: np.ndarray,
    labels: np.ndarray,
    splits: np.ndarray | Sequence[str],
    name: str,
    ids: np.ndarray | Sequence[str] | None,
    patients: np.ndarray | Sequence[str] | None,
    class_names: Sequence[str] | None,
    box: Box | None,
) -> Cases:
    if len(images) == 0:
        raise expected(f"{name} must hold images", got="none", do="check the data")
    slope, legal, unit = grid_of(images.dtype, box)
    ids = (
        np.array([f"{i:06d}" for i in range(len(images))])
        if ids is None
        else np.asarray(ids, dtype=str)
    )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        bad = ids[~np.isfinite(images).all(axis=tuple(range(1, images.ndim)))]
        raise expected(
            f"images of {name} must be finite",
            got=f"NaN or infinity in {few(bad)}",
            do="repair or remove them",
        )
    labels = labels_of(labels)
    k = labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=0)) + 1
    return Cases(
        name=name,
        ids=ids,
        labels=labels,
        patients=ids if patients is None else np.asarray(patients, dtype=str),
        splits=np.asarray(splits, dtype=str),
        class_names=tuple(class_names) if class_names else names_up_to(k),
        box=box_of(
            to_values(np.array([[images.min(), images.max()]]), slope, 0.0), legal, name
        ),
        step=slope if images.dtype.kind in "ui" else 0.0,
        unit=unit,
        channels=images.shape[1],
        shape=images.shape[2:],
        hashes=np.array([content_hash(image) for image in images]),
        pixels=Memory(images, slope),
    )


def labels_of(raw: np.ndarray) -> np.ndarray:
    labels = np.asarray(raw)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    got, do = "", "number the classes 0, 1, ..."
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "uibf":
        got = f"{labels.dtype} of shape {labels.shape}"
    elif not np.isfinite(labels).all():
        gaps = np.unique(np.nonzero(~np.isfinite(labels))[0])
        got, do = (
            f"NaN in labels of rows {few(gaps)}",
            "fill them in or leave these images out",
        )
    elif (labels != np.floor(labels)).any():
        got = f"{labels[labels != np.floor(labels)][0]:g}"
    if got:
        raise expected(
            "labels must be whole numbers (N,), (N, 1) or (N, findings)", got=got, do=do
        )
    return labels.astype(np.int64)
