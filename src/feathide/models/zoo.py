"""The networks that are built here and never downloaded.

Every network takes (N, C, *S) and gives logits (N, K); none normalises its input (see
``FeatureClassifier``)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from feathide.errors import choose, expected, first_line, unknown
from feathide.models.efficientnet_lite import LITE, Scale, efficientnet_lite
from feathide.models.layers import entrance
from feathide.models.libraries import Arch, arch_named, first_convolution
from feathide.registry.plugins import with_plugins
from feathide.registry.user_code import foreign

__all__ = ["CHANNELS_LAST", "MODELS", "OUR_MODELS", "Stem", "build"]

Stem = Literal["standard", "small"]


# --- the zoo ------------------------------------------------------------------------------------


def _conv_unit(axes: int, inside: int, outside: int, stride: int) -> nn.Sequential:
    conv, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[axes]
    return nn.Sequential(
        conv(inside, outside, 3, stride, 1, bias=False), norm(outside), nn.ReLU()
    )


def _tiny(axes: int) -> Arch:
    """Five conv-norm-ReLU units, three of which halve the image, the mean over space, and a
    linear head.
    """

    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        widths = (16, 32, 32, 64, 64)
        strides = (1, 2, 2, 1, 2) if small else (2, 2, 1, 2, 1)
        units = [
            _conv_unit(axes, i, o, s)
            for i, o, s in zip((channels, *widths), widths, strides, strict=False)
        ]
        pool = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[axes](1)
        return nn.Sequential(*units, pool, nn.Flatten(), nn.Linear(widths[-1], outputs))

    return Arch(axes, make)


def _pictures(name: str) -> Callable[..., Any]:
    """A network of torchvision, which takes a second to import: only when one is built."""
    from torchvision import models

    return getattr(models, name)


def _volumes(name: str) -> Callable[..., Any]:
    """A network of MONAI, which takes seconds to import: only when one is built."""
    from monai.networks import nets

    return getattr(nets, name)


def _resnet(name: str) -> Arch:
    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        net = _pictures(name)(weights=None, num_classes=outputs)
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
    net = _pictures("vgg16_bn")(weights=None, num_classes=outputs)
    net.features[0] = first_convolution(net.features[0], channels, small)
    return net


def _lite(scale: Scale) -> Arch:
    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        return efficientnet_lite(scale, channels=channels, outputs=outputs, small=small)

    return Arch(2, make)


def _densenet121(axes: int) -> Arch:
    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        net = (
            _pictures("densenet121")(weights=None, num_classes=outputs)
            if axes == 2
            else _volumes("DenseNet121")(
                spatial_dims=3, in_channels=channels, out_channels=outputs
            )
        )
        net.features.conv0 = first_convolution(net.features.conv0, channels, small)
        if small and axes == 2:
            net.features.pool0 = nn.Identity()
        return net

    return Arch(axes, make)


def _resnet_3d(name: str) -> Arch:
    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        stem = (
            {"conv1_t_size": 3, "conv1_t_stride": 1}
            if small
            else {"conv1_t_size": 7, "conv1_t_stride": 2}
        )
        return _volumes(name)(
            spatial_dims=3, n_input_channels=channels, num_classes=outputs, **stem
        )

    return Arch(3, make)


OUR_MODELS: dict[str, Arch] = {
    "tiny": _tiny(2),
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    "vgg16_bn": Arch(2, _vgg16_bn),
    "densenet121": _densenet121(2),
    **{name: _lite(scale) for name, scale in LITE.items()},
    "tiny3d": _tiny(3),
    "resnet10_3d": _resnet_3d("resnet10"),
    "resnet18_3d": _resnet_3d("resnet18"),
    "resnet50_3d": _resnet_3d("resnet50"),
    "densenet121_3d": _densenet121(3),
}
# a step takes 4 to 22 % less time on a CPU
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

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
    """The network ``arch`` of ``MODELS`` with random weights: images (N, channels, *size) in,
    logits (N, outputs) out.

    The standard stem (kernel 7, stride 2, max-pooling) is affordable on a CPU and right from
    about 64 px on. ``stem="small"`` is for small images: a first convolution with kernel 3 and
    stride 1 and, in 2D, no max-pooling, so that images of 32 x 32 or volumes of 24 x 24 x 24 keep
    some extent to the end, at 16 (2D) and 8 (3D) times the cost. ``tiny`` and ``tiny3d`` halve
    the image three times in five units; their small stem only does so later. ``size``, where
    given, is checked against the architecture. Nothing is ever downloaded. ``seed`` decides the
    weights; the global random state is not touched. The network comes in training mode.

    Raises ``InputError`` for an unknown name, channels other than 1 and 3, or a size that the
    network cannot take."""
    entry = choose("architecture", arch, MODELS)
    if channels not in (1, 3):
        raise expected(
            "channels must be 1 or 3", got=channels, do="convert the images to grey or RGB"
        )
    if outputs < 1:
        raise expected(
            "outputs must be 1 (one sigmoid) or the number of classes",
            got=outputs,
            do="correct it",
        )
    if stem not in ("standard", "small"):
        raise unknown("stem", stem, ("standard", "small"))
    if size is not None and len(size) != entry.axes:
        fit = ", ".join(n for n, a in MODELS.items() if a.axes == len(size)) or "none"
        raise expected(
            f"{arch} takes {entry.axes}D images",
            got=f"{len(size)}D ({_by(size)})",
            do=f"choose from: {fit}",
        )
    with _seeded(seed):
        model = foreign(arch, lambda: entry.make(channels, outputs, stem == "small"))
    # those of plug-ins may view their features in the usual order of memory
    if arch in OUR_MODELS:
        model = model.to(memory_format=CHANNELS_LAST[entry.axes])
    if size is not None:
        first = entrance(model)
        _check_size(
            model.eval(), arch, (channels if first is None else first.in_channels, *size)
        )
    return model.train()


def _check_size(model: nn.Module, arch: str, shape: Sequence[int]) -> None:
    """Run the network on shapes alone (the meta device: no memory, no arithmetic), or on one
    empty image where that does not go; say why it does not.
    """
    if _takes(model, shape) is None:
        return
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            model(torch.zeros(2, *shape, device=place))
        return
    except Exception as error:  # whatever code that is not ours raises
        reason = error
    if any(
        _takes(model, (shape[0], *(k * s for s in shape[1:]))) is None for k in (2, 3, 4, 8)
    ):
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
    # with the buffers that no state dict holds, and tied weights by all their names
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
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
