"""Out-of-distribution scores and harmless or harmful shifts of an image: what else the guard's score sees (``OOD_SCORES``, ``SHIFTS``,
``HARMLESS``).

The scores are detectors that never see an adversarial example. A shift is a function ``(x, ids, seed, box) -> x`` of images (N, C, *S);
lesions also take ``mask``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv1d, grid_sample, pad

from feathide.detectors import Detector, FreeEnergy, Mahalanobis, MaxSoftmax, MixtureEnergy, NearestNeighbours
from feathide.detectors.base import features, fitted, layer_names, spread
from feathide.errors import expected
from feathide.geometry import Noise
from feathide.lesions import SIZES, Lesions
from feathide.types import Box, Evidence, Outputs

__all__ = ["HARMLESS", "OOD_SCORES", "SHIFTS", "Shift", "VirtualLogit", "clean_evidence"]

Shift = Callable[..., Tensor]


# --- scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Residual:
    """What ``VirtualLogit`` has learnt: the origin o (C,), the directions outside the principal space R (C, C - D), and the scale alpha."""

    name: str
    origin: Tensor
    outside: Tensor
    alpha: float


@dataclass(frozen=True)
class VirtualLogit(Detector):
    """ViM (Wang et al. 2022): the size of the feature outside the principal space, as one more logit, against the logits z.

        score = alpha ||(f - o) R|| - log sum_j exp(z_j),    alpha = mean(max_j z_j) / mean(||(f - o) R||) over training features,

    R spans the C - D directions in which (f - o) varies least over the training set. ``principal``: D; None: the paper's choice, 1000 from 2048
    channels, 512 from 768, else half of the channels. o = -W^+ b is the point where all logits vanish. W and b are found by least squares from
    features and logits, so that no access to the network is needed: exact where the layer is the input of a linear head.
    """

    name: str = "vim"
    layer: str = "last"
    principal: int | None = None
    residual_: Residual | None = field(default=None, repr=False, compare=False)

    def fit(self, evidence: Evidence) -> "VirtualLogit":
        name = layer_names(evidence.train, self.layer)[0]
        f, z = features(evidence.train, [name])[0].detach().double(), evidence.train.logits.detach().double()
        spread(f, name)
        channels = f.shape[1]
        d = self.principal or (1000 if channels >= 2048 else 512 if channels >= 768 else channels // 2)
        if not 0 < d < channels:
            raise expected(f"principal must be 1 to {channels - 1}", got=d, do="leave some directions outside")
        centre = f.mean(0)
        weight = torch.linalg.pinv(f - centre) @ (z - z.mean(0))  # (C, K)
        bias = z.mean(0) - centre @ weight
        origin = -torch.linalg.pinv(weight.T) @ bias
        u = f - origin
        outside = torch.linalg.eigh(u.T @ u).eigenvectors[:, : channels - d]  # ascending: the least first
        size = (u @ outside).norm(dim=1).mean().clamp_min(1e-12)
        return replace(self, residual_=Residual(name, origin, outside, float(z.amax(1).mean() / size)))

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


# --- shifts ----------------------------------------------------------------------------------------------------------


def lesions(size: str, count: tuple[int, int] = (1, 6)) -> Shift:
    """So many generated lesions of a size of ``SIZES``; inside ``mask`` (N or 1, *S), where the shift is given one."""
    spots = Lesions(radius=SIZES[size], count=count)

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box, mask: Tensor | None = None) -> Tensor:
        return spots(x, ids, seed=seed, box=box, mask=mask)

    return change


def noise(sigma: float) -> Shift:
    """Gaussian noise of standard deviation ``sigma``, as a share of the box."""

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box) -> Tensor:
        drawn = Noise(seed, tuple(ids)).normal(tuple(x.shape[1:]), draw="noise shift").to(x)
        return (x + sigma * (box[1] - box[0]) * drawn).clamp(*box)

    return change


def blur(sigma: float) -> Shift:
    """A Gaussian of ``sigma`` pixels along every axis; the border is repeated."""

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box) -> Tensor:
        reach = max(1, round(3 * sigma))
        t = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        kernel = torch.exp(-(t**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).reshape(1, 1, -1)
        for axis in range(2, x.ndim):
            lines = x.movedim(axis, -1)
            padded = pad(lines.reshape(-1, 1, lines.shape[-1]), (reach, reach), mode="replicate")
            x = conv1d(padded, kernel).reshape(lines.shape).movedim(-1, axis)
        return x.clamp(*box)

    return change


def contrast(factor: float) -> Shift:
    """Each image's distance to its own mean, times ``factor``."""

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box) -> Tensor:
        mean = x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
        return (mean + factor * (x - mean)).clamp(*box)

    return change


def gamma(power: float) -> Shift:
    """Grey levels in [0, 1] of the box to the ``power``, as another scanner or film would show them."""
    return lambda x, ids, seed, box: (
        box[0] + (box[1] - box[0]) * ((x - box[0]) / (box[1] - box[0])).clamp(0, 1) ** power
    )


def rotation(degrees: float) -> Shift:
    """A turn in the plane of the last two axes about the centre, in pixels; the border is repeated. For images and volumes."""

    def change(x: Tensor, ids: Sequence[str], seed: int, box: Box) -> Tensor:
        angle, axes = torch.deg2rad(torch.tensor(degrees)), x.ndim - 2
        turn = torch.eye(axes, axes + 1)  # rows and columns run from the last axis to the first
        wide = x.shape[-2] / x.shape[-1]
        turn[0, 0] = turn[1, 1] = angle.cos()
        turn[0, 1], turn[1, 0] = -angle.sin() * wide, angle.sin() / wide
        grid = affine_grid(turn.expand(len(x), -1, -1).to(x), list(x.shape), align_corners=False)
        return grid_sample(x, grid, padding_mode="border", align_corners=False).clamp(*box)

    return change


HARMLESS: Mapping[str, Shift] = {  # what a guard should not mind
    "noise": noise(0.01),
    "contrast": contrast(0.9),
    "gamma": gamma(1.1),
    "rotation": rotation(3),
}
SHIFTS: Mapping[str, tuple[str, Shift]] = {
    **{f"{size} lesions": ("lesion", lesions(size)) for size in SIZES},
    **{f"{n} medium": ("lesion", lesions("medium", (n, n))) for n in (1, 6)},
    **{f"noise {s:g}": ("acquisition", noise(s)) for s in (0.02, 0.05, 0.1)},
    **{f"blur {s:g} px": ("acquisition", blur(s)) for s in (0.7, 1.5)},
    **{f"contrast {c:g}": ("acquisition", contrast(c)) for c in (0.6, 1.4)},
    **{f"gamma {g:g}": ("acquisition", gamma(g)) for g in (0.7, 1.4)},
}
