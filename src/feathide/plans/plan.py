"""The plan: everything that decides the result of an audit, validated before any long work. Every
error names the field.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from feathide.errors import InputError, about, expected, first_line, unknown
from feathide.plans.places import place_of
from feathide.plans.renamed import unknown_detector
from feathide.plans.sections import (
    AboutPlan,
    AttackPlan,
    DataPlan,
    MixturePlan,
    NetworkPlan,
    ObjectivePlan,
    Part,
    QuickPlan,
    ReferencePlan,
    SchedulePlan,
    Seed,
    SplitPlan,
    SubgroupPlan,
    called,
    called_name,
    listed,
    named,
)
from feathide.registry.specs import parsed

DEEPEST = 30  # levels of a plan
LONGEST = 4096  # characters of a value, as of a path

__all__ = ["Cell", "Plan", "load_merged", "load_plan", "merged", "slug"]


P = TypeVar("P", AttackPlan, ObjectivePlan)
Attacks = Annotated[
    tuple[Annotated[AttackPlan, BeforeValidator(called)], ...], BeforeValidator(listed)
]
Objectives = Annotated[
    tuple[Annotated[ObjectivePlan, BeforeValidator(named)], ...], BeforeValidator(listed)
]
Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
Detectors = Annotated[
    tuple[Annotated[str, BeforeValidator(called_name)], ...], BeforeValidator(listed)
]


def _number(batch_size: object) -> object:
    return 0 if batch_size == "auto" else batch_size


class Plan(Part):
    """The validated plan of an audit: images, network, attacks, detectors and measurements.

    ``docs/plan.md`` shows every field with its default, the nested ones too. A plan is made by
    ``load_plan``.

    Attributes:
        data: Where the images are and how they are read.
        network: The classifier: architecture, weights, layers, normalisation.
        norm: "linf" or "l2".
        eps: Budgets in box units (0.0157, "4/255") or native units ("2 HU").
        large_eps: Allow, with norm linf, more than a quarter of the range of values.
        mask: A file (npz, NIfTI, picture) or trusted ``package.module:callable``: which pixels may
            change.
        organ: The same, for the region in which ``feathide ood`` puts lesions.
        archive: Lossy archives, such as "jpeg 90" or "jpeg2000 10", whose effect on the attacks is
            reported.
        attacks: The attacks, by name, each with optional steps and options.
        objectives: What each attack hides by: "plain", "hfc", "hfc-typical", ...
        schedule: The step schedule that all attacks share.
        mixture: How the Gaussian mixtures of HFC are fitted.
        detectors: The detectors, by name.
        reference_network: How the reference network of the detectors of that name is trained.
        train_attack: The plain attack that the detectors learn from.
        smallest_change: Look for the least change of each image that fools, and that also passes
            each guard, up to the largest eps.
        held_out: Add a table in which the detectors learn from each attack in turn.
        split: The shares of the test images for detector training, calibration and test.
        subgroups: By which groups of patients results are given, too, such as site and sex.
        dropout_samples: Dropout draws of the detectors that read them, 2 to 10,000.
        batch_size: Images per batch; 0, written "auto", for what fits in 2 GiB, the same on every
            machine.
        sanity_checks: "quick" checks the evaluation itself by small attacks on the
            detector-training split; "off" does not.
        seed: The seed of all randomness.
        even_so: Go on although the classifier looks untrained; the verdict then is that nothing can
            be concluded.
        quick: Written by ``feathide audit --quick``, which marks the plan of a quick look.
        about: Title of the report, who ran the audit and for whom; changes no result.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1"; not stored with a run.
    """

    data: Annotated[
        DataPlan, BeforeValidator(lambda v: {"path": v} if isinstance(v, str) else v)
    ]
    network: Annotated[
        NetworkPlan, BeforeValidator(lambda v: {"arch": v} if isinstance(v, str) else v)
    ] = Field(default_factory=NetworkPlan)
    norm: Literal["linf", "l2"] = "linf"
    eps: Annotated[tuple[float | str, ...], BeforeValidator(listed)] = ("4/255",)
    large_eps: bool = False
    mask: str | None = None
    organ: str | None = None
    archive: Names = ()
    attacks: Attacks = Field(
        default_factory=lambda: _of(AttackPlan, "fgsm", "bim", "pgd", "cw")
    )
    objectives: Objectives = Field(
        default_factory=lambda: _of(ObjectivePlan, "plain", "hfc", "hfc-typical")
    )
    schedule: SchedulePlan = SchedulePlan()
    mixture: MixturePlan = MixturePlan()
    detectors: Detectors = (
        "kd",
        "bu",
        "kd+bu",
        "lid",
        "maha",
        "svm",
        "dnn",
        "kd-two-sided",
        "maha-two-sided",
    )
    reference_network: ReferencePlan = ReferencePlan()
    train_attack: str = "pgd"
    smallest_change: bool = False
    held_out: bool = False
    split: SplitPlan = SplitPlan()
    subgroups: Annotated[
        SubgroupPlan,
        BeforeValidator(lambda v: {"columns": v} if isinstance(v, str | list) else v),
    ] = SubgroupPlan()
    dropout_samples: int = Field(50, ge=2, le=10_000)
    batch_size: Annotated[
        int, BeforeValidator(_number), PlainSerializer(lambda n: n or "auto")
    ] = Field(0, ge=0)
    sanity_checks: Annotated[
        Literal["quick", "off"], BeforeValidator(lambda v: "off" if v is False else v)
    ] = "quick"
    seed: Seed = 0
    even_so: bool = False
    quick: QuickPlan | None = None
    about: AboutPlan = AboutPlan()
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")

    # a run that has stopped for its want, or elsewhere, goes on in its folder; who ran it
    # changes nothing in it
    UNDIGESTED: ClassVar[tuple[str, ...]] = ("even_so", "device", "about")

    @model_validator(mode="after")
    def _whole(self) -> "Plan":
        from feathide.catalog import ATTACKS, DETECTORS

        for i, name in enumerate(self.detectors):
            if name not in DETECTORS:
                raise about(unknown_detector(name, DETECTORS), "detectors", i)
        if self.train_attack not in ATTACKS:
            raise about(unknown("attack", self.train_attack, ATTACKS), "train_attack")
        self._check_trust()
        for what, values in (
            ("attacks", self.attacks),
            ("objectives", self.objectives),
            ("detectors", self.detectors),
            ("eps", self.eps),
            ("archive", self.archive),
        ):
            if not values and what != "archive":
                empty = expected(f"{what} must name at least one", got="none", do="add one")
                raise about(empty, what)
            keys = [str(getattr(v, "name", v)) for v in values]
            if len(set(keys)) < len(keys):
                equal = expected(
                    f"{what} must differ",
                    got=", ".join(keys),
                    do="leave out the repeated one",
                )
                raise about(equal, what)
        return self

    def _check_trust(self) -> None:
        """The user's own attacks and detectors are code, which is run only if it is trusted."""
        from feathide.integrations import ATTACK_LIBRARIES, DETECTOR_LIBRARIES
        from feathide.integrations.shipped_guards import SHIPPED, holds_code

        aims = (d for o in self.objectives for d in o.aim)
        attacks, detectors = (
            (*(a.name for a in self.attacks), self.train_attack),
            (*self.detectors, *aims),
        )
        for names, libraries in (
            (attacks, ATTACK_LIBRARIES),
            (detectors, DETECTOR_LIBRARIES),
        ):
            for library, colon, name in (parsed(n)[0].partition(":") for n in names):
                if library == SHIPPED and not holds_code(name):
                    continue
                if colon and library not in libraries and not self.network.trust:
                    raise expected(
                        (
                            f"{library}:{name} must be of {', '.join(libraries)}, or code that "
                            "is trusted"
                        ),
                        got="network.trust: false",
                        do="say network: {trust: true} if you know this code",
                    )

    @property
    def learnt_from(self) -> AttackPlan:
        """The attack that the detectors learn from, with the step schedule it has in this
        plan.
        """
        return next(
            (a for a in self.attacks if a.name == self.train_attack),
            AttackPlan(name=self.train_attack),
        )


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
    return re.sub(r"[^a-z0-9_.+-]+", "-", name.lower()).strip("-.")[:80]


