"""Gaussian mixtures of features: the normal range of every layer and class that HFC hides in."""

from feathide.mixture.bank import MixtureBank
from feathide.mixture.fit import fit_mixture
from feathide.mixture.model import Covariance, Mixture

__all__ = ["Covariance", "Mixture", "MixtureBank", "fit_mixture"]
