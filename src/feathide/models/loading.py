"""A user's own network: loaded, and checked before anything is measured on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from feathide.errors import InputError, expected, first_line, unknown
from feathide.models.layers import entrance
from feathide.models.logits import logits_of
from feathide.models.memory import lacks_memory
from feathide.models.packaged import is_packaged, load_packaged
from feathide.models.weight_files import some
from feathide.models.weight_names import Rename
from feathide.models.weights import load_weights
from feathide.models.zoo import _by, _seeded
from feathide.registry.user_code import called, foreign, importable, load_object

__all__ = ["IN_PLACE", "check_network", "load_network"]

IN_PLACE = (
    "write h = h + 1 in place of h += 1, and leave out inplace=True, behind activations"
)


# --- a user's own network -----------------------------------------------------------------------


def load_network(
    spec: str,
    *,
    weights: str | Path | None = None,
    kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
    rename: Rename | None = None,
) -> nn.Module:
    """The network that a user's code makes, in evaluation mode.

    ``spec`` is ``package.module:callable`` or ``path/to/file.py:callable``; the callable is a
    network class, a function that returns a network (both called with ``kwargs``), or a network.
    Importing it runs the user's code, so nothing happens without ``trust=True``. Or ``spec`` is a
    file that holds a network, or a MONAI bundle (``packaged``). ``weights`` is a file for
    ``load_weights``, with ``rename``; without it the network comes as made. Raises ``InputError``
    if the code does not import, lacks the name, refuses ``kwargs`` or makes no network."""
    if is_packaged(spec):
        return load_packaged(spec, weights=weights, trust=trust, rename=rename)
    with _seeded(0), importable(spec):
        entry = load_object(spec, trust=trust)
        made = callable(entry) and not isinstance(entry, nn.Module)
        model = foreign(spec, lambda: called(entry, spec, kwargs or {})) if made else entry
    if not isinstance(model, nn.Module):
        raise expected(
            f"{spec} must make a torch.nn.Module",
            got=type(model).__name__,
            do="name the network's class or a function",
        )
    lazy = [
        name
        for name, p in model.named_parameters()
        if isinstance(p, UninitializedParameter)
    ]
    if lazy:
        raise expected(
            "the network must have all its weights",
            got=f"lazy ones ({some(lazy)})",
            do="run one image through it where it is made",
        )
    if weights is not None:
        load_weights(model, weights, rename=rename)
    return model.eval()


# --- is it fit to be audited? -------------------------------------------------------------------


def check_network(
    model: nn.Module,
    images: Tensor,
    n_classes: int,
    head: str | tuple[str, int] = "softmax",
    *,
    output: Literal["logits", "probabilities"] = "logits",
) -> list[str]:
    """Run one batch (n, C, *S), normalised as the network wants it: refuse what cannot be
    audited, list what is weak.

    ``head`` as in ``FeatureClassifier``: "softmax" wants one output per class; "sigmoid" one
    output and two classes; ("finding", j) an output j; "findings", for training, one output per
    finding. ``output``: what the network is said to give. Eight images or more show what two may
    not. Returns the caveats: outputs that differ from pass to pass, outputs that look like
    probabilities, no gradient. Raises ``InputError`` for a network in training mode, NaN in
    weights or outputs, images with other axes or channels than the network takes, outputs that do
    not match the classes or are not the probabilities that they are said to be, and for a network
    that loses rows with one image or whose outputs for an image depend on the other images of its
    batch."""
    _check_mode(model)
    k = n_classes if head in ("softmax", "findings") else 1 if head == "sigmoid" else 0
    _check_weights(model)
    images = images.to(next((p.device for p in model.parameters()), images.device))
    if len(images) == 1:
        images = torch.cat([images, images.flip(-1)])
    with torch.no_grad():
        out = _forward(model, images, k)
        _check_outputs(out, len(images), n_classes, head)
        second_pass = _forward(model, images, k)
        one_by_one = _alone(model, images, out, k)
        # logits of images far out of range would leave [0, 1]
        far_out = [_attempt(model, factor * images, k) for factor in (100, -100)]
        # the first image as it is, in a batch of others that are far out
        beside_far = _attempt(model, torch.cat([images[:1], -100 * images[1:]]), k)
    _check_mode(model)
    caveats = []
    by_batch = not _agree(out, one_by_one) or (
        beside_far is not None and not _agree(beside_far[:1], out[:1])
    )
    if not torch.allclose(out, second_pass, rtol=1e-4, atol=1e-5):
        caveats.append(
            "the network is random at inference: two passes over the same images differ"
        )
    elif by_batch:
        raise expected(
            "the outputs for an image must not depend on the other images of its batch",
            got="other outputs for an image alone than in a batch",
            do=(
                "leave out what reads the whole batch, such as BatchNorm without running "
                "statistics or x - x.mean()"
            ),
        )
    shown = torch.cat([out, *(logits for logits in far_out if logits is not None)])
    if output == "probabilities":
        _check_probabilities(shown, head)
    elif _like_probabilities(shown):
        caveats.append(
            "the outputs look like probabilities, not logits: gradients vanish where the "
            "network is sure"
        )
    if not any(_has_gradient(model, image, k) for image in images.split(1)):
        caveats.append(
            "no gradient reaches the image: gradient attacks will fail without proving anything"
        )
    return caveats


def _check_weights(model: nn.Module) -> None:
    bad = [
        name
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and not bool(weight.isfinite().all())
    ]
    if bad:
        raise expected(
            "weights must be finite",
            got=f"NaN or infinity in {some(bad)}",
            do="load other weights or train again",
        )


def _check_mode(model: nn.Module) -> None:
    training = [
        name or type(model).__name__ for name, m in model.named_modules() if m.training
    ]
    if training:
        raise expected(
            "the network must be in evaluation mode",
            got=f"training mode ({some(training)})",
            do="call model.eval()",
        )


def _forward(model: nn.Module, images: Tensor, k: int) -> Tensor:
    try:
        out = model(images.clone())  # a first layer may work in place
    except Exception as error:  # whatever code that is not ours raises
        raise _misfit(model, images, error) from error
    return logits_of(out, len(images), k)


def _misfit(model: nn.Module, images: Tensor, error: Exception) -> InputError:
    """Why a network does not take the images."""
    first, channels = entrance(model), images.shape[1]
    detail = (
        f"{type(error).__name__}: {first_line(error)}"
        if str(error)
        else type(error).__name__
    )
    if lacks_memory(error):
        return InputError(
            f"memory does not suffice for {len(images)} images ({detail}); use smaller images"
        )
    kinds = {
        str(p.dtype).removeprefix("torch.")
        for p in model.parameters()
        if p.is_floating_point()
    }
    if kinds - {"float32"}:
        got = f"{' and '.join(sorted(kinds))} ({detail})"
        return expected(
            "the network must compute in float32",
            got=got,
            do="call .float() where it is made",
        )
    wants = "the network must take the images"
    if first is not None:
        wants = (
            f"the network takes {len(first.kernel_size)}D images of {first.in_channels} "
            "channel(s)"
        )
        if (len(first.kernel_size), first.in_channels) == (images.ndim - 2, channels):
            # their axes and channels are not the reason
            wants = "the network must take the images"
    got = f"{images.ndim - 2}D images of {channels} channel(s), {_by(images.shape[2:])}"
    return expected(wants, got=got, do=f"choose a network for these images ({detail})")


def _attempt(model: nn.Module, images: Tensor, k: int) -> Tensor | None:
    """The outputs for images that a network need not take; None where it does not, or where they
    are not finite.
    """
    try:
        out = logits_of(model(images.clone()), len(images), k)
    except Exception:
        return None
    return out if bool(out.isfinite().all()) else None


def _alone(model: nn.Module, images: Tensor, out: Tensor, k: int) -> Tensor:
    """The outputs of every image by itself."""
    rows = []
    for image in images.split(1):
        try:
            answer = model(image.clone())
        except Exception as error:
            raise expected(
                "the network must take batches of any size",
                got=f"{len(images)} images but not one ({first_line(error)})",
                do="remove the size of the batch from its code",
            ) from error
        row = logits_of(answer, 1, k)
        if row.shape != out[:1].shape:
            shape = tuple(row.shape)
            raise expected(
                f"the network must return a row for one image, too, here {tuple(out[:1].shape)}",
                got=f"{shape}: rows are lost with one image",
                do="squeeze the last axis only, as in .squeeze(-1) or [:, 0]",
            )
        rows.append(row)
    return torch.cat(rows)


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether outputs are the same but for rounding, also that of a GPU."""
    return bool((one - other).abs().max() <= 2e-3 * other.abs().max() + 1e-6)