def load_plan(source: Path | str | Mapping[str, Any], **changes: Any) -> Plan:
    """The plan of a YAML file or of a mapping.

    Args:
        source: The path of a YAML file, or a mapping with the same fields.
        **changes: Top-level fields that replace those of ``source``.

    Returns:
        The validated plan.

    Raises:
        InputError: The file cannot be read, or a field is unknown or wrong; the message names it.

    Examples:
        >>> plan = load_plan({"data": "phantoms"}, eps="4/255", attacks="pgd")
        >>> plan.eps, plan.attacks[0].name
        (('4/255',), 'pgd')
    """
    return _plan_of(source, changes, {**_fields(source), **changes})


def load_merged(
    source: Path | str | Mapping[str, Any] | None, given: Mapping[str, Any]
) -> Plan:
    """The plan of ``source`` with ``given`` in its place, as ``merged`` does; raises as
    ``load_plan``.
    """
    return _plan_of(source or {}, given, merged(source or {}, given))


def _plan_of(
    source: Path | str | Mapping[str, Any],
    given: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> Plan:
    """The plan of ``fields``, which are those of ``source`` but for what was ``given``: a mistake
    is said with its line, if it stands in a file.
    """
    try:
        return Plan.model_validate(fields)
    except ValidationError as error:
        raise _explained(error, source, given) from None


def _fields(source: Path | str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(source, Path | str | Mapping):
        raise expected(
            "a plan must be the path of a YAML file, or a mapping of its fields",
            got=f"a {type(source).__name__}",
            do='say load_plan("plan.yaml")',
        )
    return _read(Path(source)) if isinstance(source, Path | str) else source


def merged(
    source: Path | str | Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """A plan's fields with ``given`` in their place; parts of a plan are merged field by
    field.
    """
    fields = dict(_fields(source))
    for name, value in given.items():
        old = fields.get(name)
        if isinstance(value, Mapping) and old is not None:
            short = {"network": "arch", "data": "path"}
            fields[name] = {
                **(old if isinstance(old, Mapping) else {short[name]: old}),
                **value,
            }
        elif name == "data" and isinstance(old, Mapping):
            fields[name] = {**old, "path": value}
        else:
            fields[name] = value
    return fields


def _read(path: Path) -> Mapping[str, Any]:
    if not os.path.isfile(path):
        raise expected(
            "the plan must be a YAML file",
            got=f"{path}, which does not exist",
            do="correct the path",
        )
    if path.stat().st_size > 1_000_000:
        raise expected(
            "a plan is a small file",
            got=f"{path.stat().st_size} bytes",
            do="is this the right file?",
        )
    try:
        text = path.read_text(encoding="utf-8")
        _check_growth(path, text)
        value = yaml.safe_load(text)
    except InputError:
        raise
    except yaml.MarkedYAMLError as error:
        raise expected(
            f"{path} must be YAML", got=_mistake(error, text), do="correct this line"
        ) from None
    except Exception as error:  # PyYAML's constructors raise whatever they happen to meet
        raise expected(
            f"{path} must be YAML", got=first_line(error), do="correct it"
        ) from None
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise expected(
            f"{path} must hold fields such as data: ...",
            got=type(value).__name__,
            do="see the README's plan",
        )
    value.pop("record", None)  # type: ignore[attr-defined]  # what a run wrote below its plan
    return value


def _mistake(error: yaml.MarkedYAMLError, text: str) -> str:
    """Where and what a mistake of YAML is: "line 2: a tab, where only blanks may indent"."""
    mark = error.problem_mark or error.context_mark
    opened = error.context_mark
    if opened is not None and "flow" in str(error.context):
        bracket = text[opened.index : opened.index + 1] if opened.index < len(text) else ""
        at = (
            f", noticed in line {mark.line + 1}"
            if mark is not None and mark.line != opened.line
            else ""
        )
        return (
            f"line {opened.line + 1}: a bracket {bracket} that is not closed, or a comma that "
            f"is missing{at}"
        )
    if mark is None:
        return first_line(error)
    line = (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)]
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in str(error.problem):
        return f"line {mark.line + 1}: a tab, where only blanks may stand"
    if "block" in str(error.context) or "mapping values" in str(error.problem):
        return (
            f"line {mark.line + 1}: {line.strip()[:60]!r}, which is not indented like its "
            "neighbours or has a stray colon"
        )
    return f"line {mark.line + 1}: {error.problem or first_line(error)}"


def _check_growth(path: Path, text: str) -> None:
    """Refuse what takes more memory or time than its length: aliases, of which a few lines make a
    billion nodes, deep nesting, long numbers.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
            got = f"one of {len(event.value)}, {event.value[:20]}..."
            raise expected(
                f"{path} must have values of at most {LONGEST} characters",
                got=got,
                do="shorten it",
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if isinstance(event, yaml.AliasEvent) or depth > DEEPEST:
            got = "an alias (*name)" if depth <= DEEPEST else f"more than {DEEPEST} levels"
            raise expected(
                f"{path} must be written out plainly",
                got=got,
                do="write every value where it belongs",
            )


def _explained(
    error: ValidationError,
    source: Path | str | Mapping[str, Any],
    given: Mapping[str, Any],
) -> InputError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    path = [*first["loc"], *(cause.field if isinstance(cause, InputError) else ())]
    unknown_field = isinstance(cause, InputError) and cause.unknown_field
    where = _where(source, given, path, unknown_field)
    field = ".".join(str(part) for part in first["loc"]) or "the plan"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        told = message if not first["loc"] else f"{field}: {message}"
        return InputError(f"{where}: {told}")
    got = repr(first["input"])
    return InputError(
        f"{where}: {field}: {message}, got {got[:200]}{'...' * (len(got) > 200)}; correct "
        "this field"
    )


def _where(
    source: Path | str | Mapping[str, Any],
    given: Mapping[str, Any],
    path: Sequence[Any],
    unknown_field: bool,
) -> str:
    """The file, line and column of a field; ``the plan`` for what no file says."""
    if not isinstance(source, Path | str):
        return "the plan"
    # of what was given beside the file, the file has another value or none
    if _holds(given, path):
        return str(source)
    text = Path(source).read_text(encoding="utf-8")
    place = place_of(text, path, unknown=unknown_field)
    return f"{source}, {place}" if place else str(source)


def _holds(given: Mapping[str, Any], path: Sequence[Any]) -> bool:
    """Whether ``given`` has the field at ``path``, or one value in place of a part above it."""
    inner: Any = given
    for part in path:
        if not isinstance(inner, Mapping):
            return True
        if part not in inner:
            return False
        inner = inner[part]
    return True


def _of(kind: type[P], *names: str) -> tuple[P, ...]:
    return tuple(kind(name=n) for n in names)
