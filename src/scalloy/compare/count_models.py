r"""Regressions of the counts of samples, many responses at a time, with moderated quasi-likelihood tests.

A response is a gene or a population of cells, and ``y_i`` its count in sample ``i``. Both families have a
mean that depends on ``eta_i = x_i beta`` and a variance that samples of different donors show:

================================  ==============================  =========================================
family                            mean                            variance, times ``s^2``
================================  ==============================  =========================================
:class:`~.NegativeBinomial`       ``mu = exp(o + eta)``           ``mu + phi mu^2``
:class:`~.BetaBinomial`           ``mu = N p, logit p = eta``     ``N p (1 - p) (1 + (N - 1) rho)``
================================  ==============================  =========================================

``phi``, and ``rho`` over ``p (1 - p)``, are shared by responses of similar abundance. The latter is about the
variance of the log-odds among donors, so that rare and frequent populations may share it. ``s^2`` is each
response's own. It is the sum of squared Pearson residuals over the degrees of freedom. A group of samples
with no or a single count says nothing about the variance, however many samples it has. Each residual
therefore has a weight of one minus its leverage over its mean, which in the simplest case is one minus the
inverse of the group's total. The estimates of all responses are then drawn together (:func:`squeeze`), and a
difference in quasi-deviance is compared with an F distribution.

Effects are estimated with Firth's penalty, which keeps them finite where a group has no counts at all.

References
----------
Lund, Nettleton, McCarthy, Smyth (2012), Statistical Applications in Genetics and Molecular Biology 11.
Phipson, Lee, Majewski, Alexander, Smyth (2016), Annals of Applied Statistics 10.
Firth (1993), Biometrika 80.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from scalloy.compare.count_families import BetaBinomial, Family, NegativeBinomial

STEPS = 60  # maximum number of scoring steps
LONGEST = 2.0  # largest change of the linear predictor in a step
CLOSE = 1e-8  # change of the deviance, relative, at which a fit has converged
CLOSE_STEP = 1e-6  # largest change of the linear predictor at which a penalised fit has converged
RIDGE = 1e-7  # added to the information, so that effects of groups without counts stay finite
LOWEST, HIGHEST = 1e-6, 10.0  # range of shared dispersions, in units of the family
PER_BIN, BINS = 50, 25  # responses per bin of the trend at least, and bins at most
LEAST_ERROR = 0.4  # of the error by curvature, which that by the test is not below
LEAST_DF = 0.25  # responses with fewer degrees of freedom tell nothing about the variance
PRIOR_DF = (10.0, 1.0)  # median and log-scale spread of the prior degrees of freedom before data are seen
ROWS = 2000  # responses that are fitted at a time


@dataclass(frozen=True)
class Fit:
    """A fitted regression.

    ``coef`` are the coefficients ``(responses, columns)``, ``mu`` the means and ``hat`` the leverages
    ``(responses, samples)``, ``covariance`` the inverse information, and ``deviance`` that of each response.
    """

    coef: np.ndarray
    mu: np.ndarray
    hat: np.ndarray
    covariance: np.ndarray
    deviance: np.ndarray


def fit(family: Family, y: np.ndarray, x: np.ndarray, *, firth: bool = False) -> Fit:
    """Fit the regression of each response by Fisher scoring.

    Parameters
    ----------
    family
        Family of the counts.
    y
        Counts, ``(responses, samples)``.
    x
        Design matrix of full rank, ``(samples, columns)``.
    firth
        Whether to penalise the likelihood by Firth's term, which keeps the coefficients finite.
    """
    parts = [_fit(family.rows(s), y[s], x, firth) for s in _slices(len(y))]
    return Fit(*(np.concatenate(values) for values in zip(*parts)))


def _slices(n: int) -> list[slice]:
    return [slice(i, i + ROWS) for i in range(0, n, ROWS)]


def _fit(family: Family, y: np.ndarray, x: np.ndarray, firth: bool) -> tuple[np.ndarray, ...]:
    """Fit some responses; see :func:`fit`. Those that have converged are left alone."""
    coef = family.start(y) @ np.linalg.pinv(x).T
    deviance = family.deviance(y, family.mean(coef @ x.T)).sum(1)
    left = np.arange(len(y))
    for _ in range(STEPS):
        some, own, at = family.rows(left), y[left], coef[left]
        mu = some.mean(at @ x.T)
        target, information = own, _information(some, mu, x)
        if firth:
            target = some.penalised(own, mu, _leverage(some, mu, x, np.linalg.inv(information)))
        score = (some.slope(mu) / some.variance(mu) * (target - mu)) @ x
        step = np.linalg.solve(information, score[:, :, None])[:, :, 0]
        longest = np.abs(step @ x.T).max(1, keepdims=True)
        step *= np.minimum(1, LONGEST / np.maximum(longest, 1e-300))
        if firth:
            coef[left] = at + step
            left = left[longest[:, 0] > CLOSE_STEP]
        else:
            last = deviance[left]
            coef[left], deviance[left] = _down(some, own, x, at, step, last)
            left = left[np.abs(last - deviance[left]) > CLOSE * (np.abs(deviance[left]) + 0.1)]
        if not len(left):
            break
    mu = family.mean(coef @ x.T)
    inverse = np.linalg.inv(_information(family, mu, x))
    return coef, mu, _leverage(family, mu, x, inverse), inverse, family.deviance(y, mu).sum(1)


def _down(
    family: Family, y: np.ndarray, x: np.ndarray, coef: np.ndarray, step: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Go along the step, halved where it does not lower the deviance; return its end and the deviance."""
    for _ in range(8):
        now = family.deviance(y, family.mean((coef + step) @ x.T)).sum(1)
        worse = now > last * (1 + 1e-12) + 1e-10
        if not worse.any():
            break
        step = np.where(worse[:, None], step / 2, step)
    return coef + step, now


