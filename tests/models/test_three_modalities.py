"""POISEVAE with RNA, proteins, sparse peaks and categories: mosaics, files, predictions from any subset."""

from __future__ import annotations

import itertools

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import roc_auc_score

import scalloy as sa
from scalloy.data.modalities import LARGEST_PANEL
from scalloy.models._core.joint_prior import _new_codes

SMALL = {"n_hidden": 16, "n_latent": 3, "n_chains": 32}
NAMES = ("rna", "atac", "prot")
N_PEAKS = LARGEST_PANEL + 100
PATTERNS = [p for r in (1, 2, 3) for p in itertools.combinations(NAMES, r)]


def three(n=150, seed=0, n_types=3):
    """A MuData of cells of a few types, each of which has genes, peaks and proteins of its own."""
    rng = np.random.default_rng(seed)
    types = rng.integers(n_types, size=n)
    of = np.random.default_rng(99)  # what the types are does not depend on the cells
    shapes = {"rna": (40, 3.0, 0.8), "atac": (N_PEAKS, 0.1, 1.0), "prot": (4, 20.0, 0.8)}
    mods = {}
    for name, (n_vars, level, spread) in shapes.items():
        rate = level * np.exp(spread * of.normal(size=(n_types, n_vars)))
        x = rng.poisson(rate[types] * rng.gamma(20, 1 / 20, (n, 1)))
        x[:, 0] += 1
        x = sp.csr_matrix(x.astype(np.float32)) if name != "prot" else x.astype(np.float32)
        mods[name] = ad.AnnData(x, var=pd.DataFrame(index=[f"{name}_{i}" for i in range(n_vars)]))
        mods[name].obs_names = [f"cell_{i}" for i in range(n)]
    mdata = mudata.MuData(mods)
    mdata.obs["type"] = pd.Categorical([f"type {t}" for t in types])
    return mdata


def part(mdata, rows):
    """A MuData in which each modality has some of the cells, by its name."""
    return mudata.MuData({name: mdata[name][rows[name]].copy() for name in rows})


def fitted(mdata, quick, **more):
    sa.POISEVAE.setup_mudata(mdata)
    model = sa.POISEVAE(mdata, **{**SMALL, **more})
    model.train(**quick)
    return model


@pytest.fixture(scope="module")
def model(quick):
    return fitted(three(), quick)


def test_a_mudata_of_three_with_likelihoods_by_the_kind_of_data(model):
    assert model.modalities == NAMES
    assert model.likelihoods == {"rna": "nb", "atac": "poisson", "prot": "background"}
    assert sp.issparse(model.adata.obsm["atac"])
    assert model.get_variables("atac")[:2] == ["atac_0", "atac_1"]
    assert model.get_latent_representation().shape == (150, 9)
    errors = model.get_reconstruction_error()
    assert list(errors) == ["reconstruction_loss", *NAMES]
    assert errors["reconstruction_loss"] == pytest.approx(sum(errors[k] for k in NAMES))
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=3))
    assert model.get_coupling("prot", "atac").shape == (6, 6)
    np.testing.assert_array_equal(model.get_coupling("prot", "atac"), model.get_coupling("atac", "prot").T)
    assert list(model.get_coupling().index[:1]) == ["rna_0"]
    assert len(model.get_mixing(n_sweeps=10, n_chains=4)) == 9
    assert model.get_cross_traversal(0, of="prot", to="atac", n_steps=3).shape == (3, N_PEAKS)
    ax = sa.pl.coupling(model, of="atac", to="prot")
    assert ax.get_xlabel() == "latents of prot"
    with pytest.raises(ValueError, match="`of` and `to` both name 'prot'"):
        model.get_coupling("prot", "prot")


def test_generated_cells_are_as_the_data(model):
    made = model.generate(40, seed=3)
    assert made.shape == (40, 40)
    assert sp.issparse(made.obsm["atac"])
    assert made.obsm["prot"].shape == (40, 4)
    assert list(made.uns["atac_names"][:1]) == ["atac_0"]
    assert model.get_latent_representation(made).shape == (40, 9)  # the model can read them again


