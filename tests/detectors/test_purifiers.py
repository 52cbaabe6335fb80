"""Purifiers, fixed and random: what they do to an image, their gradients, and their draws."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feathide.attacks.presets import pgd
from feathide.attacks.threats import Linf
from feathide.checks.worlds import images, network
from feathide.detectors.purifiers import (
    PURIFIERS,
    Cushion,
    Jpeg,
    NoiseAdded,
    Resized,
    Steps,
    purifier_named,
)
from feathide.errors import InputError
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal
from worlds.linear import images as grey
from worlds.linear import linear

SHAPES = [(1, 9), (3, 8, 6), (1, 5, 4, 6)]
NAMES = [n for n in PURIFIERS if n != "jpeg"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_image_alone_and_the_same_draw_again(
    name: str, shape: tuple[int, ...]
) -> None:
    strong = {"resize": "resize 0.1"}.get(name, name)
    x, steps = images(5, shape, seed=0), Steps([purifier_named(strong)], seed=3)
    found = steps(x, 7)
    assert found.shape == x.shape and not torch.equal(found, x)
    alone = torch.cat([steps(one, 7) for one in x.split(1)])
    torch.testing.assert_close(alone, found, rtol=0, atol=1e-12)
    assert torch.equal(steps(x, 7), found)
    assert steps.random == (not torch.equal(steps(x, 8), found))
    assert steps.random == (name in ("noise", "resize"))


@pytest.mark.parametrize("name", list(PURIFIERS))
def test_an_attacker_has_a_gradient_through_every_purifier(name: str) -> None:
    x = images(2, (1, 8, 8), seed=1).float().requires_grad_()
    found = Steps([purifier_named(name)])(x, 0)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert slope.isfinite().all() and slope.abs().sum() > 0.5 * x.numel() / 4


@pytest.mark.parametrize("shape", [(1, 16, 12), (3, 16, 12)])
def test_jpeg_is_what_pillow_gives_back_with_the_slope_of_the_identity(
    shape: tuple[int, ...],
) -> None:
    import io

    from PIL import Image

    x = images(2, shape, seed=2).float().requires_grad_()
    found = Jpeg(50)(x)
    level = (x[0].detach() * 255).round().numpy().astype(np.uint8)
    file = io.BytesIO()
    picture = Image.fromarray(level[0] if len(level) == 1 else level.transpose(1, 2, 0))
    picture.save(file, "JPEG", quality=50)
    back = np.asarray(Image.open(file)).reshape(16, 12, -1).transpose(2, 0, 1)
    np.testing.assert_allclose(found[0].detach().numpy(), back / 255, atol=1e-6)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.ones_like(x))
    with pytest.raises(InputError, match="JPEG"):
        Jpeg()(images(1, (1, 4, 4, 4), seed=0))


@pytest.mark.parametrize("shape", SHAPES)
def test_cushion_is_linear_keeps_the_mean_and_takes_the_finest_pattern(
    shape: tuple[int, ...],
) -> None:
    x, cut = images(3, shape, seed=3), Cushion(0.5)
    torch.testing.assert_close(cut(cut(x)), cut(x))
    torch.testing.assert_close(cut(2 * x + 1), 2 * cut(x) + 1)
    torch.testing.assert_close(cut(x).flatten(2).mean(2), x.flatten(2).mean(2))
    torch.testing.assert_close(Cushion(1.0)(x), x)
    fine = torch.ones(1, 1, *[64] * (len(shape) - 1))
    fine[..., ::2] = -1
    assert cut(fine).abs().mean() < 0.1
    assert torch.autograd.gradcheck(cut, x.requires_grad_())
    if len(shape) == 3:
        volume = x.detach()[:, :, None]
        torch.testing.assert_close(cut(volume)[:, :, 0], cut(x.detach()))


def test_a_resized_image_is_the_small_one_with_a_border_of_zeros() -> None:
    x = torch.ones(2, 1, 20, 20)
    found = Resized(0.5)(x, torch.Generator().manual_seed(1))
    inside = round(float(found[0].sum()))
    side = round(inside**0.5)
    assert side**2 == inside and 10 <= side < 20
    assert torch.equal((found > 0.5).float(), found.round())
    torch.testing.assert_close(found.round(), found)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blur", "purifier"),
        ("jpeg high", "one number"),
        ("jpeg 0", "quality"),
        ("cushion 2", "frequencies"),
        ("resize 0", "share"),
    ],
)
def test_wrong_purifiers_are_said(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        purifier_named(name)


# --- in a classifier ----------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1000.0, 1000.0)])
def test_a_classifier_shows_what_its_network_makes_of_the_pure_image(
    box: tuple[float, float],
) -> None:
    low, high = box
    x = images(4, (3, 8, 6), seed=4)
    plain = FeatureClassifier(network((3, 8, 6), 3), ["first"], box=box)
    steps = Steps([purifier_named("cushion 0.4"), purifier_named("bits 3")])
    at = low + (high - low) * x
    found = replace(plain, purify=steps)(at)
    wanted = plain(low + (high - low) * steps(x, 0))
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.last, wanted.last)


def test_probabilities_are_averaged_over_the_draws_and_the_gradient_with_them() -> None:
    x = images(3, (1, 8, 6), seed=5).requires_grad_()
    plain = FeatureClassifier(network((1, 8, 6), 3), ["first"])
    noisy = replace(plain, purify=Steps([NoiseAdded(0.2)]), draws=(0, 1, 2))
    each = [replace(noisy, draws=(d,))(x).logits.softmax(1) for d in (0, 1, 2)]
    mean = torch.stack(each).mean(0)
    torch.testing.assert_close(noisy(x).logits.softmax(1), mean)
    assert torch.equal(noisy(x).logits, noisy(x).logits)
    slope = torch.autograd.grad(noisy(x).logits.log_softmax(1)[:, 0].sum(), x)[0]
    wanted = torch.autograd.grad(mean[:, 0].log().sum(), x)[0]
    torch.testing.assert_close(slope, wanted)


class Dropping(nn.Module):
    """A network that is random at inference."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.2 * torch.randn_like(x))


