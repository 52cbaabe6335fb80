"""HFC inside the Adversarial Robustness Toolbox: its own PGD, drawn to where features are normal; and our PGD as an ART attack.

pip install feathide adversarial-robustness-toolbox
"""

import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

from feathide import HFC, FeatureClassifier, Goal, Linf, MixtureBank, load_cases, pgd
from feathide.integrations import with_objective
from feathide.integrations.art import ArtAttack
from feathide.training.trainer import train_classifier

cases = load_cases(
    "phantoms", size=32, limit=300
)  # synthetic radiographs; load_cases("chest.npz") reads yours
trained = train_classifier(cases, "tiny", epochs=6, augment=False)
classifier = FeatureClassifier(
    trained.model.eval(), "conv", mean=trained.mean, std=trained.std
)
train, test = cases.where("train"), cases.where("test")
bank = MixtureBank.fit(
    classifier.extract(torch.from_numpy(cases.images(train))),
    torch.from_numpy(cases.labels[train]),
)
x, y = torch.from_numpy(cases.images(test)), torch.from_numpy(cases.labels[test])
goal = Goal(y, 1 - y)


def show(name: str, found: torch.Tensor) -> None:
    out = classifier.extract(found)
    energy = float(bank.energy(out, out.predicted).sum(1).median())
    print(
        f"{name:35} taken for the target {float((out.predicted == 1 - y).double().mean()):4.0%}, energy {energy:.1f}"
    )


def estimator(network: torch.nn.Module, **more: object) -> PyTorchClassifier:
    return PyTorchClassifier(
        network, torch.nn.CrossEntropyLoss(), x.shape[1:], 2, clip_values=(0, 1), **more
    )


show("clean", x)
for weight in (0.0, 0.3):
    network = with_objective(
        classifier, weight * HFC(bank), x, goal, host="art", targeted=True
    )
    attack = ProjectedGradientDescent(
        estimator(network),
        eps=8 / 255,
        eps_step=1 / 255,
        max_iter=20,
        targeted=True,
        batch_size=len(x),
        verbose=False,
    )
    show(
        f"ART PGD + {weight} HFC",
        torch.from_numpy(attack.generate(x.numpy(), goal.target.numpy())),
    )

victim = estimator(trained.model, preprocessing=(trained.mean, trained.std))
ours = ArtAttack(
    victim, pgd(Linf(8 / 255), steps=20, hide=0.3 * HFC(bank)), layers="conv", targeted=True
)
show(
    "our PGD + 0.3 HFC, called by ART",
    torch.from_numpy(ours.generate(x.numpy(), goal.target.numpy())),
)
