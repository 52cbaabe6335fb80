"""Draws of a network's dropout, for Bayesian uncertainty."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feathide.errors import InputError
from feathide.models.layers import hooked
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

    def _dropped(self, z: Tensor, *, multiply: bool) -> Tensor:
        count, s = [0], self.samples

        def drop(module: nn.Module, _args: object, h: Tensor) -> Tensor:
            if multiply and count[0] == 0:
                h = h.repeat_interleave(s, 0)
            shape = (
                tuple(h.shape[1:2])
                if isinstance(module, DROPOUTS[1:4])
                else tuple(h.shape[1:])
            )
            rate = float(module.p)  # type: ignore[arg-type]
            keep = self._mask((s, *shape), rate, count[0]).to(h)
            count[0] += 1
            keep = keep.reshape(s, *shape, *[1] * (h.ndim - 1 - len(shape)))
            return (h.unflatten(0, (-1, s)) * keep).flatten(0, 1)

        names = [
            n for n, m in self.model.named_modules() if isinstance(m, DROPOUTS) and m.p > 0
        ]
        with hooked(dict.fromkeys(names, drop), self.model):
            answer = self.model(z)
        return logits_of(
            answer, len(z) * s if multiply and count[0] else len(z), self.outputs
        )

    def _mask(self, shape: tuple[int, ...], rate: float, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        return (torch.rand(shape, generator=generator) >= rate) / (1 - rate)


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
def captured(head: nn.Linear | None, into: list[Tensor]) -> Iterator[None]:
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


def linear_head(model: nn.Module) -> nn.Linear:
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not heads:
        raise InputError(
            "dropout draws need a dropout module or a final linear layer, and the network "
            "has neither; leave BU out"
        )
    return heads[-1]
