"""Tables of categories that are made of parts: against ordinary tables, and sums that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scalloy.blocks.composed import Composed, Composition, Rows, n_rows, with_categories
from scalloy.blocks.mixtures import Components, Dirichlet, Empirical
from scalloy.blocks.networks import Beside, Covariates, Layer, Stack, looked_up
from scalloy.blocks.style_prior import StylePrior


def one_each(n):
    """Rows of one part each, of value 1: mere categories."""
    return Rows(np.arange(n)[:, None], np.ones((n, 1), np.float32), n)


def several(n=5, n_columns=7, most=3, seed=0):
    rng = np.random.default_rng(seed)
    return Rows(
        rng.integers(n_columns, size=(n, most)), rng.normal(size=(n, most)).astype(np.float32), n_columns
    )


def by_hand(rows, table, codes):
    out = np.zeros((len(codes), *table.shape[1:]))
    for row, code in zip(out, codes, strict=True):
        for at, value in zip(rows.index[code], rows.value[code], strict=True):
            row += value * table[at]
    return out


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 2)])
def test_rows_are_weighted_sums_of_rows_of_parts(shape):
    rows, codes = several(), torch.tensor([0, 4, 2, 2])
    table = torch.randn(7, *shape, dtype=torch.float64, requires_grad=True)
    found = Composition(rows)(table, codes)
    np.testing.assert_allclose(found.detach(), by_hand(rows, table.detach().numpy(), codes), atol=1e-6)
    assert torch.autograd.gradcheck(lambda t: Composition(rows)(t, codes), table)
    many = Composition(rows)(table, codes.reshape(2, 2))
    torch.testing.assert_close(many, found.reshape(2, 2, *shape), rtol=0, atol=0)


def test_one_part_each_is_an_ordinary_table_to_the_last_bit():
    n, codes = 6, torch.tensor([5, 0, 0, 3, 5, 5])
    plain, composed = nn.Embedding(n, 9), Composed(one_each(n), 9)
    composed.load_state_dict({"weight": plain.weight.detach().clone()})
    weights = torch.randn(len(codes), 9)
    for table in (plain, composed):
        (torch.tanh(table(codes)) * weights).sum().backward()
    assert torch.equal(plain(codes), composed(codes))
    assert torch.equal(plain.weight.grad, composed.weight.grad)
    assert list(composed.state_dict()) == ["weight"]  # what a condition is made of is not saved twice


@pytest.mark.parametrize("training", [True, False])
def test_networks_with_one_part_each_are_those_of_categories(training):
    """Forward and gradient, to the last bit, with another covariate beside it."""
    n, codes, other = 4, torch.tensor([0, 3, 2, 3, 1]), torch.tensor([1, 0, 1, 1, 0])
    x = torch.randn(5, 3)

    def made(build):
        torch.manual_seed(0)
        one = build(n)
        torch.manual_seed(0)
        two = build(one_each(n))
        assert list(one.state_dict()) == list(two.state_dict())
        two.load_state_dict(one.state_dict())
        return one.train(training), two.train(training)

    for build in (
        lambda k: Covariates([2, k], 0, 3),
        lambda k: Layer(3, 4, n_cats=[2, k]),
        lambda k: Stack(3, 4, 2, n_cats=(2, k)),
        lambda k: Beside(3, n_cats=(2, k)),
    ):
        found = []
        for module in made(build):
            out = (
                module(x, (other, codes), None)
                if isinstance(module, Covariates)
                else module(x, (other, codes))
            )
            if out.requires_grad:
                (torch.sin(out) * torch.arange(out.shape[-1])).sum().backward()
            found.append((out, [p.grad for p in module.parameters()]))
        (one, of_one), (two, of_two) = found
        assert torch.equal(one, two)
        assert all(torch.equal(a, b) for a, b in zip(of_one, of_two, strict=True))


@pytest.mark.parametrize(("shared", "own", "n_w"), [(True, False, 0), (False, True, 0), (True, True, 2)])
def test_components_with_one_part_each_are_those_of_conditions(shared, own, n_w):
    n, c, w = 3, torch.tensor([2, 0, 1, 1]), torch.randn(4, n_w) if n_w else None
    one = Components(5, 2, conditions=n, n_w=n_w, shared=shared, own=own)
    two = Components(5, 2, conditions=one_each(n), n_w=n_w, shared=shared, own=own)
    for p in one.parameters():
        nn.init.normal_(p, std=0.3)
    two.load_state_dict(one.state_dict())
    for a, b in zip(one(c, w), two(c, w), strict=True):
        assert torch.equal(a, b)


def test_beside_has_a_column_for_each_column_of_the_parts():
    rows = several()
    block, codes = Beside(2, n_cats=(3, rows, 1), n_cont=1), torch.tensor([4, 1])
    assert block.widths == (2, 3, 7, 0, 1)
    x, cont = torch.randn(2, 2), torch.randn(2, 1)
    found = block(x, (torch.tensor([2, 0]), codes, torch.zeros(2, dtype=torch.long)), cont)
    np.testing.assert_allclose(found[:, 5:12], by_hand(rows, np.eye(7), codes), atol=1e-6)
    assert torch.equal(found[:, :2], x)
    assert torch.equal(found[:, 12:], cont)


def test_numbers_of_rows():
    assert [n_rows(k) for k in (1, 2, 5, one_each(1), several())] == [0, 2, 5, 1, 7]
    assert len(several()) == 5


# categories for a while ---------------------------------------------------------------------------


def more(width=3):
    """One more category; with more parts than others have, if it is wide."""
    index, value = [6, 6, 1, 0, 2][:width], [0.5, 0.25, -1, 2, 0.1][:width]
    return Rows(np.array([index]), np.array([value], np.float32), 7)


class Everything(nn.Module):
    """All that is made of parts, at any depth."""

    def __init__(self, rows):
        super().__init__()
        self.stack = Stack(3, 4, 2, n_cats=(2, rows))
        self.beside = Beside(3, n_cats=(rows,))
        self.mixture = Components(3, 2, conditions=rows, n_w=2, shared=True, own=True)
        for p in self.mixture.parameters():
            nn.init.normal_(p, std=0.3)

    def forward(self, codes):
        x = torch.ones(len(codes), 3)
        loc, scale = self.mixture(codes, x[:, :2])
        return [self.stack(x, (codes * 0, codes)), self.beside(x, (codes,)), loc, scale]


@pytest.mark.parametrize("width", [1, 3, 5])
@torch.no_grad()
def test_a_category_is_known_for_a_while_only(width):
    rows = several()
    module, codes = Everything(rows).eval(), torch.arange(5)
    before, state = module(codes), {k: v.clone() for k, v in module.state_dict().items()}
    with with_categories(module, more(width)) as code:
        assert code == 5
        assert all(torch.equal(a, b) for a, b in zip(module(codes), before, strict=True))
        new = module(torch.tensor([code]))
        with with_categories(module, several(2, seed=1)) as nested:
            assert nested == 6
            assert torch.equal(module(torch.tensor([code]))[1], new[1])
            both = module(torch.tensor([nested, nested + 1]))[1]
        assert torch.equal(module(torch.tensor([code]))[0], new[0])
    assert all(torch.equal(a, b) for a, b in zip(module(codes), before, strict=True))
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
    with pytest.raises(IndexError):
        module(torch.tensor([code]))
    np.testing.assert_allclose(new[1][0, 3:], by_hand(more(width), np.eye(7), [0])[0], atol=1e-6)
    np.testing.assert_allclose(both[:, 3:], by_hand(several(2, seed=1), np.eye(7), [0, 1]), atol=1e-6)


@torch.no_grad()
def test_categories_that_end_out_of_order_leave_others_right():
    """As those of cells that are read and not read to the end do."""
    module = Everything(several()).eval()
    before = module(torch.arange(5))
    first, second = with_categories(module, more()), with_categories(module, several(1, seed=1))
    one, two = first.__enter__(), second.__enter__()
    alone = module(torch.tensor([two]))
    first.__exit__(None, None, None)
    assert all(torch.equal(a, b) for a, b in zip(module(torch.tensor([two])), alone, strict=True))
    second.__exit__(None, None, None)
    with with_categories(module, several(1, seed=1)) as again:
        assert again not in (one, 4)
        assert all(torch.equal(a, b) for a, b in zip(module(torch.tensor([again])), alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(module(torch.arange(5)), before, strict=True))


def test_all_is_as_it_was_even_after_an_exception():
    rows = several()
    module = Everything(rows)
    buffers = {k: v for k, v in module.named_buffers() if "of_parts" in k}
    assert len(buffers) >= 8

    def fails():
        with with_categories(module, more()):
            assert all(v.shape[0] == 6 for k, v in module.named_buffers() if k in buffers)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fails()
    assert all(v is buffers[k] for k, v in module.named_buffers() if k in buffers)  # the same tensors


def test_types_and_devices_of_buffers_are_kept():
    module = Composed(several(), 3).double()
    with with_categories(module, more()):
        assert module.of_parts.value.dtype == torch.float64
        assert module.of_parts.index.dtype == torch.int64
        assert module(torch.tensor([5])).dtype == torch.float64


# codes that a table does not have -----------------------------------------------------------------


def test_codes_that_a_table_does_not_have_get_its_mean_row():
    table = torch.randn(4, 3, requires_grad=True)
    found = looked_up(table, torch.tensor([2, 4, -1, 0]))
    torch.testing.assert_close(found, torch.stack([table[2], table.mean(0), table.mean(0), table[0]]))
    known = looked_up(table, torch.tensor([2, 0, 2]))
    assert torch.equal(known, table[[2, 0, 2]])
    known.sum().backward()
    assert torch.equal(table.grad, torch.tensor([[1.0], [0], [2], [0]]).expand(4, 3))


def test_priors_take_conditions_that_they_do_not_know_for_the_average_one():
    prior = StylePrior(torch.randn(3, 4))
    found, known = prior.at(torch.tensor([1, 3])), prior.at(torch.tensor([1]))
    torch.testing.assert_close(found.mean[:1], known.mean)
    torch.testing.assert_close(found.mean[1], prior.table[:, :2].mean(0))
    for weights in (Empirical(4, 3), Dirichlet(4, 3)):
        weights.start_at(torch.rand(3, 4) * 50)
        known = weights(torch.arange(3))
        for rows in (weights, weights.log_mean):
            known = rows(torch.arange(3))
            torch.testing.assert_close(rows(torch.tensor([2, 3])), torch.stack([known[2], known.mean(0)]))
