"""A guarded segmentation network, attacked by someone who hides and by someone who does not:
``python benchmarks/dense.py ../shared/data/hippocampus_seg3d.npz``.

Trains a small 3D U-Net on the hippocampus (head and body), or takes ``--weights``. Then erases the head with PGD and with PGD + HFC, and asks detectors that have
learnt from plain attacks on other patients. Prints Markdown: how often the head is gone, its volume and Dice before and after, the AUC of each detector with its
interval, and what slips through at 10 % false positives.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from feathide import (
    DETECTORS,
    HFC,
    Evidence,
    FeatureClassifier,
    Grid,
    Linf,
    MixtureBank,
    pgd,
)
from feathide.attacks import noise
from feathide.detectors import Detector
from feathide.detectors.regions import PerRegion
from feathide.goals import Erase
from feathide.metrics.readouts import dice, volume_ml
from feathide.metrics.statistics import auc, bootstrap, proportion, threshold
from feathide.models.regions import Structures

LABELS = {"head": 1, "body": 2}
Data = dict[str, Tensor]


def network() -> nn.Module:
    return UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=1, norm="batch", dropout=0.1)


def train(net: nn.Module, data: Data, epochs: int) -> None:
    """Dice and cross-entropy, Adam, one cycle of the learning rate."""
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    x, y = data["train_images"], data["train_masks"][:, None]
    optimiser = torch.optim.Adam(net.parameters())
    total = epochs * len(torch.arange(len(x)).split(4))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=total)
    for _ in range(epochs):
        net.train()
        for rows in torch.randperm(len(x)).split(4):
            optimiser.zero_grad()
            loss_of(net(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()


def overlap(classifier: FeatureClassifier, x: Tensor, masks: Tensor) -> list[float]:
    """The mean Dice coefficient of each structure."""
    found = torch.cat([classifier(part).predicted for part in x.split(4)])
    return [float(dice(found == c, masks == c).nanmean()) for c in LABELS.values()]


def load(path: Path) -> Data:
    with np.load(path) as file:
        data = {k: torch.from_numpy(file[k]) for k in file.files}
    for part in ("train", "val", "test"):
        data[f"{part}_images"] = data[f"{part}_images"].float()[:, None] / 255
        data[f"{part}_masks"] = data[f"{part}_masks"].long()
    return data


def attacked(
    classifier: FeatureClassifier,
    attack: object,
    x: Tensor,
    spacing: Tensor,
    names: list[str],
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Adversarial images, whether each is a hit as stored, and the read-outs before and after."""
    images, hits, before, after = [], [], [], []
    for rows in torch.arange(len(x)).split(8):
        clean = classifier.extract(x[rows], batch_size=8)
        goal = Erase(1, percent=90).goal(clean.predicted, spacing=spacing[rows])
        found = attack(  # type: ignore[operator]
            classifier, x[rows], goal, ids=[names[i] for i in rows], grid=Grid(1 / 255)
        ).adversarial
        out = classifier.extract(found, batch_size=8)
        images.append(found)
        hits.append(goal.hit(out))
        before.append(clean.predicted)
        after.append(out.predicted)
    return torch.cat(images), torch.cat(hits), [torch.cat(before), torch.cat(after)]


def detectors() -> dict[str, Detector]:
    names = ("kd", "bu", "lid", "maha", "svm", "dnn")
    return {
        **{name: DETECTORS[name]() for name in names},
        "regions-maha": PerRegion(),
        "regions-dnn": PerRegion(DETECTORS["dnn"](), name="regions-dnn"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--eps", type=float, default=4.0, help="in 255ths")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--patients", type=int, default=33, help="attacked in either half")
    parser.add_argument("--draws", type=int, default=5, help="of dropout")
    parser.add_argument("--hiding", type=float, default=0.1, help="the weight of HFC")
    options = parser.parse_args()
    torch.manual_seed(0)
    data, net = load(options.data), network()
    if options.weights is None:
        train(net, data, options.epochs)
        torch.save(net.state_dict(), "unet3d.pt")
    else:
        net.load_state_dict(torch.load(options.weights, weights_only=True))
    net.eval().requires_grad_(False)
    plain = FeatureClassifier(net, "conv", regions=Structures(LABELS, rim=2))
    with torch.no_grad():
        scores = overlap(plain, data["test_images"], data["test_masks"])
    print(f"Dice on test: head {scores[0]:.3f}, body {scores[1]:.3f}\n", flush=True)
    seen = FeatureClassifier(
        net, "conv", regions=Structures(LABELS, rim=2), dropout_samples=options.draws
    )

    def extract(x: Tensor):  # type: ignore[no-untyped-def]
        return seen.extract(x, batch_size=8)

    reference = extract(data["train_images"])
    bank = MixtureBank.fit(reference, reference.normal_class)
    x, spacing = data["test_images"], data["test_spacing"]
    half = min(len(x) // 2, options.patients)
    x, spacing = x[: 2 * half], spacing[: 2 * half]
    names = [f"test-{i}" for i in range(len(x))]
    threat = Linf(options.eps / 255)
    walk = {"steps": options.steps, "decay": "cosine", "step_size": 0.25}
    attacks = {
        "PGD": pgd(threat, **walk),
        "PGD + HFC": pgd(threat, hide=options.hiding * HFC(bank), **walk),
    }
    fit = slice(0, half)
    known, _, _ = attacked(plain, attacks["PGD"], x[fit], spacing[fit], names[fit])
    goal = Erase(1).goal(plain.extract(x).predicted, spacing=spacing)
    noisy = noise(threat)(plain, x, goal, ids=names, grid=Grid(1 / 255)).adversarial
    evidence = Evidence(
        reference,
        reference.normal_class,
        *[extract(v) for v in (x[fit], noisy[fit], known)],
    )
    fitted = {name: d.fit(evidence) for name, d in detectors().items()}
    calibration = extract(data["val_images"])
    cuts = {n: threshold(d.score(calibration), 0.1) for n, d in fitted.items()}
    rest = slice(half, None)
    negative = {
        n: torch.cat([d.score(extract(x[rest])), d.score(extract(noisy[rest]))])
        for n, d in fitted.items()
    }
    for title, attack in attacks.items():
        images, hits, (before, after) = attacked(
            plain, attack, x[rest], spacing[rest], names[rest]
        )
        out, true = extract(images), data["test_masks"][half : 2 * half] == 1
        ml = [volume_ml(m == 1, spacing[rest]).mean() for m in (before, after)]
        overlaps = [dice(m == 1, true).nanmean() for m in (before, after)]
        share = proportion(hits.numpy())
        print(
            f"\n{title}: the head is gone in {hits.float().mean():.0%} [{share.low:.0%}, {share.high:.0%}] of "
            f"{len(hits)}; volume {ml[0]:.2f} -> {ml[1]:.2f} ml; "
            f"Dice {overlaps[0]:.2f} -> {overlaps[1]:.2f}\n"
        )
        print("| detector | AUC | 95 % | slips through |\n|---|---|---|---|")
        for name, detector in fitted.items():
            score = detector.score(out).double()
            value = auc(negative[name], score)
            # clean and noisy images of a patient come together
            patients = np.arange(len(score))
            spread = bootstrap(
                auc,
                negative[name].numpy(),
                score.numpy(),
                groups=(np.tile(patients, 2), patients),
            )
            slips = float((hits & (score <= cuts[name])).float().mean())
            print(
                f"| {name} | {value:.2f} | {spread.low:.2f} to {spread.high:.2f} | {slips:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
