"""What the models must reach on real and simulated data; each bar is measured in the same test."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import scvi
import torch
from scipy.stats import spearmanr

import scalloy as sa
from scalloy.benchmark.evidence import evidence, three_parts
from scalloy.benchmark.fit import load
from scalloy.metrics import knn_accuracy

RUN = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def kang_model():
    scvi.settings.seed = 0
    adata = sa.datasets.kang()
    sa.VAE.setup_anndata(adata, batch_key="batch")
    model = sa.VAE(adata)
    model.train(max_epochs=25, **RUN)
    scvi.settings.seed = None
    return model


def test_latent_space_knows_cell_types_as_well_as_principal_components(kang_model):
    adata = kang_model.adata
    normed = adata.copy()
    sc.pp.normalize_total(normed, target_sum=1e4)
    sc.pp.log1p(normed)
    pca = sc.pp.pca(normed.X, n_comps=10)
    types = adata.obs["cell_type"].to_numpy()
    ours, baseline = (knn_accuracy(z, types) for z in (kang_model.get_latent_representation(), pca))
    assert ours > baseline


def test_donors_are_removed(kang_model):
    adata = kang_model.adata
    normed = adata.copy()
    sc.pp.normalize_total(normed, target_sum=1e4)
    sc.pp.log1p(normed)
    donors = adata.obs["batch"].to_numpy()
    latent = knn_accuracy(kang_model.get_latent_representation(), donors)
    assert latent < knn_accuracy(sc.pp.pca(normed.X, n_comps=10), donors)


def test_held_out_counts_are_predicted_better_than_by_gene_means(kang_model):
    """Reconstruction beats an NB with the gene's mean share and the best of many dispersions."""
    held = kang_model.validation_indices
    x = kang_model.adata.X[held].toarray()
    share = np.asarray(kang_model.adata.X[kang_model.train_indices].sum(0)).ravel()
    logits = torch.tensor(np.log(share + 1e-3)).expand(len(held), -1)
    rate = sa.blocks.distributions.Rate(logits, torch.tensor(np.log(x.sum(1, keepdims=True))))
    grid = [torch.full((1, x.shape[1]), float(t), dtype=torch.float64) for t in np.linspace(-3, 3, 13)]
    nb = [sa.blocks.distributions.NegativeBinomial(rate, t).log_pmf(torch.tensor(x)).sum(0) for t in grid]
    best = torch.stack(nb).amax(0).sum().item() / len(held)
    assert kang_model.get_elbo(indices=held) > best


def test_evidence_agrees_with_the_getters(kang_model):
    """The benchmark's function and the model's own getters are two ways to the same numbers."""
    held = kang_model.validation_indices
    found = evidence(kang_model, held, n_mc_samples=20)
    recon = kang_model.get_reconstruction_error(indices=held)["reconstruction_loss"]
    assert found["reconstruction"] == pytest.approx(recon, rel=0.005)
    assert found["elbo"] == pytest.approx(kang_model.get_elbo(indices=held), rel=0.005)
    marginal = kang_model.get_marginal_ll(indices=held, n_mc_samples=20)
    assert found["marginal_ll"] == pytest.approx(marginal, rel=0.005)
    assert found["elbo"] < found["marginal_ll"]


@pytest.mark.slow
def test_as_good_as_scvi_at_equal_settings():
    """Same cells, sizes, likelihood, batch size and epochs; the same function computes both ELBOs."""
    adata = load("kang_subset", 800)[:3000].copy()
    found = {}
    for cls in (sa.VAE, scvi.model.SCVI):
        scvi.settings.seed = 0
        cls.setup_anndata(adata)
        model = cls(adata, gene_likelihood="nb")
        split = {"external_indexing": three_parts(adata.n_obs, 0)}
        model.train(max_epochs=15, batch_size=128, early_stopping=False, datasplitter_kwargs=split, **RUN)
        held = split["external_indexing"][2]
        found[cls.__name__] = evidence(model, held, n_mc_samples=0)["elbo"]
    scvi.settings.seed = None
    assert found["VAE"] > found["SCVI"]


