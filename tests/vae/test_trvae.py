"""TRVAE's mathematics: what its penalty compares, and where the condition goes."""

import dataclasses
import math

import pytest
import torch

from scalloy.blocks import divergences as div
from scalloy.blocks.networks import NetworkSettings
from scalloy.models._core import factories
from scalloy.vae.base import Batch, Sizes
from scalloy.vae.trvae import TRVAE

SIZES = Sizes(n_vars=12, n_conditions=3, n_labels=2)
SMALL = NetworkSettings(n_hidden=8, n_latent=3, n_layers=2, dropout_rate=0.0)
PAPERS = [10.0**k for k in (-6, -5, -4, -3, -2, -1, 0)] + [5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6]


def module(**more):
    torch.manual_seed(0)
    return TRVAE(SIZES, factories.likelihood("nb", SIZES, 8), SMALL, **more)


def batch(n=60):
    rng = torch.Generator().manual_seed(1)
    x = torch.poisson(2 * torch.rand(n, 12, generator=rng), generator=rng) + 1
    codes = torch.zeros(n, dtype=torch.long)
    c, y = torch.arange(n) % 3, torch.arange(n) // 6 % 2
    return Batch(x, x.sum(1, keepdim=True).log(), codes, c=c, y=y)


def penalty(made, cells):
    torch.manual_seed(0)
    return made.objective(cells).penalty["mmd"]


def hidden(made, cells):
    torch.manual_seed(0)
    return made.decode(cells, made.draw(made.encode(cells)))["h"].mean


def test_penalty_is_that_of_the_first_layer_between_conditions():
    made, cells = module(), batch()
    h = hidden(made, cells)
    parts = [h[cells.c == k] for k in range(3)]
    pairs = [div.mmd2(parts[i], parts[j], div.median_scales(h)) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(penalty(made, cells), sum(pairs) / 3)
    published = module(published_kernel=True)
    pairs = [div.mmd2(parts[i], parts[j], div.TRVAE, unbiased=False) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(penalty(published, cells), sum(pairs) / 3)


def kernel(x, y):
    """The paper's: mean over 19 widths."""
    square = float(((x - y) ** 2).sum())
    return sum(math.exp(-square / (2 * a)) for a in PAPERS) / len(PAPERS)


def biased_mmd2(a, b):
    def mean(p, q):
        return sum(kernel(x, y) for x in p for y in q) / (len(p) * len(q))

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def test_published_penalty_is_the_sum_over_pairs_of_a_double_loop():
    made, cells = module(published_kernel=True, sum_pairs=True), batch()
    parts = [hidden(made, cells)[cells.c == k].detach().double() for k in range(3)]
    pairs = sum(biased_mmd2(parts[i], parts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert float(penalty(made, cells).detach()) == pytest.approx(pairs, rel=1e-4)


def test_names_of_conditions_do_not_matter_and_one_condition_has_no_penalty():
    made, cells = module(), batch()
    h = hidden(made, cells)
    renamed = dataclasses.replace(cells, c=torch.tensor([2, 0, 1])[cells.c])
    torch.testing.assert_close(made.discrepancy(h, renamed), made.discrepancy(h, cells))
    assert made.discrepancy(h, dataclasses.replace(cells, c=None)) == 0
    assert penalty(made, dataclasses.replace(cells, c=torch.zeros(60, dtype=torch.long))) == 0


def test_within_labels_composition_is_no_discrepancy():
    made, cells = module(by_label=True), batch(240)
    y = (torch.arange(240) < 120).long()
    c = torch.where(torch.rand(240, generator=torch.Generator().manual_seed(0)) < 0.2 + 0.6 * y, 0, 1)
    h = torch.randn(240, 4, generator=torch.Generator().manual_seed(2)) + 3 * y.unsqueeze(-1)
    cells = dataclasses.replace(cells, c=c, y=y)
    assert made.discrepancy(h, cells).abs() < 0.01 < module().discrepancy(h, cells)


def test_the_condition_goes_where_it_is_told():
    cells = batch()
    other = dataclasses.replace(cells, c=(cells.c + 1) % 3)
    for made, same in ((module(inject_all=False), True), (module(inject_all=True), False)):
        h = torch.rand(60, 8)
        seen = [made.dec_x(h, (b.b, b.c)[: made.after]) for b in (cells, other)]
        assert torch.equal(*seen) == same
        z = {"z": torch.randn(60, 3)}
        assert not torch.equal(made.decode(cells, z)["x"].mean, made.decode(other, z)["x"].mean)


@pytest.mark.parametrize("published", [True, False])
def test_gradient_reaches_the_first_layer_and_the_encoder(published):
    made = module(published_kernel=published)
    penalty(made, batch()).backward()
    assert made.dec_h.linear.weight.grad.abs().sum() > 0
    assert made.enc_z.head.loc.weight.grad.abs().sum() > 0
    assert made.dec_x.layers[0].linear.weight.grad is None
