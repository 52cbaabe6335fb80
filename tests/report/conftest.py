"""Two made-up runs that look like real ones: chest-like images in 2D, brain-like volumes in
3D.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from feathide.report import Case, Run

DETECTORS = ("kd", "bu", "kd+bu", "lid", "maha", "svm", "dnn")
LAYERS = ("stem", *(f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in (0, 1)))
# how far each detector's scores move, in clean standard deviations, by condition
SEPARATION = {
    "pgd+plain": (2.2, 0.4, 2.3, 1.8, 9.0, 5.0, 4.0),
    "cw+plain": (1.9, 0.3, 2.0, 1.5, 7.0, 4.0, 3.0),
    "pgd+hfc": (0.5, 0.3, 0.5, 0.2, -1.5, 0.4, 0.7),
    "pgd+evade": (-0.5, 0.2, -0.4, 0.0, -1.0, 0.1, 0.2),
}
KNOWLEDGE = {"plain": "oblivious", "hfc": "feature-aware", "evade": "detector-aware"}


def smooth(rng: np.random.Generator, shape: tuple[int, ...], times: int) -> np.ndarray:
    """Smoothed noise in [0, 1]."""
    x = rng.standard_normal(shape)
    for _ in range(times):
        for axis in range(len(shape)):
            x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    return (x - x.min()) / (x.max() - x.min())


def chest(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Something between a radiograph and a cloud: two dark lungs in a bright body, on 256 grey
    levels.
    """
    grid = np.meshgrid(*(np.linspace(-1, 1, s) for s in shape), indexing="ij")
    y, x = grid[-2], grid[-1]
    depth = sum((g**2 for g in grid[:-2]), np.zeros(shape))
    body = np.exp(-((x / 0.95) ** 6) - (y / 1.1) ** 8 - depth)
    lungs = sum(
        np.exp(-(((x - s * 0.42) / 0.28) ** 4) - ((y + 0.05) / 0.65) ** 4 - 2 * depth)
        for s in (-1, 1)
    )
    ribs = 0.06 * np.sin(18 * (y + 0.25 * x**2)) * lungs
    image = (
        0.75 * body
        - 0.5 * lungs
        + ribs
        + 0.25 * smooth(rng, shape, 4) * body
        + 0.03 * rng.standard_normal(shape)
    )
    return np.rint(np.clip(image, 0, 1) * 255) / 255


def make_cases(
    rng: np.random.Generator, condition: str, clean: list[np.ndarray], eps: float
) -> list[Case]:
    cases = []
    for i, image in enumerate(clean):
        noise = np.sign(smooth(rng, image.shape[1:], 1) - 0.5) * eps
        adversarial = np.rint(np.clip(image + noise, 0, 1) * 255) / 255
        label, fooled = i % 2, i % 13 != 5
        shift = dict(zip(DETECTORS, SEPARATION[condition], strict=True))
        base = {d: float(rng.standard_normal()) for d in DETECTORS}
        cases.append(
            Case(
                id=f"patient{i // 2:03d}/view{i % 2}.png",
                label=label,
                target=1 - label,
                predicted=1 - label if fooled else label,
                fooled=fooled,
                clean_predicted=label,
                clean=image.astype(np.float32),
                adversarial=adversarial.astype(np.float32),
                scores={d: base[d] + shift[d] for d in DETECTORS},
                clean_scores=base,
                energies={
                    name: float(rng.gamma(9, 1 / 9) * (1 if "hfc" in condition else 1 + k))
                    for k, name in enumerate(LAYERS)
                },
            )
        )
    return cases


def make_scores(rng: np.random.Generator, count: int) -> pd.DataFrame:
    rows = []
    for condition, shift in {"clean": (0,) * 7, "noisy": (0.1,) * 7, **SEPARATION}.items():
        fooled = rng.random(count) < 0.97
        for detector, by in zip(DETECTORS, shift, strict=True):
            score = rng.standard_normal(count) + by
            value = np.exp(score) * 40 if detector == "maha" else score
            for i in range(count):
                rows.append(
                    (
                        condition,
                        detector,
                        f"case{i:03d}",
                        value[i],
                        bool(fooled[i]) and "+" in condition,
                    )
                )
    return pd.DataFrame(rows, columns=["condition", "detector", "id", "score", "fooled"])


