"""Mixtures against scipy, torch's own mixture, closed forms and a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma, gammaln
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from scalloy.blocks import mixtures as mix
from scalloy.blocks.consensus_clustering import partition
from scalloy.blocks.distributions import gaussian


def mixture(n=4, k=3, size=2, dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=gen, dtype=dtype)  # noqa: E731
    return mix.GaussianMixture(torch.log_softmax(rand(n, k), -1), rand(n, k, size), rand(n, k, size).exp())


def test_log_prob_equals_torchs_mixture():
    p = mixture()
    z = torch.randn(5, 4, 2, dtype=torch.float64)
    other = MixtureSameFamily(Categorical(logits=p.log_pi), Independent(Normal(p.loc, p.scale), 1))
    torch.testing.assert_close(p.log_prob(z), other.log_prob(z))


def test_samples_have_the_moments():
    torch.manual_seed(0)
    p = mixture()
    z = p.sample((40_000,))
    assert z.shape == (40_000, 4, 2)
    pi = p.log_pi.exp().unsqueeze(-1)
    mean = (pi * p.loc).sum(1)
    variance = (pi * (p.scale**2 + p.loc**2)).sum(1) - mean**2
    error = (variance / 40_000).sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(z.var(0), variance, rtol=0.1, atol=0)


def test_kl_from_each_component_equals_monte_carlo():
    torch.manual_seed(0)
    p, q = mixture(), gaussian(torch.randn(4, 2).double(), torch.rand(4, 2).double() + 0.2)
    z = q.sample((200_000,))
    difference = q.log_prob(z).unsqueeze(-1) - p.component_log_prob(z)
    error = difference.std(0) / math.sqrt(len(z))
    assert ((p.kl_from(q) - difference.mean(0)).abs() < 5 * error + 1e-9).all()


def dirichlet_kl(a, b):
    """The closed form, in numpy."""
    return (
        gammaln(a.sum()) - gammaln(a).sum() - gammaln(b.sum()) + gammaln(b).sum()
        + ((a - b) * (digamma(a) - digamma(a.sum()))).sum()
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("k", [2, 7, 20])
def test_local_dirichlet_is_the_uncollapsed_one_at_its_best(k, alpha):
    """T(r) is E[log r - log d] + KL(q(d) || Dir(alpha)) at q(d) = Dir(alpha + r), its lowest."""
    rng = np.random.default_rng(0)
    local = mix.Local(k, alpha=alpha).double()
    for r in (rng.dirichlet(np.ones(k)), rng.dirichlet(0.1 * np.ones(k)), np.eye(k)[0], np.ones(k) / k):
        r = np.clip(r, 1e-12, None)

        def whole(a, r=r):
            log_d = digamma(a) - digamma(a.sum())
            return (r * (np.log(r) - log_d)).sum() + dirichlet_kl(a, np.full(k, alpha))

        t = torch.from_numpy(r).unsqueeze(0)
        cost = float(local.cost(t, t.log(), torch.zeros(1, dtype=torch.long)))
        assert cost == pytest.approx(whole(alpha + r), abs=1e-6)
        for _ in range(20):
            assert cost <= whole((alpha + r) * rng.lognormal(0, 0.5, k)) + 1e-9


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0])
def test_local_dirichlet_of_a_certain_cell_is_log_k(alpha):
    one_hot = torch.eye(6, dtype=torch.float64)
    cost = mix.Local(6, alpha=alpha).cost(one_hot, (one_hot + 1e-300).log(), torch.zeros(6).long())
    torch.testing.assert_close(cost, torch.full((6,), math.log(6), dtype=torch.float64))


def test_global_dirichlet_ends_at_the_conjugate_update():
    """Minimising cost + divergence by gradient gives gamma = alpha + counts."""
    torch.manual_seed(0)
    r = torch.distributions.Dirichlet(torch.tensor([3.0, 1.0, 0.2])).sample((200,)).double()
    weights = mix.Dirichlet(3, alpha=0.7).double()
    c = torch.zeros(200, dtype=torch.long)
    optimiser = torch.optim.LBFGS(weights.parameters(), max_iter=200, tolerance_grad=1e-10)

    def closure():
        optimiser.zero_grad()
        loss = weights.cost(r, r.clamp_min(1e-12).log(), c).sum() + weights.divergence()
        loss.backward()
        return loss

    optimiser.step(closure)
    expected = 0.7 + r.sum(0, keepdim=True)
    torch.testing.assert_close(weights.log_gamma.detach().exp(), expected, rtol=1e-4, atol=0)
    weights.start_at(r.sum(0, keepdim=True))
    torch.testing.assert_close(weights.log_gamma.detach().exp(), expected)


def test_dirichlet_divergence_equals_the_closed_form():
    weights = mix.Dirichlet(4, 2, alpha=0.5).double()
    with torch.no_grad():
        weights.log_gamma.normal_()
    gamma = weights.log_gamma.detach().exp().numpy()
    expected = sum(dirichlet_kl(g, np.full(4, 0.5)) for g in gamma)
    assert float(weights.divergence().detach()) == pytest.approx(expected)


@pytest.mark.parametrize("made", [mix.Empirical(3, 2), mix.Dirichlet(3, 2), mix.Fixed(torch.ones(3))])
def test_weights_begin_at_the_sizes(made):
    made.start_at(torch.tensor([[900.0, 90.0, 9.0], [10.0, 10.0, 980.0]]))
    pi = made(torch.tensor([0, 1])).exp()
    if isinstance(made, mix.Fixed):
        torch.testing.assert_close(pi, torch.full((1, 3), 1 / 3))
    else:
        assert pi.shape == (2, 3)
        assert (pi[0] - torch.tensor([0.9, 0.09, 0.01])).abs().max() < 0.01
        assert pi[1].argmax() == 2


def test_components_begin_at_the_moments_of_their_cells():
    torch.manual_seed(0)
    z, variance = torch.randn(50, 2), torch.rand(50, 2)
    r = torch.nn.functional.one_hot(torch.arange(50) % 2, 3).float()
    made = mix.Components(3, 2)
    made.start_at(z, variance, r)
    own = z[::2]
    torch.testing.assert_close(made.loc[0], own.mean(0), rtol=1e-3, atol=1e-3)
    spread = own.var(0, unbiased=False) + variance[::2].mean(0)
    torch.testing.assert_close(made.log_scale[0].exp() ** 2, spread, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.loc[2], z.mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("shared", "own"), [(False, False), (True, False), (True, True), (False, True)])
@pytest.mark.parametrize("n_w", [0, 2])
def test_conditions_and_style_move_components(shared, own, n_w):
    torch.manual_seed(0)
    made = mix.Components(3, 2, conditions=2, n_w=n_w, shared=shared, own=own)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    w = torch.zeros(2, n_w) if n_w else None
    loc, scale = made(torch.tensor([0, 1]), w)
    moved = bool((loc[0] - loc[-1]).abs().max() > 1e-6)
    assert moved == (shared or own)
    assert (scale > 0).all()
    if n_w:
        other, _ = made(torch.tensor([0, 1]), w + 1)
        assert (other - loc).abs().max() > 1e-6


def blobs(n=60, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    centres = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    return torch.tensor(centres[y] + rng.normal(size=(n, 2))), torch.tensor(y)


def test_partition_finds_separated_groups_without_labels():
    torch.manual_seed(0)
    z, y = blobs()
    r = partition(z, torch.full((3,), -1), None, 0)
    table = torch.nn.functional.one_hot(y).to(r).T @ r
    assert ((table > 0).sum(0) == 1).all()


def test_partition_keeps_labels_and_gives_the_unknown_group_a_free_component():
    torch.manual_seed(0)
    z, truth = blobs()
    y = torch.where(
        (torch.arange(60) < 20) & (truth < 2), truth, 2
    )  # a third of two groups, none of the third
    r = partition(z, torch.tensor([0, 1, -1]), y, 2)
    assert torch.equal(r.argmax(1), truth)


def test_partition_survives_fewer_cells_than_components():
    torch.manual_seed(0)
    r = partition(torch.zeros(4, 2), torch.full((6,), -1), None, 0)
    assert r.shape == (4, 6)
    assert torch.equal(r.sum(1), torch.ones(4))
