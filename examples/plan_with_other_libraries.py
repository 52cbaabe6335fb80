"""An audit whose attacks and detectors come from other libraries and from this very file, by their names in the plan. The libraries' attacks hide by HFC, too.

pip install feathide torchattacks foolbox adversarial-robustness-toolbox pytorch-ood
"""

import sys
from tempfile import mkdtemp

import torch

from feathide import audit, load_plan


def sign_step(classifier, x, goal, ids, seed, eps):
    """An attack of one's own: one step towards the target. What it gives is brought into the ball, stored, and judged by feathide."""
    leaf = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        classifier(leaf).logits, goal.target, reduction="sum"
    )
    return x - eps * torch.autograd.grad(loss, leaf)[0].sign()


if __name__ == "__main__":
    plan = load_plan(
        {
            "data": {"path": "phantoms", "size": 32, "limit": 300},
            "network": {
                "arch": "tiny",
                "layers": "conv",
                "train": {"epochs": 6, "augment": False},
                "trust": True,
            },
            "eps": "8/255",
            "attacks": [
                {"name": "torchattacks:PGD", "options": {"steps": 10}},
                "foolbox:LinfPGD(steps=10, rel_stepsize=0.1)",
                "art:BasicIterativeMethod(max_iter=10)",
                f"{__file__}:sign_step",
            ],
            "objectives": ["plain", "hfc"],
            "detectors": [
                "kd",
                "sklearn:IsolationForest(layers='all')",
                "pytorch_ood:Mahalanobis",
                "art:BinaryActivationDetector",
            ],
            "train_attack": "fgsm",
            "sanity_checks": "off",
        }
    )
    table = audit(plan, sys.argv[1] if len(sys.argv) > 1 else mkdtemp()).table
    auc = table[table.metric == "auc"]
    print(
        auc.pivot(index=["attack", "objective"], columns="detector", values="value")
        .round(2)
        .to_string()
    )
