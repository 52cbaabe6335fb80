"""Our attacks and detectors as objects of torchattacks and ART."""

import numpy as np
import pytest
import torch
from torch import nn

from feathide.attacks.loop import Attack
from feathide.attacks.presets import pgd
from feathide.attacks.threats import Linf
from feathide.detectors import KernelDensity, MixtureEnergy
from feathide.errors import InputError
from feathide.integrations.goals import goal_of, image_ids
from feathide.losses import HFC, AwayFrom
from worlds.hosts import IDS, SHAPES, Small, small

EPS = 0.06


def hiding(world: Small) -> Attack:
    return pgd(Linf(EPS), steps=5, step_size=0.3, hide=0.3 * HFC(world.bank))


def expected(world: Small, targeted: bool) -> torch.Tensor:
    labels = world.goal.target if targeted else world.goal.source
    goal = goal_of(world.classifier.extract(world.x).logits, labels, targeted=targeted)
    return hiding(world)(
        world.classifier, world.x, goal, ids=image_ids(world.x), seed=3
    ).adversarial


@pytest.mark.parametrize("classes", [3, 1], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_torchattacks_object(shape: tuple[int, ...], targeted: bool, classes: int) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks")
    from feathide.integrations.torchattacks import TorchAttack

    world = small(shape, classes=classes)
    attack = TorchAttack(world.classifier, hiding(world), seed=3)
    assert isinstance(attack, torchattacks.attack.Attack)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    found = attack(world.x, world.goal.target if targeted else world.goal.source)
    assert torch.equal(found, expected(world, targeted))
    assert not torch.equal(found, world.x)
    assert attack.result(world.x, world.goal.target).fooled.shape == (len(world),)
    assert "feathide" in repr(attack)


def art_estimator(world: Small, **more: object) -> object:
    from art.estimators.classification import PyTorchClassifier

    arguments: dict[str, object] = {
        "clip_values": world.classifier.box,
        "preprocessing": (0.0, 1.0),
        **more,
    }
    network = world.classifier.model
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        tuple(world.x.shape[1:]),
        3,
        device_type="cpu",
        **arguments,
    )


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_art_object(shape: tuple[int, ...], targeted: bool) -> None:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from art.attacks import EvasionAttack

    from feathide.integrations.art import ArtAttack

    world = small(shape, dtype=torch.float32)
    attack = ArtAttack(
        art_estimator(world),
        hiding(world),
        layers="conv",
        batch_size=4,
        targeted=targeted,
        seed=3,
    )
    assert isinstance(attack, EvasionAttack)
    labels = (world.goal.target if targeted else world.goal.source).numpy()
    found = attack.generate(x=world.x.numpy(), y=labels)
    assert np.allclose(found, expected(world, targeted).numpy(), atol=1e-6)
    assert np.array_equal(found, attack.generate(x=world.x.numpy(), y=np.eye(3)[labels]))
    if not targeted:
        assert np.array_equal(found, attack.generate(x=world.x.numpy()))
    attack.set_params(seed=4)
    assert not np.array_equal(found, attack.generate(x=world.x.numpy(), y=labels))


def test_art_object_keeps_to_the_mask_and_to_arts_own_preprocessing() -> None:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from feathide.integrations.art import ArtAttack, classifier_of

    world = small(SHAPES[0], dtype=torch.float32)
    estimator = art_estimator(
        world, preprocessing=(np.array([0.4, 0.5, 0.6]), np.array([0.5, 0.6, 0.7]))
    )
    classifier = classifier_of(estimator, "conv")
    told = estimator.predict(world.x.numpy())
    assert np.allclose(classifier.extract(world.x).logits.numpy(), told, atol=1e-5)
    mask = np.zeros(SHAPES[0], dtype=np.float32)
    mask[:, 2:4] = 1
    attack = ArtAttack(
        estimator, pgd(Linf(EPS), steps=3, objective=AwayFrom()), layers="conv"
    )
    changed = attack.generate(x=world.x.numpy(), mask=mask) != world.x.numpy()
    assert changed[:, :, 2:4].any()
    assert not changed[:, :, :2].any()


def test_art_estimators_that_cannot_be_read_are_refused() -> None:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from art.defences.preprocessor import SpatialSmoothing

    from feathide.integrations.art import ArtAttack, classifier_of

    world = small(SHAPES[0], dtype=torch.float32)
    with pytest.raises(InputError, match="clip_values"):
        classifier_of(art_estimator(world, clip_values=None))
    with pytest.raises(InputError, match="SpatialSmoothing"):
        classifier_of(
            art_estimator(
                world, preprocessing_defences=SpatialSmoothing(channels_first=True)
            )
        )
    with pytest.raises(InputError, match="targets y"):
        ArtAttack(
            art_estimator(world), hiding(world), layers="conv", targeted=True
        ).generate(x=world.x.numpy())
    with pytest.raises(InputError, match="batch_size"):
        ArtAttack(art_estimator(world), hiding(world), layers="conv", batch_size=0)


@pytest.mark.parametrize(
    "detector", [KernelDensity(), MixtureEnergy()], ids=lambda d: d.name
)
def test_art_detector(detector: KernelDensity) -> None:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    from art.defences.detector.evasion import EvasionDetector

    from feathide.integrations.art import ArtDetector

    world = small(SHAPES[0], dtype=torch.float32)
    images = world.x.repeat(12, 1, 1, 1)
    images = images + 0.02 * torch.rand(
        images.shape, generator=torch.Generator().manual_seed(2)
    )
    guard = ArtDetector(world.classifier, detector, false_alarms=0.1)
    assert isinstance(guard, EvasionDetector)
    guard.fit(images.numpy(), world.classifier.extract(images).predicted.numpy())
    report, alarms = guard.detect(images[3::4].numpy())
    assert report["scores"].shape == alarms.shape == (27,)
    assert alarms.sum() == 3  # the share of false alarms, on what the threshold is made of
    strange = torch.rand(images.shape, generator=torch.Generator().manual_seed(3)).round()
    assert guard.detect(strange.numpy())[1].mean() > 0.9


def test_the_class_that_is_not_told_is_the_likeliest_other() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
    goal = goal_of(logits, torch.tensor([0, 1]), targeted=False)
    assert goal.source.tolist() == [0, 1]
    assert goal.target.tolist() == [1, 2]
    # the second is already taken for its target
    goal = goal_of(logits, torch.tensor([1, 1]), targeted=True)
    assert goal.target.tolist() == [1, 1]
    assert goal.source.tolist() == [0, 2]
