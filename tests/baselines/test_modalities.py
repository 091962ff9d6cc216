"""Simple predictions of one modality from another, against closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.cross_decomposition import CCA

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
