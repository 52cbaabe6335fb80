"""Layers: which outputs of a network a forward pass shows, and the names and presets that choose
among them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from feathide.errors import InputError, expected, unknown
from feathide.models.layouts import ACTIVATIONS, CONVOLUTIONS, tokenised

__all__ = [
    "CONVOLUTIONS",
    "INPUT",
    "Unit",
    "choose_layers",
    "entrance",
    "first_tensor",
    "hooked",
    "shapes_of",
    "turned",
    "units",
]

# behind the name of a linear layer: what it reads, where no module gives that
INPUT = ":input"

# of a block, by the ends of their classes' names
PARTS = ("attention", "attn", "mlp", "ffn", "feedforward")
PRESETS = ("conv", "blocks", "stages", "last")


def entrance(model: nn.Module) -> nn.Conv1d | nn.Conv2d | nn.Conv3d | None:
    """The convolution that reads the images, if there is one."""
    return next((m for m in model.modules() if isinstance(m, CONVOLUTIONS)), None)


@dataclass(frozen=True)
class Unit:
    """One output that was seen in a forward pass: the ``call``-th of module ``module``, with its
    shape (without N).

    ``pooled`` is the mean over all axes but the first, (C,). ``given``: of a linear layer, what
    it was given: its shape, and ``fed``, if it is (C,), the values. ``turned``: the images were
    the second axis, (T, N, C); the shapes here are those with the images first."""

    module: str
    call: int
    calls: int
    shape: tuple[int, ...]
    pooled: Tensor | None = field(default=None, compare=False, repr=False)
    given: tuple[int, ...] = ()
    fed: Tensor | None = field(default=None, compare=False, repr=False)
    turned: bool = False

    @property
    def name(self) -> str:
        return self.module if self.calls == 1 else f"{self.module}#{self.call}"

    @property
    def input_name(self) -> str:
        """The name of what the module was given."""
        return f"{self.name}{INPUT}"


def units(model: nn.Module, x: Tensor) -> list[Unit]:
    """Every module output (N, C, *S), (N, *S, C) or (N, T, C) of one forward pass on ``x``, in
    the order in which they are computed.

    The first image of ``x`` is shown twice, so that outputs without one row an image are told
    from the others; and three times where the images may be the second axis, (T, N, C), as
    torch's attention has them unless told otherwise.

    A module that runs more than once, such as the one ReLU that a residual block uses twice,
    appears once for each call, as ``name#0``, ``name#1``, ..."""
    try:
        seen, doubtful = _seen(model, x, 2, {})
    except Exception:  # an exported network may take one image only
        return _seen(model, x, 1, {})[0]
    if doubtful:
        try:
            return _seen(model, x, 3, doubtful)[0]
        except Exception:  # nor may it take three
            return seen
    return seen


