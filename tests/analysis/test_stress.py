"""The stress test: on a linear network the drift reaches the analytic bound, in any number of
axes.
"""

import pandas as pd
import pytest
import torch

from feathide.analysis.stress import WAYS, drifts
from feathide.attacks.presets import bim
from feathide.attacks.threats import L2, Linf
from feathide.report.curves import stress_curve
from feathide.types import Goal
from worlds.linear import SHAPES, images, linear

EPS = 0.05


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_drift_reaches_the_bound_of_a_linear_network(
    shape: tuple[int, ...], norm: str
) -> None:
    """m(x) = a . x moves by eps ||a||_1 under Linf and by eps ||a||_2 under L2, and no
    further.
    """
    classifier = linear(shape)
    a = classifier.model.features.weight.mean(0)
    threat, bound = (Linf(EPS), a.abs().sum()) if norm == "linf" else (L2(EPS), a.norm())
    x = images(3, shape)
    goal = Goal(torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long))
    found = drifts(
        bim(threat, steps=12, step_size=0.25),
        classifier,
        x,
        goal,
        ["features"],
        ids=list("abc"),
    )
    assert tuple(found) == WAYS
    for way in WAYS:
        assert found[way].shape == (3, 1)
        assert torch.allclose(found[way], (EPS * bound).expand(3, 1).to(x), rtol=1e-6), way
    alone = drifts(
        bim(threat, steps=12, step_size=0.25),
        classifier,
        x[1:2],
        goal[1:2],
        ["features"],
        ids=["b"],
    )
    assert torch.allclose(alone["up"], found["up"][1:2], rtol=1e-9)


def test_curve_names_groups_by_study_and_seed() -> None:
    table = pd.DataFrame(
        {
            "dataset": ["a", "a", "b", "a"],
            "classifier": "tiny",
            "layer": "conv",
            "seed": [0, 1, 0, 0],
            "metric": ["drift_away"] * 3 + ["drift_up"],
            "value": [1.0, 2.0, 3.0, 4.0],
            "low": 0.0,
            "high": 5.0,
        }
    )
    curve = stress_curve(table)
    assert list(curve.group) == ["a, tiny, seed 0", "a, tiny, seed 1", "b, tiny, seed 0"]
    assert list(stress_curve(table[table.seed == 0]).group) == ["a, tiny", "b, tiny"]
