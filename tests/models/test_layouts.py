"""Which axis holds the channels: planted networks whose channel means are known in every layout,
and those of torchvision.
"""

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn

from feathide import FeatureClassifier
from feathide.errors import InputError

WIDTH, IMAGES = 16, torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(0))


class Planted(nn.Module):
    """Cuts images into 2 x 3 patches of 8 pixels, (N, 6, 16) tokens behind a class token, and
    mixes them twice.
    """

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
        return self.head(
            self.norm(t)[:, 0] if self.cls_token is not None else self.norm(t).mean(1)
        )


class Block(nn.Module):
    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.norm, self.tuples = nn.LayerNorm(WIDTH), tuples
        self.qkv, self.out, self.wide, self.back = (
            nn.Linear(a, b)
            for a, b in ((WIDTH, 48), (WIDTH, WIDTH), (WIDTH, 32), (32, WIDTH))
        )

    def forward(self, t: Tensor) -> Tensor | tuple[Tensor]:
        q, k, v = self.qkv(self.norm(t)).chunk(3, -1)
        t = t + self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
        t = t + self.back(self.wide(t).relu())
        return (t,) if self.tuples else t


class ChannelsLast(nn.Module):
    """Stages (N, H, W, C), as in Swin; the image is square in patches, so that no shape tells
    rows from channels.
    """

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
        self.norm, self.one, self.two, self.three = (
            nn.LayerNorm(4),
            nn.Linear(4, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 4),
        )

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
        parts = {
            "mean": [h[:, 1:].mean(1)],
            "class": [h[:, 0]],
            "both": [h[:, 1:].mean(1), h[:, 0]],
        }[tokens]
        assert found.shape == (3, width)
        torch.testing.assert_close(found, torch.cat(parts, 1))


def test_without_a_class_token_all_tokens_count() -> None:
    model = Planted(class_token=False).eval()
    found = FeatureClassifier(model, "blocks")(IMAGES).features["blocks.1"]
    torch.testing.assert_close(found, outputs(model, "blocks.1", IMAGES).mean(1))
    with pytest.raises(
        InputError, match=r"layer blocks.0 must have a class token for tokens: class"
    ):
        FeatureClassifier(model, "blocks", tokens="class")(IMAGES)


def test_channels_last_are_told_where_the_shape_does_not_tell() -> None:
    model, x = ChannelsLast().eval(), torch.rand(3, 1, 16, 16)
    for name in ("blocks.0", "blocks.1.norm"):
        classifier = FeatureClassifier(
            model, name, layout="channels-last" if name == "blocks.0" else "auto"
        )
        torch.testing.assert_close(
            classifier(x).features[name], outputs(model, name, x).mean((1, 2))
        )
    torch.testing.assert_close(
        FeatureClassifier(model, "cut")(x).features["cut"],
        outputs(model, "cut", x).mean((2, 3)),
    )


