"""Training: what is learnt, what is returned, what is left untouched."""

import random
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from feathide.attacks.threats import Linf
from feathide.data import Cases, cases_of_arrays
from feathide.errors import InputError
from feathide.metrics.calibration import calibration_error
from feathide.models.loading import check_network
from feathide.models.weights import save_weights, weights_digest
from feathide.models.zoo import build
from feathide.training.adversarial import Adversary
from feathide.training.augmentation import Augment
from feathide.training.data import Images, loader, measure, reader, sampling_weights
from feathide.training.fine_tuning import head_names
from feathide.training.judging import judge
from feathide.training.loop import Training, cosine
from feathide.training.losses import balanced_loss
from feathide.training.trainer import load_trained, train_classifier

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
    with pytest.raises(KeyboardInterrupt, match="no weights were written"):
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
        ({}, {"lr_backbone": 0}, "lr_backbone must be positive"),
        (
            {},
            {"freeze": "blocks.*"},
            r"freeze: 'blocks.\*' must name modules.*backbone, 0, 1",
        ),
        ({}, {"freeze": "*"}, "must leave weights that learn.*freeze: backbone"),
        ({}, {"balance": "sample"}, "did you mean 'sampling'"),
        ({}, {"schedule": "cosin"}, "did you mean 'cosine'"),
        ({}, {"stop_on": "accuracy"}, "unknown stop_on"),
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
    loss = balanced_loss(labels, k, head)(
        bias.expand(len(labels), -1), torch.from_numpy(labels)
    )  # type: ignore[arg-type]
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


# --- fine-tuning --------------------------------------------------------------------------------


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    """The names of what is no longer the same."""
    old = before.state_dict()
    return {
        k
        for k, v in after.state_dict().items()
        if not k.endswith("num_batches_tracked") and not torch.equal(v, old[k])
    }


@pytest.mark.parametrize("adversary", [None, Adversary(Linf(0.01), 1)])
@pytest.mark.parametrize(
    ("freeze", "learn"),
    [
        ("backbone", {"7"}),
        ("0|1.*|2|3", {"4", "7"}),
        ("0|1|2|3|4.0*|7.bias", {"4", "7"}),
    ],
)
def test_what_is_frozen_stays_with_its_statistics(
    freeze: str, learn: set[str], adversary: Adversary | None
) -> None:
    own = build("tiny", channels=1, outputs=2, seed=5).eval()
    result = train_classifier(striped(), own, freeze=freeze, adversary=adversary, **FAST)
    changed = moved(own, result.model)
    assert {name.split(".")[0] for name in changed} == learn
    if "7.bias" in freeze:
        assert {"7.weight", "4.1.weight", "4.1.running_mean"} <= changed
        assert "7.bias" not in changed and "4.0.weight" not in changed
    assert all(p.requires_grad for p in result.model.parameters())
    frozen = sum(p.numel() for n, p in own.named_parameters() if n not in changed)
    assert result.frozen == frozen


def test_the_backbone_learns_at_its_own_rate_and_the_head_at_the_other() -> None:
    own = build("tiny", channels=1, outputs=2, seed=5).eval()
    options = {**FAST, "schedule": "constant"}
    slow = train_classifier(striped(), own, lr_backbone=1e-12, **options).model
    still = {"weight": 1e-9, "bias": 1e-9}
    old = own.state_dict()
    for name, value in slow.state_dict().items():
        far = float((value - old[name]).abs().max())
        if name.startswith("7."):
            assert far > 1e-3
        elif name.rpartition(".")[2] in still:
            assert far < 1e-9
    # at one rate it is the training without groups
    same, plain = (
        train_classifier(striped(), own, **{**FAST, **more})
        for more in ({"lr_backbone": FAST["lr"]}, {})
    )
    assert same.history == plain.history


def test_what_a_file_lacks_belongs_to_the_head() -> None:
    model = build("tiny", channels=1, outputs=2)
    assert head_names(model) == {"7.weight", "7.bias"}
    assert head_names(model, ("0.0.weight",)) == {"7.weight", "7.bias", "0.0.weight"}


