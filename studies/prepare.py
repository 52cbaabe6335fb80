"""Make the image files that studies/paper/small.yaml names from the public originals, with the names, shapes and counts that it expects.

    python studies/prepare.py --kermany chest_xray --hippocampus Task04_Hippocampus --cifar cifar-10-batches-bin --medmnist pneumoniamnist.npz --out images

Each option is a folder or file as its own page gives it (docs/datasets.md says where); give those that you have. Every image file gets a table
NAME.meta.csv (split, index, label, patient) beside it. The same originals give the same files.
"""

import argparse
import csv
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from feathide.data import Cases, by_hash, cases_of_arrays, load_cases
from feathide.data.files import read_image
from feathide.errors import InputError, expected

SPLITS = ("train", "val", "test")
EDGE = 24  # voxels of a hippocampus patch along each axis
JITTERS = 3  # patches of each part of a hippocampus
RECORD = 1 + 3 * 32 * 32  # bytes of a CIFAR-10 image: its class, then red, green and blue


def kermany(folder: Path, out: Path) -> None:
    """``cxr_pneumonia_64.npz``, the official split, and ``cxr_pneumonia_128r.npz``, split anew by patient, with as many normal as pneumonia."""
    save(
        load_cases(folder, kind="kermany", size=64, skip_bad=True, fractions=(0.72, 0.08, 0.2)),
        out / "cxr_pneumonia_64.npz",
    )
    anew = load_cases(folder, kind="kermany-resplit", size=128, skip_bad=True, fractions=(0.5, 0.1, 0.4))
    save(balanced(anew, {"train": 1000, "val": 200, "test": 600}), out / "cxr_pneumonia_128r.npz")


def hippocampus(folder: Path, out: Path) -> None:
    """``hippocampus_part3d_24.npz``: patches around the head (0) and the body and tail (1) of each hippocampus of ``imagesTr`` and ``labelsTr``."""
    files = sorted(folder.glob("imagesTr/hippocampus_*.nii.gz"))
    if not files:
        raise expected(f"{folder} must hold imagesTr/hippocampus_*.nii.gz", got="none", do="fetch Task04_Hippocampus")
    images, labels, patients = [], [], []
    for number, file in enumerate(files):
        parts = read_image(folder / "labelsTr" / file.name).stored[0]  # (X, Y, Z): 0 nothing, 1 head, 2 body and tail
        x = read_image(file).values[0].astype(np.float64)
        low, high = np.percentile(x, (0.5, 99.5))
        grey = np.rint(255 * np.clip((x - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
        padded, rng = np.pad(grey, EDGE), np.random.default_rng(number)
        for part in (1, 2):
            centre = np.argwhere(parts == part).mean(0) + EDGE / 2  # of the padded volume, less half an edge
            for shift in [np.zeros(3), *rng.integers(-2, 3, (JITTERS - 1, 3))]:
                corner = np.rint(centre + shift).astype(int)
                images.append(padded[tuple(slice(c, c + EDGE) for c in corner)])
                labels.append(part - 1)
                patients.append(file.name.partition(".")[0])
    splits = by_hash(patients, {"train": 0.65, "val": 0.1, "test": 0.25})
    cases = cases_of_arrays(np.stack(images)[:, None], np.array(labels), splits=splits, patients=patients)
    save(cases, out / "hippocampus_part3d_24.npz")


def cifar(folder: Path, out: Path) -> None:
    """``cifar10.npz``, all images, and ``cifar10_lossless_6k.npz``, the first of each batch; from the binary version, which needs no unpickling."""
    batches = [records(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    for name, most, val in (("cifar10.npz", None, 0.1), ("cifar10_lossless_6k.npz", 1034, 500 / 5170)):
        train, test = np.concatenate([batch[:most] for batch in batches]), records(folder / "test_batch.bin")[:most]
        last = len(train) - round(val * len(train))
        splits = np.repeat(SPLITS, (last, len(train) - last, len(test)))
        rows = np.concatenate([train, test])
        save(cases_of_arrays(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0], splits=splits), out / name)


def medmnist(file: Path, out: Path) -> None:
    """``pneumoniamnist28.npz``: MedMNIST's own file under the name that the study uses."""
    load_cases(file, kind="medmnist", skip_bad=True)
    shutil.copyfile(file, out / "pneumoniamnist28.npz")


def records(file: Path) -> np.ndarray:
    """The images of a CIFAR-10 batch, (N, 3073) uint8: class, then three planes of 32 x 32."""
    if not file.is_file() or file.stat().st_size % RECORD:
        got = f"{file.stat().st_size} bytes" if file.is_file() else "no such file"
        raise expected(
            f"{file} must hold records of {RECORD} bytes", got=got, do="fetch the binary version of CIFAR-10"
        )
    return np.fromfile(file, np.uint8).reshape(-1, RECORD)


def balanced(cases: Cases, most: Mapping[str, int]) -> Cases:
    """At most so many cases of every split, drawn at random, as many of one class as of another."""
    draw, kept = np.random.default_rng(0).permutation(len(cases)), []
    for split, n in most.items():
        rows = [draw[(cases.splits[draw] == split) & (cases.labels[draw] == k)] for k in range(len(cases.class_names))]
        each = min(n // len(rows), *map(len, rows))
        kept += [row[:each] for row in rows]
    return cases.take(np.sort(np.concatenate(kept)))


def save(cases: Cases, path: Path) -> None:
    """The cases as an npz of the MedMNIST layout, 8 bits, with its table of patients."""
    arrays, table = {}, []
    for split in SPLITS:
        rows = cases.where(split)
        pixels = np.rint(255 * cases.images(rows)).astype(np.uint8)  # (n, C, *S)
        arrays[f"{split}_images"] = pixels[:, 0] if cases.channels == 1 else np.moveaxis(pixels, 1, -1)
        arrays[f"{split}_labels"] = cases.labels[rows, None].astype(np.uint8)
        table += [(split, i, int(cases.labels[r]), cases.patients[r]) for i, r in enumerate(rows)]
    np.savez_compressed(path, **arrays)
    with path.with_suffix(".meta.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("split", "index", "label", "patient"), *table])
    print(f"{path}: {', '.join(f'{len(cases.where(s))} {s}' for s in SPLITS)}")


def main() -> None:
    makers = {"kermany": kermany, "hippocampus": hippocampus, "cifar": cifar, "medmnist": medmnist}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in makers:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, default=Path("images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        for name, make in makers.items():
            if getattr(given, name) is not None:
                make(getattr(given, name), given.out)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
