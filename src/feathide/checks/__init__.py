"""The conformance checks of attacks, detectors and objectives, held against anybody's:
``check("my_package:MyDetector")``.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor

from feathide.attacks.threats import ThreatModel
from feathide.catalog import ATTACKS, DETECTORS, OBJECTIVES, Hiding
from feathide.checks.attacks import ATTACK_LAWS, Attacks, Run
from feathide.checks.detectors import DETECTOR_LAWS
from feathide.checks.objectives import OBJECTIVE_LAWS, Guard
from feathide.checks.verdicts import Broken, NotApplicable, Verdict, judge
from feathide.detectors import Detector
from feathide.errors import expected, unknown
from feathide.losses import Objective
from feathide.models.classifier import FeatureClassifier
from feathide.registry.specs import parsed
from feathide.registry.user_code import called, load_object
from feathide.types import Goal

__all__ = [
    "ATTACK_LAWS",
    "CHECKS",
    "DETECTOR_LAWS",
    "OBJECTIVE_LAWS",
    "Broken",
    "Kind",
    "NotApplicable",
    "Verdict",
    "check",
    "judge",
    "subject_of",
]

Kind = Literal["detector", "attack", "objective"]
CHECKS: Mapping[str, Mapping[str, Callable[[Any], None]]] = {
    "detector": DETECTOR_LAWS,
    "attack": ATTACK_LAWS,
    "objective": OBJECTIVE_LAWS,
}
TABLES: Mapping[str, Mapping[str, Any]] = {
    "detector": DETECTORS,
    "attack": ATTACKS,
    "objective": OBJECTIVES,
}


def check(
    spec: str, *, kind: str | None = None, skip: Sequence[str] = ()
) -> Iterator[Verdict]:
    """The conformance checks of an attack, a detector or an objective, one verdict each.

    Args:
        spec: Code as package.module:Name or file.py:Name, or a name of the catalogue.
        kind: "attack", "detector" or "objective", where the object itself does not tell.
        skip: The names of checks to leave out.

    Returns:
        An iterator of verdicts: passed, failed with what was expected and got, or not applicable.

    Raises:
        InputError: An unknown name or check, or something that is none of the three kinds.
    """
    found, subject = subject_of(spec, kind)
    checks = CHECKS[found]
    for name in skip:
        if name not in checks:
            raise unknown(f"check of {found}s", name, checks)
    return judge(
        {name: check for name, check in checks.items() if name not in skip}, subject
    )


def subject_of(spec: str, kind: str | None = None) -> tuple[str, Any]:
    """The kind of what ``spec`` names, and what its conformance checks take.

    A name of the catalogue (``kd``); of a library (``sklearn:IsolationForest(n_estimators=50)``);
    or of code, which is imported: ``package.module:Name``, ``package.module.Name`` or
    ``file.py:Name``, arguments in brackets. The code is a detector, an objective, a row of the
    catalogue's objectives (``Hiding``), what makes one of these, a recipe of an attack (its first
    parameter is called ``threat``), or an attack ``(classifier, x, goal, ids, seed) -> images``.
    """
    if kind is not None and kind not in get_args(Kind):
        raise unknown("kind", kind, get_args(Kind))
    base, options = parsed(spec)
    library = base.partition(":")[0] in (
        "torchattacks",
        "foolbox",
        "art",
        "sklearn",
        "pytorch_ood",
    )
    if library or ":" not in base:
        for name, table in TABLES.items():
            listed = base in table if ":" not in base else kind or name == _usual(base)
            if listed and kind in (None, name):
                return name, _subject(
                    name,
                    table[spec if library else base],
                    options if not library else {},
                    spec,
                )
    if ":" not in base:
        module, dot, name = base.rpartition(".")
        if not dot:
            raise unknown("object", base, [n for table in TABLES.values() for n in table])
        base = f"{module}:{name}"
    entry = load_object(base, trust=True)
    return (found := kind or _kind(entry, base, options)), _subject(
        found, entry, options, base
    )


def _usual(base: str) -> str:
    return (
        "detector"
        if base.startswith(("sklearn:", "pytorch_ood:")) or base.endswith("Detector")
        else "attack"
    )


def _kind(entry: Any, spec: str, options: Mapping[str, Any]) -> str:
    parameters = list(inspect.signature(entry).parameters) if callable(entry) else []
    if not inspect.isclass(entry) and parameters[:1] in (["threat"], ["classifier"]):
        return "attack"
    made = (
        called(entry, spec, options)
        if callable(entry) and not isinstance(entry, Detector | Objective)
        else entry
    )
    if isinstance(made, Detector):
        return "detector"
    if isinstance(made, Objective | Hiding):
        return "objective"
    if callable(made):
        return "attack"
    raise expected(
        f"{spec} must be a detector, an attack or an objective",
        got=type(made).__name__,
        do="name what makes one",
    )


def _subject(kind: str, entry: Any, options: Mapping[str, Any], spec: str) -> Any:
    match kind:
        case "detector":
            return (
                (lambda: entry)
                if isinstance(entry, Detector)
                else partial(called, entry, spec, options)
            )
        case "objective":
            return partial(_objective, entry, options, spec)
    first = next(iter(inspect.signature(entry).parameters), "")
    if inspect.isclass(entry) or first not in ("threat", "classifier"):
        entry = called(entry, spec, options)
        return _OfCallable(entry, {})
    return (
        _recipe(partial(entry, **options))
        if first == "threat"
        else _OfCallable(entry, options)
    )


def _objective(
    entry: Any, options: Mapping[str, Any], spec: str, known: Guard
) -> Objective:
    made = entry if isinstance(entry, Objective | Hiding) else called(entry, spec, options)
    if not isinstance(made, Hiding):
        return made
    if made.make is None:
        raise NotApplicable("it adds no term")
    return made.make(known, options if made is entry else {})


def _recipe(make: Callable[..., Any]) -> Attacks:
    def attacks(threat: ThreatModel) -> Run:
        attack = make(threat)

        def run(
            classifier: FeatureClassifier,
            x: Tensor,
            goal: Goal,
            ids: Sequence[str],
            seed: int,
        ) -> Tensor:
            return attack(classifier, x, goal, ids=ids, seed=seed).adversarial

        return run

    return attacks


class _OfCallable:
    """An attack ``(classifier, x, goal, ids, seed) -> images``, told ``eps`` if it takes it."""

    def __init__(self, entry: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
        self.entry, self.options = entry, options
        self.takes_eps = "eps" in inspect.signature(entry).parameters

    def __call__(self, threat: ThreatModel) -> Run:
        told = {"eps": threat.eps} if self.takes_eps else {}
        return partial(self.entry, **told, **self.options)
