"""Detectors across the border: ours as scikit-learn outlier detectors, and scikit-learn's as detectors of an audit.

pip install feathide
"""

import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from feathide import (
    DETECTORS,
    Evidence,
    FeatureClassifier,
    Goal,
    Linf,
    Outputs,
    fgsm,
    load_cases,
    pgd,
)
from feathide.integrations import OutlierDetector, SklearnDetector
from feathide.attacks.presets import noise
from feathide.training.trainer import train_classifier

cases = load_cases(
    "phantoms", size=32, limit=300
)  # synthetic radiographs; load_cases("chest.npz") reads yours
trained = train_classifier(cases, "tiny", epochs=6, augment=False)
classifier = FeatureClassifier(
    trained.model.eval(), "conv", mean=trained.mean, std=trained.std
)
train, test = cases.where("train"), cases.where("test")
labels = torch.from_numpy(cases.labels)
out = classifier.extract(torch.from_numpy(cases.images(train)))


def shown(attack, rows) -> Outputs:
    result = attack(Linf(8 / 255))(
        classifier,
        torch.from_numpy(cases.images(rows)),
        Goal(labels[rows], 1 - labels[rows]),
        ids=cases.ids[rows],
    )
    return classifier.extract(result.adversarial)


fit, rest = test[::2], test[1::2]
clean, attacked = classifier.extract(torch.from_numpy(cases.images(rest))), shown(pgd, rest)
truth = [0] * len(rest) + [1] * len(rest)

guard = OutlierDetector(contamination=0.05).fit(
    out.last.numpy()
)  # fit, score_samples, predict on arrays
flagged = [float((guard.predict(o.last.numpy()) == -1).mean()) for o in (clean, attacked)]
print(
    f"as an outlier detector of scikit-learn: flags {flagged[0]:.0%} of clean and {flagged[1]:.0%} of attacked images"
)

evidence = Evidence(
    out,
    labels[train],
    classifier.extract(torch.from_numpy(cases.images(fit))),
    shown(noise, fit),
    shown(fgsm, fit),
)
for detector in (
    SklearnDetector(IsolationForest(random_state=0), layers="all"),
    DETECTORS["gmm"](),
):
    scores = detector.fit(evidence).score(Outputs.cat([clean, attacked]))
    print(f"{detector.name:16} AUC of PGD against clean {roc_auc_score(truth, scores):.2f}")
