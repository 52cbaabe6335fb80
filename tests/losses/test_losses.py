"""Conformance checks O1 to O3 of the objectives: gradients, algebra, and the formulas written out
in loops.
"""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from feathide.attacks.presets import bim, pgd, standard
from feathide.attacks.threats import Linf
from feathide.catalog import OBJECTIVES
from feathide.checks import OBJECTIVE_LAWS
from feathide.checks.worlds import images
from feathide.data.noise import Noise
from feathide.errors import InputError
from feathide.losses import (
    DLR,
    HFC,
    AwayFrom,
    BoundLoss,
    CrossEntropy,
    Drift,
    Evade,
    Guide,
    Margin,
    Objective,
)
from feathide.mixtures import MixtureBank
from feathide.plans.plan import load_plan
from feathide.types import Goal, Outputs
from worlds.classifiers import World, fooling, objectives, world

W = world((3, 7, 6), 5)
NAMES = list(objectives(W))


def bound(objective: Objective, w: World = W) -> BoundLoss:
    return objective.bind(w.classifier.extract(w.x), w.goal, Noise(0, w.ids))


def elsewhere(w: World = W) -> Outputs:
    """Outputs that are not the clean ones."""
    return w.classifier.extract(
        (w.x + 0.1 * (images(4, tuple(w.x.shape[1:]), seed=7) - 0.5)).clamp(0, 1)
    )


# --- O1: what everybody's objectives obey -------------------------------------------------------


@pytest.mark.parametrize("law", OBJECTIVE_LAWS)
@pytest.mark.parametrize("name", NAMES)
def test_o1_law(name: str, law: str) -> None:
    OBJECTIVE_LAWS[law](lambda known: objectives(world((3, 7, 6), known.classes))[name])


# --- O2: algebra --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_o2_sums_and_multiples(name: str) -> None:
    a, b, out = objectives(W)[name], CrossEntropy(), elsewhere()
    va, vb = bound(a)(out), bound(b)(out)
    for objective, value in (
        (a + b, va + vb),
        (b + a, va + vb),
        (2 * a, 2 * va),
        (0.5 * (a + b), (va + vb) / 2),
        (0.5 * a + 3 * b, va / 2 + 3 * vb),
        ((a + b) + a, 2 * va + vb),
        (a + (b + a), 2 * va + vb),
        (0.0 * a + b, vb),
    ):
        torch.testing.assert_close(bound(objective)(out), value, rtol=1e-12, atol=1e-12)


def test_o2_wishes_and_hiding_stay_apart() -> None:
    hide = HFC(W.bank)
    loss, out = bound(CrossEntropy() + 0.3 * hide), elsewhere()
    assert loss.fool is not None and loss.hide is not None and loss.margin is not None
    every = slice(None)
    torch.testing.assert_close(loss.fool(out, every), bound(CrossEntropy())(out))
    torch.testing.assert_close(loss.hide(out, every), 0.3 * bound(hide)(out))
    assert bound(hide).fool is None and bound(hide).margin is None
    assert loss.name == "cross-entropy + 0.3 HFC"


def test_o2_two_wishes_are_fulfilled_when_both_are() -> None:
    both, out = bound(CrossEntropy() + AwayFrom()), elsewhere()
    parts = [bound(o).margin for o in (CrossEntropy(), AwayFrom())]
    assert both.margin is not None and all(parts)
    least = torch.stack([m(out, slice(None)) for m in parts if m is not None]).amin(0)
    torch.testing.assert_close(both.margin(out, slice(None)), least)


# --- O3: the formulas, in loops -----------------------------------------------------------------


def by_hand(wish: str, z: list[float], y: int, t: int, rank1: int) -> tuple[float, float]:
    """The loss and the margin of one image."""
    others = [v for j, v in enumerate(z) if j != t]
    total = math.log(sum(math.exp(v) for v in z))
    top = sorted(z, reverse=True)
    towards, away = z[t] - max(others), max(v for j, v in enumerate(z) if j != y) - z[y]
    ratio = (z[y] - z[rank1 if wish == "dlr any" else t]) / (
        1.0 if len(z) < 4 else top[0] - (top[2] + top[3]) / 2
    )
    loss = {
        "cross-entropy": total - z[t],
        "cross-entropy kappa": max(total - z[t], math.log(1 + math.exp(-0.5))),
        "margin": -towards,
        "margin kappa": max(-towards, -0.5),
        "dlr": ratio,
        "dlr any": ratio,
        "away": z[y] - total,
        "away margin": -away,
    }[wish]
    return loss, towards if wish in (
        "cross-entropy",
        "cross-entropy kappa",
        "margin",
        "margin kappa",
        "dlr",
    ) else away


