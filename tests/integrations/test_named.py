"""Attacks, detectors and networks of other libraries by name in a plan, down to the table; and
what is refused before any work.
"""

import contextlib
import json
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from feathide.attacks.presets import pgd
from feathide.attacks.threats import L2, Linf
from feathide.attacks.updates import Blend, Orthogonal, Selective, Together
from feathide.auditing.preflight import check_plan
from feathide.auditing.run import audit, checked
from feathide.catalog import ATTACKS, DETECTORS
from feathide.detectors import Detector
from feathide.errors import InputError
from feathide.execution.store import Store
from feathide.losses import CrossEntropy, Evade
from feathide.models.loading import check_network, load_network
from feathide.models.packaged import ChannelsLast, upright
from feathide.models.weights import save_weights
from feathide.models.zoo import build
from feathide.pipeline.context import Context
from feathide.plans.plan import load_plan, slug
from feathide.registry.specs import parsed, separated, spelled
from feathide.sanity.probes import numbered, probes_in
from feathide.types import Evidence, Outputs
from worlds.hosts import IDS, SHAPES, small

OWN = """
import torch
from feathide.detectors import KernelDensity

def corner(classifier, x, goal, ids, seed, eps, share=1.0):
    x = x.requires_grad_()
    loss = torch.nn.functional.cross_entropy(classifier(x).logits, goal.target, reduction="sum")
    return (x - share * eps * torch.autograd.grad(loss, x)[0].sign()).detach()

def guard(bandwidth=1.0):
    return KernelDensity(name="mine", bandwidth=bandwidth)

class Flat(KernelDensity):
    # its scores are detached, or cannot be had of outputs with a gradient

    def score(self, out):
        z = super().score(out)
        return torch.from_numpy(z.numpy()) if self.name == "numpy" else z.detach()

class Fails(KernelDensity):
    def fit(self, evidence):
        self.fails("fit")
        return super().fit(evidence)

    def score(self, out):
        self.fails("score")
        return super().score(out)

    def fails(self, kind):
        if self.name == kind:
            raise KeyError(f"no {kind}")

class Torn(torch.nn.Module):
    # a network whose last feature is detached from the image

    def __init__(self):
        super().__init__()
        self.feature, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            h = self.feature(x).mean((2, 3))
        return self.head(h) + x.flatten(1)[:, :2]

class Answers(torch.nn.Module):
    # a network that gives more than its logits

    def __init__(self, kind="dict"):
        super().__init__()
        self.kind, self.feature = kind, torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
        self.drop, self.head = torch.nn.Dropout(0.5), torch.nn.Linear(4, 2)

    def forward(self, x):
        h = self.drop(self.feature(x).mean((2, 3)))
        z = self.head(h)
        return {"dict": {"features": h, "logits": z}, "tuple": (z, [h]), "features": (h, z), "two": (z, z + 1)}[self.kind]

class Last(torch.nn.Module):
    # a network that takes its channels last

    def __init__(self):
        super().__init__()
        self.feature, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.feature(x.permute(0, 3, 1, 2)).relu().mean((2, 3)))

class Whole(torch.nn.Module):
    # a network without a linear layer, or a dropout, at its end

    def __init__(self):
        super().__init__()
        self.feature = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))

    def forward(self, x):
        return self.feature(x).mean((2, 3))

class Blind(torch.nn.Module):
    def forward(self, x):
        z = torch.from_numpy(x.detach().numpy()).flatten(1).mean(1)
        return torch.stack([-z, z], 1)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random 16 x 16 images, brighter on the left or on the right."""
    path, rng, arrays = (
        tmp_path_factory.mktemp("named") / "sides.npz",
        np.random.default_rng(0),
        {},
    )
    for split, n in (("train", 60), ("val", 12), ("test", 60)):
        y = np.arange(n) % 2
        x = rng.normal(110, 20, (n, 16, 16))
        x[:, :, :8] += 25 * (y == 0)[:, None, None]
        x[:, :, 8:] += 25 * (y == 1)[:, None, None]
        arrays |= {
            f"{split}_images": x.clip(0, 255).astype(np.uint8),
            f"{split}_labels": y[:, None],
        }
    np.savez(path, **arrays)
    (path.parent / "mine.py").write_text(OWN)
    save_weights(
        build("tiny", channels=1, outputs=2, stem="small", seed=0),
        path.parent / "tiny.safetensors",
    )
    return path


