"""POISEVAE for its user: MuData, what is missing, predictions, the prior."""

from __future__ import annotations

from functools import partial

import anndata as ad
import matplotlib as mpl
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scalloy as sa
from scalloy import metrics
from scalloy.kernels.csr import log_normalise
from scalloy.models._core.cross_modal import only

mpl.use("Agg")
SMALL = {"n_hidden": 16, "n_latent": 3, "n_chains": 32}


def pair(n_rna=slice(None), n_prot=slice(None)):
    """A MuData of simulated cells, of which some may lack a modality."""
    whole = sa.datasets.simulate(200, 40, seed=1, n_proteins=3)
    proteins = whole.obsm["protein_counts"]
    prot = ad.AnnData(proteins.to_numpy(np.float32), var=pd.DataFrame(index=proteins.columns))
    prot.obs_names = whole.obs_names
    rna = ad.AnnData(whole.X, obs=whole.obs[["batch"]].copy(), var=pd.DataFrame(index=whole.var_names))
    prot.obs["batch"] = rna.obs["batch"]
    return mudata.MuData({"rna": rna[n_rna].copy(), "prot": prot[n_prot].copy()})


@pytest.fixture
def trained(cells, quick):
    sa.POISEVAE.setup_anndata(cells, protein_obsm_key="protein_counts", batch_key="batch")
    model = sa.POISEVAE(cells, **SMALL)
    model.train(**quick)
    return model


def test_mudata_of_cells_that_lack_a_modality(quick, tmp_path):
    mdata = pair(slice(0, 150), slice(50, 200))
    sa.POISEVAE.setup_mudata(mdata, batch_key="batch")
    model = sa.POISEVAE(mdata, **SMALL)
    model.train(**quick)
    measured = np.concatenate([b.measured.numpy() for b in batches(model)])
    names = model.adata.obs_names
    assert (measured[:, 0] == names.isin(mdata["rna"].obs_names)).all()
    assert (measured[:, 1] == names.isin(mdata["prot"].obs_names)).all()
    np.testing.assert_array_equal(model.adata[mdata["rna"].obs_names].X.toarray(), mdata["rna"].X.toarray())
    np.testing.assert_array_equal(model.adata.obsm["prot"].loc[mdata["prot"].obs_names], mdata["prot"].X)
    before = set(mdata.obsm)
    model.annotate()
    new = {"X_poisevae", "X_poisevae_rna", "X_poisevae_prot", "poisevae_prot"}
    assert set(mdata.obsm) - before == new
    completed = mdata.obsm["poisevae_prot"]
    assert completed.shape == (200, 3)
    assert (np.asarray(completed) > 0).all()
    model.save(tmp_path / "model")
    z = model.get_latent_representation()
    loaded = sa.load(tmp_path / "model", mdata)
    np.testing.assert_array_equal(loaded.get_latent_representation(), z)
    loaded.annotate(key_added="again")
    np.testing.assert_array_equal(mdata.obsm["X_again"], z)
    alone = sa.load(tmp_path / "model")
    np.testing.assert_allclose(alone.get_latent_representation(mdata), z, atol=1e-6)
    rna_only = mudata.MuData({"rna": mdata["rna"].copy()})
    assert alone.predict("prot", adata=rna_only).shape == (150, 3)
    prot_only = mudata.MuData({"prot": mdata["prot"].copy()})
    assert alone.predict("rna", adata=prot_only).shape == (150, 40)


def without_rows(x, rows):
    x = x.toarray()
    x[rows] = 0
    return sp.csr_matrix(x)


def batches(model, adata=None):

    return list(model.reader.batches(adata))


def test_mudata_without_set_up_and_with_layers(quick):
    mdata = pair()
    model = sa.POISEVAE(mdata, **SMALL)
    assert model.modalities == ("rna", "prot")
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    mdata["rna"].X = mdata["rna"].X * 0.5
    sa.POISEVAE.setup_mudata(mdata, layers=("counts", None))
    np.testing.assert_array_equal(
        sa.POISEVAE(mdata, **SMALL).adata.X.toarray(), mdata["rna"].layers["counts"].toarray()
    )


