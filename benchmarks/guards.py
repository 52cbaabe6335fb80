"""Attack one guard of a finished audit in every way at hand: ``python benchmarks/guards.py PLAN RUN --guard witness``.

A guard whose gradient is hidden holds against gradient attacks and falls to one of the others. Prints Markdown: the share of the test images that slip
through at 10 % false alarms under each attack, and under the best one for each image.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from feathide import recipes
from feathide.attack import Attack
from feathide.geometry import ThreatModel
from feathide.metrics import proportion
from feathide.objectives import Evade
from feathide.rules import Orthogonal, Selective
from feathide.study.lab import Attacker, Lab
from feathide.study.packing import scored
from feathide.study.plan import load_plan
from feathide.study.stages import observe
from feathide.study.store import Store
from feathide.study.surrogate import surrogate_of


def attacks(threat: ThreatModel, hide: Evade, steps: int, queries: int) -> Iterator[tuple[str, Attack]]:
    """All know the guard, except the one that comes from another network."""
    walk = {"steps": steps, "step_size": 0.25, "decay": "cosine", "confidence": 0.01}
    pgd = recipes.pgd(threat, hide=hide, **walk)
    yield f"evade, {steps} steps", pgd
    yield f"evade, {4 * steps} steps", replace(pgd, steps=4 * steps)
    yield f"evade, {steps} steps, 5 random starts", replace(pgd, restarts=5)
    yield f"10 x evade, {steps} steps", recipes.pgd(threat, hide=10.0 * hide, **walk)
    yield f"selective, {steps} steps", replace(pgd, blend=Selective())
    yield f"orthogonal, {steps} steps", replace(pgd, blend=Orthogonal())
    yield f"square, {queries} queries, no gradient", recipes.square(threat, hide=hide, queries=queries)
    yield "transfer from a surrogate", recipes.pgd(threat, **walk)
    yield "evade, the whole box", replace(pgd, steps=2 * steps, threat=threat.scaled(1 / float(threat.eps)))


def share(hits: np.ndarray, groups: np.ndarray) -> str:
    found = proportion(hits, groups=groups)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--guard", default="witness")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--most", type=int, default=60)
    args = parser.parse_args()
    lab = Lab(load_plan(args.plan), Store(args.run))
    out, rows = lab.outputs("clean", "test")
    rows = rows[out.predicted.numpy() == lab.labels[rows]][: args.most]
    x, goal = lab.images(rows), lab.goal(rows)
    observer, groups = lab.observing((args.guard,)), lab.cases.patients[rows]
    for eps in lab.budgets:
        (guard,), (limit,), (scale,) = Attacker(lab, eps).detectors([args.guard])
        print(
            f"\n{args.guard} at eps {eps:.5f}, {len(rows)} images\n\n| attack | slips through |\n|---|---|", flush=True
        )
        worst = np.zeros(len(rows), bool)
        hide = Evade((guard,), below=(limit,), scales=(scale,))
        for name, attack in attacks(lab.threat(eps), hide, args.steps, args.queries):
            attacked = surrogate_of(lab) if name.startswith("transfer") else observer
            found = attack(attacked, x, goal, ids=lab.ids(rows), seed=lab.plan.seed, grid=lab.grid)
            seen = observe(observer, found.adversarial)
            slips = (seen.predicted == goal.target.cpu()).numpy() & (scored(guard, seen) <= limit)
            if not name.endswith("whole box"):
                worst |= slips
            print(f"| {name} | {share(slips, groups)} |", flush=True)
        print(f"| the best of these for each image | {share(worst, groups)} |", flush=True)


if __name__ == "__main__":
    main()
