"""Conformance checks A1 to A7 of every attack, with every objective and every blend, on signals,
images and volumes.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor, nn

from feathide.attacks import presets as recipes
from feathide.attacks.ensemble import Ensemble
from feathide.attacks.grid import Grid
from feathide.attacks.loop import Attack
from feathide.attacks.result import AttackResult
from feathide.attacks.threats import L2, Linf
from feathide.attacks.transforms import LowPass
from feathide.attacks.updates import Rule, Setting, Step
from feathide.catalog import ATTACKS
from feathide.checks.attacks import state
from feathide.checks.worlds import SHAPES, TwoConv, images
from feathide.data.noise import Noise
from feathide.errors import InputError
from feathide.losses import HFC, CrossEntropy
from feathide.models.classifier import FeatureClassifier
from feathide.types import Goal
from worlds.classifiers import (
    BLENDS,
    NAMES,
    THREATS,
    World,
    fits,
    fooling,
    objectives,
    run,
    short,
    world,
)

CASES = [(name, shape) for name, shape in product(NAMES, SHAPES) if fits(name, shape)]
OBJECTIVES = list(objectives(world((3, 7, 6))))
HIDING = [
    n for n in OBJECTIVES if n not in fooling(world((7, 6))) and not n.startswith("drift")
]
STARTS_AT_RANDOM = {
    "pgd",
    "pgd-one-sided",
    "pgd-smooth",
    "cw",
    "noise",
    "apgd",
    "apgd-dlr",
    "standard",
}
RANDOM = STARTS_AT_RANDOM | {"dim", "square"}

every_attack = pytest.mark.parametrize(("name", "shape"), CASES)
every_threat = pytest.mark.parametrize("norm", THREATS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def same(a: AttackResult, b: AttackResult, tolerance: float) -> None:
    for field in ("adversarial", "margin", "hide", "trace"):
        torch.testing.assert_close(
            getattr(a, field),
            getattr(b, field),
            rtol=0,
            atol=tolerance,
            equal_nan=True,
            msg=lambda m, f=field: f"{f}: {m}",
        )
    for field in ("fooled", "first", "gradients", "forwards"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field


def joined(parts: list[AttackResult]) -> AttackResult:
    def cat(field: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(p, field) for p in parts], dim)

    names = ("adversarial", "fooled", "margin", "hide")
    return AttackResult(
        *map(cat, names), cat("trace", 1), cat("first"), cat("gradients"), cat("forwards")
    )


def singles(attack: Attack | Ensemble, w: World, **fields: object) -> AttackResult:
    return joined([run(attack, w, slice(i, i + 1), **fields) for i in range(len(w.x))])


# --- A1: the ball and the box -------------------------------------------------------------------


@every_attack
@every_threat
def test_a1_stays_in_the_ball_and_the_box(
    name: str, shape: tuple[int, ...], norm: str
) -> None:
    w = world(shape)
    for eps in (0.6, torch.tensor([0.0, 0.02, 0.3, 2.0], dtype=torch.float64)):
        threat = THREATS[norm](eps)
        adversarial = run(short(name, threat), w).adversarial
        assert bool(
            (
                threat.size(adversarial - w.x) <= torch.as_tensor(eps) * (1 + 1e-12) + 1e-12
            ).all()
        )
        assert float(adversarial.min()) >= 0.0 and float(adversarial.max()) <= 1.0


@every_attack
@every_threat
def test_a1_lies_on_the_grid_that_a_file_can_hold(
    name: str, shape: tuple[int, ...], norm: str
) -> None:
    w, grid = world(shape), Grid(1 / 50)
    w = replace(w, x=(w.x / grid.step).round() * grid.step)
    threat = THREATS[norm](torch.tensor([0.019, 0.05, 0.1, 0.3]))
    adversarial = run(short(name, threat), w, grid=grid).adversarial
    levels = adversarial / grid.step
    assert float((levels - levels.round()).abs().max()) < 1e-9
    assert bool(
        (threat.size(adversarial - w.x) <= torch.as_tensor(threat.eps) + 1e-9).all()
    )
    assert (
        torch.equal(adversarial[0], w.x[0].clone())
        or float((adversarial[0] - w.x[0]).abs().max()) < 1e-9
    )


@every_threat
@every_shape
def test_a1_the_projection_is_one(norm: str, shape: tuple[int, ...]) -> None:
    """Into both sets, without moving what is in them already."""
    x = images(4, shape, seed=0)
    threat = THREATS[norm](torch.tensor([0.0, 0.1, 0.5, 3.0], dtype=torch.float64))
    wild = 3 * images(4, shape, seed=1) - 1.5
    delta = threat.project(wild, x, (0.0, 1.0))
    assert bool((threat.size(delta) <= torch.as_tensor(threat.eps) + 1e-12).all())
    assert float((x + delta).min()) >= -1e-15 and float((x + delta).max()) <= 1 + 1e-15
    torch.testing.assert_close(
        threat.project(delta, x, (0.0, 1.0)), delta, rtol=1e-14, atol=0
    )
    small = 1e-3 * wild[2:]
    assert torch.equal(threat.at(slice(2, 4)).project(small, x[2:], (0.0, 1.0)), small)


@every_threat
def test_a1_random_starts_fill_the_ball_on_both_sides(norm: str) -> None:
    noise = Noise(0, tuple(map(str, range(400))))
    threat = THREATS[norm](0.5)
    start = threat.start(torch.zeros(400, 1, 2, 2, dtype=torch.float64), noise, draw=0)
    size = threat.size(start)
    assert float(size.max()) <= 0.5 and float(size.max()) > 0.49
    assert abs(float(start.mean())) < 0.02
    assert (
        abs(float((size < 0.5 * 2 ** (-1 / 4)).double().mean()) - 0.5) < 0.08
    )  # half of the ball's volume, in 4 dimensions


def test_a1_a_one_sided_start_is_the_other_start_with_every_sign_turned_up() -> None:
    w = world((3, 7, 6))
    starts = {
        name: run(replace(short(name, Linf(0.1)), steps=0), w).adversarial - w.x
        for name in ("pgd", "pgd-one-sided")
    }
    assert (
        float(starts["pgd"].min()) < -0.09
        and float(starts["pgd-one-sided"].min()) >= -1e-12
    )
    inside = (w.x >= 0.1) & (w.x <= 0.9)
    torch.testing.assert_close(starts["pgd-one-sided"][inside], starts["pgd"].abs()[inside])


@every_threat
@every_shape
def test_a1_a_smooth_perturbation_has_low_frequencies_only(
    norm: str, shape: tuple[int, ...]
) -> None:
    w = world(shape)
    w = replace(w, x=0.5 + 0.1 * (w.x - 0.5))  # so that the box takes nothing of it
    for share in (0.3, 0.6):
        found = run(short("pgd-smooth", THREATS[norm](0.3), share=share), w)
        waves = dctn(
            (found.adversarial - w.x).numpy(), axes=range(2, w.x.ndim), norm="ortho"
        )
        for axis in range(2, w.x.ndim):
            n = waves.shape[axis]
            high = np.take(waves, range(math.ceil(share * n), n), axis)
            assert np.abs(high).max(initial=0) < 1e-9
        assert np.abs(waves).max() > 1e-3
    whole = LowPass(1.0)(w.x)
    torch.testing.assert_close(whole, w.x)
    with pytest.raises(InputError, match="share"):
        LowPass(0.0)


# --- A2: a batch is its images ------------------------------------------------------------------


@every_attack
@every_threat
def test_a2_a_batch_gives_what_its_images_give(
    name: str, shape: tuple[int, ...], norm: str
) -> None:
    w = world(shape)
    eps = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64) * (
        1 if norm == "linf" else 3
    )
    parts = [
        run(short(name, THREATS[norm](eps[i : i + 1])), w, slice(i, i + 1))
        for i in range(4)
    ]
    same(run(short(name, THREATS[norm](eps)), w), joined(parts), 1e-9)


@every_shape
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["mim", "apgd", "square"])
def test_a2_with_every_objective(objective: str, name: str, shape: tuple[int, ...]) -> None:
    w = world(shape)
    attack = short(name, Linf(0.2), objective=objectives(w)[objective])
    same(run(attack, w), singles(attack, w), 1e-9)


@every_shape
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("objective", HIDING)
def test_a2_with_every_blend_and_images_that_leave(
    objective: str, blend: str, shape: tuple[int, ...]
) -> None:
    w = world(shape)
    for threat in (Linf(0.2), L2(0.5)):
        attack = short(
            "pgd",
            threat,
            objective=objectives(w)[objective],
            blend=BLENDS[blend],
            leave=lambda m, h: (m > 0) & (h < 2.0),
        )
        same(run(attack, w), singles(attack, w), 1e-9)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_a2_for_any_number_of_classes(name: str, classes: int) -> None:
    w = world((3, 7, 6), classes)
    attack = short(name, Linf(0.2), restarts=2)
    same(run(attack, w), singles(attack, w), 1e-9)


# --- A4: nothing knows the number of axes -------------------------------------------------------


def flattened(model: TwoConv) -> TwoConv:
    """The network of a volume whose kernels only look within a slice."""
    with torch.random.fork_rng(devices=[]):
        volume = (
            TwoConv((model.first.in_channels, 1, 7, 6), model.head.out_features)
            .double()
            .eval()
        )
    with torch.no_grad():
        for mine, flat in ((volume.first, model.first), (volume.second, model.second)):
            mine.weight.zero_()
            mine.weight[:, :, 1] = flat.weight
            mine.bias.copy_(flat.bias)
        volume.head.load_state_dict(model.head.state_dict())
    return volume


@every_threat
@pytest.mark.parametrize("name", NAMES)
def test_a4_a_volume_of_depth_one_is_an_image(name: str, norm: str) -> None:
    w = world((3, 7, 6))
    volume = replace(
        w,
        classifier=replace(w.classifier, model=flattened(w.classifier.model)),
        x=w.x[:, :, None],
    )
    attack = short(
        name, THREATS[norm](0.3), hide=None if name == "noise" else 0.3 * HFC(w.bank)
    )
    flat, deep = run(attack, w), run(attack, volume)
    torch.testing.assert_close(
        deep.adversarial[:, :, 0], flat.adversarial, rtol=0, atol=1e-9
    )
    torch.testing.assert_close(deep.trace, flat.trace, rtol=0, atol=1e-9, equal_nan=True)


@every_threat
@pytest.mark.parametrize("name", sorted(set(NAMES) - RANDOM))
def test_a4_permuting_the_axes_commutes(name: str, norm: str) -> None:
    w, turn = world((1, 5, 4, 3)), (0, 1, 4, 2, 3)
    model = TwoConv((1, 3, 5, 4), 3).double().eval()
    with torch.no_grad():
        for mine, theirs in zip(
            model.parameters(), w.classifier.model.parameters(), strict=True
        ):
            mine.copy_(theirs.permute(turn) if theirs.ndim == 5 else theirs)
    turned = replace(w, classifier=replace(w.classifier, model=model), x=w.x.permute(turn))
    attack = short(name, THREATS[norm](0.3))
    there = run(attack, turned).adversarial
    torch.testing.assert_close(
        there, run(attack, w).adversarial.permute(turn), rtol=0, atol=1e-9
    )


# --- A5: no option is dead ----------------------------------------------------------------------


@every_attack
@every_threat
def test_a5_moves_the_image_and_lowers_the_loss(
    name: str, shape: tuple[int, ...], norm: str
) -> None:
    w = world(shape)
    # small: where one long step does not overshoot
    threat = THREATS[norm](0.05 if norm == "linf" else 0.1)
    found = run(
        short(name, threat) if name != "square" else recipes.square(threat, queries=60), w
    )
    assert bool((threat.size(found.adversarial - w.x) > 0.2 * threat.eps).all())
    if name != "noise":
        clean, after = w.classifier.extract(w.x), w.classifier.extract(found.adversarial)
        loss = CrossEntropy().bind(clean, w.goal, Noise(0, w.ids))
        assert float((loss(after) - loss(clean)).mean()) < -0.01


@every_attack
@every_threat
def test_a5_no_budget_is_no_change(name: str, shape: tuple[int, ...], norm: str) -> None:
    w = world(shape)
    assert torch.equal(run(short(name, THREATS[norm](0.0)), w).adversarial, w.x)


@every_shape
@every_threat
@pytest.mark.parametrize("name", ["bim", "pgd"])
def test_a5_no_steps_give_the_start(name: str, norm: str, shape: tuple[int, ...]) -> None:
    w, threat = world(shape), THREATS[norm](0.05)
    found = run(replace(short(name, threat), steps=0), w)
    noise = Noise(0, w.ids).within(0)
    start = (
        threat.start(w.x, noise, draw="start") if name == "pgd" else torch.zeros_like(w.x)
    )
    torch.testing.assert_close(found.adversarial, w.x + start, rtol=0, atol=1e-12)
    assert found.gradients.tolist() == [0] * 4


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a5_every_objective_moves_the_image_its_own_way(objective: str) -> None:
    w = world((3, 7, 6))
    moved = {}
    for name, wish in objectives(w).items():
        if name == objective or (name, objective) in (
            ("cross-entropy", "margin"),
            ("margin", "cross-entropy"),
        ):
            moved[name] = run(short("bim", L2(1.0), objective=wish), w).adversarial
    assert float((moved[objective] - w.x).abs().max()) > 1e-3
    if len(moved) == 2:
        assert float((moved["margin"] - moved["cross-entropy"]).abs().max()) > 1e-6


@pytest.mark.parametrize("blend", sorted(set(BLENDS) - {"together"}))
def test_a5_every_blend_walks_its_own_way(blend: str) -> None:
    w = world((3, 7, 6))
    there = [
        run(
            short("bim", L2(1.0), hide=0.3 * HFC(w.bank), blend=BLENDS[b], steps=8), w
        ).trace
        for b in ("together", blend)
    ]
    assert float((there[0][-1] - there[1][-1]).abs().max()) > 1e-6


@pytest.mark.parametrize(
    ("name", "loss"), [("cw", "margin"), ("pgd", "cross-entropy"), ("bim", "cross-entropy")]
)
def test_a5_an_attack_goes_down_its_own_loss(name: str, loss: str) -> None:
    """A step in the corner of the ball, by hand. The margin asks the best other class alone, the
    cross-entropy all: here they disagree on two pixels.
    """
    weight = torch.tensor(
        [[1.0, -1.0, 1.0, 0.0], [-4.0, 4.0, 1.0, 0.0], [0.0, 0.0, -1.0, 1.0]]
    )
    linear = nn.Linear(4, 3, bias=False).requires_grad_(False)
    linear.weight.copy_(weight)
    classifier = FeatureClassifier(nn.Sequential(nn.Flatten(), linear).eval(), ("0",))
    x, eps = torch.tensor([0.52, 0.5, 0.5, 0.5]), 0.01
    attack = ATTACKS[name](
        Linf(eps), steps=1, step_size=2.0
    )  # as far as the other side, so that a random start does not matter
    goal = Goal(torch.tensor([0]), torch.tensor([2]))
    found = attack(classifier, x.reshape(1, 1, 2, 2), goal, ids=("a",))
    share = torch.eye(3)[0] if loss == "margin" else (weight @ x).softmax(0)
    moved = x - eps * (share @ weight - weight[2]).sign()
    torch.testing.assert_close(found.adversarial.flatten(), moved, rtol=0, atol=1e-6)
    z = weight @ moved
    value = z[:2].max() - z[2] if loss == "margin" else z.logsumexp(0) - z[2]
    torch.testing.assert_close(found.trace[-1, 0], value, rtol=0, atol=1e-5)
    assert found.losses == (loss,)


# --- A6: same seed and ids, same bits -----------------------------------------------------------


@every_attack
def test_a6_the_seed_and_the_ids_decide(name: str, shape: tuple[int, ...]) -> None:
    w, attack = world(shape), short(name, Linf(0.3), restarts=2)
    first, again = run(attack, w, seed=5), run(attack, w, seed=5)
    assert torch.equal(first.adversarial, again.adversarial) and torch.equal(
        first.trace.nan_to_num(), again.trace.nan_to_num()
    )
    other = run(attack, w, seed=6)
    assert torch.equal(other.trace.nan_to_num(), first.trace.nan_to_num()) == (
        name not in RANDOM
    )
    renamed = run(attack, replace(w, ids=("e", "f", "g", "h")), seed=5)
    assert torch.equal(renamed.trace.nan_to_num(), first.trace.nan_to_num()) == (
        name not in RANDOM
    )


@every_attack
def test_a6_the_order_of_the_images_does_not_matter(
    name: str, shape: tuple[int, ...]
) -> None:
    w, order = world(shape), torch.tensor([2, 0, 3, 1])
    attack = short(
        name, Linf(0.3), restarts=2, hide=None if name == "noise" else 0.3 * HFC(w.bank)
    )
    whole = run(attack, w)
    torch.testing.assert_close(
        run(attack, w, order).adversarial, whole.adversarial[order], rtol=0, atol=1e-9
    )


def test_a6_restarts_differ() -> None:
    w = world((3, 7, 6))
    for name in ("pgd", "square", "dim"):
        one = run(
            short(name, Linf(0.3), steps=2)
            if name != "square"
            else recipes.square(Linf(0.3), queries=3),
            w,
        )
        two = run(
            replace(short(name, Linf(0.3)), restarts=2, steps=2 if name != "square" else 3),
            w,
        )
        assert not torch.equal(one.trace, two.trace), name


# --- A7: nothing leaks --------------------------------------------------------------------------


class Broken(Rule):
    """A rule that fails at its second step."""

    def start(self, setting: Setting) -> Callable[[Step], Tensor]:
        def move(s: Step) -> Tensor:
            if s.k:
                raise RuntimeError("broken")
            return s.delta

        return move


@every_attack
def test_a7_network_images_and_random_state_are_untouched(
    name: str, shape: tuple[int, ...]
) -> None:
    w = world(shape)
    model = w.classifier.model
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    before, x, random = state(model), w.x.clone(), torch.random.get_rng_state()
    eps = torch.full((4,), 0.3, dtype=torch.float64)
    run(short(name, Linf(eps), hide=None if name == "noise" else 0.3 * HFC(w.bank)), w)
    with pytest.raises(RuntimeError, match="broken"):
        run(replace(short("pgd", Linf(eps)), rule=Broken()), w)
    assert state(model) == before and torch.equal(w.x, x) and not w.x.requires_grad
    assert torch.equal(torch.random.get_rng_state(), random) and torch.equal(
        eps, torch.full_like(eps, 0.3)
    )
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_a7_works_without_gradients_around_it_and_gives_none_back() -> None:
    w = world((3, 7, 6))
    with torch.no_grad():
        inside = run(short("bim", Linf(0.3)), w)
    outside = run(short("bim", Linf(0.3)), w)
    assert torch.equal(inside.adversarial, outside.adversarial)
    assert not any(
        getattr(outside, f).requires_grad
        for f in ("adversarial", "margin", "hide", "trace")
    )


def test_a7_an_in_place_first_layer_does_not_reach_the_images() -> None:
    model = (
        nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    )
    classifier = FeatureClassifier(model, (), box=(-1.0, 1.0))
    x = -images(3, (1, 4), seed=0)
    before = x.clone()
    source = classifier.extract(x).predicted
    recipes.pgd(Linf(0.5))(classifier, x, Goal(source, 1 - source), ids="abc")
    assert torch.equal(x, before)
