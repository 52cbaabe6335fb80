"""Out-of-distribution scores tell separated Gaussians apart, do not depend on the batch, and
agree with references; shifts do what they say.
"""

import numpy as np
import pytest
import torch

from feathide.data.shifts import HARMLESS, SHIFTS, blur, contrast, gamma, noise, rotation
from feathide.detectors.ood import OOD_SCORES, VirtualLogit, clean_evidence
from feathide.errors import InputError
from feathide.metrics.roc import auc
from feathide.types import Outputs

W = torch.randn((3, 6), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
B = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def outputs(n: int, *, far: float = 0.0, seed: int) -> tuple[Outputs, torch.Tensor]:
    """Three Gaussian classes in six channels, with an exact linear head; ``far`` moves them where
    no class lies.
    """
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    means = 4 * torch.linalg.pinv(W).T[labels]
    last = means + 0.3 * torch.randn((n, 6), generator=random, dtype=torch.float64)
    null = torch.linalg.svd(W).Vh[-1]
    last = (1 - far / 8) * last + far * null
    first = torch.randn((n, 4), generator=random, dtype=torch.float64) + far
    return Outputs(last @ W.T + B, {"first": first, "last": last}), labels


TRAIN, LABELS = outputs(300, seed=1)
HELD, _ = outputs(60, seed=2)
INSIDE, _ = outputs(90, seed=3)
OUTSIDE, _ = outputs(90, far=8.0, seed=4)


@pytest.mark.parametrize("name", OOD_SCORES)
def test_separated_sets_are_told_apart(name: str) -> None:
    score = OOD_SCORES[name]().fit(clean_evidence(TRAIN, LABELS, HELD))
    with torch.no_grad():
        inside, outside = score.score(INSIDE), score.score(OUTSIDE)
    assert auc(inside.numpy(), outside.numpy()) > 0.99
    alone = torch.cat([score.score(INSIDE[torch.tensor([i])]) for i in range(5)])
    assert torch.allclose(alone, inside[:5], rtol=1e-9)
    assert score.name == name


def test_vim_is_that_of_pytorch_ood() -> None:
    """The reference takes the head's own W and b; ours finds them by least squares."""
    ours = VirtualLogit(principal=2).fit(clean_evidence(TRAIN, LABELS, HELD))
    reference = pytest.importorskip(
        "pytorch_ood.detector", reason="needs pytorch-ood, the reference"
    )
    theirs = reference.ViM(None, d=2, w=W.float(), b=B.float())
    theirs.fit_features(TRAIN.last.float(), LABELS)
    want = theirs.predict_features(INSIDE.last.float()).double()
    got = ours.score(INSIDE)
    assert np.allclose(got.argsort(), want.argsort())
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-3)


def test_vim_by_the_formula() -> None:
    ours = VirtualLogit(principal=4).fit(clean_evidence(TRAIN, LABELS, HELD))
    origin = -torch.linalg.pinv(W) @ B
    u, v = TRAIN.last - origin, INSIDE.last - origin
    outside = torch.linalg.svd(u, full_matrices=False).Vh[4:].T
    alpha = TRAIN.logits.amax(1).mean() / (u @ outside).norm(dim=1).mean()
    want = alpha * (v @ outside).norm(dim=1) - INSIDE.logits.exp().sum(1).log()
    assert torch.allclose(ours.score(INSIDE), want, rtol=1e-8)
    with pytest.raises(InputError, match="principal"):
        VirtualLogit(principal=6).fit(clean_evidence(TRAIN, LABELS, HELD))
    with pytest.raises(InputError, match="fitted"):
        VirtualLogit().score(INSIDE)


def test_vim_is_differentiable() -> None:
    ours = VirtualLogit().fit(clean_evidence(TRAIN, LABELS, HELD))

    def score(last: torch.Tensor) -> torch.Tensor:
        return ours.score(Outputs(last @ W.T + B, {"last": last}))

    assert torch.autograd.gradcheck(score, INSIDE.last[:3].clone().requires_grad_())


@pytest.mark.parametrize("shape", [(1, 16), (3, 12, 10), (1, 8, 7, 6)])
@pytest.mark.parametrize("name", [*SHIFTS, *HARMLESS])
def test_shifts_stay_in_the_box_and_know_no_batch(
    name: str, shape: tuple[int, ...]
) -> None:
    if name == "rotation" and len(shape) < 3:
        pytest.skip("a line cannot be turned")
    change = HARMLESS[name] if name in HARMLESS else SHIFTS[name][1]
    x = 4 * torch.rand((3, *shape), generator=torch.Generator().manual_seed(0)) - 1
    found = change(x, ["a", "b", "c"], 0, (-1.0, 3.0))
    assert found.shape == x.shape and float(found.amin()) >= -1 and float(found.amax()) <= 3
    assert not torch.equal(found, x)
    assert torch.allclose(change(x[1:2], ["b"], 0, (-1.0, 3.0)), found[1:2], atol=1e-6)


def test_shifts_do_what_they_say() -> None:
    x = torch.full((2, 1, 20, 20), 0.5)
    moved = noise(0.05)(x, ["a", "b"], 0, (0.0, 1.0)) - x
    assert abs(float(moved.std()) - 0.05) < 0.005 and not torch.equal(moved[0], moved[1])
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1.0
    spread = blur(1.5)(point, ["a"], 0, (0.0, 1.0))
    assert torch.isclose(spread.sum(), torch.tensor(1.0), atol=1e-5)
    assert (
        torch.allclose(spread, spread.transpose(2, 3), atol=1e-7)
        and spread.amax() == spread[..., 10, 10]
    )
    ramp = torch.linspace(0.2, 0.8, 20).expand(1, 1, 20, 20)
    assert torch.allclose(
        contrast(0.6)(ramp, ["a"], 0, (0.0, 1.0)), 0.5 + 0.6 * (ramp - 0.5), atol=1e-6
    )
    assert torch.allclose(
        gamma(2.0)(4 * ramp - 2, ["a"], 0, (-2.0, 2.0)), 4 * ramp**2 - 2, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(9, 15), (3, 9, 15)])
def test_a_rotation_turns_pixels_in_the_last_plane_about_the_centre(
    shape: tuple[int, ...],
) -> None:
    """By a quarter, whatever the sides: (row, column) = (r, c) from the centre comes to lie at
    (-c, r).
    """
    x = torch.zeros(1, 1, *shape)
    x[..., 4 + 1, 7 + 3] = 1.0  # one down, three to the right
    turned = rotation(90)(x, ["a"], 0, (0.0, 1.0))
    expected = torch.zeros_like(x)
    expected[..., 4 - 3, 7 + 1] = 1.0
    assert torch.allclose(turned, expected, atol=1e-4)
