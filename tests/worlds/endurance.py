"""A small audit that is killed and resumed."""

from pathlib import Path
from typing import Any

PLAN: dict[str, Any] = {
    "data": {"path": "phantoms", "size": 32, "limit": 60},
    "network": {"arch": "tiny", "layers": "conv", "train": {"epochs": 2, "augment": False}},
    "eps": "8/255",
    "attacks": ["fgsm", "pgd"],
    "schedule": {"steps": 3},
    "detectors": ["msp", "kd", "maha"],
    "split": {"most": 12},
    "batch_size": 4,
    "sanity_checks": "off",
    "even_so": True,
}


def contents(run: Path) -> dict[str, bytes]:
    """What may not depend on how often a run was interrupted: everything but the seconds that
    were measured.
    """
    kept = [
        *run.rglob("*.npz"),
        *(run / n for n in ("comparisons.csv", "sanity_checks.json", "plan.yaml")),
    ]
    found = {p.relative_to(run).as_posix(): p.read_bytes() for p in kept}
    lines = (run / "results.csv").read_bytes().splitlines()
    return found | {
        "results.csv": b"\n".join(
            line for line in lines if b"seconds_per_image" not in line
        )
    }
