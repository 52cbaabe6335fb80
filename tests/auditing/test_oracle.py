"""An oracle for the results: results.csv recomputed from the source images and the stored files
alone.

NumPy, SciPy and scikit-learn do the counting and a network written down here predicts: none of
the functions that make the table, cut the thresholds or judge an attack is called. The runs are
small and their budgets are chosen so that attacks fail often enough to tell: some images stay
what they were and, of three classes, some go to the wrong one."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score
from torch import nn

from feathide.auditing.run import audit
from feathide.execution.store import Store
from feathide.pipeline.attacking import attack_rows
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import cells
from feathide.plans.plan import load_plan

RATES = {"fpr10": 0.10, "fpr5": 0.05, "fpr1": 0.01}
GUARDS = ("maha", "kd")
CENTRES = {2: (9.0, 22.0), 3: (8.0, 15.5, 23.0)}  # of the patches, by the number of classes
NO_SHARE = {
    *("auc", "calibration_error", "brier_score", "linf_max", "layers_constrained"),
    *("seconds_per_image", "gradients_per_image", "forwards_per_image"),
}

# attack, objective, eps (-1: none), detector, metric
Key = tuple[str, str, float, str, str]
Number = tuple[float, int]  # value and n


@dataclass(frozen=True)
class Case:
    """What is audited: ``classes`` places of a patch in images of ``axes`` axes, at budgets in
    grey levels.
    """

    classes: int
    axes: int
    levels: tuple[int, ...]
    counts: tuple[int, int, int] = (120, 24, 200)
    noise: float = 12.0
    bright: tuple[float, float] = (10.0, 110.0)
    epochs: int = 8
    steps: int = 20

    def arrays(self) -> dict[str, np.ndarray]:
        """An npz in the layout of MedMNIST; every image is a patient of its own."""
        found: dict[str, np.ndarray] = {}
        for seed, (split, n) in enumerate(
            zip(("train", "val", "test"), self.counts, strict=True)
        ):
            rng = np.random.default_rng(seed)
            label = np.arange(n) % self.classes
            shape = (32, 32) if self.axes == 2 else (8, 32, 32)
            axes = np.meshgrid(*(np.arange(s) for s in shape), indexing="ij")
            middle = [rng.uniform(0.35 * s, 0.65 * s, n) for s in shape[:-1]]
            middle.append(np.array(CENTRES[self.classes])[label] + rng.normal(0, 1.5, n))
            far = sum(
                (a[None] - m.reshape(-1, *[1] * self.axes)) ** 2
                for a, m in zip(axes, middle, strict=True)
            )
            bright = rng.uniform(*self.bright, n).reshape(-1, *[1] * self.axes)
            image = (
                70
                + bright * np.exp(-np.asarray(far) / 30)
                + rng.normal(0, self.noise, (n, *shape))
            )
            found[f"{split}_images"] = image.clip(0, 255).astype(np.uint8)
            found[f"{split}_labels"] = label[:, None]
        return found

    @property
    def plan(self) -> dict[str, Any]:
        return {
            "network": {
                "arch": "tiny" if self.axes == 2 else "tiny3d",
                "layers": "conv",
                "train": {"epochs": self.epochs, "augment": False},
            },
            "eps": [n / 255 for n in self.levels],
            "attacks": ["fgsm", "pgd"],
            "objectives": [
                "plain",
                {
                    "name": "hfc",
                    "weight": "auto",
                    "weights": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
                },
            ],
            "detectors": list(GUARDS),
            "schedule": {"steps": self.steps},
            "batch_size": 32,
            "sanity_checks": "off",
        }


CASES = {
    "2d, two classes": Case(2, 2, (4,)),
    "2d, three classes, two budgets": Case(3, 2, (3, 16)),
    "3d, two classes, two budgets": Case(
        2, 3, (2, 4), counts=(80, 16, 100), noise=25.0, bright=(20.0, 180.0), steps=10
    ),
}


class Oracle:
    """The numbers of a finished run, read from its folder and from the images that it was
    given.
    """

    def __init__(self, folder: Path, case: Case, source: Mapping[str, np.ndarray]) -> None:
        self.folder, self.case = folder, case
        splits = ("train", "val", "test")
        self.image = np.concatenate([source[f"{s}_images"] for s in splits])
        self.label = np.concatenate([source[f"{s}_labels"][:, 0] for s in splits])
        self.split = np.repeat(splits, [len(source[f"{s}_labels"]) for s in splits])

    # --- reading --------------------------------------------------------------------------------

    def one(self, pattern: str) -> Path:
        found = sorted(self.folder.glob(pattern))
        assert len(found) == 1, f"{pattern}: {found}"
        return found[0]

    @staticmethod
    def joined(folder: Path, part: str, *names: str) -> list[np.ndarray]:
        """Arrays of all batches of a part."""
        batches = [np.load(f) for f in sorted(folder.glob(f"{part}-*.npz"))]
        return [np.concatenate([b[n] for b in batches]) for n in names]

    def outputs(self, condition: str, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and logits that were stored."""
        rows, logits = self.joined(
            self.one(f"outputs/{condition}-*"), part, "rows", "logits"
        )
        return rows, logits

    @property
    def layers(self) -> int:
        """How many layers were watched."""
        return len(np.load(next(self.one("outputs/clean-*").glob("test-*.npz")))["layers"])

    def guard(self, detector: str, eps: float) -> Path:
        """The folder of the scores of a detector at a budget."""
        return self.one(f"scores/{detector}-*/noisy-{eps:.6g}-test.npz").parent

    def score(
        self, detector: str, eps: float, condition: str, part: str, rows: np.ndarray
    ) -> np.ndarray:
        """Scores of some rows, in their order."""
        stored = np.load(self.guard(detector, eps) / f"{condition}-{part}.npz")
        return pd.Series(stored["score"], stored["rows"]).loc[rows].to_numpy()

    def limits(self, detector: str, eps: float) -> dict[str, float]:
        """The smallest score of the calibration split, clean and noisy, beyond which there is at
        most the allowed share.
        """
        stored = [
            np.load(self.guard(detector, eps) / f"{c}-calibration.npz")
            for c in ("clean", f"noisy-{eps:.6g}")
        ]
        scores = np.concatenate([s["score"] for s in stored])
        assert all(
            sorted(s["rows"]) == sorted(self.outputs("clean", "calibration")[0])
            for s in stored
        )
        return {
            n: min(t for t in scores if np.mean(scores > t) <= rate + 1e-9)
            for n, rate in RATES.items()
        }

    def conditions(self, eps: float) -> dict[tuple[str, str], str]:
        """Attack and objective -> the name of what was stored of them at a budget."""
        scored = {
            f.name.removesuffix("-test.npz")
            for f in self.guard(GUARDS[0], eps).glob("*-test.npz")
        }
        attacked = {
            d.name for d in self.folder.glob("adversarial/*") if any(d.glob("test-*.npz"))
        }
        names = [c.rsplit("-", 2) for c in sorted(scored & attacked)]
        return {
            (attack, objective): f"{attack}-{objective}-{digest}"
            for attack, objective, digest in names
        }

    # --- the network ----------------------------------------------------------------------------

    @cached_property
    def network(self) -> Callable[[np.ndarray], np.ndarray]:
        """Images of grey levels -> predicted classes."""
        stored = np.load(self.one("classifier/*.npz"))
        conv, norm, pool = {
            2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
            3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
        }[self.case.axes]
        widths, strides = (1, 16, 32, 32, 64, 64), (2, 2, 1, 2, 1)
        units = [
            nn.Sequential(conv(i, o, 3, s, 1, bias=False), norm(o), nn.ReLU())
            for i, o, s in zip(widths, widths[1:], strides, strict=False)
        ]
        net = nn.Sequential(
            *units, pool(1), nn.Flatten(), nn.Linear(64, self.case.classes)
        ).eval()
        net.load_state_dict(
            {k[2:]: torch.from_numpy(stored[k]) for k in stored.files if k.startswith("w/")}
        )
        mean, std = float(stored["mean"][0]), float(stored["std"][0])

        def predicted(levels: np.ndarray) -> np.ndarray:
            x = torch.from_numpy((levels.astype(np.float64) / 255 - mean) / std).float()
            with torch.no_grad():
                found: np.ndarray = net(x).argmax(1).numpy()
            return found

        return predicted

    # --- the numbers ----------------------------------------------------------------------------

    def table(self) -> dict[Key, Number]:
        found = dict(self._classifier())
        for level in self.case.levels:
            found |= self._guards(level / 255)
            found |= self._attacks(level / 255)
        return found

    def _classifier(self) -> dict[Key, Number]:
        found: dict[Key, Number] = {}

        def add(metric: str, value: float, n: int) -> None:
            found["", "", -1.0, "", metric] = (float(value), n)

        for part in ("train", "calibration", "test"):
            rows, _ = self.outputs("clean", part)
            right = accuracy_score(
                self.label[rows], self.network(self.image[rows][:, None])
            )
            add("accuracy" if part == "test" else f"accuracy_{part}", right, len(rows))
        rows, logits = self.outputs("clean", "test")
        sure, label = softmax(logits.astype(np.float64), axis=1), self.label[rows]
        per_class = [
            brier_score_loss(label == k, sure[:, k]) for k in range(self.case.classes)
        ]
        add("brier_score", sum(per_class) / 2, len(rows))
        edges = np.digitize(sure.max(1), np.linspace(0, 1, 16), right=True)
        gaps = [
            ((sure.argmax(1) == label) - sure.max(1))[edges == b].sum()
            for b in np.unique(edges)
        ]
        add("calibration_error", np.abs(gaps).sum() / len(rows), len(rows))
        for shift in self.shifts:
            rows, logits = self.outputs(f"shifted-{shift}", "test")
            add(
                f"accuracy_shifted_{shift}",
                accuracy_score(self.label[rows], logits.argmax(1)),
                len(rows),
            )
        return found

    @property
    def shifts(self) -> list[str]:
        folders = sorted(self.folder.glob("outputs/shifted-*"))
        assert folders
        return [
            re.sub("(-[0-9a-f]{16})+$", "", f.name).removeprefix("shifted-")
            for f in folders
        ]

    def _guards(self, eps: float) -> dict[Key, Number]:
        found: dict[Key, Number] = {}
        rows, _ = self.outputs("clean", "test")
        right = self.network(self.image[rows][:, None]) == self.label[rows]
        for detector in GUARDS:
            score = {
                c: self.score(detector, eps, c, "test", rows)
                for c in (
                    "clean",
                    f"noisy-{eps:.6g}",
                    *(f"shifted-{s}" for s in self.shifts),
                )
            }
            for name, limit in self.limits(detector, eps).items():
                metric = f"false_alarms_{name}"
                shares = {metric: "clean", f"{metric}_noise": f"noisy-{eps:.6g}"}
                if name == "fpr10":
                    shares |= {f"{metric}_shifted_{s}": f"shifted-{s}" for s in self.shifts}
                    kept = right[score["clean"] <= limit]
                    found["", "", eps, detector, "accuracy_accepted_fpr10"] = (
                        kept.mean(),
                        len(kept),
                    )
                for what, condition in shares.items():
                    found["", "", eps, detector, what] = (
                        np.mean(score[condition] > limit),
                        len(rows),
                    )
        return found

    def attacked(self, condition: str) -> dict[str, np.ndarray]:
        """What an attack left, judged anew: rows, whether the target is reached, whether the
        prediction changed, the largest change.
        """
        names = ("rows", "image", "target", "first", "gradients", "forwards")
        stored = dict(
            zip(
                names,
                self.joined(self.folder / "adversarial" / condition, "test", *names),
                strict=True,
            )
        )
        rows, image = stored["rows"], stored["image"]
        prediction = self.network(image)
        change = (
            np.abs(image[:, 0].astype(int) - self.image[rows]).reshape(len(rows), -1).max(1)
        )
        return stored | {
            "label": self.label[rows],
            "prediction": prediction,
            "reached": prediction == stored["target"],
            "changed": prediction != self.label[rows],
            "change": change,
        }

    def _attacks(self, eps: float) -> dict[Key, Number]:
        found: dict[Key, Number] = {}
        every, _ = self.outputs("clean", "test")
        wrong = self.network(self.image[every][:, None]) != self.label[every]
        any_slips = {(d, n): np.zeros(len(every), bool) for d in GUARDS for n in RATES}
        for (attack, objective), condition in self.conditions(eps).items():
            a = self.attacked(condition)
            rows, reached, n = a["rows"], a["reached"], len(a["rows"])

            def add(
                metric: str,
                values: np.ndarray,
                detector: str = "",
                *,
                own: tuple[str, str] = (attack, objective),
            ) -> None:
                found[(*own, eps, detector, metric)] = (float(np.mean(values)), len(values))

            add("success", reached)
            found[attack, objective, eps, "", "linf_max"] = (a["change"].max() / 255, n)
            if objective == "hfc":  # as planned, on every layer
                found[attack, objective, eps, "", "layers_constrained"] = (1.0, self.layers)
            add("gradients_per_image", a["gradients"])
            add("forwards_per_image", a["forwards"])
            notes = (self.folder / "seconds" / "adversarial" / condition).glob(
                "test-*.json"
            )
            seconds = sum(float(json.loads(f.read_text())["content"]) for f in notes)
            found[attack, objective, eps, "", "seconds_per_image"] = (seconds / n, n)
            if (claimed := a["first"] >= 0).any():
                add("lost_on_disk", ~reached[claimed])
            loose = self.folder / "rounding" / f"{condition}.npz"
            if loose.exists() and (before := np.load(loose)["before"]).any():
                add("lost_if_rounded_afterwards", ~np.load(loose)["after"][before])
            for detector in GUARDS:
                score = self.score(detector, eps, condition, "test", rows)
                clean = self.score(detector, eps, "clean", "test", rows)
                noisy = self.score(detector, eps, f"noisy-{eps:.6g}", "test", rows)
                limits = self.limits(detector, eps)
                if reached.any():
                    scores = np.concatenate([clean, noisy, score[reached]])
                    truth = np.repeat([0, 1], [2 * n, reached.sum()])
                    found[attack, objective, eps, detector, "auc"] = (
                        roc_auc_score(truth, scores),
                        len(scores),
                    )
                    add("tpr_at_fpr10", score[reached] > limits["fpr10"], detector)
                for name, limit in limits.items():
                    slips = reached & (score <= limit)
                    add(f"slips_through_{name}", slips, detector)
                    any_slips[detector, name] |= np.isin(every, rows[slips])
                    if name == "fpr10":
                        passes = self.score(detector, eps, "clean", "test", every) <= limit
                        add(
                            "slips_through_fpr10_all",
                            np.isin(every, rows[slips]) | (wrong & passes),
                            detector,
                        )
        for (detector, name), slips in any_slips.items():
            found["worst", "any", eps, detector, f"slips_through_{name}"] = (
                slips[~wrong].mean(),
                int((~wrong).sum()),
            )
        return found


