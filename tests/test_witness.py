"""The witness: adversarial training, what guards read of a second network, and what of an audit depends on it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feathide.adversary import Adversary
from feathide.classifier import FeatureClassifier
from feathide.detectors import Mahalanobis, MaxSoftmax, Witness
from feathide.errors import InputError
from feathide.geometry import L2, Linf
from feathide.models import build
from feathide.study.lab import PLAIN, Lab
from feathide.study.packing import packed, unpacked
from feathide.study.parts import ObjectivePlan
from feathide.study.plan import Cell, load_plan
from feathide.study.run import audit
from feathide.study.store import Store
from feathide.study.table import found_in
from feathide.types import Evidence, Outputs
from test_audit import PLAN, write_npz

CHANGES = {
    "objectives": ["plain", "evade:witness", "evade:maha"],
    "detectors": ["maha", "witness", "witness-joint"],
    "split": {"most": 16},
    "witness": {"train": {"epochs": 4, "augment": False}},
    "gates": "off",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A finished audit."""
    folder = tmp_path_factory.mktemp("witness")
    plan = load_plan({"data": str(write_npz(folder / "patches.npz")), **PLAN, **CHANGES})
    audit(plan, folder / "out")
    return Lab(plan, Store(folder / "out"))


def moved(shape: tuple[int, ...], threat: Linf | L2, scale: Tensor) -> tuple[Tensor, Tensor, nn.Module, Tensor]:
    """Random images and the change that an adversary makes to them, in units of the box."""
    model = build("tiny" if len(shape) == 3 else "tiny3d", channels=shape[0], outputs=2)
    x, y = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    harder = Adversary(threat, steps=3)(model, x, y, loss=F.cross_entropy, scale=scale, draw=0)
    return x, (harder - x) * scale.reshape(1, -1, *[1] * (x.ndim - 2)), model, harder


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 12, 10, 8)])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.7)])
def test_an_adversary_stays_in_the_ball_in_units_of_the_box(shape: tuple[int, ...], threat: Linf | L2) -> None:
    scale = torch.tensor([0.5, 2.0, 1.0][: shape[0]])
    x, change, model, harder = moved(shape, threat, scale)
    size = threat.size(change)
    assert (size <= threat.eps * (1 + 1e-4)).all() and (size > 0.5 * threat.eps).all()
    assert model.training  # as it was
    model.eval()
    y = torch.arange(6) % 2
    assert F.cross_entropy(model(harder), y) > F.cross_entropy(model(x), y)
    assert torch.equal(moved(shape, threat, scale)[3], harder)


def test_a_witness_is_shown_by_the_classifier_and_kept_in_files() -> None:
    one, other = (build("tiny", channels=1, outputs=2, seed=s).eval() for s in (0, 1))
    x = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    second = FeatureClassifier(other, "last")
    out = replace(FeatureClassifier(one, "stages"), witness=second).extract(x, batch_size=2)
    assert out.witness is not None
    assert torch.equal(out.witness.logits, second.extract(x, batch_size=2).logits)
    again = unpacked(packed(out, torch.arange(5).numpy()))
    assert again.witness is not None and torch.equal(again.witness.logits, out.witness.logits)
    assert list(again.witness.features) == list(out.witness.features) and list(again.features) == list(out.features)
    assert torch.equal(out[1:3].witness.logits, out.witness.logits[1:3])  # type: ignore[union-attr]


def said(guarded: list[int], witness: list[float]) -> Outputs:
    """What the guarded network decides and how sure the witness is of class 1."""
    z = torch.tensor(witness)
    return Outputs(
        F.one_hot(torch.tensor(guarded), 2) * 9.0, {}, witness=Outputs(torch.stack([torch.zeros_like(z), z], 1), {})
    )


def test_a_witness_is_as_suspicious_as_it_contradicts() -> None:
    score = Witness().score(said([0, 0, 1, 1], [-2.0, 2.0, -2.0, 2.0]))
    torch.testing.assert_close(score, torch.tensor([-2.0, 2.0, 2.0, -2.0]))  # the log-odds against the class
    out = replace(said([0], [2.0]), assumed=torch.tensor([1]))  # an attacker who is not there yet
    assert Witness().score(out).item() == pytest.approx(-2.0)


