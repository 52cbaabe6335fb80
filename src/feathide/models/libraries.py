"""Architectures of other libraries by name: ``timm:resnet26``, ``torchvision:convnext_tiny``,
``monai:DenseNet121(spatial_dims=3)``.

They are built here; nothing is downloaded.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from feathide.errors import choose, expected, unknown
from feathide.models.layers import CONVOLUTIONS
from feathide.registry.specs import parsed

__all__ = ["ZOOS", "Arch", "arch_named", "first_convolution"]

CHANNELS = ("in_channels", "n_input_channels", "in_chans")
OUTPUTS = ("num_classes", "out_channels")
# of torchvision: give several outputs while they are trained, unless told not to
AUXILIARY = (
    "googlenet",
    "inception_v3",
)


@dataclass(frozen=True)
class Arch:
    """An architecture: the number of spatial axes of its images, and ``make(channels, outputs,
    small_stem)``.
    """

    axes: int
    make: Callable[[int, int, bool], nn.Module]


def arch_named(name: str) -> Arch:
    """The architecture ``name`` of timm, torchvision or MONAI, whose arguments stand in brackets;
    the numbers of channels and outputs are those of the data unless said there. Raises
    ``InputError`` for an unknown name or library, and for arguments that would download weights.
    """
    base, options = parsed(name)
    library, _, what = base.partition(":")
    make = choose("library of networks", library, ZOOS)
    if options.get("pretrained") or options.get("weights"):
        raise expected(
            f"{base} is built without weights, and nothing is downloaded",
            got="pretrained weights",
            do=(
                f"fetch {_published(library, what, options)} and give its path as "
                "network.start_from (to train on, with another head) or network.weights (as it is)"
            ),
        )
    return make(what, options, name)


def _published(library: str, what: str, options: Mapping[str, Any]) -> str:
    """Which file the library would download, in words."""
    if library == "timm":
        return _published_by_timm(what)
    if library == "monai":
        # MONAI takes the weights of its 2D networks from torchvision
        return _published_by_torchvision(what.lower(), {}) or (
            f"the file of weights that MONAI's documentation names for {what}"
        )
    return _published_by_torchvision(what, options) or f"the file of weights of {what}"


def _published_by_torchvision(what: str, options: Mapping[str, Any]) -> str:
    from torchvision import models

    if what not in models.list_models():
        return ""
    rows = models.get_model_weights(what)
    wanted = str(options.get("weights", "")).rpartition(".")[2]
    named = {row.name: row for row in rows}
    row: Any = named.get(wanted, rows.DEFAULT)
    return f"{row.url} ({what}, {row.name})"


def _published_by_timm(what: str) -> str:
    try:
        import timm
    except ImportError:
        return f"the file of weights of timm's {what}"
    found: Any = timm.models.get_pretrained_cfg(what) if timm.is_model(what) else None
    if found is None:
        return f"the file of weights of timm's {what}"
    if found.hf_hub_id:
        return f"model.safetensors of {found.hf_hub_id} on Hugging Face"
    return str(found.url or f"the file of weights of timm's {what}")


def first_convolution(conv: nn.Module, channels: int, small: bool = False) -> nn.Module:
    """The first convolution again, for ``channels`` input channels; a small one has a kernel of 3
    and stride 1.
    """
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    size, stride, padding = (
        (3, 1, 1) if small else (conv.kernel_size, conv.stride, conv.padding)
    )
    kind: Any = type(conv)
    new = kind(
        channels, conv.out_channels, size, stride, padding, bias=conv.bias is not None
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


def _timm(what: str, options: Mapping[str, Any], name: str) -> Arch:
    try:
        import timm
    except ImportError as error:
        raise expected(
            "timm must be installed", got=str(error), do="pip install timm"
        ) from None
    if not timm.is_model(what):
        raise unknown("network of timm", what, timm.list_models())

    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        _standard(name, small)
        return timm.create_model(
            what,
            **{
                "pretrained": False,
                "in_chans": channels,
                "num_classes": outputs,
                **options,
            },
        )

    return Arch(2, make)


def _torchvision(what: str, options: Mapping[str, Any], name: str) -> Arch:
    from torchvision import models

    volumes = models.list_models(module=models.video)
    if what not in (known := [*models.list_models(module=models), *volumes]):
        raise unknown("network of torchvision", what, known)

    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        _standard(name, small)
        still = {"aux_logits": False, "init_weights": False} if what in AUXILIARY else {}
        net = models.get_model(
            what, **{"weights": None, "num_classes": outputs, **still, **options}
        )
        place = next(n for n, m in net.named_modules() if isinstance(m, CONVOLUTIONS))
        conv: Any = net.get_submodule(place)
        if conv.in_channels != channels:
            parent, _, last = place.rpartition(".")
            setattr(net.get_submodule(parent), last, first_convolution(conv, channels))
        return net

    return Arch(3 if what in volumes else 2, make)


def _monai(what: str, options: Mapping[str, Any], name: str) -> Arch:
    from monai.networks import nets

    table = {
        n: c
        for n, c in vars(nets).items()
        if inspect.isclass(c) and _monai_names(c) is not None
    }
    cls: Any = choose("network of monai", what, table)
    names = _monai_names(cls)
    assert names is not None
    if "spatial_dims" not in options:
        raise expected(
            f"monai:{what} must be told its axes",
            got="no spatial_dims",
            do=f"say monai:{what}(spatial_dims=3)",
        )
    still = {"pretrained": False} if "pretrained" in _parameters(cls) else {}

    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        _standard(name, small)
        arguments = {**still, names[0]: channels, names[1]: outputs, **options}
        for argument in arguments.keys() - _parameters(cls):
            raise unknown(
                f"argument of monai:{what}", argument, sorted(_parameters(cls) - {"self"})
            )
        return cls(**arguments)

    return Arch(int(options["spatial_dims"]), make)


def _monai_names(cls: type) -> tuple[str, str] | None:
    """What a network of MONAI calls its numbers of channels and outputs; None for one that is no
    classifier by its arguments.
    """
    parameters = _parameters(cls)
    found = [
        next((n for n in names if n in parameters), None) for names in (CHANNELS, OUTPUTS)
    ]
    return (
        (found[0], found[1])
        if found[0] and found[1] and "spatial_dims" in parameters
        else None
    )


def _parameters(cls: type) -> set[str]:
    """The names of the arguments that a class takes, those that it hands on to its parents
    included.
    """
    found: set[str] = set()
    for c in cls.__mro__:
        if c in (nn.Module, object):
            break
        begin = vars(c).get("__init__")
        own = () if begin is None else inspect.signature(begin).parameters.values()
        found |= {p.name for p in own}
        if own and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own):
            break
    return found


def _standard(name: str, small: bool) -> None:
    if small:
        raise expected(
            f"stem of {name} must be 'standard'",
            got="'small'",
            do="leave it out, or choose a row of the zoo",
        )


ZOOS: dict[str, Callable[[str, Mapping[str, Any], str], Arch]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "monai": _monai,
}