@pytest.mark.parametrize("lacks", [False, True])
def test_numeric_columns_of_a_modality_are_numbers(lacks, quick):
    """The same model as with the columns in the MuData's own table, to the last bit."""
    mdata = pair(slice(0, 150), slice(50, 200)) if lacks else pair()
    rng = np.random.default_rng(0)
    values = pd.DataFrame(
        {"size": rng.uniform(50, 90, mdata.n_obs), "age": rng.integers(20, 60, mdata.n_obs)},
        index=mdata.obs_names,
    )
    lane = pd.Series(rng.integers(0, 2, mdata.n_obs), index=mdata.obs_names)
    known = {"size_factor_key": "size", "continuous_covariate_keys": ["age"], "batch_key": "lane"}
    codes = []
    for own in (True, False):
        some = mdata.copy()
        for table in [some.obs] if own else [m.obs for m in some.mod.values()]:
            table[["size", "age"]] = values.loc[table.index]
            table["lane"] = lane.loc[table.index]
        sa.POISEVAE.setup_mudata(some, **known)
        model = sa.POISEVAE(some, **SMALL)
        assert model.get_state_registry("batch")["categorical_mapping"].tolist() == [0, 1]
        model.train(**quick)
        codes.append(model.get_latent_representation())
        new = some[:40].copy()
        np.testing.assert_allclose(model.get_latent_representation(new), codes[-1][:40], atol=1e-5)
    np.testing.assert_array_equal(*codes)


def test_of_a_column_in_both_modalities_the_first_is_taken():
    """And the other one's where the first was not measured."""
    mdata = pair(slice(0, 150), slice(50, 200))
    mdata["rna"].obs["site"], mdata["prot"].obs["site"] = "of rna", "of prot"
    sa.POISEVAE.setup_mudata(mdata, batch_key="site")
    found = sa.POISEVAE(mdata, **SMALL).adata.obs["site"]
    measured = found.index.isin(mdata["rna"].obs_names)
    assert (found[measured] == "of rna").all()
    assert (found[~measured] == "of prot").all()
    assert (~measured).sum() == 50


def test_a_copy_of_a_mudata_is_not_set_up(quick, caplog):
    mdata = pair()
    sa.POISEVAE.setup_mudata(mdata, batch_key="batch")
    model = sa.POISEVAE(mdata, **SMALL)
    assert model.summary_stats.n_batch == 2
    some = mdata[:120].copy()
    caplog.clear()
    other = sa.POISEVAE(some, **SMALL)
    assert "without `setup_mudata`" in caplog.text
    assert other.adata.n_obs == 120
    assert other.summary_stats.n_batch == 1
    assert model.get_latent_representation().shape == (200, 6)


def test_code_of_a_modality_that_was_not_measured_is_the_expected_one(cells, quick):
    sa.POISEVAE.setup_anndata(cells)
    model = sa.POISEVAE(cells, joint="gaussian", n_hidden=16, n_latent=3)
    model.train(**quick)
    model.module.joint.coupling.raw.data = torch.diag(torch.tensor([3.0, -1.0, 0.5]))
    rna = cells.copy()
    del rna.obsm["protein_counts"]
    code = {k: model.get_latent_representation(rna, which=k) for k in ("rna", "prot")}
    joint = np.c_[code["rna"], code["prot"]]
    np.testing.assert_allclose(model.get_latent_representation(rna), joint, atol=1e-6)
    for which, expected in code.items():
        draw = partial(model.get_latent_representation, rna, give_mean=False, which=which)
        sampled = [draw(seed=seed) for seed in range(400)]
        np.testing.assert_allclose(np.mean(sampled, 0), expected, atol=0.3)


@pytest.mark.parametrize("side", [0, 1])
def test_expected_logarithms_are_the_means_of_sampled_ones(trained, side):
    modality, other = trained.modalities[side], trained.modalities[1 - side]
    made = trained.predict(modality, from_=other, scale="log1p", n_samples=200, seed=1)
    total, n = 0.0, 600
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(n):
            parts = []
            for batch in batches(trained):
                seen = only(batch, [1 - side])
                p = trained.module.decode_one(side, seen, trained.module.draw(trained.module.encode(seen)))
                x = p.sample()
                parts.append(log_normalise(x) if side == 0 else torch.log1p(x))
            total = total + torch.cat(parts)
    sampled = (total / n).numpy()
    np.testing.assert_allclose(made.to_numpy().mean(0), sampled.mean(0), rtol=0.03, atol=0.03)
    assert np.corrcoef(made.to_numpy().ravel(), sampled.ravel())[0, 1] > 0.98