def make_table(dataset: str, classifier: str, eps: float) -> pd.DataFrame:
    rows = []

    def add(attack, objective, at, detector, metric, value, wide=0.03, n=200):  # type: ignore[no-untyped-def]
        ends = (value - wide, value + wide) if wide else (np.nan, np.nan)
        share = metric not in ("linf_max", "seconds_per_image", "gradients_per_image")
        low, high = (max(0.0, ends[0]), min(1.0, ends[1])) if share else ends
        known = KNOWLEDGE.get(objective, "none")
        rows.append(
            (
                dataset,
                classifier,
                attack,
                objective,
                known,
                at,
                detector,
                metric,
                value,
                low,
                high,
                n,
                0,
            )
        )

    add("", "", 0.0, "", "accuracy", 0.953, 0.02, 600)
    add("", "", 0.0, "", "calibration_error", 0.041, 0.02, 600)
    add("", "", 0.0, "", "brier_score", 0.037, 0.01, 600)
    for name, shift in SEPARATION.items():
        attack, objective = name.split("+")
        for scale in (0.25, 0.5, 1.0, 2.0):
            at = eps * scale
            success = {0.25: 0.61, 0.5: 0.92, 1.0: 0.995, 2.0: 1.0}[scale]
            add(attack, objective, at, "", "success", success, 0.015)
            add(attack, objective, at, "", "accuracy", 1 - success, 0.015)
            add(attack, objective, at, "", "linf_max", at, 0)
            add(
                attack,
                objective,
                at,
                "",
                "seconds_per_image",
                0.41 * (2 if objective != "plain" else 1),
                0,
            )
            add(attack, objective, at, "", "gradients_per_image", 100.0, 0)
            for detector, by in zip(DETECTORS, shift, strict=True):
                move = by * scale**0.3
                auc = 1 / (1 + np.exp(-1.2 * move))
                add(attack, objective, at, detector, "auc", auc)
                add(
                    attack,
                    objective,
                    at,
                    detector,
                    "tpr_at_fpr10",
                    min(1.0, 0.1 + auc**3 * 0.9),
                )
                for level, cut in ((10, 1.28), (5, 1.64), (1, 2.33)):
                    add(
                        attack,
                        objective,
                        at,
                        detector,
                        f"slips_through_fpr{level}",
                        success / (1 + np.exp(1.7 * (move - cut))),
                    )
    columns = [
        "dataset",
        "classifier",
        "attack",
        "objective",
        "knowledge",
        "eps",
        "detector",
        "metric",
        "value",
        "low",
        "high",
        "n",
        "seed",
    ]
    return pd.DataFrame(rows, columns=columns)