def _information(family: Family, mu: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the expected information on the coefficients."""
    weight = family.slope(mu) ** 2 / family.variance(mu)
    return (weight[:, None, :] * x.T) @ x + RIDGE * np.eye(x.shape[1])


def _leverage(family: Family, mu: np.ndarray, x: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Return the leverage of each count."""
    weight = family.slope(mu) ** 2 / family.variance(mu)
    return np.clip(weight * ((x @ inverse) * x).sum(-1), 0, 1)


def residuals(family: Family, y: np.ndarray, fitted: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted squared Pearson residual of each count, and its degrees of freedom."""
    weight = np.clip(1 - fitted.hat / np.maximum(family.slope(fitted.mu), 1e-300), 0, 1)
    squares = (y - fitted.mu) ** 2 / family.variance(fitted.mu)
    return weight * squares, weight * (1 - fitted.hat)


def spread(family: Family, y: np.ndarray, fitted: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of squared residuals and its degrees of freedom, by response."""
    squares, df = residuals(family, y, fitted)
    return squares.sum(1), df.sum(1)


def shared_dispersion(
    family: type[NegativeBinomial] | type[BetaBinomial], given: np.ndarray, y: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """Return the dispersion with which residuals of responses of similar abundance are as large as expected.

    Parameters
    ----------
    family
        Family of the counts.
    given
        First argument of the family: the offset or the totals.
    y, x
        Counts and design matrix.
    """
    level = np.log(y.mean(1) + 0.1)
    order, n_bins = np.argsort(level, kind="stable"), int(np.clip(len(y) // PER_BIN, 1, BINS))
    bins = np.array_split(order, n_bins)
    unit = family.unit(given, y)
    dispersion = 0.05 * unit / unit.max()
    for _ in range(2):
        fitted = fit(family(given, dispersion), y, x)
        found = np.array([_matching(family, given, y, fitted, rows, unit[rows]) for rows in bins])
        smooth = np.log(found)
        if n_bins > 2:
            padded = np.concatenate([smooth[:1], smooth, smooth[-1:]])
            smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
        middle = np.array([level[rows].mean() for rows in bins])
        dispersion = np.minimum(unit * np.exp(np.interp(level, middle, smooth))[:, None], family.highest)
    return dispersion


def _matching(
    family: type[NegativeBinomial] | type[BetaBinomial],
    given: np.ndarray,
    y: np.ndarray,
    fitted: Fit,
    rows: np.ndarray,
    unit: np.ndarray,
) -> float:
    """Return the multiple of ``unit`` at which squared residuals equal their degrees of freedom."""
    of = given[rows] if given.ndim > 1 else given
    part = Fit(*(getattr(fitted, name)[rows] for name in ("coef", "mu", "hat", "covariance", "deviance")))

    def excess(log_multiple: float) -> float:
        dispersion = np.minimum(unit * np.exp(log_multiple), family.highest)
        squares, df = spread(family(of, dispersion), y[rows], part)
        return float(np.log(max(squares.sum(), 1e-300)) - np.log(max(df.sum(), 1e-300)))

    low, high = np.log(LOWEST), np.log(HIGHEST)
    if excess(low) <= 0:
        return LOWEST
    if excess(high) >= 0:
        return float(np.exp(high))
    return float(np.exp(optimize.brentq(excess, low, high, xtol=1e-9)))


def squeeze(variance: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw the variances of responses together by empirical Bayes.

    The model is ``variance ~ s0^2 F(df, d0)``, whose ``s0^2`` and ``d0`` maximise the likelihood, with a weak
    prior on ``log d0`` that matters only for a handful of responses.

    Parameters
    ----------
    variance
        Variance of each response.
    df
        Degrees of freedom of each variance.

    Returns
    -------
    The moderated variances and their degrees of freedom, at most those of all responses together.
    """
    known = df > LEAST_DF
    if not known.any():
        return variance, df
    total = df[known].sum()
    s2 = np.maximum(variance[known], 1e-4 * np.median(variance[known]) + 1e-12)

    def loss(at: np.ndarray) -> float:
        centre, prior = np.exp(at)
        fitting = stats.f.logpdf(s2 / centre, df[known], prior) - at[0]
        return -float(fitting.sum()) + 0.5 * ((at[1] - np.log(PRIOR_DF[0])) / PRIOR_DF[1]) ** 2

    begin = np.array([np.log(np.average(s2, weights=df[known])), np.log(PRIOR_DF[0])])
    bounds = [(begin[0] - 5, begin[0] + 5), (np.log(0.5), np.log(1e4))]
    fine = {"ftol": 1e-14, "gtol": 1e-9}
    centre, prior = np.exp(optimize.minimize(loss, begin, bounds=bounds, method="L-BFGS-B", options=fine).x)
    own = np.where(known, df, 0.0)
    moderated = (own * np.where(known, variance, 0.0) + prior * centre) / (own + prior)
    return moderated, np.minimum(own + prior, np.maximum(total, own))


@dataclass(frozen=True)
class Tested:
    """Result of a test of one column of the design.

    ``effect`` and ``error`` are estimates and standard errors of the column's coefficient on the natural-log
    scale (log fold or log odds), ``df`` the degrees of freedom of the errors, and ``pvalue`` that of the F
    test. Where its statistic is above 1, the error is the one that agrees with it, since the curvature of the
    likelihood tells it badly where a group has hardly any counts. ``full`` is the fit with the column, and
    ``firm`` the one with Firth's penalty.
    """

    effect: np.ndarray
    error: np.ndarray
    df: np.ndarray
    pvalue: np.ndarray
    full: Fit
    firm: Fit

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Limits of the 95 % interval of the effect."""
        wide = stats.t.ppf(0.975, np.maximum(self.df, 1e-3)) * self.error
        return self.effect - wide, self.effect + wide


def f_test(family: Family, y: np.ndarray, null: np.ndarray, column: np.ndarray) -> Tested:
    """Test one column of the design by a moderated quasi-likelihood F test.

    Parameters
    ----------
    family
        Family of the counts.
    y
        Counts, ``(responses, samples)``.
    null
        Design matrix without the tested column.
    column
        Tested column.
    """
    x = np.column_stack([null, column])
    full, less, firm = fit(family, y, x), fit(family, y, null), fit(family, y, x, firth=True)
    squares, df = spread(family, y, full)
    variance, df = squeeze(squares / np.maximum(df, 1e-12), df)
    variance = np.maximum(variance, 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.maximum(less.deviance - full.deviance, 0) / variance
    pvalue = np.where(df > LEAST_DF, stats.f.sf(statistic, 1, np.maximum(df, LEAST_DF)), np.nan)
    effect, error = firm.coef[:, -1], np.sqrt(firm.covariance[:, -1, -1] * variance)
    clear = (statistic > 1) & np.isfinite(statistic)
    agreeing = np.abs(effect) / np.sqrt(np.where(clear, statistic, 1))
    error = np.where(clear, np.maximum(agreeing, LEAST_ERROR * error), error)
    return Tested(effect, error, df, pvalue, full, firm)


def scores(family: Family, y: np.ndarray, null: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the size of the score statistic of each labeling, ``(responses, labelings)``.

    The model without groups is fitted once, since no labeling changes it. Therefore a permutation costs one
    product, and the p-value is exact if nothing but the labels tells the groups apart.

    Parameters
    ----------
    family
        Family of the counts.
    y
        Counts, ``(responses, samples)``.
    null
        Design matrix without the group.
    labels
        Group of each sample in each labeling, ``(samples, labelings)``.
    """
    fitted = fit(family, y, null)
    residual = family.slope(fitted.mu) / family.variance(fitted.mu) * (y - fitted.mu)
    return np.abs(residual @ outside(null, labels))  # so that groups that change places tie


def outside(base: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return what is left of columns outside of the span of the columns of ``base``."""
    return columns - base @ (np.linalg.pinv(base) @ columns)


def permuted(
    family: type[NegativeBinomial] | type[BetaBinomial],
    given: np.ndarray,
    y: np.ndarray,
    null: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """Return the p-value of each response by permutation; no label goes into the model that is compared.

    Parameters
    ----------
    family
        Family of the counts.
    given
        First argument of the family: the offset or the totals.
    y, null, labels
        Counts, design matrix without the group, and the labelings, of which the first is the real one.
    """
    size = scores(family(given, shared_dispersion(family, given, y, null)), y, null, labels)
    return (size >= size[:, :1] * (1 - 1e-9) - 1e-9).mean(1)