def test_what_is_random_in_the_network_itself_is_drawn_again_for_each_image() -> None:
    x = images(4, (1, 8, 6), seed=6)
    model = Dropping(network((1, 8, 6), 3)).eval()
    random = FeatureClassifier(model, ())
    assert not torch.equal(random(x).logits, random(x).logits)
    fixed, state = replace(random, draws=(0, 1, 2)), torch.random.get_rng_state()
    whole = fixed(x).logits
    assert torch.equal(torch.random.get_rng_state(), state)
    alone = torch.cat([fixed(one).logits for one in x.split(1)])
    torch.testing.assert_close(whole, alone)


@dataclass(frozen=True)
class Hidden:
    """Bit depth without its slope: what a careless wrapper of a product does."""

    random: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return (x * 31).round() / 31


def test_the_attack_goes_through_a_purifier_and_a_planted_one_without_slope_stops_it() -> (
    None
):
    plain, x = linear((1, 8), 2), grey(20, (1, 8), seed=1)
    weights = plain.model.head.weight @ plain.model.features.weight  # type: ignore[operator,union-attr]
    z = plain(x).logits.detach()
    reach = (z[:, 0] - z[:, 1]).abs() / (weights[0] - weights[1]).detach().abs().sum()
    eps = float(reach.max()) * 1.5 + 1 / 31
    goal = Goal(plain(x).predicted, 1 - plain(x).predicted)
    attack = pgd(Linf(eps), steps=20, step_size=0.2, random_start=False)
    ids = [str(i) for i in range(20)]

    def success(classifier: FeatureClassifier) -> float:
        found = attack(classifier, x, goal, ids=ids).adversarial
        return float((classifier(found).predicted == goal.target).double().mean())

    wide = replace(plain, box=(-1.0, 2.0))
    assert success(replace(wide, purify=Steps([purifier_named("bits 5")]))) > 0.9
    assert success(replace(wide, purify=Steps([Hidden()]))) < 0.5
