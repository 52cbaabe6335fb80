"""What HFC adds to the step of an attack, what our step costs beside the bare network, and our PGD beside that of other libraries.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--quick] [--rounds 5] [--only resnet18] [--covariance lowrank] [--heap] [--device cuda] [--precision bf16]

A step is what lies between two iterates of PGD: judge, differentiate, walk, project. Plain: the cross-entropy, without hooks. HFC: the
features of every conv unit and their energies under mixtures of two classes, half of the batch each. Low rank: rank 8 in what 64
common factors whiten. By hand: one forward and one ``autograd.grad``. Usual: plain, the weights not channels-last. The first step of each
call is not timed. All variants of a network take turns in one process, which keeps freed memory as the ``feathide`` command does; a number is
the median over the rounds of the ratio of CPU seconds (of this process, which other work on the machine disturbs least; on a GPU: seconds
by the clock, after it has finished) in the same round. The networks have random weights and the mixtures random parameters around real
features: neither changes the work. Prints ratios only; ``--out FILE`` writes
them as a page, too. Other libraries are left out where they are not installed.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feathide.attacks.leave import when_fooled
from feathide.models.classifier import FeatureClassifier
from feathide.attacks.threats import Linf
from feathide.models.heap import keep_freed_memory
from feathide.models.memory import MOST, activations, batch_for
from feathide.mixtures import Covariance, Mixture, MixtureBank
from feathide.mixtures.factor_analysis import COMMON, WIDE
from feathide.models.zoo import build
from feathide.losses import HFC, AwayFrom
from feathide.attacks.presets import pgd
from feathide.types import Goal, Outputs

COMPONENTS = (1, 16, 64)
PEERS = ("torchattacks", "foolbox", "art")
CASES = [(name, size) for name in ("resnet18", "resnet50") for size in (64, 128, 224)] + [
    ("resnet10_3d", 32),
    ("resnet18_3d", 32),
]
HEAP = [("resnet18", 64), ("resnet18", 128), ("resnet50", 224), ("resnet10_3d", 32)]
QUICK = [("resnet18", 64), ("resnet50", 64), ("resnet10_3d", 32)]
STEPS = 3  # the last iterate is judged without a gradient, so this gives two whole steps
EPS = 4 / 255


def network(name: str, size: int, batch: int | None = None) -> tuple[nn.Module, Tensor]:
    """A network with random weights whose batch norms know its features, and images for it: as many as an audit takes at once."""
    torch.manual_seed(0)
    cubes = name.endswith("_3d")
    x = torch.rand(MOST, 1 if cubes else 3, *[size] * (3 if cubes else 2))
    net = build(name, channels=x.shape[1], outputs=2, size=x.shape[2:])
    with torch.no_grad():
        x = x[: batch or batch_for(activations(net.eval(), x[:1]))]
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        net.train()(x)
    return net.eval(), x


def bank(
    clean: Outputs, components: int, covariance: Covariance, rank: int = 8
) -> MixtureBank:
    """Mixtures of two classes with random parameters, centred and scaled like the features."""
    random = torch.Generator().manual_seed(components)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def mixture(f: Tensor) -> Mixture:
        c = f.shape[1]
        r = (
            min(rank, c) if components > 1 else 0
        )  # as fitted: of one component all is shared, its mean too
        f = f.cpu()
        scale = f.double().std(0).clamp_min(1e-3)
        shared = torch.eye(c, dtype=torch.float64) + draw(c, c).triu(1) / c
        factors = torch.ones(0)
        gains = torch.ones(0)
        if covariance == "full":
            factors = torch.eye(c, dtype=torch.float64) + draw(components, c, c).triu(1) / c
        elif covariance == "diag":
            factors = 1 + draw(components, c).abs()
        elif covariance == "lowrank":
            factors, gains = (
                torch.linalg.qr(draw(components, c, r)).Q,
                torch.full((components, r + 1), 0.5, dtype=torch.float64),
            )
        whitener = (
            shared / scale[:, None] if covariance in ("tied", "lowrank") else 1 / scale
        )
        if covariance == "lowrank" and c > WIDE:
            whitener = torch.cat(
                [1 / scale[:, None], torch.linalg.qr(draw(c, COMMON)).Q / 2], 1
            )
        weights = torch.full((components,), 1 / components, dtype=torch.float64)
        means = draw(components, c) if components > 1 else draw(1, c).zero_()
        return Mixture(
            covariance, weights, f.double().mean(0), whitener, means, factors, gains
        )

    return MixtureBank(
        {name: {c: mixture(f) for c in (0, 1)} for name, f in clean.features.items()}
    )


def now(device: torch.device) -> float:
    """CPU seconds of this process; on a GPU the clock, once all work is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class Steps:
    """Seconds of the whole steps of one run of ``attack``."""

    def __init__(
        self, attack: Any, classifier: FeatureClassifier, x: Tensor, goal: Goal
    ) -> None:
        self.attack, self.classifier, self.x, self.goal = attack, classifier, x, goal

    def __call__(self) -> float:
        times: list[float] = []
        ids = [str(i) for i in range(len(self.x))]
        self.attack(
            self.classifier,
            self.x,
            self.goal,
            ids=ids,
            watch=lambda k, rows, out: times.append(now(self.x.device)),
        )
        return (times[-2] - times[0]) / (len(times) - 2)


