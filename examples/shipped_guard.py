"""A guard as a vendor might ship it: it rejects images that are rough between neighbouring pixels.

It looks at images in [0, 1], (N, C, H, W), and gives one number an image; above its threshold an
image is rejected. ``docs/own-guard.md`` audits it.

    python examples/shipped_guard.py IMAGES.npz     # where its threshold comes from
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.0344


def roughness(x: Tensor) -> Tensor:
    """The mean distance of a pixel from the mean of the 3 x 3 pixels around it, (N,)."""
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (x - smooth).abs().flatten(1).mean(1)


def rejects(x: Tensor) -> Tensor:
    """The same guard behind its threshold: True for a rejected image, and no gradient."""
    with torch.no_grad():
        return roughness(x) > THRESHOLD


if __name__ == "__main__":
    import numpy as np

    images = torch.from_numpy(np.load(sys.argv[1])["train_images"])
    scores = roughness(images[:, None] / 255)
    print(f"the 95 % quantile over {len(images)} training images: {scores.quantile(0.95):.4f}")