@pytest.mark.parametrize("wish", fooling(W))
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_o3_what_fools(wish: str, classes: int) -> None:
    w = world((3, 7, 6), classes)
    loss, clean = bound(fooling(w)[wish], w), w.classifier.extract(w.x).logits
    out = replace(
        elsewhere(w),
        logits=torch.randn(
            4, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ),
    )
    assert loss.margin is not None
    for i in range(4):
        y, t = int(w.goal.source[i]), int(w.goal.target[i])
        rank1 = max(
            (j for j in range(classes) if j != y), key=lambda j, i=i: float(clean[i, j])
        )  # type: ignore[misc]
        value, margin = by_hand(wish, out.logits[i].tolist(), y, t, rank1)
        assert loss(out)[i].item() == pytest.approx(value, rel=1e-9)
        assert loss.margin(out, slice(None))[i].item() == pytest.approx(margin, rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("wish", [CrossEntropy, Margin, DLR])
def test_beyond_kappa_no_loss_has_a_slope_and_before_it_all_have_theirs(
    wish: Any, classes: int
) -> None:
    """kappa is the lead over one other class, over the source in DLR."""
    kappa, z = (
        2.0,
        torch.randn(
            40, classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ),
    )
    target, source = torch.arange(40) % classes, (torch.arange(40) + 1) % classes
    z[::2] = z[::2].scatter(1, target[::2, None], 9.0)
    out, goal = Outputs(z.requires_grad_(), {}), Goal(source, target)
    capped, free = (
        o.bind(out, goal, Noise(0, tuple(map(str, range(40)))))(out)
        for o in (wish(kappa=kappa), wish())
    )
    slopes, own = (
        torch.autograd.grad(v.sum(), z, retain_graph=True)[0] for v in (capped, free)
    )
    at = z.gather(1, target[:, None])
    over = (
        z.gather(1, source[:, None])
        if wish is DLR
        else z.scatter(1, target[:, None], float("-inf"))
    )
    done = (at - over).amin(1) > kappa + math.log(classes)
    early = (at - over).amin(1) < kappa
    assert bool(done.any()) and bool(early.any())
    assert not slopes[done].any() and torch.equal(slopes[early], own[early])
    assert torch.equal(capped[early], free[early]) and bool(
        (capped[done] >= free[done]).all()
    )
    with pytest.raises(
        InputError, match="kappa is the lead of a target, got an untargeted attack"
    ):
        standard(Linf(0.1), classes=3, kappa=1.0)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, "abc"),
        ({"layers": None, "soft": True}, "abc"),
        ({"widest": 8}, "ab"),
        ({"layers": ["last"]}, "c"),
        ({"layers": ["b", "last"], "widest": 8}, "b"),
    ],
)
def test_hfc_in_a_plan_chooses_layers_by_name_and_width(options: dict, layers: str) -> None:
    g = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(40, width, generator=g)
        for name, width in (("a", 4), ("b", 8), ("c", 9))
    }
    bank = MixtureBank.fit(Outputs(torch.zeros(40, 2), features), torch.arange(40) % 2)
    make = OBJECTIVES["hfc"].make
    assert make is not None
    assert make(SimpleNamespace(bank=lambda: bank), options).reads.layers == tuple(layers)
    with pytest.raises(
        InputError, match="at most widest channels, got widest: 3, the narrowest has 4"
    ):
        make(SimpleNamespace(bank=lambda: bank), {"widest": 3})


