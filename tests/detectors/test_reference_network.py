"""The reference network: adversarial training, what guards read of a second network, and what of
an audit depends on it.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feathide.attacks.threats import L2, Linf
from feathide.auditing.run import audit
from feathide.detectors import Mahalanobis, MaxSoftmax, ReferenceNetwork
from feathide.errors import InputError
from feathide.execution.packing import packed, unpacked
from feathide.execution.store import Store
from feathide.models.classifier import FeatureClassifier
from feathide.models.zoo import build
from feathide.pipeline.conditions import PLAIN
from feathide.pipeline.context import Context
from feathide.pipeline.stored import found_in
from feathide.plans.plan import Cell, load_plan
from feathide.plans.sections import ObjectivePlan
from feathide.training.adversarial import Adversary
from feathide.types import Evidence, Outputs
from worlds.audits import PLAN, write_npz

CHANGES = {
    "objectives": ["plain", "evade:reference-network", "evade:maha"],
    "detectors": ["maha", "reference-network", "reference-network-joint"],
    "split": {"most": 16},
    "reference_network": {"train": {"epochs": 4, "augment": False}},
    "sanity_checks": "off",
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A finished audit."""
    folder = tmp_path_factory.mktemp("reference-network")
    plan = load_plan({"data": str(write_npz(folder / "patches.npz")), **PLAN, **CHANGES})
    audit(plan, folder / "out")
    return Context(plan, Store(folder / "out"))


def moved(
    shape: tuple[int, ...], threat: Linf | L2, scale: Tensor
) -> tuple[Tensor, Tensor, nn.Module, Tensor]:
    """Random images and the change that an adversary makes to them, in units of the box."""
    model = build("tiny" if len(shape) == 3 else "tiny3d", channels=shape[0], outputs=2)
    x, y = (
        torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)),
        torch.arange(6) % 2,
    )
    harder = Adversary(threat, steps=3)(
        model, x, y, loss=F.cross_entropy, scale=scale, draw=0
    )
    return x, (harder - x) * scale.reshape(1, -1, *[1] * (x.ndim - 2)), model, harder


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 10, 8)])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.7)])
def test_an_adversary_stays_in_the_ball_in_units_of_the_box(
    shape: tuple[int, ...], threat: Linf | L2
) -> None:
    scale = torch.tensor([0.5, 2.0, 1.0][: shape[0]])
    x, change, model, harder = moved(shape, threat, scale)
    size = threat.size(change)
    assert (size <= threat.eps * (1 + 1e-4)).all() and (size > 0.5 * threat.eps).all()
    assert model.training  # as it was
    model.eval()
    y = torch.arange(6) % 2
    assert F.cross_entropy(model(harder), y) > F.cross_entropy(model(x), y)
    assert torch.equal(moved(shape, threat, scale)[3], harder)


def test_a_reference_network_is_shown_by_the_classifier_and_kept_in_files() -> None:
    one, other = (build("tiny", channels=1, outputs=2, seed=s).eval() for s in (0, 1))
    x = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    second = FeatureClassifier(other, "last")
    out = replace(FeatureClassifier(one, "stages"), reference_network=second).extract(
        x, batch_size=2
    )
    assert out.reference_network is not None
    assert torch.equal(out.reference_network.logits, second.extract(x, batch_size=2).logits)
    again = unpacked(packed(out, torch.arange(5).numpy()))
    assert again.reference_network is not None and torch.equal(
        again.reference_network.logits, out.reference_network.logits
    )
    assert list(again.reference_network.features) == list(
        out.reference_network.features
    ) and list(again.features) == list(out.features)
    assert torch.equal(out[1:3].reference_network.logits, out.reference_network.logits[1:3])  # type: ignore[union-attr]


def said(guarded: list[int], reference_network: list[float]) -> Outputs:
    """What the guarded network decides and how sure the reference network is of class 1."""
    z = torch.tensor(reference_network)
    return Outputs(
        F.one_hot(torch.tensor(guarded), 2) * 9.0,
        {},
        reference_network=Outputs(torch.stack([torch.zeros_like(z), z], 1), {}),
    )


def test_a_reference_network_is_as_suspicious_as_it_contradicts() -> None:
    score = ReferenceNetwork().score(said([0, 0, 1, 1], [-2.0, 2.0, -2.0, 2.0]))
    # the log-odds against the class
    torch.testing.assert_close(score, torch.tensor([-2.0, 2.0, 2.0, -2.0]))
    # an attacker who is not there yet
    out = replace(said([0], [2.0]), assumed=torch.tensor([1]))
    assert ReferenceNetwork().score(out).item() == pytest.approx(-2.0)


