"""The parts of a plan: images, network, attacks, objectives, mixtures, step schedule and split,
each with its fields and what they may be.

The tables of names are imported where they are asked: they need torch, which takes seconds, and a
misspelt field shall be said at once.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from feathide.errors import about, expected, unknown
from feathide.plans.renamed import unknown_detector, unknown_field
from feathide.registry.specs import (
    BUILT_FOR,
    Layout,
    Tokens,
    aimed_at,
    floor_of,
    separated,
    spelled,
)

__all__ = [
    "AboutPlan",
    "AttackPlan",
    "DataPlan",
    "MixturePlan",
    "NetworkPlan",
    "ObjectivePlan",
    "Part",
    "QuickPlan",
    "ReferencePlan",
    "SchedulePlan",
    "Seed",
    "SplitPlan",
    "SubgroupPlan",
    "TrainPlan",
    "called",
    "called_name",
    "listed",
    "named",
]

OF_GUARDS = ("threshold", "higher")
AIMED = ("evade", "selective", "orthogonal")
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=1, le=2**15)]  # of an image: its square just fits into 4 GiB


class Part(BaseModel):
    """A part of a plan: unknown fields are refused, nothing changes after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _fields(cls, value: Any) -> Any:
        check_fields(cls, value)
        return value


def check_fields(part: type[Part], value: Any, within: str = "") -> None:
    """Refuse unknown fields, and numbers that no computer counts to, also of the parts below,
    before anything else is looked at.
    """
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        if name not in part.model_fields:
            wrong = unknown_field(
                f"{within}{name}", [within + known for known in part.model_fields]
            )
            raise about(wrong, *f"{within}{name}".split("."), unknown=True)
        for number in inner if isinstance(inner, list | tuple) else (inner,):
            if isinstance(number, int) and abs(number) >= 2**63:
                wrong = expected(
                    f"{within}{name} must lie below 2^63",
                    got=f"{number:.3g}",
                    do="correct it",
                )
                raise about(wrong, *f"{within}{name}".split("."))
        kind = part.model_fields[name].annotation
        if isinstance(kind, type) and issubclass(kind, Part):
            check_fields(kind, inner, f"{within}{name}.")


def named(value: Any) -> Any:
    """``pgd`` is short for ``{name: pgd}``."""
    return {"name": value} if isinstance(value, str) else value


def called(value: Any) -> Any:
    """``{name: art:X, options: {a: 1}}`` is long for ``{name: art:X(a=1)}``: the arguments are a
    part of the name.
    """
    if not isinstance(value, Mapping) or "options" not in value:
        return named(value)
    return {k: v for k, v in value.items() if k != "options"} | {
        "name": spelled(value.get("name", ""), value["options"])
    }


def called_name(value: Any) -> Any:
    """The name of a detector, which may be given as ``{name: ..., options: {...}}``; of a guard
    as it is shipped, as ``{name: ..., fit: never, threshold: ...}``.
    """
    value = called(as_shipped(value))
    return value["name"] if isinstance(value, Mapping) and set(value) == {"name"} else value


def as_shipped(value: Any) -> Any:
    """``{name: X, fit: never, threshold: 1}`` is long for ``{name: guard:X, options: {threshold:
    1}}``.
    """
    if not isinstance(value, Mapping) or not {"fit", *OF_GUARDS} & set(value):
        return value
    if value.get("fit") != "never":
        raise expected(
            "threshold and higher belong to a guard as it is shipped, with fit: never",
            got=f"fit: {value.get('fit')}",
            do="say fit: never, or leave them out",
        )
    own = {k: value[k] for k in OF_GUARDS if k in value}
    rest = {k: v for k, v in value.items() if k not in ("fit", *OF_GUARDS)}
    name = str(value.get("name", ""))
    name = name if name.startswith("guard:") else f"guard:{name}"
    return rest | {"name": name, "options": {**value.get("options", {}), **own}}


def listed(value: Any) -> Any:
    """``pgd`` is short for ``[pgd]``, and ``fgsm, pgd`` for ``[fgsm, pgd]``."""
    if isinstance(value, str):
        return separated(value)
    return [value] if isinstance(value, int | float | Mapping) else value


class DataPlan(Part):
    """Where the images are: npz, a folder of images per class, a CSV manifest, or ``phantoms``
    for the synthetic set.
    """

    path: str
    kind: str = "auto"
    name: str | None = None
    patients: str | None = None
    patient_pattern: str | None = None
    size: Side | tuple[Side, ...] | None = None
    channels: Literal[1, 3] | None = None
    box: tuple[float, float] | None = None
    limit: int | None = Field(None, ge=1)
    class_names: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    slice: int | None = None
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    skip_bad: bool = False
    keep_patient_ids: bool = False


