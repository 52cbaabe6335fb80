"""What a plan may not ask: features of layers that nobody can watch, gradients of code that has none, attacks that hide where they cannot."""

from collections.abc import Mapping

import torch

from feathide.catalog import BLIND, DETECTORS, OBJECTIVES, OUR_ATTACKS
from feathide.errors import InputError, expected
from feathide.study.lab import Lab
from feathide.study.stages import plain_only
from feathide.types import Evidence, Outputs

__all__ = ["check_fitness", "check_hiding"]


def check_hiding(lab: Lab) -> None:
    """Refuse an objective that no attack of the plan can carry, or not the one that its weight is tuned with, where attacks of others, and not only the
    shortness of ours, are the reason."""
    foreign, tuned = [a for a in lab.plan.attacks if a.name not in OUR_ATTACKS], lab.plan.learnt_from
    for objective in lab.plan.objectives:
        if (
            objective.weight == "auto"
            and tuned.name not in OUR_ATTACKS
            and (reason := plain_only(lab, tuned, objective))
        ):
            raise InputError(f"the weight of {objective.name} is tuned with train_attack: {reason}")
        reasons = [plain_only(lab, attack, objective) for attack in (*foreign, *lab.plan.attacks)]
        if foreign and all(reasons):
            raise InputError(
                f"no attack of the plan can hide by {objective.name}: {reasons[0]}, or leave {objective.name} out"
            )


def check_fitness(lab: Lab) -> None:
    """Refuse, before any long work, attacks and detectors that need what the classifier does not show. Raises ``InputError`` with the reason."""
    x = lab.images(lab.rows("train")[:2]).requires_grad_()
    with torch.enable_grad():
        out = lab.classifier(x)
    if not out.logits.requires_grad or any("no gradient" in caveat for caveat in lab.check_classifier()):
        _without_gradients(lab)
    if not out.features:
        _without_features(lab, out.logits.shape[1])


def _without_gradients(lab: Lab) -> None:
    names = dict.fromkeys([a.name for a in lab.plan.attacks] + [lab.plan.train_attack])
    refused = [n for n in names if ":" not in n and n not in BLIND]
    known = " and ".join(BLIND)
    if refused:
        raise expected(
            f"a network without gradients can be attacked by {known} only",
            got=", ".join(refused),
            do="choose these, for train_attack as well",
        )
    if lab.plan.gates != "off":
        raise expected(
            "the gates attack by gradients, which the network does not have",
            got=f"gates: {lab.plan.gates}",
            do="say gates: off",
        )


def _without_features(lab: Lab, classes: int) -> None:
    needs: Mapping[str, str] = {o.name: OBJECTIVES[o.kind].needs for o in lab.plan.objectives}
    hiding = [name for name, need in needs.items() if need in ("bank", "train")]
    if hiding:
        raise expected(
            "the network shows no layers (layers: []), so that there are no features to hide in",
            got=", ".join(hiding),
            do="choose plain or evade",
        )
    logits = torch.randn(30, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = logits[:, None] * torch.linspace(0.5, 1.5, 20).double()[:, None]
    out = Outputs(logits, {}, draws, witness=Outputs(logits, {}), statistics=logits, squeezed=draws[:, :2])
    for name in lab.plan.detectors:
        try:
            DETECTORS[name]().fit(Evidence(out, torch.arange(30) % classes, out, out, out)).score(out)
        except InputError as error:
            raise InputError(
                f"detector {name} reads features, and the network shows no layers (layers: []): {error}"
            ) from None
