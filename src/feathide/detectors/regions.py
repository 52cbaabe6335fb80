"""PerRegion: any detector of features, once for every region of a dense network's prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from feathide.detectors.base import Detector, fitted
from feathide.detectors.mahalanobis import Mahalanobis
from feathide.errors import expected
from feathide.models.regions import AT
from feathide.types import Evidence, Outputs

__all__ = ["PerRegion"]

WHOLE = "whole"
FEWEST = 10  # images with a region, to learn from


@dataclass(frozen=True)
class Part:
    """A detector that was fitted to one region, and its scores of clean images."""

    detector: Detector
    centre: float
    scale: float

    def score(self, out: Outputs, region: str) -> Tensor:
        """The score (N,) in standard deviations of clean images; NaN where an image lacks the
        region.
        """
        own = of_region(out, region)
        there = present(own)
        found = own.logits.new_full((len(out),), torch.nan)
        rows = there.nonzero().flatten()
        if len(rows):
            score = (self.detector.score(own[rows]) - self.centre) / self.scale
            found = found.index_copy(0, rows, score.to(found))
        return found


@dataclass(frozen=True)
class PerRegion(Detector):
    """A detector of features, fitted once to the whole image and once to every region.

        score = max over regions of (s_r - mean of clean) / standard deviation of clean

    An image without a region has no score there, and the maximum is over the others. A region that
    fewer than ten images of the evidence have is left out; ``left_out`` names it.

    Args:
        inner: The detector.
        name: What tables call it.
        parts_: The detector of each region; made by ``fit``.
        left_out: The regions that are left out; found by ``fit``.
    """

    inner: Detector = field(default_factory=Mahalanobis)
    name: str = "regions-maha"
    parts_: Mapping[str, Part] | None = field(default=None, repr=False, compare=False)
    left_out: tuple[str, ...] = ()

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.inner.differentiable

    def fit(self, evidence: Evidence) -> "PerRegion":
        parts: dict[str, Part] = {}
        left_out = []
        for region in regions_of(evidence.clean):
            part = _fit(self.inner, evidence, region)
            if part is None:
                left_out.append(region)
            else:
                parts[region] = part
        return replace(self, parts_=parts, left_out=tuple(left_out))

    def score(self, out: Outputs) -> Tensor:
        scores = torch.stack(list(self.regional(out).values()), 1)  # (N, R)
        return torch.where(scores.isnan(), -torch.inf, scores).amax(1)

    def regional(self, out: Outputs) -> dict[str, Tensor]:
        """One score per region (N,), NaN where an image lacks it, in standard deviations of clean
        images.
        """
        parts = fitted(self.parts_, self)
        return {region: part.score(out, region) for region, part in parts.items()}


def regions_of(out: Outputs) -> tuple[str, ...]:
    """The whole image and the regions that the features are pooled over."""
    named = [name.partition(AT)[2] for name in out.features if AT in name]
    if not named:
        raise expected(
            "outputs must hold features over regions",
            got="those of whole images",
            do="make the FeatureClassifier with regions=Structures({'name': label})",
        )
    return (WHOLE, *dict.fromkeys(named))


def of_region(out: Outputs, region: str) -> Outputs:
    """The outputs with the features of one region in place of those of the whole image."""
    if region == WHOLE:
        chosen = {n: f for n, f in out.features.items() if AT not in n}
    else:
        end = f"{AT}{region}"
        chosen = {
            n.removesuffix(end): f for n, f in out.features.items() if n.endswith(end)
        }
    if not chosen:
        raise expected(
            f"outputs must hold features over the region {region}",
            got="none",
            do="use the classifier that the detector was fitted with",
        )
    return replace(out, features=chosen)


def present(out: Outputs) -> Tensor:
    """Which images (N,) have the region that the features are of."""
    found = [~f.detach().isnan().any(1) for f in out.features.values()]
    return torch.stack(found).all(0)


def _fit(inner: Detector, evidence: Evidence, region: str) -> Part | None:
    """The part of one region, from the images that have it; None where they are too few."""
    train = of_region(evidence.train, region)
    trials = [
        of_region(out, region)
        for out in (evidence.clean, evidence.noisy, evidence.adversarial)
    ]
    known = present(train)
    rows = torch.stack([present(out) for out in trials]).all(0)
    if int(known.sum()) < FEWEST or int(rows.sum()) < FEWEST:
        return None
    clean, noisy, adversarial = (out[rows] for out in trials)
    own = Evidence(
        train[known],
        evidence.train_labels[known.to(evidence.train_labels.device)],
        clean,
        noisy,
        adversarial,
    )
    detector = inner.fit(own)
    scores = detector.score(clean).detach().double()
    scale = float(scores.std(correction=0))
    return Part(detector, float(scores.mean()), scale if scale > 0 else 1.0)