@pytest.mark.parametrize("seen", PATTERNS)
def test_every_pattern_of_what_was_measured(seen, model):
    """Cells of which some modalities were not measured are cells from which these are taken away."""
    whole = three()
    some = mudata.MuData({name: whole[name].copy() for name in seen})
    z = model.get_latent_representation(some)
    assert np.isfinite(z).all()
    if seen == NAMES:
        np.testing.assert_allclose(z, model.get_latent_representation(), atol=1e-5)
    for name in NAMES:
        found = model.predict(name, from_=list(seen), n_samples=3)
        given = model.predict(name, adata=some, n_samples=3)
        np.testing.assert_allclose(found, given, rtol=1e-4, atol=1e-5)
        assert list(found.columns) == model.get_variables(name)
        assert np.isfinite(found.to_numpy()).all()


def test_a_mosaic_whose_cells_have_any_subset(quick, tmp_path):
    whole = three()
    rows = {"rna": slice(0, 100), "atac": slice(50, 150), "prot": np.r_[0:60, 120:150]}
    mosaic = part(whole, rows)
    model = fitted(mosaic, quick)
    measured = np.concatenate([b.measured.numpy() for b in model.reader.batches(None)])
    for k, name in enumerate(NAMES):
        assert (measured[:, k] == mosaic.obs_names.isin(mosaic[name].obs_names)).all()
    model.annotate()
    assert {f"X_poisevae_{name}" for name in NAMES} <= set(mosaic.obsm)
    assert mosaic.obsm["poisevae_prot"].shape == (150, 4)
    assert "poisevae_atac" not in mosaic.obsm  # a hundred thousand peaks are not made dense
    z = model.get_latent_representation()
    model.save(tmp_path / "model")
    loaded = sa.load(tmp_path / "model", mosaic)
    np.testing.assert_array_equal(loaded.get_latent_representation(), z)
    alone = sa.load(tmp_path / "model")
    np.testing.assert_allclose(alone.get_latent_representation(mosaic), z, atol=1e-6)


def test_peaks_in_another_order_and_lacking_ones(model, caplog):
    whole = three()
    z = model.get_latent_representation(whole)
    turned = mudata.MuData({k: whole[k].copy() for k in NAMES if k != "atac"})
    turned.mod["atac"] = whole["atac"][:, ::-1].copy()
    turned.update()
    np.testing.assert_allclose(model.get_latent_representation(turned), z, atol=1e-6)
    lacking = mudata.MuData({k: whole[k].copy() for k in NAMES if k != "atac"})
    lacking.mod["atac"] = whole["atac"][:, :-20].copy()
    lacking.update()
    with caplog.at_level("WARNING", logger="scalloy"):
        found = model.get_latent_representation(lacking)
    assert "lacks" in caplog.text
    zeros = three()
    zeros["atac"].X = sp.csr_matrix(zeros["atac"].X.toarray() * (np.arange(N_PEAKS) < N_PEAKS - 20))
    np.testing.assert_allclose(found, model.get_latent_representation(zeros), atol=1e-6)
    dense = three().copy()
    dense.mod["atac"] = ad.AnnData(
        whole["atac"].X.toarray(), obs=whole["atac"].obs.copy(), var=whole["atac"].var.copy()
    )
    dense.update()
    np.testing.assert_allclose(model.get_latent_representation(dense), z, atol=1e-6)


def as_anndata(mdata):
    adata = mdata["rna"].copy()
    adata.obsm["protein_counts"] = pd.DataFrame(
        mdata["prot"].X, index=adata.obs_names, columns=mdata["prot"].var_names
    )
    adata.obsm["peaks"], adata.uns["peaks_names"] = mdata["atac"].X, mdata["atac"].var_names.to_numpy(str)
    adata.obsm["clone"] = pd.get_dummies(mdata.obs["type"]).astype(float).set_axis(adata.obs_names)
    return adata


