"""The plan: everything that decides the result of an audit, validated before any long work. Every error names the field."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from feathide.addon import ATTACK_LIBRARIES, DETECTOR_LIBRARIES
from feathide.catalog import ATTACKS, DETECTORS, MODELS, OBJECTIVES
from feathide.data.guard import first_line
from feathide.errors import InputError, expected, unknown
from feathide.packaged import is_packaged
from feathide.spelling import parsed, separated, spelled
from feathide.zoos import ZOOS

DEEPEST = 30  # levels of a plan
AIMED = ("evade", "selective", "orthogonal")

__all__ = [
    "AttackPlan",
    "Cell",
    "DataPlan",
    "MixturePlan",
    "NetworkPlan",
    "ObjectivePlan",
    "Plan",
    "TrainPlan",
    "WitnessPlan",
    "load_plan",
    "merged",
    "slug",
]


class Part(BaseModel):
    """A part of a plan: unknown fields are refused, nothing changes after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def named(value: Any) -> Any:
    """``pgd`` is short for ``{name: pgd}``."""
    return {"name": value} if isinstance(value, str) else value


def called(value: Any) -> Any:
    """``{name: art:X, options: {a: 1}}`` is long for ``{name: art:X(a=1)}``: the arguments are a part of the name."""
    if not isinstance(value, Mapping) or "options" not in value:
        return named(value)
    return {k: v for k, v in value.items() if k != "options"} | {"name": spelled(value.get("name", ""), value["options"])}


def called_name(value: Any) -> Any:
    """The name of a detector, which may be given as ``{name: ..., options: {...}}``."""
    value = called(value)
    return value["name"] if isinstance(value, Mapping) and set(value) == {"name"} else value


def listed(value: Any) -> Any:
    """``pgd`` is short for ``[pgd]``, and ``fgsm, pgd`` for ``[fgsm, pgd]``."""
    if isinstance(value, str):
        return separated(value)
    return [value] if isinstance(value, int | float | Mapping) else value


class DataPlan(Part):
    """Where the images are: npz, a folder of images per class, a CSV manifest, or ``phantoms`` for the synthetic set."""

    path: str
    kind: str = "auto"
    name: str | None = None
    patients: str | None = None
    patient_pattern: str | None = None
    size: int | tuple[int, ...] | None = None
    channels: Literal[1, 3] | None = None
    box: tuple[float, float] | None = None
    limit: int | None = Field(None, ge=1)
    class_names: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    slice: int | None = None
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    skip_bad: bool = False
    keep_patient_ids: bool = False


class TrainPlan(Part):
    """How a classifier of the zoo is trained (``feathide.train``)."""

    epochs: int = Field(15, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(1e-3, gt=0)
    patience: int = Field(5, ge=1)
    augment: bool = True
    stem: Literal["standard", "small"] = "standard"


class NetworkPlan(Part):
    """The classifier: a name of the zoo or of a library (``timm:resnet26``), trained here unless ``weights`` are given; the user's own
    ``package.module:callable``; or a file with a network (``feathide.packaged``). ``arguments``: of the library's network, or of the callable.

    ``seed`` of its training; the plan's unless said. ``seeds``: further ones, with each of which the audit is repeated (``study.variants``).
    """

    arch: str = "resnet18"
    weights: str | None = None
    arguments: dict[str, Any] = {}
    trust: bool = False
    head: str = "softmax"
    layers: str | tuple[str, ...] = "blocks"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None
    precision: Literal["float32", "bf16"] = "float32"
    train: TrainPlan = TrainPlan()
    seed: int | None = None
    seeds: tuple[int, ...] = ()

    @property
    def own(self) -> bool:
        """Whether it is the user's own network."""
        return self.arch.partition(":")[0] not in ZOOS and (":" in self.arch or is_packaged(self.arch))

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        """The arguments of a library's network are a part of its name."""
        if isinstance(value, Mapping) and str(value.get("arch")).partition(":")[0] in ZOOS and value.get("arguments"):
            return {**value, "arch": spelled(value["arch"], value["arguments"]), "arguments": {}}
        return value

    @model_validator(mode="after")
    def _whole(self) -> "NetworkPlan":
        if not self.own and self.arch not in MODELS:
            raise unknown("architecture", self.arch, [*MODELS, *(f"{z}:NAME" for z in ZOOS), "package.module:callable"])
        if (self.mean is None) != (self.std is None):
            raise expected("mean and std must be given together", got="one of them", do="declare both, per channel")
        if self.seeds and (self.own or self.weights is not None):
            raise expected("seeds are those of a network that is trained here", got=f"seeds {self.seeds}", do="leave them out")
        return self


class WitnessPlan(Part):
    """The second network of guards that ask one: of the zoo, trained adversarially (``feathide.adversary``) on the classifier's training images.

    ``arch``: tiny or tiny3d unless said. ``eps``: what it learns to withstand, as in the plan; the plan's largest budget unless said. ``steps``: of its
    adversary. ``train``: as for a classifier.
    """

    arch: str | None = None
    eps: float | str | None = None
    steps: int = Field(2, ge=1)
    train: TrainPlan = TrainPlan(epochs=30, lr=3e-3, patience=10)

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str | None) -> str | None:
        if arch is not None and arch not in MODELS:
            raise unknown("architecture", arch, MODELS)
        return arch


