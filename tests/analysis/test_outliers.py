"""Outlierness: the measures against scipy and loops; the picture is a rotation that keeps
distances.
"""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from feathide.auditing.outliers import Normal, embedding
from feathide.mixtures import MixtureBank
from feathide.types import Outputs

RANDOM = torch.Generator().manual_seed(3)


def outputs(n: int, shift: float = 0.0) -> Outputs:
    logits = torch.randn((n, 2), generator=RANDOM, dtype=torch.float64)
    f = (
        torch.randn((n, 3), generator=RANDOM, dtype=torch.float64)
        + 2 * logits.argmax(1, keepdim=True)
        + shift
    )
    return Outputs(logits, {"a": f, "b": 2 * f[:, :2]})


TRAIN = outputs(200)
LABELS = TRAIN.predicted
NORMAL = Normal.of(MixtureBank.fit(TRAIN, LABELS, shrinkage=0.0), TRAIN, LABELS)


def test_measures_are_their_definitions() -> None:
    out = outputs(12)
    found = NORMAL.measure(out)
    for i, (name, f) in enumerate(out.features.items()):
        for row, c in enumerate(out.predicted.tolist()):
            own = TRAIN.features[name][c == LABELS].numpy()
            nearest = np.linalg.norm(own - f[row].numpy(), axis=1).min()
            assert np.isclose(found["neighbour"][row, i], nearest, rtol=1e-8)
            normal = multivariate_normal(own.mean(0), np.cov(own.T, bias=True))
            assert np.isclose(
                found["log_density"][row, i], normal.logpdf(f[row]) / f.shape[1], atol=0.02
            )
            d = f[row].numpy() - own.mean(0)
            distance = np.sqrt(d @ np.linalg.inv(np.cov(own.T, bias=True)) @ d / f.shape[1])
            assert np.isclose(found["distance"][row, i], distance, rtol=0.02)


def test_a_row_is_measured_alone() -> None:
    out = outputs(6)
    whole = NORMAL.measure(out)
    for key, value in whole.items():
        alone = torch.cat([NORMAL.measure(out[torch.tensor([i])])[key] for i in range(6)])
        assert torch.allclose(alone, value, rtol=1e-9), key


def test_what_lies_far_away_is_far_away() -> None:
    near, far = NORMAL.measure(outputs(30)), NORMAL.measure(outputs(30, shift=9.0))
    assert (far["distance"] > near["distance"].amax()).all()
    assert (far["neighbour"] > near["neighbour"].amax()).all()
    assert (far["log_density"] < near["log_density"].amin()).all()


def test_picture_shows_the_plane_of_largest_spread() -> None:
    """Points in a plane of five channels: the picture keeps all distances in units of the clean
    deviation; and it is the same each time.
    """
    plane = torch.linalg.qr(torch.randn((5, 2), generator=RANDOM, dtype=torch.float64)).Q
    clean = torch.randn((50, 2), generator=RANDOM, dtype=torch.float64) @ plane.T
    clean = clean / clean.std(0)
    groups = {"clean": clean, "pgd+plain": clean[:20] + 7}
    frame = embedding(groups)
    assert list(frame.columns) == ["condition", "x", "y"]
    assert dict(frame.condition.value_counts()) == {"clean": 50, "pgd+plain": 20}
    assert frame.equals(embedding(groups))
    assert len(embedding(groups, most=10)) == 20
    points = torch.tensor(frame[["x", "y"]].to_numpy())
    gap = points[50:].mean(0) - points[:50].mean(0)
    assert (
        abs(float(gap.norm()) - float((groups["pgd+plain"].mean(0) - clean.mean(0)).norm()))
        < 0.5
    )


def test_umap_is_an_extra_that_gives_the_same_columns() -> None:
    pytest.importorskip("umap", reason="needs the extra umap")
    groups = {"clean": torch.randn(30, 4, generator=torch.Generator().manual_seed(0))}
    groups["far"] = groups["clean"] + 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = embedding(groups, how="umap")
    assert (
        frame.columns.tolist() == ["condition", "x", "y"]
        and frame.condition.tolist() == ["clean"] * 30 + ["far"] * 30
    )
    near, far = (frame[frame.condition == c][["x", "y"]].mean() for c in ("clean", "far"))
    assert float(((near - far) ** 2).sum()) > 10
