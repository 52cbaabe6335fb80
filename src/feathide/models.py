"""The networks: a zoo that is built here and never downloaded, and the loading of a user's own network.

Every network takes (N, C, *S) and gives logits (N, K); none normalises its input (see ``FeatureClassifier``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import monai.networks.nets as volumes
import torch
import torchvision.models as pictures
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from feathide.errors import InputError, choose, expected, first_line, unknown
from feathide.layers import entrance
from feathide.memory import SIGNS
from feathide.own import called, foreign, importable, load_object
from feathide.packaged import is_packaged, load_packaged
from feathide.plugins import with_plugins
from feathide.weights import Rename, load_weights, save_weights, some, start_from, weights_digest
from feathide.zoos import Arch, arch_named, first_convolution

__all__ = [
    "MODELS",
    "Arch",
    "Stem",
    "build",
    "check_network",
    "load_network",
    "load_weights",
    "save_weights",
    "start_from",
    "weights_digest",
]

Stem = Literal["standard", "small"]


# --- the zoo ---------------------------------------------------------------------------------------------------------


def _conv_unit(axes: int, inside: int, outside: int, stride: int) -> nn.Sequential:
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[axes]
    return nn.Sequential(conv(inside, outside, 3, stride, 1, bias=False), norm(outside), nn.ReLU())


def _tiny(axes: int) -> Arch:
    """Five conv-norm-ReLU units, three of which halve the image, the mean over space, and a linear head."""

    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        widths = (16, 32, 32, 64, 64)
        strides = (1, 2, 2, 1, 2) if small else (2, 2, 1, 2, 1)
        units = [_conv_unit(axes, i, o, s) for i, o, s in zip((channels, *widths), widths, strides, strict=False)]
        pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[axes](1)
        return nn.Sequential(*units, pool, nn.Flatten(), nn.Linear(widths[-1], outputs))

    return Arch(axes, make)


def _resnet(builder: Callable[..., nn.Module]) -> Arch:
    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        net: Any = builder(weights=None, num_classes=outputs)
        net.conv1 = first_convolution(net.conv1, channels, small)
        if small:
            net.maxpool = nn.Identity()
        return net

    return Arch(2, make)


def _vgg16_bn(channels: int, outputs: int, small: bool) -> nn.Module:
    if small:
        raise expected(
            "stem of vgg16_bn must be 'standard'",
            got="'small'",
            do="leave it out: its first layer has stride 1 already",
        )
    net = pictures.vgg16_bn(weights=None, num_classes=outputs)
    net.features[0] = first_convolution(net.features[0], channels, small)
    return net


def _densenet121(axes: int) -> Arch:
    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        net = (
            pictures.densenet121(weights=None, num_classes=outputs)
            if axes == 2
            else volumes.DenseNet121(spatial_dims=3, in_channels=channels, out_channels=outputs)
        )
        net.features.conv0 = first_convolution(net.features.conv0, channels, small)
        if small and axes == 2:
            net.features.pool0 = nn.Identity()
        return net

    return Arch(axes, make)


def _resnet_3d(builder: Callable[..., nn.Module]) -> Arch:
    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        stem = {"conv1_t_size": 3, "conv1_t_stride": 1} if small else {"conv1_t_size": 7, "conv1_t_stride": 2}
        return builder(spatial_dims=3, n_input_channels=channels, num_classes=outputs, **stem)

    return Arch(3, make)


OUR_MODELS: dict[str, Arch] = {
    "tiny": _tiny(2),
    "resnet18": _resnet(pictures.resnet18),
    "resnet34": _resnet(pictures.resnet34),
    "resnet50": _resnet(pictures.resnet50),
    "vgg16_bn": Arch(2, _vgg16_bn),
    "densenet121": _densenet121(2),
    "tiny3d": _tiny(3),
    "resnet10_3d": _resnet_3d(volumes.resnet10),
    "resnet18_3d": _resnet_3d(volumes.resnet18),
    "resnet50_3d": _resnet_3d(volumes.resnet50),
    "densenet121_3d": _densenet121(3),
}

IN_PLACE = "write h = h + 1 in place of h += 1, and leave out inplace=True, behind activations"
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}  # a step takes 4 to 22 % less time on a CPU

MODELS: Mapping[str, Arch] = with_plugins("models", OUR_MODELS, arch_named)


def build(
    arch: str,
    *,
    channels: int,
    outputs: int,
    size: Sequence[int] | None = None,
    stem: Stem = "standard",
    seed: int = 0,
) -> nn.Module:
    """The network ``arch`` of ``MODELS`` with random weights: images (N, channels, *size) in, logits (N, outputs) out.

    The standard stem (kernel 7, stride 2, max-pooling) is affordable on a CPU and right from about 64 px on.
    ``stem="small"`` is for small images: a first convolution with kernel 3 and stride 1 and, in 2D, no max-pooling, so
    that images of 32 x 32 or volumes of 24 x 24 x 24 keep some extent to the end, at 16 (2D) and 8 (3D) times the cost.
    ``tiny`` and ``tiny3d`` halve the image three times in five units; their small stem only does so later. ``size``,
    where given, is checked against the architecture. Nothing is ever downloaded. ``seed`` decides the weights; the
    global random state is not touched. The network comes in training mode.

    Raises ``InputError`` for an unknown name, channels other than 1 and 3, or a size that the network cannot take.
    """
    entry = choose("architecture", arch, MODELS)
    if channels not in (1, 3):
        raise expected("channels must be 1 or 3", got=channels, do="convert the images to grey or RGB")
    if outputs < 1:
        raise expected("outputs must be 1 (one sigmoid) or the number of classes", got=outputs, do="correct it")
    if stem not in ("standard", "small"):
        raise unknown("stem", stem, ("standard", "small"))
    if size is not None and len(size) != entry.axes:
        fit = ", ".join(n for n, a in MODELS.items() if a.axes == len(size)) or "none"
        raise expected(
            f"{arch} takes {entry.axes}D images", got=f"{len(size)}D ({_by(size)})", do=f"choose from: {fit}"
        )
    with _seeded(seed):
        model = foreign(arch, lambda: entry.make(channels, outputs, stem == "small"))
    if arch in OUR_MODELS:  # those of plug-ins may view their features in the usual order of memory
        model = model.to(memory_format=CHANNELS_LAST[entry.axes])
    if size is not None:
        first = entrance(model)
        _check_size(model.eval(), arch, (channels if first is None else first.in_channels, *size))
    return model.train()


def _check_size(model: nn.Module, arch: str, shape: Sequence[int]) -> None:
    """Run the network on shapes alone (the meta device: no memory, no arithmetic), or on one empty image where that does not go; say why it does not."""
    if _takes(model, shape) is None:
        return
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            model(torch.zeros(2, *shape, device=place))
        return
    except Exception as error:  # whatever code that is not ours raises
        reason = error
    if any(_takes(model, (shape[0], *(k * s for s in shape[1:]))) is None for k in (2, 3, 4, 8)):
        raise expected(
            f"{arch} needs larger images",
            got=_by(shape[1:]),
            do="enlarge them, or choose a smaller network or stem='small'",
        ) from reason
    raise expected(
        f"{arch} must take the images",
        got=f"{_by(shape[1:])} ({type(reason).__name__}: {first_line(reason)})",
        do="say their size in its arguments, resize them, or choose another network",
    ) from reason


def _takes(model: nn.Module, shape: Sequence[int]) -> Exception | None:
    """What the network raises on images of ``shape`` on the meta device; None if nothing."""
    meta: dict[int, Tensor] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]  # with the buffers that no state dict holds, and tied weights by all their names
    state = {name: meta.setdefault(id(t), t.detach().to("meta")) for name, t in named}
    try:
        torch.func.functional_call(model, state, (torch.empty(2, *shape, device="meta"),))
    except Exception as error:
        return error
    return None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


# --- a user's own network --------------------------------------------------------------------------------------------


def load_network(
    spec: str,
    *,
    weights: str | Path | None = None,
    kwargs: Mapping[str, Any] | None = None,
    trust: bool = False,
    rename: Rename | None = None,
) -> nn.Module:
    """The network that a user's code makes, in evaluation mode.

    ``spec`` is ``package.module:callable`` or ``path/to/file.py:callable``; the callable is a network class, a function
    that returns a network (both called with ``kwargs``), or a network. Importing it runs the user's code, so nothing
    happens without ``trust=True``. Or ``spec`` is a file that holds a network,
    or a MONAI bundle (``packaged``). ``weights`` is a file for ``load_weights``, with ``rename``; without it the network comes as made.
    Raises ``InputError`` if the code does not import, lacks the name, refuses ``kwargs`` or makes no network.
    """
    if is_packaged(spec):
        return load_packaged(spec, weights=weights, trust=trust, rename=rename)
    with _seeded(0), importable(spec):
        entry = load_object(spec, trust=trust)
        made = callable(entry) and not isinstance(entry, nn.Module)
        model = foreign(spec, lambda: called(entry, spec, kwargs or {})) if made else entry
    if not isinstance(model, nn.Module):
        raise expected(
            f"{spec} must make a torch.nn.Module", got=type(model).__name__, do="name the network's class or a function"
        )
    lazy = [name for name, p in model.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise expected(
            "the network must have all its weights",
            got=f"lazy ones ({some(lazy)})",
            do="run one image through it where it is made",
        )
    if weights is not None:
        load_weights(model, weights, rename=rename)
    return model.eval()


# --- is it fit to be audited? ----------------------------------------------------------------------------------------


def check_network(
    model: nn.Module,
    images: Tensor,
    n_classes: int,
    head: str | tuple[str, int] = "softmax",
    *,
    output: Literal["logits", "probabilities"] = "logits",
) -> list[str]:
    """Run one batch (n, C, *S), normalised as the network wants it: refuse what cannot be audited, list what is weak.

    ``head`` as in ``FeatureClassifier``: "softmax" wants one output per class; "sigmoid" one output and two classes;
    ("finding", j) an output j; "findings", for training, one output per finding. ``output``: what the network is said to give. Eight
    images or more show what two may not. Returns the caveats: outputs that
    differ from pass to pass, outputs that look like probabilities, no gradient. Raises ``InputError`` for a network in
    training mode, NaN in weights or outputs, images with other axes or channels than the network takes, outputs
    that do not match the classes or are not the probabilities that they are said to be, and for a network that loses rows with one image or
    whose outputs for an image depend on the other images of its batch.
    """
    _check_mode(model)
    bad = [k for k, v in model.named_parameters() if v.is_floating_point() and not bool(v.isfinite().all())]
    if bad:
        raise expected(
            "weights must be finite", got=f"NaN or infinity in {some(bad)}", do="load other weights or train again"
        )
    images = images.to(next((p.device for p in model.parameters()), images.device))
    if len(images) == 1:
        images = torch.cat([images, images.flip(-1)])
    with torch.no_grad():
        out = _forward(model, images)
        _check_outputs(out, len(images), n_classes, head)
        again = _forward(model, images)
        alone = _alone(model, images, out)
        loud = [z for k in (100, -100) if (z := _attempt(model, k * images)) is not None]  # logits would leave [0, 1]
        strange = _attempt(model, torch.cat([images[:1], -100 * images[1:]]))
    _check_mode(model)
    caveats = []
    if not torch.allclose(out, again, rtol=1e-4, atol=1e-5):
        caveats.append("the network is random at inference: two passes over the same images differ")
    elif not _agree(out, alone) or (strange is not None and not _agree(strange[:1], out[:1])):
        raise expected(
            "the outputs for an image must not depend on the other images of its batch",
            got="other outputs for an image alone than in a batch",
            do="leave out what reads the whole batch, such as BatchNorm without running statistics or x - x.mean()",
        )
    if output == "probabilities":
        _check_probabilities(torch.cat([out, *loud]), head)
    elif _like_probabilities(torch.cat([out, *loud])):
        caveats.append("the outputs look like probabilities, not logits: gradients vanish where the network is sure")
    if not any(_has_gradient(model, image) for image in images.split(1)):
        caveats.append("no gradient reaches the image: gradient attacks will fail without proving anything")
    return caveats


def _check_mode(model: nn.Module) -> None:
    training = [name or type(model).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise expected(
            "the network must be in evaluation mode", got=f"training mode ({some(training)})", do="call model.eval()"
        )


def _forward(model: nn.Module, images: Tensor) -> Tensor:
    try:
        out = model(images.clone())  # a first layer may work in place
    except Exception as error:  # whatever code that is not ours raises
        raise _misfit(model, images, error) from error
    if not isinstance(out, Tensor):
        raise expected(
            "the network must return one tensor of logits", got=type(out).__name__, do="wrap it to return the logits"
        )
    return out


def _misfit(model: nn.Module, images: Tensor, error: Exception) -> InputError:
    """Why a network does not take the images."""
    first, channels = entrance(model), images.shape[1]
    detail = f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in SIGNS):
        return InputError(f"memory does not suffice for {len(images)} images ({detail}); use smaller images")
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if kinds - {"float32"}:
        got = f"{' and '.join(sorted(kinds))} ({detail})"
        return expected("the network must compute in float32", got=got, do="call .float() where it is made")
    wants = "the network must take the images"
    if first is not None:
        wants = f"the network takes {len(first.kernel_size)}D images of {first.in_channels} channel(s)"
        if (len(first.kernel_size), first.in_channels) == (images.ndim - 2, channels):
            wants = "the network must take the images"  # their axes and channels are not the reason
    got = f"{images.ndim - 2}D images of {channels} channel(s), {_by(images.shape[2:])}"
    return expected(wants, got=got, do=f"choose a network for these images ({detail})")


def _attempt(model: nn.Module, images: Tensor) -> Tensor | None:
    """The outputs for images that a network need not take; None where it does not, or where they are not finite."""
    try:
        out = model(images.clone())
    except Exception:
        return None
    return out if isinstance(out, Tensor) and bool(out.isfinite().all()) else None


def _alone(model: nn.Module, images: Tensor, out: Tensor) -> Tensor:
    """The outputs of every image by itself."""
    rows = []
    for image in images.split(1):
        try:
            row = model(image.clone())
        except Exception as error:
            raise expected(
                "the network must take batches of any size",
                got=f"{len(images)} images but not one ({first_line(error)})",
                do="remove the size of the batch from its code",
            ) from error
        if not isinstance(row, Tensor) or row.shape != out[:1].shape:
            shape = tuple(getattr(row, "shape", ()))
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


def _check_outputs(out: Tensor, n: int, n_classes: int, head: str | tuple[str, int]) -> None:
    shape = tuple(out.shape)
    columns = 1 if shape == (n,) else shape[1] if len(shape) == 2 and shape[0] == n else 0
    if not columns:
        raise expected(
            f"the network must return logits (N, K), here ({n}, K)", got=shape, do="return one row per image"
        )
    if not out.is_floating_point():
        raise expected("the network must return logits", got=out.dtype, do="return numbers, not decisions")
    if not bool(out.isfinite().all()):
        raise expected(
            "outputs must be finite", got="NaN or infinity", do="check the declared normalisation and the weights"
        )
    if head in ("softmax", "findings"):
        if columns != n_classes:
            hint = 'say head="sigmoid"' if columns == 1 and n_classes == 2 else "use a network trained on these classes"
            raise expected(f"a {head} head over {n_classes} labels has {n_classes} outputs", got=columns, do=hint)
    elif head == "sigmoid":
        if n_classes != 2:
            raise expected("labels for a sigmoid head have two classes", got=n_classes, do='say head="softmax"')
        if columns != 1:
            raise expected("a sigmoid head has one output", got=columns, do='say head="softmax" or ("finding", j)')
    elif not isinstance(head, tuple) or head[0] != "finding":
        raise unknown("head", str(head), ("softmax", "sigmoid", "findings", "finding"))
    elif not 0 <= head[1] < columns:
        raise expected(f"finding must be 0 to {columns - 1}", got=head[1], do="choose one of the network's outputs")


def _like_probabilities(out: Tensor) -> bool:
    """Whether the outputs, also those for images far brighter and darker than any, lie in [0, 1], as those of a softmax or of sigmoids do."""
    return bool(((out >= 0) & (out <= 1)).all()) and bool(((out > 0) & (out < 1)).any())


def _check_probabilities(out: Tensor, head: str | tuple[str, int]) -> None:
    low, high = float(out.min()), float(out.max())
    if low < 0 or high > 1:
        do = "leave network.output out: these are logits"
        raise expected("output: probabilities must lie in [0, 1]", got=f"{low:.3g} to {high:.3g}", do=do)
    if head == "softmax" and not bool(((out.sum(1) - 1).abs() < 1e-3).all()):
        raise expected(
            "the probabilities of a softmax head must add up to 1",
            got=f"{float(out.sum(1).min()):.3g} to {float(out.sum(1).max()):.3g}, as of one sigmoid for each class",
            do="let the network return its logits, or say head: finding:NAME for images with several findings",
        )


def _has_gradient(model: nn.Module, image: Tensor) -> bool:
    """Whether the squared outputs, which unlike their sum do not cancel in a softmax, depend on the image."""
    x = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        total = model(x.clone()).square().sum()
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