def plan(data: Path, **fields: Any) -> dict[str, Any]:
    network = {
        "arch": "tiny",
        "layers": "last",
        "train": {"epochs": 4, "augment": False, "stem": "small"},
    }
    small_plan = {
        "data": str(data),
        "network": network,
        "eps": "16/255",
        "attacks": "fgsm",
        "objectives": "plain",
        "detectors": "msp",
        "train_attack": "fgsm",
        "schedule": {"steps": 3},
        "split": {"most": 12},
        "dropout_samples": 4,
        "sanity_checks": "off",
        "even_so": True,
    }
    return small_plan | fields


# --- names --------------------------------------------------------------------------------------


def test_names_with_arguments_are_read_and_written() -> None:
    name = spelled("art:X", {"b": [1, 2], "a": "c, (d"})
    assert name == "art:X(a='c, (d', b=[1, 2])"
    assert parsed(name) == ("art:X", {"a": "c, (d", "b": [1, 2]})
    assert parsed("pgd") == ("pgd", {})
    assert separated("fgsm, art:X(a=1, b=(2, 3)),pgd") == [
        "fgsm",
        "art:X(a=1, b=(2, 3))",
        "pgd",
    ]
    assert slug("art:X(a=1, b=(2, 3))") == "art-x-a-1-b-2-3"
    assert slug("resnet10_3d") == "resnet10_3d" and slug("./my.py:Net") == "my.py-net"
    for bad in ("art:X(3)", "art:X(a=open('x'))", "art:X(a=)", "art:X(**a)"):
        with pytest.raises(InputError, match="keywords with plain values"):
            parsed(bad)


def test_options_become_a_part_of_the_name(data: Path) -> None:
    found = load_plan(
        plan(
            data,
            attacks=[{"name": "foolbox:LinfPGD", "options": {"steps": 3}}, "fgsm"],
            detectors=[
                {"name": "sklearn:IsolationForest", "options": {"n_estimators": 9}},
                "kd",
            ],
            network={"arch": "monai:DenseNet121", "arguments": {"spatial_dims": 2}},
        )
    )
    assert [a.name for a in found.attacks] == ["foolbox:LinfPGD(steps=3)", "fgsm"]
    assert found.detectors == ("sklearn:IsolationForest(n_estimators=9)", "kd")
    assert found.network.arch == "monai:DenseNet121(spatial_dims=2)"
    assert load_plan(found.model_dump(mode="json")) == found
    context = Context(found, Store(data.parent))
    assert context.store.path(context.steps.train.key).name.startswith(
        "monai-densenet121-spatial_dims-2-"
    )


# --- attacks ------------------------------------------------------------------------------------

NAMES = [
    "torchattacks:PGD(steps=6)",
    "torchattacks:MIFGSM",
    "foolbox:LinfPGD(steps=6)",
    "foolbox:LinfFastGradientAttack",
    "art:ProjectedGradientDescent(max_iter=6)",
    "art:FastGradientMethod",
    "art:DeepFool(max_iter=5)",
]


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("name", NAMES)
def test_an_attack_by_name_keeps_to_the_budget_and_fools(
    name: str, shape: tuple[int, ...]
) -> None:
    pytest.importorskip(name.partition(":")[0])
    world = small(shape, dtype=torch.float32, classes=1, box=(-2.0, 6.0))
    found = ATTACKS[name](Linf(0.8))(world.classifier, world.x, world.goal, ids=world.ids)
    again = ATTACKS[name](Linf(0.8))(world.classifier, world.x, world.goal, ids=world.ids)
    assert torch.equal(found.adversarial, again.adversarial)
    assert float((found.adversarial - world.x).abs().max()) <= 0.8 + 1e-5
    assert bool(found.fooled.any()) and int(found.gradients.min()) > 0