def _check_outputs(
    out: Tensor, n: int, n_classes: int, head: str | tuple[str, int]
) -> None:
    shape = tuple(out.shape)
    columns = 1 if shape == (n,) else shape[1] if len(shape) == 2 and shape[0] == n else 0
    if len(shape) > 2 and shape[0] == n:
        raise expected(
            f"a plan audits networks with one answer an image, logits (N, K), here ({n}, K)",
            got=f"{shape}, as of a network that segments or finds landmarks",
            do="attack that from Python: see docs/dense.md",
        )
    if not columns:
        raise expected(
            f"the network must return logits (N, K), here ({n}, K)",
            got=shape,
            do="return one row per image",
        )
    if not out.is_floating_point():
        raise expected(
            "the network must return logits",
            got=out.dtype,
            do="return numbers, not decisions",
        )
    if not bool(out.isfinite().all()):
        raise expected(
            "outputs must be finite",
            got="NaN or infinity",
            do="check the declared normalisation and the weights",
        )
    if head in ("softmax", "findings"):
        if columns != n_classes:
            hint = (
                'say head="sigmoid"'
                if columns == 1 and n_classes == 2
                else "use a network trained on these classes"
            )
            raise expected(
                f"a {head} head over {n_classes} labels has {n_classes} outputs",
                got=columns,
                do=hint,
            )
    elif head == "sigmoid":
        if n_classes != 2:
            raise expected(
                "labels for a sigmoid head have two classes",
                got=n_classes,
                do='say head="softmax"',
            )
        if columns != 1:
            raise expected(
                "a sigmoid head has one output",
                got=columns,
                do='say head="softmax" or ("finding", j)',
            )
    elif not isinstance(head, tuple) or head[0] != "finding":
        raise unknown("head", str(head), ("softmax", "sigmoid", "findings", "finding"))
    elif not 0 <= head[1] < columns:
        raise expected(
            f"finding must be 0 to {columns - 1}",
            got=head[1],
            do="choose one of the network's outputs",
        )