def test_pretrained_weights_another_head_and_a_frozen_backbone(tmp_path: Path) -> None:
    cases = striped()
    three = train_classifier(striped(classes=3), "tiny", epochs=6, batch_size=8, lr=1e-2)
    save_weights(three.model, tmp_path / "w.safetensors")
    options = {"weights": tmp_path / "w.safetensors", "freeze": "backbone", **FAST}
    result = train_classifier(cases, "tiny", **options)  # type: ignore[arg-type]
    assert result.begun is not None
    assert result.begun.fresh == ("7.weight", "7.bias")
    assert {n.split(".")[0] for n in moved_of_equal_shape(three.model, result.model)} == {
        "7"
    }
    assert result.val_auc > 0.9


def moved_of_equal_shape(before: nn.Module, after: nn.Module) -> set[str]:
    """The names of what has another value or another shape."""
    old = before.state_dict()
    return {
        k
        for k, v in after.state_dict().items()
        if not k.endswith("num_batches_tracked")
        and (v.shape != old[k].shape or not torch.equal(v, old[k]))
    }


def test_balanced_sampling_draws_all_classes_as_often() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    weights = sampling_weights(labels)
    assert float(weights[labels == 0].sum()) == pytest.approx(float(weights[90:].sum()))
    images = Images(lambda at: torch.zeros(len(at), 1, 1), labels, lambda x: x)
    drawn = torch.cat(
        [y for s in range(10) for _, y in loader(images, 25, s, weights=weights)]
    )
    assert len(drawn) == 1000
    assert 0.44 < float(drawn.float().mean()) < 0.56


def test_sampling_and_no_balance_weigh_the_loss_as_they_say() -> None:
    cases = striped()
    # three of class 0 for each of class 1
    rare = cases.take(np.flatnonzero((cases.labels == 0) | (np.arange(96) % 6 == 1)))
    y = torch.from_numpy(rare.labels[rare.where("val")])
    for balance, weigh in (("weights", True), ("sampling", True), ("none", False)):
        result = train_classifier(rare, "tiny", balance=balance, **FAST)  # type: ignore[arg-type]
        with torch.no_grad():
            z = result.model(normalised(rare, "val", result.mean, result.std))
        share = torch.bincount(torch.from_numpy(rare.labels[rare.where("train")])).float()
        weight = share.sum() / (2 * share) if weigh else None
        loss = float(nn.functional.cross_entropy(z, y, weight))
        assert loss == pytest.approx(result.history[result.epoch]["val_loss"], rel=1e-4)
    with pytest.raises(InputError, match="sampling is for images of one class each"):
        train_classifier(findings(cases), "tiny", balance="sampling", **FAST)


