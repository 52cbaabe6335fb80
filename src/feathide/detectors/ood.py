"""Out-of-distribution scores (``OOD_SCORES``): detectors that never see an adversarial
example.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from feathide.detectors import (
    Detector,
    FreeEnergy,
    Mahalanobis,
    MaxSoftmax,
    MixtureEnergy,
    NearestNeighbours,
)
from feathide.detectors.base import features, fitted, layer_names, spread
from feathide.errors import expected
from feathide.types import Evidence, Outputs

__all__ = ["OOD_SCORES", "Residual", "VirtualLogit", "clean_evidence"]


# --- scores -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Residual:
    """What ``VirtualLogit`` has learnt: the origin o (C,), the directions outside the principal
    space R (C, C - D), and the scale alpha.
    """

    name: str
    origin: Tensor
    outside: Tensor
    alpha: float


@dataclass(frozen=True)
class VirtualLogit(Detector):
    """ViM (Wang et al. 2022): the size of the feature outside the principal space, as one more
    logit, against the logits z.

        score = alpha ||(f - o) R|| - log sum_j exp(z_j),    alpha = mean(max_j z_j) / mean(||(f -
        o) R||) over training features,

    R spans the C - D directions in which (f - o) varies least over the training set.
    ``principal``: D; None: the paper's choice, 1000 from 2048 channels, 512 from 768, else half
    of the channels. o = -W^+ b is the point where all logits vanish. W and b are found by least
    squares from features and logits, so that no access to the network is needed: exact where the
    layer is the input of a linear head."""

    takes_dense: ClassVar[bool] = False
    name: str = "vim"
    layer: str = "last"
    principal: int | None = None
    residual_: Residual | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "VirtualLogit":
        name = layer_names(evidence.train, self.layer)[0]
        f, z = (
            features(evidence.train, [name])[0].detach().double(),
            evidence.train.logits.detach().double(),
        )
        spread(f, name)
        channels = f.shape[1]
        d = self.principal or (
            1000 if channels >= 2048 else 512 if channels >= 768 else channels // 2
        )
        if not 0 < d < channels:
            raise expected(
                f"principal must be 1 to {channels - 1}",
                got=d,
                do="leave some directions outside",
            )
        centre = f.mean(0)
        weight = torch.linalg.pinv(f - centre) @ (z - z.mean(0))  # (C, K)
        bias = z.mean(0) - centre @ weight
        origin = -torch.linalg.pinv(weight.T) @ bias
        u = f - origin
        # ascending: the least first
        outside = torch.linalg.eigh(u.T @ u).eigenvectors[:, : channels - d]
        size = (u @ outside).norm(dim=1).mean().clamp_min(1e-12)
        return replace(
            self, residual_=Residual(name, origin, outside, float(z.amax(1).mean() / size))
        )

    def score(self, out: Outputs) -> Tensor:
        r = fitted(self.residual_, self)
        u = features(out, [r.name])[0] - r.origin.to(out.logits)
        return r.alpha * (u @ r.outside.to(u)).norm(dim=1) - out.logits.logsumexp(1)


OOD_SCORES: Mapping[str, Callable[[], Detector]] = {
    "hfc-last": partial(MixtureEnergy, name="hfc-last", layers="last"),
    "hfc-all": partial(MixtureEnergy, name="hfc-all", layers="all"),
    "msp": MaxSoftmax,
    "energy": FreeEnergy,
    "maha-last": partial(Mahalanobis, name="maha-last", layers="last", combine="mean"),
    "maha-all": partial(Mahalanobis, name="maha-all", layers="all", combine="mean"),
    "knn": NearestNeighbours,
    "vim": VirtualLogit,
}


def clean_evidence(train: Outputs, labels: Tensor, held: Outputs) -> Evidence:
    """Evidence without any attack: training outputs, and held-out clean ones."""
    return Evidence(train, labels, clean=held, noisy=held[:0], adversarial=held[:0])
