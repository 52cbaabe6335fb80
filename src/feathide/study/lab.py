"""The lab: what the tasks of one plan share, made once per process: cases, parts, classifier, stored outputs, mixtures, fitted detectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from feathide.addon import identity
from feathide.adversary import Adversary
from feathide.catalog import DETECTORS, OBJECTIVES
from feathide.classifier import FeatureClassifier
from feathide.data import Cases, load_cases, three_way
from feathide.data.eps import parse_eps
from feathide.detectors import Detector
from feathide.errors import expected
from feathide.geometry import L2, Grid, Linf, Noise, ThreatModel
from feathide.metrics import threshold
from feathide.mixture import MixtureBank
from feathide.models import Stem, build, check_network, load_network
from feathide.study.digest import digest
from feathide.study.mask import Region, load_region
from feathide.study.parts import DataPlan, ObjectivePlan
from feathide.study.plan import Cell, Plan, slug
from feathide.study.store import Store
from feathide.types import Box, Evidence, Goal, Outputs
from feathide.weights import load_weights, read_about, weights_digest

__all__ = ["FALSE_ALARMS", "Lab", "cases_of", "lab_of"]

FALSE_ALARMS = {"fpr10": 0.10, "fpr5": 0.05, "fpr1": 0.01}
PARTS = ("fit", "calibrate", "test")
PLAIN = ObjectivePlan(name="plain")
FORMAT = 2  # raise when the meaning of a stored file changes


@dataclass(frozen=True)
class Lab:
    """Everything of one plan that is not a result. ``plan`` decides it all; ``store`` is where finished tasks lie."""

    plan: Plan
    store: Store

    # --- images -------------------------------------------------------------------------------------------------------

    @cached_property
    def cases(self) -> Cases:
        """The images, checked: no patient and no image stands in two splits."""
        return cases_of(self.plan.data, self.plan.seed)

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of each case (N,), in the classes of the decision: for one finding of several, 0 absent and 1 present."""
        labels = self.cases.labels
        return labels if self.finding is None else labels[:, self.finding]

    @property
    def finding(self) -> int | None:
        """The finding that is attacked, for a multi-label network."""
        head = self.plan.network.head
        names = list(self.cases.class_names)
        if self.cases.labels.ndim == 1:
            return None
        name = head.removeprefix("finding:")
        if not head.startswith("finding:") or name not in names:
            raise expected(
                f"images with several findings need head: finding:NAME, NAME of {', '.join(names)}",
                got=head,
                do="name one",
            )
        return names.index(name)

    @property
    def class_names(self) -> tuple[str, ...]:
        names = tuple(self.cases.class_names)
        return names if self.finding is None else (f"no {names[self.finding]}", names[self.finding])

    @cached_property
    def parts(self) -> Mapping[str, np.ndarray]:
        """Rows of the held-out images: fit, calibrate, test, by patient; the classifier never saw them."""
        held = self.cases.where("test")
        s = self.plan.split
        part = three_way(self.cases.patients[held], fractions=(s.fit, s.calibrate, s.test), seed=self.plan.seed)
        rows = {name: held[part == name] for name in PARTS}
        return {name: r if name == "calibrate" or s.most is None else self.some(r, s.most) for name, r in rows.items()}

    def some(self, rows: np.ndarray, most: int) -> np.ndarray:
        """At most ``most`` of ``rows``, chosen by a hash of the id: the same ones whatever else is there."""
        rank = [sha256(f"{self.plan.seed}|{self.cases.ids[r]}".encode()).hexdigest() for r in rows]
        return np.sort(rows[np.argsort(rank)[:most]])

    def rows(self, part: str) -> np.ndarray:
        """The rows of a part; ``train`` are the classifier's own training images."""
        return self.cases.where("train") if part == "train" else self.parts[part]

    def batches(self, part: str) -> int:
        return -(-len(self.rows(part)) // self.plan.batch_size)

    def batch(self, part: str, index: int) -> np.ndarray:
        size = self.plan.batch_size
        return self.rows(part)[index * size : (index + 1) * size]

    def images(self, rows: np.ndarray) -> Tensor:
        """The images of ``rows`` in box units, on the classifier's device."""
        return torch.from_numpy(self.cases.images(rows)).to(self.device)

    def ids(self, rows: np.ndarray) -> tuple[str, ...]:
        return tuple(str(i) for i in self.cases.ids[rows])

    def goal(self, rows: np.ndarray) -> Goal:
        """From the true class to another one: the other of two, else drawn from the image's own random numbers."""
        source = torch.from_numpy(self.labels[rows].astype(np.int64))
        k = max(len(self.class_names), 2)
        u = Noise(self.plan.seed, self.ids(rows)).uniform((), draw="target")
        shift = 1 + (u * (k - 1)).long().clamp_max(k - 2)
        return Goal(source.to(self.device), ((source + shift) % k).to(self.device))

    @cached_property
    def region(self) -> Region | None:
        """Where pixels may change; None for everywhere."""
        plan = self.plan
        return None if plan.mask is None else load_region(plan.mask, self.cases, trust=plan.network.trust)

    @cached_property
    def organ(self) -> Region | None:
        """Where generated lesions may lie; None for everywhere."""
        plan = self.plan
        return None if plan.organ is None else load_region(plan.organ, self.cases, trust=plan.network.trust)

    def mask(self, x: Tensor) -> Tensor | None:
        """Which pixels of the images ``x`` may change, (N or 1, C or 1, *S); None for all of them."""
        return None if self.region is None else self.region.of(x)

    def terms(self, rows: np.ndarray, x: Tensor) -> dict[str, Any]:
        """What every attack on the images ``x`` of ``rows`` is bound to: ids, seed, what a file can hold, where it may change."""
        return {"ids": self.ids(rows), "seed": self.plan.seed, "grid": self.grid, "mask": self.mask(x)}

    @cached_property
    def grid(self) -> Grid | None:
        """What a file of this data can hold; None for floating-point files."""
        return Grid(self.cases.step) if self.cases.step > 0 else None

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """The eps of the plan, in box units."""
        found = tuple(float(parse_eps(e, self.cases)) for e in self.plan.eps)
        for given, eps in zip(self.plan.eps, found, strict=True):
            if not eps > 0:
                raise expected("eps must be positive", got=given, do="give a budget such as 4/255")
            if self.grid is not None and self.plan.norm == "linf" and eps < self.grid.step * 0.999:
                unit = self.cases.unit if self.cases.unit != "grey level" else "grey levels"
                do = "a smaller change cannot be written to a file of this format"
                if self.cases.box != (0.0, 1.0):
                    do += f"; a plain number is in units of the box {self.cases.box}: say for example '{4 * self.grid.step:g} {unit}'"
                raise expected(
                    f"eps must be at least one stored grey level ({self.grid.step:g} in box units)", got=given, do=do
                )
        return found

    def threat(self, eps: float) -> ThreatModel:
        return Linf(eps) if self.plan.norm == "linf" else L2(eps)

    # --- classifier ---------------------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def outputs_count(self) -> int:
        return 1 if self.plan.network.head == "sigmoid" else len(self.cases.class_names)

    @property
    def trains(self) -> bool:
        """Whether the classifier is trained here."""
        return not self.plan.network.own and self.plan.network.weights is None

    @property
    def network_seed(self) -> int:
        seed = self.plan.network.seed
        return self.plan.seed if seed is None else seed

    @cached_property
    def network_digest(self) -> str:
        """What the classifier is: the recipe of its training, or the content of its weights."""
        n = self.plan.network
        if self.trains:
            return digest([FORMAT, self.cases.digest, n.arch, n.head, n.train, n.window, self.network_seed])
        return digest([FORMAT, n.arch, n.arguments, weights_digest(self._network())])

    @cached_property
    def base(self) -> str:
        """The digest that everything below depends on: images, where they may change, classifier and what is read from it."""
        n = self.plan.network
        region = None if self.region is None else self.region.digest
        own = [n.head, n.layers, n.mean, n.std, self.window, self.plan.dropout_samples, self.plan.seed, region]
        own += [] if n.precision == "float32" else [n.precision]
        own += ["compiled"] if n.compile else []
        return digest([FORMAT, self.cases.digest, self.network_digest, *own])

    @property
    def classifier_key(self) -> str:
        return f"classifier/{slug(self.plan.network.arch)}-{self.network_digest}"

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What a file of weights written by ``feathide train`` says about its network; empty for others."""
        weights = self.plan.network.weights
        found = read_about(weights) if weights is not None and weights.endswith(".safetensors") else {}
        arch = found.get("arch") or self.plan.network.arch
        if arch != self.plan.network.arch and not self.plan.network.own:
            raise expected(
                f"{weights} holds a {arch}",
                got=f"network.arch: {self.plan.network.arch}",
                do="name the architecture of the weights",
            )
        return found

    @property
    def window(self) -> Box | None:
        """The part of the box that the classifier sees: as planned, or as its file of weights says."""
        low, high = self.plan.network.window or self.about.get("window") or (None, None)
        return None if low is None or high is None else (float(low), float(high))

    def empty_network(self) -> nn.Module:
        n = self.plan.network
        return self._built(n.arch, self.about.get("stem", n.train.stem))

    def _built(self, arch: str, stem: Stem) -> nn.Module:
        size, outputs = self.cases.shape, self.outputs_count
        return build(arch, channels=self.cases.channels, outputs=outputs, size=size, stem=stem, seed=self.plan.seed)

    def _network(self) -> nn.Module:
        n = self.plan.network
        if n.own:
            return load_network(n.arch, weights=n.weights, kwargs=n.arguments, trust=n.trust)
        model = self.empty_network()
        if n.weights is not None:
            load_weights(model, n.weights)
        return model.eval()

    @cached_property
    def classifier(self) -> FeatureClassifier:
        """The classifier under audit, without dropout draws."""
        n = self.plan.network
        mean, std = (tuple(getattr(n, k) or self.about.get(k) or ()) for k in ("mean", "std"))
        model = self._network()
        if self.trains:
            mean, std = self.restored(model, self.classifier_key)
        return self._compiled(self.shown(model, n.layers, mean, std))

    def _compiled(self, classifier: FeatureClassifier) -> FeatureClassifier:
        """Compiled if the plan wants it: only what is run often is worth the wait."""
        return replace(classifier, compile="inductor") if self.plan.network.compile else classifier

    def restored(self, model: nn.Module, key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Give ``model`` the weights that a task of training has stored; mean and std of what it saw."""
        arrays = self.store.load(key)
        model.load_state_dict(
            {k.removeprefix("w/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w/")}
        )
        return tuple(arrays["mean"].tolist()), tuple(arrays["std"].tolist())

    def shown(
        self, model: nn.Module, layers: str | Sequence[str], mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> FeatureClassifier:
        """A network as the plan's images, head and precision make it a classifier."""
        head: str | tuple[str, int] = self.plan.network.head if self.finding is None else ("finding", self.finding)
        return FeatureClassifier(
            model.to(self.device).eval(),
            layers,
            box=self.cases.box,
            mean=mean,
            std=std,
            window=self.window,
            head=head,
            seed=self.plan.seed,
            precision=self.plan.network.precision,
        )

    def check_classifier(self) -> list[str]:
        """Refuse a network that cannot be audited; the caveats of one that can. Only for networks that exist before the run."""
        rows = self.rows("train")[:2]
        classifier = self.classifier
        x = self.images(rows)
        classifier.check(x)
        head = classifier.head
        caveats = check_network(classifier.model, classifier.prepared(x), max(len(self.class_names), 2), head)
        classifier.names(x)
        return caveats

    @property
    def observer(self) -> FeatureClassifier:
        """The classifier as the guards of the plan read it."""
        return self.observing(self.plan.detectors)

    @lru_cache(maxsize=16)  # noqa: B019
    def observing(self, detectors: tuple[str, ...]) -> FeatureClassifier:
        """The classifier as these detectors read it: with dropout draws and a witness where one of them needs them."""
        dropout, witness = (self.needs(what, detectors) for what in ("dropout", "witness"))
        if not dropout and not witness:
            return self.classifier
        return replace(
            self.classifier,
            dropout_samples=self.plan.dropout_samples if dropout else 0,
            witness=self.witness if witness else None,
        )

    def needs(self, what: Literal["dropout", "witness"], detectors: Sequence[str] | None = None) -> bool:
        """Whether a detector, of the plan's unless said, reads dropout draws or a witness."""
        made = [DETECTORS[d]() for d in (self.plan.detectors if detectors is None else detectors)]
        return any(d.needs_dropout if what == "dropout" else d.needs_witness for d in made)

    # --- witness ------------------------------------------------------------------------------------------------------

    @property
    def small_arch(self) -> str:
        """The smallest network of the zoo for these images."""
        return "tiny" if len(self.cases.shape) == 2 else "tiny3d"

    @property
    def witness_arch(self) -> str:
        return self.plan.witness.arch or self.small_arch

    @cached_property
    def adversary(self) -> Adversary:
        """What the witness learns to withstand."""
        w = self.plan.witness
        eps = max(self.budgets) if w.eps is None else float(parse_eps(w.eps, self.cases))
        return Adversary(self.threat(eps), w.steps, self.plan.seed)

    @cached_property
    def witness_key(self) -> str:
        p, w = self.plan, self.plan.witness
        recipe = [w.train, w.steps, p.norm, float(self.adversary.threat.eps), self.window, p.network.head, p.seed]
        return f"witness/{self.witness_arch}-{digest([FORMAT, self.cases.digest, self.witness_arch, *recipe])}"

    @cached_property
    def witness(self) -> FeatureClassifier:
        """A robust network of the same classes, for the guards that ask one."""
        model = self._built(self.witness_arch, self.plan.witness.train.stem)
        return self._compiled(self.shown(model, "blocks", *self.restored(model, self.witness_key)))

    @property
    def sight(self) -> list[str]:
        """What the guards read beyond a forward pass with its dropout draws."""
        dropout = [] if self.needs("dropout") else ["no dropout"]
        return [*dropout, *([self.witness_key] if self.needs("witness") else [])]

    # --- keys: each holds a digest of all that decides its content ----------------------------------------------------

    def condition(self, cell: Cell) -> str:
        """The name of a cell's results: ``pgd-hfc-<digest>``."""
        p, o = self.plan, cell.objective
        needs = OBJECTIVES[cell.objective.kind].needs
        parts = [self.base, cell, p.norm, p.walk, p.split, p.batch_size]
        if needs == "bank":
            parts.append(p.mixture)
        if ":" in cell.attack.name:
            parts.append(identity(cell.attack.name))
        if cell.attack.name == "cw" and needs:
            parts.append("typical lead")
        if needs == "detectors" or o.weight == "auto":
            parts += [p.detectors, p.learnt_from, *(identity(d) for d in p.detectors if ":" in d)]
            parts += [self.witness_key] if self.needs("witness") else []
        return f"{slug(cell.attack.name)}-{slug(o.name)}-{digest(parts)}"

    def outputs_key(self, condition: str, part: str, index: int) -> str:
        p = self.plan
        if condition.startswith(("clean", "noisy-", "shifted-")):
            norm = p.norm if condition.startswith("noisy-") else ""
            condition = f"{condition}-{digest([self.base, norm, p.split, p.batch_size])}"
        sight = f"-{digest(self.sight)}" if self.sight else ""
        return f"outputs/{condition}{sight}/{part}-{index:04d}"

    def images_key(self, condition: str, part: str, index: int) -> str:
        return f"adversarial/{condition}/{part}-{index:04d}"

    def tuned(self, cell: Cell) -> Cell:
        """The cell on which lambda of a cell's objective is found: one search for each objective and budget, with the attack
        that the detectors learn from."""
        return replace(cell, attack=self.plan.learnt_from)

    def tune_key(self, cell: Cell) -> str:
        return f"tuning/{self.condition(self.tuned(cell))}"

    def scores_key(self, detector: str, eps: float, condition: str, part: str) -> str:
        parts = [
            self.condition(Cell(self.plan.learnt_from, PLAIN, eps)),
            detector,
            *([identity(detector)] if ":" in detector else []),
        ]
        guard = digest([*parts, *([self.witness_key] if self.needs("witness", [detector]) else [])])
        return f"scores/{slug(detector)}-{guard}/{condition}-{part}"

    # --- what tasks have stored ---------------------------------------------------------------------------------------

    def outputs(self, condition: str, part: str) -> tuple[Outputs, np.ndarray]:
        """The stored outputs of a condition ("clean", "noisy-<eps>", an attack's) on a part, and the cases' rows."""
        loaded = [self.store.load(self.outputs_key(condition, part, i)) for i in range(self.batches(part))]
        return Outputs.cat([unpacked(a) for a in loaded]), np.concatenate([a["rows"] for a in loaded])

    @lru_cache(maxsize=1)  # noqa: B019 (a lab lives as long as its process)
    def train(self) -> tuple[Outputs, Tensor]:
        out, rows = self.outputs("clean", "train")
        return out, torch.from_numpy(self.labels[rows].astype(np.int64))

    @lru_cache(maxsize=1)  # noqa: B019
    def typical_lead(self) -> float:
        """The median lead of the true class, in logits, on clean training images that the classifier gets right: as sure as it usually is."""
        out, labels = self.train()
        true = out.logits.gather(1, labels[:, None])[:, 0]
        lead = true - out.logits.scatter(1, labels[:, None], float("-inf")).amax(1)
        return float(lead[lead > 0].median())

    @lru_cache(maxsize=1)  # noqa: B019
    def bank(self) -> MixtureBank:
        arrays = self.store.load(self.mixture_key)
        content = str(arrays.pop("content"))
        return MixtureBank.unpacked({k: torch.from_numpy(v) for k, v in arrays.items()}, content)

    @cached_property
    def mixture_key(self) -> str:
        return f"mixtures/{digest([self.base, self.plan.mixture, 'one file'])}"

    def evidence(self, eps: float) -> Evidence:
        """What the detectors learn from: rows of the fit part that the classifier gets right, as they are, noisy and attacked."""
        train, labels = self.train()
        cell = Cell(self.plan.learnt_from, PLAIN, eps)
        adversarial, rows = self.outputs(self.condition(cell), "fit")
        clean, noisy = self.at("clean", "fit", rows), self.at(noisy_at(eps), "fit", rows)
        return Evidence(train, labels, clean, noisy, adversarial)

    def at(self, condition: str, part: str, rows: np.ndarray) -> Outputs:
        """The outputs of a condition at some rows, in their order."""
        out, have = self.outputs(condition, part)
        place = {int(r): i for i, r in enumerate(have)}
        return out[torch.tensor([place[int(r)] for r in rows], dtype=torch.long)]

    @lru_cache(maxsize=64)  # noqa: B019
    def detector(self, name: str, eps: float) -> Detector:
        return DETECTORS[name]().fit(self._evidence(eps))

    @lru_cache(maxsize=2)  # noqa: B019
    def _evidence(self, eps: float) -> Evidence:
        return self.evidence(eps)

    def calibration(self, name: str, eps: float) -> np.ndarray:
        """Scores of the calibrate part, clean and noisy, misclassified cases included."""
        parts = [self.outputs(c, "calibrate")[0] for c in ("clean", noisy_at(eps))]
        return np.concatenate([scored(self.detector(name, eps), p) for p in parts])

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Attacker:
    """What an attacker at one budget may know (``catalog.Known``)."""

    lab: Lab
    eps: float

    def bank(self) -> MixtureBank:
        return self.lab.bank()

    def train(self) -> tuple[Outputs, Tensor]:
        return self.lab.train()

    def detectors(self, names: Sequence[str] | None) -> tuple[Sequence[Detector], Sequence[float], Sequence[float]]:
        names = tuple(names or self.lab.plan.detectors)
        found = [self.lab.detector(n, self.eps) for n in names]
        scores = [self.lab.calibration(n, self.eps) for n in names]
        return found, [threshold(s, 0.10) for s in scores], [float(max(np.std(s), 1e-12)) for s in scores]


def noisy_at(eps: float) -> str:
    """The condition of random noise at a budget."""
    return f"noisy-{eps:.6g}"


def scored(detector: Detector, out: Outputs) -> np.ndarray:
    """Scores (N,) in float64, without gradient."""
    with torch.no_grad():
        return detector.score(out.to(torch.float64)).numpy().astype(np.float64)


def packed(out: Outputs, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs as arrays for the store."""
    arrays = {"rows": rows, "logits": out.logits.numpy(), "layers": np.array(list(out.features))}
    arrays |= {f"f{i:03d}": f.numpy() for i, f in enumerate(out.features.values())}
    for name in ("stochastic", "others"):
        value = getattr(out, name)
        if value is not None:
            arrays[name] = value.numpy()
    if out.witness is not None:
        arrays |= {f"witness/{k}": v for k, v in packed(out.witness, rows).items()}
    return arrays


def unpacked(arrays: Mapping[str, np.ndarray]) -> Outputs:
    """The inverse of ``packed``."""
    features = {str(n): torch.from_numpy(arrays[f"f{i:03d}"]) for i, n in enumerate(arrays["layers"])}
    extra = {n: torch.from_numpy(arrays[n]) for n in ("stochastic", "others") if n in arrays}
    seen = {k.removeprefix("witness/"): v for k, v in arrays.items() if k.startswith("witness/")}
    return Outputs(torch.from_numpy(arrays["logits"]), features, **extra, witness=unpacked(seen) if seen else None)


@lru_cache(maxsize=8)  # a programme asks several plans in turn
def cases_of(data: DataPlan, seed: int) -> Cases:
    """The cases of a plan; plans that differ in other things share them."""
    return load_cases(**data.model_dump(), seed=seed)


@lru_cache(maxsize=2)
def lab_of(plan_json: str, store: Store) -> Lab:
    """The lab of a plan, one per process."""
    return Lab(Plan.model_validate_json(plan_json), store)
