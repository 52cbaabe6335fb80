"""Statistics of an image itself: how rough it is where a picture should be smooth. For any number
of spatial axes and channels, differentiable.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from feathide.errors import expected

__all__ = ["NAMES", "VERSION", "statistics"]

# change it with any number below: what is stored is then computed again
VERSION = "residual statistics 1"
# an axis of fewer pixels has no third difference: it is treated as channels are
SHORTEST = 4
FLOOR = 2.0**-12  # of the range of values: less is nothing
QUIET = 2.0**-9  # below this a residual counts as quiet

RESIDUALS = ("first", "second", "third", "mixed", "smooth")
MEASURES = ("power", "size", "tails", "quiet", "runs")
HAAR = tuple(
    f"haar {level} {band} {what}"
    for level in (1, 2)
    for band in ("edge", "corner")
    for what in ("power", "size")
)
NAMES = (
    *(f"{residual} {measure}" for residual in RESIDUALS for measure in MEASURES),
    *(
        "variance mean",
        "variance middle",
        "variance spread",
        "gradient mean",
        "gradient spread",
    ),
    *HAAR,
)


def statistics(x: Tensor) -> Tensor:
    """The statistics ``NAMES`` of images (N, C, *S) whose values lie in [0, 1], (N, F).

    Residuals are what high-pass filters leave, in the spirit of the spatial rich model (Fridrich
    and Kodovsky 2012): the differences of order one to three along an axis, the second difference
    along all axes in succession, and the difference to the mean of the 3-wide neighbourhood. Of
    each: the logarithm of its power and of its size, its tails (log kurtosis), how quiet it is
    where it is quietest, and its correlation with the next pixel. Beside them the local variance,
    the length of the gradient, and two levels of Haar bands that are high along one axis ("edge")
    or along several ("corner").

    A number is the mean over axes and channels of what it is of each alone, so that axes with
    another spacing count as much. An axis of less than four pixels is treated as channels are: a
    volume of depth 1 is an image.

    Raises:
        InputError: no axis has four pixels, or an image is not finite.
    """
    if not x.detach().isfinite().all():
        raise expected(
            "images must be finite",
            got="NaN or infinity",
            do="leave out or repair broken images",
        )
    planes, axes = as_planes(x)  # (N, P, *S)
    mixed = planes
    for a in axes:
        mixed = mixed.diff(n=2, dim=a)
    mean, variance = neighbourhood(planes, axes)
    inner = within(planes, axes)
    found = []
    for order in (1, 2, 3):
        each = [measures(planes.diff(n=order, dim=a), [a]) for a in axes]
        found.append(torch.stack(each).mean(0))
    found += [measures(mixed, axes), measures(inner - mean, axes)]
    return torch.cat(
        [*found, textures(variance, gradient(planes, axes)), haar(planes, axes)], 1
    )


def as_planes(x: Tensor) -> tuple[Tensor, list[int]]:
    """The images with short axes moved beside the channels, (N, P, *S), and the numbers of the
    spatial axes that are left.
    """
    long = [a for a in range(2, x.ndim) if x.shape[a] >= SHORTEST]
    if not long:
        raise expected(
            f"image statistics need an axis of {SHORTEST} or more pixels",
            got=tuple(x.shape[2:]),
            do="leave the detector out",
        )
    short = [a for a in range(2, x.ndim) if a not in long]
    planes = x.permute(0, 1, *short, *long).flatten(1, 1 + len(short))
    return planes, list(range(2, planes.ndim))


def neighbourhood(x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and variance of the 3-wide neighbourhood of each inner pixel."""

    def mean(v: Tensor) -> Tensor:
        for a in axes:
            n = v.shape[a] - 2
            v = (v.narrow(a, 0, n) + v.narrow(a, 1, n) + v.narrow(a, 2, n)) / 3
        return v

    middle = x.flatten(2).mean(2).reshape(*x.shape[:2], *[1] * len(axes))
    centred = x - middle  # the variance of small numbers keeps its digits
    centre = mean(centred)
    variance = (mean(centred.square()) - centre.square()).clamp_min(0)
    return centre + middle, variance