class AugmentPlan(Part):
    """How training images are changed at random (``training.augmentation.Augment``)."""

    shift: float = Field(0.06, ge=0, lt=1)
    contrast: float = Field(0.15, ge=0, lt=1)
    brightness: float = Field(0.15, ge=0)
    flips: tuple[int, ...] = ()
    crop: float = Field(0.0, ge=0, lt=1)
    rotate: float = Field(0.0, ge=0, le=180)


def augmented(value: Any) -> Any:
    """A mapping is told apart here, so that its errors are those of its fields alone."""
    return AugmentPlan(**value) if isinstance(value, Mapping) else value


class TrainPlan(Part):
    """How a classifier of the zoo is trained (``feathide.training.trainer``).

    ``freeze``, ``lr_backbone``: which of the weights of ``start_from`` stay, and how fast the
    others learn."""

    epochs: int = Field(15, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(1e-3, gt=0)
    patience: int = Field(5, ge=1)
    augment: Annotated[bool | AugmentPlan, BeforeValidator(augmented)] = True
    stem: Literal["standard", "small"] = "standard"
    freeze: str | None = None
    lr_backbone: float | None = Field(None, gt=0)
    balance: Literal["weights", "sampling", "none"] = "weights"
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    stop_on: Literal["loss", "auc"] = "loss"

    @property
    def tunes(self) -> tuple[str, ...]:
        """The fields that are about weights to start from."""
        return tuple(n for n in ("freeze", "lr_backbone") if getattr(self, n) is not None)

    @property
    def from_scratch(self) -> "TrainPlan":
        """The same for a network that begins with random weights."""
        return self.model_copy(update={"freeze": None, "lr_backbone": None})


class NetworkPlan(Part):
    """The classifier: a name of the zoo or of a library (``timm:resnet26``), trained here unless
    ``weights`` are given; the user's own ``package.module:callable``; or a file with a network
    (``feathide.models.packaged``). ``arguments``: of the library's network, or of the callable.

    ``start_from``: a file of pretrained weights that the training begins with, wherever name and
    shape agree; ``rename``: what the names in either file begin with -> in the network, or "in
    order" (``weights.load_weights``).

    ``purify``: what the product does to an image before the network, such as "jpeg 75", "bits 4",
    "median 3", "cushion 0.5", and at random "noise 0.05", "resize 0.8"; ``known``: whether the
    attacker knows it. ``draws``: of what is random, in it or in the network itself; outputs are
    averaged over them.
    ``precision``: "bf16" runs it under autocast; ``compile``: a compiled copy of it is run. Both
    are for GPUs, and neither changes the training.
    ``output``: "probabilities" for a network that ends in a softmax or a sigmoid, whose logits
    are then taken as logarithms. ``seed`` of its training; the plan's unless said. ``seeds``:
    further ones, with each of which the audit is repeated (``pipeline/variants.py``)."""

    arch: str = "resnet18"
    weights: str | None = None
    start_from: str | None = None
    rename: dict[str, str] | Literal["in order"] | None = None
    arguments: dict[str, Any] = {}
    trust: bool = False
    head: str = "softmax"
    output: Literal["logits", "probabilities"] = "logits"
    layers: str | tuple[str, ...] = "blocks"
    layout: Layout | dict[str, Layout] = "auto"
    tokens: Tokens = "mean"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None
    purify: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    draws: int | None = Field(None, ge=1, le=1000)
    known: bool = True
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    train: TrainPlan = TrainPlan()
    seed: Seed | None = None
    seeds: tuple[Seed, ...] = ()

    @field_validator("purify")
    @classmethod
    def _purifies(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from feathide.detectors.purifiers import purifier_named

        for name in names:
            purifier_named(name)
        return names

    @property
    def own(self) -> bool:
        """Whether it is the user's own network."""
        from feathide.models.libraries import ZOOS
        from feathide.models.packaged import is_packaged

        return self.arch.partition(":")[0] not in ZOOS and (
            ":" in self.arch or is_packaged(self.arch)
        )

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        """The arguments of a library's network are a part of its name."""
        if isinstance(value, Mapping) and value.get("arguments"):
            from feathide.models.libraries import ZOOS

            if str(value.get("arch")).partition(":")[0] in ZOOS:
                return {
                    **value,
                    "arch": spelled(value["arch"], value["arguments"]),
                    "arguments": {},
                }
        return value

    @model_validator(mode="after")
    def _whole(self) -> "NetworkPlan":
        from feathide.models.libraries import ZOOS
        from feathide.models.zoo import MODELS

        if not self.own and self.arch not in MODELS:
            known = [*MODELS, *(f"{z}:NAME" for z in ZOOS), "package.module:callable"]
            raise about(unknown("architecture", self.arch, known), "arch")
        if (self.mean is None) != (self.std is None):
            raise expected(
                "mean and std must be given together",
                got="one of them",
                do="declare both, per channel",
            )
        if self.start_from is not None and (self.own or self.weights is not None):
            raise expected(
                "start_from is for a network of the zoo that is trained here",
                got=(
                    f"start_from {self.start_from} with "
                    f"{'weights' if self.weights else self.arch}"
                ),
                do="leave one of them out",
            )
        if self.train.tunes and self.start_from is None:
            raise expected(
                "freeze and lr_backbone are for a network that starts from pretrained weights",
                got=f"{' and '.join(self.train.tunes)} without start_from",
                do="name a file as network.start_from, or leave them out",
            )
        if self.output != "logits" and not self.own and self.weights is None:
            raise expected(
                "a network that is trained here gives logits",
                got=f"output: {self.output}",
                do="leave output out",
            )
        if self.seeds and (self.own or self.weights is not None):
            raise expected(
                "seeds are those of a network that is trained here",
                got=f"seeds {self.seeds}",
                do="leave them out",
            )
        return self


class ReferencePlan(Part):
    """The second network of guards that ask one: of the zoo, trained adversarially
    (``feathide.training.adversarial``) on the classifier's training images.

    ``arch``: tiny or tiny3d unless said. ``eps``: what it learns to withstand, as in the plan;
    the plan's largest budget unless said. ``steps``: of its adversary. ``train``: as for a
    classifier."""

    arch: str | None = None
    eps: float | str | None = None
    steps: int = Field(2, ge=1)
    train: TrainPlan = TrainPlan(epochs=30, lr=3e-3, patience=10)

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str | None) -> str | None:
        from feathide.models.zoo import MODELS

        if arch is not None and arch not in MODELS:
            raise unknown("architecture", arch, MODELS)
        return arch

    @field_validator("train")
    @classmethod
    def _random(cls, train: TrainPlan) -> TrainPlan:
        if train.tunes:
            raise expected(
                "a reference network begins with random weights",
                got=" and ".join(train.tunes),
                do="leave them out",
            )
        return train


class AttackPlan(Part):
    """An attack and its steps. ``name``: of the catalogue; or ``torchattacks:PGD``,
    ``foolbox:LinfPGD``, ``art:ProjectedGradientDescent`` or the user's own
    ``package.module:callable``, with ``options`` as arguments, among which are their steps.
    ``step_size`` is a fraction of eps.
    ``share``: of pgd-smooth, the lowest frequencies of each axis that it may use.
    """

    name: str
    steps: int | None = Field(None, ge=1)
    step_size: float | None = Field(None, gt=0)
    decay: Literal["constant", "linear", "cosine"] | None = None
    restarts: int | None = Field(None, ge=1)
    share: float | None = Field(None, gt=0, le=1)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        from feathide.catalog import ATTACKS

        if name not in ATTACKS:
            raise unknown("attack", name, ATTACKS)
        return name

    @model_validator(mode="after")
    def _walks(self) -> "AttackPlan":
        given = [
            n
            for n in ("steps", "step_size", "decay", "restarts")
            if getattr(self, n) is not None
        ]
        if ":" in self.name and given:
            raise expected(
                f"the step schedule of {self.name} belongs in its options",
                got=", ".join(given),
                do="use options: {...}",
            )
        if self.share is not None and self.name != "pgd-smooth":
            raise expected(
                "share belongs to pgd-smooth",
                got=f"share of {self.name}",
                do="leave it out",
            )
        return self


class ObjectivePlan(Part):
    """An objective of the catalogue. ``weight``: lambda, or "auto": the largest of ``weights`` at
    which the attack succeeds as often as the plain one on the detector-training split.
    ``options``: passed to the objective.
    """

    name: str
    weight: Annotated[float, Field(ge=0)] | Literal["auto"] | None = None
    weights: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        from feathide.catalog import DETECTORS, OBJECTIVES

        kind, _, detector = name.partition(":")
        if kind not in OBJECTIVES:
            raise unknown("objective", name, OBJECTIVES)
        if detector and kind in AIMED and detector not in DETECTORS:
            raise unknown_detector(detector, DETECTORS)
        if detector and kind not in AIMED:
            raise unknown("objective", name, [f"{k}:{d}" for k in AIMED for d in DETECTORS])
        return name

    @model_validator(mode="after")
    def _floored(self) -> "ObjectivePlan":
        from feathide.catalog import OBJECTIVES

        if OBJECTIVES[self.kind].floored:
            floor_of(self.options.get("floor", "median"))
        return self

    @property
    def kind(self) -> str:
        """The catalogue's name: ``evade:maha`` is ``evade`` aimed at one detector."""
        return self.name.partition(":")[0]

    @property
    def aim(self) -> tuple[str, ...]:
        """The detectors that its name or its options say; none named means all of the audit."""
        return () if self.kind in BUILT_FOR else aimed_at(self.name, self.options, ())

    def aimed_at(self, audited: Sequence[str]) -> tuple[str, ...]:
        """The detectors that it attacks, of an audit of ``audited``: nobody where its weight is
        0.
        """
        return () if self.weight == 0 else aimed_at(self.name, self.options, audited)


class MixturePlan(Part):
    """The Gaussian mixtures of HFC."""

    components: Count | Literal["auto"] | tuple[Count, ...] = 1
    covariance: Literal["full", "tied", "diag", "lowrank"] = "full"
    shrinkage: float | Literal["auto"] = "auto"


class SchedulePlan(Part):
    """The step schedule that all iterative attacks share, so that they are compared at equal
    counts; an attack may say otherwise.

    ``confidence``: the lead from which on an image counts as one that fools. ``lead``: how sure
    of the target an attacker who hides makes the classifier before all of the step goes to
    hiding, in typical leads of clean images (``context.outputs.typical_lead``), the same for all
    of our attacks; "auto": as sure as it is of a clean image, at the lower quartile of the
    detector-training split.
    """

    steps: int = Field(60, ge=1)
    step_size: float = Field(0.25, gt=0)
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    restarts: int = Field(1, ge=1)
    confidence: float = Field(0.01, ge=0)
    lead: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"


class SplitPlan(Part):
    """How the held-out images are divided, by patient. ``most``: at most this many
    images of the detector-training split and of the test split are attacked; clean accuracy and
    false alarms are of all."""

    detector_training: float = Field(0.4, gt=0, lt=1)
    calibration: float = Field(0.2, gt=0, lt=1)
    test: float = Field(0.4, gt=0, lt=1)
    most: int | None = Field(None, ge=2)

    @model_validator(mode="after")
    def _one(self) -> "SplitPlan":
        if abs(self.detector_training + self.calibration + self.test - 1) > 1e-6:
            raise expected(
                "detector_training + calibration + test must be 1",
                got=self.detector_training + self.calibration + self.test,
                do="correct the shares",
            )
        return self


class SubgroupPlan(Part):
    """By which groups of patients results are given, too: ``columns`` of the table beside the
    images, or fields of their DICOM headers, which are read only if named here. ``bands``: the
    edges of the bands of a column of numbers, such as an age. ``smallest``: groups of fewer
    patients are counted, not compared."""

    columns: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    bands: dict[str, tuple[float, ...]] = {}
    smallest: int = Field(10, ge=2)

    @model_validator(mode="after")
    def _of_columns(self) -> "SubgroupPlan":
        for name, edges in self.bands.items():
            if name not in self.columns:
                raise unknown("column with bands", name, self.columns)
            if not edges or list(edges) != sorted(set(edges)):
                raise expected(
                    f"the bands of {name} must be rising numbers",
                    got=list(edges),
                    do="write them as [40, 60, 80]",
                )
        return self


class AboutPlan(Part):
    """What the head of the report says of the audit itself: nothing that is computed depends on
    it.

    ``title``: of the report; by default, the network and the images. ``made_by``: who ran the
    audit, ``made_for``: for whom. ``docs``: the address where feathide's documentation is served
    to the readers, to which the report then links."""

    title: str | None = Field(None, max_length=200)
    made_by: str | None = Field(None, max_length=200)
    made_for: str | None = Field(None, max_length=200)
    docs: str | None = Field(None, max_length=500, pattern=r"^https?://[^\s]+$")


class QuickPlan(Part):
    """What marks a quick look (``feathide audit --quick``): the digest of the ``whole`` plan, the
    ``command`` that runs it, and what the look ``says`` of what it leaves out."""

    whole: str
    command: str = ""
    says: tuple[str, ...] = ()
