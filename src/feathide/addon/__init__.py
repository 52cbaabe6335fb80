"""Add-ons: our objectives and attacks inside other libraries, and other libraries' attacks and detectors inside our audits.

``feathide.addon`` needs none of the other libraries. ``feathide.addon.art`` and ``feathide.addon.torchattacks`` hold our attacks as objects
of those libraries, which they import.
"""

from feathide.addon.foreign import Foreign, foreign_attack
from feathide.addon.foreign_detectors import PytorchOODDetector, SklearnDetector
from feathide.addon.guided import HOSTS, with_objective
from feathide.addon.named import ATTACK_LIBRARIES, attack_named, identity
from feathide.addon.named_detectors import DETECTOR_LIBRARIES, detector_named
from feathide.addon.outliers import OutlierDetector

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
