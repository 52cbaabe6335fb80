"""The decision in what a network returns: logits, of one head among several, also from
probabilities.
"""

import torch
from torch import Tensor

from feathide.errors import expected
from feathide.models.pooling import full


def as_decision(
    raw: Tensor, head: str | tuple[str, int], output: str
) -> tuple[Tensor, Tensor | None]:
    """What a network returns, (N, K), (N, 1) or (N,), as the logits of one decision, (N, K) or
    (N, 2), and the outputs for the other findings of a multi-label network. Of dense outputs the
    same for every voxel; landmarks stay as they are.
    """
    raw = full(raw)
    if head == "landmarks":
        return raw, None
    if raw.ndim > 2 and isinstance(head, tuple):
        raise expected(
            "a dense network must have one label a voxel",
            got="a head of several findings",
            do='say head="softmax", or "sigmoid" for one output',
        )
    if raw.ndim == 1:
        raw = raw.unsqueeze(1)
    if output == "probabilities":
        raw = _logits(raw, head == "softmax")
    if head == "softmax":
        if raw.shape[1] < 2:
            raise expected(
                "a softmax head needs two or more outputs",
                got="one",
                do='say head="sigmoid" for one sigmoid output',
            )
        return raw, None
    j = 0 if head == "sigmoid" else int(head[1])
    _check_outputs(raw, head, j)
    z = raw[:, j]
    others = None
    if head != "sigmoid":
        others = torch.cat([raw[:, :j], raw[:, j + 1 :]], 1)
    return torch.stack([torch.zeros_like(z), z], 1), others


def _check_outputs(raw: Tensor, head: str | tuple[str, int], j: int) -> None:
    """Refuse outputs (N, K) that the head cannot be."""
    if head == "sigmoid" and raw.shape[1] != 1:
        raise expected(
            "a sigmoid head has one output",
            got=raw.shape[1],
            do='say head="softmax" or ("finding", j)',
        )
    if not 0 <= j < raw.shape[1]:
        raise expected(
            f"finding must be 0 to {raw.shape[1] - 1}",
            got=j,
            do="choose one of the network's outputs",
        )


def _logits(p: Tensor, softmax: bool) -> Tensor:
    """The logits that a softmax, up to a constant, or sigmoids have turned into ``p``."""
    low = p.clamp_min(torch.finfo(p.dtype).tiny).log()
    return (
        low
        if softmax
        else low - torch.log1p(-p.clamp_max(1 - torch.finfo(p.dtype).eps / 2))
    )
