"""Training: what is learnt, what is returned, what is left untouched."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from feathide.attacks.threats import Linf
from feathide.data import Cases, cases_of_arrays
from feathide.errors import InputError
from feathide.models.loading import check_network
from feathide.models.weights import save_weights, weights_digest
from feathide.models.zoo import build
from feathide.training.adversarial import Adversary
from feathide.training.augmentation import Augment
from feathide.training.data import Images, loader, measure, reader
from feathide.training.trainer import _loss, load_trained, train_classifier

COUNTS = {"train": 64, "val": 24, "test": 8}
FAST = {"epochs": 3, "batch_size": 8, "lr": 1e-2}


def striped(
    shape: tuple[int, ...] = (16, 16), channels: int = 1, classes: int = 2
) -> Cases:
    """Noise in which class k has every (k + 2)-th plane bright: of the same mean, told apart by
    texture.
    """
    rng = np.random.default_rng(0)
    n = sum(COUNTS.values())
    labels = np.arange(n) % classes
    planes = np.arange(shape[-1])
    images = rng.integers(60, 120, (n, channels, *shape))
    for k in range(classes):
        bright = (planes % (k + 2) == 0) * 100.0
        images[labels == k] += (bright - bright.mean() + 50).astype(np.int64)
    splits = np.repeat(list(COUNTS), list(COUNTS.values()))
    return cases_of_arrays(images.astype(np.uint8), labels, splits=splits)


def findings(cases: Cases) -> Cases:
    """The same images with two findings: the class, and the class reversed except for some."""
    y = cases.labels
    both = np.stack([y, np.where(np.arange(len(y)) % 8 == 0, y, 1 - y)], axis=1)
    return cases_of_arrays(
        (cases.images(np.arange(len(y))) * 255).round().astype(np.uint8),
        both,
        splits=cases.splits,
    )


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, which stays empty."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


def normalised(
    cases: Cases, split: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    x = torch.from_numpy(cases.images(cases.where(split)))
    shape = (1, -1, *[1] * len(cases.shape))
    return (x - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)


def test_it_learns_returns_the_best_epoch_and_says_nothing(
    elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = striped()
    result = train_classifier(cases, "tiny", epochs=5, batch_size=8, lr=1e-2)
    assert capfd.readouterr() == ("", "")
    assert result.val_accuracy > 0.9
    assert result.val_auc > 0.95
    assert not result.model.training
    assert result.digest == weights_digest(result.model)

    x = cases.images(cases.where("train"))
    np.testing.assert_allclose(result.mean, x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(result.std, x.std((0, 2, 3)), rtol=1e-5)

    losses = [h["val_loss"] for h in result.history]
    assert result.epoch == int(np.argmin(losses))
    y = torch.from_numpy(cases.labels[cases.where("val")])
    with torch.no_grad():
        z = result.model(normalised(cases, "val", result.mean, result.std))
    assert float((z.argmax(1) == y).float().mean()) == pytest.approx(result.val_accuracy)
    # 64 training images, 32 of each class: the weighted loss is the plain one
    assert float(nn.functional.cross_entropy(z, y)) == pytest.approx(min(losses), rel=1e-5)


def test_the_same_seed_gives_the_same_weights_and_global_states_stay(
    elsewhere: Path,
) -> None:
    def states() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
        )

    before = states()
    cases = striped()
    first = train_classifier(cases, "tiny", seed=1, **FAST)
    assert states() == before
    torch.rand(7)
    assert train_classifier(cases, "tiny", seed=1, **FAST).digest == first.digest
    assert train_classifier(cases, "tiny", seed=2, **FAST).digest != first.digest
    assert (
        train_classifier(cases, "tiny", seed=1, augment=False, **FAST).digest
        != first.digest
    )


@pytest.mark.parametrize(
    ("cases", "arch", "head", "outputs"),
    [
        (striped((8, 8, 16)), "tiny3d", None, 2),
        (striped(channels=3), "tiny", None, 2),
        (striped(classes=3), "tiny", None, 3),
        (striped(), "tiny", "sigmoid", 1),
        (findings(striped()), "tiny", None, 2),
    ],
    ids=["volumes", "colour", "three classes", "sigmoid", "findings"],
)
def test_shapes_and_heads(
    cases: Cases, arch: str, head: str, outputs: int, tmp_path: Path
) -> None:
    out = tmp_path / "weights" / "w.safetensors"
    result = train_classifier(
        cases, arch, head=head, epochs=6, batch_size=8, lr=1e-2, out=out
    )  # type: ignore[arg-type]
    assert result.val_accuracy > 0.8
    assert len(result.mean) == len(result.std) == cases.channels
    x = normalised(cases, "val", result.mean, result.std)
    with torch.no_grad():
        z = result.model(x)
    assert z.shape == (len(x), outputs)

    again, about = load_trained(out)
    assert torch.equal(again(x), z)
    assert (about["arch"], about["head"], about["mean"]) == (
        arch,
        result.head,
        list(result.mean),
    )
    assert list(out.parent.iterdir()) == [out]


def test_a_users_own_network_is_copied_and_started_from_a_file(tmp_path: Path) -> None:
    cases = striped()
    own = build("tiny", channels=1, outputs=2, seed=5).eval()
    digest = weights_digest(own)
    trained = train_classifier(cases, own, **FAST)
    assert weights_digest(own) == digest != trained.digest
    assert not own.training

    save_weights(trained.model, tmp_path / "w.safetensors")
    more = train_classifier(
        cases, own, weights=tmp_path / "w.safetensors", epochs=1, batch_size=8, lr=1e-5
    )
    assert more.history[0]["val_loss"] < trained.history[0]["val_loss"]
    with pytest.raises(InputError, match="over 3 labels has 3 outputs, got 2"):
        train_classifier(striped(classes=3), own, **FAST)


def test_it_stops_when_validation_no_longer_improves() -> None:
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    result = train_classifier(striped(), frozen, epochs=20, patience=2, lr=1e-30)
    assert len(result.history) == 3
    assert result.epoch == 0


class More(nn.Module):
    """A network that gives features beside its logits, and in training other things, too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build("tiny", channels=1, outputs=2, stem="small", seed=0)

    def forward(self, x: torch.Tensor) -> object:
        z = self.net(x)
        return (
            {"features": x.flatten(1), "logits": z, "auxiliary": z + 1}
            if self.training
            else (x.flatten(1), z)
        )