def test_o3_hfc_is_the_weighted_sum_of_energies_under_the_target_class() -> None:
    out = elsewhere()
    value = bound(
        HFC(W.bank, layers=("relu#0", "relu#1"), weights=(2.0, 0.5), floor="none")
    )(out)
    for i in range(4):
        t = int(W.goal.target[i])
        energies = [
            W.bank.mixtures[n][t].energy(out.features[n][i : i + 1]).item()
            for n in ("relu#0", "relu#1")
        ]
        assert value[i].item() == pytest.approx(2.0 * energies[0] + 0.5 * energies[1])
    whole = bound(HFC(W.bank, floor="none"))(out)
    assert torch.equal(
        whole, W.bank.energy(out, W.goal.target).sum(1)
    )  # to the last bit: the paper's form has no floor


def test_without_a_floor_a_bank_need_not_know_the_clean_energies() -> None:
    """Mixtures of an older file have none."""
    old, out = MixtureBank(W.bank.mixtures), elsewhere()
    assert torch.equal(
        bound(HFC(old, floor="none"))(out), bound(HFC(W.bank, floor="none"))(out)
    )


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("floor", "quantile"), [("median", 0.5), (0.25, 0.25), (0, 0.0), (1.0, 1.0)]
)
def test_o3_the_floor_of_hfc_is_a_quantile_of_the_clean_energies(
    floor: Any, quantile: float, soft: bool
) -> None:
    out, names, weights = elsewhere(), ("relu#0", "relu#1"), (2.0, 0.5)
    value = bound(HFC(W.bank, layers=names, weights=weights, soft=soft, floor=floor))(out)
    for i in range(4):
        t, total = int(W.goal.target[i]), 0.0
        for name, weight in zip(names, weights, strict=True):
            mixture, own = (
                W.bank.mixtures[name][t],
                W.reference.features[name][W.labels == t],
            )
            least = mixture.energy(own, soft=soft).quantile(quantile)
            total += weight * max(
                float(mixture.energy(out.features[name][i : i + 1], soft=soft) - least), 0.0
            )
        assert value[i].item() == pytest.approx(total, rel=1e-9, abs=1e-12)


def test_o3_a_layer_at_its_floor_is_left_alone() -> None:
    out, names = elsewhere(), W.bank.layers
    leaves = [out.features[n].clone().requires_grad_() for n in names]
    loss = bound(HFC(W.bank))

    def hide(*features: torch.Tensor) -> torch.Tensor:
        return loss(replace(out, features=dict(zip(names, features, strict=True))))

    assert torch.autograd.gradcheck(hide, leaves)
    above = W.bank.energy(out, W.goal.target) > W.bank.usual(W.goal.target)
    assert bool(above.any()) and not bool(above.all())
    gradients = torch.autograd.grad(hide(*leaves).sum(), leaves)
    moved = torch.stack([g.ne(0).any(1) for g in gradients], 1)
    assert torch.equal(moved, above)


def test_the_floor_of_an_image_depends_on_no_other() -> None:
    out, loss = elsewhere(), bound(HFC(W.bank))
    for i in range(4):
        alone = HFC(W.bank).bind(
            out[[i]],
            Goal(W.goal.source[[i]], W.goal.target[[i]]),
            Noise(0, W.ids[i : i + 1]),
        )
        assert alone(out[[i]]).item() == pytest.approx(loss(out)[i].item(), rel=1e-12)


# --- HFC with keep: each image is pulled to a typical point of its own ---------------------------


def own_deviation(i: int, name: str, clean: Outputs) -> torch.Tensor:
    """By hand: f - m_c, as long as the energy of its own class says, about the other mean."""
    c, t = int(W.goal.source[i]), int(W.goal.target[i])
    own, other = W.bank.mixtures[name][c], W.bank.mixtures[name][t]
    f = clean.features[name][i : i + 1]
    away = f - own.mean(f)
    ratio = own.energy(f) / other.energy(other.mean(f) + away)
    return away * ratio.sqrt()[:, None]


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_o3_hfc_with_keep_is_the_energy_about_an_image_s_own_deviation(keep: float) -> None:
    clean, out, names = W.classifier.extract(W.x), elsewhere(), ("relu#0", "relu#1")
    hfc = HFC(W.bank, layers=names, weights=(2.0, 0.5), floor="none", keep=keep)
    value = bound(hfc)(out)
    for i in range(4):
        t, total = int(W.goal.target[i]), 0.0
        for name, weight in zip(names, (2.0, 0.5), strict=True):
            f = out.features[name][i : i + 1] - keep * own_deviation(i, name, clean)
            total += weight * W.bank.mixtures[name][t].energy(f).item()
        assert value[i].item() == pytest.approx(total, rel=1e-9)