def test_what_is_learnt_inside_is_learnt_of_the_reference_network_for_the_guarded_class() -> (
    None
):
    random = torch.Generator().manual_seed(0)

    def outputs(n: int) -> Outputs:
        f = torch.randn(n, 3, generator=random).double()
        seen = Outputs(torch.randn(n, 2, generator=random).double(), {"w": f})
        return Outputs(
            torch.randn(n, 2, generator=random).double(), {}, reference_network=seen
        )

    train, clean, test = outputs(80), outputs(20), outputs(10)
    e = Evidence(train, torch.arange(80) % 2, clean, clean, clean)
    inner = Mahalanobis(combine="mean")
    of_reference_network = Evidence(
        *(
            p.reference_network if isinstance(p, Outputs) else p
            for p in (train, torch.arange(80) % 2, clean, clean, clean)
        )
    )  # type: ignore[arg-type]
    assert torch.equal(
        ReferenceNetwork(inner=inner).fit(e).score(test),
        inner.fit(of_reference_network).score(test.reference_network),
    )  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reference network"):
        MaxSoftmax().fit(e) and ReferenceNetwork().fit(
            replace(e, clean=e.clean.reference_network)
        )


def test_who_knows_the_reference_network_moves_its_verdict(context: Context) -> None:
    """The attack differentiates through both networks."""
    eps, (pgd,) = (
        context.limits.budgets[0],
        [a for a in context.plan.attacks if a.name == "pgd"],
    )
    plain, aware = (
        Cell(pgd, ObjectivePlan(name=n), eps) for n in ("plain", "evade:reference-network")
    )
    score = {
        c.objective.name: context.fitted.detector("reference-network", eps)
        .score(context.outputs.of(context.steps.condition(c), "test")[0])
        .mean()
        for c in (plain, aware)
    }
    assert score["evade:reference-network"] < score["plain"] - 0.01
    assert (
        found_in(context, aware).fooled.mean()
        >= found_in(context, plain).fooled.mean() - 0.1
    )


def test_only_what_reads_the_reference_network_depends_on_it(context: Context) -> None:
    changed = context.plan.model_dump() | {"reference_network": {"steps": 3}}
    other = Context(load_plan(changed), context.store)
    without = Context(
        load_plan({**changed, "detectors": ["maha"], "objectives": ["plain"]}),
        context.store,
    )
    eps, attack = context.limits.budgets[0], context.plan.learnt_from
    plain, aware = (
        Cell(attack, PLAIN, eps),
        Cell(attack, ObjectivePlan(name="evade:reference-network"), eps),
    )
    assert (
        other.steps.reference_network.key != context.steps.reference_network.key
        and other.steps.train.key == context.steps.train.key
    )
    assert (
        other.steps.condition(plain)
        == context.steps.condition(plain)
        == without.steps.condition(plain)
    )
    assert other.steps.condition(aware) != context.steps.condition(aware)
    assert (
        len({x.steps.extract("clean", "test").keys[0] for x in (context, other, without)})
        == 3
    )
    assert (
        other.steps.score("maha", eps, "clean", "test").key
        == context.steps.score("maha", eps, "clean", "test").key
    )
    assert (
        other.steps.score("reference-network", eps, "clean", "test").key
        != context.steps.score("reference-network", eps, "clean", "test").key
    )
    assert (
        context.networks.observing(("maha",)).reference_network is None
        and context.networks.observer.reference_network is not None
    )


def test_a_trained_reference_network_withstands_more_than_the_classifier(
    context: Context,
) -> None:
    """Plain attacks fool the classifier far more often than they bring the reference network
    along.
    """
    eps = context.limits.budgets[0]
    found = found_in(context, Cell(context.plan.learnt_from, PLAIN, eps))
    out = context.outputs.at(context.steps.condition(found.cell), "test", found.rows)
    assert out.reference_network is not None
    along = (out.reference_network.predicted.numpy() == found.target).mean()
    assert along < found.fooled.mean() - 0.2


def test_plans_name_a_network_of_the_zoo(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown architecture 'tinny'"):
        load_plan({"data": "phantoms", "reference_network": {"arch": "tinny"}})
    with pytest.raises(
        InputError,
        match=r"unknown field 'reference_network.step'; did you mean 'reference_network.steps'",
    ):
        load_plan({"data": "phantoms", "reference_network": {"step": 2}})