def measures(r: Tensor, axes: Sequence[int]) -> Tensor:
    """The five measures of a residual (N, P, *S), (N, 5), each the mean over planes; runs along
    ``axes``.
    """
    square = r.square()
    power = square.flatten(2).mean(2) + FLOOR**2
    size = (square + FLOOR**2).sqrt().flatten(2).mean(2)
    tails = (square.square().flatten(2).mean(2) + FLOOR**4).log() - 2 * power.log()
    quiet = (square + QUIET**2).log().flatten(2).mean(2) / 2
    runs = torch.stack([follows(r, a) / power for a in axes]).mean(0)
    return torch.stack([power.log() / 2, size.log(), tails, quiet, runs], 2).mean(1)


def follows(r: Tensor, axis: int) -> Tensor:
    """The mean product of neighbours along an axis, (N, P); 0 where there are none."""
    n = r.shape[axis] - 1
    if n < 1:
        return torch.zeros_like(r.flatten(2)[:, :, 0])
    return (r.narrow(axis, 0, n) * r.narrow(axis, 1, n)).flatten(2).mean(2)


def gradient(x: Tensor, axes: Sequence[int]) -> Tensor:
    """The squared length of the gradient, by central differences, at each inner pixel."""
    total = torch.zeros_like(within(x, axes))
    for a in axes:
        n = x.shape[a] - 2
        slope = (x.narrow(a, 2, n) - x.narrow(a, 0, n)) / 2
        total = total + within(slope, [b for b in axes if b != a]).square()
    return total


def within(x: Tensor, axes: Sequence[int]) -> Tensor:
    """``x`` without the first and the last pixel of each axis."""
    for a in axes:
        x = x.narrow(a, 1, x.shape[a] - 2)
    return x


def textures(variance: Tensor, slope: Tensor) -> Tensor:
    """What is told of the local variance and of the squared gradient, (N, 5)."""
    logs = (variance + QUIET**2).log().flatten(2) / 2
    lengths = (slope + FLOOR**2).sqrt().flatten(2)
    return torch.stack(
        [
            (variance.flatten(2).mean(2) + FLOOR**2).log() / 2,
            logs.mean(2),
            deviation(logs),
            lengths.mean(2).log(),
            (deviation(lengths) + FLOOR).log(),
        ],
        2,
    ).mean(1)


def deviation(x: Tensor) -> Tensor:
    """The standard deviation over the last axis, with a slope everywhere."""
    return (x.var(2, correction=0) + FLOOR**2).sqrt()


def haar(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Log power and log size of the Haar bands of two levels, (N, 8); an axis that is too short
    for the second level stays as it is.
    """
    found = []
    for _level in range(2):
        halves: dict[tuple[int, ...], Tensor] = {(): x}
        for a in [a for a in axes if x.shape[a] >= 2]:
            halves = {
                (*key, *high): part
                for key, band in halves.items()
                for high, part in split(band, a)
            }
        x = halves.pop(())
        for edge in (True, False):
            bands = [b for key, b in halves.items() if (len(key) == 1) == edge] or list(
                halves.values()
            )
            powers = torch.stack([b.square().flatten(2).mean(2) + FLOOR**2 for b in bands])
            sizes = torch.stack(
                [(b.square() + FLOOR**2).sqrt().flatten(2).mean(2) for b in bands]
            )
            found += [powers.log().mean((0, 2)) / 2, sizes.log().mean((0, 2))]
    return torch.stack(found, 1)


def split(x: Tensor, axis: int) -> list[tuple[tuple[int, ...], Tensor]]:
    """The low and the high half of an axis; a last odd pixel is left out."""
    n = x.shape[axis] // 2
    pairs = x.narrow(axis, 0, 2 * n).unflatten(axis, (n, 2))
    even, odd = pairs.unbind(axis + 1)
    return [((), (even + odd) / 2**0.5), ((axis,), (even - odd) / 2**0.5)]