def test_the_step_is_the_share_of_eps_that_it_is_by_default() -> None:
    pytest.importorskip("torchattacks")
    world = small(SHAPES[0], dtype=torch.float32)
    attack = ATTACKS["torchattacks:BIM(steps=1)"](Linf(0.04))  # alpha = eps / 4
    moved = attack.attack(world.classifier, world.x, world.goal, world.ids, 0) - world.x
    assert float(moved.abs().max()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchattacks:PDG", "unknown attack of torchattacks 'PDG'; did you mean 'PGD'"),
        (
            "torchattacks:PGD(stepz=3)",
            "must accept the arguments.*stepz.*it takes model, eps, alpha, steps",
        ),
        ("torchattacks:PGD(eps=0.1)", "the eps of .* is the plan's"),
        ("torchattacks:PGDL2", "is an attack in l2, got norm: linf"),
        ("foolbox:L2PGD", "is an attack in l2, got norm: linf"),
    ],
)
def test_attacks_that_are_refused(name: str, message: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(InputError, match=message):
        ATTACKS[name](Linf(0.1))


def test_a_failure_of_the_library_is_said_in_one_sentence() -> None:
    pytest.importorskip("torchattacks")
    world = small(SHAPES[1], dtype=torch.float32)
    with pytest.raises(
        InputError,
        match=r"torchattacks:APGD must be able to attack images \(1, 5, 4, 3\), got RuntimeError",
    ):
        ATTACKS["torchattacks:APGD"](Linf(0.1))(
            world.classifier, world.x, world.goal, ids=world.ids
        )
    assert ATTACKS["torchattacks:PGDL2"](L2(0.5)).passes == 10


# --- whole audits -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_audit_with_foreign_attacks_and_detectors(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("torchattacks", "foolbox", "art", "pytorch_ood"):
        pytest.importorskip(library)
    monkeypatch.chdir(data.parent)
    attacks = [
        "torchattacks:PGD(steps=3)",
        "foolbox:LinfPGD(steps=3)",
        "art:BasicIterativeMethod(max_iter=3)",
        "mine:corner(share=0.9)",
    ]
    detectors = [
        "sklearn:IsolationForest",
        "pytorch_ood:KNN(k=5)",
        "art:BinaryActivationDetector(nb_epochs=3)",
        "mine.py:guard(bandwidth=2.0)",
    ]
    fields = plan(data, attacks=attacks, detectors=detectors, eps="48/255")
    with pytest.raises(InputError, match="code that is trusted"):
        load_plan(fields)
    fields["network"] |= {"trust": True}
    audit(load_plan(fields), tmp_path)
    table = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    auc = table[table.metric == "auc"]
    assert set(auc.attack) >= set(attacks)
    assert set(auc.detector) >= set(detectors)
    assert (
        table[(table.metric == "success") & table.attack.isin(attacks)]
        .value.astype(float)
        .max()
        > 0.5
    )


@pytest.mark.parametrize(
    "arch", ["timm:test_resnet", "torchvision:squeezenet1_1", "monai:SEResNet50"]
)
def test_networks_of_other_libraries_are_built_for_the_data(arch: str) -> None:
    if arch.startswith("timm"):
        pytest.importorskip("timm")
    name = (
        arch
        if not arch.startswith("monai")
        else "monai:DenseNet(block_config=(1, 1), init_features=4, growth_rate=4, spatial_dims=3)"
    )
    shape = (1, 1, 32, 32) if not arch.startswith("monai") else (1, 1, 16, 16, 16)
    network = build(name, channels=1, outputs=5, size=shape[2:], seed=1).eval()
    with torch.no_grad():
        assert network(torch.rand(shape)).shape == (1, 5)
    again = build(name, channels=1, outputs=5, seed=1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "torchvision:resnet81",
            "unknown network of torchvision 'resnet81'; did you mean 'resnet18'",
        ),
        ("torchvision:resnet18(weights='DEFAULT')", "give its path as network.start_from"),
        ("monai:DenseNet121", "must be told its axes"),
        ("monai:DenseNet999(spatial_dims=2)", "unknown network of monai"),
        (
            "monai:DenseNet121(spatial_dims=2, depth=3)",
            "unknown argument of monai:DenseNet121 'depth'",
        ),
    ],
)
def test_networks_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, channels=1, outputs=2)


