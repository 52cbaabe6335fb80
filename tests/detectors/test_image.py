"""What guards read of the image itself: its statistics, its squeezed versions, and what the
classifier shows of both.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from feathide.attacks.loop import Attack
from feathide.attacks.transforms import LowPass
from feathide.auditing.run import audit
from feathide.checks.worlds import images, network
from feathide.detectors.residuals import NAMES, statistics
from feathide.detectors.squeezing import SQUEEZERS, BitDepth, Median
from feathide.errors import InputError
from feathide.execution.packing import packed, unpacked
from feathide.execution.store import Store
from feathide.models.classifier import FeatureClassifier
from feathide.pipeline.attacking import attack_of
from feathide.pipeline.context import Context
from feathide.plans.plan import Cell, load_plan
from feathide.plans.sections import ObjectivePlan
from feathide.types import Outputs
from worlds.audits import PLAN, write_npz

SHAPES = [(1, 9), (3, 12, 11), (1, 8, 6, 7)]


def named(x: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, statistics(x).T, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_have_names_and_depend_on_their_image_only(
    shape: tuple[int, ...],
) -> None:
    x = images(5, shape, seed=0)
    found = statistics(x)
    assert found.shape == (5, len(NAMES)) and found.isfinite().all()
    torch.testing.assert_close(
        torch.cat([statistics(x[i : i + 1]) for i in range(5)]), found
    )
    torch.testing.assert_close(statistics(x.float()).double(), found, rtol=1e-3, atol=1e-3)


def test_statistics_are_those_of_numpy() -> None:
    x = images(4, (1, 10, 9), seed=1)
    found, a = named(x), x[:, 0].numpy()
    second = [np.diff(a, n=2, axis=axis).reshape(4, -1) for axis in (1, 2)]
    power = np.mean([np.log((r**2).mean(1)) / 2 for r in second], 0)
    tails = np.mean([np.log(((r**4).mean(1)) / (r**2).mean(1) ** 2) for r in second], 0)
    np.testing.assert_allclose(found["second power"], power, atol=1e-3)
    np.testing.assert_allclose(found["second tails"], tails, atol=1e-3)
    along = [(np.diff(a, axis=axis), axis) for axis in (1, 2)]
    runs = [
        (np.delete(d, 0, x) * np.delete(d, -1, x)).mean((1, 2)) / (d**2).mean((1, 2))
        for d, x in along
    ]
    np.testing.assert_allclose(found["first runs"], np.mean(runs, 0), atol=1e-3)
    window = np.lib.stride_tricks.sliding_window_view(a, (3, 3), axis=(1, 2))
    np.testing.assert_allclose(
        found["variance mean"], np.log(window.var((3, 4)).mean((1, 2))) / 2, atol=1e-3
    )
    smooth = (a[:, 1:-1, 1:-1] - window.mean((3, 4))).reshape(4, -1)
    np.testing.assert_allclose(
        found["smooth power"], np.log((smooth**2).mean(1)) / 2, atol=1e-3
    )
    slope = np.hypot(a[:, 2:, 1:-1] - a[:, :-2, 1:-1], a[:, 1:-1, 2:] - a[:, 1:-1, :-2]) / 2
    np.testing.assert_allclose(
        found["gradient mean"], np.log(slope.mean((1, 2))), atol=1e-3
    )
    corner = (
        a[:, :10:2, :8:2] - a[:, 1:10:2, :8:2] - a[:, :10:2, 1:8:2] + a[:, 1:10:2, 1:8:2]
    ) / 2
    np.testing.assert_allclose(
        found["haar 1 corner power"], np.log((corner**2).mean((1, 2))) / 2, atol=1e-3
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_are_differentiable_also_where_nothing_happens(
    shape: tuple[int, ...],
) -> None:
    assert torch.autograd.gradcheck(statistics, images(2, shape, seed=2).requires_grad_())
    flat = torch.full((1, *shape), 0.5).double().requires_grad_()
    (slope,) = torch.autograd.grad(statistics(flat).sum(), flat)
    assert slope.isfinite().all()


def test_a_volume_of_depth_one_is_an_image_and_noise_is_rough() -> None:
    x = images(3, (1, 8, 9), seed=3)
    torch.testing.assert_close(statistics(x[:, :, None]), statistics(x))
    smooth = torch.linspace(0.3, 0.6, 9).double().expand(x.shape)
    noisy = smooth + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for name in ("first power", "mixed size", "variance mean", "haar 1 corner power"):
        assert (named(noisy)[name] > named(smooth)[name] + 0.1).all()


def test_statistics_refuse_what_they_cannot_read() -> None:
    with pytest.raises(InputError, match="4 or more pixels"):
        statistics(torch.rand(1, 1, 3, 3))
    with pytest.raises(InputError, match="finite"):
        statistics(torch.full((1, 1, 8, 8), float("nan")))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [2, 3])
def test_median_is_that_of_scipy(shape: tuple[int, ...], size: int) -> None:
    x = images(2, shape, seed=4)
    wanted = median_filter(
        x.numpy(), size=(1, 1, *[size] * (len(shape) - 1)), mode="reflect"
    )
    np.testing.assert_array_equal(Median(size)(x).numpy(), wanted)


def test_bits_are_grey_levels_with_the_slope_of_the_identity() -> None:
    x = torch.linspace(0, 1, 256).double().reshape(1, 1, 16, 16).requires_grad_()
    found = BitDepth(3)(x)
    np.testing.assert_allclose(found.detach().unique(), np.arange(8) / 7, atol=1e-12)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.ones_like(x))
    for wrong in (lambda: BitDepth(0), lambda: Median(1)):
        with pytest.raises(InputError):
            wrong()


@pytest.mark.parametrize(
    ("box", "window"), [((0.0, 1.0), None), ((-1000.0, 1000.0), (-200.0, 300.0))]
)
def test_the_classifier_shows_statistics_and_squeezed_logits(
    box: tuple[float, float], window: tuple[float, float] | None
) -> None:
    x = images(4, (3, 7, 6), seed=5)
    low, high = window or box
    at = low + (high - low) * x
    classifier = FeatureClassifier(network((3, 7, 6), 3), ["first"], box=box, window=window)
    assert classifier(at).statistics is None and classifier(at).squeezed is None
    out = replace(classifier, statistics=statistics, squeezers=SQUEEZERS)(at)
    assert out.statistics is not None and out.squeezed is not None
    torch.testing.assert_close(
        out.statistics, statistics((at - box[0]) / (box[1] - box[0]))
    )
    wanted = [classifier(low + (high - low) * squeeze(x)).logits for squeeze in SQUEEZERS]
    torch.testing.assert_close(out.squeezed, torch.stack(wanted, 1))
    again = unpacked(packed(out.detach(), np.arange(4)))
    assert again.statistics is not None and torch.equal(
        again[1:3].squeezed, out.squeezed[1:3]
    )  # type: ignore[arg-type]
    assert torch.equal(Outputs.cat([out, out]).statistics[4:], out.statistics)  # type: ignore[index]


CHANGES = {
    "attacks": ["pgd", {"name": "pgd-smooth", "share": 0.4}],
    "objectives": ["plain", "evade:pixel", "evade:squeeze"],
    "detectors": ["maha", "pixel", "squeeze"],
    "split": {"most": 16},
    "sanity_checks": "off",
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A finished audit."""
    folder = tmp_path_factory.mktemp("image")
    plan = load_plan({"data": str(write_npz(folder / "patches.npz")), **PLAN, **CHANGES})
    audit(plan, folder / "out")
    return Context(load_plan(folder / "out" / "plan.yaml"), Store(folder / "out"))


