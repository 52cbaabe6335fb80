"""An attacker without the network: images crafted on substitutes, tried on victims, for every
pair; and on several substitutes at once.

A ``Jury`` shows several classifiers as one, and ``Of(i, objective)`` is an objective asked of its
i-th member, so that an ensemble of substitutes is ``Of(0, a) + Of(1, b)``, the sum of their
objectives, walked by the one loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from feathide.attacks.iterate import Classifier
from feathide.attacks.loop import Attack
from feathide.catalog import OBJECTIVES
from feathide.data.noise import Noise
from feathide.execution.digests import digest
from feathide.execution.engine import Task
from feathide.execution.packing import packed, scored, unpacked
from feathide.execution.store import Store
from feathide.losses import BoundLoss, Loss, Objective, Weighted
from feathide.metrics.statistics import Cut, proportion, share_at, slipping
from feathide.models.weight_files import file_digest
from feathide.pipeline.context import Context, context_of, noisy_at
from feathide.pipeline.rows import entry, first_cells, frame
from feathide.pipeline.steps import (
    attack_of,
    decode,
    encode,
    observe,
    tasks,
    trained,
    weight_of,
)
from feathide.pipeline.stored import cuts_of
from feathide.plans.plan import Cell, Plan, slug
from feathide.types import Aim, Box, Outputs

__all__ = [
    "Jury",
    "Member",
    "Of",
    "craft_tasks",
    "member_tasks",
    "members",
    "transfer_frame",
    "trial_tasks",
]

ALL = "all others"


# --- several classifiers as one -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Jury:
    """Classifiers of the same images as one. The logits are the members' mean; member i's own are
    the feature ``i:logits``, its layers ``i:layer``.
    """

    members: tuple[Classifier, ...]

    @property
    def box(self) -> Box:
        return self.members[0].box

    def __call__(self, x: Tensor) -> Outputs:
        said = [member(x) for member in self.members]
        features = {
            f"{i}:{n}": f for i, out in enumerate(said) for n, f in out.features.items()
        }
        features |= {f"{i}:logits": out.logits for i, out in enumerate(said)}
        return Outputs(torch.stack([out.logits for out in said]).mean(0), features)


def heard(out: Outputs, i: int) -> Outputs:
    """What member i of a jury says."""
    own = {
        n.partition(":")[2]: f
        for n, f in out.features.items()
        if n.partition(":")[0] == str(i)
    }
    return Outputs(own.pop("logits"), own)


@dataclass(frozen=True, eq=False)
class Of(Objective):
    """``objective`` of what the ``member``-th classifier of a jury says. In a sum the wish is
    fulfilled once every member is fooled.
    """

    member: int
    objective: Objective

    def bind(self, clean: Outputs, goal: Aim, noise: Noise) -> BoundLoss:
        bound = self.objective.bind(heard(clean, self.member), goal, noise)

        def of(loss: Loss | None) -> Loss | None:
            return (
                None
                if loss is None
                else lambda out, rows: loss(heard(out, self.member), rows)
            )

        return BoundLoss(
            of(bound.fool),
            of(bound.margin),
            of(bound.hide),
            f"{bound.name} of {self.member}",
        )


def against_all(attacks: Sequence[Attack]) -> Attack:
    """One attack on a jury: the step schedule of the first of ``attacks``, the sum of all
    objectives.
    """
    asked = tuple(Of(i, attack.objective) for i, attack in enumerate(attacks))
    return replace(attacks[0], objective=Weighted(asked, (1.0,) * len(asked)))


# --- members: the same study with other networks ------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A classifier to attack or to attack with: an architecture, the seed of its training, and
    which half of the training patients it saw (0: all).
    """

    arch: str
    seed: int = 0
    half: int = 0

    @property
    def name(self) -> str:
        return f"{self.arch}, seed {self.seed}" + (
            f", half {self.half}" if self.half else ""
        )


def members(
    archs: Sequence[str], seeds: Sequence[int], *, halves: bool = False
) -> tuple[Member, ...]:
    """Every architecture with every seed and, with ``halves``, once more on either half of the
    training patients.
    """
    found = [Member(a, s) for a in archs for s in seeds]
    return tuple(
        found + ([Member(a, seeds[0], h) for a in archs for h in (1, 2)] if halves else [])
    )


def _weights_key(context: Context, member: Member) -> str:
    n = context.plan.network
    about = [context.cases.digest, n.head, n.train, n.window, member]
    if n.start_from is not None:
        about += [file_digest(n.start_from), n.rename]
    return f"members/{slug(member.arch)}-{digest(about)}"


