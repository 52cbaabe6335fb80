"""Conformance checks of the classifier: one forward pass shows logits and features, and nothing
of the network or the images changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feathide.attacks.presets import pgd
from feathide.attacks.threats import Linf
from feathide.checks.worlds import SHAPES, TwoConv, images, network
from feathide.errors import InputError
from feathide.models.classifier import FeatureClassifier
from feathide.models.pooling import channel_mean
from feathide.registry.specs import separated
from feathide.types import Goal
from worlds.classifiers import world


def conv_net(*, inplace: bool = True, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace),
            nn.Conv2d(4, 6, 3, padding=1, stride=2),
            nn.ReLU(inplace),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
            nn.ReLU(inplace),
            nn.Dropout(dropout),
            nn.Linear(5, 3),
        ).eval()


class Residual(nn.Module):
    """Two convolutions beside a path that skips them, with dropout inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.relu(self.first(x)))
        return self.relu(self.second(h) + x)


def residual_net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        return nn.Sequential(
            stem,
            Residual(4),
            nn.AvgPool2d(2),
            Residual(4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ).eval()


X = images(3, (3, 8, 8), seed=0).float()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_the_means_over_space_of_each_call(shape: tuple[int, ...]) -> None:
    model, x = network(shape, 3), images(5, shape, seed=1)
    out = FeatureClassifier(model, ["first", "second", "relu*"])(x)
    first = model.first(x)
    second = model.second(F.relu(first))
    expected = {
        "first": first,
        "relu#0": F.relu(first),
        "second": second,
        "relu#1": F.relu(second),
    }
    assert list(out.features) == list(expected)  # in network order
    for name, h in expected.items():
        torch.testing.assert_close(out.features[name], h.flatten(2).mean(2))
    torch.testing.assert_close(out.logits, model(x))


def test_an_in_place_activation_changes_no_feature_before_it() -> None:
    plain, inplace = (
        FeatureClassifier(conv_net(inplace=i), ["0", "2", "6"])(X) for i in (False, True)
    )
    for name in plain.features:
        torch.testing.assert_close(plain.features[name], inplace.features[name])
    # a linear layer's output, before the ReLU
    assert bool((inplace.features["6"] < 0).any())


def test_features_and_logits_are_differentiable() -> None:
    x = X.clone().requires_grad_()
    out = FeatureClassifier(conv_net(), "conv")(x)
    for f in (out.logits, *out.features.values()):
        assert bool(torch.autograd.grad(f.sum(), x, retain_graph=True)[0].any())


def test_a_pool_of_ones_own() -> None:
    out = FeatureClassifier(conv_net(), ["0"], pool=lambda h: h[:, :, 0, 0])(X)
    torch.testing.assert_close(out.features["0"], conv_net()[0](X)[:, :, 0, 0])


def test_channel_mean_has_no_fixed_axes() -> None:
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)):
        h = torch.rand(shape)
        torch.testing.assert_close(channel_mean(h), h.reshape(2, 3, -1).mean(2))


# --- which layers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("conv", ("1", "3", "7")),
        ("stages", ("1", "3", "7")),
        ("last", ("8",)),
        (["0", "last"], ("0", "8")),
        ("[02]", ("0", "2")),
        ((), ()),
    ],
)
def test_presets_names_and_globs(spec: str | list[str], names: tuple[str, ...]) -> None:
    assert FeatureClassifier(conv_net(), spec).names(X) == names


def test_presets_of_a_residual_network() -> None:
    model = residual_net()
    assert FeatureClassifier(model, "blocks").names(X) == ("1", "3")
    assert FeatureClassifier(model, "conv").names(X) == (
        "0.1",
        "1.relu#0",
        "1.relu#1",
        "3.relu#0",
        "3.relu#1",
    )
    assert FeatureClassifier(model, "stages").names(X) == ("1.relu#1", "3.relu#1")
    # no block: stages
    assert FeatureClassifier(conv_net(), "blocks").names(X) == ("1", "3", "7")


def test_a_layer_that_runs_twice_is_refused_by_name() -> None:
    with pytest.raises(
        InputError,
        match=r"layer 'relu' runs 2 times in one forward pass; name the call: relu#0, relu#1",
    ):
        FeatureClassifier(network((3, 7, 6), 2), "relu")(images(1, (3, 7, 6), seed=0))


def test_an_unknown_layer_offers_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown layer 'secnd'; did you mean 'second'\?"):
        FeatureClassifier(network((3, 7, 6), 2), ["first", "secnd"])(
            images(1, (3, 7, 6), seed=0)
        )


