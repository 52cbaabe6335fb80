"""Why two audits do not share their work: step by step, the names of what differs."""

from collections.abc import Iterator
from pathlib import Path

from feathide.auditing.compare import paired_budgets, paired_cells
from feathide.auditing.export import finished
from feathide.catalog import OBJECTIVES
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.context import Context
from feathide.pipeline.step import Step, changed

__all__ = ["key_changes"]

Pair = tuple[str, Step, Step]


def key_changes(run_a: str | Path, run_b: str | Path) -> dict[str, list[str]]:
    """Of every step that two finished audits have in common, what changed its key.

    Args:
        run_a: The folder or URL of a finished audit.
        run_b: Another one.

    Returns:
        The step, in words, and the names of what differs, such as ``attack.steps``; a step whose
        key is the same in both is left out.

    Raises:
        InputError: One of them is not a finished audit.
    """
    a, b = finished(run_a), finished(run_b)
    pairs = [*_networks(a, b), *_readings(a, b), *_attacks(a, b), *_scores(a, b)]
    found = {name: changed(x.decided_by, y.decided_by) for name, x, y in pairs}
    return {name: names for name, names in found.items() if names}


def _networks(a: Context, b: Context) -> Iterator[Pair]:
    """What is trained in both."""
    if a.recipe.trains and b.recipe.trains:
        yield "train the classifier", a.steps.train, b.steps.train
    if a.recipe.needs("reference_network") and b.recipe.needs("reference_network"):
        one, other = a.steps.reference_network, b.steps.reference_network
        yield "train the reference network", one, other


def _readings(a: Context, b: Context) -> Iterator[Pair]:
    """What the networks show of images that are not attacked, and the mixtures of it."""
    clean = [context.steps.extract("clean", "test") for context in (a, b)]
    yield "extract, clean images", clean[0], clean[1]
    for one, other in paired_budgets(a, b):
        noisy = (
            a.steps.extract(noisy_at(one), "test"),
            b.steps.extract(noisy_at(other), "test"),
        )
        yield f"extract, noisy images at {one:.4g}", *noisy
    if all(_has_mixtures(context) for context in (a, b)):
        yield "fit the mixtures", a.steps.mixtures, b.steps.mixtures


def _has_mixtures(context: Context) -> bool:
    return any(OBJECTIVES[o.kind].needs == "bank" for o in context.plan.objectives)


def _attacks(a: Context, b: Context) -> Iterator[Pair]:
    for one, other in paired_cells(a, b):
        name = f"attack, {one.name} at {one.eps:.4g}"
        yield name, a.steps.attack(one, "test"), b.steps.attack(other, "test")


def _scores(a: Context, b: Context) -> Iterator[Pair]:
    """The scores of clean images; those of attacks hold the name of the attack, too."""
    for one, other in paired_budgets(a, b):
        for detector in a.plan.detectors:
            if detector in b.plan.detectors:
                yield (
                    f"score, {detector} at {one:.4g}",
                    a.steps.score(detector, one, "clean", "test"),
                    b.steps.score(detector, other, "clean", "test"),
                )