def test_data_that_are_no_counts(quick):
    rng = np.random.default_rng(0)
    adata = ad.AnnData(rng.normal(size=(100, 6)).astype(np.float32))
    adata.obsm["protein_b"] = pd.DataFrame(rng.normal(size=(100, 4)), index=adata.obs_names)
    sa.POISEVAE.setup_anndata(adata, allow_non_counts=True)
    settings = {"gene_likelihood": "normal", "protein_likelihood": "normal", "hidden_rate": 0.0}
    model = sa.POISEVAE(adata, **settings, **SMALL)
    assert all((b.measured == 1).all() for b in batches(model))
    model.train(**quick)
    half = adata.copy()
    half.X = half.X * np.sign(half.X.sum(1, keepdims=True))  # totals are positive now
    same = model.predict("prot", from_="prot", adata=half, n_samples=3)
    pd.testing.assert_frame_equal(same, model.predict("prot", from_="prot", n_samples=3))


SECOND = {
    "background": lambda rng: rng.poisson(5.0, (120, 4)).astype(float),
    "nb": lambda rng: rng.poisson(5.0, (120, 4)).astype(float),
    "normal": lambda rng: rng.normal(-3.0, 2.0, (120, 4)),
    "bernoulli": lambda rng: rng.uniform(size=(120, 4)),
}
FIRST = {
    "nb": lambda rng: rng.poisson(3.0, (120, 6)) + 1.0,
    "zinb": lambda rng: rng.poisson(3.0, (120, 6)) + 1.0,
    "gaussian": lambda rng: rng.poisson(3.0, (120, 6)) + 1.0,
    "bernoulli": lambda rng: rng.poisson(1.0, (120, 6)) + np.eye(120, 6),
    "normal": lambda rng: rng.normal(-3.0, 2.0, (120, 6)),
    "bernoulli_given": lambda rng: rng.uniform(0.1, 1.0, (120, 6)),
}
NO_LOGARITHM = ("normal", "bernoulli", "bernoulli_given")


@pytest.fixture(scope="module")
def of_likelihoods():
    """Models by their two likelihoods; all cells are decoded alike, with logits or means of -1."""

    def make(first, second):
        rng = np.random.default_rng(0)
        adata = ad.AnnData(FIRST[first](rng).astype(np.float32))
        adata.obsm["protein_b"] = pd.DataFrame(SECOND[second](rng), index=adata.obs_names)
        sa.POISEVAE.setup_anndata(adata, allow_non_counts=True)
        model = sa.POISEVAE(adata, gene_likelihood=first, protein_likelihood=second, **SMALL)
        model.is_trained_ = True
        for likelihood, kind in ((model.module.likelihood, first), (model.module.likelihoods[1], second)):
            if kind in (*NO_LOGARITHM, "gaussian"):
                likelihood.head.weight.data.zero_()
                likelihood.head.bias.data.fill_(2.0 if kind == "gaussian" else -1.0)
        return model

    return make


PAIRS = [*[("nb", k) for k in SECOND], *[(k, "nb") for k in FIRST if k != "nb"]]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_only_counts_have_logarithms(first, second, of_likelihoods):
    """All is finite; continuous data and probabilities are as they are, and their logarithm is refused."""
    model = of_likelihoods(first, second)
    for side, (name, kind) in enumerate((("rna", first), ("prot", second))):
        parts = model.predict(name, n_samples=40, interval=0.8)
        along = model.get_cross_traversal(0, of=model.modalities[1 - side]).to_numpy()
        assert all(np.isfinite(p.to_numpy()).all() for p in parts)
        assert np.isfinite(along).all()
        if kind in NO_LOGARITHM:
            exact = -1.0 if kind == "normal" else 1 / (1 + np.e)
            np.testing.assert_allclose(parts[0], exact, rtol=1e-5)
            np.testing.assert_allclose(along, exact, rtol=1e-5)
            message = f"`scale='log1p'` has no meaning for '{name}', whose likelihood '{kind}' is not"
            with pytest.raises(ValueError, match=message):
                model.predict(name, scale="log1p", n_samples=3)
            continue
        logged = model.predict(name, scale="log1p", n_samples=40, interval=0.8)
        assert all(np.isfinite(p.to_numpy()).all() for p in logged)
        assert (logged[1].to_numpy() <= logged[2].to_numpy()).all()
    if first == "gaussian":  # counts are expected of data that were logged, and quantiles are of counts too
        totals = np.asarray(model.adata.X).sum(1, keepdims=True)
        sigma = float(model.module.likelihood.log_sigma[0].detach().exp())
        mean, low, high = model.predict("rna", n_samples=400, interval=0.8)
        np.testing.assert_allclose(mean, np.broadcast_to(np.expm1(2.0) / 1e4 * totals, mean.shape), rtol=1e-4)
        for frame, z in ((low, -1.2816), (high, 1.2816)):
            np.testing.assert_allclose(
                (frame / totals * 1e4).mean(), np.expm1(max(2.0 + z * sigma, 0.0)), rtol=0.1
            )
        logged = model.predict("rna", scale="log1p", n_samples=3)
        np.testing.assert_allclose(logged, 2.0, rtol=1e-5)