def make_curves(rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    layers = list(enumerate(LAYERS))
    grow = {"clean": 0.0, "noisy": 0.03, "pgd+plain": 0.9, "pgd+hfc": 0.06}
    outlier = [
        (c, name, 1 + g * k, (1 + g * k) * 0.9, (1 + g * k) * 1.1)
        for c, g in grow.items()
        for k, name in layers
    ]
    place = {
        "clean": (0, 0),
        "noisy": (0.2, 0.1),
        "pgd+plain": (6, 1.5),
        "pgd+hfc": (0.5, 0.7),
    }
    points = [
        (c, *(rng.standard_normal(2) + at)) for c, at in place.items() for _ in range(120)
    ]
    mixture = [
        (n, c, m, -np.log2(m) * 0.2 * (c + 1) + (m > 8) * -0.4 + k * 0.1)
        for k, n in layers
        for c in (0, 1)
        for m in (1, 2, 4, 8, 16)
    ]
    stress = [
        (g, n, b * (1 + k), b * (1 + k) * 0.85, b * (1 + k) * 1.15)
        for g, b in (("chest", 1.4), ("natural", 0.5))
        for k, n in layers
    ]
    nets = ("resnet18", "vgg16_bn", "densenet121")
    transfer = [
        (c, s, v, 0.98 if s == v else 0.35 + 0.2 * rng.random())
        for c in ("pgd+plain", "pgd+hfc")
        for s in nets
        for v in nets
    ]
    weights = [
        (w, m, v, v - 0.04, min(1.0, v + 0.04))
        for w in (0.1, 0.3, 1.0, 3.0)
        for m, v in (("success", 0.98 - w / 9), ("auc kd", 0.75 - w / 12))
    ]
    arms_race = [
        (r, d, v, v - 0.05, v + 0.05)
        for r in (0, 1, 2, 3)
        for d, v in (("maha", 0.9 - 0.2 * (r % 2)), ("svm", 0.8 - 0.1 * r))
    ]
    return {
        "mixture": pd.DataFrame(
            mixture, columns=["layer", "class", "components", "heldout"]
        ),
        "lambda": pd.DataFrame(
            weights, columns=["weight", "metric", "value", "low", "high"]
        ),
        "outlierness": pd.DataFrame(
            outlier, columns=["condition", "layer", "value", "low", "high"]
        ),
        "embedding": pd.DataFrame(points, columns=["condition", "x", "y"]).assign(
            layer=LAYERS[-1], method="pca"
        ),
        "stress": pd.DataFrame(stress, columns=["group", "layer", "value", "low", "high"]),
        "transfer": pd.DataFrame(
            transfer, columns=["condition", "substitute", "victim", "value"]
        ),
        "arms_race": pd.DataFrame(
            arms_race, columns=["round", "detector", "value", "low", "high"]
        ),
    }


SANITY_CHECKS = (
    (
        "Larger budget, more success",
        "pass",
        "success falls as eps grows",
        "eps 1, 2, 4, 8: 0.61, 0.92, 0.995, 1.00",
    ),
    ("Unbounded attack succeeds", "pass", "eps = whole box does not reach 100 %", "1.00"),
    (
        "Converged",
        "warn",
        "doubling the steps changes success by a point or more",
        "CW: 0.984 at 50 steps, 0.996 at 100",
    ),
    (
        "Detector-aware beats oblivious",
        "pass",
        "an attack that knows the guard slips through less often",
        "0.93 against 0.71",
    ),
)


def make_run(shape: tuple[int, ...] = (64, 64), count: int = 40, **changes: object) -> Run:
    rng = np.random.default_rng(7)
    eps = 4 / 255
    clean = [chest(rng, shape)[None] for _ in range(count)]
    plan = {
        "dataset": {"name": "phantoms", "seed": 0},
        "classifier": {"name": "resnet18"},
        "attacks": ["pgd", "cw"],
        "eps": eps,
        "steps": 100,
    }
    values: dict[str, object] = {
        "title": "Phantom radiographs, ResNet-18",
        "synthetic": True,
        "plan": plan,
        "versions": {"feathide": "0.1.0", "torch": "2.9.0", "python": "3.12"},
        "table": make_table("phantoms", "resnet18", eps),
        "threat": {
            "goal": "make the classifier report the other class",
            "knowledge": "the classifier and clean training images",
            "norm": "L-infinity",
            "eps": eps,
            "box": (0.0, 1.0),
            "step": 1 / 255,
            "unit": "grey levels",
            "success": "the image as stored, rounded to 8 bits, is predicted as the target class",
        },
        "class_names": ("normal", "opacity"),
        "thresholds": {d: {"fpr10": 1.28, "fpr5": 1.64, "fpr1": 2.33} for d in DETECTORS}
        | {"maha": {"fpr10": 144.0, "fpr5": 206.0, "fpr1": 411.0}},
        "scores": make_scores(rng, 200),
        "curves": make_curves(rng),
        "sanity_checks": [
            {
                "name": n,
                "status": s,
                "raised_if": r,
                "why": "a sound attack behaves so",
                "do": "give it more steps",
                "detail": d,
            }
            for n, s, r, d in SANITY_CHECKS
        ],
        "caveats": ["The classifier was trained on 400 images only."],
        "cases": {c: make_cases(rng, c, clean, eps) for c in ("pgd+plain", "pgd+hfc")},
        "cost": pd.DataFrame(
            {
                "stage": ["train", "attack", "detect"],
                "seconds": [61.2, 190.4, 8.8],
                "forward_backward": [9000, 80000, 0],
            }
        ),
        "counts": {
            "images": 600,
            "test": 240,
            "correct": 229,
            "attacked": 200,
            "skipped files": 0,
        },
    }
    return Run(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def run() -> Run:
    return make_run()


@pytest.fixture(scope="session")
def volumes() -> Run:
    return make_run((24, 32, 28), 8, title="Phantom volumes, ResNet-18 3D")


@pytest.fixture(scope="session")
def make() -> Callable[..., Run]:
    """``make_run``, for a run with other values."""
    return make_run
