"""Add-ons: our objectives and attacks inside other libraries, and other libraries' attacks and
detectors inside our audits.

``feathide.integrations`` needs none of the other libraries. ``feathide.integrations.art`` and
``feathide.integrations.torchattacks`` hold our attacks as objects of those libraries, which they
import."""

from feathide.integrations.foreign_attacks import Foreign, foreign_attack
from feathide.integrations.foreign_detectors import PytorchOODDetector, SklearnDetector
from feathide.integrations.hook import HOSTS, with_objective
from feathide.integrations.named_attacks import ATTACK_LIBRARIES, attack_named, identity
from feathide.integrations.named_detectors import DETECTOR_LIBRARIES, detector_named
from feathide.integrations.sklearn import OutlierDetector

__all__ = [
    "ATTACK_LIBRARIES",
    "DETECTOR_LIBRARIES",
    "HOSTS",
    "Foreign",
    "OutlierDetector",
    "PytorchOODDetector",
    "SklearnDetector",
    "attack_named",
    "detector_named",
    "foreign_attack",
    "identity",
    "with_objective",
]
