"""Three latents that are coupled in pairs, against integration on a grid and closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from blocks.test_gibbs import check_gradient
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
    letters,
)

PAIRS = {  # one dimension each
    (0, 1): torch.tensor([[0.7, 0.2], [-0.2, -0.6]], dtype=torch.double),
    (0, 2): torch.tensor([[-0.5, 0.1], [0.15, -0.3]], dtype=torch.double),
    (1, 2): torch.tensor([[0.9, -0.2], [0.1, -0.5]], dtype=torch.double),
}
PATTERNS = [p for p in itertools.product((0.0, 1.0), repeat=3) if any(p)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def on_grid(pairs, half=7.0, n=141):
    """Points of each latent, and the density of all three on a cube."""
    z = torch.linspace(-half, half, n, dtype=torch.double)
    t = gibbs.statistics(z.unsqueeze(-1))
    base = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    log_p = base[:, None, None] + base[None, :, None] + base[None, None, :]
    for (j, k), g in pairs.items():
        shape = [1, 1, 1]
        shape[j], shape[k] = n, n
        log_p = log_p + (t @ g.double() @ t.T).reshape(shape)
    return z, t, (log_p + 3 * math.log(z[1] - z[0])).exp()


def pair_moments(density, t, j, k):
    (rest,) = {0, 1, 2} - {j, k}
    return t.T @ density.sum(rest) @ t / density.sum()


def test_annealing_finds_the_log_partition():
    _, _, density = on_grid(PAIRS)
    value, se = gibbs.log_partition(PAIRS, n_chains=20_000)
    assert abs(value - density.sum().log()) < 3 * se
    assert se < 0.01


def test_chains_have_the_moments_of_every_pair():
    _, t, density = on_grid(PAIRS)
    state = gibbs.run(gibbs.start(PAIRS, 40_000), PAIRS, 60)
    found = gibbs.moments(state, PAIRS)
    for j, k in PAIRS:
        expected = pair_moments(density, t, j, k)
        torch.testing.assert_close(found[j, k], expected, atol=0.012, rtol=0)
        naive = gibbs.statistics(state[j]).T @ gibbs.statistics(state[k]) / len(state[j])
        torch.testing.assert_close(naive, expected, atol=0.03, rtol=0)


def test_annealed_draws_have_the_moments_too():
    _, t, density = on_grid(PAIRS)
    drawn = gibbs.sample(PAIRS, 10_000, 60)
    for j, k in PAIRS:
        found = gibbs.statistics(drawn[j]).T @ gibbs.statistics(drawn[k]) / 10_000
        torch.testing.assert_close(found, pair_moments(density, t, j, k), atol=0.06, rtol=0)


def second_order(**more):
    """A coupling with the values of ``PAIRS``."""
    coupling = SecondOrder((1, 1, 1), kappa=0.99, n_chains=4096, n_sweeps=5, **more)
    for pair, g in zip(coupling.pairs, PAIRS.values(), strict=True):
        reach = 0.99 / 2 * math.sqrt(-2 * float(g[1, 1]))
        pair.g11.data.fill_(float(g[0, 0]))
        pair.log_g22.data.fill_(math.log(-float(g[1, 1])))
        pair.raw12.data.fill_(math.atanh(float(g[0, 1]) / reach))
        pair.raw21.data.fill_(math.atanh(float(g[1, 0]) / reach))
    for found, g in zip(coupling().values(), PAIRS.values(), strict=True):
        torch.testing.assert_close(found.detach(), g.float())
    return coupling


def exact(coupling):
    """The log-partition by integration."""
    return on_grid({w: g.detach() for w, g in coupling().items()})[2].sum().log().item()


def test_gradient_of_the_log_partition_is_that_of_finite_differences():
    coupling = second_order()
    check_gradient(coupling, lambda: exact(coupling), 0.015)


def test_value_follows_the_parameters_and_is_computed_anew_in_evaluation():
    coupling = second_order().eval()
    before = float(coupling.log_partition())
    assert before == pytest.approx(float(on_grid(PAIRS)[2].sum().log()), abs=0.02)
    coupling.train()
    for _ in range(20):
        coupling.log_partition()
    for _ in range(50):
        coupling.pairs[1].g11.data -= 0.01
        followed = coupling.log_partition().item()
    now = exact(coupling)
    assert abs(now - before) > 0.05
    assert followed == pytest.approx(now, abs=0.03)
    assert float(coupling.eval().log_partition()) == pytest.approx(now, abs=0.03)


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, -1)])
def test_the_strongest_coupling_can_be_normalised(signs):
    """The integral is the same on a larger cube, at the bound that ``kappa`` sets."""
    coupling = SecondOrder((1, 1, 1), kappa=0.95)
    for pair in coupling.pairs:
        pair.g11.data.fill_(1.0)
        pair.log_g22.data.fill_(math.log(0.3))
        pair.raw12.data.fill_(20.0 * signs[0])
        pair.raw21.data.fill_(20.0 * signs[1])
    pairs = {w: g.detach() for w, g in coupling().items()}
    narrow, wide = (on_grid(pairs, half=h, n=int(14 * h) + 1)[2].sum().log() for h in (14.0, 20.0))
    assert narrow.item() == pytest.approx(wide.item(), abs=1e-3)


@pytest.mark.parametrize("kappa", [0.3, 0.7, 0.95])
def test_no_precision_falls_below_what_kappa_allows(kappa):
    sizes = (3, 4, 2)
    for _ in range(20):
        coupling = SecondOrder(sizes, kappa=kappa)
        for p in coupling.parameters():
            p.data = 5 * torch.randn_like(p)
        state = [10 * torch.randn(500, d) for d in sizes]
        for k in range(3):
            natural = gibbs.message(state, {w: g.detach() for w, g in coupling().items()}, k)
            assert (1 - 2 * natural.chunk(2, -1)[1]).min() >= 1 - kappa**2 - 1e-4


def test_first_order_is_a_gaussian_of_any_such_precision():
    coupling = FirstOrder((2, 3, 1))
    torch.manual_seed(1)
    blocks = {(0, 1): torch.randn(2, 3), (0, 2): torch.randn(2, 1), (1, 2): torch.randn(3, 1)}
    starts = (0, 2, 5, 6)
    b = torch.zeros(6, 6)
    for (j, k), block in blocks.items():
        b[starts[j] : starts[j + 1], starts[k] : starts[k + 1]] = block
    b = b + b.T
    norm = torch.linalg.eigvalsh(b).abs().max()
    wanted = 0.97 / norm  # norm 0.97, reached by raw weights of norm 0.97 / sqrt(1 - 0.97^2)
    for raw, block in zip(coupling.raw, blocks.values(), strict=True):
        raw.data = block * wanted / math.sqrt(1 - 0.97**2)
    for g, block in zip(coupling.g11(), blocks.values(), strict=True):
        torch.testing.assert_close(g.detach(), block * wanted)
    precision = torch.eye(6) - b * wanted
    torch.testing.assert_close(coupling.log_partition(), -0.5 * torch.linalg.slogdet(precision)[1])
    with torch.no_grad():
        state = torch.cat(coupling.sample(20_000, 60), -1)
    torch.testing.assert_close(torch.cov(state.T), torch.linalg.inv(precision), atol=0.6, rtol=0.15)
    for raw in coupling.raw:
        raw.data *= 1e3
    assert torch.isfinite(coupling.log_partition())


def experts(n=6, d=(1, 1, 1), seen=(1.0, 1.0, 1.0)):
    """What three encoders might have told of some cells, weakly."""
    told = []
    for i in range(3):
        head = ExpertHead(4, d[i], [d[k] for k in gibbs.others(3, i)])
        t = head(torch.randn(n, 4))
        told.append(Told(0.5 * t.own.detach(), tuple(0.3 * v.detach() for v in t.others)))
    return told, torch.tensor(seen).expand(n, 3)


def many(joint, told, seen, n=4000):
    """Posterior and latents of each cell, ``n`` times."""
    repeated = [Told(t.own.repeat(n, 1), tuple(v.repeat(n, 1) for v in t.others)) for t in told]
    q = joint.posterior(repeated, seen.repeat(n, 1))
    return q, joint.draw(q)


MAKERS = {
    "poise": lambda: Coupled(second_order()),
    "gaussian": lambda: Coupled(FirstOrder((1, 1, 1))),
    "product": lambda: Shared(1, ProductOfExperts(), 3),
    "mixture": lambda: Shared(1, MixtureOfExperts(), 3),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("seen", PATTERNS)
def test_kl_is_the_mean_of_the_log_ratio(kind, seen):
    joint = MAKERS[kind]().eval()
    told, here = experts(seen=seen)
    with torch.no_grad():
        q, latents = many(joint, told, here)
        kl, ratio = joint.kl(q, latents).view(-1, 6), joint.log_ratio(q, latents).view(-1, 6)
    se = (kl + ratio).std(0) / math.sqrt(len(kl))
    assert ((kl.mean(0) + ratio.mean(0)).abs() <= 4.5 * se + 1e-5).all()
    assert (kl.mean(0) > -4 * se - 0.02).all()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("seen", [(1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0)])
def test_importance_weights_have_mean_one(kind, seen):
    """``E_q[p / q] = 1``, whatever the order in which the latents were drawn."""
    joint = MAKERS[kind]().eval()
    told, here = experts(seen=seen)
    told = [Told(0.3 * t.own, tuple(0.3 * v for v in t.others)) for t in told]  # weights vary little
    with torch.no_grad():
        q, latents = many(joint, told, here, 40_000)
        weight = joint.log_ratio(q, latents).exp().view(-1, 6)
    se = weight.std(0) / math.sqrt(len(weight))
    assert ((weight.mean(0) - 1).abs() < 4.5 * se + 0.03).all()


def test_what_is_not_seen_is_drawn_first_and_the_last_from_its_exact_conditional():
    joint = Coupled(second_order()).eval()
    told, here = experts(n=1, seen=(1.0, 0.0, 1.0))
    with torch.no_grad():
        q, latents = many(joint, told, here, 5000)
        order, z = latents["order"], [latents[k] for k in joint.letters]
        assert (order[:, 1] < order[:, [0, 2]].min(1)[0]).all()
        share = (order[:, 0] < order[:, 2]).float().mean()
        assert 0.45 < share < 0.55
        last = order[:, 0] > order[:, 2]
        exact = gibbs.normal(gibbs.message(z, joint.coupling(), 0) + told[0].own)
        u = ((z[0] - exact.mean) / exact.stddev)[last]
    assert u.mean().abs() < 4 / math.sqrt(len(u))
    assert u.std().item() == pytest.approx(1.0, abs=0.06)
    torch.testing.assert_close(q["z2"].mean[0], gibbs.normal(told[0].others[0] + told[2].others[1]).mean[0])


def test_modalities_may_come_in_any_order():
    """The KL of given latents does not depend on which modality is called the first."""
    joint, turned = Coupled(second_order()).eval(), (2, 0, 1)
    told, here = experts(seen=(1.0, 1.0, 1.0))
    other = Coupled(second_order()).eval()
    coupling = joint.coupling()
    given = {}
    for a, b in PAIRS:
        given[a, b] = gibbs.toward(coupling, turned[a], turned[b])
    other.coupling.forward = lambda: given
    known = [dict(zip(gibbs.others(3, j), t.others, strict=True)) for j, t in enumerate(told)]
    again = [
        Told(told[j].own, tuple(known[j][turned[k]] for k in gibbs.others(3, a)))
        for a, j in enumerate(turned)
    ]
    with torch.no_grad():
        q = joint.posterior(told, here)
        latents = joint.draw(q)
        same = {letters(3)[a]: latents[letters(3)[j]] for a, j in enumerate(turned)}
        same["order"] = latents["order"][:, list(turned)]
        p = other.posterior(again, here)
        log_z = joint.coupling.log_partition()
        found = other.kl(p, same) - other.coupling.log_partition()
        torch.testing.assert_close(found, joint.kl(q, latents) - log_z)
        for a, j in enumerate(turned):
            for x, y in zip(other.codes(p)[letters(3)[a]], joint.codes(q)[letters(3)[j]], strict=True):
                torch.testing.assert_close(x, y)


def test_without_coupling_the_kl_is_that_of_independent_posteriors():
    joint = Coupled(Uncoupled((2, 2, 2)))
    told, here = experts(d=(2, 2, 2))
    told = [Told(t.own, ()) for t in told]
    q = joint.posterior(told, here)
    expected = 0.0
    for t in told:
        linear, square = t.own.chunk(2, -1)
        variance = 1 / (1 - 2 * square)
        by_hand = torch.distributions.Normal(linear * variance, variance.sqrt())
        expected = expected + kl_divergence(by_hand, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(joint.kl(q, joint.draw(q)), expected)


@pytest.mark.parametrize("side", [0, 1, 2])
def test_the_others_given_one_are_those_of_the_grid(side):
    joint = Coupled(second_order()).eval()
    z, t, density = on_grid(PAIRS)
    at = int((z - 0.8).abs().argmin())
    given = density.select(side, at)
    given = given / given.sum()
    with torch.no_grad():
        drawn = joint.from_one(torch.full((20_000, 1), float(z[at])), side)
    a, b = gibbs.others(3, side)
    expected = t.T @ given @ t
    found = gibbs.statistics(drawn[joint.letters[a]]).T @ gibbs.statistics(drawn[joint.letters[b]]) / 20_000
    torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0)
    assert (drawn[joint.letters[side]] == float(z[at])).all()


def test_product_multiplies_and_mixture_mixes():
    told, here = experts(n=3, seen=(1.0, 0.0, 1.0))
    natural = told[0].own + told[2].own
    q = Shared(1, ProductOfExperts(), 3).posterior(told, here)
    torch.testing.assert_close(q["z3"].mean, gibbs.normal(natural).mean)
    mixture = Shared(1, MixtureOfExperts(), 3)
    with torch.no_grad():
        q, latents = many(mixture, told, here, 20_000)
    z = latents["z2"].view(-1, 3)
    parts = [gibbs.normal(told[k].own) for k in (0, 2)]  # what is not seen has no weight
    mean = torch.stack([p.mean[:, 0] for p in parts])
    second = torch.stack([(p.variance + p.mean.square())[:, 0] for p in parts])
    torch.testing.assert_close(z.mean(0), mean.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(z.square().mean(0), second.mean(0), atol=0.05, rtol=0.03)
    torch.testing.assert_close(mixture.code(q)[0][:3, 0], mean.mean(0))


def test_codes_are_put_together_and_taken_apart():
    for joint in (Coupled(FirstOrder((2, 3, 1))), Shared(4, ProductOfExperts(), 3)):
        latents = joint.prior(5, 10)
        again = joint.apart(joint.together(latents))
        assert list(again) == ["z", "z2", "z3"]
        for k, value in again.items():
            torch.testing.assert_close(value, latents[k])