@pytest.mark.parametrize("first", FIRST)
def test_pictures_say_whether_expression_is_logged(first, of_likelihoods):
    label = sa.pl.traversal(of_likelihoods(first, "nb"), 0, n_genes=2).get_ylabel()
    assert ("log1p" in label) == (first not in NO_LOGARITHM)


def test_rna_alone_equals_proteins_that_are_missing(trained, cells):
    rna = cells.copy()
    del rna.obsm["protein_counts"]
    missing = cells.copy()
    missing.obsm["protein_counts"] = missing.obsm["protein_counts"] * np.nan
    a, b = (trained.get_latent_representation(c) for c in (rna, missing))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - trained.get_latent_representation()).max() > 1e-3
    from_rna = trained.predict("prot", from_="rna", n_samples=5)
    pd.testing.assert_frame_equal(from_rna, trained.predict("prot", adata=rna, n_samples=5))
    assert "protein_counts" not in rna.obsm


def test_a_cell_without_counts_is_one_whose_rna_was_not_measured(cells, quick):
    cells.X = without_rows(cells.X, slice(0, 20))
    sa.POISEVAE.setup_anndata(cells)
    model = sa.POISEVAE(cells, **SMALL)
    model.train(**quick)
    usual = np.exp(np.log(np.asarray(cells[20:].X.sum(1))).mean())
    predicted = model.predict("rna", n_samples=3)
    np.testing.assert_allclose(predicted.iloc[:20].sum(axis=1), usual, rtol=1e-3)
    np.testing.assert_allclose(
        predicted.iloc[20:].sum(axis=1), np.asarray(cells[20:].X.sum(1)).ravel(), rtol=1e-3
    )


def test_intervals_scales_and_seeds(trained, cells):
    mean, low, high = trained.predict("prot", from_="rna", interval=0.9)
    assert (low.to_numpy() <= high.to_numpy()).all()
    assert list(mean.columns) == [f"protein_{i}" for i in range(3)]
    wide = trained.predict("prot", from_="rna", interval=0.99)
    assert (wide[2].to_numpy() >= high.to_numpy()).all()
    again = trained.predict("prot", from_="rna", interval=0.9)[0]
    pd.testing.assert_frame_equal(mean, again)
    assert not mean.equals(trained.predict("prot", from_="rna", interval=0.9, seed=1)[0])
    logged = trained.predict("prot", from_="rna", scale="log1p", n_samples=400)
    assert (logged.to_numpy() < np.log1p(mean.to_numpy()) + 0.2).all()  # Jensen
    state = torch.get_rng_state()
    trained.predict("rna", from_="prot", n_samples=2)
    assert torch.equal(state, torch.get_rng_state())
    moved = trained.predict("prot", transform_batch="batch_1", n_samples=3)
    assert (moved.to_numpy() != trained.predict("prot", n_samples=3).to_numpy()).any()
    some = trained.predict("prot", indices=[5, 3], n_samples=3)
    assert list(some.index) == ["cell_5", "cell_3"]


def test_bounds_of_logarithms_are_of_counts_on_the_scale_of_the_mean(trained):
    """With one sample both bounds are that sample: whole proteins, and genes that add up to 10,000."""
    _, low, high = trained.predict("rna", scale="log1p", n_samples=1, interval=0.5)
    pd.testing.assert_frame_equal(low, high)
    np.testing.assert_allclose(np.expm1(low.to_numpy(float)).sum(1), 1e4, rtol=1e-4)
    _, low, high = trained.predict("prot", scale="log1p", n_samples=1, interval=0.5)
    pd.testing.assert_frame_equal(low, high)
    counts = np.expm1(low.to_numpy(float))
    np.testing.assert_allclose(counts, counts.round(), rtol=1e-4, atol=1e-4)
    assert counts.sum(1).std() > 1


