"""Part of a study: some of its classes, or the middle slice of each of its volumes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from feathide.data.cases import Cases, Pixels
from feathide.errors import expected, unknown

__all__ = ["of_classes", "slices"]


def of_classes(cases: Cases, chosen: Sequence[str]) -> Cases:
    """The cases of the classes ``chosen``, by name or number, which become the classes 0, 1, ...
    in that order.
    """
    if cases.multi_label:
        raise expected(
            "classes can be chosen where an image has one label",
            got="several findings",
            do="leave it out",
        )
    known = {str(i): i for i in range(len(cases.class_names))} | {
        n: i for i, n in enumerate(cases.class_names)
    }
    for name in chosen:
        if name not in known:
            raise unknown("class", name, cases.class_names)
    old = [known[name] for name in chosen]
    if len(set(old)) < max(len(old), 2):
        raise expected(
            "classes must name at least two, each once",
            got=", ".join(chosen),
            do="correct the list",
        )
    rows = np.flatnonzero(np.isin(cases.labels, old))
    part = cases.take(rows)
    labels = np.array([old.index(label) for label in part.labels], dtype=np.int64)
    return replace(
        part, labels=labels, class_names=tuple(cases.class_names[i] for i in old)
    )


def slices(cases: Cases, axis: int) -> Cases:
    """The middle slice of each volume along a spatial ``axis``, as 2D images of the same cases;
    they have no files of their own.
    """
    if len(cases.shape) != 3 or not 0 <= axis < 3:
        got = f"axis {axis} of images {tuple(cases.shape)}"
        raise expected(
            "slice must be axis 0, 1 or 2 of volumes (D, H, W)",
            got=got,
            do="leave it out for 2D images",
        )
    hashes = np.array(
        [hashlib.sha256(f"{h} slice {axis}".encode()).hexdigest() for h in cases.hashes]
    )
    left = [i for i in range(3) if i != axis]
    return replace(
        cases,
        shape=tuple(cases.shape[i] for i in left),
        spacing=None if cases.spacing is None else tuple(cases.spacing[i] for i in left),
        orientation=cases.orientation[:axis] + cases.orientation[axis + 1 :],
        hashes=hashes,
        paths=(),
        pixels=_Middle(cases.pixels, axis),
    )


@dataclass(frozen=True)
class _Middle:
    """The middle slices of the volumes of ``volumes``."""

    volumes: Pixels
    axis: int

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        x = self.volumes(rows)  # (n, C, D, H, W)
        return np.ascontiguousarray(x.take(x.shape[self.axis + 2] // 2, axis=self.axis + 2))

    def take(self, rows: np.ndarray) -> "_Middle":
        return _Middle(self.volumes.take(rows), self.axis)
