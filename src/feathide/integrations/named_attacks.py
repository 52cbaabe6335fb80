"""Attacks of other libraries, and of the user's own code, by the names that plans use:
``torchattacks:PGD(steps=20)``, ``my_package:attack``.

The budget of the plan is told in the convention of each library; steps stay the share of eps that
they are by the library's defaults."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from feathide.attacks.threats import L2, ThreatModel
from feathide.attacks.updates import Blend, Together
from feathide.errors import InputError, choose, expected
from feathide.integrations.foreign_attacks import Foreign, ForeignAttack, foreign_attack
from feathide.integrations.hook import Guided, host_of
from feathide.integrations.shipped_guards import SHIPPED, guard_digest
from feathide.integrations.versions import check_version
from feathide.losses import CrossEntropy, Objective
from feathide.models.classifier import FeatureClassifier
from feathide.registry.specs import parsed
from feathide.registry.user_code import called, check_arguments, load_object, source_digest
from feathide.types import Goal

__all__ = ["ATTACK_LIBRARIES", "attack_named", "classes_of", "identity"]

Maker = Callable[..., Foreign]
PACKAGES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "adversarial-robustness-toolbox",
    "sklearn": "scikit-learn",
    "pytorch_ood": "pytorch-ood",
}
# of attacks that leave finished images out from the second one on
RESTARTS = ("nb_random_init", "n_restarts")
# taken for the time estimate where an attack does not say how many steps it makes
PASSES = 40


def attack_named(name: str) -> Maker:
    """What makes the attack ``name`` for a threat model, as a recipe does:
    ``attack_named("foolbox:LinfPGD(steps=20)")(Linf(4 / 255))``.

    ``torchattacks:Name``, ``foolbox:Name``, ``art:Name`` are the classes of these libraries,
    aimed at the target where they can be, with the arguments in brackets. Other names are the
    user's own code, which is imported: a callable ``(classifier, x, goal, ids, seed) -> images``,
    also told ``eps`` in units of the box and the objective ``hide`` if it takes them; or a
    recipe, whose first parameter is called ``threat``. ``hide``: in a library's attack as by
    ``with_objective``.

    Raises ``InputError`` for an unknown name, arguments that the attack does not take, an attack
    of another norm, and a ``hide`` that it cannot carry."""
    base, options = parsed(name)
    library, _, what = base.partition(":")
    if library in ATTACK_LIBRARIES:
        return _library_attack(name, library, what, options)
    entry = load_object(base, trust=True)
    if not callable(entry):
        raise expected(
            f"{base} must be an attack",
            got=type(entry).__name__,
            do="name a function or a class",
        )
    if next(iter(inspect.signature(entry).parameters), "") == "threat":
        return lambda threat, **fields: entry(threat, **{**fields, **options})
    told = inspect.signature(entry).parameters
    check_arguments(
        entry, base, {**dict.fromkeys({"eps", "hide"} & set(told)), **options}, *[None] * 5
    )

    def make(
        threat: ThreatModel, *, hide: Objective | None = None, **fields: Any
    ) -> Foreign:
        if hide is not None:
            _check_blend(name, fields)
            if "hide" not in told:
                raise expected(
                    f"{base} must take the objective as an argument",
                    got="no hide",
                    do="add hide=None to it",
                )
        more = {k: v for k, v in {"eps": _one(threat), "hide": hide}.items() if k in told}
        run = partial(entry, **{**more, **options})
        return Foreign(run, threat, _judged(hide), passes=options.get("steps", PASSES))

    return make


def identity(name: str) -> str:
    """What decides the outcome of an attack or detector beyond its name: the version of its
    library, or a digest of the user's file; "" for ours.
    """
    base = parsed(name)[0]
    library, colon, what = base.partition(":")
    if library == SHIPPED:
        return guard_digest(what)
    return (
        ""
        if not colon
        else version(PACKAGES[library])
        if library in PACKAGES
        else source_digest(base)
    )


def classes_of(
    module: str, fits: Callable[[type], bool], *, install: str
) -> dict[str, type]:
    """The public classes of another library's module, by name; an ``InputError`` that says what
    to install where it is absent.
    """
    try:
        found = vars(import_module(module))
    except ImportError as error:
        raise expected(
            f"{module} must be installed", got=str(error), do=f"pip install {install}"
        ) from None
    check_version(module)
    return {
        n: c
        for n, c in found.items()
        if inspect.isclass(c) and not n.startswith("_") and fits(c)
    }


def _library_attack(
    name: str, library: str, what: str, options: Mapping[str, Any]
) -> Maker:
    build, table = ATTACK_LIBRARIES[library]
    cls = choose(f"attack of {library}", what, table())
    parameters = inspect.signature(cls).parameters
    if "eps" in options:
        raise expected(
            f"the eps of {name} is the plan's",
            got=options["eps"],
            do="leave it out of the arguments",
        )
    check_arguments(cls, name, options, *[None] * (library != "foolbox"))
    steps = next(
        (n for n in ("steps", "max_iter", "n_queries", "nb_iter") if n in parameters), ""
    )
    passes = options.get(steps, parameters[steps].default if steps else PASSES)

    def make(
        threat: ThreatModel, *, hide: Objective | None = None, **fields: Any
    ) -> Foreign:
        _check_norm(name, what, parameters, threat)
        if hide is not None:
            host_of(cls)
            _check_blend(name, fields)
            _check_restarts(name, parameters, options)
        return Foreign(
            _explained(name, build(cls, name, options, threat, hide)),
            threat,
            _judged(hide),
            passes=passes if isinstance(passes, int) else PASSES,
        )

    return make


def _explained(name: str, attack: ForeignAttack) -> ForeignAttack:
    """``attack``, whose failures are said in one sentence."""

    def run(
        classifier: FeatureClassifier, x: Tensor, goal: Goal, ids: Sequence[str], seed: int
    ) -> Tensor:
        # whatever a library raises on images or networks that it cannot attack
        try:
            return attack(classifier, x, goal, ids, seed)
        except InputError:
            raise
        except Exception as error:
            got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise expected(
                f"{name} must be able to attack images {tuple(x.shape[1:])}",
                got=got,
                do="choose another",
            ) from error

    return run


def _judged(hide: Objective | None) -> Objective:
    return CrossEntropy() if hide is None else CrossEntropy() + hide


def _check_blend(name: str, fields: Mapping[str, Any]) -> None:
    blend: Blend = fields.get("blend", Together())
    if blend != Together():
        raise expected(
            f"{name} follows the gradient of one sum",
            got=f"{type(blend).__name__}, which needs the gradients of fooling and hiding apart",
            do="choose an attack of feathide for it",
        )


def _check_restarts(
    name: str, parameters: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    for more in RESTARTS:
        if (
            more in parameters
            and (runs := options.get(more, parameters[more].default)) != 1
        ):
            raise expected(
                (
                    f"{name} leaves finished images out from its second restart on, so that no "
                    "row tells its image"
                ),
                got=f"{more}={runs}",
                do=f"say {more}=1 to hide in it",
            )


def _check_norm(
    name: str, what: str, parameters: Mapping[str, Any], threat: ThreatModel
) -> None:
    own = (
        "l2"
        if "L2" in what
        else "linf"
        if "Linf" in what or "LInf" in what or "eps" in parameters
        else ""
    )
    asked = "l2" if isinstance(threat, L2) else "linf"
    if own and own != asked and "norm" not in parameters:
        raise expected(
            f"{name} is an attack in {own}",
            got=f"norm: {asked}",
            do="choose an attack in the plan's norm",
        )


def _one(threat: ThreatModel) -> float:
    eps = torch.as_tensor(threat.eps)
    if eps.numel() != 1:
        raise expected(
            "one eps for all images",
            got=f"{eps.numel()} of them",
            do="attack images of one budget at a time",
        )
    return float(eps)


def _told(cls: type, eps: float, norm: object) -> dict[str, Any]:
    """The budget as arguments of a library's class: eps, its norm, and a step that is the share
    of eps that it is by default.
    """
    parameters = inspect.signature(cls).parameters
    told: dict[str, Any] = {"eps": eps} if "eps" in parameters else {}
    usual = parameters["eps"].default if told else None
    for step in ("alpha", "eps_step"):
        share = parameters[step].default if step in parameters else None
        if isinstance(share, int | float) and isinstance(usual, int | float) and usual:
            told[step] = eps * share / usual
    return told | ({"norm": norm} if "norm" in parameters else {})


def _torchattacks(
    cls: type,
    name: str,
    options: Mapping[str, Any],
    threat: ThreatModel,
    hide: Objective | None,
) -> ForeignAttack:
    eps, norm = _one(threat), "L2" if isinstance(threat, L2) else "Linf"

    def run(
        classifier: FeatureClassifier, x: Tensor, goal: Goal, ids: Sequence[str], seed: int
    ) -> Tensor:
        width = classifier.box[1] - classifier.box[0]
        attack = called(
            cls,
            name,
            {**_told(cls, eps / width, norm), **options},
            Guided(classifier, unit=True),
        )
        aimed = "targeted" in attack.supported_mode
        return foreign_attack(attack, targeted=aimed, hide=hide)(
            classifier, x, goal, ids, seed
        )

    return run


def _foolbox(
    cls: type,
    name: str,
    options: Mapping[str, Any],
    threat: ThreatModel,
    hide: Objective | None,
) -> ForeignAttack:
    attack, eps = called(cls, name, options), _one(threat)

    def run(
        classifier: FeatureClassifier, x: Tensor, goal: Goal, ids: Sequence[str], seed: int
    ) -> Tensor:
        try:
            return foreign_attack(attack, targeted=True, eps=eps, hide=hide)(
                classifier, x, goal, ids, seed
            )
        except ValueError as error:
            if "unsupported criterion" not in str(error):
                raise
            return foreign_attack(attack, targeted=False, eps=eps, hide=hide)(
                classifier, x, goal, ids, seed
            )

    return run


def _art(
    cls: type,
    name: str,
    options: Mapping[str, Any],
    threat: ThreatModel,
    hide: Objective | None,
) -> ForeignAttack:
    told = _told(cls, _one(threat), 2 if isinstance(threat, L2) else "inf")
    parameters = inspect.signature(cls).parameters
    told |= {
        k: v for k, v in {"targeted": True, "verbose": False}.items() if k in parameters
    }

    def run(
        classifier: FeatureClassifier, x: Tensor, goal: Goal, ids: Sequence[str], seed: int
    ) -> Tensor:
        from art.estimators.classification import PyTorchClassifier

        with torch.no_grad():
            classes = classifier(x[:1]).logits.shape[1]
        estimator = PyTorchClassifier(
            Guided(classifier),
            nn.CrossEntropyLoss(),
            tuple(x.shape[1:]),
            classes,
            clip_values=classifier.box,
            device_type=x.device.type.replace("cuda", "gpu"),
        )
        size = {"batch_size": len(x)} if "batch_size" in parameters else {}
        attack = called(cls, name, {**told, **size, **options}, estimator)
        return foreign_attack(attack, hide=hide)(classifier, x, goal, ids, seed)

    return run


def _of(package: str) -> Callable[[type], bool]:
    return lambda c: (
        c.__module__.startswith(f"{package}.attacks") and not inspect.isabstract(c)
    )


ATTACK_LIBRARIES: dict[
    str, tuple[Callable[..., ForeignAttack], Callable[[], dict[str, type]]]
] = {
    "torchattacks": (
        _torchattacks,
        lambda: classes_of("torchattacks", _of("torchattacks"), install="torchattacks"),
    ),
    "foolbox": (
        _foolbox,
        lambda: classes_of("foolbox.attacks", _of("foolbox"), install="foolbox"),
    ),
    "art": (
        _art,
        lambda: classes_of(
            "art.attacks.evasion", _of("art"), install="adversarial-robustness-toolbox"
        ),
    ),
}
