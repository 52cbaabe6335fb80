"""What changes a dense prediction: losses of voxels and of landmarks, each a few lines; the step
schedules, threat models and recipes are those of every attack.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feathide.data.noise import Noise
from feathide.errors import expected
from feathide.goals import LandmarkGoal, MaskGoal
from feathide.losses.base import LOGITS, BoundLoss, Objective, Reads
from feathide.losses.fooling import CrossEntropy
from feathide.types import Aim, Outputs, Rows

__all__ = [
    "AdaptiveLandmarks",
    "CosPGD",
    "JensenShannon",
    "MaskedCrossEntropy",
    "SegPGD",
    "SoftDice",
]


@dataclass(frozen=True)
class MaskedCrossEntropy(Objective):
    """The cross-entropy over the voxels that are not fooled yet.

        J = mean_v w_v [not fooled] CE_v

    CE is that to the wanted label, or minus that to the label before where any other will do; the
    mean is over the voxels of the goal's region.

    Args:
        balanced: Every label of the wanted mask (else of the one before) weighs the same, w_v = 1 /
            (its share of the region); else w = 1.

    References:
        Croce, Singh and Hein: Towards reliable evaluation and fast training of robust semantic
            segmentation models. ECCV 2024.
    """

    balanced: bool = False

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        aim = mask_goal(goal, "MaskedCrossEntropy")
        weight = _balance(aim, clean.logits.shape[1]) if self.balanced else None

        def fool(out: Outputs, rows: Rows) -> Tensor:
            loss = aim.towards(out.logits, rows)
            left = torch.where(aim.fooled_at(out.logits, rows), 0, loss)
            return aim.mean(left if weight is None else left * weight[rows], rows)

        name = "balanced masked cross-entropy" if self.balanced else "masked cross-entropy"
        return BoundLoss(fool=fool, margin=aim.margin, name=name)


def _balance(aim: MaskGoal, classes: int) -> Tensor:
    """The weight (N, *S) of each voxel: 1 / (K_present * the share of its label)."""
    labels, region = aim.labels(), aim.region
    share = torch.stack(
        [aim.mean((labels == c).double(), slice(None)) for c in range(classes)], 1
    )  # (N, K)
    there = (share > 0).sum(1, keepdim=True)
    weight = torch.where(share > 0, 1 / (share.clamp_min(1e-12) * there), 0)
    each = weight.gather(1, labels.flatten(1)).reshape(labels.shape)
    return torch.where(region, each, 0).float()


@dataclass(frozen=True)
class JensenShannon(Objective):
    """The Jensen-Shannon divergence of the prediction and the wanted label.

    It is the mean over the voxels of the goal's region; where any other label will do, minus the
    divergence to the label before. Its slope vanishes on voxels that are surely right and on those
    that are surely wrong.

    References:
        Croce, Singh and Hein: Towards reliable evaluation and fast training of robust semantic
            segmentation models. ECCV 2024.
    """

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        aim = mask_goal(goal, "JensenShannon")
        sign = -1.0 if aim.target is None else 1.0

        def fool(out: Outputs, rows: Rows) -> Tensor:
            p = out.logits.softmax(1)
            at = aim.labels()[rows].unsqueeze(1)
            # of p and a one-hot label, with q = p of that label: only q matters
            q = p.gather(1, at).squeeze(1).clamp(1e-12, 1.0)
            half = (1 + q) / 2
            divergence = 0.5 * (q * q.log() - (1 + q) * half.log() + (1 - q) * LOG2)
            return aim.mean(sign * divergence, rows)

        return BoundLoss(fool=fool, margin=aim.margin, name="Jensen-Shannon")


LOG2 = 0.6931471805599453


@dataclass(frozen=True)
class SegPGD(Objective):
    """The weights of SegPGD on the cross-entropy.

    At a share r of the steps, 1 - r / 2 on voxels that are not fooled and r / 2 on those that are.

    Args:
        least: The weight of fooled voxels at the start; 0 as published.

    References:
        Gu et al.: SegPGD: an effective and efficient adversarial attack for evaluating and boosting
            segmentation robustness. ECCV 2022.
    """

    least: float = 0.0

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        aim = mask_goal(goal, "SegPGD")

        def weight(z: Tensor, rows: Rows, share: float) -> Tensor:
            fooled = max(share / 2, self.least)
            return torch.where(aim.fooled_at(z, rows), fooled, 1 - fooled)

        return _weighted(aim, weight, "SegPGD", clean, noise)


@dataclass(frozen=True)
class CosPGD(Objective):
    """The weights of CosPGD on the cross-entropy.

    The cosine of the softmax output and the label to get away from, or 1 minus that with the wanted
    label.

    References:
        Agnihotri, Jung and Keuper: CosPGD: an efficient white-box adversarial attack for pixel-wise
            prediction tasks. ICML 2024.
    """

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        aim = mask_goal(goal, "CosPGD")

        def weight(z: Tensor, rows: Rows, share: float) -> Tensor:
            p = z.detach().softmax(1)
            at = aim.labels()[rows].unsqueeze(1)
            cosine = p.gather(1, at).squeeze(1) / p.norm(dim=1)
            return cosine if aim.target is None else 1 - cosine

        return _weighted(aim, weight, "CosPGD", clean, noise)


def _weighted(
    aim: MaskGoal,
    weight: Callable[[Tensor, Rows, float], Tensor],
    name: str,
    clean: Outputs,
    noise: Noise,
) -> BoundLoss:
    """The cross-entropy, differentiated with weights that change from step to step; iterates are
    compared without them.
    """
    plain = CrossEntropy().bind(clean, aim, noise)

    def paced(out: Outputs, rows: Rows, share: float) -> Tensor:
        loss = aim.towards(out.logits, rows)
        return aim.mean(loss * weight(out.logits, rows, share), rows)

    return BoundLoss(fool=plain.fool, margin=aim.margin, name=name, paced=paced)


@dataclass(frozen=True)
class SoftDice(Objective):
    """One minus the soft Dice coefficient with the wanted mask, a mean over its labels.

    Where any other label will do, the soft Dice coefficient with the mask before.

        D_c = 2 sum_v p_vc y_vc / sum_v (p_vc + y_vc)
    """

    @property
    def reads(self) -> Reads:
        return LOGITS

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        aim = mask_goal(goal, "SoftDice")
        classes = clean.logits.shape[1]

        def fool(out: Outputs, rows: Rows) -> Tensor:
            region = aim.region[rows].unsqueeze(1)
            hot = F.one_hot(aim.labels()[rows], classes).movedim(-1, 1)  # (n, K, *S)
            p = out.logits.softmax(1) * region
            y = (hot * region).to(p)
            both, total = (p * y).flatten(2).sum(2), (p + y).flatten(2).sum(2)
            present = y.flatten(2).any(2)  # (n, K)
            overlap = torch.where(present, 2 * both / total.clamp_min(1e-6), 0)
            mean = overlap.sum(1) / present.sum(1)
            return mean if aim.target is None else 1 - mean

        return BoundLoss(fool=fool, margin=aim.margin, name="soft Dice")


@dataclass(frozen=True)
class AdaptiveLandmarks(Objective):
    """The adaptive targeted attack on landmarks.

    Every landmark is weighted by its remaining error relative to the largest.

        J = mean_p w_p e_p,    w_p = e_p / max_q e_q, without gradient

    e_p is the squared distance of coordinates in mm, or the mean squared difference of a heat map
    and the clean one, moved so that its peak lies at the wanted place; in units of what the largest
    is at the start.

    Args:
        adaptive: Without it, all w_p are 1.

    References:
        Yao et al.: Miss the point: targeted adversarial attack on multiple landmark detection.
            MICCAI 2020.
    """

    adaptive: bool = True

    @property
    def reads(self) -> Reads:
        return Reads(clean=True, layers=())

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        if not isinstance(goal, LandmarkGoal):
            raise expected(
                "AdaptiveLandmarks aims at places of landmarks",
                got=f"a {type(goal).__name__}",
                do="give the goal of MoveLandmark(...)",
            )
        errors = _coordinates(goal) if clean.logits.shape == goal.source.shape else None
        if errors is None:
            errors = _heat_maps(clean.logits, goal)
        unit = errors(clean, slice(None)).amax(1).clamp_min(1e-12)  # (N,)

        def each(out: Outputs, rows: Rows) -> Tensor:
            return errors(out, rows) / unit[rows, None]

        def paced(out: Outputs, rows: Rows, share: float) -> Tensor:
            error = each(out, rows)
            largest = error.detach().amax(1, keepdim=True).clamp_min(1e-12)
            return (error.detach() / largest * error).mean(1)

        return BoundLoss(
            fool=lambda out, rows: each(out, rows).mean(1),
            margin=goal.margin,
            name="adaptive landmarks" if self.adaptive else "landmarks",
            paced=paced if self.adaptive else None,
        )


Errors = Callable[[Outputs, Rows], Tensor]


def _coordinates(goal: LandmarkGoal) -> Errors:
    """The squared distance (n, P) to the wanted places, in mm."""

    def errors(out: Outputs, rows: Rows) -> Tensor:
        z = out.logits
        apart = (z - goal.target[rows].to(z)) * goal.spacing[rows].to(z)[:, None]
        return apart.square().sum(2)

    return errors


def _heat_maps(maps: Tensor, goal: LandmarkGoal) -> Errors:
    """The mean squared difference (n, P) to the clean maps, moved to the wanted places."""
    size = maps.shape[2:]
    scale = maps.new_tensor([m / s for m, s in zip(size, goal.size, strict=True)])
    wanted = ((goal.target.to(maps) + 0.5) * scale - 0.5).round().long()  # (N, P, D)
    peak = torch.stack(torch.unravel_index(maps.flatten(2).argmax(2), size), 2)
    moved = torch.stack(
        [
            torch.stack([_shifted(h, s) for h, s in zip(own, shift, strict=True)])
            for own, shift in zip(maps.detach(), (wanted - peak).tolist(), strict=True)
        ]
    )  # (N, P, *S)

    def errors(out: Outputs, rows: Rows) -> Tensor:
        return (out.logits - moved[rows]).square().flatten(2).mean(2)

    return errors


def _shifted(h: Tensor, shift: list[int]) -> Tensor:
    """A map (*S) moved by so many voxels; what comes in has its least value."""
    moved = torch.full_like(h, float(h.min()))
    into, out_of = [], []
    for step, length in zip(shift, h.shape, strict=True):
        into.append(slice(max(step, 0), max(length + min(step, 0), 0)))
        out_of.append(slice(max(-step, 0), max(length - max(step, 0), 0)))
    moved[tuple(into)] = h[tuple(out_of)]
    return moved


def mask_goal(goal: Aim, loss: str) -> MaskGoal:
    """The goal of a loss of voxels."""
    if not isinstance(goal, MaskGoal):
        raise expected(
            f"{loss} aims at the labels of voxels",
            got=f"a {type(goal).__name__}",
            do="give a goal such as Erase(label).goal(masks, spacing=...)",
        )
    return goal
