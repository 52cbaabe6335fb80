"""Square: random search without gradients, in squares, cubes or intervals."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from feathide.attacks.threats import Linf
from feathide.attacks.updates import Rule, Setting, Step
from feathide.data.noise import Noise
from feathide.errors import expected
from feathide.types import per_sample

__all__ = ["Square"]

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10 000 queries


@dataclass(frozen=True)
class Square(Rule):
    """The Square attack (Andriushchenko et al. 2020): random windows, kept if they lower the loss.

    It starts from stripes along the last axis. A proposal then changes one window of the image,
    which covers a share p of it and has its proportions (a square in a square image, a cube in a
    cubic volume); p starts at ``share`` and is halved as the queries are used up. L-infinity: each
    channel of the window is set to +eps or -eps. L2: the norm that lies in another window, and what
    is left of eps, moves into the window as a bump whose halves have opposite signs. One forward
    pass per query and no gradient; any number of spatial axes.

    Args:
        share: The share of the image that the first windows cover, in (0, 1].

    References:
        Andriushchenko et al.: Square Attack: a query-efficient black-box adversarial attack via
            random search. ECCV 2020.
    """

    gradient: ClassVar[bool] = False
    share: float = 0.8

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        x = setting.x
        if x.ndim < 3:
            raise expected(
                "Square needs images with spatial axes",
                got=f"shape {tuple(x.shape)}",
                do="use an attack with gradients",
            )
        best, least = torch.zeros_like(x), x.new_full((len(x),), float("inf"))
        propose = _recolour if isinstance(setting.threat, Linf) else _gather

        def move(s: Step) -> Tensor:
            noise = setting.noise[s.rows]
            if s.k == 0:
                return setting.walk(
                    torch.zeros_like(s.delta), _stripes(x.shape[1:], noise, x), 1.0, s.rows
                )
            loss = s.loss.to(least)
            better = loss < least[s.rows]
            least[s.rows] = torch.where(better, loss, least[s.rows])
            best[s.rows] = torch.where(
                better.reshape(-1, *[1] * (x.ndim - 1)), s.delta, best[s.rows]
            )
            sides = self.sides(s.k, setting.steps, x.shape[2:])
            eps = per_sample(setting.threat.at(s.rows).eps, s.delta)
            return setting.project(propose(best[s.rows], eps, sides, noise, s.k), s.rows)

        return move

    def sides(self, k: int, steps: int, shape: Sequence[int]) -> list[int]:
        """The window of query ``k``: its length on each axis."""
        share = self.share / 2 ** bisect_left(HALVINGS, int(k / steps * 10_000))
        root = share ** (1 / max(sum(s > 1 for s in shape), 1))
        return [min(max(round(root * s), 1), max(s - 1, 1)) for s in shape]


def _stripes(shape: Sequence[int], noise: Noise, like: Tensor) -> Tensor:
    """Random signs (N, C, 1, ..., 1, S_last), as wide as the image."""
    u = noise.uniform((shape[0], *[1] * (len(shape) - 2), shape[-1]), draw="stripes").to(
        like
    )
    return (u - 0.5).sign().expand(-1, *shape)


def _recolour(
    best: Tensor, eps: Tensor, sides: Sequence[int], noise: Noise, k: int
) -> Tensor:
    """L-infinity: each channel of a window set to +eps or -eps."""
    u, signs = _draws(noise, best, ("square", k))
    depth, _ = _window(u, sides, best, k)
    return torch.where(depth > 0, eps * signs, best)


def _gather(
    best: Tensor, eps: Tensor, sides: Sequence[int], noise: Noise, k: int
) -> Tensor:
    """L2: the norm of two windows, and a share of what is left of eps, in the first of them; each
    channel keeps its own.
    """
    u, signs = _draws(noise, best, ("square", k))
    depth, half = _window(u, sides, best, k)
    other, _ = _window(_draws(noise, best, ("from", k))[0], sides, best, k)
    into, out = depth > 0, other > 0
    left = (eps**2 - per_sample(best.flatten(1).square().sum(1), best)).clamp_min(
        0
    ) / best.shape[1]
    room = left + _per_channel((best * (into | out)).square())
    shells = int(depth.amax())
    heights = torch.cumsum(
        1 / (shells - torch.arange(shells, dtype=best.dtype, device=best.device)) ** 2, 0
    )
    bump = half * into * heights[(depth.long() - 1).clamp_min(0)] * signs  # (N, C, *S)
    was = best * into
    shape = bump / _per_channel(bump.square()).sqrt()
    new = shape + was / _per_channel(was.square()).sqrt().clamp_min(1e-7)
    # of one pixel, both may cancel: the norm would be lost
    new = torch.where(_per_channel(new.square()) > 1e-12, new, shape)
    new = (
        new
        * (room / _per_channel(new.square()).clamp_min(torch.finfo(best.dtype).tiny)).sqrt()
    )
    return torch.where(into, new, torch.where(out, torch.zeros_like(best), best))


def _draws(noise: Noise, like: Tensor, draw: object) -> tuple[Tensor, Tensor]:
    """Where a window lies, (N, axes) uniform on [0, 1) with the last axis first (so that a volume
    of depth 1 is an image), and a sign for each channel, (N, C, 1, ..., 1).
    """
    axes, channels = like.ndim - 2, like.shape[1]
    u = noise.uniform((channels + axes,), draw=draw).to(like)
    return u[:, channels:], (u[:, :channels] - 0.5).sign().reshape(
        -1, channels, *[1] * axes
    )


def _window(u: Tensor, sides: Sequence[int], like: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A window in each image: how deep each element lies in it (1 at the border, 0 outside), (N,
    1, *S), and +1 or -1 for its two halves along one axis, in turn.
    """
    sizes = like.shape[2:]
    axes = [i for i in reversed(range(len(sizes))) if sizes[i] > 1]
    depth = torch.full_like(
        like[:, :1], (min([sides[i] for i in axes], default=1) + 1) // 2
    )
    half = torch.ones_like(depth)
    for turn, i in enumerate(axes):
        low = (
            (u[:, len(sizes) - 1 - i] * (sizes[i] - sides[i] + 1))
            .floor()
            .clamp_max(sizes[i] - sides[i])
        )
        place = torch.arange(sizes[i], device=like.device) - low[:, None]  # (N, S_i)
        place = place.reshape(
            len(like), 1, *[s if j == i else 1 for j, s in enumerate(sizes)]
        )
        depth = torch.minimum(
            depth, torch.minimum(place + 1, sides[i] - place).clamp_min(0)
        )
        if turn == k % len(axes):
            half = torch.where(2 * place < sides[i], half, -half)
    return depth, half


def _per_channel(value: Tensor) -> Tensor:
    """The sum over the spatial axes, (N, C, 1, ..., 1)."""
    return value.flatten(2).sum(2).reshape(*value.shape[:2], *[1] * (value.ndim - 2))
