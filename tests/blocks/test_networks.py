"""Networks: sparse equals dense, covariates equal one-hot codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scalloy.blocks import networks as net


def sparse_batch(n=7, g=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.poisson(0.4, (n, g)).astype(np.float32)
    x[2] = 0
    return torch.from_numpy(x)


def test_sparse_linear_equals_dense_with_gradient():
    x, layer = sparse_batch(), net.SparseLinear(12, 5)
    out, grads = [], []
    for given in (x, x.to_sparse_csr()):
        layer.zero_grad()
        y = layer(given)
        (y * torch.arange(35.0).reshape(7, 5)).sum().backward()
        out.append(y.detach())
        grads.append((layer.weight.grad.clone(), layer.bias.grad.clone()))
    torch.testing.assert_close(*out)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_sparse_linear_in_double_precision():
    x, layer = sparse_batch().double(), net.SparseLinear(12, 5).double()
    torch.testing.assert_close(layer(x), layer(x.to_sparse_csr()))


def test_covariates_equal_one_hot_codes_beside_the_input():
    layer = net.Layer(4, 6, n_cats=(3, 1, 2), n_cont=2, norm="none")
    x, cont = torch.randn(5, 4), torch.randn(5, 2)
    cats = (torch.tensor([0, 2, 1, 1, 0]), torch.zeros(5, dtype=torch.long), torch.tensor([1, 0, 1, 1, 0]))
    one_hot = torch.cat([nn.functional.one_hot(c, k).float() for c, k in zip(cats, (3, 1, 2))], -1)
    tables = layer.covariates.tables
    weight = torch.cat(
        [layer.linear.weight, tables[0].weight.T, torch.zeros(6, 1), tables[2].weight.T,
         layer.covariates.slopes.weight], 1
    )  # fmt: skip
    expected = torch.relu(torch.cat([x, one_hot, cont], -1) @ weight.T + layer.linear.bias)
    torch.testing.assert_close(layer(x, cats, cont), expected)


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_samples_in_front_change_nothing(norm):
    stack = net.Stack(4, 6, 2, n_cats=(3,), norm=norm).eval()
    z, b = torch.randn(3, 5, 4), torch.tensor([0, 2, 1, 1, 0])
    together = stack(z, (b,))
    for one, each in zip(together, z, strict=True):
        torch.testing.assert_close(one, stack(each, (b,)))


def test_totals_and_log_normalise():
    x = sparse_batch()
    torch.testing.assert_close(net.cell_totals(x.to_sparse_csr()), x.sum(-1))
    expected = torch.log1p(x / x.sum(-1, keepdim=True).clamp_min(1e-12) * 1e4)
    torch.testing.assert_close(net.log_normalise(x), expected)
    torch.testing.assert_close(net.log_normalise(x.to_sparse_csr()).to_dense(), expected)