def test_a_preset_that_finds_nothing_lists_the_layers() -> None:
    with pytest.raises(
        InputError,
        match=r"layers: conv must find conv in this network, got none; name layers yourself, of 0, 1",
    ):
        FeatureClassifier(
            nn.Sequential(nn.Flatten(), nn.Linear(126, 2)).double().eval(), "conv"
        )(images(1, (3, 7, 6), seed=0))


def test_replacing_the_layers_forgets_the_old_choice() -> None:
    classifier = FeatureClassifier(conv_net(), "conv")
    assert list(classifier(X).features) == ["1", "3", "7"]
    assert list(replace(classifier, layers="last")(X).features) == ["8"]


# --- nothing changes ----------------------------------------------------------------------------


def test_hooks_are_gone_after_a_call_and_after_an_exception() -> None:
    model = conv_net(dropout=0.5)
    classifier = FeatureClassifier(model, "conv", dropout_samples=3)
    classifier(X)
    assert hooks(model) == 0

    def broken(h: Tensor) -> Tensor:
        raise RuntimeError("broken")

    for bad in (
        replace(classifier, pool=broken),
        FeatureClassifier(model, "no such layer"),
    ):
        with pytest.raises((RuntimeError, InputError)):
            bad(X)
        assert hooks(model) == 0
    with pytest.raises(RuntimeError):
        classifier(X[:, :2])
    assert hooks(model) == 0


def test_a_users_own_hooks_stay() -> None:
    model, seen = conv_net(), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    FeatureClassifier(model, ["0"])(X)
    assert seen and hooks(model) == 1
    handle.remove()


def test_images_and_random_state_are_untouched() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), *conv_net(dropout=0.5)).eval()
    x = X - 0.5
    before, state = x.clone(), torch.random.get_rng_state()
    for options in (
        {},
        {"box": (-0.5, 0.5), "mean": (0.1,) * 3, "std": (2.0,) * 3},
        {"dropout_samples": 4},
    ):
        FeatureClassifier(model, "conv", **options)(x)  # type: ignore[arg-type]
    assert torch.equal(x, before) and torch.equal(torch.random.get_rng_state(), state)
    assert (
        all(p.grad is None and p.requires_grad for p in model.parameters())
        and not model.training
    )


# --- what the network is given ------------------------------------------------------------------


def test_normalisation_is_inside() -> None:
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    z = (X - torch.tensor(mean).reshape(1, 3, 1, 1)) / torch.tensor(std).reshape(1, 3, 1, 1)
    torch.testing.assert_close(
        FeatureClassifier(conv_net(), (), mean=mean, std=std)(X).logits, conv_net()(z)
    )


def test_a_window_of_hounsfield_units_is_inside() -> None:
    hu = X * 4000 - 1000
    classifier = FeatureClassifier(
        conv_net(), (), box=(-1000.0, 3000.0), window=(-160.0, 240.0)
    )
    torch.testing.assert_close(
        classifier(hu).logits, conv_net()((hu.clamp(-160, 240) + 160) / 400)
    )


@pytest.mark.parametrize(
    "moments",
    [
        {},
        {"mean": (0.5,), "std": (0.2,)},
        {"mean": (0.2, 0.3, 0.4), "std": (1.0, 2.0, 3.0)},
    ],
)
def test_a_grey_image_is_repeated_for_a_network_of_three_channels(
    moments: dict[str, tuple[float, ...]],
) -> None:
    grey = X[:, :1].clone().requires_grad_()
    classifier = FeatureClassifier(conv_net(), "conv", **moments)  # type: ignore[arg-type]
    out, colour = classifier(grey), classifier(X[:, :1].expand(-1, 3, -1, -1))
    torch.testing.assert_close(out.logits, colour.logits)
    assert torch.autograd.grad(out.logits.sum(), grey)[0].shape == grey.shape


# --- heads --------------------------------------------------------------------------------------


def test_one_sigmoid_output_is_shown_as_two_logits() -> None:
    w = world((3, 7, 6), 1, "sigmoid")
    raw, out = w.classifier.model(w.x), w.classifier(w.x)
    torch.testing.assert_close(out.logits.softmax(1)[:, 1], raw.sigmoid()[:, 0])
    assert out.others is None


def test_a_finding_is_shown_as_two_logits_with_the_others_beside_it() -> None:
    w = world((3, 7, 6), 4, ("finding", 2))
    raw, out = w.classifier.model(w.x), w.classifier(w.x)
    torch.testing.assert_close(
        out.logits, torch.stack([torch.zeros(4).double(), raw[:, 2]], 1)
    )
    assert out.others is not None
    torch.testing.assert_close(out.others, raw[:, [0, 1, 3]])


