"""Against adversarial-library (``adv-lib``): on a small 2D U-Net, with as many gradient evaluations
and the same budget, our attacks leave no higher Dice than its own.
"""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feathide.attacks import Linf, pgd, standard_dense
from feathide.goals import LowerDice
from feathide.losses import Objective
from feathide.losses.dense import CosPGD, MaskedCrossEntropy, SegPGD
from feathide.metrics.readouts import dice
from feathide.models.classifier import FeatureClassifier

# it imports its plots, which nothing here draws
sys.modules.setdefault("visdom", ModuleType("visdom"))
segmentation = pytest.importorskip(
    "adv_lib.attacks.segmentation", reason="adv-lib is not installed"
)

GRADIENTS = 60
IMAGES = 8
IDS = [str(i) for i in range(IMAGES)]


class SmallUNet(nn.Module):
    """One level down and up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
        )
        self.last = nn.Sequential(
            nn.Conv2d(24, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.down(x)
        return self.last(torch.cat([shallow, self.deep(shallow)], 1))


def discs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of a light disc with a darker core, and noise; the labels of the two."""
    random = torch.Generator().manual_seed(seed)
    grid = torch.stack(
        torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij"), -1
    )
    centre = 8 + 8 * torch.rand((n, 1, 1, 2), generator=random)
    far = (grid - centre).norm(dim=-1)
    masks = (far < 6).long() + (far < 3).long()
    x = 0.3 + 0.3 * (masks == 1) + 0.15 * (masks == 2)
    x = x + 0.08 * torch.randn(x.shape, generator=random)
    return x.clamp(0, 1)[:, None], masks


@pytest.fixture(scope="module")
def trained() -> tuple[FeatureClassifier, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallUNet()
        x, masks = discs(64, 0)
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            F.cross_entropy(net(x), masks).backward()
            optimiser.step()
    net.eval().requires_grad_(False)
    x, masks = discs(IMAGES, 1)
    classifier = FeatureClassifier(net, [])
    assert dice(classifier(x).predicted == 1, masks == 1).min() > 0.85
    return classifier, x, masks


THEIRS: dict[str, Callable[..., Tensor]] = {
    "DAG": lambda *a, **k: segmentation.dag(*a, max_iter=GRADIENTS, **k),
    "ASMA": lambda *a, **k: segmentation.asma(*a, num_steps=GRADIENTS, **k),
    "PDPGD": lambda *a, **k: segmentation.pdpgd(
        *a, num_steps=GRADIENTS, norm=float("inf"), **k
    ),
    "ALMA prox": lambda *a, **k: segmentation.alma_prox(
        *a, num_steps=GRADIENTS, constraint_masking=False, **k
    ),
}
OURS: dict[str, Objective] = {
    "masked": MaskedCrossEntropy(),
    "SegPGD": SegPGD(),
    "CosPGD": CosPGD(),
}


def left(classifier: FeatureClassifier, x: Tensor, masks: Tensor) -> Tensor:
    return dice(classifier.extract(x).predicted == 1, masks == 1)


@pytest.mark.parametrize("eps", [4 / 255, 12 / 255])
@pytest.mark.parametrize("name", THEIRS)
def test_ours_leave_no_higher_dice_than_theirs(
    trained: tuple[FeatureClassifier, Tensor, Tensor], name: str, eps: float
) -> None:
    classifier, x, masks = trained
    goal = LowerDice(1, to=0.0).goal(masks)
    with torch.compiler.set_stance("force_eager"):
        found = THEIRS[name](classifier.model, x, masks, masks=goal.region)
    # minimal perturbations, brought into the budget
    theirs = left(classifier, x + (found - x).clamp(-eps, eps), masks)
    for loss in OURS.values():
        attack = pgd(Linf(eps), steps=GRADIENTS, objective=loss, decay="cosine")
        result = attack(classifier, x, goal, ids=IDS)
        assert int(result.gradients.max()) <= GRADIENTS
        ours = left(classifier, result.adversarial, masks)
        assert ours.mean() <= theirs.mean() + 1e-6, (ours, theirs)
        assert (ours <= 0.5).sum() >= (theirs <= 0.5).sum()


def test_the_standard_attack_is_never_worse_for_any_image(
    trained: tuple[FeatureClassifier, Tensor, Tensor],
) -> None:
    classifier, x, masks = trained
    eps = 12 / 255
    goal = LowerDice(1, to=0.0).goal(masks)
    attack = standard_dense(Linf(eps), steps=GRADIENTS // 3)
    ours = left(classifier, attack(classifier, x, goal, ids=IDS).adversarial, masks)
    for run in THEIRS.values():
        with torch.compiler.set_stance("force_eager"):
            found = run(classifier.model, x, masks, masks=goal.region)
        theirs = left(classifier, x + (found - x).clamp(-eps, eps), masks)
        assert (ours <= theirs + 1e-6).all(), (ours, theirs)
