"""From what a layer gives to one value per channel: hooks that pool while the network runs."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from feathide.models.layers import INPUT, first_tensor
from feathide.models.layouts import ReadOut
from feathide.models.logits import logits_of
from feathide.models.regions import AT, pooled_over

__all__ = [
    "Pool",
    "channel_mean",
]

Pool = Callable[[Tensor], Tensor]

FIRST = ReadOut()  # of (N, C, *S)


def channel_mean(h: Tensor) -> Tensor:
    """The mean over all spatial axes: (N, C, *S) -> (N, C), for any number of axes; (N, C) stays.
    Of half precision in float32: a sum overflows where its mean does not.
    """
    if h.ndim == 2:
        return h
    # the gradient of a mean would fill memory of the size of h; that of a sum is a view
    total, count = FIRST.sum(h)
    return total / count


class Watched(nn.Module):
    """A private copy of a network that gives its features as outputs: its hooks stay, so that one
    compiled graph holds them.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        pool: Pool,
        reads: Mapping[str, ReadOut],
        k: int,
    ) -> None:
        super().__init__()
        self.outputs = k
        self.model = deepcopy(model).requires_grad_(False)
        self.names, self.found, self.calls = (
            tuple(names),
            dict[str, Tensor](),
            dict[str, int](),
        )
        for name, hook in collectors(names, self.found, self.calls, pool, reads).items():
            self.model.get_submodule(name).register_forward_hook(hook)

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        self.calls.clear()
        raw = logits_of(self.model(z), len(z), self.outputs)
        features = tuple(self.found[name] for name in self.names)
        self.found.clear()
        return raw, *features


def collectors(
    names: Sequence[str],
    found: dict[str, Tensor],
    calls: dict[str, int],
    pool: Pool,
    reads: Mapping[str, ReadOut],
    counts: dict[str, int] | None = None,
) -> dict[str, Callable[..., None]]:
    """One hook per module, which pools and copies the outputs of the calls that are wanted as
    they are made: a following in-place activation cannot corrupt them, and memory stays (N, C).
    ``calls`` counts how often each module has run. Given ``counts``, sums stand in place of
    means, and there how many values they are of.
    """
    # by module: of which call the output, or the input
    wanted: dict[str, dict[tuple[int, bool], str]] = {}
    for name in names:
        module, _, call = name.removesuffix(INPUT).partition("#")
        wanted.setdefault(module, {})[int(call or 0), name.endswith(INPUT)] = name

    def collect(module: str, kept: dict[tuple[int, bool], str]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], output: object) -> None:
            call = calls.get(module, 0)
            calls[module] = call + 1
            for read, shown in ((False, output), (True, args)):
                name, h = kept.get((call, read)), first_tensor(shown)
                if name is None or h is None:
                    continue
                if pool is not channel_mean:
                    found[name] = full(pool(reads.get(name, FIRST).upright(h)).clone())
                elif counts is not None and h.ndim > 2:
                    found[name], counts[name] = reads.get(name, FIRST).sum(h)
                else:
                    total, count = reads.get(name, FIRST).sum(h)
                    found[name] = full((total / count if count > 1 else total).clone())

        return hook

    return {module: collect(module, kept) for module, kept in wanted.items()}


def keepers(
    names: Sequence[str], found: dict[str, Tensor], reads: Mapping[str, ReadOut]
) -> dict[str, Callable[..., None]]:
    """One hook per module, which keeps a copy of whole outputs (N, C, *T) until it is known over
    which regions they are pooled.
    """
    calls: dict[str, int] = {}
    wanted: dict[str, dict[tuple[int, bool], str]] = {}
    for name in names:
        module, _, call = name.removesuffix(INPUT).partition("#")
        wanted.setdefault(module, {})[int(call or 0), name.endswith(INPUT)] = name

    def keep(module: str, kept: dict[tuple[int, bool], str]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], output: object) -> None:
            call = calls.get(module, 0)
            calls[module] = call + 1
            for read, shown in ((False, output), (True, args)):
                name, h = kept.get((call, read)), first_tensor(shown)
                if name is not None and h is not None:
                    # a following activation may work in place
                    found[name] = reads.get(name, FIRST).upright(h).clone()

        return hook

    return {module: keep(module, kept) for module, kept in wanted.items()}


def regional(
    maps: Mapping[str, Tensor],
    masks: Tensor | None,
    regions: Sequence[str],
    reads: Mapping[str, ReadOut],
) -> dict[str, Tensor]:
    """The features of whole outputs: of each layer those over the regions, as ``layer@region``,
    then that of the whole image. A layer without the images' axes has no regions.
    """
    found: dict[str, Tensor] = {}
    for name, h in maps.items():
        read = reads.get(name, FIRST)
        if masks is not None and h.ndim == masks.ndim and read.side == "first":
            parts = pooled_over(h, masks)  # (N, R, C)
            found |= {f"{name}{AT}{r}": parts[:, i] for i, r in enumerate(regions)}
        total, count = read.sum(h)
        found[name] = full(total / count)
    return found


def means(sums: dict[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The features, where those in ``counts`` are sums of so many values: columns of one tensor,
    with one division for all layers and one gradient.
    """
    if not sums:
        return {}
    sizes = [f.shape[1] for f in sums.values()]
    joint = torch.cat(list(sums.values()), 1)  # (N, D)
    if counts:
        divisors = joint.new_tensor([counts.get(name, 1) for name in sums])
        joint = joint / divisors.repeat_interleave(torch.tensor(sizes, device=joint.device))
    return dict(zip(sums, joint.split(sizes, 1), strict=True))


def full(value: Tensor) -> Tensor:
    """``value``, of half precision in float32."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
