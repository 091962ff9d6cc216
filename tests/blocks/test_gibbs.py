"""Gibbs sampling and the coupled prior, against integration on a grid, closed forms and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm
from torch.distributions import kl_divergence

from scalloy.blocks import gibbs
from scalloy.blocks.coupled_prior import FirstOrder, SecondOrder, Uncoupled
from scalloy.blocks.joint_posteriors import (
    Coupled,
    ExpertHead,
    MixtureOfExperts,
    ProductOfExperts,
    Shared,
    Told,
)

# one dimension each: values of the dossier's integration (log-partitions without the two 1/sqrt(2 pi))
G = torch.tensor([[0.7, 0.3], [-0.4, -0.6]], dtype=torch.double)
NU = (torch.tensor([0.8, -0.9], dtype=torch.double), torch.tensor([-0.5, -0.4], dtype=torch.double))
LOG_Z, LOG_Z_NU = 1.6728120414999, 1.1421115951560
MOMENTS = torch.tensor([[0.18177, 0.05284], [-0.14487, 0.37300]], dtype=torch.double)
POSTERIOR = (0.24195, 0.38549, -0.22334, 0.55734)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def on_grid(g, nu=(0 * NU[0], 0 * NU[1]), half=9.0, n=1201):
    """Points, and the density relative to two standard normals times their densities, on a square."""
    z = torch.linspace(-half, half, n, dtype=torch.double)
    t = gibbs.statistics(z.unsqueeze(-1))
    energy = t @ g @ t.T + (t @ nu[0].double()).unsqueeze(-1) + t @ nu[1].double()
    log_base = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    density = (energy + log_base.unsqueeze(-1) + log_base).exp() * (z[1] - z[0]) ** 2
    return z, t, density


def two(g):
    """The coupling of two latents by this matrix."""
    return {(0, 1): g}


def chains(g, nu=(0.0, 0.0), n=40_000, sweeps=60):
    return gibbs.run(gibbs.start(two(g), n), two(g), sweeps, nu)


def potential(z2, g):
    """What a second latent says of the first."""
    return gibbs.log_normaliser(gibbs.statistics(z2) @ g.T)


def test_the_grid_gives_the_published_values():
    _, t, density = on_grid(G)
    assert density.sum().log() + math.log(2 * math.pi) == pytest.approx(LOG_Z, abs=1e-9)
    torch.testing.assert_close(t.T @ density @ t / density.sum(), MOMENTS, atol=6e-6, rtol=0)
    _, _, posterior = on_grid(G, NU)
    assert posterior.sum().log() + math.log(2 * math.pi) == pytest.approx(LOG_Z_NU, abs=1e-9)


def test_annealing_finds_the_log_partition():
    value, se = gibbs.log_partition(two(G), n_chains=20_000)
    assert abs(value + math.log(2 * math.pi) - LOG_Z) < 3 * se
    assert se < 0.01


def test_annealing_in_two_dimensions_of_the_second_latent():
    coupling = SecondOrder((3, 2), kappa=0.9)
    g = coupling()[0, 1].detach().double()
    axis = torch.linspace(-9, 9, 401, dtype=torch.double)
    z2 = torch.cartesian_prod(axis, axis)
    log_density = potential(z2, g) - 0.5 * z2.square().sum(-1)
    exact = torch.logsumexp(log_density, 0) + 2 * math.log(axis[1] - axis[0]) - math.log(2 * math.pi)
    value, se = gibbs.log_partition(two(g), n_chains=20_000)
    assert abs(value - exact) < 3 * se


def test_chains_have_the_moments_of_the_prior_and_of_the_posterior():
    state = chains(G)
    torch.testing.assert_close(gibbs.moments(state, two(G))[0, 1], MOMENTS, atol=0.01, rtol=0)
    naive = gibbs.statistics(state[0]).T @ gibbs.statistics(state[1]) / len(state[0])
    torch.testing.assert_close(naive, MOMENTS, atol=0.02, rtol=0)
    state = chains(G, NU)
    found = [gibbs.statistics(v).mean(0) for v in state]
    np.testing.assert_allclose(torch.cat(found), POSTERIOR, atol=0.01)


def test_annealed_draws_have_both_modes_in_the_right_proportions():
    """Two modes 10 nats above what lies between them, the one with a larger share than the other."""
    g = torch.tensor([[3.0, 0.009], [0.009, -0.1]], dtype=torch.double)
    z, t, density = on_grid(g)
    exact = float(density[z > 0].sum() / density.sum())
    assert 0.6 < exact < 0.95
    torch.manual_seed(0)
    drawn = gibbs.sample(two(g), 20_000, 200)
    assert float((drawn[0] > 0).double().mean()) == pytest.approx(exact, abs=0.03)
    expected = t.T @ density @ t / density.sum()
    torch.testing.assert_close(gibbs.moments(drawn, two(g))[0, 1], expected, rtol=0.05, atol=0.3)


def test_marginal_of_the_chains_is_that_of_the_grid():
    z, _, density = on_grid(G, NU)
    marginal = density.sum(1) / density.sum()
    state = chains(G, NU)
    ends, cdf = z.numpy() + 0.5 * float(z[1] - z[0]), np.cumsum(marginal.numpy())
    assert kstest(state[0][:, 0].numpy(), lambda v: np.interp(v, ends, cdf)).pvalue > 0.01


def test_gaussian_case_has_its_mean_covariance_and_autocorrelation():
    g = torch.tensor([[0.6, 0.0], [0.0, 0.0]], dtype=torch.double)
    nu = (torch.tensor([1.0, -0.5], dtype=torch.double), 0.0)
    state = chains(g, nu, n=200_000, sweeps=30)
    values = torch.cat(state, -1)
    torch.testing.assert_close(
        values.mean(0), torch.tensor([0.6097561, 0.3658537], dtype=torch.double), atol=0.01, rtol=0
    )
    expected = torch.tensor([[0.6097561, 0.3658537], [0.3658537, 1.2195122]], dtype=torch.double)
    torch.testing.assert_close(torch.cov(values.T), expected, atol=0.02, rtol=0)
    state = chains(g, n=100_000, sweeps=30)
    later = gibbs.sweep(state, two(g))
    lag = np.corrcoef(state[1][:, 0], later[1][:, 0])[0, 1]
    assert lag == pytest.approx(0.6**2, abs=0.01)


def test_first_order_is_a_gaussian_whose_canonical_correlations_are_its_singular_values():
    coupling = FirstOrder((3, 2))
    g11 = coupling.g11()[0].detach()
    precision = torch.eye(5)
    precision[:3, 3:], precision[3:, :3] = -g11, -g11.T
    covariance = torch.linalg.inv(precision)
    assert torch.linalg.eigvalsh(precision).min() > 0
    value = -0.5 * torch.linalg.slogdet(precision)[1]
    torch.testing.assert_close(coupling.log_partition(), value)
    first, second = covariance[:3, :3], covariance[3:, 3:]
    whitened = torch.linalg.inv(torch.linalg.cholesky(first)) @ covariance[:3, 3:]
    whitened = whitened @ torch.linalg.inv(torch.linalg.cholesky(second)).T
    torch.testing.assert_close(torch.linalg.svdvals(whitened), torch.linalg.svdvals(g11), atol=1e-5, rtol=0)
    coupling.raw[0].data *= 1e3
    assert torch.linalg.svdvals(coupling.g11()[0]).max() <= 1 + 1e-5


@pytest.mark.parametrize("kappa", [0.3, 0.7, 0.95])
def test_no_precision_falls_below_what_kappa_allows(kappa):
    for _ in range(20):
        coupling = SecondOrder((3, 4), kappa=kappa)
        for p in coupling.parameters():
            p.data = 5 * torch.randn_like(p)
        g = coupling()[0, 1].detach()
        for size, matrix in ((3, g), (4, g.T)):
            natural = gibbs.statistics(10 * torch.randn(500, size)) @ matrix
            assert (1 - 2 * natural.chunk(2, -1)[1]).min() >= 1 - kappa**2 - 1e-4


def test_normalisable_prior_does_not_depend_on_the_box():
    g = torch.tensor([[1.5, 0.0], [0.0, -0.3]], dtype=torch.double)
    reach = 0.95 * math.sqrt(2 * 0.3)
    g[0, 1], g[1, 0] = reach, -reach
    narrow, wide = (on_grid(g, half=h, n=int(100 * h) + 1)[2].sum().log().item() for h in (25.0, 40.0))
    assert narrow == pytest.approx(wide, abs=1e-6)


def one_dimensional():
    """A coupling of one dimension each with the values of ``G``."""
    coupling = SecondOrder((1, 1), kappa=0.99, n_chains=4096, n_sweeps=5)
    reach = 0.99 * math.sqrt(2 * 0.6)
    (pair,) = coupling.pairs
    pair.g11.data.fill_(0.7)
    pair.log_g22.data.fill_(math.log(0.6))
    pair.raw12.data.fill_(math.atanh(0.3 / reach))
    pair.raw21.data.fill_(math.atanh(-0.4 / reach))
    torch.testing.assert_close(coupling()[0, 1].detach(), G.float())
    return coupling


def check_gradient(coupling, log_partition, tolerance):
    """Compare the gradient by the chains with finite differences of ``log_partition()``."""
    total = {k: torch.zeros_like(p) for k, p in coupling.named_parameters()}
    for i in range(60):
        coupling.zero_grad()
        coupling.log_partition().backward()
        if i >= 20:  # the chains have arrived
            for k, p in coupling.named_parameters():
                total[k] += p.grad / 40
    for k, p in coupling.named_parameters():
        value, ends = p.item(), []
        for step in (1e-3, -1e-3):
            p.data.fill_(value + step)
            ends.append(log_partition())
        p.data.fill_(value)
        assert total[k].item() == pytest.approx((ends[0] - ends[1]) / 2e-3, abs=tolerance), k


def test_gradient_of_the_log_partition_is_that_of_finite_differences():
    coupling = one_dimensional()
    check_gradient(coupling, lambda: on_grid(coupling()[0, 1].detach().double())[2].sum().log().item(), 0.01)


def test_restarted_chains_give_the_same_gradient_where_they_mix():
    coupling = one_dimensional()
    coupling.chains, coupling.n_sweeps = "restarted", 20
    coupling.chains_0.fill_(100.0)  # kept chains would still be there
    slope = coupling._follow(two(coupling()[0, 1].detach()))
    torch.testing.assert_close(slope[0, 1].double(), MOMENTS, atol=0.06, rtol=0)
    assert coupling.chains_0.abs().max() < 10


def test_value_follows_the_parameters_and_is_computed_anew_in_evaluation():
    coupling = one_dimensional()
    coupling.eval()
    before = float(coupling.log_partition())
    assert before == pytest.approx(LOG_Z - math.log(2 * math.pi), abs=0.02)
    assert float(coupling.log_partition()) == before  # not computed again
    coupling.train()
    for _ in range(20):
        coupling.log_partition()
    for _ in range(50):
        coupling.pairs[0].g11.data += 0.01
        followed = coupling.log_partition().item()
    exact = float(on_grid(coupling()[0, 1].detach().double())[2].sum().log())
    assert exact - before > 0.1
    assert followed == pytest.approx(exact, abs=0.02)
    coupling.eval()
    assert float(coupling.log_partition()) == pytest.approx(exact, abs=0.03)


def experts(n=6, d=(1, 1), seen=(1.0, 1.0)):
    """What two encoders might have told of some cells."""
    told = tuple(
        ExpertHead(4, d[i], [d[k] for k in gibbs.others(len(d), i)])(torch.randn(n, 4)) for i in range(len(d))
    )
    told = each(told, torch.Tensor.detach)
    return told, torch.tensor(seen).expand(n, len(d))


def each(told, function):
    """What was told, with a function of each of its tensors."""
    return tuple(Told(function(t.own), tuple(function(v) for v in t.others)) for t in told)


def many(joint, told, seen, n=4000):
    """Posterior and latents of each cell, ``n`` times."""
    q = joint.posterior(each(told, lambda v: v.repeat(n, 1)), seen.repeat(n, 1))
    return q, joint.draw(q)


@pytest.mark.parametrize("kind", ["poise", "gaussian", "product", "mixture"])
@pytest.mark.parametrize("seen", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_kl_is_the_mean_of_the_log_ratio(kind, seen):
    makers = {
        "poise": lambda: Coupled(one_dimensional()),
        "gaussian": lambda: Coupled(FirstOrder((1, 1))),
        "product": lambda: Shared(1, ProductOfExperts()),
        "mixture": lambda: Shared(1, MixtureOfExperts()),
    }
    joint = makers[kind]().eval()
    told, here = experts(seen=seen)
    with torch.no_grad():
        q, latents = many(joint, told, here)
        kl, ratio = joint.kl(q, latents).view(-1, 6), joint.log_ratio(q, latents).view(-1, 6)
    se = (kl + ratio).std(0) / math.sqrt(len(kl))
    assert ((kl.mean(0) + ratio.mean(0)).abs() <= 4 * se + 1e-5).all()
    assert (kl.mean(0) > -4 * se).all()


def test_log_ratio_of_the_coupled_posterior_integrates_to_one():
    """``E_q[p / q] = 1``: the importance weights of a normalised prior."""
    joint = Coupled(one_dimensional()).eval()
    told, here = experts()
    told = each(told, lambda v: v * 0.2)
    with torch.no_grad():
        q, latents = many(joint, told, here, 40_000)
        weight = joint.log_ratio(q, latents).exp().view(-1, 6)
    se = weight.std(0) / math.sqrt(len(weight))
    assert ((weight.mean(0) - 1).abs() < 4 * se + 0.02).all()


def test_without_coupling_the_kl_is_that_of_two_independent_posteriors():
    joint = Coupled(Uncoupled((2, 2)))
    told, here = experts(d=(2, 2))
    told = tuple(Told(t.own, ()) for t in told)
    q = joint.posterior(told, here)
    expected = 0.0
    for k, t in zip(("z", "z2"), told, strict=True):
        linear, square = t.own.chunk(2, -1)
        variance = 1 / (1 - 2 * square)
        by_hand = torch.distributions.Normal(linear * variance, variance.sqrt())
        torch.testing.assert_close(q[k].mean, by_hand.mean)
        expected = expected + kl_divergence(by_hand, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(joint.kl(q, joint.draw(q)), expected)


def test_unseen_modality_is_drawn_by_the_message_and_the_other_one_given_it():
    joint = Coupled(one_dimensional()).eval()
    told, here = experts(n=1, seen=(1.0, 0.0))
    with torch.no_grad():
        q, latents = many(joint, told, here, 20_000)
        z, z2 = latents["z"], latents["z2"]
        assert (latents["order"][:, 1] < latents["order"][:, 0]).all()
        by_message = gibbs.normal(told[0].others[0])
        given = gibbs.normal(gibbs.statistics(z2) @ joint.coupling()[0, 1].T + told[0].own)
    for value, p in ((z2, by_message), (z, given)):
        u = norm.cdf(((value - p.mean) / p.stddev).numpy().ravel())
        assert kstest(u, "uniform").pvalue > 0.01
    torch.testing.assert_close(q["z2"].mean, by_message.mean.expand(20_000, 1))


@pytest.mark.parametrize("seen", [(1.0, 0.0), (0.0, 1.0)])
def test_code_is_the_mean_of_the_draws(seen):
    torch.manual_seed(0)
    joint = Coupled(FirstOrder((2, 2))).eval()
    joint.coupling.raw[0].data = torch.diag(torch.tensor([3.0, -1.5]))
    told, here = experts(n=1, d=(2, 2), seen=seen)
    with torch.no_grad():
        q, latents = many(joint, told, here, 20_000)
        for k, (mean, variance) in joint.codes(q).items():
            torch.testing.assert_close(latents[k].mean(0), mean[0], atol=0.03, rtol=0)
            assert (variance > 0).all()


def test_hidden_modality_tells_nothing():
    for joint in (Coupled(FirstOrder((1, 1))), Shared(1, ProductOfExperts()), Shared(1, MixtureOfExperts())):
        told, here = experts(seen=(1.0, 0.0))
        other = told[0], *each(told[1:], lambda v: v + 1)
        a, b = joint.posterior(told, here), joint.posterior(other, here)
        torch.testing.assert_close(a["z"].mean, b["z"].mean)
        for one, same in zip(joint.code(a), joint.code(b), strict=True):
            torch.testing.assert_close(one, same)


def test_product_multiplies_and_mixture_mixes():
    told, here = experts(n=3)
    means, variances = [], []
    for t in told:
        linear, square = t.own.chunk(2, -1)
        means.append(linear / (-2 * square))
        variances.append(1 / (-2 * square))
    precision = 1 + 1 / variances[0] + 1 / variances[1]
    expected = (means[0] / variances[0] + means[1] / variances[1]) / precision
    q = Shared(1, ProductOfExperts()).posterior(told, here)
    torch.testing.assert_close(q["z"].mean, expected)
    torch.testing.assert_close(q["z"].variance, 1 / precision)
    mixture = Shared(1, MixtureOfExperts())
    with torch.no_grad():
        q, latents = many(mixture, told, here, 20_000)
    z = latents["z"].view(-1, 3)
    each = torch.stack([(m / v / (1 + 1 / v)).squeeze(-1) for m, v in zip(means, variances, strict=True)])
    spread = torch.stack([1 / (1 + 1 / v).squeeze(-1) for v in variances])
    torch.testing.assert_close(z.mean(0), each.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), spread.mean(0) + each.var(0, unbiased=False), atol=0.05, rtol=0.03)
    mean, variance = mixture.code(q)
    torch.testing.assert_close(mean[:3, 0], each.mean(0))
    expected = spread.mean(0) + each.var(0, unbiased=False)
    torch.testing.assert_close(variance[:3, 0], expected)