class AttackPlan(Part):
    """An attack and its walk. ``name``: of the catalogue; or ``torchattacks:PGD``, ``foolbox:LinfPGD``, ``art:ProjectedGradientDescent`` or the user's own
    ``package.module:callable``, with ``options`` as arguments, among which is their walk. ``step_size`` is a fraction of eps."""

    name: str
    steps: int | None = Field(None, ge=1)
    step_size: float | None = Field(None, gt=0)
    decay: Literal["constant", "linear", "cosine"] | None = None
    restarts: int | None = Field(None, ge=1)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ATTACKS:
            raise unknown("attack", name, ATTACKS)
        return name

    @model_validator(mode="after")
    def _walks(self) -> "AttackPlan":
        given = [n for n in ("steps", "step_size", "decay", "restarts") if getattr(self, n) is not None]
        if ":" in self.name and given:
            raise expected(f"the walk of {self.name} stands in its options", got=", ".join(given), do="use options: {...}")
        return self


class ObjectivePlan(Part):
    """An objective of the catalogue. ``weight``: lambda, or "auto": the largest of ``weights`` at which the attack succeeds as often
    as the plain one on the fit part. ``options``: passed to the objective."""

    name: str
    weight: Annotated[float, Field(ge=0)] | Literal["auto"] | None = None
    weights: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        kind, _, detector = name.partition(":")
        if kind not in OBJECTIVES:
            raise unknown("objective", name, OBJECTIVES)
        if detector and (kind not in AIMED or detector not in DETECTORS):
            raise unknown("objective", name, [f"{k}:{d}" for k in AIMED for d in DETECTORS])
        return name

    @property
    def kind(self) -> str:
        """The catalogue's name: ``evade:maha`` is ``evade`` aimed at one detector."""
        return self.name.partition(":")[0]

    @property
    def aim(self) -> tuple[str, ...]:
        """The detectors that it is aimed at; none named means all of the audit."""
        detector = self.name.partition(":")[2]
        return (detector,) if detector else ()


class MixturePlan(Part):
    """The Gaussian mixtures of HFC."""

    components: int | Literal["auto"] | tuple[int, ...] = 1
    covariance: Literal["full", "tied", "diag", "lowrank"] = "full"
    shrinkage: float | Literal["auto"] = "auto"


class WalkPlan(Part):
    """The walk that all iterative attacks share, so that they are compared at equal counts; an attack may say otherwise."""

    steps: int = Field(60, ge=1)
    step_size: float = Field(0.25, gt=0)
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    restarts: int = Field(1, ge=1)
    confidence: float = Field(0.01, ge=0)


class SplitPlan(Part):
    """How the held-out images are divided, by patient. ``most``: at most so many images are attacked in the fit and in the test part."""

    fit: float = Field(0.4, gt=0, lt=1)
    calibrate: float = Field(0.2, gt=0, lt=1)
    test: float = Field(0.4, gt=0, lt=1)
    most: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _one(self) -> "SplitPlan":
        if abs(self.fit + self.calibrate + self.test - 1) > 1e-6:
            raise expected(
                "fit + calibrate + test must be 1", got=self.fit + self.calibrate + self.test, do="correct the shares"
            )
        return self