def test_poisson_rates_are_recovered():
    adata = sa.datasets.poisson_genes()
    sa.VAE.setup_anndata(adata)
    for library in ("observed", "none"):
        torch.manual_seed(0)
        model = sa.VAE(adata, n_hidden=7, n_latent=3, gene_likelihood="poisson", library=library)
        model.train(max_epochs=30, **RUN)
        mean = model.get_normalized_expression(library_size="latent").mean()
        np.testing.assert_allclose(mean, adata.var["rate"], rtol=0.05)


def test_free_poisson_with_a_high_learning_rate_stays_finite():
    """The setting in which the scVAE review's Poisson ended in -inf after 38 epochs: rates without library
    size, batch normalisation, learning rate 0.1, and genes that are often zero beside very high ones."""
    rng = np.random.default_rng(0)
    adata = sa.datasets.poisson_genes(1000)
    x = adata.X.toarray()
    x[:, :3] = rng.poisson(0.02, (1000, 3))
    x[::50, 4] = 5000
    adata.X = x
    sa.VAE.setup_anndata(adata)
    model = sa.VAE(adata, n_hidden=7, n_latent=3, gene_likelihood="poisson", library="none", norm="batch")
    plan = {"lr": 0.1, "lr_schedule": "constant", "kl_warmup": 0.0}
    model.train(max_epochs=60, batch_size=100, early_stopping=False, plan_kwargs=plan, **RUN)
    assert len(model.history["train_loss"]) == 60
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    assert np.isfinite(model.get_elbo())


def test_true_means_of_a_simulation_are_recovered():
    """Denoised expression is closer to the truth than the counts are, and NB dispersion is found."""
    adata = sa.datasets.simulate(1500, 100, theta=3.0, library=500, seed=0)
    sa.VAE.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["condition"])
    model = sa.VAE(adata, n_hidden=64)
    model.train(max_epochs=60, **RUN)
    denoised = model.get_normalized_expression(n_samples=5, library_size="latent").to_numpy()
    truth, counts = adata.layers["mean"], adata.X.toarray()
    assert (
        np.square(np.log1p(denoised) - np.log1p(truth)).mean()
        < 0.25 * np.square(np.log1p(counts) - np.log1p(truth)).mean()
    )
    theta = model.module.likelihood.log_theta.exp().detach().numpy().ravel()
    high = truth.mean(0) > 3
    assert np.median(theta[high]) == pytest.approx(3.0, rel=0.25)


def test_beta_buys_a_simpler_code():
    adata = sa.datasets.simulate(600, 60, seed=1)
    kl = []
    for beta in (1.0, 8.0):
        torch.manual_seed(0)
        sa.BetaVAE.setup_anndata(adata)
        model = sa.BetaVAE(adata, beta=beta, n_hidden=32)
        model.train(max_epochs=25, **RUN)
        kl.append(float(model.history["kl_z_validation"].iloc[-1, 0]))
    assert kl[1] < 0.6 * kl[0]


def test_differential_expression_finds_interferon(kang_model):
    adata = kang_model.adata
    mono = adata.obs["cell_type"] == "CD14+ Monocytes"
    stim = adata.obs["condition"] == "stimulated"
    table = kang_model.differential_expression(
        idx1=(mono & stim).to_numpy(), idx2=(mono & ~stim).to_numpy(), mode="change", silent=True
    )
    top = set(table.sort_values("lfc_mean", ascending=False).head(60).index)
    assert len(top & {"ISG15", "IFIT1", "IFIT2", "IFIT3", "IFI6", "MX1", "CXCL10", "ISG20", "RSAD2"}) >= 6
    lfc = np.log2(table["raw_normalized_mean1"] + 0.1) - np.log2(table["raw_normalized_mean2"] + 0.1)
    assert spearmanr(lfc, table["lfc_mean"]).statistic > 0.4
