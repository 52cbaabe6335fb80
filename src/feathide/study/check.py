"""A look before a long run: one step of each attack on two images, the number of tasks and an estimate of the time."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from feathide.classifier import FeatureClassifier
from feathide.recipes import pgd
from feathide.study.lab import Lab
from feathide.study.order import audit_tasks
from feathide.study.plan import Plan
from feathide.study.run import checked
from feathide.study.stages import attack_of, cells

__all__ = ["check_plan"]

TRIED = 8  # images of the trial


def check_plan(plan: Plan, out: Path) -> Iterator[str]:
    """Sentences about a plan that could run as it is; raises ``InputError`` with what is wrong otherwise. Nothing is written."""
    lab = checked(plan, out)
    yield f"data: {len(lab.cases)} images of {lab.cases.channels} x {' x '.join(map(str, lab.cases.shape))} in {lab.cases.box}"
    if lab.cases.skipped:
        yield f"left out: {len(lab.cases.skipped)} files, the first because {lab.cases.skipped[0].reason}"
    yield "held out: " + ", ".join(f"{part} {len(rows)}" for part, rows in lab.parts.items())
    classifier = _classifier(lab)
    yield f"classifier: {plan.network.arch}, {len(classifier.names(lab.images(lab.rows('train')[:1])))} feature layers"
    order = audit_tasks(lab)
    done = sum(lab.store.done(t.key) for t in order)
    yield f"tasks: {len(order)}, {done} of them done already"
    step, grown = _step_seconds(lab, classifier)
    seconds = _seconds(lab, step)
    training = " and the training of the classifier" if lab.trains and not lab.store.done(lab.classifier_key) else ""
    yield f"one attack step: {step * 1000:.1f} ms an image; all attacks: about {seconds / 60:.1f} minutes on this machine{training}"
    yield f"memory: about {grown / 2**20:.0f} MiB more for a batch of {plan.batch_size}"


def _classifier(lab: Lab) -> FeatureClassifier:
    if lab.trains and not lab.store.done(lab.classifier_key):
        network = lab.empty_network().eval().to(lab.device)
        return FeatureClassifier(network, lab.plan.network.layers, box=lab.cases.box, window=lab.window)
    return lab.classifier


def _step_seconds(lab: Lab, classifier: FeatureClassifier) -> tuple[float, float]:
    """Seconds of one step for one image, and the bytes that a batch's activations take (outputs of all layers, float32)."""
    rows = lab.rows("test")[:TRIED]
    x, goal = lab.images(rows), lab.goal(rows)
    attack = pgd(lab.threat(lab.budgets[0]), steps=3)
    attack(classifier, x, goal, **lab.terms(rows, x))
    started = time.perf_counter()
    attack(classifier, x, goal, **lab.terms(rows, x))
    seconds = (time.perf_counter() - started) / 3.6 / len(rows)  # a clean pass and a last pass stand beside three steps
    held = [0]

    def count(_module: torch.nn.Module, _args: object, output: object) -> None:
        held[0] += output.numel() * 4 if isinstance(output, torch.Tensor) else 0

    handles = [m.register_forward_hook(count) for m in classifier.model.modules() if not list(m.children())]
    with torch.no_grad():
        classifier(x[:1])
    for handle in handles:
        handle.remove()
    return seconds, held[0] * lab.plan.batch_size * 1.5


def _seconds(lab: Lab, step: float) -> float:
    total = 0.0
    for cell in cells(lab):
        attack = attack_of(lab, cell, None)
        total += len(lab.rows("test")) * attack.passes * step
    learnt = next((c for c in cells(lab) if c.attack == lab.plan.learnt_from), None)
    if learnt is not None:
        total += len(lab.rows("fit")) * attack_of(lab, learnt, None).passes * step * len(lab.budgets)
    return total