def member_tasks(context: Context, chosen: Sequence[Member]) -> list[Task]:
    """Train each member once; its weights lie in a file of its own."""
    json = context.plan.model_dump_json()
    return [
        Task(
            _weights_key(context, m),
            (),
            partial(_train_member, json, m),
            "train a substitute",
            m.name,
            200,
        )
        for m in chosen
    ]


def _train_member(json: str, member: Member, store: Store) -> Mapping[str, np.ndarray]:
    context = context_of(json, store)
    cases, n = context.cases, context.plan.network
    # only the architecture of the weights can start from them
    same = n.start_from is not None and member.arch == n.arch
    if member.half:
        cases = cases.take(
            np.flatnonzero(
                (cases.splits != "train") | (_halves(cases.patients) == member.half)
            )
        )
    result = trained(
        context,
        member.arch,
        n.train if same else n.train.from_scratch,
        weights=n.start_from if same else None,
        rename=n.rename if same else None,
        cases=cases,
        seed=member.seed,
        out=_weights(context, member),
    )
    return {"val_accuracy": np.asarray(result.val_accuracy)}


def _halves(patients: np.ndarray) -> np.ndarray:
    """1 or 2 for each row, by patient."""
    names, number = np.unique(patients.astype(str), return_inverse=True)
    return 1 + np.random.default_rng(0).permutation(len(names))[number] % 2


def _weights(context: Context, member: Member) -> Path:
    return context.store.path(_weights_key(context, member), ".safetensors")


def lab_with(context: Context, member: Member) -> Context:
    """The same study with the member's network: the same images, parts, budgets, attacks and
    detectors.
    """
    network = context.plan.network.model_copy(
        update={
            "arch": member.arch,
            "weights": str(_weights(context, member)),
            # of the training alone
            "start_from": None,
            "rename": None,
            "train": context.plan.network.train.from_scratch,
        }
    )
    plan: Plan = context.plan.model_copy(update={"network": network})
    return Context(plan, context.store)


# --- crafting and trying ------------------------------------------------------------------------


def followed(context: Context) -> list[Cell]:
    """The attacks that are crafted: those of the plan at its first budget that are one ``Attack``
    and know no detector.
    """
    found = [
        c for c in first_cells(context) if OBJECTIVES[c.objective.kind].needs != "detectors"
    ]
    return [
        c
        for c in found
        if isinstance(attack_of(context, c, None), Attack) and c.attack.name != "noise"
    ]


def images_keys(context: Context, cell: Cell) -> tuple[str, ...]:
    return context.images_keys(context.condition(cell), "test")


def craft_tasks(context: Context) -> list[Task]:
    """The audit's tasks of one member: its attacks, and what its guards need to judge."""
    keys = {key for cell in followed(context) for key in images_keys(context, cell)}
    eps = context.budgets[0]
    keys |= {
        context.scores_key(d, eps, c, "calibration")
        for d in context.plan.detectors
        for c in ("clean", noisy_at(eps))
    }
    keys |= set(context.outputs_keys("clean", "test"))
    return [task for task in tasks(context) if task.key in keys]


def _jury_key(contexts: Sequence[Context], cell: Cell, index: int) -> str:
    about = [context.condition(cell) for context in contexts]
    return f"transfer/jury-{digest(about)}/test-{index:04d}"


def _trial_key(victim: Context, images: str) -> str:
    return f"transfer/trial-{digest([victim.base, images])}"


def trial_tasks(contexts: Sequence[Context], *, jury: bool) -> list[Task]:
    """Every member's images shown to every member and, with ``jury``, images crafted on all
    others at once.
    """
    found: dict[str, Task] = {}
    for victim in contexts:
        others = [context for context in contexts if context is not victim]
        for cell in followed(victim):
            shown: dict[str, tuple[str, ...]] = {
                key: () for context in contexts for key in images_keys(context, cell)
            }
            if jury and len(others) > 1:
                crafted = [
                    _jury_task(others, cell, i)
                    for i in range(victim.batches("test", attacked=True))
                ]
                found |= {task.key: task for task in crafted}
                shown |= {task.key: (task.key,) for task in crafted}
            json = victim.plan.model_dump_json()
            for key, needs in shown.items():
                task = Task(
                    _trial_key(victim, key),
                    needs,
                    partial(_try, json, key),
                    "try on the victims",
                    cell.name,
                )
                found[task.key] = task
    return list(found.values())


