"""Phantoms: generated images that look like chest radiographs, with and without soft opacities;
named synthetic.

Coordinates run over [-1, 1] on every axis: (y, x) top to bottom and left to right, with a leading
front-to-back z in volumes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from scipy.ndimage import gaussian_filter

from feathide.data.arrays import cases_of_arrays
from feathide.data.cases import Cases
from feathide.errors import expected

__all__ = ["phantoms"]

COUNTS = {"train": 300, "val": 60, "test": 240}
CLASSES = ("clear", "opacity")
# z, y, x of every pixel; z is all 0 in pictures
Grid = tuple[np.ndarray, np.ndarray, np.ndarray]


def phantoms(
    *,
    shape: Sequence[int] = (64, 64),
    channels: int = 1,
    counts: Mapping[str, int] = MappingProxyType(COUNTS),
    contrast: float = 1.0,
    seed: int = 0,
) -> Cases:
    """Radiograph-like uint8 images (H, W) or chest-like volumes (D, H, W), half of them with soft
    opacities.

    A case of class 1 has one to three opacities. Every synthetic patient has one to three images
    with its own anatomy; exposure, position and noise vary from image to image, so mean brightness
    tells next to nothing about the class. ``counts`` are the images of train, val and test;
    ``contrast`` scales the opacities; with 3 ``channels`` the grey image is repeated. The same
    arguments give the same images."""
    if len(shape) not in (2, 3) or min(shape) < 16:
        raise expected(
            "phantoms must be (H, W) or (D, H, W) of at least 16",
            got=tuple(shape),
            do="choose another shape",
        )
    rng = np.random.default_rng(seed)
    images, labels, patients, splits = [], [], [], []
    for split, count in counts.items():
        # the patient of each image
        sessions = np.repeat(np.arange(count), rng.integers(1, 4, size=count))[:count]
        anatomy = rng.uniform(-1, 1, size=(count, 6))
        for i, patient in enumerate(sessions):
            images.append(_expose(tuple(shape), anatomy[patient], contrast * (i % 2), rng))
            labels.append(i % 2)
            patients.append(f"{split}-patient-{patient:03d}")
            splits.append(split)
    return cases_of_arrays(
        np.repeat(np.stack(images)[:, None], channels, axis=1),  # (N, C, *S)
        np.array(labels),
        splits=splits,
        patients=patients,
        class_names=CLASSES,
        name="phantoms (synthetic)",
    )


def _expose(
    shape: tuple[int, ...], anatomy: np.ndarray, contrast: float, rng: np.random.Generator
) -> np.ndarray:
    """One picture of one patient, uint8: position, density, exposure and noise."""
    grid = _position(shape, rng)
    lungs = _lungs(grid, anatomy)
    vessels = gaussian_filter(rng.standard_normal(shape), 0.02 * shape[-1])
    density = (
        _chest(grid, lungs, anatomy, volume=len(shape) == 3)
        + 0.02 * lungs * vessels / vessels.std()
    )
    density += contrast * _opacities(grid, lungs, rng)
    exposed = rng.uniform(0.8, 1.15) * np.clip(density, 0, None) ** rng.uniform(
        0.85, 1.2
    ) + rng.uniform(-0.06, 0.06)
    noisy = exposed + rng.uniform(0.01, 0.025) * rng.standard_normal(shape)
    return np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)


def _position(shape: tuple[int, ...], rng: np.random.Generator) -> Grid:
    """The coordinates of every pixel after a small shift, zoom and rotation in the (y, x)
    plane.
    """
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    z, y, x = axes if len(shape) == 3 else (np.zeros(shape), *axes)
    zoom, turn = rng.uniform(0.94, 1.06), rng.uniform(-0.06, 0.06)
    y, x = zoom * y + rng.uniform(-0.06, 0.06), zoom * x + rng.uniform(-0.06, 0.06)
    return z, y + turn * x, x - turn * y


def _lungs(grid: Grid, anatomy: np.ndarray) -> np.ndarray:
    """Where there is air, 0 to 1: two ellipsoids cut off by the domes of the diaphragm."""
    z, y, x = grid
    height, width, dome = (
        0.72 + 0.06 * anatomy[0],
        0.33 + 0.03 * anatomy[1],
        0.5 + 0.08 * anatomy[2],
    )
    side = np.abs(x) - 0.43  # 0 in the middle of either lung
    inside = 1 - ((y + 0.1) / height) ** 2 - (side / width) ** 2 - (z / 0.75) ** 2
    floor = dome - 0.12 * (1 - (side / 0.4) ** 2) - y + 0.04 * np.sign(x)
    return _rise(inside, 0.1) * _rise(floor, 0.025)


def _chest(
    grid: Grid, lungs: np.ndarray, anatomy: np.ndarray, *, volume: bool
) -> np.ndarray:
    """The density of the healthy chest: 0 is air, 1 is dense bone."""
    z, y, x = grid
    body = _rise(
        1.05
        - (np.abs(x) / 1.0) ** 4
        - (np.clip(-0.62 - y, 0, None) * np.abs(x) * 4) ** 2
        - (z / 0.95) ** 4,
        0.1,
    )
    heart = _rise(
        1
        - ((y - 0.22) / 0.34) ** 2
        - ((x - 0.13) / (0.27 + 0.04 * anatomy[3])) ** 2
        - (z / 0.5) ** 2,
        0.2,
    )
    middle = np.exp(-((x / 0.13) ** 2)) * (
        1 if not volume else np.exp(-(((z - 0.5) / 0.25) ** 2))
    )
    spine = middle * (1 + 0.25 * np.cos(2 * np.pi * y / 0.17))
    cage = 1 - (x / 0.86) ** 2 - ((y + 0.05) / 1.0) ** 2 - (z / 0.85) ** 2
    # a volume shows the ribs, a picture their shadow
    cage = np.exp(-((cage / 0.12) ** 2)) if volume else _rise(cage, 0.05)
    slope, period = 0.35 + 0.1 * anatomy[4], 0.21 + 0.015 * anatomy[5]
    ribs = (
        cage
        * np.clip(
            np.cos(2 * np.pi * (y + slope * x**2 - 0.5 * slope * np.abs(x)) / period),
            0,
            None,
        )
        ** 3
    )
    return body * (
        0.55
        + 0.12 * heart
        + 0.16 * spine
        + (0.35 if volume else 0.1) * ribs
        - 0.4 * lungs * (1 - 0.75 * heart)
    )


def _opacities(grid: Grid, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to three soft spots inside the lungs."""
    total = np.zeros_like(lungs)
    places = np.argwhere(lungs > 0.8)
    for _ in range(rng.integers(1, 4)):
        centre = tuple(places[rng.integers(len(places))])
        radii = rng.uniform(0.13, 0.26, size=3)
        far = sum(
            ((axis - axis[centre]) / radius) ** 2
            for axis, radius in zip(grid, radii, strict=True)
        )
        total += rng.uniform(0.26, 0.4) * np.exp(-far)
    return np.clip(total, 0, 0.45)


def _rise(level: np.ndarray, width: float) -> np.ndarray:
    """0 below level 0, 1 above it, with a soft edge."""
    return 0.5 * (1 + np.tanh(level / width))
