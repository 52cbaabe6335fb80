"""The logits in what a network returns: a tensor, or tuples, dicts and classes that hold it."""

from collections.abc import Mapping

from torch import Tensor

from feathide.errors import expected

__all__ = ["logits_of"]


def logits_of(answer: object, n: int, k: int = 0) -> Tensor:
    """The logits of ``n`` images: ``answer`` itself, its ``logits`` (a key, or a field as in the
    outputs of Hugging Face) or ``out`` (torchvision's segmentation), or the one tensor (n, K) in
    it; where there is none, the one tensor (n, K, *S).

    ``k``: how many outputs the network should have, which tells logits from features (n, D)
    beside them; 0 if unknown. Raises ``InputError`` where there are no logits, or more than one
    tensor could be them."""
    if isinstance(answer, Tensor):
        return answer
    parts = answer if isinstance(answer, Mapping) else getattr(answer, "__dict__", {})
    named = parts.get("logits", parts.get("out", getattr(answer, "logits", None)))
    if isinstance(named, Tensor):
        return named
    values = answer if isinstance(answer, (tuple, list)) else list(parts.values())
    rows = [
        v
        for v in values
        if isinstance(v, Tensor)
        and v.ndim in (1, 2)
        and len(v) == n
        and v.is_floating_point()
    ]
    maps = [v for v in values if isinstance(v, Tensor) and v.ndim > 2 and len(v) == n]
    if not rows and len(maps) == 1 and maps[0].is_floating_point():
        return maps[0]
    # one sigmoid output may come without its axis
    plain = [v for v in rows if v.ndim == 2] or rows
    fit = [v for v in plain if v.ndim == 2 and v.shape[1] == k]
    for found in (plain, fit):
        if len(found) == 1:
            return found[0]
    shapes = (
        ", ".join(str(tuple(v.shape)) for v in values if isinstance(v, Tensor))
        or "no tensors"
    )
    raise expected(
        f"the network must return logits (N, K), here ({n}, K), alone or by the name logits",
        got=f"{type(answer).__name__} of {shapes}",
        do="wrap it to return the logits",
    )
