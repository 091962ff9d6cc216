"""Families of counts: mean, variance and deviance, given a linear predictor; many responses at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np


class Family(Protocol):
    """Mean, variance and deviance of counts, given the linear predictor."""

    def mean(self, eta: np.ndarray) -> np.ndarray:
        """Return the mean count."""

    def slope(self, mu: np.ndarray) -> np.ndarray:
        """Return the derivative of the mean with respect to the linear predictor."""

    def variance(self, mu: np.ndarray) -> np.ndarray:
        """Return the variance of a count."""

    def deviance(self, y: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """Return the quasi-deviance of each count."""

    def penalised(self, y: np.ndarray, mu: np.ndarray, hat: np.ndarray) -> np.ndarray:
        """Return the counts with Firth's adjustment, given the leverages."""

    def start(self, y: np.ndarray) -> np.ndarray:
        """Return a linear predictor from which to begin."""

    def rows(self, chosen: slice | np.ndarray) -> Family:
        """Return the family of some responses."""


@dataclass(frozen=True)
class NegativeBinomial:
    """Negative binomial counts.

    Parameters
    ----------
    offset
        Logarithm of the exposure of each sample, such as its library size.
    dispersion
        Dispersion of each response, ``(responses, 1)``.
    """

    offset: np.ndarray
    dispersion: np.ndarray
    highest: ClassVar[float] = 10.0

    @staticmethod
    def unit(given: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the dispersion of each response over the one that responses share, which is the same."""
        return np.ones((len(y), 1))

    def mean(self, eta: np.ndarray) -> np.ndarray:
        """Return the mean count."""
        return np.exp(np.clip(self.offset + eta, -30, 30))

    def slope(self, mu: np.ndarray) -> np.ndarray:
        """Return the derivative of the mean with respect to the linear predictor."""
        return mu

    def variance(self, mu: np.ndarray) -> np.ndarray:
        """Return the variance of a count."""
        return mu + self.dispersion * mu**2

    def deviance(self, y: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """Return the deviance of each count."""
        phi = self.dispersion
        ratio = np.where(y > 0, y * np.log(np.maximum(y, 1e-300) / mu), 0.0)
        return 2 * np.maximum(ratio - (y + 1 / phi) * (np.log1p(phi * y) - np.log1p(phi * mu)), 0.0)

    def penalised(self, y: np.ndarray, mu: np.ndarray, hat: np.ndarray) -> np.ndarray:
        """Return the counts with Firth's adjustment: half of the leverage is added."""
        return y + hat / 2

    def start(self, y: np.ndarray) -> np.ndarray:
        """Return the logarithm of the rate, with a small count added."""
        exposure = np.exp(self.offset)
        rate = (y + 0.5 * y.mean(1, keepdims=True) + 0.1) / exposure
        return np.log(rate)

    def rows(self, chosen: slice | np.ndarray) -> NegativeBinomial:
        """Return the family of some responses."""
        return NegativeBinomial(self.offset, self.dispersion[chosen])


@dataclass(frozen=True)
class BetaBinomial:
    """Counts out of a total with the variance of a beta-binomial.

    Parameters
    ----------
    total
        Total of each response and sample, ``(responses, samples)``.
    correlation
        Intraclass correlation ``rho`` of each response, ``(responses, 1)``.
    """

    total: np.ndarray
    correlation: np.ndarray
    highest: ClassVar[float] = 0.9

    @staticmethod
    def unit(given: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the correlation of each response if log-odds vary by one among donors: ``p (1 - p)``."""
        share = (y.sum(1, keepdims=True) + 0.5) / (given.sum(1, keepdims=True) + 1)
        return share * (1 - share)

    @property
    def inflation(self) -> np.ndarray:
        """Variance of a count over that of a binomial one."""
        return 1 + np.maximum(self.total - 1, 0) * self.correlation

    def mean(self, eta: np.ndarray) -> np.ndarray:
        """Return the mean count."""
        return self.total / (1 + np.exp(-np.clip(eta, -30, 30)))

    def slope(self, mu: np.ndarray) -> np.ndarray:
        """Return the derivative of the mean with respect to the linear predictor."""
        return mu * (1 - mu / np.maximum(self.total, 1e-300))

    def variance(self, mu: np.ndarray) -> np.ndarray:
        """Return the variance of a count."""
        return np.maximum(self.slope(mu) * self.inflation, 1e-300)

    def deviance(self, y: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """Return the binomial deviance of each count, divided by the inflation of its variance."""
        return (_part(y, mu) + _part(self.total - y, self.total - mu)) / self.inflation

    def penalised(self, y: np.ndarray, mu: np.ndarray, hat: np.ndarray) -> np.ndarray:
        """Return the counts with Firth's adjustment: half of the leverage to each side."""
        return y + self.inflation * hat * (0.5 - mu / np.maximum(self.total, 1e-300))

    def start(self, y: np.ndarray) -> np.ndarray:
        """Return the log-odds, drawn towards those of all samples."""
        share = (y.sum(1, keepdims=True) + 0.5) / (self.total.sum(1, keepdims=True) + 1)
        p = (y + share * 2) / (self.total + 2)
        return np.log(p / (1 - p))

    def rows(self, chosen: slice | np.ndarray) -> BetaBinomial:
        """Return the family of some responses."""
        return BetaBinomial(self.total[chosen], self.correlation[chosen])


def _part(y: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """Return ``2 y log(y / mu)``, which is 0 for no counts."""
    return 2 * np.where(y > 0, y * np.log(np.maximum(y, 1e-300) / np.maximum(mu, 1e-300)), 0.0)
