"""A made-up finished run, as small as a report can be: two guards, one attack with three
objectives.
"""

from typing import Any

import numpy as np
import pandas as pd

from feathide.report import Run
from feathide.report.results import COLUMNS

EPS = 4 / 255
# by objective: what it knows, and what slips past "kd" and past "maha"
SLIPS = {
    "plain": ("oblivious", 0.1, 0.02),
    "hfc": ("feature-aware", 0.4, 0.3),
    "evade": ("detector-aware", 0.6, 0.5),
}
CHECK = {
    "name": "converged",
    "status": "pass",
    "detail": "",
    "raised_if": "twice the steps change the success",
    "why": "the numbers are those of an unfinished attack",
    "do": "raise the steps",
}


def make_table() -> pd.DataFrame:
    head = ("chest", "resnet18")
    rows: list[tuple[Any, ...]] = [
        (*head, "", "", "none", np.nan, "", "accuracy", 0.95, 0.92, 0.97, 200, 0)
    ]
    for objective, (knowledge, *slips) in SLIPS.items():
        at = (*head, "pgd", objective, knowledge, EPS)
        rows.append((*at, "", "success", 0.99, 0.96, 1.0, 100, 0))
        for detector, value in zip(("kd", "maha"), slips, strict=True):
            for level in (10, 5, 1):
                name = f"slips_through_fpr{level}"
                ends = (value - 0.02, value + 0.05, 100, 0)
                rows.append((*at, detector, name, value, *ends))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def make_run(**changes: Any) -> Run:
    """The run; ``changes`` are other fields of ``Run``."""
    values: dict[str, Any] = {
        "title": "Audit of resnet18 on chest",
        "synthetic": False,
        "plan": {"network": {"arch": "resnet18"}},
        "versions": {"python": "3.11", "feathide": "0.1.0"},
        "table": make_table(),
        "threat": {
            "goal": "another class",
            "knowledge": "plain: oblivious",
            "norm": "L-infinity",
            "eps": EPS,
            "box": (0.0, 1.0),
            "step": 1 / 255,
            "unit": "grey levels",
            "success": "the image as stored is classified as the target",
        },
        "class_names": ("normal", "pneumonia"),
        "thresholds": {d: {"fpr10": 0.5} for d in ("kd", "maha")},
        "scores": pd.DataFrame(
            {"condition": [], "detector": [], "id": [], "score": [], "fooled": []}
        ),
        "sanity_checks": [CHECK],
        "caveats": ["The classifier was trained on 400 images only."],
        "counts": {"calibration": {"images": 200, "patients": 150, "correct": 190}},
        "budgets": (EPS,),
    }
    return Run(**(values | changes))
