"""Detectors: what guards a classifier. ``DETECTORS`` makes each by the name that tables and plans
call it.
"""

from collections.abc import Callable
from functools import partial

from feathide.detectors.base import Detector
from feathide.detectors.density import KernelDensity, MixtureEnergy, NearestNeighbours
from feathide.detectors.image import FeatureSqueezing, PixelRegression, PixelStatistics
from feathide.detectors.joint import JointGaussian, RandomSubsets
from feathide.detectors.learned import LayerNetworks, SupportVectors
from feathide.detectors.lid import LocalDimension
from feathide.detectors.mahalanobis import Mahalanobis, input_step
from feathide.detectors.reference_network import ReferenceNetwork
from feathide.detectors.shield import Shield
from feathide.detectors.two_sided import TwoSided
from feathide.detectors.uncertainty import (
    DensityAndDropout,
    DropoutUncertainty,
    FreeEnergy,
    LogitUncertainty,
    MaxSoftmax,
)

__all__ = [
    "DETECTORS",
    "DensityAndDropout",
    "Detector",
    "DropoutUncertainty",
    "FeatureSqueezing",
    "FreeEnergy",
    "JointGaussian",
    "KernelDensity",
    "LayerNetworks",
    "LocalDimension",
    "LogitUncertainty",
    "Mahalanobis",
    "MaxSoftmax",
    "MixtureEnergy",
    "NearestNeighbours",
    "PixelRegression",
    "PixelStatistics",
    "RandomSubsets",
    "ReferenceNetwork",
    "Shield",
    "SupportVectors",
    "TwoSided",
    "input_step",
]

MAKERS: tuple[Callable[[], Detector], ...] = (
    KernelDensity,
    DropoutUncertainty,
    LogitUncertainty,
    DensityAndDropout,
    LocalDimension,
    Mahalanobis,
    SupportVectors,
    LayerNetworks,
    NearestNeighbours,
    MixtureEnergy,
    MaxSoftmax,
    FreeEnergy,
    JointGaussian,
    RandomSubsets,
    ReferenceNetwork,
    partial(ReferenceNetwork, name="reference-network-joint", inner=JointGaussian()),
    partial(LocalDimension, name="lid-oneclass", combine="mean"),
    partial(Mahalanobis, name="maha-oneclass", combine="mean"),
    TwoSided,
    partial(TwoSided, name="maha-two-sided", inner=Mahalanobis(combine="mean")),
    partial(TwoSided, name="energy-two-sided", inner=MixtureEnergy()),
    PixelStatistics,
    PixelRegression,
    FeatureSqueezing,
    Shield,
)
DETECTORS: dict[str, Callable[[], Detector]] = {make().name: make for make in MAKERS}
