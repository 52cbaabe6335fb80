"""What the conformance checks of detectors share: scores, evidence that is changed, messages that
are missed.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from feathide.checks.verdicts import Broken, require
from feathide.checks.worlds import evidence, mixed
from feathide.detectors import Detector
from feathide.errors import InputError
from feathide.metrics.roc import auc
from feathide.types import Evidence, Outputs

Make = Callable[[], Detector]
IMAGE = ("statistics", "squeezed")
PARTS = ("train", "clean", "noisy", "adversarial")


def score(make: Make, e: Evidence | None = None, out: Outputs | None = None) -> Tensor:
    """The scores of ``out`` (60 rows, the first half clean) after fitting on ``e``: finite
    numbers, one per row.
    """
    out = mixed() if out is None else out
    found = make().fit(e or evidence()).score(out)
    shaped = isinstance(found, Tensor) and found.shape == (len(out),)
    require(
        shaped,
        f"scores ({len(out)},)",
        got=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
    )
    return found.detach()


def area(scores: Tensor) -> float:
    half = len(scores) // 2
    return float(auc(scores[:half].numpy(), scores[half:].numpy()))


def close(what: str, found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    ok = torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)
    require(ok, what, got=f"scores that differ by up to {apart(found, wanted):.2g}")


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def every(change: Callable[[Tensor], Tensor]) -> Evidence:
    """The evidence with the late layer of all its parts changed."""
    e = evidence()
    train, clean, noisy, adversarial = (with_layer(change, getattr(e, n)) for n in PARTS)
    return Evidence(train, e.train_labels, clean, noisy, adversarial)


def with_layer(
    change: Callable[[Tensor], Tensor], out: Outputs, layer: str = "late"
) -> Outputs:
    """``out`` with one of its layers changed."""
    return replace(out, features={**out.features, layer: change(out.features[layer])})


def exchanged(out: Outputs, other: Outputs, fields: Iterable[str]) -> Outputs:
    """``out`` and its reference network with ``fields`` of another."""
    moved = {name: getattr(other, name) for name in fields}
    reference_network = None
    if out.reference_network is not None and other.reference_network is not None:
        reference_network = replace(
            out.reference_network,
            **{name: getattr(other.reference_network, name) for name in moved},
        )
    return replace(out, **moved, reference_network=reference_network)


def raises_or_scores(make: Make, e: Evidence, out: Outputs, *words: str) -> None:
    try:
        found = score(make, e, out)
    except InputError as error:
        says(error, *words)
    else:
        require(
            found.isfinite().all(), "an InputError or finite scores", got="NaN or infinity"
        )


def raises(act: Callable[[], object], word: str) -> None:
    try:
        act()
    except InputError as error:
        says(error, word)
    else:
        raise Broken(f"expected an InputError that says {word!r}, got scores")


def says(error: InputError, *words: str) -> None:
    named = any(word in str(error).lower() for word in words)
    require(named, f"a message that says {' or '.join(map(repr, words))}", got=str(error))
