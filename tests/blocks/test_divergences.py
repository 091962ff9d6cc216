"""MMD: against a double loop, a closed form, and what must not change it."""

import math

import numpy as np
import pytest
import torch

from scalloy.blocks import divergences as div

SCALES = (0.5, 2.0, 8.0)


def samples(n, m, seed=0, shift=0.5, d=3):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=rng, dtype=torch.float64)
    y = math.sqrt(1.2) * torch.randn(m, d, generator=rng, dtype=torch.float64)
    y[:, 0] += shift
    return x, y


def kernel(x, y, scales):
    return sum(math.exp(-float((x - y).square().sum()) / (2 * a)) for a in scales) / len(scales)


def closed_form(d, shift, variance, scales):
    """Of N(0, I) and N(shift e_1, variance I)."""

    def expected(v, m, a):
        return (a / (a + v)) ** (d / 2) * math.exp(-(m**2) / (2 * (a + v)))

    each = [
        expected(2, 0, a) + expected(2 * variance, 0, a) - 2 * expected(1 + variance, shift, a)
        for a in scales
    ]
    return sum(each) / len(each)


@pytest.mark.parametrize("unbiased", [True, False])
def test_equals_a_double_loop(unbiased):
    x, y = samples(7, 5)
    xx = [kernel(a, b, SCALES) for i, a in enumerate(x) for j, b in enumerate(x) if not unbiased or i != j]
    yy = [kernel(a, b, SCALES) for i, a in enumerate(y) for j, b in enumerate(y) if not unbiased or i != j]
    xy = [kernel(a, b, SCALES) for a in x for b in y]
    expected = np.mean(xx) + np.mean(yy) - 2 * np.mean(xy)
    assert float(div.mmd2(x, y, SCALES, unbiased=unbiased)) == pytest.approx(expected, abs=1e-12)


def test_golden_value_of_the_closed_form():
    golden = 0.0031250918837904436  # trVAE's scales, 10 dimensions
    assert closed_form(10, 0.5, 1.2, div.TRVAE) == pytest.approx(golden, rel=1e-9)
    assert closed_form(10, 0.5, 1.2, div.TRVAE) * len(div.TRVAE) == pytest.approx(
        0.05937674579201843, rel=1e-9
    )


@pytest.mark.parametrize(("n", "m"), [(64, 64), (200, 20), (256, 4)])
def test_unbiased_estimate_is_unbiased_and_the_other_is_not(n, m):
    draws = [samples(n, m, seed, d=10) for seed in range(300)]
    for unbiased in (True, False):
        found = np.array([float(div.mmd2(x, y, div.TRVAE, unbiased=unbiased)) for x, y in draws])
        error = found.mean() - closed_form(10, 0.5, 1.2, div.TRVAE)
        standard_error = found.std() / np.sqrt(len(found))
        assert (abs(error) < 3.5 * standard_error) == unbiased


def test_blocks_change_neither_value_nor_gradient(monkeypatch):
    x, y = samples(50, 40)
    results = []
    for rows in (1024, 7):
        monkeypatch.setattr(div, "ROWS", rows)
        a, b = (t.clone().requires_grad_() for t in (x, y))
        value = div.mmd2(a, b, SCALES)
        value.backward()
        results.append((value.detach(), a.grad, b.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_gradient_is_that_of_finite_differences_also_where_samples_coincide():
    x, y = samples(6, 5)
    y[0] = x[0]
    assert torch.autograd.gradcheck(
        lambda a, b: div.mmd2(a, b, SCALES), (x.requires_grad_(), y.requires_grad_())
    )


def test_groups():
    x, _ = samples(60, 2)
    groups = torch.arange(60) % 3
    pairs = [div.mmd2(x[groups == i], x[groups == j], SCALES) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert div.between_groups(x, groups, SCALES, n_groups=3) == pytest.approx(float(sum(pairs) / 3))
    renamed = torch.tensor([7, 0, 4])[groups]
    assert div.between_groups(x, renamed, SCALES, n_groups=8) == pytest.approx(float(sum(pairs) / 3))
    few = torch.where(torch.arange(60) < 5, 0, 1)
    assert div.between_groups(x, few, SCALES, n_groups=2) == 0
    assert div.between_groups(x, few * 0, SCALES, n_groups=2) == 0
    twice, halves = torch.cat([x, x]), torch.arange(120) // 60
    same = div.between_groups(twice, halves, SCALES, n_groups=2, unbiased=False)
    assert float(same) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("unbiased", "at_least"), [(True, 8), (True, 1), (False, 1)])
def test_a_group_of_just_enough_samples_is_compared(unbiased, at_least):
    """Of one sample less there is no pair; an unbiased estimate needs two whatever is asked for."""
    n = max(at_least, 1 + unbiased)
    x, y = samples(n, 20)
    settings = {"n_groups": 2, "at_least": at_least, "unbiased": unbiased}
    groups = torch.arange(n + 20) >= n
    found = div.between_groups(torch.cat([x, y]), groups.long(), SCALES, **settings)
    assert float(found) == pytest.approx(float(div.mmd2(x, y, SCALES, unbiased=unbiased)))
    assert div.between_groups(torch.cat([x, y])[1:], groups[1:].long(), SCALES, **settings) == 0


def test_groups_within_sets(monkeypatch):
    x, _ = samples(90, 3)
    groups, sets = torch.arange(90) % 3, torch.arange(90) // 40  # of the third set there are ten
    each = [div.between_groups(x[sets == k], groups[sets == k], SCALES, n_groups=3) for k in range(2)]
    settings = {"n_groups": 3, "within": sets, "n_within": 4}
    found = div.between_groups(x, groups, SCALES, **settings)
    assert found == pytest.approx(float(sum(each) / 2))
    x = x.requires_grad_()
    slope = torch.autograd.grad(div.between_groups(x, groups, SCALES, **settings), x)[0]
    assert slope.isfinite().all()
    assert slope[sets == 0].abs().sum() > 0 == slope[sets == 2].abs().sum()
    monkeypatch.setattr(div, "ROWS", 16)  # in pieces
    again = torch.autograd.grad(div.between_groups(x, groups, SCALES, **settings), x)[0]
    torch.testing.assert_close(again, slope)


def test_distances_by_products():
    x, y = (10 + v for v in samples(50, 3))
    wanted = torch.cdist(x, y).square()
    torch.testing.assert_close(div.squared_distances(x, y), wanted)
    torch.testing.assert_close(
        div.kernel(x, y, torch.tensor(SCALES), by_products=True), div.kernel(x, y, torch.tensor(SCALES))
    )


def test_scales_follow_the_data():
    x, _ = samples(100, 2)
    torch.testing.assert_close(div.median_scales(3 * x), 9 * div.median_scales(x))
    assert float(div.median_scales(x)[2]) == pytest.approx(float(torch.pdist(x).square().median()))
    assert (div.median_scales(x[:1]) > 0).all()