def by_hand(
    classifier: FeatureClassifier, x: Tensor, target: Tensor
) -> Callable[[], float]:
    def once() -> float:
        for k in range(STEPS):
            if k == 1:  # as in an attack, the first step is not timed
                start = now(x.device)
            leaf = x.clone().requires_grad_()
            with torch.autocast(
                x.device.type, torch.bfloat16, enabled=classifier.precision == "bf16"
            ):
                logits = classifier.model(leaf)
            torch.autograd.grad(
                nn.functional.cross_entropy(logits.float(), target, reduction="sum"), leaf
            )
        return (now(x.device) - start) / (STEPS - 1)

    return once


def seconds(work: Callable[[], Any]) -> Callable[[], float]:
    """CPU seconds of one call."""

    def once() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return once


def ratios(
    variants: dict[str, Callable[[], float]], base: str, rounds: int
) -> dict[str, float]:
    """The median over rounds of every variant's seconds divided by those of ``base``, in turn; the first round warms up."""
    found = [{name: once() for name, once in variants.items()} for _ in range(rounds + 1)][
        1:
    ]
    return {
        name: statistics.median(f[name] / f[base] for f in found)
        for name in variants
        if name != base
    }


def hfc_row(name: str, size: int, options: argparse.Namespace) -> str:
    net, x = (part.to(options.device) for part in network(name, size, options.batch))
    rounds, covariance, precision = options.rounds, options.covariance, options.precision
    target = torch.arange(len(x), device=x.device) % 2
    goal, threat = Goal(1 - target, target), Linf(EPS)
    plain, hooked = (
        FeatureClassifier(net, layers, precision=precision) for layers in ((), "conv")
    )
    usual = FeatureClassifier(deepcopy(net).to(memory_format=torch.contiguous_format), ())
    with torch.no_grad():
        clean = hooked(x)
    variants: dict[str, Callable[[], float]] = {
        "hand": by_hand(plain, x, target),
        "plain": Steps(pgd(threat, steps=STEPS), plain, x, goal),
        "usual": Steps(pgd(threat, steps=STEPS), usual, x, goal),
        **{
            str(m): Steps(
                pgd(threat, steps=STEPS, hide=HFC(bank(clean, m, covariance), floor="none")),
                hooked,
                x,
                goal,
            )
            for m in COMPONENTS
        },
    }
    found = ratios(variants, "plain", rounds)
    cells = [
        name,
        len(clean.features),
        size,
        len(x),
        covariance,
        *(f"{found[str(m)]:.2f}" for m in COMPONENTS),
    ]
    cells += [f"{1 / found['hand']:.3f}", f"{1 / found['usual']:.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def alone(name: str, size: int, keep: bool) -> float:
    """CPU seconds of a plain step in a process of its own, with freed memory kept or given back."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    net, x = network(name, size)
    target = torch.arange(len(x)) % 2
    step = Steps(
        pgd(Linf(EPS), steps=STEPS), FeatureClassifier(net, ()), x, Goal(1 - target, target)
    )
    return statistics.median(step() for _ in range(3))


def heap_row(name: str, size: int, rounds: int) -> str:
    found = []
    for _ in range(rounds):
        with get_context("spawn").Pool(1, maxtasksperchild=1) as children:
            kept, given = (
                children.apply(alone, (name, size, keep)) for keep in (True, False)
            )
        found.append(kept / given)
    return f"| {name} | {size} | {statistics.median(found):.2f} |"


def peers(size: int, rounds: int, steps: int, batch: int) -> list[str]:
    """The same PGD, untargeted from a random start, by four libraries; every one is asked which images fool the network."""
    import foolbox
    import numpy as np
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    net, x = network("resnet18", size, batch)
    with torch.no_grad():
        source = net(x).argmax(1)
    goal, ids = Goal(source, 1 - source), [str(i) for i in range(len(x))]
    classifier, alpha = FeatureClassifier(net, ()), EPS / 4
    ours = pgd(Linf(EPS), objective=AwayFrom(), steps=steps, step_size=0.25)
    early = pgd(
        Linf(EPS), objective=AwayFrom(), steps=steps, step_size=0.25, leave=when_fooled
    )
    estimator = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 2, clip_values=(0, 1)
    )
    art = ProjectedGradientDescentPyTorch(
        estimator,
        eps=EPS,
        eps_step=alpha,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    theirs = torchattacks.PGD(net, eps=EPS, alpha=alpha, steps=steps, random_start=True)
    fool = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    linf = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=steps, random_start=True)
    names, images = np.eye(2, dtype=np.float32)[source.numpy()], x.numpy()

    def judged(adversarial: Tensor) -> Tensor:
        with torch.no_grad():
            return net(adversarial).argmax(1) != source

    variants = {
        "ours": seconds(lambda: ours(classifier, x, goal, ids=ids)),
        "ours, finished images leave": seconds(lambda: early(classifier, x, goal, ids=ids)),
        "torchattacks": seconds(lambda: judged(theirs(x, source))),
        "Foolbox": seconds(lambda: linf(fool, x, source, epsilons=EPS)),
        "ART": seconds(lambda: judged(torch.from_numpy(art.generate(images, names)))),
    }
    found = ratios(variants, "ours", rounds)
    share = float(ours(classifier, x, goal, ids=ids).fooled.float().mean())
    return [
        f"| {name} | {size} | {batch} | {steps} | {share:.2f} | {value:.2f} |"
        for name, value in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer networks and sizes, a few minutes"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="networks whose name begins so")
    parser.add_argument("--size", type=int, help="one size only")
    parser.add_argument(
        "--batch", type=int, help="images at once (default: as many as an audit takes)"
    )
    parser.add_argument("--covariance", default="lowrank")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="on cuda without other libraries",
    )
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--heap",
        action="store_true",
        help="also what it is worth to keep freed memory, in processes of their own",
    )
    parser.add_argument("--out", type=Path, help="write a page here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    lines = [
        "| network | layers | px | batch | covariance | HFC / plain, M = 1 | M = 16 | M = 64 | plain / by hand | plain / usual |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, size in QUICK if options.quick else CASES:
        if name.startswith(options.only) and options.size in (None, size):
            lines.append(hfc_row(name, size, options))
            print(lines[-1], flush=True)
    if options.heap:
        lines += ["", "| network | px | freed memory kept / given back |", "|---|---|---|"]
        for name, size in HEAP:
            lines.append(heap_row(name, size, options.rounds))
            print(lines[-1], flush=True)
    missing = [name for name in PEERS if find_spec(name) is None]
    if missing:
        print(f"PGD of other libraries left out: {', '.join(missing)} not installed")
    elif not options.no_peers and options.device == "cpu":
        lines += [
            "",
            "| PGD of | px | batch | steps | fooled | seconds / ours |",
            "|---|---|---|---|---|---|",
        ]
        for batch, steps in (
            ((8, 10),) if options.quick else ((8, 10), (8, 40), (32, 10), (32, 40))
        ):
            lines += peers(64, options.rounds, steps, batch)
            print("\n".join(lines[-4:]), flush=True)
    command = " ".join(["python benchmarks/step.py", *sys.argv[1:]])
    place = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    head = f"`{command}`: one thread, torch {torch.__version__}, {place}, {options.precision}, load {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores."
    about = (__doc__ or "").split("\n\n")[2].strip()
    if options.out is not None:
        options.out.write_text(
            "\n".join(["# The cost of a step", "", head, about, "", *lines, ""])
        )


if __name__ == "__main__":
    main()
