"""The compiled likelihood at its limits, and whatever threads there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import digamma, gammaln

from scalloy.kernels import cpu, threads

THETA = [1e-8, 1e-3, 0.3, 1.0, 50.0, 1e4, 1e8]
X = [1.0, 2.0, 7.0, 300.0, 1e6]


def inputs(n=33, g=70, seed=0, *, nb=True, gated=True):
    gen = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.rand(n, g, generator=gen), generator=gen).to_sparse_csr()
    logits, gate = (torch.randn(n, g, generator=gen) for _ in range(2))
    log_ell, log_theta = torch.full((n, 1), 5.0), torch.randn(1, g, generator=gen)
    return x, logits, log_ell, log_theta if nb else None, gate if gated else None


@pytest.mark.parametrize("mean", [1e-6, 0.5, 40.0, 1e6])
@pytest.mark.parametrize("theta", THETA)
def test_one_gene_at_the_limits(theta, mean):
    """One gene per cell, whose mean is the library size: value and slope in float64."""
    x = torch.tensor(X).unsqueeze(1).to_sparse_csr()
    log_ell, log_theta = torch.full((len(X), 1), mean).log(), torch.full((1, 1), theta).log()
    value, total, _, dtheta, _ = cpu.in_numba(x, torch.zeros(len(X), 1), log_ell, log_theta, None)
    n, mu, t = np.array(X), np.exp(log_ell.double().numpy()[:, 0]), np.exp(log_theta.double().item())
    expected = gammaln(n + t) - gammaln(t) - gammaln(n + 1) - t * np.log1p(mu / t)
    expected += n * (np.log(mu / t) - np.log1p(mu / t))  # nbinom takes t / (t + mu), which rounds to one
    logs = np.abs([np.log(n + 1), np.log(n + t), np.log(mu / t) + 0 * n]).sum(0)
    size = 1 + n * logs + t * np.log1p(mu / t)  # of the terms that cancel
    assert (np.abs(value.numpy() - expected) < 1e-6 * size).all()
    dv = (n - mu) / (1 + mu / t)
    np.testing.assert_allclose(total.numpy(), dv, rtol=1e-5, atol=1e-6 * mean)
    slope = t * (digamma(n + t) - digamma(t)) - t * np.log1p(mu / t) - dv
    if t < 1e6:  # beyond, the difference of two digammas is noise in float64 as well
        assert (np.abs(dtheta.numpy()[:, 0] - slope) < 5e-6 * (1 + n + mu)).all()


def test_threads_change_nothing(monkeypatch):
    """One thread, several, and none of OpenMP's, with more cells than pieces."""
    results, before = [], torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(cpu.in_numba(*inputs()))
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(threads, "_parallel", lambda: None)
    results.append(cpu.in_numba(*inputs()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("nb", [True, False])
@pytest.mark.parametrize("where", ["logits", "gate"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_its_cell_only(nb, where, bad):
    x, logits, log_ell, log_theta, gate = inputs(nb=nb)
    (logits if where == "logits" else gate)[3, 5] = bad
    value = cpu.in_numba(x, logits, log_ell, log_theta, gate)[0]
    assert not torch.isfinite(value[3])
    assert torch.isfinite(value).sum() == len(value) - 1


def test_a_dispersion_that_is_not_finite_shows():
    x, logits, log_ell, log_theta, gate = inputs()
    log_theta[0, 5] = float("nan")
    assert not torch.isfinite(cpu.in_numba(x, logits, log_ell, log_theta, gate)[0]).any()


def test_no_cell_and_no_count():
    empty = torch.zeros(4, 6).to_sparse_csr()
    value, _, dlogits, *_ = cpu.in_numba(empty, torch.randn(4, 6), torch.zeros(4, 1), None, None)
    torch.testing.assert_close(value, -torch.ones(4))
    torch.testing.assert_close(dlogits, torch.zeros(4, 6), atol=1e-6, rtol=0)