def test_the_prior_and_what_is_drawn_from_it(trained):
    frame = trained.get_coupling()
    assert list(frame.index) == ["rna_0", "rna_1", "rna_2", "rna_0^2", "rna_1^2", "rna_2^2"]
    assert (frame.iloc[3:, 3:] < 0).all(axis=None)
    value, se = trained.get_log_partition()
    assert value == pytest.approx(float(trained.module.joint.coupling.log_partition()), abs=0.05)
    assert 0 < se < 0.05
    mixing = trained.get_mixing(n_sweeps=100)
    assert mixing["r_hat"].between(0.9, 1.3).all()
    assert mixing["autocorrelation"].abs().max() < 1
    made = trained.generate(50, seed=1)
    assert made.shape == (50, 40)
    assert made.obsm["prot"].shape == (50, 3)
    assert made.obsm["X_poisevae"].shape == (50, 6)
    assert (np.round(made.X) == made.X).all()
    np.testing.assert_array_equal(made.X, trained.generate(50, seed=1).X)
    rows = trained.get_cross_traversal(1, of="rna")
    assert list(rows.columns) == ["protein_0", "protein_1", "protein_2"]
    assert len(rows) == 7
    assert trained.get_cross_traversal(0, of="prot", values=[-1.0, 1.0]).shape == (2, 40)
    assert trained.get_traversal(0).shape == (7, 40)
    ax = sa.pl.coupling(trained)
    assert ax.images[0].get_array().shape == (6, 6)


@pytest.mark.slow
def test_missing_proteins_of_a_batch_are_predicted_by_the_others(quick):
    adata = sa.datasets.citeseq()[:1200].copy()
    truth = np.log1p(adata.obsm["protein_counts"].to_numpy(float))
    lacks = np.arange(1200) % 2 == 1
    columns = ["CD4", "CD14", "CD19"]
    adata.obsm["protein_counts"] = adata.obsm["protein_counts"].astype(float)
    adata.obsm["protein_counts"].loc[lacks, columns] = np.nan
    sa.POISEVAE.setup_anndata(adata)
    model = sa.POISEVAE(adata, n_hidden=64)
    model.train(**{**quick, "max_epochs": 25})
    predicted = model.predict("prot", indices=lacks, scale="log1p")
    at = [adata.obsm["protein_counts"].columns.get_loc(c) for c in columns]
    r = metrics.variable_correlation(predicted[columns].to_numpy(), truth[lacks][:, at])
    assert r.min() > 0.6


@pytest.mark.slow
def test_cross_generation_needs_the_coupling():
    from scalloy.benchmark.coupling import classes

    found = classes(("poise", "independent"), seeds=[0], max_epochs=60).set_index("joint")
    sides = ["rna_to_prot", "prot_to_rna"]
    assert (found.loc["poise", sides] > 0.75).all()
    assert (found.loc["independent", sides] < 0.3).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"joint": "poisson"}, "`joint='poisson'` is not known"),
        ({"protein_likelihood": "nbb"}, "`protein_likelihood='nbb'` is not known. .* Did you mean 'nb'"),
        ({"kappa": 1.0}, "`kappa=1.0` is a share"),
        ({"hide": (0.6, 0.5)}, "`hide=1.1` is a share"),
        ({"hide": (-0.2, 0.5)}, "`hide=-0.2` is a share"),
        ({"hide": (0.2, 0.2, 0.2)}, "has 3 shares for 2 modalities: rna, prot"),
        ({"likelihoods": {"atac": "poisson"}}, "`likelihoods='atac'` is not known. Pass one of: rna, prot"),
        ({"likelihoods": {"prot": "nbb"}}, r"`likelihoods\['prot'\]='nbb'` is not known"),
        ({"likelihoods": {"prot": "categorical"}}, "needs one category per cell"),
        ({"chains": "new"}, "`chains='new'` is not known"),
        ({"protein_likelihood": "bernoulli"}, "`protein_likelihood='bernoulli'` needs values within"),
    ],
)
def test_wrong_arguments(cells, arguments, message):
    sa.POISEVAE.setup_anndata(cells)
    with pytest.raises(ValueError, match=message):
        sa.POISEVAE(cells, **{**SMALL, **arguments})