# --- networks in files --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(data: Path) -> dict[str, Path]:
    """One network with random weights in every packaging."""
    folder, model = (
        data.parent,
        build("tiny", channels=1, outputs=2, stem="small", seed=0).eval(),
    )
    x = torch.rand(2, 1, 16, 16)
    found = {"ts": folder / "net.ts", "pt2": folder / "net.pt2"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model), found["ts"])
        batch = {"input": {0: torch.export.Dim("n", min=1, max=256)}}
        torch.export.save(
            torch.export.export(model, (x,), dynamic_shapes=batch), found["pt2"]
        )
        if find_spec("onnx2torch") is not None:
            found["onnx"] = folder / "net.onnx"
            kept = {
                "dynamo": False,
                "opset_version": 17,
                "keep_initializers_as_inputs": True,
            }
            names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
            torch.onnx.export(model, (x,), found["onnx"], **kept, **names)
    bundle = folder / "bundle"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "models").mkdir()
    target = (
        '{"_target_": "DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, '
        '"block_config": [1, 1]}'
    )
    (bundle / "configs" / "inference.json").write_text(f'{{"network_def": {target}}}')
    from monai.networks.nets import DenseNet

    torch.manual_seed(0)
    torch.save(
        DenseNet(2, 1, 2, block_config=(1, 1)).state_dict(), bundle / "models" / "model.pt"
    )
    return found | {"bundle": bundle}


