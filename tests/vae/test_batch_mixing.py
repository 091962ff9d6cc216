"""The penalty on differences between batches within components, beside a naive double loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

import scalloy as sa
from scalloy.blocks import divergences as div
from scalloy.vae.batch_mixing import LEAST, between_batches

N, B, K = 60, 3, 2


def drawn(seed=0, n=N):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 4, generator=rng, dtype=torch.float64)
    r = torch.softmax(2 * torch.randn(n, K, generator=rng, dtype=torch.float64), -1)
    return z, torch.arange(n) % B, r


def naive(z, b, r):
    """Sum over pairs of cells one by one."""
    scales, total, weight = div.median_scales(z), 0.0, 0.0
    k = [[float(torch.exp(-(x - y).square().sum() / (2 * scales)).mean()) for y in z] for x in z]

    def mean(left, right, i):
        pairs = [(m, n) for m in left for n in right if m != n]
        w = [float(r[m, i] * r[n, i]) for m, n in pairs]
        return np.dot(w, [k[m][n] for m, n in pairs]) / sum(w)

    for i, (one, other) in itertools.product(range(r.shape[1]), itertools.combinations(range(B), 2)):
        x, y = ([n for n in range(len(z)) if b[n] == group] for group in (one, other))
        n_x, n_y = (float(r[rows, i].sum()) for rows in (x, y))
        if min(n_x, n_y) < LEAST:
            continue
        counts = n_x * n_y / (n_x + n_y)
        total += counts * (mean(x, x, i) + mean(y, y, i) - 2 * mean(x, y, i))
        weight += counts
    return total / weight


def test_it_is_the_sum_over_pairs_of_cells():
    z, b, r = drawn()
    z[b == 1] += 1.0
    r[b == 2] = torch.tensor([1.0 - 1e-3, 1e-3], dtype=torch.float64)  # too few of it in the second
    assert float(between_batches(z, b, r, B)) == pytest.approx(naive(z, b, r))


def test_composition_alone_is_no_difference():
    """Batches hold two types in other shares: codes of whole batches differ, those of each type do not."""
    rng = np.random.default_rng(0)
    b = torch.arange(2000) % 2
    kind = torch.as_tensor((rng.random(2000) < np.where(b.numpy(), 0.2, 0.8)).astype(int))
    z = torch.as_tensor(rng.normal(size=(2000, 3)))
    z[:, 0] += 6 * kind
    r = torch.nn.functional.one_hot(kind, 2).double()
    assert abs(float(between_batches(z, b, r, 2))) < 2e-3
    assert float(between_batches(z, b, torch.ones(2000, 1).double(), 2)) > 0.1
    z[:, 1] += b
    assert float(between_batches(z, b, r, 2)) > 0.02


def test_gradient_reaches_the_code_and_not_the_assignment():
    z, b, r = drawn()
    z[b == 1] += 1.0
    z.requires_grad_()
    r.requires_grad_()
    between_batches(z, b, r, B).backward()
    assert r.grad is None
    assert z.grad.abs().sum() > 0
    step = z.detach() - 0.5 * N * z.grad
    assert between_batches(step, b, r, B) < between_batches(z, b, r, B)


def test_a_batch_that_is_new_is_read():
    z, b, r = drawn()
    assert between_batches(z, b + 5, r, B).isfinite()
    assert between_batches(z, b * 0 - 1, r, B) == 0


def test_batches_are_needed():
    cells = sa.datasets.simulate(60, 20, n_batches=1, n_conditions=1)
    sa.CGMDVAE.setup_anndata(cells)
    with pytest.raises(ValueError, match=r"`mmd_weight=10.0` is the weight .* of which there are 1. Pass"):
        sa.CGMDVAE(cells, mmd_weight=10.0)
    with pytest.raises(ValueError, match=r"`mmd_weight=-1.0` is the weight"):
        sa.CGMDVAE(cells, mmd_weight=-1.0)
    assert not sa.CGMDVAE(cells).module.mmd


def test_batches_are_mixed_better_by_a_model_that_is_asked_to(tmp_path):
    """Two batches, of which one holds types in other shares; neighbours in z are of both more often."""
    cells = sa.datasets.simulate(600, 60, n_clusters=3, n_batches=2, n_conditions=1, seed=1)
    rng = np.random.default_rng(0)
    counts = cells.X.toarray()
    second = (cells.obs["batch"] == cells.obs["batch"].unique()[1]).to_numpy()
    counts[second] = rng.poisson(counts[second] * np.exp(rng.normal(0, 0.8, cells.n_vars)))
    cells.X = counts.astype(np.float32)
    cells = cells[counts.sum(1) > 0].copy()
    b = cells.obs["batch"].astype("category").cat.codes.to_numpy()
    sa.CGMDVAE.setup_anndata(cells, batch_key="batch")
    apart = {}
    for weight in (0.0, 200.0):
        model = sa.CGMDVAE(cells, n_latent=4, mmd_weight=weight, seed=0)
        model.train(max_epochs=30, batch_size=256, enable_progress_bar=False)
        z = model.get_latent_representation()
        near = NearestNeighbors(n_neighbors=16).fit(z).kneighbors(z, return_distance=False)[:, 1:]
        apart[weight] = (b[near] == b[:, None]).mean()
        assert ("penalty_mmd_train" in model.history) == (weight > 0)
    assert apart[200.0] < apart[0.0]
    model.save(tmp_path / "m")
    again = sa.load(tmp_path / "m", cells)
    assert again.module.mmd
    np.testing.assert_allclose(again.get_latent_representation(), z, atol=1e-6)