Attacks = Annotated[tuple[Annotated[AttackPlan, BeforeValidator(called)], ...], BeforeValidator(listed)]
Objectives = Annotated[tuple[Annotated[ObjectivePlan, BeforeValidator(named)], ...], BeforeValidator(listed)]
Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
Detectors = Annotated[tuple[Annotated[str, BeforeValidator(called_name)], ...], BeforeValidator(listed)]


class Plan(Part):
    """An audit. ``eps``: budgets in box units (0.0157, "4/255") or native units ("2 HU"). ``train_attack``: the plain attack that the detectors learn from;
    ``held_out``: one more table, in which they learn from each attack in turn (``study.variants``).
    ``mask``: a file (npz, NIfTI, picture) or a trusted ``package.module:callable`` that says which pixels may change (``study.mask``);
    ``organ``: the same, for where ``feathide ood`` puts lesions.
    ``archive``: archives that compress with loss, such as "jpeg 90" or "jpeg2000 10": what they leave of the attacks is reported (``data.archive``).
    ``batch_size``: images at once; "auto" is what fits in 2 GiB, by image size and network, the same on every machine; the stored plan holds the number.
    ``gates``: "quick" checks the evaluation itself by small attacks on the fit part, "off" does not (YAML reads a bare off as false)."""

    data: Annotated[DataPlan, BeforeValidator(lambda v: {"path": v} if isinstance(v, str) else v)]
    network: Annotated[NetworkPlan, BeforeValidator(lambda v: {"arch": v} if isinstance(v, str) else v)] = NetworkPlan()
    norm: Literal["linf", "l2"] = "linf"
    eps: Annotated[tuple[float | str, ...], BeforeValidator(listed)] = ("4/255",)
    mask: str | None = None
    organ: str | None = None
    archive: Names = ()
    attacks: Attacks = tuple(AttackPlan(name=n) for n in ("fgsm", "bim", "pgd", "cw"))
    objectives: Objectives = tuple(ObjectivePlan(name=n) for n in ("plain", "hfc"))
    walk: WalkPlan = WalkPlan()
    mixture: MixturePlan = MixturePlan()
    detectors: Detectors = ("kd", "bu", "kd+bu", "lid", "maha", "svm", "dnn")
    witness: WitnessPlan = WitnessPlan()
    train_attack: str = "pgd"
    held_out: bool = False
    split: SplitPlan = SplitPlan()
    dropout_samples: int = Field(50, ge=2)
    batch_size: Annotated[int, BeforeValidator(lambda v: 0 if v == "auto" else v)] = Field(32, ge=0)
    gates: Annotated[Literal["quick", "off"], BeforeValidator(lambda v: "off" if v is False else v)] = "quick"
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> "Plan":
        for name in self.detectors:
            if name not in DETECTORS:
                raise unknown("detector", name, DETECTORS)
        if self.train_attack not in ATTACKS:
            raise unknown("attack", self.train_attack, ATTACKS)
        self._check_trust()
        for what, values in (
            ("attacks", self.attacks),
            ("objectives", self.objectives),
            ("detectors", self.detectors),
            ("eps", self.eps),
            ("archive", self.archive),
        ):
            if not values and what != "archive":
                raise expected(f"{what} must name at least one", got="none", do="add one")
            keys = [str(getattr(v, "name", v)) for v in values]
            if len(set(keys)) < len(keys):
                raise expected(f"{what} must differ", got=", ".join(keys), do="leave out the repeated one")
        return self

    def _check_trust(self) -> None:
        """The user's own attacks and detectors are code, which is run only if it is trusted."""
        aims = (d for o in self.objectives for d in o.aim)
        attacks, detectors = (*(a.name for a in self.attacks), self.train_attack), (*self.detectors, *aims)
        for names, libraries in ((attacks, ATTACK_LIBRARIES), (detectors, DETECTOR_LIBRARIES)):
            for library, colon, name in (parsed(n)[0].partition(":") for n in names):
                if colon and library not in libraries and not self.network.trust:
                    raise expected(
                        f"{library}:{name} must be of {', '.join(libraries)}, or code that is trusted",
                        got="network.trust: false",
                        do="say network: {trust: true} if you know this code",
                    )

    @property
    def learnt_from(self) -> AttackPlan:
        """The attack that the detectors learn from, with the walk it has in this plan."""
        return next((a for a in self.attacks if a.name == self.train_attack), AttackPlan(name=self.train_attack))