def test_wrong_data(cells):
    with pytest.raises(
        KeyError, match=r"`protein_obsm_key='adt'` is not in `adata.obsm`. It holds: protein_counts"
    ):
        sa.POISEVAE.setup_anndata(cells, protein_obsm_key="adt")
    for value, message in ((-1.0, "raw counts"), (0.5, "raw counts"), (np.inf, "raw counts")):
        bad = cells.copy()
        bad.obsm["protein_counts"] = bad.obsm["protein_counts"].astype(float)
        bad.obsm["protein_counts"].iloc[3, 1] = value
        with pytest.raises(ValueError, match=rf"holds {value:.4g} in 1 cell\(s\) \(cell_3\).*{message}"):
            sa.POISEVAE.setup_anndata(bad)
    words = cells.copy()
    words.obsm["protein_counts"] = words.obsm["protein_counts"].astype(str)
    with pytest.raises(TypeError, match="Expected a DataFrame or an array of numbers"):
        sa.POISEVAE.setup_anndata(words)
    nothing = cells.copy()
    nothing.obsm["protein_counts"] = nothing.obsm["protein_counts"] * np.nan
    sa.POISEVAE.setup_anndata(nothing)
    with pytest.raises(ValueError, match="'prot' is NaN throughout"):
        sa.POISEVAE(nothing)
    neither = cells.copy()
    neither.X = without_rows(neither.X, 0)
    neither.obsm["protein_counts"] = neither.obsm["protein_counts"].astype(float)
    neither.obsm["protein_counts"].iloc[0] = np.nan
    with pytest.raises(ValueError, match=r"1 cell\(s\) have no counts .*cell_0"):
        sa.POISEVAE.setup_anndata(neither)
    with pytest.raises(TypeError, match="Pass a MuData"):
        sa.POISEVAE.setup_mudata(cells)
    with pytest.raises(KeyError, match="names 'atac', but the MuData has rna, prot"):
        sa.POISEVAE.setup_mudata(pair(), modalities=("rna", "atac"))
    twice = pair()
    twice.mod["prot"].obs_names = ["same"] * 200
    with pytest.raises(ValueError, match="more than once in `mdata\\['prot'\\]`"):
        sa.POISEVAE.setup_mudata(twice)


def test_wrong_questions(trained, cells, quick):
    with pytest.raises(ValueError, match=r"`modality='atac'` is not known. Pass one of: rna, prot"):
        trained.predict("atac")
    with pytest.raises(ValueError, match="`interval=90` is a probability"):
        trained.predict("prot", interval=90)
    with pytest.raises(ValueError, match="`which='w'` is not known"):
        trained.get_latent_representation(which="w")
    with pytest.raises(ValueError, match="`latent=9` is not one of the 3 latents"):
        trained.get_cross_traversal(9, of="rna")
    shared = sa.POISEVAE(cells, joint="product", **SMALL)
    with pytest.raises(ValueError, match="share one code, which nothing couples"):
        shared.get_coupling()


def test_a_second_study_as_mudata(quick):
    """Its proteins in another order, one of them never measured there."""
    mdata = pair(slice(0, 100), slice(0, 100))
    sa.POISEVAE.setup_mudata(mdata, batch_key="batch")
    model = sa.POISEVAE(mdata, **SMALL)
    model.train(**quick)
    z = model.get_latent_representation()
    query = pair(slice(100, 200), slice(120, 200))
    for name in ("rna", "prot"):
        query[name].obs["batch"] = "new"
    query = mudata.MuData({"rna": query["rna"].copy(), "prot": query["prot"][:, [2, 0]].copy()})
    mapped = sa.POISEVAE.load_query_data(query, model)
    proteins = mapped.adata.obsm["prot"]
    assert list(proteins.columns) == list(model.adata.obsm["prot"].columns)
    assert proteins.iloc[:, 1].isna().all()
    mapped.train(**quick)
    np.testing.assert_array_equal(mapped.get_latent_representation(mdata), z)
    mapped.annotate()
    assert query.obsm["X_poisevae"].shape == (100, 6)
    assert np.isfinite(mapped.predict("prot")).all(axis=None)
