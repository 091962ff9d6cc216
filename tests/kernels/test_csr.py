"""Sparse batches: the same as dense ones."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as hs

from scalloy.kernels import csr
from scalloy.kernels.csr import SparseLinear


def sparse_batch(n=7, g=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.poisson(0.4, (n, g)).astype(np.float32)
    x[2] = 0
    return torch.from_numpy(x)


def test_sparse_linear_equals_dense_with_gradient():
    x, layer = sparse_batch(), SparseLinear(12, 5)
    out, grads = [], []
    for batch in (x, x.to_sparse_csr()):
        layer.zero_grad()
        y = layer(batch)
        (y * torch.arange(35.0).reshape(7, 5)).sum().backward()
        out.append(y.detach())
        grads.append((layer.weight.grad.clone(), layer.bias.grad.clone()))
    torch.testing.assert_close(*out)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_sparse_linear_in_double_precision():
    x, layer = sparse_batch().double(), SparseLinear(12, 5).double()
    torch.testing.assert_close(layer(x), layer(x.to_sparse_csr()))


@settings(deadline=None, max_examples=30)
@given(n=hs.integers(1, 30), g=hs.integers(1, 200), h=hs.integers(1, 70), seed=hs.integers(0, 10_000))
def test_transposed_product_equals_scipy(n, g, h, seed):
    rng = np.random.default_rng(seed)
    x = sp.random(n, g, 0.2, format="csr", dtype=np.float32, random_state=rng)
    grad = rng.standard_normal((n, h), dtype=np.float32)
    arrays = x.indptr.astype(np.int64), x.indices.astype(np.int64), x.data, grad
    out = csr.transposed_product(*map(torch.from_numpy, arrays), g)
    np.testing.assert_allclose(out.numpy(), x.T @ grad, rtol=1e-4, atol=1e-5)


def test_totals_and_log_normalise():
    x = sparse_batch()
    torch.testing.assert_close(csr.cell_totals(x.to_sparse_csr()), x.sum(-1))
    expected = torch.log1p(x / x.sum(-1, keepdim=True).clamp_min(1e-12) * 1e4)
    torch.testing.assert_close(csr.log_normalise(x), expected)
    torch.testing.assert_close(csr.log_normalise(x.to_sparse_csr()).to_dense(), expected)
