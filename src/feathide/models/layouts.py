"""Where the channels of a layer's output stand, and how the output becomes one feature a channel.

An output is (N, C, *S) in convolutional networks, (N, *S, C) in the stages of Swin and ConvNeXt,
and (N, T, C) in transformers: T tokens, often a class token first. Which axis holds the channels
is told by what the modules declare (the normalised shape of a LayerNorm, the width of a Linear,
the channels of a convolution); what cannot be told is refused."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from feathide.errors import expected, unknown
from feathide.registry.specs import Layout, Tokens

__all__ = ["Layout", "ReadOut", "Tokens", "readouts", "tokenised"]

Side = Literal["first", "last", "flat"]

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KEEPING = (
    *ACTIVATIONS,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.Identity,
    nn.Sequential,
)
# of torchvision, timm and others
KEEPING_NAMES = ("StochasticDepth", "DropPath", "LayerScale")
BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
# these modules of torch take channels first
POOLINGS = ("Pool1d", "Pool2d", "Pool3d", "Upsample", "PixelShuffle")
PREFIXES = (
    "class_token",
    "cls_token",
    "dist_token",
    "distillation_token",
    "reg_token",
    "register_tokens",
)


@dataclass(frozen=True)
class ReadOut:
    """How one layer's output becomes its feature (N, C): the mean over all axes but the
    channels'.

    ``side``: where the channels stand, ``flat`` where there is no other axis. ``prefix``: how
    many tokens stand before those of the image (class token, ...);
    ``tokens``: of such a layer, the ``mean`` of the image's tokens, the ``class`` token, or
    ``both``, side by side (N, 2 C).
    ``turned``: the output is (T, N, C).
    """

    side: Side = "first"
    prefix: int = 0
    tokens: Tokens = "mean"
    turned: bool = False

    def upright(self, h: Tensor) -> Tensor:
        """The output with the images as its first axis."""
        return h.transpose(0, 1) if self.turned else h

    def sum(self, h: Tensor) -> tuple[Tensor, int]:
        """The sum (N, C) and of how many values; with the gradient of a view. Of half precision
        in float32: a sum overflows where its mean does not.
        """
        if h.ndim == 2:
            return h, 1
        h = self.upright(h)
        dtype = torch.promote_types(h.dtype, torch.float32)
        if self.side == "first":
            return h.sum(tuple(range(2, h.ndim)), dtype=dtype), h[0, 0].numel()
        if not self.prefix:
            return h.sum(tuple(range(1, h.ndim - 1)), dtype=dtype), h[0, ..., 0].numel()
        patches, first = h[:, self.prefix :], h[:, 0].to(dtype)
        if self.tokens == "class":
            return first, 1
        total, count = patches.sum(1, dtype=dtype), patches.shape[1]
        return (
            (total, count)
            if self.tokens == "mean"
            else (torch.cat([total / count, first], 1), 1)
        )

    @property
    def words(self) -> str:
        """Such as ``mean of the tokens without the class token``, for a person."""
        if self.side != "last":
            return "as it is" if self.side == "flat" else "mean over space, channels first"
        if not self.prefix:
            return "mean over space or tokens, channels last"
        kinds = {"mean": "mean of the tokens without the first {n}", "class": "class token"}
        kinds["both"] = f"{kinds['mean']}, and class token"
        return (
            kinds[self.tokens]
            .format(n=self.prefix if self.prefix > 1 else "one")
            .replace("first one", "class token")
        )


def tokenised(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether some output of the network, of those with these ``shapes`` (without N), may hold
    its channels last.
    """
    return any(_declared(model, name, shape) == "last" for name, shape in shapes.items())


def readouts(
    model: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    names: Sequence[str],
    *,
    layout: Layout | Mapping[str, Layout] = "auto",
    tokens: Tokens = "mean",
    turned: Collection[str] = (),
) -> dict[str, ReadOut]:
    """The read-out of each of the layers ``names``. ``shapes``: of all outputs that were seen,
    without N, in the order of the forward pass; ``turned``: those of them that have the images
    second.

    Raises ``InputError`` where the layout cannot be told, and for ``tokens: class`` where no
    class token is."""
    _check(layout, tokens)
    found = _sides(model, shapes)
    prefix, patches = _prefix(model), _patches(model, shapes)
    chosen = {}
    for name in names:
        shape, said = tuple(shapes[name]), _said(layout, name)
        side = (
            found.get(name)
            if said == "auto"
            else "first"
            if said == "channels-first"
            else "last"
        )
        if len(shape) == 1:
            side = "flat"
        if side is None:
            raise expected(
                f"the layout of layer {name} must be known, to find its channels",
                got=f"an output of shape (N, {', '.join(map(str, shape))})",
                do=(
                    f"say network.layout: {{'{name}': tokens}}, or channels-last or "
                    "channels-first"
                ),
            )
        rows = side == "last" and len(shape) == 2 and said != "channels-last"  # of tokens
        before = (
            (prefix or _unnamed(model, shape, patches))
            if rows and shape[0] != patches
            else 0
        )
        if tokens != "mean" and not before and len(shape) > 1:
            got = f"an output of shape (N, {', '.join(map(str, shape))})"
            raise expected(
                f"layer {name} must have a class token for tokens: {tokens}",
                got=got,
                do="say tokens: mean",
            )
        chosen[name] = ReadOut(side, before, tokens, name in turned)
    return chosen


def _check(layout: Layout | Mapping[str, Layout], tokens: Tokens) -> None:
    for value in [layout] if isinstance(layout, str) else layout.values():
        if value not in get_args(Layout):
            raise unknown("layout", value, get_args(Layout))
    if tokens not in get_args(Tokens):
        raise unknown("way to pool tokens", tokens, get_args(Tokens))


