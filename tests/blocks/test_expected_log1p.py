"""Expected logarithms against sums over all counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scalloy.blocks import expected_log1p
from scalloy.blocks.distributions import (
    BackgroundMixture,
    NegativeBinomial,
    PiecewiseCategorical,
    Poisson,
    Rate,
    ZeroInflated,
)
from scalloy.blocks.expected_log1p import mean_log1p

MEANS = np.array([0.01, 0.1, 0.5, 1.0, 3.0, 8.0, 15.0, 25.0, 60.0, 200.0, 1000.0])
COUNTS = np.arange(100_000)


def summed(pmf, factor):
    return float((pmf * np.log1p(factor * COUNTS)).sum())


def nb(mean, theta):
    return stats.nbinom.pmf(COUNTS, theta, theta / (theta + mean))


def log(values):
    return torch.from_numpy(np.log(np.atleast_2d(values))).float()


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("theta", "error"), [(1.0, 0.08), (2.0, 0.03), (10.0, 0.005), (1000.0, 0.001)])
def test_negative_binomial(theta, error, factor):
    found = mean_log1p(NegativeBinomial(Rate(log(MEANS), None), log([theta])), factor)[0]
    true = [summed(nb(m, theta), factor) for m in MEANS]
    np.testing.assert_allclose(found, true, atol=error, rtol=0)


@pytest.mark.parametrize("theta", [0.1, 0.3, 1.0, 5.0])
def test_genes_of_few_counts_whatever_their_dispersion(theta):
    means = MEANS[MEANS <= 3]
    found = mean_log1p(NegativeBinomial(Rate(log(means), None), log([theta])), 2.0)[0]
    np.testing.assert_allclose(found, [summed(nb(m, theta), 2.0) for m in means], atol=0.004)


def test_poisson_and_extra_zeros():
    base = Poisson(Rate(log(MEANS), None))
    true = np.array([summed(stats.poisson.pmf(COUNTS, m), 1.0) for m in MEANS])
    np.testing.assert_allclose(mean_log1p(base)[0], true, atol=0.001)
    gate = torch.full((1, len(MEANS)), 0.7)
    np.testing.assert_allclose(
        mean_log1p(ZeroInflated(base, gate))[0], true * float(torch.sigmoid(-gate[0, 0])), atol=0.001
    )


def test_background_and_foreground():
    low, high, theta, share = 5.0, 300.0, 4.0, 0.6
    rise = np.log(np.expm1(np.log(high / low)))  # softplus of it is the logarithm of the ratio
    gate = torch.tensor([[np.log(share / (1 - share))]]).float()
    p = BackgroundMixture(log([low]), torch.tensor([[rise]]).float(), gate, log([theta]))
    true = share * summed(nb(low, theta), 1.0) + (1 - share) * summed(nb(high, theta), 1.0)
    assert float(mean_log1p(p)) == pytest.approx(true, abs=0.01)


def test_categories_and_a_factor_for_each_cell():
    torch.manual_seed(0)
    base = NegativeBinomial(Rate(log([[2.0, 6.0], [1.0, 20.0]]), None), log([3.0]))
    p = PiecewiseCategorical(base, torch.randn(2, 4, 2))
    factor = torch.tensor([[1.0], [3.0]])
    pmf = torch.stack([p.log_pmf(torch.full((2, 2), float(k))).exp() for k in range(2000)])
    terms = torch.log1p(factor * torch.arange(2000.0).view(-1, 1, 1))
    torch.testing.assert_close(mean_log1p(p, factor), (pmf * terms).sum(0), atol=0.02, rtol=0)


@pytest.mark.parametrize("theta", [None, 0.1, 1.0, 5.0])
def test_compiled_and_not(theta):
    rate = Rate(torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 2, None)
    log_theta = None if theta is None else log([theta] * 40)
    p = Poisson(rate) if theta is None else NegativeBinomial(rate, log_theta)
    factor = torch.linspace(0.3, 3.0, 6).unsqueeze(-1)
    with torch.no_grad():
        ours, torchs = expected_log1p._compiled(p, factor), expected_log1p._by_torch(p, factor)
    torch.testing.assert_close(ours, torchs, atol=3e-4, rtol=1e-4)  # it ends where next to nothing is left
    by_gene = factor.expand(6, 40).clone()
    torch.testing.assert_close(mean_log1p(p, factor), mean_log1p(p, by_gene))
    samples = NegativeBinomial(Rate(rate.logits.expand(2, 6, 40), None), log([1.0] * 40))
    assert mean_log1p(samples, factor).shape == (2, 6, 40)


def test_it_is_below_the_logarithm_of_the_mean():
    p = NegativeBinomial(Rate(log(MEANS), None), log([0.2]))
    assert (mean_log1p(p) < torch.log1p(p.mean)).all()
    assert (mean_log1p(p).diff() > 0).all()
