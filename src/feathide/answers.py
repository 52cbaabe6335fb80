"""The logits in what a network returns: a tensor, or tuples, dicts and classes that hold it."""

from collections.abc import Mapping

from torch import Tensor

from feathide.errors import expected

__all__ = ["logits_of"]


def logits_of(answer: object, n: int) -> Tensor:
    """The logits of ``n`` images: ``answer`` itself, its ``logits`` (a key, or a field as in the outputs of Hugging Face), or the one tensor (n, K) in it.

    Raises ``InputError`` where there is none, or more than one without such a name.
    """
    if isinstance(answer, Tensor):
        return answer
    parts = answer if isinstance(answer, Mapping) else getattr(answer, "__dict__", {})
    named = parts.get("logits", getattr(answer, "logits", None))
    if isinstance(named, Tensor):
        return named
    values = answer if isinstance(answer, (tuple, list)) else list(parts.values())
    rows = [v for v in values if isinstance(v, Tensor) and v.ndim == 2 and len(v) == n and v.is_floating_point()]
    if len(rows) == 1:
        return rows[0]
    shapes = ", ".join(str(tuple(v.shape)) for v in values if isinstance(v, Tensor)) or "no tensors"
    raise expected(
        f"the network must return logits (N, K), here ({n}, K), alone or by the name logits",
        got=f"{type(answer).__name__} of {shapes}",
        do="wrap it to return the logits",
    )
