"""What all recipes share: the fields that pass through, a signature that names them, and the
``Attack`` that they make.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from functools import wraps
from inspect import Parameter, signature
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar

from feathide.attacks.apgd import AutoStep
from feathide.attacks.ensemble import Ensemble
from feathide.attacks.leave import Leave, never, when_fooled
from feathide.attacks.loop import Attack, Smooth, View
from feathide.attacks.square import Square
from feathide.attacks.threats import ThreatModel, check_threat
from feathide.attacks.updates import Blend, Rule
from feathide.errors import expected, unknown
from feathide.losses import (
    DLR,
    CrossEntropy,
    Margin,
    Objective,
    ObjectiveLike,
    as_objective,
)

P = ParamSpec("P")
A = TypeVar("A", Attack, Ensemble)


class Fields(TypedDict, total=False):
    """What every recipe takes beside its own arguments; ``Attack`` says what they mean."""

    objective: ObjectiveLike
    steps: int
    step_size: float
    decay: Literal["constant", "linear", "cosine"]
    rule: Rule
    blend: Blend
    view: View | None
    smooth: Smooth | None
    limit: Smooth | None
    random_start: bool | Literal["one-sided"]
    restarts: int
    confidence: float
    leave: Leave
    unit: float
    kappa: float


def recipe(make: Callable[P, A]) -> Callable[P, A]:
    """A recipe whose signature names the ``Fields``, and that answers a wrong name with the
    nearest one.
    """
    written = signature(make)
    own: list[Parameter] = [
        p for p in written.parameters.values() if p.kind is not Parameter.VAR_KEYWORD
    ]
    usual = {f.name: f.default for f in fields(Attack) if f.default is not MISSING}
    passed: list[Parameter] = [
        Parameter(
            name, Parameter.KEYWORD_ONLY, default=usual.get(name, ...), annotation=kind
        )
        for name, kind in Fields.__annotations__.items()
    ]
    names = [p.name for p in (*own, *passed)]

    @wraps(make)
    def made(*threat: P.args, **given: P.kwargs) -> A:
        for name in given:
            if name not in names:
                raise unknown(f"argument of {make.__name__}", name, names)
        _check_call(make.__name__, threat, given)
        return make(*threat, **given)

    made.__signature__ = written.replace(parameters=[*own, *passed])  # type: ignore[attr-defined]
    return made


def _check_call(recipe: str, threat: tuple[object, ...], fields: Mapping[str, Any]) -> None:
    """Refuse what no recipe can use: no threat model, more than one, no step at all."""
    given = [*threat, *([fields["threat"]] if "threat" in fields else [])]
    if len(given) != 1:
        raise expected(
            f"{recipe} takes one threat model; the rest are named",
            got=f"{len(given)} unnamed arguments",
            do=f"say {recipe}(Linf(4 / 255), ...)",
        )
    check_threat(given[0])
    for name in ("steps", "queries"):
        if name in fields and isinstance(fields[name], int | float) and fields[name] < 1:
            raise expected(
                f"{name} of {recipe} must be 1 or more",
                got=fields[name],
                do=f"raise {name}, or take noise(...) for a random start alone",
            )


def build_attack(
    threat: ThreatModel,
    base: Objective,
    hide: ObjectiveLike | None,
    fields: Mapping[str, Any],
    **own: Any,
) -> Attack:
    """The attack of a recipe: ``own``, what the recipe is, goes before ``fields``, what the
    caller chose.
    """
    chosen = dict(fields)
    if (kappa := chosen.pop("kappa", None)) is not None:
        if not isinstance(base, CrossEntropy | Margin | DLR):
            raise expected(
                "kappa is the lead of a target",
                got="an untargeted attack",
                do="leave kappa out",
            )
        base = replace(base, kappa=kappa)
    objective = base if hide is None else base + as_objective(hide)
    if "objective" in chosen:
        chosen["objective"] = as_objective(chosen["objective"], fools=True)
    return Attack(
        **{
            "objective": objective,
            "threat": threat,
            "steps": 40,
            "step_size": 0.1,
            **chosen,
            **own,
        }
    )


def apgd_of(
    threat: ThreatModel,
    base: Objective,
    hide: ObjectiveLike | None,
    fields: Mapping[str, Any],
) -> Attack:
    own = {"rule": AutoStep(), "random_start": True, "step_size": 2.0, "decay": "constant"}
    return build_attack(threat, base, hide, {"steps": 100, **fields}, **own)


def square_of(
    threat: ThreatModel,
    base: Objective,
    hide: ObjectiveLike | None,
    fields: Mapping[str, Any],
    queries: int,
) -> Attack:
    own = {"rule": Square(), "steps": queries, "random_start": False}
    return build_attack(threat, base, hide, {"leave": leave_of(hide), **fields}, **own)


def leave_of(hide: ObjectiveLike | None) -> Leave:
    return when_fooled if hide is None else never
