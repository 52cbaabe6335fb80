"""Draws of a network's dropout, for Bayesian uncertainty."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feathide.errors import InputError
from feathide.models.layers import CONVOLUTIONS, hooked
from feathide.models.logits import logits_of
from feathide.models.pooling import full

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True, eq=False)
class DropoutDraws:
    """Draws of a network's dropout: its own, or, of a network without one, a dropout before its
    last linear layer. The masks are drawn once and shared by all images.

    Args:
        model: The network.
        samples: The number S of draws.
        rate: The rate of the additional dropout, in (0, 1).
        seed: The seed of the masks.
        outputs: The number of outputs, or 0: see ``logits_of``.
    """

    model: nn.Module
    samples: int
    rate: float
    seed: int
    outputs: int

    def of_head(self, head: nn.Linear, inputs: list[Tensor]) -> Tensor:
        """Logits of S draws before the last linear layer, (N, S, K); ``inputs``: what it was
        given.
        """
        if not inputs:
            raise InputError(
                "dropout draws need a final linear layer, and the network's last one does "
                "not run; leave BU out"
            )
        h = inputs[-1].flatten(1)  # (N, D)
        keep = self._mask((self.samples, h.shape[1]), self.rate, 0).to(h)  # (S, D)
        return head(h.unsqueeze(1) * keep)  # (N, S, K)

    def of_network(self, z: Tensor) -> Tensor:
        """Logits of S draws of the network's own dropout, (N, S, K): the batch is multiplied at
        the first dropout, so that the layers before it run once; where the network does not allow
        that (a path around it), at the input.
        """
        s, n = self.samples, len(z)
        try:
            return self._dropped(z, multiply=True).unflatten(0, (n, s))
        except (RuntimeError, ValueError):
            return self._dropped(z.repeat_interleave(s, 0), multiply=False).unflatten(
                0, (n, s)
            )

    def one_by_one(self, z: Tensor) -> Iterator[Tensor]:
        """What the network gives in each of the S draws of its own dropout, one after the other."""
        names = self._dropouts()
        for s in range(self.samples):
            count = [0]

            def drop(
                module: nn.Module,
                _args: object,
                h: Tensor,
                s: int = s,
                count: list[int] = count,
            ) -> Tensor:
                shape = _dropped_shape(module, h)
                rate = float(module.p)  # type: ignore[arg-type]
                keep = self._mask((self.samples, *shape), rate, count[0])[s].to(h)
                count[0] += 1
                return h * keep.reshape(*shape, *[1] * (h.ndim - 1 - len(shape)))

            with hooked(dict.fromkeys(names, drop), self.model):
                answer = self.model(z)
            yield logits_of(answer, len(z), self.outputs)

    def of_maps(
        self, head: nn.Module, inputs: list[Tensor], raw: Tensor
    ) -> Iterator[Tensor]:
        """What a last convolution gives with a dropout of channels before it, draw by draw;
        ``inputs``: what it was given; ``raw``: what the network gives.
        """
        if not inputs or not _gives(head, inputs[-1], raw):
            raise InputError(
                "dropout draws of a dense network need a dropout module, or a convolution "
                "that gives its output; leave BU out, or build the network with dropout"
            )
        h = inputs[-1]  # (N, C, *S)
        keep = self._mask((self.samples, h.shape[1]), self.rate, 0).to(h)
        for s in range(self.samples):
            yield head(h * keep[s].reshape(1, -1, *[1] * (h.ndim - 2)))

    def _dropouts(self) -> list[str]:
        return [
            n for n, m in self.model.named_modules() if isinstance(m, DROPOUTS) and m.p > 0
        ]

    def _dropped(self, z: Tensor, *, multiply: bool) -> Tensor:
        count, s = [0], self.samples

        def drop(module: nn.Module, _args: object, h: Tensor) -> Tensor:
            if multiply and count[0] == 0:
                h = h.repeat_interleave(s, 0)
            shape = _dropped_shape(module, h)
            rate = float(module.p)  # type: ignore[arg-type]
            keep = self._mask((s, *shape), rate, count[0]).to(h)
            count[0] += 1
            keep = keep.reshape(s, *shape, *[1] * (h.ndim - 1 - len(shape)))
            return (h.unflatten(0, (-1, s)) * keep).flatten(0, 1)

        with hooked(dict.fromkeys(self._dropouts(), drop), self.model):
            answer = self.model(z)
        return logits_of(
            answer, len(z) * s if multiply and count[0] else len(z), self.outputs
        )

    def _mask(self, shape: tuple[int, ...], rate: float, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        return (torch.rand(shape, generator=generator) >= rate) / (1 - rate)


def _dropped_shape(module: nn.Module, h: Tensor) -> tuple[int, ...]:
    """What a dropout decides for: every value, or every channel."""
    return tuple(h.shape[1:2]) if isinstance(module, DROPOUTS[1:4]) else tuple(h.shape[1:])


def _gives(head: nn.Module, given: Tensor, raw: Tensor) -> bool:
    """Whether the network's output is what ``head`` makes of what it was given."""
    with torch.no_grad():
        seen = head(given)
        return seen.shape == raw.shape and torch.allclose(seen, raw.to(seen), atol=1e-3)


