"""Goals in clinical terms, for networks that segment or find landmarks: what is to happen to a
structure or a landmark, and from where on it counts.
"""

from feathide.goals.bounds import Bound, ReadOut
from feathide.goals.landmarks import LandmarkGoal, MoveLandmark
from feathide.goals.masks import MaskGoal
from feathide.goals.structures import (
    Erase,
    Grow,
    Insert,
    LowerDice,
    MaskWish,
    MoveSurface,
    Reach,
    Shrink,
)

__all__ = [
    "Bound",
    "Erase",
    "Grow",
    "Insert",
    "LandmarkGoal",
    "LowerDice",
    "MaskGoal",
    "MaskWish",
    "MoveLandmark",
    "MoveSurface",
    "Reach",
    "ReadOut",
    "Shrink",
]