@dataclass(frozen=True)
class Cell:
    """One attack with one objective at one budget (box units)."""

    attack: AttackPlan
    objective: ObjectivePlan
    eps: float

    @property
    def name(self) -> str:
        """``pgd+hfc``"""
        return f"{self.attack.name}+{self.objective.name}"


def slug(name: str) -> str:
    """A name as part of a key."""
    return re.sub(r"[^a-z0-9+-]+", "-", name.lower()).strip("-")[:80]


def load_plan(source: Path | str | Mapping[str, Any], **changes: Any) -> Plan:
    """The plan of a YAML file or a mapping; ``changes`` replace top-level fields. Raises ``InputError`` that names the field."""
    where = "the plan"
    if isinstance(source, Path | str):
        where = str(source)
        source = _read(Path(source))
    try:
        return Plan.model_validate({**source, **changes})
    except ValidationError as error:
        raise _explained(error, where) from None


def merged(source: Path | str | Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's fields with ``given`` in their place; parts of a plan are merged field by field."""
    fields = dict(_read(Path(source)) if isinstance(source, Path | str) else source)
    for name, value in given.items():
        old = fields.get(name)
        if isinstance(value, Mapping) and old is not None:
            short = {"network": "arch", "data": "path"}
            fields[name] = {**(old if isinstance(old, Mapping) else {short[name]: old}), **value}
        elif name == "data" and isinstance(old, Mapping):
            fields[name] = {**old, "path": value}
        else:
            fields[name] = value
    return fields


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise expected("the plan must be a YAML file", got=f"{path}, which does not exist", do="correct the path")
    if path.stat().st_size > 1_000_000:
        raise expected("a plan is a small file", got=f"{path.stat().st_size} bytes", do="is this the right file?")
    try:
        text = path.read_text(encoding="utf-8")
        _check_growth(path, text)
        value = yaml.safe_load(text)
    except InputError:
        raise
    except Exception as error:  # PyYAML's constructors raise whatever they happen to meet
        raise expected(f"{path} must be YAML", got=first_line(error), do="correct it") from None
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise expected(
            f"{path} must hold fields such as data: ...", got=type(value).__name__, do="see the README's plan"
        )
    value.pop("record", None)  # type: ignore[attr-defined]  # what a run wrote below its plan
    return value


def _check_growth(path: Path, text: str) -> None:
    """Refuse what takes more memory or time than its length: aliases, of which a few lines make a billion nodes, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            got = "an alias (*name)" if depth <= DEEPEST else f"more than {DEEPEST} levels"
            raise expected(f"{path} must be written out plainly", got=got, do="write every value where it belongs")


def _explained(error: ValidationError, where: str) -> InputError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the plan"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        parent: Any = Plan
        known = list(Plan.model_fields) if len(first["loc"]) == 1 else _fields(parent, first["loc"][:-1])
        return InputError(f"{where}: {unknown('field', str(first['loc'][-1]), known)}")
    if first["type"] == "value_error":
        return InputError(f"{where}: {field}: {message}")
    got = repr(first["input"])
    return InputError(f"{where}: {field}: {message}, got {got[:200]}{'...' * (len(got) > 200)}; correct this field")


def _fields(model: Any, path: tuple[int | str, ...]) -> list[str]:
    table = {"data": DataPlan, "network": NetworkPlan, "walk": WalkPlan, "mixture": MixturePlan, "split": SplitPlan,
             "attacks": AttackPlan, "objectives": ObjectivePlan, "train": TrainPlan, "witness": WitnessPlan}  # fmt: skip
    names = [p for p in path if isinstance(p, str)]
    return list(table.get(names[-1], model).model_fields) if names else list(model.model_fields)