def test_hfc_with_keep_is_zero_where_an_image_is_as_far_from_its_target_as_it_was() -> None:
    clean, names = W.classifier.extract(W.x), W.bank.layers
    there = {}
    for name in names:
        rows = []
        for i in range(4):
            f = clean.features[name][i : i + 1]
            mean = W.bank.mixtures[name][int(W.goal.target[i])].mean(f)
            rows.append(mean + own_deviation(i, name, clean))
        there[name] = torch.cat(rows)
    out = replace(clean, features=there)
    typical = HFC(W.bank, floor="none", keep=1.0)
    assert bound(typical)(out).abs().max().item() < 1e-12
    # there the energies are those of the clean images under their own class
    assert torch.allclose(
        W.bank.energy(out, W.goal.target), W.bank.energy(clean, W.goal.source)
    )
    assert float(bound(HFC(W.bank, floor="none"))(out).min()) > 0.1


def test_hfc_with_keep_has_its_gradient_and_depends_on_no_other_image() -> None:
    out, clean = elsewhere(), W.classifier.extract(W.x)
    typical = HFC(W.bank, floor="none", keep=1.0)
    loss, names = bound(typical), W.bank.layers
    leaves = [out.features[n].clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(
        lambda *f: loss(replace(out, features=dict(zip(names, f, strict=True)))), leaves
    )
    for i in range(4):
        goal = Goal(W.goal.source[[i]], W.goal.target[[i]])
        alone = typical.bind(clean[[i]], goal, Noise(0, W.ids[i : i + 1]))
        assert alone(out[[i]]).item() == pytest.approx(loss(out)[i].item(), rel=1e-9)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"keep": 1.5, "floor": "none"}, "keep must lie in"),
        ({"keep": 0.5}, "keep needs floor='none'"),
        ({"keep": 0.5, "floor": "none", "soft": True}, "soft=True"),
    ],
)
def test_hfc_refuses_what_keep_does_not_go_with(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        HFC(W.bank, **wrong)


@pytest.mark.parametrize("soft", [False, True])
def test_hfc_moves_no_image_that_is_at_its_floors_and_none_to_below_them(
    soft: bool,
) -> None:
    """Descent of HFC alone: images whose layers all lie at or below their floors stay to the last
    bit; others come down to the floors and stop there.
    """
    w = world((3, 7, 6), 2)
    bank, x = MixtureBank.fit(w.reference, w.labels), images(60, (3, 7, 6), seed=9)
    clean = w.classifier.extract(x)
    # the class that they are of
    goal, ids = Goal(1 - clean.predicted, clean.predicted), [str(i) for i in range(60)]
    hfc, floor = HFC(bank, soft=soft, floor=0.9), bank.usual(goal.target, 0.9, soft=soft)
    inside = (bank.energy(clean, goal.target, soft=soft) <= floor).all(1)
    assert bool(inside.any()) and not bool(inside.all())
    found = bim(Linf(0.1), steps=5, objective=hfc)(w.classifier, x, goal, ids=ids)
    assert torch.equal(found.adversarial[inside], x[inside])
    assert bool((found.adversarial != x).flatten(1).any(1)[~inside].all())

    loss, features = hfc.bind(clean, goal, Noise(0, tuple(ids))), dict(clean.features)
    # a step takes a hundredth of the energy at most, since energies are convex
    for _ in range(400):
        leaves = [f.clone().requires_grad_() for f in features.values()]
        now = replace(clean, features=dict(zip(features, leaves, strict=True)))
        gradients = torch.autograd.grad(loss(now).sum(), leaves)
        energy = bank.energy(now, goal.target, soft=soft).detach().T[..., None]
        steps = [
            0.01 * e * g / g.square().sum(1, keepdim=True).clamp_min(1e-300)
            for e, g in zip(energy, gradients, strict=True)
        ]
        features = {n: f - s for (n, f), s in zip(features.items(), steps, strict=True)}
    before, after = (
        bank.energy(o, goal.target, soft=soft)
        for o in (clean, replace(clean, features=features))
    )
    below = before <= floor
    assert torch.equal(after[below], before[below])
    assert bool((after >= 0.99 * floor)[~below].all())
    assert (
        float((after / floor)[~below].quantile(0.5))
        < 1.02
        < float((before / floor)[~below].quantile(0.5))
    )


def test_with_the_floor_hidden_images_are_as_normal_as_clean_ones_and_without_it_more_so() -> (
    None
):
    w = world((3, 7, 6), 2)
    x = images(60, (3, 7, 6), seed=9)
    source = w.classifier.extract(x).predicted
    goal, ids = Goal(source, 1 - source), [str(i) for i in range(60)]
    usual = w.bank.usual(goal.target)

    def ratios(floor: Any) -> torch.Tensor:
        attack = pgd(
            Linf(0.1), steps=60, decay="cosine", hide=30.0 * HFC(w.bank, floor=floor)
        )
        seen = w.classifier.extract(attack(w.classifier, x, goal, ids=ids).adversarial)
        return (w.bank.energy(seen, goal.target) / usual).median(0).values

    with_floor, without = ratios("median"), ratios("none")
    assert bool((with_floor > 0.7).all() and (with_floor < 1.1).all()), with_floor
    assert bool((without < 0.3).all()), without


@pytest.mark.parametrize("pick", ["random", "closest"])
def test_o3_guides_are_of_the_target_class_and_the_closest_is(pick: str) -> None:
    out, clean, reference = elsewhere(), W.classifier.extract(W.x), W.reference
    value = bound(Guide(reference, W.labels, pick=pick))(out)  # type: ignore[arg-type]

    def distance(a: Outputs, i: int, r: int) -> float:
        total = 0.0
        for name, f in reference.features.items():
            scale = f.var(0).mean()
            total += float(((a.features[name][i] - f[r]) ** 2).sum() / scale / f.shape[1])
        return total

    for i in range(4):
        guides = (W.labels == W.goal.target[i]).nonzero().flatten().tolist()
        if pick == "closest":
            best = min(guides, key=lambda r, i=i: distance(clean, i, r))  # type: ignore[misc]
            assert value[i].item() == pytest.approx(distance(out, i, best))
        else:
            assert any(
                value[i].item() == pytest.approx(distance(out, i, r)) for r in guides
            )


def test_o3_evade_is_the_hinge_of_the_scores_as_if_the_target_were_predicted() -> None:
    out, kd = elsewhere(), W.detectors[0]
    posed = replace(out, assumed=W.goal.target)
    torch.testing.assert_close(bound(Evade((kd,)))(out), kd.score(posed))
    assert not torch.equal(kd.score(posed), kd.score(out))
    torch.testing.assert_close(bound(Evade((kd,), assume_target=False))(out), kd.score(out))
    score, below = kd.score(posed), float(kd.score(posed).median())
    hinge = ((score - (below - 0.1 * 2.0)).clamp_min(0)) / 2.0
    torch.testing.assert_close(
        bound(Evade((kd,), below=(below,), scales=(2.0,)))(out), hinge
    )
    assert float(hinge.min()) == 0.0 and float(hinge.max()) > 0.1


def test_o3_drift_is_the_mean_activation() -> None:
    out, clean = elsewhere(), W.classifier.extract(W.x)
    now, then = out.features["first"].mean(1), clean.features["first"].mean(1)
    torch.testing.assert_close(bound(Drift("first", "down"))(out), now)
    torch.testing.assert_close(bound(Drift("first", "up"))(out), -now)
    torch.testing.assert_close(bound(Drift("first", "away"))(out), -(now - then).abs())


def test_a_finding_is_attacked_while_the_others_stay() -> None:
    w = world((3, 7, 6), 4, ("finding", 2))
    clean = w.classifier.extract(w.x)
    assert clean.others is not None and clean.others.shape == (4, 3)
    loss = bound(CrossEntropy(), w)
    assert loss.margin is not None
    side = torch.where(clean.others > 0, 1.0, -1.0)
    turned = replace(clean, logits=clean.logits.flip(1))
    assert bool(
        (loss.margin(turned, slice(None)) > 0).all() or (clean.others.abs() < 1e-6).any()
    )
    lost = replace(turned, others=clean.others * torch.tensor([1.0, -1.0, 1.0]))
    assert bool((loss.margin(lost, slice(None)) < 0).all())
    hinge = (0.5 - side * lost.others).clamp_min(0).sum(1) if lost.others is not None else 0
    plain = -turned.logits.log_softmax(1).gather(1, w.goal.target[:, None])[:, 0]
    torch.testing.assert_close(loss(lost), plain + hinge)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            HFC(W.bank, layers=("relu#0", "relu1")),
            r"unknown layer 'relu1'; did you mean 'relu#1'\?",
        ),
        (
            HFC(W.bank, layers=()),
            "HFC needs the features of at least one layer, got none; give the classifier layers",
        ),
        (HFC(W.bank, weights=(1.0,)), "one weight for each of 3 layers, got 1"),
        (Guide(W.reference, W.labels[:-1]), "two or more guides with one label each"),
        (
            Guide(W.reference, torch.zeros_like(W.labels)),
            "clean images of every target class as guides",
        ),
        (Guide(replace(W.reference, features={}), W.labels), "unknown layer 'first'"),
        (
            HFC(MixtureBank(W.bank.mixtures)),
            (
                "must know the energies of the clean images that they were fitted to, got "
                "none; make them with MixtureBank.fit, or ask HFC for floor='none'"
            ),
        ),
        (Drift("middle"), "unknown layer 'middle'"),
        (DLR(rank=5), "rank must be 1 to 4, got 5"),
    ],
)
def test_refused(objective: Objective, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bound(objective)


def test_refused_without_features() -> None:
    clean = replace(W.classifier.extract(W.x), features={})
    for objective in (HFC(W.bank), Guide(W.reference, W.labels), Drift("first")):
        with pytest.raises(
            InputError,
            match="needs the features of at least one layer, got none; give the classifier layers",
        ):
            objective.bind(clean, W.goal, Noise(0, W.ids))
    with pytest.raises(InputError, match="layer"):
        Evade(W.detectors[:1]).bind(clean, W.goal, Noise(0, W.ids))(clean)


def test_refused_targets_without_a_mixture() -> None:
    two = world((3, 7, 6), 2)
    with pytest.raises(InputError, match=r"targets of the mixtures' classes \[0, 1\], got"):
        HFC(two.bank).bind(
            W.classifier.extract(W.x),
            Goal(W.goal.source, torch.full((4,), 4)),
            Noise(0, W.ids),
        )


@pytest.mark.parametrize("floor", ["mean", "0.5", -0.1, 1.5, True, None, math.nan])
def test_refused_floors(floor: Any) -> None:
    message = (
        "the floor of HFC must be median, none or a quantile in .0, 1., got .*; say floor: "
        "none for the paper's form"
    )
    with pytest.raises(InputError, match=message):
        HFC(W.bank, floor=floor)
    with pytest.raises(InputError, match=message):
        load_plan(
            {
                "data": "phantoms",
                "objectives": [{"name": "hfc-scheduled", "options": {"floor": floor}}],
            }
        )
    load_plan(
        {"data": "phantoms", "objectives": [{"name": "hfc", "options": {"floor": 0.25}}]}
    )


def test_refused_evasion_of_nothing() -> None:
    with pytest.raises(InputError, match="detectors to evade, got none"):
        Evade(())
    with pytest.raises(InputError, match="one number for each of 1 detectors, got 2"):
        Evade(W.detectors[:1], below=(1.0, 2.0))
    with pytest.raises(InputError, match="scales must be positive"):
        Evade(W.detectors[:1], scales=(0.0,))


def test_margin_stops_pushing_once_the_target_leads_by_kappa() -> None:
    out = replace(
        elsewhere(),
        logits=torch.zeros(4, 5, dtype=torch.float64).scatter(
            1, W.goal.target[:, None], 3.0
        ),
    )
    logits = out.logits.requires_grad_()
    (grad,) = torch.autograd.grad(
        bound(Margin(kappa=1.0))(replace(out, logits=logits)).sum(), logits
    )
    assert not bool(grad.any())
