"""Seconds and peak memory of every detector: 10,000 training features, 10,000 features to score.

    python benchmarks/detectors.py [--out FILE]

Each detector runs in a process of its own, so that its
peak is its own. Features are drawn from two Gaussian classes with correlated channels, one layer, 32-bit, as extracted.
"""

import argparse
import multiprocessing
import platform
import resource
import time
from pathlib import Path

import torch

from feathide.detectors import DETECTORS
from feathide.types import Evidence, Outputs


def sample(n: int, channels: int, *, seed: int, shift: float = 0.0) -> Outputs:
    """``n`` samples of two classes with twenty dropout draws and a reference network."""
    random = torch.Generator().manual_seed(seed)
    mix = (
        torch.randn(channels, channels, generator=torch.Generator().manual_seed(0))
        / channels**0.5
    )
    label = torch.arange(n) % 2
    features = torch.randn(n, channels, generator=random) @ mix + label[:, None] + shift
    logits = torch.randn(n, 2, generator=random)
    draws = logits[:, None] + torch.randn(n, 20, 2, generator=random)
    return Outputs(
        logits,
        {"last": features},
        draws,
        reference_network=Outputs(torch.randn(n, 2, generator=random), {"last": features}),
    )


def measure(
    name: str, train: int, queries: int, channels: int
) -> tuple[float, float, float]:
    """Seconds to fit, seconds to score, and the growth of the peak memory in MiB."""
    fit = [
        sample(500, channels, seed=seed, shift=shift)
        for seed, shift in ((2, 0.0), (3, 0.05), (4, 0.5))
    ]
    evidence = Evidence(sample(train, channels, seed=0), torch.arange(train) % 2, *fit)
    out = sample(queries, channels, seed=1)
    recipe = DETECTORS[name]()
    before = peak()
    start = time.perf_counter()
    detector = recipe.fit(evidence)
    middle = time.perf_counter()
    with torch.no_grad():
        detector.score(out)
    return middle - start, time.perf_counter() - middle, peak() - before


def peak() -> float:
    """The greatest memory this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--out", type=Path, help="write a page here")
    options = parser.parse_args()
    rows = []
    for name in DETECTORS:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            fit, score, memory = pool.apply(
                measure, (name, options.train, options.queries, options.channels)
            )
        rows.append(f"| {name} | {fit:.2f} | {score:.2f} | {memory:.0f} |")
        print(rows[-1], flush=True)
    page = [
        "# Detectors: seconds and memory",
        "",
        f"{options.train:,} training features, {options.queries:,} scored, {options.channels} channels, one layer, 500 images to fit on; "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}. `python benchmarks/detectors.py`. "
        "Memory is the growth of the peak over fit and score, 64-bit copies included.",
        "",
        "| detector | fit, s | score, s | memory, MiB |",
        "|---|---|---|---|",
        *rows,
    ]
    if options.out is not None:
        options.out.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
