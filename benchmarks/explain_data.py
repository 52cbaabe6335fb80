"""The matched data sets of ``benchmarks/explain.md``, made from the real sets: ``python benchmarks/explain_data.py ../shared/data runs/explain/data``.

- ``xray32.npz``: chest X-rays, 32 x 32, grey, two classes; ``cars_horses32.npz``: two classes of CIFAR-10 as colour pictures, and ``cars_horses32_grey.npz``
  as grey ones; all with the same number of images of each class in each split;
- ``hippocampus24.npz``: two of the volumes' classes, and ``hippocampus24_slice.npz``: the middle slice of each of the same volumes.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from feathide.data.stored import resize, with_channels

COUNTS = {"train": 400, "val": 48, "test": 90}  # of each class: what CIFAR-10 has of two classes


def split_of(
    data: np.lib.npyio.NpzFile, split: str, classes: tuple[int, int], most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first ``most`` images of two classes of a split, their labels 0 and 1, and their place in the file."""
    labels = data[f"{split}_labels"].ravel()
    rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[:most] for c in classes]))
    return data[f"{split}_images"][rows], (labels[rows] == classes[1]).astype(np.int64)[:, None], rows


def write(
    path: Path, parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], patients: dict[str, np.ndarray]
) -> None:
    arrays = {}
    for split, (images, labels, rows) in parts.items():
        arrays |= {f"{split}_images": images, f"{split}_labels": labels, f"{split}_patient": patients[split][rows]}
    np.savez_compressed(path, **arrays)
    print(path, {s: (len(p[1]), round(float(p[1].mean()), 2)) for s, p in parts.items()})


def patients_of(csv: Path, data: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    """The patient (or, where none is known, the image itself) of each row of each split."""
    names = {s: np.array([f"{s}{i}" for i in range(len(data[f"{s}_labels"]))], dtype="U80") for s in COUNTS}
    if csv.is_file():
        meta = pd.read_csv(csv, dtype=str)
        for split, index, name in zip(
            meta["split"], meta["index"].astype(int), meta.get("patient", meta.get("group")), strict=True
        ):
            names[split][index] = name if isinstance(name, str) else names[split][index]
    return names


def main(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with np.load(source / "cxr_pneumonia_128r.npz", allow_pickle=False) as data:
        parts = {s: split_of(data, s, (0, 1), n) for s, n in COUNTS.items()}
        small = {s: (np.stack([resize(i[None], (32, 32))[0] for i in x]), y, rows) for s, (x, y, rows) in parts.items()}
        write(out / "xray32.npz", small, patients_of(source / "cxr_pneumonia_128r.meta.csv", data))
    with np.load(source / "cifar10_lossless_6k.npz", allow_pickle=False) as data:
        parts = {s: split_of(data, s, (1, 7), n) for s, n in COUNTS.items()}
        patients = patients_of(source / "cifar10_lossless_6k.meta.csv", data)
        write(out / "cars_horses32.npz", parts, patients)
        grey = {
            s: (np.stack([with_channels(np.moveaxis(i, -1, 0), 1)[0] for i in x]), y, rows)
            for s, (x, y, rows) in parts.items()
        }
        write(out / "cars_horses32_grey.npz", grey, patients)
    with np.load(source / "hippocampus_part3d_24.npz", allow_pickle=False) as data:
        parts = {s: split_of(data, s, (0, 1), n) for s, n in COUNTS.items()}
        patients = patients_of(source / "hippocampus_part3d_24.meta.csv", data)
        write(out / "hippocampus24.npz", parts, patients)
        slices = {s: (np.ascontiguousarray(x[:, x.shape[1] // 2]), y, rows) for s, (x, y, rows) in parts.items()}
        write(out / "hippocampus24_slice.npz", slices, patients)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
