"""Members: the networks that are attacked, or attacked with, and their training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from feathide.execution.digests import digest
from feathide.execution.graph import Task
from feathide.execution.store import Store
from feathide.models.weight_files import file_digest
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.work import trained
from feathide.plans.plan import Plan, slug

__all__ = [
    "Member",
    "member_tasks",
    "members",
]


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