def test_an_anndata_is_the_same_as_a_mudata(quick, tmp_path):
    mdata = three()
    one = fitted(mdata, quick, seed=1)
    adata = as_anndata(mdata)
    keys = {"atac": "peaks", "prot": "protein_counts"}
    sa.POISEVAE.setup_anndata(adata, obsm_keys=keys)
    other = sa.POISEVAE(adata, **SMALL, seed=1)
    other.train(**quick)
    assert other.modalities == NAMES
    np.testing.assert_array_equal(one.get_latent_representation(), other.get_latent_representation())
    np.testing.assert_allclose(
        other.get_latent_representation(mdata), one.get_latent_representation(), atol=1e-6
    )
    other.save(tmp_path / "model", save_anndata=True)
    loaded = sa.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_latent_representation(), other.get_latent_representation())
    assert loaded.get_variables("atac") == other.get_variables("atac")
    adata.obsm["peaks"] = adata.obsm["peaks"] * 2
    with pytest.raises(ValueError, match=r"changed in place.*`adata.obsm\['peaks'\]` holds other values"):
        other.get_latent_representation()


@pytest.mark.parametrize("likelihood", ["poisson", "nb_total", "detected", "nb", "background"])
@pytest.mark.parametrize("joint", ["poise", "gaussian", "product"])
def test_every_likelihood_of_sparse_counts(likelihood, joint, quick):
    adata = as_anndata(three(80))
    sa.POISEVAE.setup_anndata(adata, obsm_keys={"atac": "peaks"})
    model = sa.POISEVAE(adata, likelihoods={"atac": likelihood}, joint=joint, **SMALL)
    model.train(**quick)
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=2))
    found = model.predict("atac", from_="rna", n_samples=2)
    assert (found.to_numpy() >= 0).all()
    if likelihood in ("poisson", "nb_total"):  # shares of the usual total of peaks
        usual = np.exp(np.log(adata.obsm["peaks"].sum(1).A1).mean())
        np.testing.assert_allclose(found.sum(axis=1), usual, rtol=1e-3)
        totals = model.predict("atac", n_samples=2).sum(axis=1)
        np.testing.assert_allclose(totals, adata.obsm["peaks"].sum(1).A1, rtol=1e-3)
    if likelihood == "detected":
        assert found.to_numpy().max() <= 1


def test_categories_are_predicted_as_probabilities(quick):
    adata = as_anndata(three())
    adata.obsm["clone"].iloc[:20] = np.nan
    sa.POISEVAE.setup_anndata(adata, obsm_keys={"clone": "clone"})
    model = sa.POISEVAE(adata, likelihoods={"clone": "categorical"}, **SMALL)
    model.train(**{**quick, "max_epochs": 400})
    found = model.predict("clone", from_="rna")
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    truth = pd.get_dummies(three().obs["type"])
    assert roc_auc_score(truth.to_numpy()[:20].ravel(), found.to_numpy()[:20].ravel()) > 0.9
    made = model.generate(30)
    np.testing.assert_allclose(made.obsm["clone"].sum(axis=1), 1.0)
    with pytest.raises(ValueError, match=r"whose likelihood 'categorical' is not for counts"):
        model.predict("clone", scale="log1p")
    bad = adata.copy()
    bad.obsm["clone"].iloc[100] = 1.0
    sa.POISEVAE.setup_anndata(bad, obsm_keys={"clone": "clone"})
    with pytest.raises(
        ValueError, match=r"`likelihoods\['clone'\]='categorical'` needs one category per cell"
    ):
        sa.POISEVAE(bad, likelihoods={"clone": "categorical"}, **SMALL)


