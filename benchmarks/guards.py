"""Attack one guard of a finished audit in every way at hand: ``python benchmarks/guards.py PLAN RUN --guard reference network``.

A guard whose gradient is hidden holds against gradient attacks and falls to one of the others. Prints Markdown: the share of the test images that slip
through at 10 % false alarms under each attack, and under the best one for each image.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from feathide.attacks import presets as recipes
from feathide.attacks.loop import Attack
from feathide.attacks.threats import ThreatModel
from feathide.metrics.intervals import proportion
from feathide.losses import Evade
from feathide.attacks.updates import Orthogonal, Selective
from feathide.pipeline.attacker import Attacker
from feathide.pipeline.context import Context
from feathide.execution.packing import scored
from feathide.plans.plan import load_plan
from feathide.execution.store import Store
from feathide.sanity.surrogate import surrogate_of


def attacks(
    threat: ThreatModel, hide: Evade, steps: int, queries: int
) -> Iterator[tuple[str, Attack]]:
    """All know the guard, except the one that comes from another network."""
    schedule = {"steps": steps, "step_size": 0.25, "decay": "cosine", "confidence": 0.01}
    pgd = recipes.pgd(threat, hide=hide, **schedule)
    yield f"evade, {steps} steps", pgd
    yield f"evade, {4 * steps} steps", replace(pgd, steps=4 * steps)
    yield f"evade, {steps} steps, 5 random starts", replace(pgd, restarts=5)
    yield f"10 x evade, {steps} steps", recipes.pgd(threat, hide=10.0 * hide, **schedule)
    yield f"selective, {steps} steps", replace(pgd, blend=Selective())
    yield f"orthogonal, {steps} steps", replace(pgd, blend=Orthogonal())
    yield (
        f"square, {queries} queries, no gradient",
        recipes.square(threat, hide=hide, queries=queries),
    )
    yield "transfer from a surrogate", recipes.pgd(threat, **schedule)
    yield (
        "evade, the whole box",
        replace(pgd, steps=2 * steps, threat=threat.scaled(1 / float(threat.eps))),
    )


def share(hits: np.ndarray, groups: np.ndarray) -> str:
    found = proportion(hits, groups=groups)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--guard", default="reference_network")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--most", type=int, default=60)
    args = parser.parse_args()
    context = Context(load_plan(args.plan), Store(args.run))
    out, rows = context.outputs.of("clean", "test")
    rows = rows[out.predicted.numpy() == context.data.labels[rows]][: args.most]
    x, goal = context.data.images(rows), context.data.goal(rows)
    observer, groups = context.networks.observing((args.guard,)), context.cases.patients[rows]
    for eps in context.limits.budgets:
        (guard,), (limit,), (scale,) = Attacker(context, eps).detectors([args.guard])
        print(
            f"\n{args.guard} at eps {eps:.5f}, {len(rows)} images\n\n| attack | slips through |\n|---|---|",
            flush=True,
        )
        worst = np.zeros(len(rows), bool)
        hide = Evade((guard,), below=(limit,), scales=(scale,))
        for name, attack in attacks(context.limits.threat(eps), hide, args.steps, args.queries):
            attacked = surrogate_of(context) if name.startswith("transfer") else observer
            found = attack(
                attacked,
                x,
                goal,
                ids=context.data.ids(rows),
                seed=context.plan.seed,
                grid=context.limits.grid,
            )
            seen = observer.observe(found.adversarial)
            slips = (seen.predicted == goal.target.cpu()).numpy() & (
                scored(guard, seen) <= limit
            )
            if not name.endswith("whole box"):
                worst |= slips
            print(f"| {name} | {share(slips, groups)} |", flush=True)
        print(f"| the best of these for each image | {share(worst, groups)} |", flush=True)


if __name__ == "__main__":
    main()
