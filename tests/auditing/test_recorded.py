"""Three small audits give the numbers that they gave when they were recorded.

A change that moves code and not numbers must pass here; one that means to move them records anew,
``FEATHIDE_RECORD=1 pytest tests/auditing/test_recorded.py``, and says so in the changelog. Other
processors round otherwise, so shares may move by a few images; which rows there are may not.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feathide import audit, load_plan

HERE = Path(__file__).parent / "recorded"
ROW = ["attack", "objective", "knowledge", "eps", "detector", "metric"]
CLOSE = 0.15  # a few of about twenty images
COSTS = ("seconds_per_image",)

FOREIGN = '''
"""An attack of somebody else: one step."""

import torch


def step(classifier, x, goal, ids, seed, **more):
    x = x.clone().requires_grad_(True)
    out = classifier(x)
    loss = torch.nn.functional.cross_entropy(out.logits, goal.target, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return (x - 8 / 255 * gradient.sign()).clamp(0, 1).detach()
'''

SPLIT = {"detector_training": 0.4, "calibration": 0.2, "test": 0.4, "most": 16}
COMMON: dict[str, Any] = {
    "objectives": ["plain", "hfc"],
    "schedule": {"steps": 10},
    "split": SPLIT,
    "even_so": True,
    "batch_size": 32,
}
PLANS: dict[str, dict[str, Any]] = {
    "volumes": {
        "data": {"path": "phantoms3d", "limit": 120, "size": 16},
        "network": {"arch": "tiny3d", "train": {"epochs": 6}},
        "eps": "16/255",
        "attacks": ["pgd"],
        "detectors": ["kd", "maha", "lid", "svm"],
    },
    "findings": {
        "data": {"path": "findings.npz", "class_names": ["mass", "line"]},
        "network": {"arch": "tiny", "head": "finding:mass", "train": {"epochs": 6}},
        "eps": "16/255",
        "attacks": ["pgd"],
        "detectors": ["kd", "maha", "dnn"],
        "sanity_checks": "off",
    },
    "foreign": {
        "data": {"path": "phantoms", "limit": 200, "size": 24},
        "network": {"arch": "tiny", "trust": True, "train": {"epochs": 10}},
        "eps": "8/255",
        "attacks": ["pgd", "foreign_code.py:step"],
        "detectors": ["maha", "svm"],
        "sanity_checks": "off",
    },
}


def write_findings(path: Path) -> None:
    """Pictures with two findings: a bright disc, and a bright margin on the left."""
    rng = np.random.default_rng(0)
    labels = (rng.random((160, 2)) < 0.5).astype(np.uint8)
    images = rng.integers(60, 120, (160, 24, 24)).astype(np.uint8)
    row, column = np.mgrid[:24, :24]
    for image, (mass, line) in zip(images, labels, strict=True):
        if mass:
            y, x = rng.integers(6, 18, 2)
            image[(row - y) ** 2 + (column - x) ** 2 < 9] += 90
        if line:
            image[:, :4] += 60
    splits = {"train": slice(0, 90), "val": slice(90, 105), "test": slice(105, 160)}
    arrays = {f"{name}_images": images[rows] for name, rows in splits.items()}
    arrays |= {f"{name}_labels": labels[rows] for name, rows in splits.items()}
    np.savez(path, **arrays)


@pytest.mark.parametrize("name", PLANS)
def test_a_small_audit_gives_its_recorded_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_findings(tmp_path / "findings.npz")
    (tmp_path / "foreign_code.py").write_text(FOREIGN)
    found = audit(load_plan({**COMMON, **PLANS[name]}), tmp_path / "out").table
    found = found[~found.metric.isin(COSTS)]
    path = HERE / f"{name}.csv"
    if os.environ.get("FEATHIDE_RECORD"):
        found.to_csv(path, index=False, float_format="%.6g")
        pytest.skip("recorded anew")
    recorded = pd.read_csv(path, keep_default_na=False, na_values={"value": "", "eps": ""})

    def keyed(table: pd.DataFrame) -> pd.Series:
        eps = table.eps.astype(float).fillna(-1).round(5)
        index = pd.MultiIndex.from_frame(table[ROW].assign(eps=eps).astype(str))
        return table.set_index(index).value.astype(float)

    now, then = keyed(found), keyed(recorded)
    assert sorted(now.index) == sorted(then.index)
    apart = (now - then.reindex(now.index)).abs()
    limit = CLOSE * then.reindex(now.index).abs().clip(lower=1)
    assert apart[apart > limit].to_dict() == {}