def test_the_cosine_rises_briefly_and_ends_at_zero() -> None:
    share = [cosine(100)(i) for i in range(101)]
    assert share[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert share[5] == 1
    assert share[52] == pytest.approx(0.5, abs=0.02)
    assert share[100] == pytest.approx(0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(share[5:]))


def test_the_epoch_of_the_best_area_is_kept_and_training_stops_by_it() -> None:
    result = train_classifier(
        striped(), "tiny", epochs=30, batch_size=8, lr=1e-2, patience=2, stop_on="auc"
    )
    areas = [h["val_auc"] for h in result.history]
    assert result.val_auc == max(areas)
    ties = [h for h in result.history if h["val_auc"] == max(areas)]
    assert result.epoch == min(ties, key=lambda h: h["val_loss"])["epoch"]
    # two epochs after the first of the best
    assert len(areas) == min(30, areas.index(max(areas)) + 3)


@pytest.mark.parametrize(
    ("stop_on", "order"),
    [("loss", [1, 2, 0, 3]), ("auc", [2, 0, 1, 3])],
)
def test_what_decides_is_the_loss_or_the_area_and_of_equal_areas_the_loss(
    stop_on: str, order: list[int]
) -> None:
    loss = balanced_loss(np.array([0, 1]), 2, "softmax")
    training = Training(
        build("tiny", channels=1, outputs=2),
        loss,
        loss,
        head="softmax",
        outputs=2,
        rates=[],
        schedule="constant",
        stop_on=stop_on,  # type: ignore[arg-type]
        frozen=(),
        steps=1,
        progress=None,
        harder=None,
    )
    areas = [(0.5, 0.9), (0.2, 0.8), (0.4, 0.9), (float("nan"), 0.99)]
    rows = [{"val_loss": a, "val_auc": b} for a, b in areas]
    assert sorted(range(4), key=lambda i: training.rank(rows[i])) == order


def test_the_area_must_be_there_to_stop_by_it() -> None:
    cases = striped()
    cases.labels[cases.where("val")] = 0
    with pytest.raises(InputError, match="stop_on: auc needs validation images of two"):
        train_classifier(cases, "tiny", stop_on="auc", **FAST)


@pytest.mark.parametrize("head", ["softmax", "sigmoid", "findings"])
def test_the_calibration_error_of_the_kept_epoch_is_told(head: str, tmp_path: Path) -> None:
    cases = findings(striped()) if head == "findings" else striped()
    out = tmp_path / "w.safetensors"
    result = train_classifier(cases, "tiny", head=head, out=out, **FAST)  # type: ignore[arg-type]
    x = normalised(cases, "val", result.mean, result.std)
    y = cases.labels[cases.where("val")].reshape(len(x), -1)
    with torch.no_grad():
        z = result.model(x)
    if head == "softmax":
        columns = [(z.softmax(1)[:, 1].numpy(), y[:, 0])]
    else:
        columns = [(z[:, j].sigmoid().numpy(), y[:, j]) for j in range(z.shape[1])]
    errors = [
        calibration_error(np.stack([1 - p, p], 1).astype(float), truth)
        for p, truth in columns
    ]
    assert result.val_calibration_error == pytest.approx(np.mean(errors), abs=1e-5)
    assert load_trained(out)[1]["val_calibration_error"] == result.val_calibration_error

    told = judge(
        result.model, cases, "val", head=result.head, mean=result.mean, std=result.std
    )
    assert told["n"] == len(x)
    assert told["accuracy"] == pytest.approx(result.val_accuracy)
    assert told["auc"] == pytest.approx(result.val_auc)
    assert told["calibration_error"] == pytest.approx(
        result.val_calibration_error, abs=1e-5
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


def test_a_turn_moves_what_lies_off_the_middle_by_its_angle() -> None:
    grid = torch.stack(
        torch.meshgrid(torch.arange(41.0), torch.arange(61.0), indexing="ij")
    )
    blob = torch.exp(-((grid - torch.tensor([20.0, 45.0])[:, None, None]) ** 2).sum(0) / 8)
    x = blob.expand(200, 1, 41, 61)
    turned = Augment(shift=0, contrast=0, brightness=0, rotate=30)(
        x, torch.Generator().manual_seed(0)
    )
    weight = turned / turned.sum((2, 3), keepdim=True)
    place = (weight * grid).sum((2, 3))  # (200, 2): row and column
    offset = place - torch.tensor([20.0, 30.0])
    # the same distance from the middle, in pixels: not stretched with the longer axis
    torch.testing.assert_close(
        offset.norm(dim=1), torch.full((200,), 15.0), atol=0.1, rtol=0
    )
    angle = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 1]))
    assert 29 < float(angle.max()) < 30.2 and -30.2 < float(angle.min()) < -29


@pytest.mark.parametrize("shape", [(12, 16), (8, 10, 12)])
def test_a_crop_shows_a_part_of_the_image_enlarged(shape: tuple[int, ...]) -> None:
    ramp = torch.linspace(0, 1, shape[-1]).expand(100, 1, *shape)
    cut = Augment(shift=0, contrast=0, brightness=0, crop=0.4)(
        ramp, torch.Generator().manual_seed(0)
    )
    span = cut[..., -1].flatten(1)[:, 0] - cut[..., 0].flatten(1)[:, 0]
    assert 0.55 < float(span.min()) < 0.68 and 0.95 < float(span.max()) <= 1
    # inside the image, and the places differ
    assert float(cut.min()) >= 0 and float(cut.max()) <= 1
    assert float(cut[..., 0].flatten(1)[:, 0].max()) > 0.2


def test_volumes_are_turned_about_each_axis() -> None:
    turns = Augment(shift=0, contrast=0, brightness=0, rotate=40)
    for axis in (2, 3, 4):
        ramp = torch.arange(9.0).reshape([9 if a == axis else 1 for a in range(5)])
        x = ramp.expand(90, 1, 9, 9, 9)
        turned = turns(x, torch.Generator().manual_seed(0))
        # a turn about the axis along which alone the image changes is not seen
        kept = (turned - x).abs().flatten(1).max(1).values < 1e-4
        assert 0.2 < float(kept.float().mean()) < 0.5
    with pytest.raises(InputError, match="two or three axes, got images of 1"):
        Augment(rotate=5)(torch.rand(2, 1, 9), torch.Generator().manual_seed(0))
