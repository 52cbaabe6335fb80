"""Where the slices and frames of DICOM lie in the patient: their order, and the side that each
axis runs towards.

Reference: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16.2.4 (plane orientation).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset

from feathide.errors import expected, few, first_line

LEAN = 1e-3  # of a unit vector: how far the planes of one volume may lean


def order_of(
    heads: Sequence[Dataset], files: Sequence[Path], folder: Path
) -> tuple[list[int], float]:
    """The slices by position along their normal, and the distance of neighbours in
    millimetres.
    """
    for key in ("ImageOrientationPatient", "ImagePositionPatient"):
        odd = [
            path.name for path, head in zip(files, heads, strict=True) if not head.get(key)
        ]
        if odd:
            what = f"every slice in {folder} must have an orientation and a position"
            do = "move the other files out, or list the files one by one in a manifest"
            raise expected(what, got=f"no {key} in {few(odd)}", do=do)
    try:
        across = np.cross(*_plane(heads[0], files[0]).reshape(2, 3))
        along = np.array(
            [
                np.array(head.ImagePositionPatient, dtype=np.float64) @ across
                for head in heads
            ]
        )
    except (AttributeError, TypeError, ValueError) as error:
        what = f"every slice in {folder} must have an orientation and a position"
        raise expected(
            what, got=first_line(error), do="list the files one by one in a manifest"
        ) from error
    order = np.argsort(along, kind="stable")
    do = "remove duplicate slices or add missing ones"
    return order.tolist(), _even_gap(np.diff(along[order]), f"the slices in {folder}", do)


def _even_gap(gaps: np.ndarray, what: str, do: str) -> float:
    """The usual of the distances ``gaps`` of neighbours in millimetres, which must be about equal
    and not 0.
    """
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    if not np.isfinite(gaps).all() or (
        len(gaps)
        and (gaps.min() < 0.5 * usual or gaps.min() <= 0 or gaps.max() > 1.5 * usual)
    ):
        raise expected(
            f"{what} must be evenly spaced",
            got=f"gaps of {gaps.min():g} to {gaps.max():g} mm",
            do=do,
        )
    return usual


def orientation_of(head: Dataset, axes: int, path: Path) -> str:
    """The side of the patient that each axis of an image runs towards, such as ``PL`` for the
    rows and columns of an axial slice, or ``SPL`` of a stack; "?" for an axis that the header
    does not place, and nothing where it has no planes (C.7.6.2, C.7.6.16.2.4).
    """
    groups = [
        head,
        *head.get("SharedFunctionalGroupsSequence", ()),
        *head.get("PerFrameFunctionalGroupsSequence", ()),
    ]
    planes = [p for g in groups for p in g.get("PlaneOrientationSequence", ())] or [head]
    turned = [_plane(p, path) for p in planes if p.get("ImageOrientationPatient")]
    if not turned:
        return ""
    if max(np.abs(plane - turned[0]).max() for plane in turned) > LEAN:
        raise expected(
            f"the frames of {path} must be parallel",
            got="several orientations",
            do="split the file",
        )
    right, down = turned[0].reshape(2, 3)
    if axes == 2:
        return _side(down) + _side(right)
    places = [
        p
        for g in groups
        for p in g.get("PlanePositionSequence", ())
        if p.get("ImagePositionPatient")
    ]
    across = np.cross(right, down)
    gaps = np.diff([np.array(p.ImagePositionPatient, np.float64) @ across for p in places])
    way = 0.0  # of a loop in time, whose frames are all at one place
    if len(gaps) and not np.abs(gaps).max() <= LEAN:
        way = -1.0 if gaps.sum() < 0 else 1.0
        _even_gap(
            gaps * way,
            f"the frames of {path}",
            "split the file, or sort its frames by their position",
        )
    return _side(across * way) + _side(down) + _side(right)


def _plane(head: Dataset, path: Path) -> np.ndarray:
    """The directions of the rows and columns of an image, (6,)."""
    given = [float(v) for v in head.ImageOrientationPatient]
    if len(given) != 6 or not np.isfinite(given).all():
        what = f"{path} must have an orientation of six numbers"
        raise expected(what, got=given, do="correct the header or leave it out")
    return np.array(given)


def series_orientation(
    heads: Sequence[Dataset], files: Sequence[Path], folder: Path
) -> str:
    """As ``orientation_of``, of slices in the order of ``order_of``, which must be parallel."""
    turned = np.array([_plane(head, path) for head, path in zip(heads, files, strict=True)])
    if np.abs(turned - turned[0]).max() > LEAN:
        got = (
            f"orientations that differ by up to {np.abs(turned - turned[0]).max():.2g}, as of a "
            "localizer"
        )
        raise expected(
            f"the slices in {folder} must be parallel",
            got=got,
            do="give each plane a folder of its own",
        )
    right, down = turned[0].reshape(2, 3)
    return _side(np.cross(right, down)) + _side(down) + _side(right)


def _side(direction: np.ndarray) -> str:
    """The side of the patient that a direction points to most: DICOM counts from right to left,
    from front to back and from the feet up.
    """
    axis = int(np.abs(direction).argmax())
    return (
        "?" if direction[axis] == 0 else "LPS"[axis] if direction[axis] > 0 else "RAI"[axis]
    )