def test_three_learn_from_each_other(quick):
    """Peaks that were never measured in a cell follow its type, from its genes or its proteins."""
    whole = three(400)
    rows = {"rna": slice(0, 300), "atac": slice(0, 400), "prot": np.r_[0:200, 300:400]}
    hidden = part(whole, {**rows, "atac": slice(0, 200)})
    model = fitted(hidden, {**quick, "max_epochs": 200}, n_hidden=32)
    truth, seen = whole["atac"].X.toarray()[200:], whole["atac"].X.toarray()[:200]
    found = model.predict("atac").loc[whole.obs_names[200:]].to_numpy()
    level, types = seen.mean(0) + 0.01, whole.obs["type"].to_numpy()

    def likeness(values, truth, of):
        return np.corrcoef(values.mean(0) / level, truth[of].mean(0) / level)[0, 1]

    for side in (slice(0, 100), slice(100, 200)):  # genes only; proteins only
        for t in np.unique(types):
            of = types[200:][side] == t
            told = likeness(seen[types[:200] == t], truth[side], of)  # cells whose type one is told
            assert likeness(found[side][of], truth[side], of) > 0.9 * told > 0.3


def test_wrong_modalities(quick):
    mdata, adata = three(60), as_anndata(three(60))
    for given, message in (
        (("rna",), "expected 2 to 10"),
        (("rna", "rna"), "expected 2 to 10"),
        ("rna", "exp"),
    ):
        with pytest.raises(ValueError, match=message):
            sa.POISEVAE.setup_mudata(mdata, modalities=given)
    with pytest.raises(ValueError, match="`layers` has 2 entries for 3 modalities"):
        sa.POISEVAE.setup_mudata(mdata, layers=("counts", None))
    with pytest.raises(ValueError, match=r"`obsm_keys='atac'` is not known. Pass one of: prot"):
        sa.POISEVAE.setup_anndata(adata, modalities=("rna", "prot"), obsm_keys={"atac": "peaks"})
    with pytest.raises(KeyError, match=r"`obsm_keys='nothing'` is not in `adata.obsm`"):
        sa.POISEVAE.setup_anndata(adata, obsm_keys={"atac": "nothing"})
    half = adata.copy()
    half.obsm["peaks"] = half.obsm["peaks"] * 0.5
    with pytest.raises(ValueError, match=r"holds 0.5 in 60 cell\(s\).*raw counts"):
        sa.POISEVAE.setup_anndata(half, obsm_keys={"atac": "peaks"})
    words = adata.copy()
    words.obsm["peaks"] = words.obsm["peaks"].astype(complex)
    with pytest.raises(TypeError, match="is a sparse array of complex"):
        sa.POISEVAE.setup_anndata(words, obsm_keys={"atac": "peaks"})
    few = adata.copy()
    few.uns["peaks_names"] = few.uns["peaks_names"][:5]
    with pytest.raises(ValueError, match=r"columns, but `adata.uns\['peaks_names'\]` has 5 names"):
        sa.POISEVAE.setup_anndata(few, obsm_keys={"atac": "peaks"})
    nothing = adata.copy()
    nothing.obsm["peaks"] = nothing.obsm["peaks"] * 0
    sa.POISEVAE.setup_anndata(nothing, obsm_keys={"atac": "peaks"})
    with pytest.raises(ValueError, match="'atac' is zero throughout"):
        sa.POISEVAE(nothing, **SMALL)


def test_a_second_study_with_three(quick):
    model = fitted(three(100), quick)
    z = model.get_latent_representation()
    query = three(60, seed=5)
    query = mudata.MuData({"atac": query["atac"].copy(), "prot": query["prot"][:, [2, 0]].copy()})
    mapped = sa.POISEVAE.load_query_data(query, model)
    mapped.train(**quick)
    np.testing.assert_array_equal(mapped.get_latent_representation(three(100)), z)
    mapped.annotate()
    assert query.obsm["X_poisevae"].shape == (60, 9)
    assert np.isfinite(mapped.predict("rna")).all(axis=None)


@pytest.mark.parametrize("source", ["mixture", "prior"])
def test_new_cells_take_their_depth_from_cells_with_similar_codes(source, model):
    """Whose row is taken is, by a naive search, one of the five cells nearest to the new code."""
    with torch.inference_mode():
        codes, rows = _new_codes(model, 30, source, n_steps=20, seed=2)
    distance = np.linalg.norm(codes[:, None] - model.get_latent_representation()[None], axis=-1)
    assert (np.argsort(distance, 1)[:, :5] == rows[:, None]).any(1).all()