def spread_of(chances: Iterable[Tensor]) -> Tensor:
    """1/K sum_k of the variance over draws of probabilities (N, K, *S): (N, *S). Welford's sums, so
    that one draw at a time is in memory.
    """
    count, mean, total = 0, torch.zeros(()), torch.zeros(())
    for p in chances:
        count += 1
        before = p - mean.to(p)
        mean = mean.to(p) + before / count
        total = total.to(p) + before * (p - mean)
    return total.mean(1) / count


def over_regions(variance: Tensor, masks: Tensor | None) -> Tensor:
    """The logarithm of the mean of a voxel's variance (N, *S) over the whole image and over R
    regions (N, R, *S), (N, 1 + R); NaN where a region is empty.
    """
    least = torch.finfo(variance.dtype).eps ** 2  # draws that agree
    flat = variance.flatten(1)  # (N, V)
    whole = flat.mean(1, keepdim=True).clamp_min(least).log()
    if masks is None:
        return whole
    share = masks.flatten(2).to(flat)
    count = share.sum(2)
    means = (share @ flat[:, :, None]).squeeze(2) / count.clamp_min(1.0)
    parts = torch.where(count > 0, means.clamp_min(least).log(), torch.nan)
    return torch.cat([whole, parts], 1)


def check_draws(head: nn.Linear, inputs: list[Tensor], raw: Tensor, softmax: bool) -> None:
    """Refuse probabilities ``raw`` that are not those of the last linear layer's logits, which
    the draws show.
    """
    with torch.no_grad():
        z = full(head(inputs[-1].flatten(1)))
        seen = z.softmax(1) if softmax else z.sigmoid()
        if seen.numel() == raw.numel() and torch.allclose(
            seen.flatten(), full(raw).flatten(), atol=1e-2
        ):
            return
    raise InputError(
        "dropout draws need the probabilities of a network's last linear layer, and "
        "there is more behind it; leave BU out, or let it return logits"
    )


@contextmanager
def captured(head: nn.Module | None, into: list[Tensor]) -> Iterator[None]:
    """Puts what ``head`` is given ``into`` a list, while it lasts."""
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _m, args: into.append(args[0]))
    try:
        yield
    finally:
        handle.remove()


def has_dropout(model: nn.Module) -> bool:
    return any(isinstance(m, DROPOUTS) and m.p > 0 for m in model.modules())


def last_head(model: nn.Module) -> nn.Module:
    """The last linear layer, or of a network without any the last convolution."""
    for kinds in ((nn.Linear,), CONVOLUTIONS):
        found = [m for m in model.modules() if isinstance(m, kinds)]
        if found:
            return found[-1]
    return model


def linear(head: nn.Module | None) -> nn.Linear | None:
    """The head of a classifier, which must be linear."""
    if head is not None and not isinstance(head, nn.Linear):
        raise InputError(
            "dropout draws need a dropout module or a final linear layer, and the network "
            "has neither; leave BU out"
        )
    return head