def _said(layout: Layout | Mapping[str, Layout], name: str) -> Layout:
    """What the user says of this layer: the first glob that fits."""
    if isinstance(layout, str):
        return layout
    return next(
        (v for glob, v in layout.items() if name == glob or fnmatchcase(name, glob)), "auto"
    )


def _sides(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, Side | None]:
    """Where the channels of each output stand; None where it cannot be told."""
    if not tokenised(model, shapes):
        return dict.fromkeys(shapes, "first")
    found: dict[str, Side | None] = {}
    for name, shape in shapes.items():
        module = model.get_submodule(_module(name))
        found[name] = (
            _declared(model, name, shape)
            or _by_width(module, shape)
            or _inherited(module, shape, found, shapes)
        )
    return _by_class(model, found)


def _by_class(model: nn.Module, found: dict[str, Side | None]) -> dict[str, Side | None]:
    """What is not told by its shape (96 channels on 96 x 96 places) is told by the others of its
    class, where these agree. Torch's own classes take both.
    """
    told: dict[type, set[Side]] = {}
    kinds = {
        name: type(model.get_submodule(_module(name)))
        for name in found
        if not name.endswith(":input")
    }
    for name, kind in kinds.items():
        if (
            (side := found[name]) is not None
            and side != "flat"
            and not kind.__module__.startswith("torch.nn.")
        ):
            told.setdefault(kind, set()).add(side)
    agreed = {kind: next(iter(sides)) for kind, sides in told.items() if len(sides) == 1}
    return {
        name: side or (agreed.get(kinds[name]) if name in kinds else None)
        for name, side in found.items()
    }


def _declared(model: nn.Module, name: str, shape: Sequence[int]) -> Side | None:
    """What the module itself says of its output, or a Linear of its input."""
    module = model.get_submodule(_module(name))
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS, nn.GroupNorm)) or type(
        module
    ).__name__.endswith(POOLINGS):
        return "first"
    if name.endswith(":input"):
        return "last" if len(shape) > 1 else None
    return "last" if _declares_last(module, shape) else None


def _declares_last(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether this is a Linear on, or a LayerNorm over, the last of several axes. A norm that
    permutes before and after has its width first.
    """
    if len(shape) < 2:
        return False
    if isinstance(module, nn.Linear):
        return shape[-1] == module.out_features
    if isinstance(module, nn.TransformerEncoderLayer):
        return True
    width = getattr(module, "normalized_shape", None)
    if width is None or len(width) != 1 or shape[-1] != width[0]:
        return False
    return type(module) is nn.LayerNorm or shape[0] != width[0]


def _by_width(module: nn.Module, shape: Sequence[int]) -> Side | None:
    """The one end of the shape that is a width which the module's parts declare."""
    widths = set()
    for part in module.modules():
        normalised = getattr(part, "normalized_shape", None)
        if normalised is not None and len(normalised) == 1:
            widths.add(normalised[0])
        widths |= {
            getattr(part, key)
            for key in ("out_features", "out_channels", "num_features", "embed_dim")
            if _number(part, key)
        }
    first, last = shape[0] in widths, shape[-1] in widths
    return None if first == last else "first" if first else "last"


def _module(name: str) -> str:
    """The module of a layer's name: without the call, and without the mark of an input."""
    return name.removesuffix(":input").partition("#")[0]


def _number(module: nn.Module, key: str) -> bool:
    return isinstance(getattr(module, key, None), int)


def _inherited(
    module: nn.Module,
    shape: Sequence[int],
    found: Mapping[str, Side | None],
    shapes: Mapping[str, Sequence[int]],
) -> Side | None:
    """The side of what ran right before: what keeps its shape keeps its axes, if it does nothing
    but change numbers or if a permutation would show.

    Where the shape has changed (a permutation, a pooling), the channels are at the end that alone
    still has their number."""
    if not found:
        return None
    before = list(found)[-1]
    old, side = tuple(shapes[before]), found[before]
    if side is None:
        return None
    keeps = isinstance(module, KEEPING) or type(module).__name__ in KEEPING_NAMES
    if old == tuple(shape) and (keeps or old[0] != old[-1]):
        return side
    width = old[0] if side == "first" else old[-1]
    first, last = shape[0] == width, shape[-1] == width
    return None if first == last else "first" if first else "last"


def _prefix(model: nn.Module) -> int:
    """How many tokens the network puts before those of the image."""
    told = [m.num_prefix_tokens for m in model.modules() if _number(m, "num_prefix_tokens")]
    if told:
        return int(told[0])  # type: ignore[arg-type]
    tokens = [
        p
        for n, p in model.named_parameters()
        if n.rpartition(".")[2] in PREFIXES and p.ndim == 3
    ]
    return sum(p.shape[1] for p in tokens)


def _unnamed(model: nn.Module, shape: Sequence[int], patches: int) -> int:
    """How many tokens there are beyond those of the image, where a parameter of another name
    holds just as many of this width.
    """
    more = shape[0] - patches
    held = any(
        p.numel() == more * shape[1]
        and p.shape[-1] == shape[1]
        and p.shape[-2:-1] in ((more,), ())
        for p in _own(model)
    )
    return more if patches and more > 0 and held else 0


def _own(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are no weights of a layer of torch."""
    return [
        p
        for m in model.modules()
        if not type(m).__module__.startswith("torch.nn.")
        for p in m.parameters(recurse=False)
    ]


def _patches(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many tokens the image has where it is cut into patches: the places of the first
    convolution's output.
    """
    for name, shape in shapes.items():
        if isinstance(model.get_submodule(_module(name)), CONVOLUTIONS):
            return int(torch.Size(shape[1:]).numel())
    return 0
