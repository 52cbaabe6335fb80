"""Gaussian mixtures of features: the normal range of every layer and class that HFC hides in."""

from feathide.mixtures.bank import MixtureBank
from feathide.mixtures.fit import fit_mixture
from feathide.mixtures.mixture import Covariance, Mixture

__all__ = ["Covariance", "Mixture", "MixtureBank", "fit_mixture"]
