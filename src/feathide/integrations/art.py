"""Our attacks and detectors as objects of the Adversarial Robustness Toolbox (ART). Needs
adversarial-robustness-toolbox.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from art.attacks import EvasionAttack
from art.defences.detector.evasion import EvasionDetector
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.utils import check_and_transform_label_format

from feathide.attacks.result import AttackResult
from feathide.detectors import Detector
from feathide.errors import expected
from feathide.integrations.goals import goal_of, image_ids
from feathide.integrations.sklearn import one_class_evidence
from feathide.models.classifier import FeatureClassifier

__all__ = ["ArtAttack", "ArtDetector", "classifier_of"]


def classifier_of(
    estimator: PyTorchClassifier,
    layers: str | Sequence[str] = "blocks",
    *,
    head: str = "softmax",
) -> FeatureClassifier:
    """The classifier that an ART estimator stands for, with its clip values, mean and std.

    Args:
        estimator: The ART estimator.
        layers: Names, globs or presets of the layers to read.
        head: "softmax", "sigmoid" or ("finding", j), as for ``FeatureClassifier``.

    Returns:
        The classifier, whose box are the clip values.

    Raises:
        InputError: An estimator without clip values, or with preprocessing other than a mean and a
            std.
    """
    if estimator.clip_values is None:
        raise expected(
            "an estimator with clip_values",
            got="none",
            do="give the least and greatest image value",
        )
    steps = estimator.preprocessing_operations
    if (
        any(
            not isinstance(s, StandardisationMeanStd | StandardisationMeanStdPyTorch)
            for s in steps
        )
        or len(steps) > 1
    ):
        got = ", ".join(type(s).__name__ for s in steps)
        raise expected(
            "preprocessing by one mean and one std",
            got=got,
            do="make the other steps a part of the network",
        )
    mean = std = ()
    if steps and not (np.all(steps[0].mean == 0) and np.all(steps[0].std == 1)):
        mean, std = (
            tuple(np.atleast_1d(v).reshape(-1).tolist())
            for v in (steps[0].mean, steps[0].std)
        )
    lo, hi = (float(np.asarray(v).reshape(-1)[0]) for v in estimator.clip_values)
    return FeatureClassifier(
        estimator.model, layers, box=(lo, hi), mean=mean, std=std, head=head
    )


class ArtAttack(EvasionAttack):
    """An attack of ours as an ART ``EvasionAttack``.

    ``generate(x, y)``: y are the true classes (by default those that the estimator predicts), or
    with ``targeted`` the targets, as indices or one-hot. The other class of the goal is the
    likeliest other one in the clean logits. ``mask``: 1 where pixels may change, shaped to
    broadcast against x.

    Args:
        estimator: The ART estimator under attack.
        attack: The attack, such as ``pgd(Linf(4 / 255), hide=0.3 * HFC(bank))``.
        layers: The layers to read, as for ``classifier_of``, with which the bank is fitted too.
        head: As for ``classifier_of``.
        targeted: Whether labels are targets.
        batch_size: Images per batch.
        seed: The seed of the random numbers.
    """

    attack_params = [  # noqa: RUF012
        *EvasionAttack.attack_params,
        "attack",
        "targeted",
        "batch_size",
        "seed",
    ]
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        attack: Callable[..., AttackResult],
        *,
        layers: str | Sequence[str] = "blocks",
        head: str = "softmax",
        targeted: bool = False,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        EvasionAttack.__init__(self, estimator=estimator)
        self.classifier = classifier_of(estimator, layers, head=head)
        self.attack, self.batch_size, self.seed = attack, batch_size, seed
        self.targeted = targeted
        self._check_params()

    def generate(
        self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any
    ) -> np.ndarray:
        """The adversarial images, the shape and type of ``x``."""
        images = torch.from_numpy(np.asarray(x, dtype=np.float32))
        logits = self.classifier.extract(images, batch_size=self.batch_size).logits
        if y is None and self.targeted:
            raise expected(
                "targets y for a targeted attack",
                got="none",
                do="give the class wanted for each image",
            )
        classes = logits.shape[1]
        labels = logits.argmax(1) if y is None else _indices(y, classes)
        mask = kwargs.get("mask")
        masks = (
            None
            if mask is None
            else torch.from_numpy(np.broadcast_to(mask, x.shape).astype(np.float32))
        )
        goal, ids = goal_of(logits, labels, targeted=self.targeted), image_ids(images)
        found = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = images[part].to(self.classifier.device)
            result = self.attack(
                self.classifier,
                batch,
                goal[part],
                ids=ids[part],
                seed=self.seed,
                mask=None if masks is None else masks[part].to(batch),
            )
            found.append(result.adversarial.cpu())
        return torch.cat(found).numpy().astype(x.dtype)

    def _check_params(self) -> None:
        if not callable(self.attack) or self.batch_size < 1:
            raise expected(
                "an attack of feathide and a positive batch_size",
                got=f"{self.attack!r}, {self.batch_size}",
                do="correct it",
            )


class ArtDetector(EvasionDetector):
    """A detector that never sees an adversarial example, as an ART ``EvasionDetector`` of images.

    ``fit(x, y)`` learns from clean images and their classes. Every fourth image is held out; the
    threshold is the score that the share ``false_alarms`` of those exceeds. ``detect(x)`` returns
    the scores (higher is more suspicious) and which images are above the threshold.

    Args:
        classifier: The classifier that the detector guards.
        detector: The unfitted detector.
        false_alarms: The share of false alarms, in [0, 1).
    """

    defence_params = ["detector", "false_alarms"]  # noqa: RUF012

    def __init__(
        self,
        classifier: FeatureClassifier,
        detector: Detector,
        *,
        false_alarms: float = 0.05,
    ) -> None:
        EvasionDetector.__init__(self)
        self.classifier, self.detector, self.false_alarms = (
            classifier,
            detector,
            false_alarms,
        )
        self.threshold = float("nan")

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int = 128,
        nb_epochs: int = 1,
        **kwargs: Any,
    ) -> None:
        """Learn from clean images; ``nb_epochs`` means nothing here."""
        out = self.classifier.extract(
            torch.from_numpy(np.asarray(x, dtype=np.float32)), batch_size=batch_size
        )
        evidence = one_class_evidence(out, _indices(y, out.logits.shape[1]))
        self.detector = self.detector.fit(evidence)
        self.threshold = float(
            np.quantile(
                self.detector.score(evidence.clean).detach().numpy(), 1 - self.false_alarms
            )
        )

    def detect(
        self, x: np.ndarray, batch_size: int = 128, **kwargs: Any
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """``({"scores": (N,)}, is_adversarial (N,))``."""
        out = self.classifier.extract(
            torch.from_numpy(np.asarray(x, dtype=np.float32)), batch_size=batch_size
        )
        scores = self.detector.score(out).detach().numpy()
        return {"scores": scores}, scores > self.threshold


def _indices(y: np.ndarray, classes: int) -> torch.Tensor:
    found = check_and_transform_label_format(
        np.asarray(y), nb_classes=classes, return_one_hot=False
    )
    return torch.from_numpy(found.reshape(-1).astype(np.int64))
