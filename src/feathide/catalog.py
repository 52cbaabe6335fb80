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
    "ATTACKS",
    "BLIND",
    "DETECTORS",
    "ITERATIVE",
    "MODELS",
    "OBJECTIVES",
    "SCHEDULES",
    "Hiding",
    "Known",
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

STEPS = ("steps", "step_size", "decay", "restarts")
# what an attack takes of the step schedule that the attacks of an audit share
SCHEDULES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("bim", "pgd", "pgd-one-sided", "pgd-smooth", "mim", "dim", "tim", "cw"), STEPS
    ),
    **dict.fromkeys(("apgd", "apgd-dlr"), ("steps", "restarts")),
    "standard": ("steps",),
}
ITERATIVE = tuple(SCHEDULES)  # attacks with steps to hide in
BLIND = ("square", "noise")  # attacks that ask for no gradient


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
    """How an attacker hides: the term that is added, its usual weight, and what he must know for
    it.

    ``needs``: "" nothing, "train" clean training outputs, "bank" the mixtures, "detectors" the
    fitted detectors."""

    make: Callable[[Known, Mapping[str, Any]], Objective] | None
    knowledge: Knowledge
    weight: float = 1.0
    blend: Blend = Together()
    needs: str = ""


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
    "hfc": Hiding(_hfc, "feature-aware", 0.3, needs="bank"),
    "hfc-scheduled": Hiding(_hfc, "feature-aware", 0.3, Scheduled(), needs="bank"),
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
