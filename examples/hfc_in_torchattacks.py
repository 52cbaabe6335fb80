"""HFC inside torchattacks: the library's own PGD, drawn to where features are normal; and our PGD as a torchattacks object.

pip install feathide
pip install --no-deps 'torchattacks>=3.5'    # 3.5 or newer; pip alone takes an older one, for the sake of requests
"""

import torch
import torchattacks

from feathide import HFC, FeatureClassifier, Goal, Linf, MixtureBank, load_cases, pgd
from feathide.integrations import with_objective
from feathide.integrations.torchattacks import TorchAttack
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
for weight in (0.0, 0.3):
    network = with_objective(
        classifier, weight * HFC(bank), x, goal, host="torchattacks", targeted=True
    )
    attack = torchattacks.PGD(network, eps=8 / 255, alpha=1 / 255, steps=20)
    attack.set_mode_targeted_by_label(quiet=True)
    torch.manual_seed(0)
    show(f"torchattacks PGD + {weight} HFC", attack(x, goal.target))
show(
    "our PGD + 0.3 HFC, called by them",
    TorchAttack(classifier, pgd(Linf(8 / 255), steps=20, hide=0.3 * HFC(bank)))(x, y),
)