@pytest.mark.parametrize("kind", ["ts", "pt2", "onnx", "bundle"])
def test_a_network_in_a_file_is_audited(
    kind: str, files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx2torch")
    if kind == "pt2" and torch.__version__.startswith("2.4."):
        pytest.skip("torch 2.4 cannot read what its own torch.export wrote")
    path = files[kind]
    if kind != "onnx":
        with pytest.raises(InputError, match="must be trusted"):
            load_network(str(path))
    network = load_network(str(path), trust=kind != "onnx")
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    if kind != "bundle":
        torch.testing.assert_close(
            network(x), build("tiny", channels=1, outputs=2, stem="small", seed=0).eval()(x)
        )
    layers: Any = {"ts": [], "pt2": "4.2", "onnx": "conv", "bundle": "last"}[kind]
    arch = {"arch": str(path), "trust": True, "layers": layers}
    detectors = ["msp"] if kind == "ts" else ["kd"]
    table = audit(load_plan(plan(data, network=arch, detectors=detectors)), tmp_path).table
    assert set(table.detector) >= set(detectors)


def test_what_a_scripted_network_does_not_show_is_said(
    files: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    network = {"arch": str(files["ts"]), "trust": True}
    with pytest.raises(InputError, match=r"layers can be watched.*say layers: \[\]"):
        checked(load_plan(plan(data, network=network)), tmp_path)
    network["layers"] = []
    with pytest.raises(InputError, match="detector kd reads features"):
        checked(load_plan(plan(data, network=network, detectors="kd,msp")), tmp_path)
    with pytest.raises(InputError, match=r"no features to hide in.*got hfc"):
        checked(
            load_plan(plan(data, network=network, objectives="plain,hfc", attacks="pgd")),
            tmp_path,
        )


def test_without_gradients_only_a_black_box_attack_goes(data: Path, tmp_path: Path) -> None:
    network = {"arch": f"{data.parent / 'mine.py'}:Blind", "trust": True, "layers": []}
    with pytest.raises(InputError, match="attacked by square and noise only, got fgsm"):
        checked(load_plan(plan(data, network=network)), tmp_path)
    attacks = [{"name": "square", "steps": 5}]
    fields = plan(data, network=network, attacks=attacks, train_attack="square")
    with pytest.raises(InputError, match="say sanity_checks: off"):
        checked(load_plan({**fields, "sanity_checks": "quick"}), tmp_path)
    table = audit(load_plan(fields), tmp_path).table
    assert {"square"} == set(table.attack) - {"", "worst", "noise"}


def own(data: Path, name: str, **fields: Any) -> dict[str, Any]:
    return {
        "arch": f"{data.parent / 'mine.py'}:{name}",
        "trust": True,
        "layers": "conv",
        **fields,
    }


@pytest.mark.parametrize("kind", ["dict", "tuple", "features"])
def test_a_network_that_gives_more_than_its_logits_is_audited(
    kind: str, data: Path, tmp_path: Path
) -> None:
    network = own(data, "Answers", arguments={"kind": kind})
    fields = plan(
        data,
        network=network,
        attacks="pgd",
        objectives="plain,hfc",
        detectors=["kd", "bu"],
        sanity_checks="quick",
    )
    assert check_plan(load_plan(fields), tmp_path).seconds > 0
    found = audit(load_plan(fields), tmp_path)
    logits = (
        Context(load_plan(fields), Store(tmp_path))
        .networks.classifier(torch.rand(3, 1, 16, 16))
        .logits
    )
    assert logits.shape == (3, 2) and {"kd", "bu"} <= set(found.table.detector)


def test_a_classifier_is_read_as_the_plan_says(data: Path, tmp_path: Path) -> None:
    said = {
        "layout": {"conv": "tokens"},
        "tokens": "both",
        "output": "probabilities",
        "window": (0.1, 0.9),
        "precision": "bf16",
    }
    context = Context(
        load_plan(plan(data, network=own(data, "Answers", **said))), Store(tmp_path)
    )
    seen = context.networks.shown(context.networks.classifier.model, "last", (0.5,), (0.2,))
    assert {name: getattr(seen, name) for name in said} == said
    assert (seen.layers, seen.mean, seen.std, seen.outputs, seen.box) == (
        "last",
        (0.5,),
        (0.2,),
        2,
        (0.0, 1.0),
    )


def test_two_tensors_like_logits_are_refused(data: Path, tmp_path: Path) -> None:
    network = own(data, "Answers", arguments={"kind": "two"})
    with pytest.raises(
        InputError, match=r"alone or by the name logits, got tuple of \(\d, 2\), \(\d, 2\)"
    ):
        checked(load_plan(plan(data, network=network)), tmp_path)


def test_dropout_draws_without_a_linear_layer_are_refused_before_any_work(
    data: Path, tmp_path: Path
) -> None:
    fields = plan(data, network=own(data, "Whole"), detectors=["kd", "bu", "kd+bu"])
    with pytest.raises(
        InputError,
        match=r"bu, kd\+bu cannot be had: dropout draws need .* neither; leave out bu, kd\+bu, or use a network",
    ):
        checked(load_plan(fields), tmp_path)
    checked(load_plan({**fields, "detectors": ["kd"]}), tmp_path)


def test_a_network_that_takes_its_channels_last_is_given_them_so(
    data: Path, tmp_path: Path
) -> None:
    fields = plan(data, network=own(data, "Last"), detectors=["kd", "bu"])
    assert [
        s
        for s in check_plan(load_plan(fields), tmp_path).says
        if "expects channels last" in s
    ]
    context = Context(load_plan(fields), Store(tmp_path))
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    plainly = load_network(f"{data.parent / 'mine.py'}:Last", trust=True)
    torch.testing.assert_close(
        context.networks.classifier(x).logits, plainly(x.movedim(1, -1))
    )
    assert isinstance(upright(plainly, 1, (16, 16)), ChannelsLast)
    for known in (
        build("tiny", channels=1, outputs=2).eval(),
        build("tiny", channels=3, outputs=2).eval(),
    ):
        assert upright(known, 1, (16, 16)) is known
    assert upright(plainly, 2, (16, 16)) is plainly  # not one that takes neither
    assert set(audit(load_plan(fields), tmp_path).table.detector) >= {"kd", "bu"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("told", ["sizes", "nothing", "flat"])
def test_onnx_with_channels_last_is_turned(
    channels: int, told: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnx2torch")

    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            flat = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(channels * 144, 2)
            )
            self.net = (
                flat
                if told == "flat"
                else build("tiny", channels=channels, outputs=2, stem="small").eval()
            )

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(
                x if told == "flat" else (2 * x - 1).permute(0, 3, 1, 2)
            ), 2 * x.flatten(1)

    model, x = Turned().eval(), torch.rand(1, 12, 12, channels)
    axes = {0: "n"} if told != "nothing" else {0: "n", 1: "h", 2: "w", 3: "c"}
    kept = {"dynamo": False, "opset_version": 17, "keep_initializers_as_inputs": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (x,),
            tmp_path / "a.onnx",
            input_names=["x"],
            dynamic_axes={"x": axes},
            **kept,
        )
    network = load_network(str(tmp_path / "a.onnx"))
    x = torch.rand(3, channels, 12, 12)
    torch.testing.assert_close(network(x)[0], model(x.movedim(1, -1))[0])
    assert check_network(network, x, 2) == []


def test_what_onnx2torch_warns_of_is_not_shown(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    model = torch.nn.Sequential(
        torch.nn.Upsample(scale_factor=2, mode="bicubic"),
        build("tiny", channels=1, outputs=2),
    ).eval()
    kept = {"dynamo": False, "opset_version": 17, "keep_initializers_as_inputs": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.rand(1, 1, 12, 12),),
            tmp_path / "a.onnx",
            input_names=["x"],
            **kept,
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with contextlib.suppress(InputError):  # it also converts this wrongly
            load_network(str(tmp_path / "a.onnx"))
    assert not said


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    for name in ("a.ts", "a.pt2", "a.pt"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(InputError, match="must hold a network"):
            load_network(str(tmp_path / name), trust=True)
    with pytest.raises(InputError, match="does not exist"):
        load_network(str(tmp_path / "absent.ts"), trust=True)


def test_detectors_that_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'IsolationForest'"):
        DETECTORS["sklearn:IsolationTree"]
    with pytest.raises(InputError, match="it takes n_estimators"):
        DETECTORS["sklearn:IsolationForest(trees=3)"]()


# --- spelled names and detached scores, down to the sanity checks -------------------------------


def test_the_sanity_checks_are_judged_with_a_foreign_detector_that_has_options(
    data: Path, tmp_path: Path
) -> None:
    guards = ["kd", {"name": "sklearn:IsolationForest", "options": {"n_estimators": 9}}]
    aims = [{"name": "evade", "options": {"detectors": ["kd"]}}, "plain"]
    fields = plan(
        data, attacks="pgd", objectives=aims, detectors=guards, sanity_checks="quick"
    )
    found = audit(load_plan(fields), tmp_path)
    assert "sklearn:IsolationForest(n_estimators=9)" in set(found.table.detector)
    sanity_checks = {
        g["name"]: g for g in json.loads((tmp_path / "sanity_checks.json").read_text())
    }
    assert sanity_checks["scores of single images"]["detail"] == "2 detectors"


def test_options_that_a_foreign_detector_does_not_take_are_found_before_any_work(
    data: Path, tmp_path: Path
) -> None:
    fields = plan(
        data,
        detectors=[{"name": "sklearn:IsolationForest", "options": {"n_estimators": -3}}],
    )
    with pytest.raises(
        InputError,
        match=r"IsolationForest\(n_estimators=-3\) must be able to learn .*, got Inv",
    ):
        checked(load_plan(fields), tmp_path)


@pytest.mark.parametrize("kind", ["fit", "score"])
def test_what_a_foreign_detector_raises_is_one_sentence(
    kind: str, data: Path, tmp_path: Path
) -> None:
    guard = f"{data.parent / 'mine.py'}:Fails(name='{kind}')"
    network = plan(data)["network"] | {"trust": True}
    with pytest.raises(
        InputError,
        match=rf"detector .*{kind}.* must .*got KeyError: 'no {kind}'; correct its options",
    ):
        audit(load_plan(plan(data, detectors=[guard], network=network)), tmp_path)


def test_probes_keep_any_name() -> None:
    arrays = {
        "rank/evade:sklearn:X(a='/..', b=[1])": np.arange(3.0),
        "base": np.ones(2, bool),
    }
    kept = probes_in(numbered(arrays))
    assert list(kept) == list(arrays) and all(
        (kept[k] == v).all() for k, v in arrays.items()
    )
    assert not [name for name in numbered(arrays) if not name.isalnum()]


@pytest.mark.parametrize(
    "objective", ["evade:{}", "selective:{}", "orthogonal:{}", "evade"]
)
def test_nobody_is_aimed_at_scores_without_a_gradient(
    objective: str, data: Path, tmp_path: Path
) -> None:
    forest = "sklearn:IsolationForest(n_estimators=9)"
    fields = plan(
        data,
        attacks="pgd",
        objectives=["plain", objective.format(forest)],
        detectors=[forest],
    )
    with pytest.raises(
        InputError,
        match=r"needs a detector whose score has a gradient, got sklearn:IsolationForest",
    ):
        checked(load_plan(fields), tmp_path)


def test_scores_without_a_gradient_are_said_where_other_guards_are_aimed_at(
    data: Path, tmp_path: Path
) -> None:
    guards = ["kd", "sklearn:IsolationForest(n_estimators=9)"]
    fields = plan(data, attacks="pgd", objectives="plain,evade", detectors=guards)
    says = check_plan(load_plan(fields), tmp_path).says
    assert [
        s
        for s in says
        if s.startswith("no gradient: ") and "IsolationForest" in s and "kd" not in s
    ]


def test_a_detector_of_ones_own_is_detached_in_one_sentence(
    data: Path, tmp_path: Path
) -> None:
    mine = f"{data.parent / 'mine.py'}:Flat"
    network = plan(data)["network"] | {"trust": True}
    for name, said in (
        ("flat", "whose score has a gradient"),
        ("numpy", "must be able to score the outputs, got RuntimeError: Can't call numpy"),
    ):
        guard = f"{mine}(name='{name}')"
        fields = plan(
            data,
            network=network,
            attacks="pgd",
            objectives=["plain", "evade"],
            detectors=[guard],
        )
        with pytest.raises(InputError, match=said):
            checked(load_plan(fields), tmp_path)
    checked(load_plan(fields | {"objectives": "plain"}), tmp_path)
    with pytest.raises(InputError, match=said):
        checked(
            load_plan(fields | {"objectives": "plain", "sanity_checks": "quick"}), tmp_path
        )


def test_features_that_are_detached_are_found_before_any_work(
    data: Path, tmp_path: Path
) -> None:
    network = {
        "arch": f"{data.parent / 'mine.py'}:Torn",
        "trust": True,
        "layers": "feature",
    }
    with pytest.raises(
        InputError,
        match=r"must carry a gradient to the image.*got detached ones in feature",
    ):
        checked(load_plan(plan(data, network=network)), tmp_path)


class Ones(Detector):
    name = "ones"

    def fit(self, evidence: Evidence) -> "Ones":
        return self

    def score(self, out: Outputs) -> torch.Tensor:
        return torch.ones(len(out))


@pytest.mark.parametrize("blend", [Together(), Selective(), Orthogonal()])
def test_evading_a_detached_score_is_one_sentence(blend: Blend) -> None:
    world = small(SHAPES[0], dtype=torch.float32)
    for objective in (Evade((Ones(),)), CrossEntropy() + Evade((Ones(),))):
        attack = replace(pgd(Linf(0.1)), objective=objective, blend=blend)
        with pytest.raises(
            InputError, match="needs a detector whose score has a gradient, got ones"
        ):
            attack(world.classifier, world.x, world.goal, ids=world.ids)
