"""Who may learn from which case: splits by patient, stable when cases are added, and checked to
be disjoint.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from feathide.data.cases import SPLITS, Cases, Skipped
from feathide.errors import expected, few

__all__ = [
    "by_hash",
    "check_classes",
    "check_patients",
    "check_split",
    "thin",
    "three_way",
    "without_copies",
]


def by_hash(
    patients: Sequence[str] | np.ndarray, parts: Mapping[str, float], *, seed: int = 0
) -> np.ndarray:
    """The part of each case, (N,) str, from a hash of its patient's id: a case keeps its part
    when others are added.

    A patient's number u = sha256(seed, part names, id) / 2^64 is uniform in [0, 1); part k takes
    u between the sums of the fractions before and with k. The names of the parts enter the hash,
    so splits into other parts are independent of this one."""
    fractions = np.array(list(parts.values()), dtype=np.float64)
    if fractions.size == 0 or (fractions <= 0).any() or abs(fractions.sum() - 1) > 1e-6:
        raise expected(
            "fractions must be positive and sum to 1",
            got=str(dict(parts)),
            do="for example 0.4, 0.2, 0.4",
        )
    names, salt = np.array(list(parts)), f"{seed}:{','.join(parts)}:"
    digests = [hashlib.sha256(f"{salt}{patient}".encode()).digest() for patient in patients]
    u = np.array([int.from_bytes(d[:8], "big") / 2**64 for d in digests])
    return names[np.searchsorted(fractions.cumsum()[:-1], u, side="right")]


# the names on the left enter the hash: the division stays what it was when the splits had these
# names
HASHED = {"fit": "detector-training", "calibrate": "calibration", "test": "test"}


def three_way(
    patients: Sequence[str] | np.ndarray,
    *,
    fractions: tuple[float, float, float] = (0.4, 0.2, 0.4),
    seed: int = 0,
) -> np.ndarray:
    """The split of each case, (N,) of "detector-training", "calibration" and "test", by patient.

    Raises InputError if a split stays empty, which only a handful of patients can cause.
    """
    hashed = by_hash(patients, dict(zip(HASHED, fractions, strict=True)), seed=seed)
    part = np.array([HASHED[name] for name in hashed])
    missing = sorted(set(HASHED.values()) - set(part))
    if missing:
        got = f"nobody in {', '.join(missing)} of {len(set(map(str, patients)))}"
        raise expected(
            "detector_training, calibration and test must each have patients",
            got=got,
            do="give more patients or another seed",
        )
    return part


def thin(
    labels: np.ndarray, splits: np.ndarray, *, limit: int | None, seed: int = 0
) -> np.ndarray:
    """At most ``limit`` rows of every split, drawn at random in the proportions of the classes,
    in their old order.
    """
    if limit is None:
        return np.arange(len(labels))
    if limit < 1:
        raise expected(
            "limit must be positive", got=limit, do="leave it out to take all cases"
        )
    draw = np.random.default_rng(seed).permutation(len(labels))
    # the rank of a case within its class and split, as a share
    depth = np.empty(len(labels))
    strata = np.unique(
        np.column_stack([splits, labels.astype(str)]), axis=0, return_inverse=True
    )[1].ravel()
    for stratum in np.unique(strata):
        rows = draw[strata[draw] == stratum]
        depth[rows] = np.arange(len(rows)) / len(rows)
    kept = [
        draw[splits[draw] == s][np.argsort(depth[draw[splits[draw] == s]], kind="stable")][
            :limit
        ]
        for s in SPLITS
    ]
    return np.sort(np.concatenate(kept))


def check_classes(labels: np.ndarray, class_names: Sequence[str], name: str) -> None:
    """Refuse labels of one class only, or (one label per case) a class that no case has."""
    if labels.ndim == 2:
        if (labels == labels[:1]).all():
            raise expected(
                f"{name} must have a finding that varies",
                got="the same labels everywhere",
                do="add cases",
            )
        return
    counts = np.bincount(labels, minlength=len(class_names))
    present = [c for c, n in zip(class_names, counts, strict=True) if n]
    empty = [c for c, n in zip(class_names, counts, strict=True) if not n]
    if len(present) < 2:
        raise expected(
            f"{name} must have at least two classes",
            got=f"only {few(present)}",
            do="add the other class",
        )
    if empty:
        raise expected(
            f"every class of {name} must have a case",
            got=f"none of {few(empty)}",
            do="renumber the labels",
        )


def check_split(cases: Cases) -> None:
    """Refuse a table in which a patient, or an exact copy of an image, sits in two splits."""
    check_patients(cases.patients, ids=cases.ids, splits=cases.splits, name=cases.name)
    _check_disjoint(
        "image",
        cases.hashes,
        cases.ids,
        cases.splits,
        cases.name,
        "remove the copies or pass skip_bad=True",
    )


def check_patients(
    patients: np.ndarray, *, ids: np.ndarray, splits: np.ndarray, name: str
) -> None:
    """Refuse a patient in two splits."""
    _check_disjoint(
        "patient", patients, ids, splits, name, "move all images of a patient to one split"
    )


def _check_disjoint(
    what: str, keys: np.ndarray, ids: np.ndarray, splits: np.ndarray, name: str, do: str
) -> None:
    crossing = _crossings(keys, splits)
    if crossing:
        shown = "; ".join(
            " = ".join(f"{ids[r]} ({splits[r]})" for r in (g[0], g[-1]))
            for g in crossing[:3]
        )
        raise expected(
            f"no {what} of {name} may sit in two splits",
            got=f"{len(crossing)}: {shown}",
            do=do,
        )


def without_copies(cases: Cases) -> Cases:
    """The cases less the exact copies across splits: those in test stay, then those in val; the
    rest is in skipped.
    """
    dropped: dict[int, int] = {}
    for group in _crossings(cases.hashes, cases.splits):
        dropped |= {
            row: group[0] for row in group if cases.splits[row] != cases.splits[group[0]]
        }
    listed = tuple(
        Skipped(str(cases.ids[r]), f"the same image as {cases.ids[k]}")
        for r, k in sorted(dropped.items())
    )
    left = np.array([row for row in range(len(cases)) if row not in dropped])
    return replace(cases.take(left), skipped=cases.skipped + listed) if dropped else cases


def _crossings(keys: np.ndarray, splits: np.ndarray) -> list[list[int]]:
    """The rows of every key that occurs in more than one split, those in test first, those in
    train last.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row in sorted(range(len(keys)), key=lambda r: -SPLITS.index(splits[r])):
        rows[str(keys[row])].append(row)
    return [group for group in rows.values() if splits[group[0]] != splits[group[-1]]]