def _seen(
    model: nn.Module, x: Tensor, rows: int, doubtful: Mapping[tuple[str, int], int]
) -> tuple[list[Unit], dict[tuple[str, int], int]]:
    """The outputs for ``rows`` copies of an image; and of those whose second axis is as long, by
    module and call, the length of the first.

    Of such ones ``doubtful``, from a pass on another number of images, those whose first axis has
    not changed have the images second."""
    seen: list[Unit] = []
    calls: dict[str, int] = {}
    lengths: dict[tuple[str, int], int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            h = first_tensor(output)
            if h is None:
                return
            second = h.ndim == 3 and h.shape[1] == rows
            if second:
                lengths[name, call] = len(h)
            turned = second and doubtful.get((name, call)) == len(h)
            if turned:
                h = h.transpose(0, 1)
            # not one row an image: windows of an attention, tables of positions
            if len(h) != rows:
                return
            pooled = h[0].float().flatten(1).mean(1) if h.ndim > 2 else h[0].float()  # (C,)
            read = (
                args[0]
                if isinstance(module, nn.Linear) and args and isinstance(args[0], Tensor)
                else None
            )
            read = read.transpose(0, 1) if turned and read is not None else read
            given = () if read is None else tuple(read.shape[1:])
            fed = read[0].float().clone() if read is not None and read.ndim == 2 else None
            seen.append(
                Unit(name, call, 1, tuple(h.shape[1:]), pooled.clone(), given, fed, turned)
            )

        return hook

    with (
        hooked({n: watch(n) for n, _ in model.named_modules() if n}, model),
        torch.no_grad(),
    ):
        model(x[:1].repeat(rows, *[1] * (x.ndim - 1)))
    return [replace(unit, calls=calls[unit.module]) for unit in seen], lengths


def turned(seen: Sequence[Unit]) -> set[str]:
    """The names of the outputs, and of the inputs of linear layers, whose second axis is that of
    the images.
    """
    return {name for unit in seen if unit.turned for name in (unit.name, unit.input_name)}


def first_tensor(output: object) -> Tensor | None:
    """The output of a layer, or the first of several, if it has rows and channels: layers of some
    libraries give (hidden states, attentions).
    """
    h = output[0] if isinstance(output, (tuple, list)) and output else output
    return h if isinstance(h, Tensor) and h.ndim >= 2 and h.is_floating_point() else None


def shapes_of(seen: Sequence[Unit]) -> dict[str, tuple[int, ...]]:
    """The shape of every output by its name, and of what the linear layers were given."""
    found: dict[str, tuple[int, ...]] = {}
    for unit in seen:
        if unit.given:
            found[unit.input_name] = unit.given
        found[unit.name] = unit.shape
    return found


@contextmanager
def hooked(hooks: Mapping[str, Callable[..., object]], model: nn.Module) -> Iterator[None]:
    """Forward hooks that live for the length of the ``with`` block, also when it raises."""
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield


def choose_layers(
    model: nn.Module, spec: str | Sequence[str], seen: Sequence[Unit]
) -> tuple[str, ...]:
    """The names that ``spec`` stands for, in network order: names, globs and presets, alone or in
    a list.

    - ``conv``: the output of every conv-norm-activation unit, that is each call of each
      activation module (48 or so for ResNet-50, 13 + 2 for VGG-16), or of each convolution where
      a network has no activation modules;
    - ``blocks``: the output of every repeated block (the outermost modules with two or more
      convolutions, of a class that occurs twice or more; in networks of tokens or with channels
      last, the innermost ones with a norm and three or more linear layers or convolutions);
      ``stages`` where there are none;
    - ``stages``: the last unit of each spatial size;
    - ``last``: the input of the last linear layer: the module that gives it or, where it is cut
      out of an output (as a class token), the input itself, ``NAME:input``.
    """
    if spec and not seen:
        raise expected(
            "a network whose layers can be watched, to read features",
            got="none inside, as in TorchScript",
            do=(
                "say layers: [] for attacks and detectors on logits alone, or give the "
                "network's Python code and weights"
            ),
        )
    presets = _presets(model, seen)
    inputs = [u.name for u in presets["last"] if u.name.endswith(INPUT)]
    names = list(dict.fromkeys([*(u.name for u in seen), *inputs]))
    chosen: set[str] = set()
    for item in [spec] if isinstance(spec, str) else spec:
        found = (
            [u.name for u in presets[item]] if item in presets else _matching(item, names)
        )
        if not found:
            raise _no_layer(item, names)
        chosen.update(found)
    return tuple(n for n in names if n in chosen)


def _presets(model: nn.Module, seen: Sequence[Unit]) -> dict[str, list[Unit]]:
    """The outputs that each preset stands for; see ``choose_layers``."""

    def of_kind(kinds: tuple[type[nn.Module], ...]) -> list[Unit]:
        return [u for u in seen if isinstance(model.get_submodule(u.module), kinds)]

    conv = of_kind(ACTIVATIONS) or of_kind(CONVOLUTIONS)
    stages = list({u.shape[1:]: u for u in conv}.values())
    blocks = _blocks(model, seen)
    return {
        "conv": conv,
        "stages": stages,
        "blocks": stages if blocks is None else blocks,
        "last": _last(seen) or conv[-1:],
    }


def _matching(item: str, names: Sequence[str]) -> list[str]:
    """The layer of this name, or those that match it as a pattern: a name may hold brackets,
    which a pattern reads as a choice of characters.
    """
    if item in names:
        return [item]
    return [n for n in names if fnmatchcase(n, item)]


def _no_layer(item: str, names: Sequence[str]) -> InputError:
    """Why a preset, name or pattern finds nothing, and what to do."""
    if again := [n for n in names if n.startswith(f"{item}#")]:
        return InputError(
            f"layer {item!r} runs {len(again)} times in one forward pass; name the "
            f"call: {', '.join(again)}"
        )
    if item in PRESETS:
        return expected(
            f"layers: {item} must find {item} in this network",
            got="none",
            do=f"name layers yourself, of {', '.join(names)}",
        )
    return unknown("layer", item, [*PRESETS, *names])


def _blocks(model: nn.Module, seen: Sequence[Unit]) -> list[Unit] | None:
    """The outputs of the repeated blocks; None where a network has none, and nothing where those
    of a network of tokens show no row an image.
    """
    last = tokenised(model, shapes_of(seen))
    counts: dict[type, int] = {}
    fit: set[str] = set()
    for name, module in model.named_modules():
        enough = (
            _is_encoder(module)
            if last
            else sum(isinstance(m, CONVOLUTIONS) for m in module.modules()) >= 2
        )
        if name and enough and type(module) not in (nn.Sequential, nn.ModuleList):
            fit.add(name)
            counts[type(module)] = counts.get(type(module), 0) + 1
    fit = {n for n in fit if counts[type(model.get_submodule(n))] >= 2}
    nested = {
        (inner, outer) for inner in fit for outer in fit if inner.startswith(f"{outer}.")
    }
    fit -= {outer for _, outer in nested} if last else {inner for inner, _ in nested}
    encoders = [
        type(m)
        for m in model.modules()
        if _is_encoder(m) and type(m) not in (nn.Sequential, nn.ModuleList)
    ]
    attending = {
        type(m)
        for m in model.modules()
        if any(isinstance(part, nn.MultiheadAttention) for part in m.modules())
    }
    hidden = not fit and any(encoders.count(kind) >= 2 for kind in attending)
    return [u for u in seen if u.module in fit] or (
        [] if hidden or (last and fit) else None
    )


def _is_encoder(module: nn.Module) -> bool:
    """Whether a module normalises and mixes, as an encoder block does, and neither its attention
    nor its perceptron alone.
    """
    if type(module).__name__.lower().endswith(PARTS):
        return False
    parts = list(module.modules())
    weights = sum(
        3
        if isinstance(m, nn.MultiheadAttention)
        else isinstance(m, (nn.Linear, *CONVOLUTIONS))
        for m in parts
    )
    return weights >= 3 and any("norm" in type(m).__name__.lower() for m in parts)


def _last(seen: Sequence[Unit]) -> list[Unit]:
    heads = [i for i, u in enumerate(seen) if u.given]
    if not heads:
        return []
    head = seen[heads[-1]]
    for unit in reversed(seen[: heads[-1]]):
        if unit.shape[0] != head.given[-1] or unit.pooled is None:
            continue
        if head.fed is None or torch.allclose(unit.pooled, head.fed, rtol=1e-4, atol=1e-6):
            return [unit]
    return [Unit(head.input_name, 0, 1, head.given)]
