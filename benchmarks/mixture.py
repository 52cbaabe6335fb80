"""Fit time, held-out log-likelihood and peak memory of our mixtures against scikit-learn's, on real features.

    python benchmarks/mixture.py [--quick] [--threads 1] [--data FILE.npz] [--features FILE]

Features: chest X-rays of one class, seen by a ResNet-50 that was trained for a few steps (channel means of layers with 64 to 2048
channels). Each method has a process of its own for each size, so that its peak is its own, and the methods take turns. Seconds are CPU
seconds of the process, which keeps freed memory as the ``feathide`` command does and which other work on the machine disturbs little,
the median of 25 fits (fewer if they take more than two seconds in all); with two threads, seconds by the clock. Read the ratios. Some
environments pin an older kernel of OpenBLAS (OPENBLAS_CORETYPE), which slows numpy and scikit-learn: it is unpinned here, and the
kernel that ran is named. ``--out FILE`` writes a page.
"""

import argparse
import os
import platform
import resource
import statistics
import time
import warnings
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve().parent
LAYERS = {64: "relu", 256: "layer1.2", 512: "layer2.3", 1024: "layer3.5", 2048: "layer4.2"}
METHODS = (
    "ours full",
    "ours lowrank",
    "sklearn GaussianMixture",
    "sklearn BayesianGaussianMixture",
)
QUICK = [
    (64, 1),
    (64, 16),
    (64, 64),
    (256, 4),
    (512, 1),
    (512, 4),
    (512, 16),
    (1024, 4),
    (2048, 1),
]
ALL = [(c, m) for c in (64, 512) for m in (1, 4, 16, 64)] + [
    (c, m) for c in (256, 1024, 2048) for m in (1, 4, 16)
]
SAMPLES = 2000