# --- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: conv_net(dropout=0.4), conv_net, residual_net])
def test_dropout_draws_depend_on_the_image_and_the_seed_only(make) -> None:  # type: ignore[no-untyped-def]
    classifier = FeatureClassifier(make().double(), (), dropout_samples=6)
    x = images(4, (3, 8, 8), seed=3)
    whole = classifier(x).stochastic
    assert whole is not None and whole.shape[:2] == (4, 6)
    assert bool((whole.std(1) > 0).all())
    for rows in ([1], [2, 0], [3, 3, 1]):
        part = classifier(x[rows]).stochastic
        assert part is not None
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-10)
    other = replace(classifier, seed=1)(x).stochastic
    assert other is not None and not torch.allclose(other, whole)
    batched = classifier.extract(x, batch_size=3).stochastic
    assert batched is not None
    torch.testing.assert_close(batched, whole, rtol=0, atol=1e-10)


def test_dropout_draws_are_those_of_the_networks_own_dropout() -> None:
    model = conv_net(dropout=0.4).double()
    draws = FeatureClassifier(model, (), dropout_samples=4000)(X[:1].double()).stochastic
    h = model[:8](X[:1].double())
    exact_mean = model[9](h)
    exact_var = ((model[9].weight * h) ** 2).sum(1) * 0.4 / 0.6
    assert draws is not None
    torch.testing.assert_close(draws[0].mean(0), exact_mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(draws[0].var(0), exact_var, rtol=0.1, atol=1e-4)


def test_dropout_before_the_head_where_the_network_has_none() -> None:
    model = conv_net().double()
    draws = FeatureClassifier(model, (), dropout_samples=4000, dropout_rate=0.25)(
        X[:1].double()
    ).stochastic
    h = model[:9](X[:1].double())
    exact_var = ((model[9].weight * h) ** 2).sum(1) * 0.25 / 0.75
    assert draws is not None
    torch.testing.assert_close(draws[0].var(0), exact_var, rtol=0.1, atol=1e-4)


# --- bad input ----------------------------------------------------------------------------------


def test_training_mode_is_refused_also_of_a_part() -> None:
    with pytest.raises(
        InputError,
        match=r"the network must be in evaluation mode, got training mode in Sequential; call model.eval",
    ):
        FeatureClassifier(conv_net().train())
    model = conv_net(dropout=0.5)
    classifier = FeatureClassifier(model)
    model[8].train()
    with pytest.raises(InputError, match=r"got training mode in 8; call model\.eval"):
        classifier(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": (1.0, 0.0)}, r"box must be \(lo, hi\) with lo < hi, got \(1.0, 0.0\)"),
        ({"mean": (0.5,)}, "mean and std must be of equal length, std positive"),
        (
            {"mean": (0.5,), "std": (0.0,)},
            "mean and std must be of equal length, std positive",
        ),
        (
            {"head": "tanh"},
            r'head must be "softmax", "sigmoid", "landmarks" or \("finding", j\), got \'tanh\'',
        ),
    ],
)
def test_refused_when_made(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureClassifier(conv_net(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outputs", "head", "message"),
    [
        (
            1,
            "softmax",
            'a softmax head needs two or more outputs, got one; say head="sigmoid"',
        ),
        (3, "sigmoid", "a sigmoid head has one output, got 3"),
        (3, ("finding", 3), "finding must be 0 to 2, got 3"),
    ],
)
def test_heads_that_do_not_fit(
    outputs: int, head: str | tuple[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        FeatureClassifier(TwoConv((3, 7, 6), outputs).eval(), (), head=head)(X)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            X * 4096 - 1024,
            r"x must lie in \[0, 1\], got \[-\S+, \S+\]; pass box=... or rescale",
        ),
        (
            X.masked_fill(X > 0.6, float("nan")),
            "images must be finite, got NaN or infinity",
        ),
        (
            (X * 255).to(torch.uint8),
            "images must be floating-point numbers, got torch.uint8",
        ),
        (X[:0], "at least one image, got shape"),
    ],
)
def test_images_that_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureClassifier(conv_net()).check(x)


def test_means_of_half_precision_do_not_overflow() -> None:
    # their sum is 245,760, above the largest float16
    h = torch.full((2, 3, 64, 64), 60.0, dtype=torch.float16)
    assert channel_mean(h).dtype == torch.float32
    torch.testing.assert_close(channel_mean(h), torch.full((2, 3), 60.0))
    for dtype in (torch.float32, torch.float64):
        assert channel_mean(torch.ones(1, 2, 3, 3, dtype=dtype)).dtype == dtype


def test_bf16_changes_outputs_gradients_and_images_a_little_and_decisions_hardly() -> None:
    net, x = conv_net(inplace=False).float(), images(24, (3, 16, 16), seed=4).float()
    full, half = (
        FeatureClassifier(net, ["0", "3"], precision=p) for p in ("float32", "bf16")
    )  # type: ignore[arg-type]
    one, two = full.extract(x), half.extract(x)
    assert {v.dtype for v in (two.logits, *two.features.values())} == {torch.float32}
    for a, b in (
        (one.logits, two.logits),
        *zip(one.features.values(), two.features.values(), strict=True),
    ):
        assert 0 < float((a - b).abs().max()) < 0.02 * float(a.abs().max())
    goal = Goal(one.predicted, 1 - one.predicted.clamp_max(1))
    threat = Linf(0.1)
    found = [
        pgd(threat, steps=10)(c, x, goal, ids=[str(i) for i in range(24)])
        for c in (full, half)
    ]
    again = full.extract(found[1].adversarial)
    assert found[1].adversarial.dtype == torch.float32
    assert (
        abs(int((again.predicted == goal.target).sum()) - int(found[0].fooled.sum())) <= 1
    )
    away = (found[0].adversarial - found[1].adversarial).abs().flatten(1).mean(1)
    assert 0 < float(away.mean()) < 0.05  # of 0.1: bf16 turns the sign of small gradients


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.skipif(
    torch.__version__.startswith("2.4."),
    reason="torch 2.4 cannot compile one module at two places",
)
def test_a_compiled_copy_shows_the_same_and_leaves_the_network_alone(backend: str) -> None:
    random = torch.Generator().manual_seed(0)
    relu = nn.ReLU()  # runs twice: the call counts
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        relu,
        nn.Conv2d(4, 6, 3),
        relu,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    ).eval()
    plain = FeatureClassifier(net, "conv", mean=(0.4,), std=(0.2,))
    fast = replace(plain, compile=backend)
    for size in (3, 3, 2):  # images leave the batch
        x = torch.rand(size, 1, 9, 9, generator=random).requires_grad_()
        gradients = []
        for classifier in (plain, fast):
            out = classifier(x)
            (g,) = torch.autograd.grad(
                out.logits[:, 0].sum()
                + sum(f.square().sum() for f in out.features.values()),
                x,
            )
            gradients.append(g)
        assert tuple(out.features) == plain.names(x) == ("1#0", "1#1")
        torch.testing.assert_close(out.logits, plain(x).logits, rtol=1e-5, atol=1e-6)
        for name, f in plain(x).features.items():
            torch.testing.assert_close(out.features[name], f, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


# --- what networks return -----------------------------------------------------------------------


@dataclass
class Answer:
    loss: Tensor | None
    logits: Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z, h: (z, [h, h]),  # as MONAI's ViT: logits, then hidden states
        lambda z, h: [h.unsqueeze(2), z],
        lambda z, h: {"features": h, "logits": z},
        lambda z, h: {"out": z, "loss": z.mean()},
        lambda z, h: Answer(None, z),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"dropout_samples": 3}, {"compile": "eager"}], ids=str
)
def test_logits_are_found_in_what_a_network_returns(
    wrap: Callable[[Tensor, Tensor], object], options: dict[str, Any]
) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv_net(inplace=False, dropout=0.5)

        def forward(self, x: Tensor) -> object:
            return wrap(self.inner(x), torch.ones(len(x), 3))

    plain = FeatureClassifier(conv_net(inplace=False, dropout=0.5), "last", **options)(X)
    found = FeatureClassifier(Wrapped().eval(), "last", **options)(X)
    torch.testing.assert_close(found.logits, plain.logits)
    if plain.stochastic is not None:
        assert found.stochastic is not None
        torch.testing.assert_close(found.stochastic, plain.stochastic)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: (torch.ones(len(z), 7), z),
        lambda z: {"map": z.unsqueeze(0)},
        lambda z: None,
    ],
)
def test_logits_that_cannot_be_told_are_refused(wrap: Callable[[Tensor], object]) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv_net()

        def forward(self, x: Tensor) -> object:
            return wrap(self.inner(x))

    with pytest.raises(
        InputError, match=r"the network must return logits \(N, K\), here \(3, K\).*wrap it"
    ):
        FeatureClassifier(Wrapped().eval(), ())(X)


@pytest.mark.parametrize("named", ["block[0]", "block[*", "block[[]0]"])
def test_layers_whose_names_hold_brackets_can_be_named(named: str) -> None:
    network = nn.Sequential()
    network.add_module("block[0]", nn.Conv2d(3, 4, 3))
    network.add_module("rest", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    network.add_module("head", nn.Linear(4, 2))
    out = FeatureClassifier(network.eval(), [named])(X)
    assert list(out.features) == ["block[0]"]
    layers = separated("block[0],block[1,2],head")
    assert layers == ["block[0]", "block[1,2]", "head"]
