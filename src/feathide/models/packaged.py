"""Networks that come as files: TorchScript, ``torch.export`` programs, ONNX, and MONAI
bundles.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn

from feathide.errors import InputError, expected
from feathide.models.layers import entrance
from feathide.models.weight_names import Rename
from feathide.models.weights import load_weights

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

__all__ = ["ChannelsLast", "Scripted", "is_packaged", "load_packaged", "upright"]

# of ONNX: the axes stay as they are
SIMPLE = ("Add", "Cast", "Clip", "Div", "Identity", "Mul", "Neg", "Pad", "Sub")


def is_packaged(spec: str) -> bool:
    """Whether ``spec`` is spelled as a file with a network, or is a folder with a MONAI
    bundle.
    """
    return Path(spec).suffix in READERS or os.path.isdir(Path(spec) / "configs")


def load_packaged(
    path: str | Path,
    *,
    weights: str | Path | None = None,
    trust: bool = False,
    rename: Rename | None = None,
) -> nn.Module:
    """The network in a file, in evaluation mode.

    - ``.ts``, ``.pt``, ``.pth``: TorchScript. It holds code, so that it is loaded with ``trust``
      only; its layers cannot be watched: ``layers`` must be ().
    - ``.pt2``: a program of ``torch.export``, exported in evaluation mode and, to take batches,
      with a dynamic first axis. Needs ``trust`` as well.
    - ``.onnx``: read by onnx2torch and compared, on one random image, with ONNX's own evaluator;
      no code, no ``trust``. One that takes (N, *S, C), as those from TensorFlow do, comes in
      ``ChannelsLast``.
    - a folder: a MONAI bundle, ``network_def`` of ``configs/inference.json`` or ``.yaml`` with
      the weights in ``models/model.pt`` or ``.safetensors`` (read without running code), or else
      ``models/model.ts``. Its configuration may hold Python expressions: needs ``trust``.

    ``weights``: a file for ``load_weights``, in place of those that come along. Raises
    ``InputError`` for files that cannot be read."""
    path = Path(path)
    if not os.path.exists(path):
        raise expected(
            "the network must be a file or a bundle's folder",
            got=f"{path}, which does not exist",
            do="correct it",
        )
    reader = _bundle if path.is_dir() else READERS[path.suffix]
    if reader is not _onnx and not trust:
        raise expected(
            f"{path} holds code and must be trusted to run",
            got="trust=False",
            do="say --trust, or trust=True in Python, if you know where it is from",
        )
    try:
        model = reader(path)
    except InputError:
        raise
    except Exception as error:  # whatever the readers raise on foreign bytes
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise expected(
            f"{path} must hold a network",
            got=got,
            do=HINTS.get(path.suffix, "export it again"),
        ) from error
    if weights is not None:
        load_weights(
            model.network if isinstance(model, ChannelsLast) else model,
            weights,
            rename=rename,
        )
    return model.eval()


class ChannelsLast(nn.Module):
    """A network that takes its channels last, (N, *S, C), for images (N, C, *S)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x.movedim(1, -1).contiguous())


def upright(model: nn.Module, channels: int, size: Sequence[int]) -> nn.Module:
    """``model``, in ``ChannelsLast`` if it does not take an image (1, C, *size) but (1, *size,
    C).
    """
    first = entrance(model)
    if first is not None and first.in_channels not in {
        channels,
        3 if channels == 1 else channels,
    }:
        return model
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = torch.zeros(
        1, channels if first is None else first.in_channels, *size, device=place
    )
    turned = ChannelsLast(model).eval()
    return turned if not _runs(model, x) and _runs(turned, x) else model