@pytest.mark.parametrize("adversary", [None, Adversary(Linf(0.01), 1)])
def test_logits_are_found_in_what_a_network_gives(adversary: Adversary | None) -> None:
    plain = build("tiny", channels=1, outputs=2, stem="small", seed=0)
    found, wanted = (
        train_classifier(striped(), m, adversary=adversary, **FAST) for m in (More(), plain)
    )
    assert found.history == wanted.history


def test_progress_is_reported_and_ctrl_c_leaves_nothing_behind(
    elsewhere: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, str]] = []

    def stop_in_the_second_epoch(done: int, total: int, note: str) -> None:
        seen.append((done, total, note))
        if note.startswith("epoch 2"):
            raise KeyboardInterrupt

    handler, state = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        train_classifier(
            striped(),
            "tiny",
            out=tmp_path / "w.safetensors",
            progress=stop_in_the_second_epoch,
            **FAST,
        )
    assert [s[:2] for s in seen] == [(i, 24) for i in range(1, 10)]
    assert seen[0][2] == "epoch 1 of 3"
    assert (
        "validation accuracy 0." in seen[-1][2] or "validation accuracy 1." in seen[-1][2]
    )
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"splits": "train"}, {}, "the val split must hold images, got none"),
        ({"labels": 0}, {}, "every class .*got only \\[0\\]"),
        ({}, {"arch": "tiny3d"}, "takes 3D images, got 2D"),
        ({}, {"head": "findings"}, "softmax or sigmoid, got findings"),
        ({}, {"head": "sigmiod"}, "did you mean 'sigmoid'"),
        ({}, {"lr": 0}, "lr must be positive, got 0"),
        ({}, {"epochs": 0}, "epochs must be positive"),
        ({}, {"lr": 1e30}, "must be finite.*lower lr"),
        ({}, {"weights": "absent.pt"}, "weights must be a file"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    change: dict[str, object], options: dict[str, object], message: str, elsewhere: Path
) -> None:
    cases = striped()
    for column, value in change.items():
        getattr(cases, column)[:] = value
    arch = str(options.get("arch", "tiny"))
    rest = {k: v for k, v in options.items() if k != "arch"}
    with pytest.raises(InputError, match=message):
        train_classifier(cases, arch, **{**FAST, **rest})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "k", "head"),
    [
        (np.array([0] * 9 + [1]), 2, "softmax"),
        (np.array([0] * 6 + [1] * 3 + [2]), 3, "softmax"),
        (np.array([0] * 9 + [1]), 2, "sigmoid"),
        (np.array([[0, 1]] * 7 + [[1, 0]] * 2 + [[1, 1]]), 2, "findings"),
    ],
)
def test_rare_classes_weigh_as_much_as_frequent_ones(
    labels: np.ndarray, k: int, head: str
) -> None:
    """Where the images say nothing, equal scores for all classes are the best answer: the
    gradient is zero there.
    """
    bias = torch.zeros(1 if head == "sigmoid" else k, requires_grad=True)
    loss = _loss(labels, k, head)(bias.expand(len(labels), -1), torch.from_numpy(labels))  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(loss, bias)
    torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-6, rtol=0)
    assert loss.item() == pytest.approx(np.log(k if head == "softmax" else 2), rel=1e-5)