def _like_probabilities(out: Tensor) -> bool:
    """Whether the outputs, also those for images far brighter and darker than any, lie in [0, 1],
    as those of a softmax or of sigmoids do.
    """
    return bool(((out >= 0) & (out <= 1)).all()) and bool(((out > 0) & (out < 1)).any())


def _check_probabilities(out: Tensor, head: str | tuple[str, int]) -> None:
    low, high = float(out.min()), float(out.max())
    if low < 0 or high > 1:
        do = "leave network.output out: these are logits"
        raise expected(
            "output: probabilities must lie in [0, 1]",
            got=f"{low:.3g} to {high:.3g}",
            do=do,
        )
    if head == "softmax" and not bool(((out.sum(1) - 1).abs() < 1e-3).all()):
        raise expected(
            "the probabilities of a softmax head must add up to 1",
            got=(
                f"{float(out.sum(1).min()):.3g} to {float(out.sum(1).max()):.3g}, as of one "
                "sigmoid for each class"
            ),
            do=(
                "let the network return its logits, or say head: finding:NAME for images with "
                "several findings"
            ),
        )


def _has_gradient(model: nn.Module, image: Tensor, k: int) -> bool:
    """Whether the squared outputs, which unlike their sum do not cancel in a softmax, depend on
    the image.
    """
    x = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        total = logits_of(model(x.clone()), len(x), k).square().sum()
        if not total.requires_grad:
            return False
        try:
            (grad,) = torch.autograd.grad(total, x, allow_unused=True)
        except RuntimeError as error:
            raise expected(
                "the network must let gradients through",
                got=first_line(error),
                do=IN_PLACE if "inplace" in str(error) else "correct it",
            ) from error
    return grad is not None and bool((grad != 0).any())
