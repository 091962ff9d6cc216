"""GMVAE for users: clusters, usage, weights, and counts of genes as the likelihood expects them."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
from anndata import AnnData
from scipy.stats import poisson
from sklearn.metrics import adjusted_rand_score

import scalloy as sa

SHORT = {"enable_progress_bar": False, "accelerator": "cpu"}


def fit(adata, *, epochs=60, setup=None, seed=0, **model):
    scvi.settings.seed = seed
    sa.GMVAE.setup_anndata(adata, **(setup or {}))
    made = sa.GMVAE(adata, **{"n_hidden": 32, "n_latent": 5, **model})
    made.train(max_epochs=epochs, **SHORT)
    scvi.settings.seed = None
    return made


@pytest.fixture(scope="module")
def simulated():
    adata = sa.datasets.simulate(1000, 100, n_clusters=4, seed=2)
    return fit(adata, n_clusters=4, setup={"batch_key": "batch"})


def ten_features(n=4000, seed=0):
    """Five clusters of ten Poisson genes, rates 1 to 10 in five orders, as in the scVAE review."""
    rng = np.random.default_rng(seed)
    rates = np.stack([rng.permutation(np.arange(1.0, 11)) for _ in range(5)])
    y = rng.integers(5, size=n)
    x = rng.poisson(rates[y])
    best = poisson.logpmf(x, rates[:, None]).sum(-1).argmax(0)
    return AnnData(x.astype(np.float32), obs={"cluster": y.astype(str), "best": best.astype(str)})


@pytest.mark.parametrize("likelihood", ["poisson", "nb"])
def test_five_clusters_of_ten_genes_are_found(likelihood):
    """Where the sources' own attempt failed; nobody can do better than by the true rates."""
    adata = ten_features()
    optimum = adjusted_rand_score(adata.obs["cluster"], adata.obs["best"])
    model = fit(adata, n_clusters=5, gene_likelihood=likelihood)
    found = adjusted_rand_score(adata.obs["cluster"], model.get_clusters())
    assert found >= 0.98 * optimum
    assert model.n_alive() == 5


def test_clusters_usage_and_probabilities(simulated):
    found, p = simulated.get_clusters(), simulated.get_cluster_probabilities()
    assert adjusted_rand_score(simulated.adata.obs["cluster"], found) >= 0.95
    assert list(p.columns) == simulated.cluster_names == ["0", "1", "2", "3"]
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-4)
    assert (p.columns[p.to_numpy().argmax(1)] == found).all()
    usage = simulated.get_usage()
    np.testing.assert_allclose(usage, found.value_counts().reindex(usage.index), rtol=0.05)
    assert simulated.get_usage(by="condition").shape == (2, 4)
    assert simulated.n_alive() == 4
    learned = simulated.module.prior.weights.logits.softmax(-1).detach().numpy()[0]
    np.testing.assert_allclose(learned, usage / usage.sum(), atol=0.03)


def test_new_cells_belong_where_they_did(simulated):
    cells = simulated.adata[::-1].copy()
    again = simulated.get_clusters(cells)
    assert (again[simulated.adata.obs_names] == simulated.get_clusters()).all()


def test_more_components_than_clusters_do_not_collapse_into_one(simulated):
    model = fit(simulated.adata.copy(), n_clusters=10, setup={"batch_key": "batch"})
    assert 4 <= model.n_alive() <= 10
    types, found = simulated.adata.obs["cluster"], model.get_clusters()
    purity = sa.metrics.purity(types.to_numpy(), found.to_numpy())
    assert purity >= 0.95


def test_given_weights_stay_and_wrong_ones_are_refused(simulated):
    adata = simulated.adata.copy()
    model = fit(adata, n_clusters=2, weights=[0.2, 0.8], epochs=10)
    np.testing.assert_allclose(model.module.prior.weights.log_pi.exp()[0], [0.2, 0.8], rtol=1e-6)
    usage = model.get_usage()
    assert usage["1"] > usage["0"]
    for weights in ([0.5, 0.5, 0.5], [1.0, 0.0]):
        with pytest.raises(ValueError, match="must be 2 numbers above zero"):
            sa.GMVAE(adata, n_clusters=2, weights=weights)
    with pytest.raises(ValueError, match=r"`weights='learnt'` is not known.*Did you mean 'learned'"):
        sa.GMVAE(adata, weights="learnt")
    with pytest.raises(ValueError, match="`n_decoded=1` must be at least 2"):
        sa.GMVAE(adata, n_decoded=1)


def test_one_component_is_never_placed(simulated):
    model = fit(simulated.adata.copy(), n_clusters=1, epochs=6)
    prior = model.module.prior
    assert not prior.placed
    assert set(model.get_clusters()) == {"0"}
    assert "kl_y_train" in model.history
    assert (model.history["kl_y_train"].astype(float) == 0).all().all()


def test_statistics_of_genes_are_those_of_predicted_counts(simulated):
    """Against sampled counts, and against the observed matrix."""
    table = simulated.get_gene_statistics()
    x = simulated.adata.X.toarray()
    np.testing.assert_allclose(table["mean_observed"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(table["variance_observed"], x.var(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table["zeros_observed"], (x == 0).mean(0), rtol=1e-6)
    drawn = simulated.posterior_predictive_sample(n_samples=30).transpose(0, 2, 1).reshape(-1, x.shape[1])
    error = drawn.std(0) / np.sqrt(1000)
    assert (np.abs(drawn.mean(0) - table["mean_expected"]) < 5 * error + 1e-3).all()
    np.testing.assert_allclose((drawn == 0).mean(0), table["zeros_expected"], atol=0.02)
    np.testing.assert_allclose(drawn.var(0), table["variance_expected"], rtol=0.35)
    sa.VAE.setup_anndata(simulated.adata)
    model = sa.VAE(simulated.adata, gene_likelihood="gaussian")
    with pytest.raises(ValueError, match="Gaussian is no likelihood of counts"):
        model.get_gene_statistics()


def test_poisson_expects_too_few_zeros_of_overdispersed_counts_and_nb_does_not():
    adata = sa.datasets.simulate(1000, 100, theta=0.7, library=400, seed=0)
    off = {}
    for likelihood in ("poisson", "nb"):
        sa.VAE.setup_anndata(adata)
        model = sa.VAE(adata, gene_likelihood=likelihood, n_hidden=32, n_latent=5)
        model.train(max_epochs=40, **SHORT)
        table = model.get_gene_statistics()
        off[likelihood] = (table["zeros_expected"] - table["zeros_observed"]).mean()
    assert off["poisson"] < -0.05
    assert abs(off["nb"]) < 0.02