def _runs(model: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(x.clone())
    except Exception:  # whatever code that is not ours raises
        return False
    return True


class Scripted(nn.Module):
    """A TorchScript network, whose inner modules run outside of Python: they are kept out of
    sight, since no hook of theirs would ever be called.
    """

    def __init__(self, script: torch.jit.ScriptModule, content: bytes) -> None:
        super().__init__()
        self.script = (script.eval(),)
        self.register_buffer(
            "content",
            torch.frombuffer(bytearray(sha256(content).digest()), dtype=torch.uint8),
        )
        # says on which device the network is
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        return self.script[0].to(x.device)(x)


def _script(path: Path) -> nn.Module:
    with catch_warnings():  # torch would have its own users leave TorchScript
        simplefilter("ignore", FutureWarning)
        return Scripted(torch.jit.load(path, map_location="cpu"), path.read_bytes())


def _export(path: Path) -> nn.Module:
    return torch.export.unflatten(torch.export.load(path))


def _onnx(path: Path) -> nn.Module:
    try:
        with _quiet():
            import onnx
            from onnx.reference import ReferenceEvaluator
            from onnx2torch import convert
    except ImportError as error:
        raise expected(
            "onnx2torch must be installed to read ONNX",
            got=str(error),
            do="pip install onnx2torch",
        ) from None
    program = onnx.load(path)
    with _quiet():
        model = convert(program).eval()
    given = {i.name for i in program.graph.initializer}
    image = next(i for i in program.graph.input if i.name not in given)
    last, first = _takes_channels_last(program.graph, image), entrance(model)
    shape = [
        d.dim_value or (1 if axis == 0 else 32)
        for axis, d in enumerate(image.type.tensor_type.shape.dim)
    ]
    channels = len(shape) - 1 if last else 1
    if first is not None and not image.type.tensor_type.shape.dim[channels].dim_value:
        shape[channels] = first.in_channels
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with _quiet(), torch.no_grad():
        wanted = [
            torch.as_tensor(y)
            for y in ReferenceEvaluator(program).run(None, {image.name: x.numpy()})
        ]
        answer = model(x)
    for made, right in zip(
        answer if isinstance(answer, tuple | list) else [answer], wanted, strict=True
    ):
        apart = float((made - right).abs().max())
        # some graphs are converted wrongly without an error
        if apart > 1e-3 * (1 + float(right.abs().max())):
            raise expected(
                f"{path} must compute the same in torch as by ONNX's own definition",
                got=f"a difference of {apart:.3g}",
                do=HINTS[".onnx"],
            )
    return ChannelsLast(model) if last else model


def _takes_channels_last(graph: "GraphProto", image: "ValueInfoProto") -> bool:
    """Whether a graph takes (N, *S, C): it moves the channels to the front before anything else,
    or says that there are 1 or 3 of them at the end only.
    """
    shape = [d.dim_value for d in image.type.tensor_type.shape.dim]
    front, images = [0, len(shape) - 1, *range(1, len(shape) - 1)], {image.name}
    for node in graph.node:
        if not images & set(node.input):
            continue
        if node.op_type == "Conv":
            return False
        if (
            node.op_type == "Transpose"
            and [*next((a.ints for a in node.attribute if a.name == "perm"), ())] == front
        ):
            return True
        if node.op_type not in SIMPLE:
            break
        images |= set(node.output)
    return len(shape) > 3 and shape[-1] in (1, 3) and shape[1] not in (1, 3)


@contextmanager
def _quiet() -> Iterator[None]:
    """What libraries warn of is for those who write them, not for the user of a network."""
    with catch_warnings():
        simplefilter("ignore")
        yield


def _bundle(folder: Path) -> nn.Module:
    from monai.bundle import ConfigParser

    files = [folder / "models" / f"model{s}" for s in (".pt", ".safetensors", ".ts")]
    found = next((f for f in files if f.is_file()), None)
    if found is None:
        raise expected(
            f"{folder} must hold the weights of its network",
            got="no models/model.pt",
            do="add them",
        )
    if found.suffix == ".ts":
        return _script(found)
    configs = [folder / "configs" / f"inference{s}" for s in (".json", ".yaml", ".yml")]
    config = next((c for c in configs if c.is_file()), None)
    if config is None:
        raise expected(
            f"{folder} must hold configs/inference.json",
            got="none",
            do="add the bundle's configuration",
        )
    parser = ConfigParser()
    parser.read_config(str(config))
    parser["bundle_root"] = str(folder)
    model = parser.get_parsed_content("network_def")
    load_weights(model, found)
    return model


READERS: dict[str, Callable[[Path], nn.Module]] = {
    ".ts": _script,
    ".pt": _script,
    ".pth": _script,
    ".pt2": _export,
    ".onnx": _onnx,
}
HINTS = {
    ".pt": "a state dict belongs under network.weights; TorchScript is written by torch.jit.save",
    ".pth": "a state dict belongs under network.weights; TorchScript is written by torch.jit.save",
    ".pt2": "export it again with this version of torch",
    ".onnx": (
        "export it again with torch.onnx.export(..., dynamo=False, opset_version=17, "
        "keep_initializers_as_inputs=True)"
    ),
}
