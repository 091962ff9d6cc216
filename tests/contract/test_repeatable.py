"""The same seed gives the same numbers to the last bit, and nobody else's random numbers are touched."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import scvi
import torch
from contract.test_models import MODELS, SMALL, class_of, each_class, setup

import scalloy as sa
from scalloy._seeds import seeded


@contextmanager
def nothing_drawn():
    """The global states of torch, numpy and Python are what they were."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), scvi.settings.seed
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    assert (random.getstate(), scvi.settings.seed) == before[2:]


def fitted(name, cells, quick, **more):
    model = MODELS[name](cells, **more)
    model.train(**quick)
    return model


def bits(model):
    return {k: v.numpy().tobytes() for k, v in model.module.state_dict().items()}


@each_class
def test_same_seed_same_bits(name, cells, quick):
    setup(name, cells)
    with nothing_drawn():
        first = fitted(name, cells, quick, seed=3)
    torch.manual_seed(99)
    np.random.seed(99)
    with nothing_drawn():
        second = fitted(name, cells, quick, seed=3)
    assert bits(first) == bits(second)
    assert bits(first) != bits(fitted(name, cells, quick, seed=4))
    assert (first.seed, first.init_params_["non_kwargs"]["seed"]) == (3, 3)
    first.train(**quick)
    second.train(**quick)
    assert bits(first) == bits(second)


def test_where_the_seed_comes_from(cells, quick):
    setup("VAE", cells)
    assert fitted("VAE", cells, quick).seed == 0
    scvi.settings.seed = 5
    five = fitted("VAE", cells, quick)
    scvi.settings.seed = None
    assert five.seed == 5
    assert bits(five) == bits(fitted("VAE", cells, quick, seed=5))


@each_class
def test_getters_draw_by_seed_and_leave_others_alone(name, cells, quick):
    setup(name, cells)
    model = fitted(name, cells, quick)
    calls = {
        "get_latent_representation": {"give_mean": False},
        "get_normalized_expression": {"n_samples": 2, "return_numpy": True},
        "posterior_predictive_sample": {},
        "get_elbo": {"return_mean": False},
        "get_reconstruction_error": {},
        "differential_expression": {"groupby": "cluster", "silent": True},
    }
    if model.module.likelihood.draws_counts:
        calls["get_gene_statistics"] = {}
    if not name.startswith("AE"):
        calls["get_marginal_ll"] = {"n_mc_samples": 3}
    for method, given in calls.items():
        with nothing_drawn():
            one, same, other = (getattr(model, method)(**given, seed=s) for s in (1, 1, 2))
        assert digits(one) == digits(same), method
        draws = not name.startswith("AE") or method == "posterior_predictive_sample"
        if draws and method != "differential_expression":
            assert digits(one) != digits(other), method
    with nothing_drawn():
        model.get_latent_representation()
        model.annotate(copy=True)
        model.get_traversal(0)
        model.get_latent_genes()


def digits(value):
    if isinstance(value, dict):
        return {k: digits(v) for k, v in value.items()}
    return value.to_csv() if hasattr(value, "to_csv") else np.asarray(value).tobytes()


@pytest.mark.parametrize("name", ["CGMDVAE", "TRVAE"])
def test_predictions_leave_others_alone(name, cells, quick):
    keys = {"condition_key": "condition", "labels_key": "cluster"}
    class_of(name).setup_anndata(cells, **keys)
    model = fitted(name, cells, quick)
    control = cells[cells.obs["condition"] == "control"].copy()
    with nothing_drawn():
        one, same, other = (model.transfer(control, to="treated_1", seed=s) for s in (1, 1, 2))
        assert (one.layers["counts"] != same.layers["counts"]).nnz == 0
        assert (one.layers["counts"] != other.layers["counts"]).nnz > 0
        if name == "CGMDVAE":
            model.predict_labels()
        for source in ("prior", "posterior"):
            drawn = [model.generate(20, from_=source, seed=s).X for s in (1, 1, 2)]
            assert (drawn[0] != drawn[1]).nnz == 0
            assert (drawn[0] != drawn[2]).nnz > 0
        query = cells.copy()
        query.obs["condition"] = "new"
        class_of(name).load_query_data(query, model).train(**quick)


def test_functions_leave_others_alone(cells, tmp_path):
    cells.obsm["X"] = cells.X.toarray()[:, :5]
    with nothing_drawn():
        sa.compare.groups(cells, use_rep="X", groupby="condition", n_permutations=50)
        sa.compare.witness(cells, use_rep="X", groupby="condition", groups=("control", "treated_1"))
        sa.datasets.simulate(50, 10, seed=1)
        sa.datasets.songs(2, 1, 3, seed=1)
        sa.datasets.kang()
        sa.metrics.purity(cells.obs["cluster"], cells.obs["condition"])
        sa.VAE.setup_anndata(cells)
        sa.VAE(cells, **SMALL).save(tmp_path / "m")
        sa.load(tmp_path / "m", cells)


def test_seeds_within_seeds():
    with nothing_drawn(), seeded(1):
        first = torch.rand(3)
        with seeded(None, otherwise=7):  # goes on
            second = torch.rand(3)
        with seeded(2):
            other = torch.rand(3)
        third = torch.rand(3)
    torch.manual_seed(1)
    expected = torch.rand(9)
    assert torch.equal(torch.cat([first, second, third]), expected)
    torch.manual_seed(2)
    assert torch.equal(other, torch.rand(3))
    with seeded(None, otherwise=7):
        alone = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(alone, torch.rand(3))


KERNEL = """
import hashlib, torch
from scalloy.blocks.likelihoods import NB
torch.manual_seed(0)
likelihood, h = NB(16, 40), torch.randn(64, 16, requires_grad=True)
x = torch.poisson(2 * torch.rand(64, 40)).to_sparse_csr()
log_p = likelihood.log_prob(likelihood(h, torch.full((64, 1), 3.0), torch.zeros(64, dtype=torch.long)), x)
(grad,) = torch.autograd.grad(log_p.sum(), h)
print(hashlib.sha256(log_p.detach().numpy().tobytes() + grad.numpy().tobytes()).hexdigest())
"""


def test_the_process_that_compiles_computes_as_all_others(tmp_path):
    """numba's code as it was just compiled rounds otherwise than when it is read back."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = partial(subprocess.run, [sys.executable, "-c", KERNEL], env=env, text=True, check=True)
    first, second = (run(capture_output=True).stdout for _ in range(2))
    assert first == second
    assert len(first) == 65
    assert list(tmp_path.rglob("*.nbi"))