def _jury_task(contexts: Sequence[Context], cell: Cell, index: int) -> Task:
    plans = [context.plan.model_dump_json() for context in contexts]
    passes = attack_of(contexts[0], cell, None).passes * len(contexts)
    work = partial(_craft_on_all, plans, cell, index)
    return Task(
        _jury_key(contexts, cell, index), (), work, "craft on all others", cell.name, passes
    )


def _craft_on_all(
    plans: Sequence[str], cell: Cell, index: int, store: Store
) -> Mapping[str, np.ndarray]:
    contexts = [Context(Plan.model_validate_json(json), store) for json in plans]
    first, rows = contexts[0], contexts[0].batch("test", index, attacked=True)
    for context in contexts:
        rows = rows[
            context.at("clean", "test", rows).predicted.numpy() == context.labels[rows]
        ]
    if not len(rows):
        return {"rows": rows, "target": rows}
    goal, x = first.goal(rows), first.images(rows)
    attacks = [attack_of(context, cell, weight_of(context, cell)) for context in contexts]
    attack = against_all([each for each in attacks if isinstance(each, Attack)])
    found = attack(
        Jury(tuple(context.classifier for context in contexts)),
        x,
        goal,
        **first.terms(rows, x),
    )
    image = encode(found.adversarial, first.grid, first.cases.box)
    return {"rows": rows, "target": goal.target.cpu().numpy(), "image": image}


def _try(json: str, images: str, store: Store) -> Mapping[str, np.ndarray]:
    victim = context_of(json, store)
    crafted = store.load(images)
    rows = crafted["rows"]
    if not len(rows):
        return {"rows": rows, "target": crafted["target"]}
    x = decode(crafted["image"], victim.grid, victim.cases.box).to(victim.device)
    return {**packed(observe(victim.observer, x), rows), "target": crafted["target"]}


def transfer_frame(contexts: Sequence[tuple[str, Context]], *, jury: bool) -> pd.DataFrame:
    """The table: for each attack, victim (``classifier``) and substitute (``versus``) ``success``
    and, for each guard of the victim, ``slips_through_fpr10``, over the test images that both
    networks get right. Where both are the same the attacker has the network itself.
    """
    entries = []
    for name, victim in contexts:
        others = [context for _, context in contexts if context is not victim]
        limits = {
            d: cuts_of(victim, d, victim.budgets[0])["fpr10"] for d in victim.plan.detectors
        }
        for cell in followed(victim):
            sources: list[tuple[str, Sequence[str]]] = [
                (n, images_keys(context, cell)) for n, context in contexts
            ]
            if jury and len(others) > 1:
                sources.append(
                    (
                        ALL,
                        [
                            _jury_key(others, cell, i)
                            for i in range(victim.batches("test", attacked=True))
                        ],
                    )
                )
            for substitute, keys in sources:
                entries += _judged(
                    victim, cell, keys, limits, victim_name=name, substitute=substitute
                )
    return frame(entries)


def _judged(
    victim: Context,
    cell: Cell,
    keys: Sequence[str],
    limits: Mapping[str, Cut],
    *,
    victim_name: str,
    substitute: str,
) -> list[dict[str, Any]]:
    loaded = [
        a
        for a in (victim.store.load(_trial_key(victim, k)) for k in keys)
        if len(a["rows"])
    ]
    if not loaded:
        return []
    out, rows = (
        Outputs.cat([unpacked(a) for a in loaded]),
        np.concatenate([a["rows"] for a in loaded]),
    )
    right = victim.at("clean", "test", rows).predicted.numpy() == victim.labels[rows]
    fooled = out.predicted.numpy() == np.concatenate([a["target"] for a in loaded])
    groups = victim.cases.patients[rows].astype(str)[right]
    knowledge = (
        OBJECTIVES[cell.objective.kind].knowledge
        if substitute == victim_name
        else "transfer"
    )
    more: dict[str, Any] = {
        "cell": cell,
        "knowledge": knowledge,
        "classifier": victim_name,
        "versus": substitute,
    }
    found = [entry(victim, "success", proportion(fooled[right], groups=groups), **more)]
    for detector, limit in limits.items():
        score, through = (
            scored(victim.detector(detector, cell.eps), out)[right],
            fooled[right],
        )
        share = share_at(limit, slipping(through, score), groups=groups)
        found.append(entry(victim, "slips_through_fpr10", share, detector=detector, **more))
    return found
