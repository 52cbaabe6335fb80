"""The catalogue: the only tables from a name to what it stands for. Adding a row enrols it in
plans, help texts and conformance tests.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from feathide.attacks import presets as recipes
from feathide.attacks.ensemble import Ensemble
from feathide.attacks.loop import Attack
from feathide.attacks.updates import Blend, Orthogonal, Scheduled, Selective, Together
from feathide.detectors import DETECTORS as OUR_DETECTORS
from feathide.detectors import Detector
from feathide.errors import expected
from feathide.integrations import Foreign, attack_named, detector_named
from feathide.losses import HFC, Evade, Guide, Objective
from feathide.mixtures import MixtureBank
from feathide.models.zoo import MODELS
from feathide.registry.plugins import with_plugins
from feathide.types import Knowledge, Outputs

__all__ = [
    "ABILITIES",
    "ATTACKS",
    "DETECTORS",
    "MODELS",
    "OBJECTIVES",
    "Ability",
    "Hiding",
    "Known",
    "ability_of",
]

OUR_ATTACKS: dict[str, Callable[..., Attack | Ensemble]] = {
    "fgsm": recipes.fgsm,
    "bim": recipes.bim,
    "pgd": recipes.pgd,
    "pgd-one-sided": partial(recipes.pgd, one_sided=True),
    "pgd-smooth": recipes.pgd_smooth,
    "mim": recipes.mim,
    "dim": recipes.dim,
    "tim": recipes.tim,
    "cw": recipes.cw,
    "apgd": recipes.apgd_ce,
    "apgd-dlr": recipes.apgd_dlr,
    "square": recipes.square,
    "standard": recipes.standard,
    "noise": recipes.noise,
}


@dataclass(frozen=True)
class Ability:
    """What an attack takes of a plan, and what it can do.

    Args:
        ours: Whether it is of this package, so that its steps and its loss are known.
        schedule: The fields of the plan's step schedule that it takes; an attack that takes steps
            has steps to hide in.
        queries: Whether its ``steps`` are queries of the network.
        gradient: Whether it asks for gradients.
        searches: Whether it needs no gradient, or ends with an attack that needs none.
        several: Whether it is several attacks, of which the worst counts.
    """

    ours: bool = True
    schedule: tuple[str, ...] = ()
    queries: bool = False
    gradient: bool = True
    searches: bool = False
    several: bool = False

    @property
    def hides(self) -> bool:
        """Whether it has steps in which a hiding term can act."""
        return "steps" in self.schedule


STEPS = Ability(schedule=("steps", "step_size", "decay", "restarts"))
OWN_STEP_SIZE = Ability(schedule=("steps", "restarts"))
ABILITIES: dict[str, Ability] = {
    "fgsm": Ability(),
    "bim": STEPS,
    "pgd": STEPS,
    "pgd-one-sided": STEPS,
    "pgd-smooth": STEPS,
    "mim": STEPS,
    "dim": STEPS,
    "tim": STEPS,
    "cw": STEPS,
    "apgd": OWN_STEP_SIZE,
    "apgd-dlr": OWN_STEP_SIZE,
    "square": Ability(queries=True, gradient=False, searches=True),
    "standard": Ability(schedule=("steps",), searches=True, several=True),
    "noise": Ability(gradient=False),
}


def ability_of(attack: str) -> Ability:
    """What the attack of this name can do; attacks of others say it themselves when they run."""
    return ABILITIES.get(attack, Ability(ours=False))


class Known(Protocol):
    """What an attacker may know, made when it is asked for."""

    def bank(self) -> MixtureBank: ...
    def train(self) -> tuple[Outputs, Tensor]: ...
    def detectors(
        self, names: Sequence[str] | None
    ) -> tuple[Sequence[Detector], Sequence[float], Sequence[float]]:
        """Fitted detectors with their thresholds and the spread of their clean scores."""
        ...


@dataclass(frozen=True)
class Hiding:
    """How an attacker hides: the term that is added, its usual weight, and the knowledge that it
    takes.

    ``needs``: "" nothing, "train" clean training outputs, "bank" the mixtures, "detectors" the
    fitted detectors. ``floored``: whether it takes the option ``floor``."""

    make: Callable[[Known, Mapping[str, Any]], Objective] | None
    knowledge: Knowledge
    weight: float = 1.0
    blend: Blend = Together()
    needs: str = ""
    floored: bool = False


def _hfc(known: Known, options: Mapping[str, Any]) -> Objective:
    """``options``: fields of HFC, among them ``floor``; ``layers``: names, patterns such as
    "layer4*", or "last"; ``widest``: of these only layers of at most so many channels, a flaw of
    published code (512) kept to compare.
    """
    bank, rest = known.bank(), dict(options)
    wanted, widest = rest.pop("layers", None), rest.pop("widest", math.inf)
    wanted = ("*",) if wanted is None else wanted
    found = [
        n
        for n in bank.layers
        if n in wanted
        or any(fnmatchcase(n, bank.layers[-1] if w == "last" else w) for w in wanted)
    ]
    narrow = [n for n in found if bank.width(n) <= widest]
    if found and not narrow:
        got = f"widest: {widest}, the narrowest has {min(map(bank.width, found))}"
        raise expected(
            "HFC needs a layer of at most widest channels", got=got, do="raise widest"
        )
    return HFC(bank, layers=narrow or wanted, **rest)


def _typical(known: Known, options: Mapping[str, Any]) -> Objective:
    """HFC that pulls each image to a typical point of its own, in place of the mean of a class;
    ``options`` as of ``_hfc``, but for ``floor``.
    """
    return _hfc(known, {"keep": 1.0, "floor": "none"} | dict(options))


def _guide(pick: str) -> Callable[[Known, Mapping[str, Any]], Objective]:
    def make(known: Known, options: Mapping[str, Any]) -> Objective:
        outputs, labels = known.train()
        return Guide(outputs, labels, pick=pick)  # type: ignore[arg-type]

    return make


def _evade(*names: str) -> Callable[[Known, Mapping[str, Any]], Objective]:
    """Against the named detectors, or those of ``options["detectors"]``, or all that the audit
    has.
    """

    def make(known: Known, options: Mapping[str, Any]) -> Objective:
        found, below, scales = known.detectors(names or options.get("detectors"))
        return Evade(tuple(found), below=tuple(below), scales=tuple(scales))

    return make


OUR_OBJECTIVES: dict[str, Hiding] = {
    "plain": Hiding(None, "oblivious"),
    "hfc": Hiding(_hfc, "feature-aware", 0.3, needs="bank", floored=True),
    "hfc-scheduled": Hiding(
        _hfc, "feature-aware", 0.3, Scheduled(), needs="bank", floored=True
    ),
    "hfc-typical": Hiding(_typical, "feature-aware", 0.3, needs="bank"),
    "random": Hiding(_guide("random"), "feature-aware", 0.1, needs="train"),
    "closest": Hiding(_guide("closest"), "feature-aware", 0.1, needs="train"),
    "kde": Hiding(_evade("kd"), "detector-aware", 1.0, needs="detectors"),
    "lid": Hiding(_evade("lid"), "detector-aware", 1.0, needs="detectors"),
    "evade": Hiding(_evade(), "detector-aware", 1.0, needs="detectors"),
    "selective": Hiding(_evade(), "detector-aware", 1.0, Selective(), needs="detectors"),
    "orthogonal": Hiding(_evade(), "detector-aware", 1.0, Orthogonal(), needs="detectors"),
}

ATTACKS: Mapping[str, Callable[..., Attack | Ensemble | Foreign]] = with_plugins(
    "attacks", OUR_ATTACKS, attack_named
)
OBJECTIVES: Mapping[str, Hiding] = with_plugins("objectives", OUR_OBJECTIVES)
DETECTORS: Mapping[str, Callable[[], Detector]] = with_plugins(
    "detectors", OUR_DETECTORS, detector_named
)
