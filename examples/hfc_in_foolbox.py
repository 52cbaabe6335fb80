"""HFC inside Foolbox: its own PGD, drawn to where features are normal; and the Foolbox object as an attack in our audit.

pip install feathide foolbox
"""

import foolbox
import torch

from feathide import HFC, FeatureClassifier, Goal, Linf, MixtureBank, load_cases
from feathide.integrations import Foreign, foreign_attack, with_objective
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


show("clean", x)
attack = foolbox.attacks.LinfPGD(rel_stepsize=0.125, steps=20)
for weight in (0.0, 0.3):
    network = with_objective(
        classifier, weight * HFC(bank), x, goal, host="foolbox", targeted=True
    )
    model = foolbox.PyTorchModel(network, bounds=classifier.box, device=x.device)
    torch.manual_seed(0)
    _, found, _ = attack(
        model, x, foolbox.criteria.TargetedMisclassification(goal.target), epsilons=8 / 255
    )
    show(f"Foolbox PGD + {weight} HFC", found)

ours = Foreign(foreign_attack(attack, targeted=True, eps=8 / 255), Linf(8 / 255))
result = ours(classifier, x, goal, ids=cases.ids[test])
print(
    f"as an attack of an audit: {float(result.fooled.double().mean()):.0%} fooled after {int(result.gradients[0])} gradients"
)
