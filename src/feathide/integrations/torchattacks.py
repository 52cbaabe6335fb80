"""Our attacks as torchattacks objects: called with images and labels. Needs torchattacks 3.5
or newer.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchattacks.attack import Attack as Base

from feathide.attacks.result import AttackResult
from feathide.integrations.goals import goal_of, image_ids
from feathide.integrations.hook import Guided
from feathide.integrations.versions import check_version
from feathide.models.classifier import FeatureClassifier

__all__ = ["TorchAttack"]

check_version("torchattacks")


class TorchAttack(Base):
    """An attack of ours as a torchattacks object.

    Call it with images (N, C, *S) in the classifier's box and labels (N,): the true classes or,
    after ``set_mode_targeted_by_label()``, the targets. The other class of the goal is the
    likeliest other one in the clean logits; HFC hides in it when the attack is untargeted.
    ``attack`` decides what counts as success: that class, or with ``objective=AwayFrom()`` any
    class but the true one. ``result(images, labels)`` returns everything that the attack found.

    Args:
        classifier: The classifier under attack.
        attack: The attack, such as ``pgd(Linf(4 / 255), hide=0.3 * HFC(bank))``.
        seed: The seed of its random numbers.
    """

    def __init__(
        self,
        classifier: FeatureClassifier,
        attack: Callable[..., AttackResult],
        seed: int = 0,
    ) -> None:
        Base.__init__(self, "feathide", Guided(classifier))
        self.supported_mode = ["default", "targeted"]
        self.classifier, self.ours, self.seed = classifier, attack, seed

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.result(images, labels).adversarial

    def result(self, images: Tensor, labels: Tensor) -> AttackResult:
        """The images, and which of them fool, by how much and after how many passes."""
        x = images.detach().to(self.device)
        labels = self.get_target_label(x, labels) if self.targeted else labels
        with torch.no_grad():
            goal = goal_of(self.classifier(x).logits, labels, targeted=self.targeted)
        return self.ours(self.classifier, x, goal, ids=image_ids(x), seed=self.seed)
