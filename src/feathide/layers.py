"""Layers: which outputs of a network a forward pass shows, and the names and presets that choose among them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from feathide.errors import InputError, expected, unknown

__all__ = ["CONVOLUTIONS", "Unit", "choose_layers", "entrance", "hooked", "units"]

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
PRESETS = ("conv", "blocks", "stages", "last")


def entrance(model: nn.Module) -> nn.Conv1d | nn.Conv2d | nn.Conv3d | None:
    """The convolution that reads the images, if there is one."""
    return next((m for m in model.modules() if isinstance(m, CONVOLUTIONS)), None)


@dataclass(frozen=True)
class Unit:
    """One output that was seen in a forward pass: the ``call``-th of module ``module``, with its spatial shape."""

    module: str
    call: int
    calls: int
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.module if self.calls == 1 else f"{self.module}#{self.call}"


def units(model: nn.Module, x: Tensor) -> list[Unit]:
    """Every module output (N, C, *S) of one forward pass on ``x``, in the order in which they are computed.

    A module that runs more than once, such as the one ReLU that a residual block uses twice, appears once for each call, as
    ``name#0``, ``name#1``, ...
    """
    seen: list[tuple[str, int, tuple[int, ...]]] = []
    calls: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            if isinstance(output, Tensor) and output.ndim >= 2 and output.is_floating_point():
                seen.append((name, call, tuple(output.shape[1:])))

        return hook

    with hooked({n: watch(n) for n, _ in model.named_modules() if n}, model), torch.no_grad():
        model(x)
    return [Unit(n, c, calls[n], s) for n, c, s in seen]


@contextmanager
def hooked(hooks: Mapping[str, Callable[..., object]], model: nn.Module) -> Iterator[None]:
    """Forward hooks that live for the length of the ``with`` block, also when it raises."""
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield


def choose_layers(model: nn.Module, spec: str | Sequence[str], seen: Sequence[Unit]) -> tuple[str, ...]:
    """The names that ``spec`` stands for, in network order: names, globs and presets, alone or in a list.

    - ``conv``: the output of every conv-norm-activation unit, that is each call of each activation module (48 or so for
      ResNet-50, 13 + 2 for VGG-16), or of each convolution where a network has no activation modules;
    - ``blocks``: the output of every repeated block (the outermost modules with two or more convolutions, of a class that
      occurs twice or more); ``stages`` where there are none;
    - ``stages``: the last unit of each spatial size;
    - ``last``: the input of the last linear layer.
    """
    spatial = [u for u in seen if isinstance(model.get_submodule(u.module), ACTIVATIONS)]
    conv = spatial or [u for u in seen if isinstance(model.get_submodule(u.module), CONVOLUTIONS)]
    stages = list({u.shape[1:]: u for u in conv}.values())
    table = {
        "conv": conv,
        "stages": stages,
        "blocks": _blocks(model, seen) or stages,
        "last": _last(model, seen) or conv[-1:],
    }
    by_name = {u.name: u for u in seen}
    if spec and not seen:
        raise expected(
            "a network whose layers can be watched, to read features",
            got="none inside, as in TorchScript",
            do="say layers: [] for attacks and detectors on logits alone, or give the network's Python code and weights",
        )
    chosen: set[str] = set()
    for item in [spec] if isinstance(spec, str) else spec:
        found = [u.name for u in table[item]] if item in table else [n for n in by_name if fnmatchcase(n, item)]
        if not found:
            again = [n for n in by_name if n.startswith(f"{item}#")]
            if again:
                raise InputError(
                    f"layer {item!r} runs {len(again)} times in one forward pass; name the call: {', '.join(again)}"
                )
            if item in table:
                raise expected(
                    f"layers: {item} must find {item} in this network",
                    got="none",
                    do=f"name layers yourself, of {', '.join(by_name)}",
                )
            raise unknown("layer", item, [*PRESETS, *by_name])
        chosen.update(found)
    return tuple(n for n in by_name if n in chosen)


def _blocks(model: nn.Module, seen: Sequence[Unit]) -> list[Unit]:
    counts: dict[type, int] = {}
    fit: set[str] = set()
    for name, module in model.named_modules():
        convs = sum(isinstance(m, CONVOLUTIONS) for m in module.modules())
        if name and convs >= 2 and type(module) not in (nn.Sequential, nn.ModuleList):
            fit.add(name)
            counts[type(module)] = counts.get(type(module), 0) + 1
    fit = {n for n in fit if counts[type(model.get_submodule(n))] >= 2}
    outer = {n for n in fit if not any(n.startswith(f"{m}.") for m in fit)}
    return [u for u in seen if u.module in outer]


def _last(model: nn.Module, seen: Sequence[Unit]) -> list[Unit]:
    heads = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    order = [u.module for u in seen]
    heads = [h for h in heads if h in order]
    if not heads:
        return []
    width = model.get_submodule(heads[-1]).in_features
    before = [u for u in seen[: order.index(heads[-1])] if u.shape[0] == width]
    return before[-1:]
