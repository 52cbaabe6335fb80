"""What the loop promises: the best iterate, restarts, images that leave, counts, masks, heads,
ensembles, and refusals.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feathide.attacks import presets as recipes
from feathide.attacks.apgd import AutoStep, checkpoints
from feathide.attacks.ensemble import Ensemble
from feathide.attacks.grid import Grid
from feathide.attacks.leave import never, when_fooled, when_hidden
from feathide.attacks.loop import Attack
from feathide.attacks.square import Square
from feathide.attacks.threats import L2, Linf
from feathide.attacks.transforms import GaussianSmooth, ResizeAndPad
from feathide.attacks.updates import (
    Momentum,
    Orthogonal,
    Plain,
    Rule,
    Scheduled,
    Selective,
    Setting,
    Step,
)
from feathide.checks.worlds import SHAPES, images
from feathide.data.noise import Noise
from feathide.errors import InputError
from feathide.losses import HFC, AwayFrom, CrossEntropy, Drift, Evade, Guide
from feathide.models.pooling import channel_mean
from feathide.types import Goal, Outputs
from worlds.classifiers import World, objectives, run, world


def many(shape: tuple[int, ...], classes: int, n: int = 24) -> World:
    """More images of a world."""
    w = world(shape, classes)
    x = images(n, shape, seed=12)
    source = w.classifier.extract(x).predicted
    return replace(
        w,
        x=x,
        goal=Goal(source, (source + 1) % classes),
        ids=tuple(f"i{k}" for k in range(n)),
    )


def cross_entropy(w: World, x: Tensor) -> Tensor:
    """The cross-entropy to the target, (N,)."""
    return (
        -w.classifier.extract(x)
        .logits.log_softmax(1)
        .gather(1, w.goal.target[:, None])[:, 0]
    )


# --- the best iterate ---------------------------------------------------------------------------


class Path(Rule):
    """Walks through given perturbations, the same for every image."""

    def __init__(self, stops: list[Tensor]) -> None:
        self.stops = stops

    def start(self, setting: Setting) -> object:  # type: ignore[override]
        return lambda s: setting.project(self.stops[s.k].expand_as(s.delta), s.rows)


def test_the_best_iterate_is_kept_not_the_last() -> None:
    w = many((3, 7, 6), 3)
    found = run(recipes.bim(Linf(0.2), steps=12), w)
    path = Path([found.adversarial - w.x] + [0 * w.x] * 3)
    again = run(Attack(CrossEntropy(), Linf(0.2), steps=4, step_size=1.0, rule=path), w)
    assert torch.equal(again.fooled, found.fooled) and bool(found.fooled.any())
    torch.testing.assert_close(again.adversarial, found.adversarial)
    torch.testing.assert_close(again.margin, found.margin)


def test_success_counts_before_the_loss_and_the_whole_loss_among_successes() -> None:
    w = many((3, 7, 6), 3)
    hide = HFC(w.bank, floor="none")
    found = run(recipes.pgd(Linf(0.3), hide=0.3 * hide, steps=15), w)
    only = run(recipes.pgd(Linf(0.3), hide=0.3 * hide, steps=15, leave=when_fooled), w)
    assert torch.equal(found.fooled, only.fooled)
    whole = [cross_entropy(w, f.adversarial) + f.hide for f in (found, only)]
    gain = (whole[1] - whole[0])[found.fooled]
    assert len(gain) > 5 and float(gain.min()) > -1e-12 and float(gain.median()) > 0.05
    out = w.classifier.extract(found.adversarial)
    assert torch.equal(out.predicted == w.goal.target, found.fooled)
    torch.testing.assert_close(0.3 * w.bank.energy(out, w.goal.target).sum(1), found.hide)


def test_an_unsure_success_still_counts_before_a_failure() -> None:
    """Of three classes the target can lead at a higher cross-entropy than it has where another
    leads.
    """
    w = many((3, 7, 6), 3)
    plain = run(recipes.bim(Linf(0.25), steps=10), w)
    sure = run(recipes.bim(Linf(0.25), steps=10, confidence=1e3), w)  # out of reach
    assert torch.equal(plain.fooled, sure.fooled)
    firm = run(recipes.bim(Linf(0.25), steps=20, confidence=0.5, leave=when_fooled), w)
    free = run(recipes.bim(Linf(0.25), steps=20, leave=when_fooled), w)
    reached = firm.margin > 0.5
    assert int(reached.sum()) > 3
    assert bool((firm.first == free.first).all())
    # they stay until they are sure
    assert float(firm.gradients.sum()) > float(free.gradients.sum())


def test_a_loss_that_is_not_a_number_is_never_the_best() -> None:
    w = many((3, 7, 6), 3, 6)
    path = Path([torch.full((3, 7, 6), float("nan")).double()] * 2)
    found = run(Attack(CrossEntropy(), Linf(0.2), steps=2, step_size=1.0, rule=path), w)
    assert torch.equal(found.adversarial, w.x)


# --- restarts, leaving, counts ------------------------------------------------------------------


def test_restarts_are_the_worst_case_of_each_image() -> None:
    w = many((3, 7, 6), 5, 40)

    def attack(n: int) -> Attack:
        return recipes.pgd(Linf(0.04), steps=3, step_size=0.5, restarts=n)

    one, four = run(attack(1), w), run(attack(4), w)
    assert bool((four.fooled >= one.fooled).all()) and int(four.fooled.sum()) > int(
        one.fooled.sum()
    )
    loss = [cross_entropy(w, f.adversarial)[one.fooled] for f in (one, four)]
    assert (
        bool((loss[1] <= loss[0] + 1e-9).all()) and float((loss[0] - loss[1]).max()) > 1e-3
    )
    assert four.gradients.tolist() == [12] * 40 and four.forwards.tolist() == [16] * 40


@pytest.mark.parametrize("shape", SHAPES)
def test_images_that_are_done_leave_and_the_cost_follows_the_hard_ones(
    shape: tuple[int, ...],
) -> None:
    w = many(shape, 3)
    stay, go = (
        run(recipes.bim(Linf(0.3), steps=10, leave=leave), w)
        for leave in (never, when_fooled)
    )
    assert torch.equal(stay.fooled, go.fooled) and torch.equal(stay.first, go.first)
    done = go.fooled
    assert go.gradients[done].tolist() == [min(k + 1, 10) for k in go.first[done].tolist()]
    assert go.gradients[~done].tolist() == [10] * int((~done).sum())
    for i in done.nonzero().flatten().tolist():
        assert bool(go.trace[int(go.first[i]) + 1 :, i].isnan().all())
    again = run(recipes.bim(Linf(0.3), steps=10, leave=when_fooled, restarts=3), w)
    # what is done is not started again
    assert again.gradients[done].tolist() == go.gradients[done].tolist()


def test_when_hidden_waits_for_a_low_suspicion() -> None:
    w = many((3, 7, 6), 3)
    hide, level = HFC(w.bank), 6.0
    found = run(recipes.pgd(Linf(0.3), hide=hide, steps=20, leave=when_hidden(level)), w)
    left = found.trace[-1].isnan()
    assert (
        bool(left.any())
        and bool((found.hide[left] <= level).all())
        and bool(found.fooled[left].all())
    )


def test_passes_are_counted_as_they_happen() -> None:
    w = many((3, 7, 6), 3, 5)
    hide = 0.3 * HFC(w.bank)
    closest = 0.3 * Guide(w.reference, w.labels, pick="closest")
    cases = [
        (10, 11, recipes.bim(Linf(0.2), steps=10)),
        (10, 11, recipes.pgd(Linf(0.2), hide=hide, steps=10)),
        # the first iterate is the clean image
        (10, 11, recipes.bim(Linf(0.2), hide=closest, steps=10)),
        # a clean pass finds the guides
        (10, 12, recipes.pgd(Linf(0.2), hide=closest, steps=10)),
        (10, 21, recipes.dim(Linf(0.2), steps=10)),
        (20, 11, recipes.bim(Linf(0.2), hide=hide, blend=Orthogonal(), steps=10)),
        (10, 11, recipes.bim(Linf(0.2), hide=hide, blend=Selective(), steps=10)),
        (0, 11, recipes.square(Linf(0.2), queries=10, leave=never)),
        (0, 1, recipes.noise(Linf(0.2))),
    ]
    for gradients, forwards, attack in cases:
        calls = [0]
        w.classifier.names(w.x)
        handle = w.classifier.model.register_forward_hook(
            lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1)
        )
        found = run(attack, w)
        handle.remove()
        assert (found.gradients.tolist(), found.forwards.tolist()) == (
            [gradients] * 5,
            [forwards] * 5,
        )
        assert calls[0] == forwards


def test_what_nobody_reads_is_not_computed_and_changes_nothing() -> None:
    """An objective on logits runs without hooks, one on some layers with theirs; to the bit as if
    all were there.
    """
    w = many((3, 7, 6), 3, 5)

    def shown_all(out: Outputs) -> None:  # who watches sees everything
        assert len(out.features) == 3

    for objective in (
        CrossEntropy(),
        CrossEntropy() + 0.3 * HFC(w.bank, layers=("relu#1",)),
        Drift(w.layer, "away"),
    ):
        seen: list[tuple[str, ...]] = []

        def pool(h: Tensor, seen: list[tuple[str, ...]] = seen) -> Tensor:
            seen.append(tuple(h.shape))
            return channel_mean(h)

        attack = recipes.pgd(Linf(0.2), objective=objective, steps=3)
        shown = replace(w.classifier, pool=pool)
        found = attack(shown, w.x, w.goal, ids=w.ids)
        layers = len(objective.reads.layers or ())
        assert len(seen) == layers * (4 + objective.reads.clean)
        again = attack(
            w.classifier, w.x, w.goal, ids=w.ids, watch=lambda k, rows, out: shown_all(out)
        )
        for name in ("adversarial", "margin", "trace", "fooled"):
            assert torch.equal(getattr(found, name), getattr(again, name))


def test_objectives_that_do_not_read_the_clean_outputs_may_be_bound_to_others() -> None:
    w = many((3, 7, 6), 3, 5)
    clean, other = w.classifier.extract(w.x), w.classifier.extract(w.x.flip(0))
    said = [objective for objective in objectives(w).values() if not objective.reads.clean]
    assert len(said) > 8
    for objective in said:
        one, two = (objective.bind(out, w.goal, Noise(0, w.ids)) for out in (clean, other))
        assert torch.equal(one(clean), two(clean))


def test_the_trace_is_the_fooling_loss_of_each_iterate() -> None:
    w = many((3, 7, 6), 3, 6)
    found = run(recipes.bim(Linf(0.1), steps=6, hide=HFC(w.bank)), w)
    assert found.trace.shape == (7, 6)
    torch.testing.assert_close(found.trace[0], cross_entropy(w, w.x))


# --- blends -------------------------------------------------------------------------------------


def test_selective_attacks_the_detector_only_once_the_classifier_is_fooled() -> None:
    share = Selective().start(3, 10)
    fool, hide = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    (loss,) = share.losses(fool, hide, torch.tensor([False, True, False]), slice(None))
    assert loss.tolist() == [1.0, 20.0, 3.0]


def test_orthogonal_takes_the_other_wish_out_of_the_step() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 2, 3, generator=random, dtype=torch.float64) for _ in range(2))
    fooled = torch.tensor([False, True, False, True])
    merged = Orthogonal().start(4, 10).merge((a, b), fooled)
    wide = fooled[:, None, None]
    chosen, other = torch.where(wide, b, a), torch.where(wide, a, b)
    assert float((merged * other).flatten(1).sum(1).abs().max()) < 1e-12
    along = chosen - merged  # what was taken out lies along the other
    cosine = torch.nn.functional.cosine_similarity(along.flatten(1), other.flatten(1)).abs()
    torch.testing.assert_close(cosine, torch.ones(4, dtype=torch.float64))
    for tiny in (1e-30, 0.0):  # the other gradient may vanish
        left = (
            Orthogonal().start(4, 10).merge((a, b * tiny), torch.zeros(4, dtype=torch.bool))
        )
        assert bool(left.isfinite().all())
        assert torch.equal(left, a) == (tiny == 0.0)


def test_scheduled_raises_the_weight_of_hiding_after_success() -> None:
    share = Scheduled(up=2.0, down=0.5, most=3.0).start(2, 10)
    one, fooled = torch.ones(2, dtype=torch.float64), torch.tensor([True, False])
    weights = [
        share.losses(0 * one, one, fooled, slice(None))[0].tolist() for _ in range(3)
    ]
    assert weights == [[2.0, 0.5], [3.0, 0.25], [3.0, 0.125]]


@pytest.mark.parametrize("blend", [Selective(), Orthogonal(), Scheduled()])
def test_blends_hide_better_than_fooling_alone(blend: object) -> None:
    w = many((3, 7, 6), 3, 40)
    hide = Evade(w.detectors[2:])
    plain = run(recipes.pgd(Linf(0.3), steps=20), w)
    hidden = run(recipes.pgd(Linf(0.3), steps=20, hide=hide, blend=blend), w)
    both = plain.fooled & hidden.fooled
    assert int(both.sum()) > 8
    suspicion = w.detectors[2].score(w.classifier.extract(plain.adversarial))
    assert float((hidden.hide - suspicion)[both].median()) < -0.5


# --- APGD, Square, DIM, TIM ---------------------------------------------------------------------


def test_the_checkpoints_are_those_of_the_paper() -> None:
    """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), of 100 steps."""
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    assert sorted(checkpoints(100)) == [round(100 * v) for v in p[1:]]


def test_autostep_halves_the_step_of_images_that_do_not_progress_and_goes_back_to_their_best() -> (
    None
):
    x = torch.full((2, 1, 4), 0.5, dtype=torch.float64)
    setting = Setting(x, (0.0, 1.0), Linf(0.1), 100, 2.0, "constant", None)  # type: ignore[arg-type]
    move = AutoStep().start(setting)
    rows, delta = torch.arange(2), torch.zeros_like(x)
    sizes = []
    for k in range(60):
        # the second is stuck
        loss = torch.tensor(
            [-float(k), 0.0 if k == 3 else 1.0 + (k % 2)], dtype=torch.float64
        )
        at_3 = delta.clone() if k == 3 else locals().get("at_3")
        new = move(Step(k, rows, delta, loss, torch.full_like(x, float((-1) ** (k // 2)))))
        sizes.append(move.length.clone())  # type: ignore[attr-defined]
        if k == 22:
            assert at_3 is not None
            torch.testing.assert_close(move.delta[1], at_3[1])  # type: ignore[attr-defined]
        delta = new
    assert [s[0].item() for s in sizes] == [2.0] * 60
    marks = [k for k in sorted(checkpoints(100)) if k < 60]
    halvings = [k for k in range(1, 60) if sizes[k][1] < sizes[k - 1][1]]
    assert halvings == marks == [22, 41, 57]


def test_apgd_beats_pgd_at_equal_gradients_on_average() -> None:
    w = many((3, 7, 6), 5, 60)
    pgd = run(recipes.pgd(L2(0.4), steps=20, step_size=1.0), w)
    apgd = run(recipes.apgd_ce(L2(0.4), steps=20), w)
    assert float(apgd.trace.nan_to_num().amin(0).mean()) < float(pgd.trace.amin(0).mean())
    assert apgd.gradients.tolist() == pgd.gradients.tolist()


@pytest.mark.parametrize(
    ("k", "shape", "sides"),
    [
        (5, (20, 20), [18, 18]),
        (600, (20, 20), [4, 4]),
        (9999, (20, 20), [1, 1]),
        (5, (20, 1, 20), [18, 1, 18]),
        (5, (8, 8, 8), [7, 7, 7]),
        (300, (10, 40), [3, 13]),
    ],
)
def test_squares_shrink_as_queries_are_used_up_and_have_the_images_proportions(
    k: int, shape: tuple[int, ...], sides: list[int]
) -> None:
    assert Square().sides(k, 10_000, shape) == sides


@pytest.mark.parametrize("shape", SHAPES)
def test_square_changes_one_window_a_query_and_keeps_only_what_helps(
    shape: tuple[int, ...],
) -> None:
    w, eps = world(shape), 0.05
    seen: list[Tensor] = []

    def watch(x: Tensor) -> object:
        seen.append(x.detach().clone())
        return w.classifier(x)

    watch.box = (0.0, 1.0)  # type: ignore[attr-defined]
    rule = recipes.square(Linf(eps), queries=25, leave=never)
    found = rule(watch, w.x, w.goal, ids=w.ids)  # type: ignore[arg-type]
    tried = torch.stack(seen[1:]) - w.x  # the first iterate is the clean image
    torch.testing.assert_close(tried.abs(), torch.full_like(tried, eps))
    best = found.trace[1:].cummin(0).values  # the search starts at the stripes
    for i in range(4):
        for k in range(1, len(tried)):
            kept = int(found.trace[1 : k + 1, i].argmin())
            changed = (tried[k, i] != tried[kept, i]).any(0).nonzero()
            if len(changed):
                extent = changed.amax(0) - changed.amin(0) + 1
                assert all(
                    int(e) <= s
                    for e, s in zip(extent, Square().sides(k, 25, shape[1:]), strict=True)
                )
    assert float((best[-1] - best[0]).mean()) < -0.01


def test_square_in_l2_keeps_to_the_sphere() -> None:
    w = world((3, 7, 6))
    found = run(recipes.square(L2(0.3), queries=60, leave=never), w)
    size = L2(0.3).size(found.adversarial - w.x)
    torch.testing.assert_close(size, torch.full_like(size, 0.3), rtol=1e-6, atol=0)


def test_dim_shrinks_and_pads_with_probability_p() -> None:
    x = torch.ones(200, 1, 20, 20)
    shown = ResizeAndPad(0.5, least=0.8)(x, Noise(0, tuple(map(str, range(200)))), 0)
    filled = shown.flatten(1).mean(1)
    share = float((filled < 1).double().mean())
    assert 0.35 < share < 0.6 and float(filled.min()) >= 0.8**2 - 1e-6
    corners = shown[filled < 0.99][:, 0, [0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
    # padded on every side
    assert float(corners.min()) > 0.05 and float(corners.max()) < 0.6


def test_tim_smooths_every_axis_and_no_channel() -> None:
    grad = torch.zeros(1, 2, 9, 9, 9, dtype=torch.float64)
    grad[0, 0, 4, 4, 4] = 1
    smooth = GaussianSmooth(7)(grad)
    line = torch.exp(-(torch.linspace(-3, 3, 7, dtype=torch.float64) ** 2) / 2)
    line = line / line.sum()
    torch.testing.assert_close(
        smooth[0, 0, 1:8, 1:8, 1:8], torch.einsum("i,j,k->ijk", line, line, line)
    )
    assert not bool(smooth[0, 1].any())


def test_momentum_normalises_each_image_as_a_whole() -> None:
    x = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64)
    setting = Setting(x, (0.0, 1.0), Linf(0.4), 10, 0.1, "constant", None)  # type: ignore[arg-type]
    move, delta, rows = Momentum(1.0).start(setting), torch.zeros_like(x), torch.arange(2)
    first = (
        torch.tensor([4.0, -4.0, 4.0, 4.0], dtype=torch.float64)
        .reshape(1, 1, 2, 2)
        .expand(2, -1, -1, -1)
    )
    second = torch.tensor([-1.0, 1.1, -1.0, -0.9], dtype=torch.float64).reshape(1, 1, 2, 2)
    delta = move(Step(0, rows, delta, torch.zeros(2), first))
    delta = move(Step(1, rows, delta, torch.zeros(2), torch.cat([second, 1000 * second])))
    # the length of a gradient does not matter
    torch.testing.assert_close(delta[0], delta[1])
    torch.testing.assert_close(
        delta[0, 0], torch.tensor([[-0.04, 0.0], [-0.04, -0.08]], dtype=torch.float64)
    )


def test_l2_steps_survive_vanishing_gradients() -> None:
    grad = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1.0, 1e30):
        torch.testing.assert_close(
            L2(1.0).steepest(grad * scale), L2(1.0).steepest(grad), rtol=1e-5, atol=1e-6
        )
    assert not bool(L2(1.0).steepest(0 * grad).any())


# --- heads and masks ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("outputs", "head"),
    [(1, "sigmoid"), (2, "softmax"), (3, "softmax"), (5, "softmax"), (3, ("finding", 1))],
)
def test_every_head_is_fooled_with_room_enough(
    outputs: int, head: str | tuple[str, int], shape: tuple[int, ...]
) -> None:
    w = world(shape, outputs, head)
    for attack in (
        recipes.pgd(Linf(1.0), steps=60, step_size=0.05),
        recipes.standard(Linf(1.0), steps=40, queries=100),
    ):
        found = run(attack, w)
        out, clean = w.classifier.extract(found.adversarial), w.classifier.extract(w.x)
        if out.others is None or clean.others is None:
            assert bool(found.fooled.all())
        else:
            assert int(found.fooled.sum()) >= 2
            assert torch.equal(
                (out.others > 0)[found.fooled], (clean.others > 0)[found.fooled]
            )
        assert bool((out.predicted == w.goal.target)[found.fooled].all())


@pytest.mark.parametrize(
    "attack", [recipes.pgd, recipes.mim, recipes.tim, recipes.apgd_ce, recipes.square]
)
def test_a_mask_is_respected_and_shared_or_one_per_image(attack: object) -> None:
    w = world((3, 7, 6))
    mask = torch.zeros(1, 1, 7, 6)
    mask[..., 2:5, 1:4] = 1
    each = torch.cat([mask, mask.flip(2), mask.flip(3), mask])
    for m in (mask, each):
        found = run(
            attack(
                Linf(0.3), **({"queries": 40} if attack is recipes.square else {"steps": 5})
            ),
            w,
            mask=m,
        )  # type: ignore[operator]
        moved = (found.adversarial - w.x).abs()
        assert not bool((moved * (1 - m)).any()) and float(moved.amax()) > 0.1


# --- ensembles ----------------------------------------------------------------------------------


def test_an_ensemble_is_the_worst_case_and_spares_what_is_fooled() -> None:
    w = many((3, 7, 6), 5, 30)
    parts = (
        recipes.fgsm(Linf(0.06)),
        recipes.noise(Linf(0.06)),
        recipes.pgd(Linf(0.06), steps=12),
    )
    found, single = run(Ensemble(parts), w), [run(p, w) for p in parts]
    assert torch.equal(found.fooled, torch.stack([s.fooled for s in single]).any(0))
    assert bool(single[0].fooled.any()) and bool(
        (single[2].fooled & ~single[0].fooled).any()
    )
    for i in range(30):
        used = next((k for k, s in enumerate(single) if s.fooled[i]), 2)
        assert found.gradients[i] == sum(int(s.gradients[i]) for s in single[: used + 1])
        if single[used].fooled[i]:
            assert torch.equal(found.adversarial[i], single[used].adversarial[i])
            assert found.first[i] == single[used].first[i] + [0, 2, 3][used]
    assert found.trace.shape == (2 + 1 + 13, 30) and Ensemble(parts).passes == 16
    torch.testing.assert_close(
        found.margin,
        torch.where(
            found.fooled, found.margin, torch.stack([s.margin for s in single]).amax(0)
        ),
    )


def test_an_ensemble_that_hides_keeps_the_least_suspicious_success() -> None:
    w = many((3, 7, 6), 3)
    attack = recipes.standard(Linf(0.3), hide=HFC(w.bank), steps=10, queries=20)
    found, single = run(attack, w), [run(a, w) for a in attack.attacks]
    hide = torch.stack([torch.where(s.fooled, s.hide, torch.inf) for s in single]).amin(0)
    torch.testing.assert_close(found.hide[found.fooled], hide[found.fooled])
    assert found.gradients.tolist() == [20] * len(w.x)


@pytest.mark.parametrize(
    ("outputs", "losses"),
    [
        (1, ("cross-entropy", "margin")),
        (2, ("cross-entropy", "margin")),
        (3, ("cross-entropy", "margin")),
        (5, ("cross-entropy", "DLR", "margin")),
    ],
)
def test_standard_says_which_losses_it_used(outputs: int, losses: tuple[str, ...]) -> None:
    w = world((1, 5, 4, 3), outputs, "sigmoid" if outputs == 1 else "softmax")
    assert run(recipes.standard(Linf(1e-4), steps=2, queries=2), w).losses == losses


def test_standard_untargeted_takes_any_other_class() -> None:
    w = many((3, 7, 6), 5, 40)
    aimed = run(recipes.standard(Linf(0.01), steps=10, queries=20), w)
    free = run(recipes.standard(Linf(0.01), classes=5, steps=10, queries=20), w)
    assert int(free.fooled.sum()) > int(aimed.fooled.sum())
    assert torch.equal(
        w.classifier.extract(free.adversarial).predicted != w.goal.source, free.fooled
    )
    assert free.losses == ("untargeted cross-entropy", "DLR", "untargeted margin")
    assert (
        len(recipes.standard(Linf(0.1), classes=2).attacks) == 3
        and len(recipes.standard(Linf(0.1), classes=10).attacks) == 11
    )


# --- the grid -----------------------------------------------------------------------------------


def test_a_perturbation_smaller_than_a_step_is_not_lost_in_l2() -> None:
    """1000 pixels moved by 0.1 steps have the norm of ten pixels moved by one."""
    grid, x = Grid(1 / 255), torch.full((1, 1, 1000), 100 / 255, dtype=torch.float64)
    delta = torch.full_like(x, 0.1 / 255) * torch.linspace(0.9, 1.1, 1000).double()
    stored = grid.store(x, delta, L2(1.0), (0.0, 1.0)) - x
    assert int((stored.abs() > 1e-9).sum()) == 10
    assert float(stored.norm()) <= float(delta.norm()) and bool((stored >= -1e-12).all())


@pytest.mark.parametrize("norm", [Linf, L2])
def test_storing_an_image_again_changes_nothing(norm: type[Linf] | type[L2]) -> None:
    grid, threat = Grid(1 / 255), norm(3.5 / 255)
    x = (images(3, (1, 6, 6), seed=0) * 255).round() / 255
    stored = grid.store(
        x,
        threat.project(
            0.05
            * torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double(),
            x,
            (0, 1),
        ),
        threat,
        (0.0, 1.0),
    )
    torch.testing.assert_close(
        grid.store(x, stored - x, threat, (0.0, 1.0)), stored, rtol=0, atol=1e-12
    )
    assert bool((threat.size(stored - x) <= 3.5 / 255 + 1e-12).all())


# --- bad input ----------------------------------------------------------------------------------

W = world((3, 7, 6))
FEW = recipes.bim(Linf(0.1), steps=1)


@pytest.mark.parametrize(
    ("attack", "fields", "message"),
    [
        (
            FEW,
            {"goal": Goal(W.goal.source, W.goal.source)},
            (
                "targets must differ from the sources, got equal ones for 'a'; choose another "
                "class as the target"
            ),
        ),
        (
            FEW,
            {"goal": Goal(W.goal.source, W.goal.source + 3)},
            "sources and targets must be classes 0 to 2, got",
        ),
        (
            FEW,
            {"goal": W.goal[:3]},
            (
                "a source, a target and an id for each of 4 images, got 3 sources, 3 targets "
                "and 4 ids"
            ),
        ),
        (
            FEW,
            {"ids": "abc"},
            (
                "a source, a target and an id for each of 4 images, got 4 sources, 4 targets "
                "and 3 ids"
            ),
        ),
        (
            recipes.bim(Linf(torch.tensor([0.1] * 3))),
            {},
            r"eps must be a number or one per image \(4,\), got \(3,\); give one eps per image",
        ),
        (
            recipes.bim(L2(torch.ones(4, 1))),
            {},
            r"eps must be a number or one per image \(4,\), got \(4, 1\)",
        ),
        (recipes.bim(Linf(-0.1)), {}, "eps must be finite and not negative, got -0.1"),
        (
            recipes.bim(Linf(float("nan"))),
            {},
            "eps must be finite and not negative, got nan",
        ),
        (
            FEW,
            {"x": W.x * 255},
            r"x must lie in \[0, 1\], got \[.*\]; pass box=... or rescale",
        ),
        (FEW, {"x": W.x / 0}, "images must be finite, got NaN or infinity"),
        (
            FEW,
            {"x": (W.x * 255).byte()},
            "images must be floating-point numbers, got torch.uint8",
        ),
        (
            FEW,
            {"mask": torch.ones(4, 7, 6)},
            r"mask must be \(N or 1, C or 1, \*S\) for images \(4, 3, 7, 6\), got \(4, 7, 6\)",
        ),
        (FEW, {"mask": torch.ones(3, 1, 7, 6)}, "mask must be"),
        (
            FEW,
            {"grid": Grid(1 / 255)},
            r"clean images must lie on the storage grid of step 0.00392\d+, got values up to .* of a step off",
        ),
        (
            replace(FEW, restarts=0),
            {},
            (
                "at least one run, and no negative steps, step_size or confidence, got "
                "steps=1, restarts=0"
            ),
        ),
        (replace(FEW, steps=-1), {}, "at least one run"),
        (
            recipes.standard(Linf(torch.tensor([0.1] * 5))),
            {},
            "eps must be a number or one per image",
        ),
    ],
)
def test_refused_in_a_sentence(
    attack: Attack, fields: dict[str, object], message: str
) -> None:
    arguments = {"x": W.x, "goal": W.goal, "ids": W.ids, **fields}
    with pytest.raises(InputError, match=message) as error:
        attack(W.classifier, arguments.pop("x"), arguments.pop("goal"), **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_dim_on_a_signal_and_tim_with_even_taps_are_refused() -> None:
    with pytest.raises(
        InputError,
        match="DIM needs images with 2 or 3 spatial axes, got 1; use another attack",
    ):
        run(recipes.dim(Linf(0.1)), world((1, 8)))
    with pytest.raises(InputError, match="taps must be odd, got 4"):
        recipes.tim(Linf(0.1), taps=4)


def test_constraints_without_features_are_refused() -> None:
    bare = replace(W, classifier=replace(W.classifier, layers=()))
    with pytest.raises(
        InputError,
        match="HFC needs the features of at least one layer, got none; give the classifier layers",
    ):
        run(recipes.pgd(Linf(0.1), hide=HFC(W.bank)), bare)
    with pytest.raises(InputError, match="unknown layer 'relu#1'"):
        run(recipes.pgd(Linf(0.1), hide=Evade(W.detectors[:1])), bare)


def test_the_untargeted_wish_is_an_objective_not_a_flag() -> None:
    found = run(recipes.pgd(Linf(0.3), objective=AwayFrom(), steps=20), many((3, 7, 6), 5))
    assert found.losses == ("untargeted cross-entropy",) and int(found.fooled.sum()) > 15


def test_recipes_are_values() -> None:
    assert recipes.fgsm(Linf(0.1), steps=10).steps == 1
    assert recipes.bim(Linf(0.1)).rule == Plain() and recipes.mim(
        Linf(0.1), mu=0.5
    ).rule == Momentum(0.5)
    assert recipes.pgd(Linf(0.1), restarts=5, decay="cosine").restarts == 5


@pytest.mark.parametrize("c", [2.0**-13, 2.0**13, 1e-4, 1e4])
@pytest.mark.parametrize("recipe", [recipes.pgd, recipes.cw, recipes.apgd_ce])
def test_hiding_does_not_depend_on_the_scale_of_the_logits(
    recipe: Callable[..., Any], c: float
) -> None:
    """Features are the same, logits c times as large: measured in a unit c times as large, they
    give the same images.
    """
    w = world((7, 6))
    model = deepcopy(w.classifier.model)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.mul_(c)
        head.bias.mul_(c)
    other = replace(w, classifier=replace(w.classifier, model=model))
    attack = recipe(Linf(0.15), steps=12, hide=0.3 * HFC(w.bank), unit=0.2)
    found, scaled = run(attack, w), run(replace(attack, unit=0.2 * c), other)
    torch.testing.assert_close(scaled.adversarial, found.adversarial, rtol=0, atol=1e-6)
    assert torch.equal(scaled.fooled, found.fooled) and bool(found.fooled.any())
    # without the unit, the weight of hiding means something else
    elsewhere = run(attack, other).adversarial
    assert not torch.allclose(elsewhere, found.adversarial, atol=1e-3)