def test_what_is_learnt_inside_is_learnt_of_the_witness_for_the_guarded_class() -> None:
    random = torch.Generator().manual_seed(0)

    def outputs(n: int) -> Outputs:
        f = torch.randn(n, 3, generator=random).double()
        seen = Outputs(torch.randn(n, 2, generator=random).double(), {"w": f})
        return Outputs(torch.randn(n, 2, generator=random).double(), {}, witness=seen)

    train, clean, test = outputs(80), outputs(20), outputs(10)
    e = Evidence(train, torch.arange(80) % 2, clean, clean, clean)
    inner = Mahalanobis(combine="mean")
    of_witness = Evidence(
        *(p.witness if isinstance(p, Outputs) else p for p in (train, torch.arange(80) % 2, clean, clean, clean))
    )  # type: ignore[arg-type]
    assert torch.equal(Witness(inner=inner).fit(e).score(test), inner.fit(of_witness).score(test.witness))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="witness"):
        MaxSoftmax().fit(e) and Witness().fit(replace(e, clean=e.clean.witness))


def test_who_knows_the_witness_moves_its_verdict(lab: Lab) -> None:
    """The attack differentiates through both networks."""
    eps, (pgd,) = lab.budgets[0], [a for a in lab.plan.attacks if a.name == "pgd"]
    plain, aware = (Cell(pgd, ObjectivePlan(name=n), eps) for n in ("plain", "evade:witness"))
    score = {
        c.objective.name: lab.detector("witness", eps).score(lab.outputs(lab.condition(c), "test")[0]).mean()
        for c in (plain, aware)
    }
    assert score["evade:witness"] < score["plain"] - 0.01
    assert found_in(lab, aware).fooled.mean() >= found_in(lab, plain).fooled.mean() - 0.1


def test_only_what_reads_the_witness_depends_on_it(lab: Lab) -> None:
    changed = lab.plan.model_dump() | {"witness": {"steps": 3}}
    other = Lab(load_plan(changed), lab.store)
    without = Lab(load_plan({**changed, "detectors": ["maha"], "objectives": ["plain"]}), lab.store)
    eps, attack = lab.budgets[0], lab.plan.learnt_from
    plain, aware = Cell(attack, PLAIN, eps), Cell(attack, ObjectivePlan(name="evade:witness"), eps)
    assert other.witness_key != lab.witness_key and other.classifier_key == lab.classifier_key
    assert other.condition(plain) == lab.condition(plain) == without.condition(plain)
    assert other.condition(aware) != lab.condition(aware)
    assert len({x.outputs_key("clean", "test", 0) for x in (lab, other, without)}) == 3
    assert other.scores_key("maha", eps, "clean", "test") == lab.scores_key("maha", eps, "clean", "test")
    assert other.scores_key("witness", eps, "clean", "test") != lab.scores_key("witness", eps, "clean", "test")
    assert lab.observing(("maha",)).witness is None and lab.observer.witness is not None


def test_a_trained_witness_withstands_more_than_the_classifier(lab: Lab) -> None:
    """Plain attacks fool the classifier far more often than they bring the witness along."""
    eps = lab.budgets[0]
    found = found_in(lab, Cell(lab.plan.learnt_from, PLAIN, eps))
    out = lab.at(lab.condition(found.cell), "test", found.rows)
    assert out.witness is not None
    along = (out.witness.predicted.numpy() == found.target).mean()
    assert along < found.fooled.mean() - 0.2


def test_plans_name_a_network_of_the_zoo(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown architecture 'tinny'"):
        load_plan({"data": "phantoms", "witness": {"arch": "tinny"}})
    with pytest.raises(InputError, match=r"unknown field 'witness.step'; did you mean 'witness.steps'"):
        load_plan({"data": "phantoms", "witness": {"step": 2}})
