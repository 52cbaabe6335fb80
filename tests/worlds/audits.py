"""A small audit: its images and its plan."""

from pathlib import Path

import numpy as np

EPS = 16 / 255


def patches(n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 32 x 32 images with a soft bright patch, on the left (class 0) or on the right (class
    1).
    """
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    grid = np.arange(32)
    rows, columns = rng.uniform(10, 22, n), np.where(y == 0, 9, 22) + rng.normal(0, 1.5, n)
    bump = np.exp(
        -(
            (grid[None, :, None] - rows[:, None, None]) ** 2
            + (grid[None, None, :] - columns[:, None, None]) ** 2
        )
        / 30
    )
    x = 90 + 60 * bump + rng.normal(0, 12, (n, 32, 32))
    return x.clip(0, 255).astype(np.uint8), y[:, None]


def write_npz(path: Path) -> Path:
    arrays = {}
    for i, (split, n) in enumerate((("train", 120), ("val", 24), ("test", 150))):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = patches(n, seed=i)
        arrays[f"{split}_patient"] = np.array([f"{split}{k // 2}" for k in range(n)])
    np.savez(path, **arrays)
    return path


PLAN = {
    "network": {"arch": "tiny", "layers": "conv", "train": {"epochs": 8, "augment": False}},
    "eps": EPS,
    "attacks": ["fgsm", "pgd"],
    "schedule": {"steps": 8},
    "split": {"most": 24},
    "dropout_samples": 8,
    "batch_size": 16,
}
