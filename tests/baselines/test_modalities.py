"""Simple predictions of one modality from another, against closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.cross_decomposition import CCA
from sklearn.metrics import roc_auc_score

import scalloy as sa
from scalloy import metrics
from scalloy.baselines import CROSS_METHODS, CrossModal, ProbabilisticCCA


@pytest.fixture(scope="module")
def pbmc():
    adata = sa.datasets.citeseq()
    return adata[:800].copy(), adata[800:1200].copy()


@pytest.mark.parametrize("method", CROSS_METHODS)
def test_every_method_predicts_both_ways(pbmc, method):
    train, test = pbmc
    model = CrossModal(train, method)
    model.train()
    protein = model.predict("prot", from_="rna", adata=test)
    genes = model.predict("rna", from_="prot", adata=test)
    assert list(protein.columns) == list(train.obsm["protein_counts"].columns)
    assert genes.shape == test.shape
    assert (protein.index == test.obs_names).all()
    truth = np.log1p(test.obsm["protein_counts"].to_numpy(float))
    r = metrics.variable_correlation(protein.to_numpy(), truth).mean()
    if method == "mean":
        assert r == 0
        known = np.log1p(train.obsm["protein_counts"].to_numpy(float))
        np.testing.assert_allclose(protein.iloc[0], known.mean(0))
    else:
        assert r > 0.5


def test_probabilistic_cca_finds_the_generating_model():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60_000, 2))
    w = rng.normal(size=(2, 5)), rng.normal(size=(2, 3))
    x1, x2 = (y @ v + 0.7 * rng.normal(size=(len(y), v.shape[1])) + 3 for v in w)
    pcca = ProbabilisticCCA(2).fit(x1, x2)
    np.testing.assert_allclose(
        pcca.correlations_,
        np.diag(np.corrcoef(*(v.T for v in CCA(2).fit_transform(x1, x2)))[:2, 2:]),
        atol=0.01,
    )
    precision = np.eye(2) + w[0] @ w[0].T / 0.49  # of y given the first view
    exact = 3 + (x1 - 3) @ w[0].T / 0.49 @ np.linalg.inv(precision) @ w[1]
    np.testing.assert_allclose(pcca.predict(x1), exact, atol=0.06)


def test_messages(pbmc):
    train, _ = pbmc
    with pytest.raises(ValueError, match="`method='magic'` is not known"):
        CrossModal(train, "magic")
    with pytest.raises(ValueError, match="is the modality to predict"):
        CrossModal(train, "mean").predict("prot", from_="prot")


def test_second_modality_is_scaled_if_asked_for():
    """Doubling the depth of a cell changes neither what is predicted from it nor what is to be predicted."""
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=600)
    depth = rng.lognormal(0, 0.7, (600, 1))
    peaks = rng.poisson(depth * np.exp(rng.normal(0, 1, (3, 40)))[kind]).astype(float)
    genes = rng.poisson(np.exp(rng.normal(1, 1, (3, 30)))[kind]).astype(np.float32)
    genes[:, 0] += 1
    cells = sa.datasets.simulate(600, 30, n_clusters=3)
    cells.X, cells.obsm["atac"] = genes, peaks
    model = CrossModal(cells[:400].copy(), "ridge", protein_obsm_key="atac", normalise=True)
    test = cells[400:].copy()
    found = model.predict("prot", from_="rna", adata=test)
    assert found.shape == (200, 40)
    scaled = np.log1p(1e4 * peaks / np.maximum(peaks.sum(1, keepdims=True), 1))[400:]
    assert metrics.rmse_z(found.to_numpy(), scaled, scaled.std(0)) < 0.95
    raw = CrossModal(cells[:400].copy(), "ridge", protein_obsm_key="atac").predict("prot", "rna", test)
    assert raw.to_numpy().max() < 5 < found.to_numpy().max()
    assert found.to_numpy().mean() == pytest.approx(scaled.mean(), rel=0.05)
    mean = CrossModal(cells[:400].copy(), "mean", protein_obsm_key="atac", normalise=True)
    expected = np.log1p(1e4 * peaks / np.maximum(peaks.sum(1, keepdims=True), 1))[:400].mean(0)
    np.testing.assert_allclose(mean.predict("prot", "rna", test).iloc[0], expected)
    test.obsm["atac"] = np.zeros_like(peaks[400:])  # cells without fragments
    assert np.isfinite(model.predict("rna", from_="prot", adata=test).to_numpy()).all()


def test_area_under_the_curve_of_each_variable():
    rng = np.random.default_rng(0)
    score, truth = rng.integers(0, 6, (80, 5)).astype(float), rng.poisson(0.5, (80, 5))
    truth[:, 3], truth[:, 4] = 0, 2
    found = metrics.variable_auroc(score, truth)
    for i in range(3):
        assert found[i] == pytest.approx(roc_auc_score(truth[:, i] > 0, score[:, i]))
        pairs = np.subtract.outer(score[truth[:, i] > 0, i], score[truth[:, i] == 0, i])
        assert found[i] == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    assert np.isnan(found[3:]).all()


def test_metrics_of_modalities():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 3))
    truth[:, 2] = 1.0
    predicted = np.c_[truth[:, 0] * 2 + rng.normal(size=50), np.ones(50), truth[:, 2]]
    r = metrics.variable_correlation(predicted, truth)
    assert r[0] == pytest.approx(np.corrcoef(predicted[:, 0], truth[:, 0])[0, 1])
    assert r[1] == 0
    assert np.isnan(r[2])
    rmse = metrics.rmse_z(predicted[:, :2], truth[:, :2], np.array([2.0, 0.5]))
    each = [np.sqrt(np.mean((predicted[:, i] - truth[:, i]) ** 2)) for i in (0, 1)]
    assert rmse == pytest.approx((each[0] / 2 + each[1] / 0.5) / 2)
    assert metrics.within(np.zeros(4), np.ones(4), np.array([-1.0, 0.0, 1.0, 2.0])) == 0.5
    counts = pd.DataFrame(rng.poisson(5, (4, 3)))
    log = np.log1p(counts.to_numpy(float))
    geometric = np.exp(log.mean(1, keepdims=True))
    np.testing.assert_allclose(metrics.clr(log), np.log((1 + counts) / geometric))