def test_a_layout_that_cannot_be_told_is_refused_with_the_option_that_tells_it() -> None:
    class Turn(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.transpose(1, 2)

    model = nn.Sequential(
        nn.Conv2d(1, 4, 4, 4),
        nn.Flatten(2),
        nn.Linear(16, 4),
        Turn(),
        nn.Flatten(),
        nn.Linear(16, 2),
    ).eval()
    x = torch.rand(2, 1, 16, 16)
    with pytest.raises(
        InputError,
        match=r"the layout of layer 3 must be known.*\(N, 4, 4\).*network.layout: \{'3': tokens\}",
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
def test_blocks_of_known_networks_have_their_channels(
    make, count: int, widths: set[int]
) -> None:
    features = FeatureClassifier(make().eval(), "blocks")(torch.rand(1, 3, 32, 32)).features
    assert len(features) == count and {f.shape[1] for f in features.values()} == widths


def test_outputs_without_a_row_an_image_are_no_layers() -> None:
    """The tables of positions of Swin V2 have the same shape for any number of images."""
    out = FeatureClassifier(zoo.swin_v2_t(num_classes=2).eval(), "conv")(
        torch.rand(2, 3, 32, 32)
    )
    assert all(len(f) == 2 for f in out.features.values()) and len(out.features) == 12


@pytest.mark.parametrize("tokens", ["mean", "class", "both"])
def test_gradients_reach_the_image_through_token_features(tokens: str) -> None:
    x = IMAGES.clone().requires_grad_()
    out = FeatureClassifier(Planted().eval(), "blocks", tokens=tokens)(x)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(sum(f.square().sum() for f in out.features.values()), x)
    assert bool(grad.abs().sum() > 0)


class SequenceFirst(nn.Module):
    """Torch's own encoder as it comes: tokens first, (T, N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.start = (
            nn.Conv2d(1, WIDTH, 8, 8),
            nn.Parameter(torch.randn(1, 1, WIDTH)),
        )
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, 4, 32), 3, enable_nested_tensor=False
        )
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        t = self.cut(x).flatten(2).permute(2, 0, 1)
        return self.head(self.encoder(torch.cat([self.start.expand(-1, len(x), -1), t]))[0])


@pytest.mark.parametrize("images", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 24)])  # 2, 3 and 7 tokens
def test_tokens_before_images_are_turned(images: int, size: tuple[int, int]) -> None:
    """Also with as many images as tokens: a mean over the images would be an image's feature only
    by its neighbours.
    """
    torch.manual_seed(0)
    model, x = SequenceFirst().eval(), torch.rand(images, 1, *size)
    out = FeatureClassifier(model, ["blocks", "last"])(x).features
    assert list(out) == [*(f"encoder.layers.{i}" for i in range(3)), "head:input"]
    for i in range(3):
        h = outputs(model, f"encoder.layers.{i}", x)  # (T, N, 16)
        # the class token has a name of its own
        torch.testing.assert_close(out[f"encoder.layers.{i}"], h[1:].mean(0))
    torch.testing.assert_close(out["head:input"], outputs(model, "encoder", x)[0])
    both = FeatureClassifier(model, "blocks", tokens="both")(x).features["encoder.layers.1"]
    h = outputs(model, "encoder.layers.1", x)
    torch.testing.assert_close(both, torch.cat([h[1:].mean(0), h[0]], 1))
    own = FeatureClassifier(model, "blocks", pool=lambda h: h.amax(1))(x).features[
        "encoder.layers.1"
    ]
    torch.testing.assert_close(own, h.amax(0))


def test_blocks_that_show_no_row_an_image_are_refused_not_replaced() -> None:
    """Windows of all images in one axis: features of the patches' embedding would be shown as
    those of the blocks.
    """

    class Windows(SequenceFirst):
        def forward(self, x: Tensor) -> Tensor:
            t = self.cut(x).flatten(2).transpose(1, 2).reshape(1, -1, WIDTH)
            return self.head(self.encoder(t).reshape(len(x), -1, WIDTH).mean(1))

    with pytest.raises(
        InputError, match="layers: blocks must find blocks in this network, got none"
    ):
        FeatureClassifier(Windows().eval(), "blocks")(IMAGES)


def test_a_shape_that_does_not_tell_is_told_by_the_others_of_its_class() -> None:
    """ConvNeXt and Swin at 384 pixels: 96 channels on 96 x 96 places. Here, 8 on 8 x 8."""
    for make, dims in (
        (
            lambda: zoo.convnext.ConvNeXt(
                [
                    zoo.convnext.CNBlockConfig(8, 16, 2),
                    zoo.convnext.CNBlockConfig(16, None, 2),
                ],
                num_classes=2,
            ),
            (2, 3),
        ),
        (
            lambda: zoo.swin_transformer.SwinTransformer(
                [4, 4], 8, [2, 2], [2, 2], [2, 2], num_classes=2
            ),
            (1, 2),
        ),
    ):
        model, x = make().eval(), torch.rand(2, 3, 32, 32)
        out = FeatureClassifier(model, "blocks")(x).features
        assert [f.shape[1] for f in out.values()] == [8, 8, 16, 16]
        for name, found in out.items():
            torch.testing.assert_close(found, outputs(model, name, x).mean(dims))


def test_an_attention_with_a_norm_of_its_own_is_no_block() -> None:
    """The attention of PVT reduces and normalises its keys."""

    class ReducingAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.q, self.k, self.v = (
                nn.LayerNorm(WIDTH),
                *(nn.Linear(WIDTH, WIDTH) for _ in range(3)),
            )

        def forward(self, t: Tensor) -> Tensor:
            return (self.q(t) @ self.k(self.norm(t)).transpose(1, 2)).softmax(-1) @ self.v(
                t
            )

    class Reducing(Block):
        def __init__(self) -> None:
            super().__init__(tuples=False)
            self.attention = ReducingAttention()

        def forward(self, t: Tensor) -> Tensor:
            return t + self.back(self.wide(t + self.attention(t)).relu())

    model = Planted(class_token=False)
    model.blocks = nn.ModuleList([Reducing() for _ in range(2)])
    assert FeatureClassifier(model.eval(), "blocks").names(IMAGES) == (
        "blocks.0",
        "blocks.1",
    )
