"""Which axis holds the channels: planted networks whose channel means are known in every layout, and those of torchvision."""

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn

from feathide import FeatureClassifier
from feathide.errors import InputError

WIDTH, IMAGES = 16, torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(0))


class Planted(nn.Module):
    """Cuts images into 2 x 3 patches of 8 pixels, (N, 6, 16) tokens behind a class token, and mixes them twice."""

    def __init__(self, *, class_token: bool = True, tuples: bool = False) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, WIDTH, 8, 8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH)) if class_token else None
        self.blocks = nn.ModuleList([Block(tuples) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        t = self.cut(x).flatten(2).transpose(1, 2)  # (N, 6, 16)
        if self.cls_token is not None:
            t = torch.cat([self.cls_token.expand(len(t), -1, -1), t], 1)
        for block in self.blocks:
            t = block(t)
            t = t[0] if isinstance(t, tuple) else t
        return self.head(self.norm(t)[:, 0] if self.cls_token is not None else self.norm(t).mean(1))


class Block(nn.Module):
    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.norm, self.tuples = nn.LayerNorm(WIDTH), tuples
        self.qkv, self.out, self.wide, self.back = (
            nn.Linear(a, b) for a, b in ((WIDTH, 48), (WIDTH, WIDTH), (WIDTH, 32), (32, WIDTH))
        )

    def forward(self, t: Tensor) -> Tensor | tuple[Tensor]:
        q, k, v = self.qkv(self.norm(t)).chunk(3, -1)
        t = t + self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
        t = t + self.back(self.wide(t).relu())
        return (t,) if self.tuples else t


class ChannelsLast(nn.Module):
    """Stages (N, H, W, C), as in Swin; the image is square in patches, so that no shape tells rows from channels."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, 4, 4, 4)
        self.blocks = nn.ModuleList([Stage() for _ in range(2)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.cut(x).permute(0, 2, 3, 1)  # (N, 4, 4, 4)
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean((1, 2)))


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two, self.three = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.three(self.two(self.one(self.norm(h)).relu()).relu())


def outputs(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """What the layer gives, caught by a hook of our own."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [("mean", 16), ("class", 16), ("both", 32)])
def test_tokens_are_pooled_over_the_image(tokens: str, width: int, tuples: bool) -> None:
    model = Planted(tuples=tuples).eval()
    out = FeatureClassifier(model, "blocks", tokens=tokens)(IMAGES).features  # type: ignore[arg-type]
    assert list(out) == ["blocks.0", "blocks.1"]
    for name, found in out.items():
        h = outputs(model, name, IMAGES)  # (N, 7, 16)
        parts = {"mean": [h[:, 1:].mean(1)], "class": [h[:, 0]], "both": [h[:, 1:].mean(1), h[:, 0]]}[tokens]
        assert found.shape == (3, width)
        torch.testing.assert_close(found, torch.cat(parts, 1))


def test_without_a_class_token_all_tokens_count() -> None:
    model = Planted(class_token=False).eval()
    found = FeatureClassifier(model, "blocks")(IMAGES).features["blocks.1"]
    torch.testing.assert_close(found, outputs(model, "blocks.1", IMAGES).mean(1))
    with pytest.raises(InputError, match=r"layer blocks.0 must have a class token for tokens: class"):
        FeatureClassifier(model, "blocks", tokens="class")(IMAGES)


def test_channels_last_are_told_where_the_shape_does_not_tell() -> None:
    model, x = ChannelsLast().eval(), torch.rand(3, 1, 16, 16)
    for name in ("blocks.0", "blocks.1.norm"):
        classifier = FeatureClassifier(model, name, layout="channels-last" if name == "blocks.0" else "auto")
        torch.testing.assert_close(classifier(x).features[name], outputs(model, name, x).mean((1, 2)))
    torch.testing.assert_close(
        FeatureClassifier(model, "cut")(x).features["cut"], outputs(model, "cut", x).mean((2, 3))
    )


def test_a_layout_that_cannot_be_told_is_refused_with_the_option_that_tells_it() -> None:
    class Turn(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.transpose(1, 2)

    model = nn.Sequential(
        nn.Conv2d(1, 4, 4, 4), nn.Flatten(2), nn.Linear(16, 4), Turn(), nn.Flatten(), nn.Linear(16, 2)
    ).eval()
    x = torch.rand(2, 1, 16, 16)
    with pytest.raises(
        InputError, match=r"the layout of layer 3 must be known.*\(N, 4, 4\).*network.layout: \{'3': tokens\}"
    ):
        FeatureClassifier(model, "3")(x)
    for layout, axis in (("channels-first", 2), ("channels-last", 1)):
        found = FeatureClassifier(model, "3", layout={"3": layout})(x).features["3"]  # type: ignore[dict-item]
        torch.testing.assert_close(found, outputs(model, "3", x).mean(axis))
    with pytest.raises(InputError, match="unknown layout 'rows'"):
        FeatureClassifier(model, "3", layout="rows")(x)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: zoo.vit_b_16(image_size=32, num_classes=2),
        lambda: zoo.densenet121(num_classes=2),
        lambda: zoo.resnet18(num_classes=2),
    ],
)
def test_last_is_what_the_head_reads(make) -> None:
    model, x, fed = make().eval(), torch.rand(2, 3, 32, 32), []
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    handle = head.register_forward_pre_hook(lambda _m, args: fed.append(args[0]))
    out = FeatureClassifier(model, "last")(x)
    handle.remove()
    assert len(out.features) == 1
    torch.testing.assert_close(out.last, fed[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "count", "widths"),
    [
        (lambda: zoo.vit_b_16(image_size=32, num_classes=2), 12, {768}),
        (lambda: zoo.swin_t(num_classes=2), 12, {96, 192, 384, 768}),
        (lambda: zoo.convnext_tiny(num_classes=2), 18, {96, 192, 384, 768}),
        (lambda: zoo.resnet18(num_classes=2), 8, {64, 128, 256, 512}),
    ],
)
def test_blocks_of_known_networks_have_their_channels(make, count: int, widths: set[int]) -> None:
    features = FeatureClassifier(make().eval(), "blocks")(torch.rand(1, 3, 32, 32)).features
    assert len(features) == count and {f.shape[1] for f in features.values()} == widths


def test_outputs_without_a_row_an_image_are_no_layers() -> None:
    """The tables of positions of Swin V2 have the same shape for any number of images."""
    out = FeatureClassifier(zoo.swin_v2_t(num_classes=2).eval(), "conv")(torch.rand(2, 3, 32, 32))
    assert all(len(f) == 2 for f in out.features.values()) and len(out.features) == 12


@pytest.mark.parametrize("tokens", ["mean", "class", "both"])
def test_gradients_reach_the_image_through_token_features(tokens: str) -> None:
    x = IMAGES.clone().requires_grad_()
    out = FeatureClassifier(Planted().eval(), "blocks", tokens=tokens)(x)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(sum(f.square().sum() for f in out.features.values()), x)
    assert bool(grad.abs().sum() > 0)
