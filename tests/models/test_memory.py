"""Where memory does not suffice, a batch is halved: the results are the same, and it is said."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feathide.auditing.run import audit
from feathide.errors import InputError
from feathide.models.classifier import FeatureClassifier
from feathide.models.memory import BUDGET, activations, batch_for, in_halves
from feathide.plans.plan import load_plan


class Tight(nn.Module):
    """A network for which more than ``most`` images are too many."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error, self.seen = most, error, []  # type: ignore[var-annotated]
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error
        self.seen.append(len(x))
        return self.head(self.conv(x).flatten(2).mean(2))


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: "
        "you tried"
    ),
    RuntimeError(
        "DefaultCPUAllocator: not enough memory: you tried to allocate 800000000000 bytes."
    ),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_extraction_goes_on_in_halves_and_says_so(error: Exception) -> None:
    net = Tight(3, error).eval()
    classifier, x = FeatureClassifier(net, ["conv"]), torch.rand(9, 1, 5, 5)
    with pytest.warns(RuntimeWarning, match="memory does not suffice") as said:
        out = classifier.extract(x, batch_size=9)
    assert [str(w.message).partition(" for ")[2] for w in said] == [
        "9 images at once: going on with 4",
        "4 images at once: going on with 2",
        "5 images at once: going on with 2",
    ]
    assert net.seen[-4:] == [2, 2, 2, 3]
    net.most = 9
    torch.testing.assert_close(out.logits, classifier.extract(x).logits)
    torch.testing.assert_close(out.features["conv"], classifier.extract(x).features["conv"])


def test_other_errors_pass_and_one_image_too_many_is_a_sentence() -> None:
    x = torch.rand(4, 1, 5, 5)
    with pytest.raises(RuntimeError, match="shapes"):
        FeatureClassifier(Tight(3, RuntimeError("shapes differ")).eval(), ()).extract(x)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(
            InputError, match="memory does not suffice for one image; use smaller images"
        ),
    ):
        in_halves(
            lambda rows: FeatureClassifier(Tight(0, MemoryError()).eval(), ["conv"])(
                x[rows]
            ),
            np.arange(4),
            join=list,
        )


def test_the_batch_is_what_fits_by_image_size_and_network() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 2))
    held = 4 * (8 * 64 + 8 * 64 + 2)  # the outputs of the three layers, in float32
    assert activations(net, torch.rand(1, 1, 8, 8)) == 1.5 * held
    assert [batch_for(BUDGET / n) for n in (0.5, 1, 3, 32, 33, 1000)] == [
        1,
        1,
        2,
        32,
        32,
        128,
    ]


def test_auto_stands_as_a_number_in_the_stored_plan_and_goes_on_from_there(
    tmp_path: Path,
) -> None:
    fields = {
        "data": {"path": "phantoms", "limit": 60, "size": 16},
        "network": {"arch": "tiny", "train": {"epochs": 1}},
        "attacks": ["fgsm"],
        "objectives": ["plain"],
        "detectors": ["msp"],
        "train_attack": "fgsm",
        "sanity_checks": "off",
    }
    found = audit(load_plan(fields, batch_size="auto", even_so=True), tmp_path)
    stored = load_plan(tmp_path / "plan.yaml")
    assert stored.batch_size == 128
    before = (tmp_path / "results.csv").read_bytes()
    again = audit(stored, tmp_path)
    assert (
        again.folder / "results.csv"
    ).read_bytes() == before and found.folder == again.folder


HEAP = """
import resource
from feathide.models.heap import keep_freed_memory
import torch
kept = keep_freed_memory() if {keep} else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(3 * 2**22)  # 48 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of the GNU C library")
def test_freed_memory_is_kept() -> None:
    def run(keep: bool) -> tuple[str, int]:
        code = [sys.executable, "-c", HEAP.format(keep=keep)]
        kept, faults = subprocess.run(
            code, capture_output=True, text=True, check=True
        ).stdout.split()
        return kept, int(faults)

    kept, faults = run(True)
    if kept == "False":
        pytest.skip("no GNU C library")
    assert faults < 100 < run(False)[1]