def test_splits_too_large_for_memory_give_the_same_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = striped()

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        rows = cases.where("train")
        return list(
            loader(
                Images(reader(cases, rows), cases.labels[rows], lambda x: x - 0.5), 24, 3
            )
        )

    held = batches()
    monkeypatch.setattr("feathide.training.data.HELD", 0)
    for (x, y), (x2, y2) in zip(held, batches(), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert [len(y) for _, y in held] == [24, 24]  # the incomplete third is left out


def test_a_large_offset_costs_no_digits() -> None:
    x = torch.rand(70, 2, 5, 5, generator=torch.Generator().manual_seed(0)).double() + 1e9
    mean, std = measure(lambda at: x[torch.from_numpy(at)], len(x))
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, x.std((0, 2, 3), correction=0), rtol=1e-6)


def test_the_trained_network_can_be_audited() -> None:
    cases = striped()
    result = train_classifier(cases, "tiny", **FAST)
    assert (
        check_network(result.model, normalised(cases, "val", result.mean, result.std), 2)
        == []
    )


# --- augmentation -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8), (3, 7, 6), (1, 5, 4, 3)])
def test_augmentation_in_any_number_of_axes(shape: tuple[int, ...]) -> None:
    x = torch.rand(6, *shape)
    changed = Augment(shift=0.3)(x, torch.Generator().manual_seed(0))
    assert changed.shape == x.shape
    assert not torch.equal(changed, x)
    assert torch.equal(changed, Augment(shift=0.3)(x, torch.Generator().manual_seed(0)))
    assert torch.equal(Augment(0, 0, 0)(x, torch.Generator()), x)


def test_a_shift_moves_the_image_and_repeats_its_edge() -> None:
    x = torch.arange(10.0).expand(200, 1, 4, 10)
    moved = Augment(shift=0.2, contrast=0, brightness=0)(
        x, torch.Generator().manual_seed(0)
    )
    offsets = set()
    for image in moved:
        # the other axis is constant and stays so
        assert torch.equal(image, image[:, :1].expand_as(image))
        row = image[0, 0]
        by = int(row[5]) - 5
        assert torch.equal(row, (torch.arange(10) + by).clamp(0, 9).float())
        offsets.add(by)
    assert offsets == {-2, -1, 0, 1, 2}


def test_flips_happen_only_where_asked_and_half_of_the_time() -> None:
    x = torch.arange(12.0).reshape(1, 1, 3, 4).expand(400, -1, -1, -1)
    still = Augment(shift=0, contrast=0, brightness=0)
    assert torch.equal(still(x, torch.Generator().manual_seed(0)), x)
    flipped = Augment(shift=0, contrast=0, brightness=0, flips=(1,))(
        x, torch.Generator().manual_seed(0)
    )
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], x[~mirrored])
    assert 0.4 < float(mirrored.float().mean()) < 0.6


def test_intensity_changes_stay_within_their_bounds_and_differ_between_images() -> None:
    x = torch.zeros(500, 1, 2, 2)
    brighter = Augment(shift=0, contrast=0, brightness=0.2)(
        x, torch.Generator().manual_seed(0)
    )
    assert 0.19 < float(brighter.abs().max()) <= 0.2
    steeper = Augment(shift=0, contrast=0.1, brightness=0)(
        x + 1, torch.Generator().manual_seed(0)
    )
    assert 0.89 < float(steeper.min()) < 0.91 < 1.09 < float(steeper.max()) < 1.11
    assert len(brighter[:, 0, 0, 0].unique()) > 400