def extract(data: Path, path: Path, steps: int) -> None:
    """Train a ResNet-50 for a few steps and store the features of 2,500 images of the class with most of them."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from torch.nn import functional as F
    from torchvision.models import resnet50

    from feathide.models.classifier import FeatureClassifier

    torch.manual_seed(0)
    with np.load(data, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["train_images"])[:, None].float() / 255
        y = torch.from_numpy(arrays["train_labels"]).long().flatten()
    net = resnet50(num_classes=2)
    net.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,))
        loss = F.cross_entropy(net(x[rows] - 0.5), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    classifier = FeatureClassifier(
        net.eval(), list(LAYERS.values()), mean=(0.5,), std=(1.0,)
    )
    out = classifier.extract(x[y == y.bincount().argmax()][:2500])
    save_file({str(c): out.features[name].contiguous() for c, name in LAYERS.items()}, path)


def measure(
    features: Path, method: str, channels: int, components: int
) -> dict[str, float]:
    """One fit, in this process."""
    from safetensors.torch import load_file

    from feathide.models.heap import keep_freed_memory

    x = load_file(features)[str(channels)].double()
    train, test = x[:SAMPLES], x[SAMPLES:]
    fitted(
        method, train[:100, :16], 1
    )  # what is loaded or started at the first use is in no method's time
    before, times = peak(), list[float]()
    keep_freed_memory()
    now = time.process_time if os.environ["OMP_NUM_THREADS"] == "1" else time.perf_counter
    while (
        len(times) < 25 and sum(times) < 2
    ):  # an audit fits one mixture after the other: the first one pays for the memory
        start = now()
        mixture = fitted(method, train, components)
        times.append(now() - start)
    seconds = statistics.median(times)
    if method.startswith("ours"):
        heldout, iterations = float(mixture.log_prob(test).mean()), mixture.n_iter
    else:
        heldout, iterations = float(mixture.score(test.numpy())), mixture.n_iter_
    return {
        "seconds": seconds,
        "heldout": heldout,
        "peak": peak() - before,
        "iterations": iterations,
    }


def fitted(method: str, x: "Tensor", components: int) -> Any:
    from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

    from feathide.mixtures import fit_mixture

    if method.startswith("ours"):
        return fit_mixture(x, components=components, covariance=method.split()[1])
    kind = GaussianMixture if method == METHODS[2] else BayesianGaussianMixture
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(n_components=components, random_state=0).fit(x.numpy())


def peak() -> float:
    """The greatest memory this process has held so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(features: Path, grid: list[tuple[int, int]], children: Pool) -> list[str]:
    lines = [
        "| C | M | seconds: ours full | ours lowrank | sklearn GM | sklearn Bayesian | GM / full | Bayesian / lowrank "
        "| held-out nats: ours full | ours lowrank | sklearn GM | sklearn Bayesian | peak MiB (same order) |",
        "|" + "---:|" * 13,
    ]
    for channels, components in grid:
        found = [
            children.apply(measure, (features, method, channels, components))
            for method in METHODS
        ]
        seconds = [f["seconds"] for f in found]
        cells = [
            str(channels),
            str(components),
            *(f"{s:.2f}" for s in seconds),
            f"{seconds[2] / seconds[0]:.1f}",
            f"{seconds[3] / seconds[1]:.1f}",
            *(f"{f['heldout']:,.1f}" for f in found),
            " / ".join(f"{f['peak']:.0f}" for f in found),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def kernel() -> str:
    """The kernel that numpy and scikit-learn multiply matrices with."""
    from threadpoolctl import threadpool_info

    found = {
        f"{i['internal_api']} {i['version']} ({i.get('architecture')})"
        for i in threadpool_info()
        if i["user_api"] == "blas"
    }
    return ", ".join(sorted(found))


def bank_size(components: int = 64, rank: int = 8) -> str:
    """What lowrank mixtures of all 49 conv layers of a ResNet-50 hold for one class."""
    from feathide.mixtures.factor_analysis import COMMON, WIDE

    widths = (
        [64]
        + 3 * [64, 64, 256]
        + 4 * [128, 128, 512]
        + 6 * [256, 256, 1024]
        + 3 * [512, 512, 2048]
    )
    shared = [c * (c if c <= WIDE else COMMON + 1) + c for c in widths]
    stored = sum(
        8 * (s + components * (c + c * rank + rank + 2))
        for s, c in zip(shared, widths, strict=True)
    )
    working = sum(
        4 * (s + components * c * (rank + 2)) for s, c in zip(shared, widths, strict=True)
    )
    return (
        f"All {len(widths)} conv layers of a ResNet-50 at M = {components}, lowrank of rank {rank}, one class: "
        f"{stored / 2**20:.0f} MiB of float64 statistics and {working / 2**20:.0f} MiB of float32 copies during an attack."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer sizes, about three minutes"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--data",
        type=Path,
        default=HERE.parents[1] / "shared" / "data" / "cxr_pneumonia_64.npz",
    )
    parser.add_argument("--out", type=Path, help="write a page here")
    parser.add_argument(
        "--features", type=Path, help="keep the features here, or take them from here"
    )
    options = parser.parse_args()
    if not options.data.exists() and not (options.features and options.features.exists()):
        print(
            f"no mixtures: {options.data} is not there; give --data FILE.npz with train_images (N, 64, 64) and train_labels"
        )
        return
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
    ):  # before numpy and torch come in
        os.environ[name] = str(options.threads)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    import sklearn.mixture  # noqa: F401  once, for all children

    import feathide.mixtures  # noqa: F401

    features = options.features or HERE / "mixture_features.safetensors"
    try:
        with get_context("fork").Pool(1, maxtasksperchild=1) as children:
            if not features.exists():
                children.apply(
                    extract, (options.data, features, 20 if options.quick else 100)
                )
            lines = table(features, QUICK if options.quick else ALL, children)
    finally:
        if options.features is None:
            features.unlink(missing_ok=True)
    command = " ".join(
        ["python benchmarks/mixture.py", *(["--quick"] if options.quick else [])]
    )
    head = f"{SAMPLES} training samples, {options.threads} thread(s), {platform.processor() or platform.machine()}, BLAS: {kernel()}."
    page = [
        "# Fitting mixtures",
        "",
        f"`{command}`: {head}",
        (__doc__ or "").split("\n\n")[2],
        "",
        *lines,
        "",
        bank_size(),
    ]
    if options.out is not None:
        options.out.write_text("\n".join(page) + "\n")
    print(head)
    print(page[-1])


if __name__ == "__main__":
    main()