@dataclass(frozen=True)
class Run:
    case: Case
    context: Context
    oracle: Oracle
    table: pd.DataFrame


@pytest.fixture(scope="module", params=list(CASES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("oracle")
    arrays = case.arrays()
    np.savez(folder / "patches.npz", **arrays)
    plan = load_plan({"data": str(folder / "patches.npz"), **case.plan})
    audit(plan, folder / "out")
    table = pd.read_csv(
        folder / "out" / "results.csv",
        keep_default_na=False,
        na_values={"eps": [""], "value": [""]},
    )
    return Run(
        case,
        context_of(plan.model_dump_json(), Store(folder / "out")),
        Oracle(folder / "out", case, arrays),
        table,
    )


def test_every_number_of_the_table_is_what_the_files_say(run: Run) -> None:
    """No row differs, none is missing and none is there that the oracle does not know."""
    stored: dict[Key, Number] = {}
    for r in run.table.itertuples():
        key = (
            str(r.attack),
            str(r.objective),
            -1.0 if np.isnan(r.eps) else float(r.eps),
            str(r.detector),
            str(r.metric),
        )
        assert key not in stored
        stored[key] = (float(r.value), int(r.n))
    want = run.oracle.table()
    assert set(stored) == set(want)
    wrong = {
        k: (stored[k], want[k])
        for k in want
        if stored[k] != pytest.approx(want[k], rel=1e-7, abs=1e-9)
    }
    assert not wrong


def test_the_intervals_of_shares_are_wilsons(run: Run) -> None:
    """Every image is a patient of its own, so the interval is that of SciPy; a share at a
    threshold is less certain, and other numbers lie in theirs.
    """
    for r in run.table.itertuples():
        if r.low == "":
            continue
        value, low, high, n = float(r.value), float(r.low), float(r.high), int(r.n)
        assert low - 1e-9 <= value <= high + 1e-9
        if r.metric not in NO_SHARE:
            wilson = binomtest(round(value * n), n).proportion_ci(0.95, method="wilson")
            if "_fpr" in r.metric:
                assert high - low > 0.8 * (wilson.high - wilson.low), r.metric
            else:
                assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-6), (
                    r.metric
                )


def test_the_runs_can_tell(run: Run) -> None:
    """What is counted wrongly shows: some attacks fail, some reach the wrong class, and each rate
    of false alarms has a threshold of its own.
    """
    o = run.oracle
    found = [
        o.attacked(c)
        for level in run.case.levels
        for c in o.conditions(level / 255).values()
    ]
    assert any(0.2 < a["reached"].mean() < 0.98 for a in found)
    if run.case.classes > 2:
        assert sum((a["changed"] & ~a["reached"]).sum() for a in found) >= 2
    limits = [o.limits(d, level / 255) for d in GUARDS for level in run.case.levels]
    assert all(x["fpr10"] < x["fpr5"] < x["fpr1"] for x in limits)


def test_the_attacked_set_is_what_the_network_gets_right(run: Run) -> None:
    o = run.oracle
    parts = [
        o.outputs("clean", part)[0] for part in ("detector-training", "calibration", "test")
    ]
    assert sorted(np.concatenate(parts)) == list(np.flatnonzero(o.split == "test"))
    rows = parts[-1]
    right = rows[o.network(o.image[rows][:, None]) == o.label[rows]]
    for level in run.case.levels:
        conditions = o.conditions(level / 255)
        assert set(conditions) == {("fgsm", "plain"), ("pgd", "plain"), ("pgd", "hfc")}
        for condition in conditions.values():
            a = o.attacked(condition)
            assert list(a["rows"]) == list(right)
            assert (a["target"] != a["label"]).all() and set(a["target"]) == set(
                range(run.case.classes)
            )
            assert 0 < a["change"].max() <= level
            stored = o.joined(
                o.folder / "adversarial" / condition, "test", "label", "prediction"
            )
            assert [list(s) for s in stored] == [list(a["label"]), list(a["prediction"])]
            _, logits = o.outputs(condition, "test")
            assert list(logits.argmax(1)) == list(a["prediction"])


def test_the_weight_is_the_best_of_the_search_and_is_used(run: Run) -> None:
    """Lambda is the largest at which the attack succeeds as often as without hiding, else the
    smallest, and the stored images are those that it gives.
    """
    told = 0
    for level in run.case.levels:
        condition = run.oracle.conditions(level / 255)["pgd", "hfc"]
        search = np.load(run.oracle.folder / "tuning" / f"{condition}.npz")
        weights, success = search["weights"], search["success"]
        assert weights[0] == 0 and (np.diff(weights) > 0).all()
        good = weights[1:][success[1:] >= success[0] - 1e-9]
        best, smallest = max(good, default=weights[1]), weights[1]
        assert search["weight"] == best
        cell = next(
            c
            for c in cells(run.context)
            if (c.attack.name, c.objective.name, c.eps)
            == ("pgd", "hfc", pytest.approx(level / 255))
        )
        stored = np.load(run.oracle.folder / "adversarial" / condition / "test-0000.npz")
        images = {
            w: attack_rows(run.context, cell, stored["rows"], weight=w)["image"]
            for w in (best, smallest)
        }
        assert np.array_equal(images[best], stored["image"])
        if best > smallest:
            told += 1
            assert not np.array_equal(images[smallest], stored["image"])
    assert told  # else the best could not be told from the smallest


def test_hfc_hides(run: Run) -> None:
    """Past the detector of distances between features, which plain PGD does not pass, at the
    largest budget.
    """
    value = run.table[
        (run.table.attack == "pgd")
        & (run.table.detector == "maha")
        & (run.table.metric == "auc")
    ]
    value = (
        value[np.isclose(value.eps, max(run.case.levels) / 255)]
        .set_index("objective")
        .value.astype(float)
    )
    assert value["hfc"] < value["plain"] - 0.2
