"""Juries: one member is that member alone; the sum of objectives fools all; rates are over what
both networks get right.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from feathide.analysis.jury import Jury, Of, against_all, heard
from feathide.analysis.members import Member, lab_with, member_tasks, members
from feathide.analysis.transfer import craft_tasks, transfer_frame, trial_tasks
from feathide.attacks.presets import pgd
from feathide.attacks.threats import Linf
from feathide.execution.engine import run
from feathide.execution.store import Store
from feathide.losses import HFC, CrossEntropy, Margin
from feathide.mixtures import MixtureBank
from feathide.models.classifier import FeatureClassifier
from feathide.pipeline.context import context_of
from feathide.pipeline.listing import tasks
from feathide.pipeline.rows import with_needs
from feathide.plans.plan import load_plan
from feathide.types import Goal
from worlds.linear import PLAN, SHAPES, images, linear


def pair(shape: tuple[int, ...]) -> tuple[FeatureClassifier, FeatureClassifier]:
    return linear(shape, seed=1), linear(shape, seed=2)


def goal_of(classifier: FeatureClassifier, x: torch.Tensor) -> Goal:
    source = classifier(x).predicted
    return Goal(source, (source + 1) % 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_jury_of_one_is_that_one(shape: tuple[int, ...]) -> None:
    one, _ = pair(shape)
    x = images(5, shape)
    train = one.extract(images(60, shape, seed=1))
    bank = MixtureBank.fit(train, train.predicted)
    goal = goal_of(one, x)
    attack = pgd(Linf(0.03), steps=5, hide=0.3 * HFC(bank))
    ids = list("abcde")
    alone = attack(one, x, goal, ids=ids)
    jury = against_all([attack])(Jury((one,)), x, goal, ids=ids)
    assert torch.allclose(jury.adversarial, alone.adversarial, atol=1e-12)
    assert torch.allclose(jury.hide, alone.hide) and torch.allclose(jury.trace, alone.trace)


def test_members_are_heard_as_they_speak() -> None:
    classifiers = pair((3, 7, 6))
    x = images(4, (3, 7, 6))
    said = Jury(classifiers)(x)
    for i, classifier in enumerate(classifiers):
        own = heard(said, i)
        assert torch.equal(own.logits, classifier(x).logits)
        assert list(own.features) == ["features"] and torch.equal(
            own.last, classifier(x).last
        )


def test_a_sum_is_fulfilled_when_all_are_fooled() -> None:
    shape = (1, 5, 4, 3)
    classifiers = pair(shape)
    x = images(30, shape)
    with torch.no_grad():
        agree = classifiers[0](x).predicted == classifiers[1](x).predicted
    x = x[agree]
    goal, ids = goal_of(classifiers[0], x), [str(i) for i in range(len(x))]
    attacks = [pgd(Linf(0.12), steps=20), pgd(Linf(0.12), steps=20, objective=Margin())]
    both = against_all(attacks)(Jury(classifiers), x, goal, ids=ids)
    fooled = torch.stack(
        [c(both.adversarial).predicted == goal.target for c in classifiers]
    )
    assert torch.equal(both.fooled, fooled.all(0)) and both.fooled.float().mean() > 0.5
    single = attacks[0](classifiers[0], x, goal, ids=ids).adversarial
    assert (
        fooled.all(0).sum()
        > torch.stack([c(single).predicted == goal.target for c in classifiers])
        .all(0)
        .sum()
    )


def test_of_asks_its_member_only() -> None:
    classifiers, x = pair((1, 8)), images(3, (1, 8))
    jury, goal = Jury(classifiers), goal_of(pair((1, 8))[0], x)
    for i, classifier in enumerate(classifiers):
        bound = Of(i, CrossEntropy()).bind(jury(x), goal, None)  # type: ignore[arg-type]
        alone = CrossEntropy().bind(classifier(x), goal, None)  # type: ignore[arg-type]
        assert torch.equal(bound(jury(x)), alone(classifier(x)))
        assert bound.hide is None and bound.margin is not None


def test_members_are_all_that_was_asked_for() -> None:
    found = members(["tiny", "resnet18"], [0, 1], halves=True)
    assert len(found) == len(set(found)) == len({m.name for m in found}) == 8
    assert Member("tiny", 0, 2) in found and members(["tiny"], [3]) == (Member("tiny", 3),)


def test_substitutes_of_a_finding_learn_all_findings(tmp_path: Path) -> None:
    """The same training as that of the classifier: of several findings, one output for each; of
    one, as its head says.
    """
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 60), ("val", 16), ("test", 60)):
        labels = rng.integers(0, 2, (n, 3))
        x = rng.normal(100, 10, (n, 16, 16))
        x[:, :, :5] += 60 * labels[:, :1, None]
        x[:, :, 6:11] += 60 * labels[:, 1:2, None]
        x[:, :, 11:] += 60 * labels[:, 2:, None]
        arrays |= {
            f"{split}_images": x.clip(0, 255).astype(np.uint8),
            f"{split}_labels": labels,
        }
    np.savez(tmp_path / "findings.npz", **arrays)
    network = {
        **PLAN["network"],
        "head": "finding:1",
        "train": {"epochs": 2, "augment": False},
    }
    plan = load_plan(
        {
            **PLAN,
            "data": str(tmp_path / "findings.npz"),
            "network": network,
            "detectors": ["msp"],
            "sanity_checks": "off",
            "attacks": ["fgsm"],
            "objectives": ["plain"],
        }
    )
    store = Store(tmp_path / "out")
    context = context_of(plan.model_dump_json(), store)
    chosen = members(["tiny"], [0, 1])
    run(member_tasks(context, chosen), store)
    for member in chosen:
        substitute = lab_with(context, member)
        x = context.data.images(context.data.rows("test")[:4])
        out = substitute.networks.classifier.extract(x)
        assert (
            out.logits.shape == (4, 2)
            and out.others is not None
            and out.others.shape == (4, 2)
        )
    contexts = [lab_with(context, member) for member in chosen]
    for other in contexts:
        run(with_needs(craft_tasks(other), tasks(other)), store)
    run(trial_tasks(contexts, jury=False), store)
    table = transfer_frame(
        [(m.name, other) for m, other in zip(chosen, contexts, strict=True)], jury=False
    )
    assert set(table.metric) == {"success", "slips_through_fpr10"} and set(
        table.versus
    ) == {m.name for m in chosen}