def mean_score(context: Context, detector: str, attack: int, objective: str) -> float:
    cell = Cell(
        context.plan.attacks[attack],
        ObjectivePlan(name=objective),
        context.limits.budgets[0],
    )
    found = context.fitted.detector(detector, context.limits.budgets[0]).score(
        context.outputs.of(context.steps.condition(cell), "test")[0]
    )
    return float(found.mean())


@pytest.mark.parametrize("detector", ["pixel", "squeeze"])
def test_who_knows_a_guard_of_the_image_lowers_its_score(
    context: Context, detector: str
) -> None:
    assert (
        mean_score(context, detector, 0, f"evade:{detector}")
        < mean_score(context, detector, 0, "plain") - 0.02
    )


def test_smooth_perturbations_are_less_conspicuous_in_the_image(context: Context) -> None:
    assert (
        mean_score(context, "pixel", 1, "plain")
        < mean_score(context, "pixel", 0, "plain") - 0.5
    )


def test_the_share_of_the_plan_reaches_the_attack(context: Context) -> None:
    attack = attack_of(
        context,
        Cell(
            context.plan.attacks[1], ObjectivePlan(name="plain"), context.limits.budgets[0]
        ),
        None,
    )
    assert isinstance(attack, Attack) and attack.limit == LowPass(0.4)


def test_only_what_reads_the_image_is_shown_it_and_depends_on_it(context: Context) -> None:
    assert (
        context.networks.classifier.statistics is None
        and context.networks.observing(("maha",)) is context.networks.classifier
    )
    assert (
        context.networks.observing(("pixel",)).statistics is not None
        and context.networks.observing(("pixel",)).squeezers == ()
    )
    assert (
        context.networks.observing(("squeeze",)).statistics is None
        and context.networks.observing(("squeeze",)).squeezers == SQUEEZERS
    )
    without = Context(
        load_plan(
            context.plan.model_dump() | {"detectors": ["maha"], "objectives": ["plain"]}
        ),
        context.store,
    )
    assert (
        without.steps.extract("clean", "test").keys[0]
        != context.steps.extract("clean", "test").keys[0]
    )
    key = ("maha", context.limits.budgets[0], "clean", "test")
    assert without.steps.score(*key).key == context.steps.score(*key).key
    assert (
        list(context.steps.sight.items())[1:] == list(context.steps.beside().items())
        and len(context.steps.beside(["pixel"]))
        == len(context.steps.beside(["squeeze"]))
        == 1
    )
    page = (context.store.folder / "report.html").read_text()
    assert (
        '<td data-label="Reads">image, logits</td>' in page
        and "feature-space" not in page.split("</main>")[0]
    )


def test_a_share_of_frequencies_is_that_of_the_plan() -> None:
    plan = load_plan(
        {"data": "phantoms", "attacks": [{"name": "pgd-smooth", "share": 0.2}]}
    )
    assert plan.attacks[0].share == 0.2
    with pytest.raises(InputError, match="belongs to pgd-smooth"):
        load_plan({"data": "phantoms", "attacks": [{"name": "pgd", "share": 0.2}]})
