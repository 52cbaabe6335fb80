"""Outputs as arrays for the store, and back; scores as an array."""

from collections.abc import Mapping

import numpy as np
import torch

from feathide.attacks.grid import Grid
from feathide.catalog import DETECTORS
from feathide.detectors import Detector
from feathide.types import Evidence, Outputs

__all__ = ["linf_distance", "packed", "scored", "taught", "unpacked"]


BESIDE = ("stochastic", "others", "statistics", "squeezed")


def taught(name: str, evidence: Evidence) -> Detector:
    """The detector of this name, fitted."""
    return DETECTORS[name]().fit(evidence)


def scored(detector: Detector, out: Outputs) -> np.ndarray:
    """Scores (N,) in float64, without gradient."""
    with torch.no_grad():
        return detector.score(out.to(torch.float64)).numpy().astype(np.float64)


def packed(out: Outputs, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs as arrays for the store."""
    arrays = {
        "rows": rows,
        "logits": out.logits.numpy(),
        "layers": np.array(list(out.features)),
    }
    arrays |= {f"f{i:03d}": f.numpy() for i, f in enumerate(out.features.values())}
    for name in BESIDE:
        value = getattr(out, name)
        if value is not None:
            arrays[name] = value.numpy()
    if out.guards is not None:
        arrays["guards"] = np.array(list(out.guards))
        scores = enumerate(out.guards.values())
        arrays |= {f"guard{i:03d}": score.numpy() for i, score in scores}
    if out.reference_network is not None:
        arrays |= {
            f"reference_network/{k}": v
            for k, v in packed(out.reference_network, rows).items()
        }
    return arrays


def unpacked(arrays: Mapping[str, np.ndarray]) -> Outputs:
    """The inverse of ``packed``."""
    features = {
        str(n): torch.from_numpy(arrays[f"f{i:03d}"])
        for i, n in enumerate(arrays["layers"])
    }
    extra = {n: torch.from_numpy(arrays[n]) for n in BESIDE if n in arrays}
    guards = {
        str(n): torch.from_numpy(arrays[f"guard{i:03d}"])
        for i, n in enumerate(arrays.get("guards", ()))
    }
    seen = {
        k.removeprefix("reference_network/"): v
        for k, v in arrays.items()
        if k.startswith("reference_network/")
    }
    return Outputs(
        torch.from_numpy(arrays["logits"]),
        features,
        **extra,
        reference_network=unpacked(seen) if seen else None,
        guards=guards or None,
    )


def linf_distance(a: np.ndarray, b: np.ndarray, grid: Grid | None) -> np.ndarray:
    """The largest difference of each image (N, ...) from the other, (N,). Where files hold whole
    levels it is counted in these, so that no rounding of float32 looks like more than eps; of
    floating-point images it is exact, and half a last digit of a pixel may be above eps.
    """
    size = np.abs(a.astype(np.float64) - b).reshape(len(a), -1).max(1)
    return size if grid is None else np.rint(size / grid.step) * grid.step
