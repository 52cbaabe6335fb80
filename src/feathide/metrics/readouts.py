"""What a clinician reads off a dense prediction: Dice, surface distance, volume, the place of a
landmark.
"""

import math

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

__all__ = ["dice", "hausdorff95_mm", "landmark_distance_mm", "volume_ml"]

MM3_PER_ML = 1000.0


def dice(found: Tensor, true: Tensor) -> Tensor:
    """The Dice coefficient of masks, 2 |A and B| / (|A| + |B|); NaN where both are empty.

    Args:
        found: Masks (N, *S), bool.
        true: Masks (N, *S), bool.

    Returns:
        One number in [0, 1] for each image (N,), float64.
    """
    both = (found & true).flatten(1).sum(1).double()
    total = (found.flatten(1).sum(1) + true.flatten(1).sum(1)).double()
    return 2 * both / total


def volume_ml(mask: Tensor, spacing: Tensor) -> Tensor:
    """The volume of masks in millilitres; in 2D, their area times 1 mm.

    Args:
        mask: Masks (N, *S), bool.
        spacing: The size of a voxel (N, D) in mm.

    Returns:
        One volume for each image (N,), float64.
    """
    return mask.flatten(1).sum(1) * spacing.double().to(mask.device).prod(1) / MM3_PER_ML


def landmark_distance_mm(found: Tensor, other: Tensor, spacing: Tensor) -> Tensor:
    """The distances between landmarks in mm.

    Args:
        found: Positions (N, P, D) in voxels.
        other: Positions (N, P, D) in voxels.
        spacing: The size of a voxel (N, D) in mm.

    Returns:
        One distance for each landmark (N, P).
    """
    apart = (found - other.to(found)) * spacing.to(found)[:, None]
    return apart.norm(dim=2)


def hausdorff95_mm(found: Tensor, true: Tensor, spacing: Tensor) -> Tensor:
    """The 95 % Hausdorff distance of masks in mm.

    It is the larger of the two 95th percentiles of the distance from one surface to the other.

    Args:
        found: Masks (N, *S), bool.
        true: Masks (N, *S), bool.
        spacing: The size of a voxel (N, D) in mm.

    Returns:
        One distance for each image (N,), float64, on the CPU: infinite where only one of the masks
        is empty, NaN where both are.
    """
    pairs = zip(found.cpu().numpy(), true.cpu().numpy(), spacing.cpu().numpy(), strict=True)
    return torch.tensor([_hausdorff95(a, b, s) for a, b, s in pairs], dtype=torch.float64)


def _hausdorff95(a: np.ndarray, b: np.ndarray, spacing: np.ndarray) -> float:
    if not a.any() or not b.any():
        return math.nan if a.any() == b.any() else math.inf
    # what lies outside both is far from every surface: leave it out
    inside = np.argwhere(a | b)
    part = tuple(
        slice(low, high + 1) for low, high in zip(inside.min(0), inside.max(0), strict=True)
    )
    edges = [mask & ~binary_erosion(mask) for mask in (a[part], b[part])]
    far = [distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    there, back = far[1][edges[0]], far[0][edges[1]]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))
