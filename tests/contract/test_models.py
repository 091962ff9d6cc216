"""What every model must do for its user. A new model adds one line to ``MODELS``."""

from __future__ import annotations

import inspect
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import scvi
import torch

import scalloy as sa
from scalloy import _keys
from scalloy.models._core import annotations

SMALL = {"n_hidden": 16, "n_latent": 4}
MODELS = {
    "AE": lambda adata, **kw: sa.AE(adata, **SMALL, **kw),
    "AE_nb": lambda adata, **kw: sa.AE(adata, gene_likelihood="nb", **SMALL, **kw),
    "VAE": lambda adata, **kw: sa.VAE(adata, **SMALL, **kw),
    "VAE_zinb_learned": lambda adata, **kw: sa.VAE(
        adata, gene_likelihood="zinb", library="learned", dispersion="gene-batch", **SMALL, **kw
    ),
    "VAE_free": lambda adata, **kw: sa.VAE(adata, library="none", n_layers=2, norm="batch", **SMALL, **kw),
    "BetaVAE": lambda adata, **kw: sa.BetaVAE(adata, beta=3.0, **SMALL, **kw),
    "VAE_pc": lambda adata, **kw: sa.VAE(adata, k_max=3, **SMALL, **kw),
    "GMVAE": lambda adata, **kw: sa.GMVAE(adata, n_clusters=3, **SMALL, **kw),
    "GMVAE_pc_learned": lambda adata, **kw: sa.GMVAE(
        adata,
        n_clusters=4,
        weights=[0.1, 0.4, 0.2, 0.3],
        gene_likelihood="poisson",
        k_max=2,
        library="learned",
        encode_covariates=True,
        n_decoded=4,
        norm="batch",
        **SMALL,
        **kw,
    ),
    "BetaVSC": lambda adata, **kw: sa.BetaVSC(adata, **SMALL, **kw),
    "BetaVSC_pseudo": lambda adata, **kw: sa.BetaVSC(
        adata, prior="pseudo", n_pseudo=5, decoder="mlp", slab_warmup=0.5, beta=2.0, **SMALL, **kw
    ),
    "POISEVAE": lambda adata, **kw: sa.POISEVAE(adata, n_chains=32, **SMALL, **kw),
    "POISEVAE_product": lambda adata, **kw: sa.POISEVAE(
        adata, joint="product", protein_likelihood="nb", gene_likelihood="zinb", **SMALL, **kw
    ),
    "TRVAE": lambda adata, **kw: sa.TRVAE(adata, **SMALL, **kw),
    "CGMDVAE": lambda adata, **kw: sa.CGMDVAE(adata, **SMALL, **kw),
    "CGMDVAE_full": lambda adata, **kw: sa.CGMDVAE(
        adata, n_w=2, w_prior="condition", conditioning="full", assignment="amortised", **SMALL, **kw
    ),
}
every = pytest.mark.parametrize("name", MODELS)
variants = [pytest.param(name, marks=pytest.mark.slow) if "_" in name else name for name in MODELS]
each_class = pytest.mark.parametrize("name", variants)  # and in the long run every model


def width(model):
    """Of the code: two of them are side by side."""
    return 8 if model.init_params_["non_kwargs"].get("joint") == "poise" else 4


def model_keys(key):
    named = (_keys.cluster, _keys.cluster_probability, _keys.probabilities, _keys.active, _keys.sparsity)
    of_pairs = {_keys.latent(f"{key}_rna"), _keys.latent(f"{key}_prot"), _keys.completed(key, "prot")}
    return of_pairs | {f(key) for f in (*named, _keys.label, _keys.label_probability, _keys.unknown)}


def class_of(name):
    return getattr(sa, name.split("_")[0])


def setup(name, adata):
    class_of(name).setup_anndata(
        adata,
        batch_key="batch",
        labels_key="cluster",
        categorical_covariate_keys=["lane"],
        continuous_covariate_keys=["score"],
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Where the trained model of each kind is kept, once there is one."""
    return tmp_path_factory.mktemp("trained"), set()


@pytest.fixture(params=MODELS)
def trained(request, cells, quick, folders):
    """A trained model with cells of its own: of each kind one is trained, and loaded for every test."""
    (folder, made), name = folders, request.param
    if name not in made:
        own = cells.copy()
        setup(name, own)
        model = MODELS[name](own)
        model.train(**quick)
        model.save(folder / name)
        made.add(name)
    return class_of(name).load(folder / name, cells)


@each_class
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_hidden": 2.5}, "`n_hidden=2.5` must be above zero: pass a whole number"),
        ({"n_latent": 0}, "`n_latent=0` must be above zero"),
        ({"n_layers": -1}, "`n_layers=-1` must be above zero"),
        ({"dropout_rate": 1}, "`dropout_rate=1` is a share"),
    ],
)
def test_wrong_settings_of_networks_are_refused(name, wrong, message, cells):
    setup(name, cells)
    with pytest.raises(ValueError, match=message):
        class_of(name)(cells, **wrong)


def test_getters(trained, cells):
    z = trained.get_latent_representation()
    assert z.shape == (200, width(trained))
    assert np.isfinite(z).all()
    np.testing.assert_array_equal(z, trained.get_latent_representation())
    np.testing.assert_allclose(trained.get_latent_representation(batch_size=7), z, rtol=1e-4, atol=1e-5)
    order = [30, 5, 17]
    np.testing.assert_allclose(trained.get_latent_representation(indices=order), z[order], atol=1e-5)
    mean, variance = trained.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, z)
    assert (variance >= 0).all()
    expression = trained.get_normalized_expression(gene_list=["gene_3", "gene_1"], indices=order)
    assert list(expression.columns) == ["gene_3", "gene_1"]
    assert list(expression.index) == [f"cell_{i}" for i in order]
    assert trained.get_normalized_expression(n_samples=3, return_mean=False).shape == (3, 200, 40)
    assert trained.get_normalized_expression(n_samples_overall=11, return_numpy=True).shape == (11, 40)
    moved = trained.get_normalized_expression(transform_batch="batch_1", return_numpy=True)
    both = trained.get_normalized_expression(transform_batch=["batch_0", "batch_1"], return_numpy=True)
    assert moved.shape == both.shape == (200, 40)
    assert trained.get_elbo() == pytest.approx(trained.get_elbo(return_mean=False).mean(), rel=0.05)
    assert trained.get_reconstruction_error()["reconstruction_loss"] > 0
    sample = trained.posterior_predictive_sample(n_samples=2, gene_list=["gene_3"])
    assert sample.shape == (200, 1, 2)
    assert trained.is_trained_
    with pytest.raises(KeyError, match="which the model does not know: nope"):
        trained.get_normalized_expression(gene_list=["nope"])
    with pytest.raises(ValueError, match="`transform_batch='batch_9'` is not known"):
        trained.get_normalized_expression(transform_batch="batch_9")


def test_counts_add_up(trained):
    if trained.init_params_["non_kwargs"]["gene_likelihood"] in {"nb", "zinb"}:
        total = trained.get_normalized_expression(library_size=1e4).sum(axis=1)
        np.testing.assert_allclose(total, 1e4, rtol=1e-3)


def test_marginal_likelihood(trained):
    if isinstance(trained, sa.AE):
        with pytest.raises(NotImplementedError, match="AE has no prior"):
            trained.get_marginal_ll()
        return
    one, many = (trained.get_marginal_ll(indices=range(200), n_mc_samples=k) for k in (1, 40))
    assert one < many
    left_out = set(trained.validation_indices)
    assert set(trained.held_out()) == left_out
    found = []
    for shape in ({"return_mean": False}, {}, {"return_se": True}):
        torch.manual_seed(1)
        found.append(trained.get_marginal_ll(n_mc_samples=3, **shape))
    values, mean, with_error = found
    assert values.shape == (len(left_out),)
    assert with_error == pytest.approx((mean, values.std(ddof=1) / len(values) ** 0.5))
    assert mean == pytest.approx(values.mean())
    with pytest.raises(ValueError, match="at least 2 cells"):
        trained.get_marginal_ll(indices=[3], n_mc_samples=2, return_se=True)


def test_differential_expression(trained, cells):
    table = trained.differential_expression(
        groupby="cluster", group1="cluster_0", group2="cluster_1", mode="change", silent=True
    )
    assert len(table) == 40
    assert {"proba_de", "lfc_mean"} <= set(table.columns)
    assert "_scvi_temp_de" not in cells.obs


def test_annotate_writes_documented_keys_only(trained, cells, quick):
    before = cells.copy()
    assert trained.annotate(cells, key_added="mine", copy=True).obsm["X_mine"].shape == (200, width(trained))
    assert "X_mine" not in cells.obsm
    trained.annotate()
    key = trained.name
    assert _keys.latent(key) in cells.obsm
    assert cells.uns[key]["settings"]["n_latent"] == 4
    for attribute in ("obs", "obsm", "uns", "layers", "var"):
        new = set(getattr(cells, attribute)) - set(getattr(before, attribute))
        assert new <= {_keys.latent(key), _keys.settings(key), *model_keys(key)}
    assert (cells.X != before.X).nnz == 0
    sc.pp.neighbors(cells, use_rep=_keys.latent(key))
    assert "connectivities" in cells.obsp


def test_setup_writes_documented_keys_only(cells):
    before = cells.copy()
    setup("VAE", cells)
    assert set(cells.obs) - set(before.obs) <= set(_keys.SETUP_OBS)
    assert set(cells.obsm) - set(before.obsm) <= set(_keys.SETUP_OBSM)
    assert set(cells.uns) - set(before.uns) <= set(_keys.SETUP_UNS)
    assert set(cells.var) == set(before.var)


def test_save_and_load(trained, cells, tmp_path, quick):
    z = trained.get_latent_representation()
    trained.save(tmp_path / "model")
    first, second = sorted(p.name for p in (tmp_path / "model").iterdir())
    assert (first, second[:8], second[-12:]) == ("model.json", "weights-", ".safetensors")
    with pytest.raises(FileExistsError, match="Pass `overwrite=True`"):
        trained.save(tmp_path / "model")
    plain = cells.copy()
    for loaded in (sa.load(tmp_path / "model", plain), type(trained).load(tmp_path / "model")):
        assert type(loaded) is type(trained)
        np.testing.assert_array_equal(loaded.get_latent_representation(plain), z)
        pd.testing.assert_series_equal(
            loaded.history["elbo_train"].iloc[:, 0].astype(float),
            trained.history["elbo_train"].iloc[:, 0].astype(float),
        )
        np.testing.assert_array_equal(loaded.train_indices, trained.train_indices)
    with pytest.raises(ValueError, match="Pass `adata=`"):
        loaded.get_latent_representation()
    turned = sa.load(tmp_path / "model", cells[:, ::-1].copy())  # genes are found by their names
    np.testing.assert_allclose(turned.get_latent_representation(), z, atol=1e-6)
    there = sa.load(tmp_path / "model", plain, accelerator="cpu")
    assert there.device.type == "cpu"
    np.testing.assert_allclose(there.get_latent_representation(), z, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="single device"):
        sa.load(tmp_path / "model", plain, accelerator="cpu", device="0,1")
    with pytest.raises(ValueError, match="lacks 3 of the 40 genes"):
        sa.load(tmp_path / "model", cells[:, 3:].copy())
    loaded.get_latent_representation(cells[:1])  # one cell, of a model without cells
    with pytest.raises(ValueError, match="Pass `adata=` to `load`"):
        loaded.train(**quick)
    other = sa.VAE if isinstance(trained, sa.AE) else sa.AE
    with pytest.raises(ValueError, match=f"holds a {type(trained).__name__}. Call"):
        other.load(tmp_path / "model")
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(ValueError, match="file format 99"):
        type(trained).load(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"holds no model.json"):
        sa.load(tmp_path)


def test_save_with_cells(trained, tmp_path):
    trained.save(tmp_path / "m", save_anndata=True)
    loaded = sa.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.get_latent_representation(), trained.get_latent_representation())


def test_new_cells_views_and_copies(trained, cells):
    """Slices, views, another order and other formats give the same numbers; the object is left alone."""
    z = trained.get_latent_representation()
    view = cells[[4, 190, 7]]
    np.testing.assert_allclose(trained.get_latent_representation(view), z[[4, 190, 7]], atol=1e-5)
    assert view.is_view
    one = cells[3].copy()
    np.testing.assert_allclose(trained.get_latent_representation(one), z[[3]], atol=1e-5)
    turned = cells[::-1].copy()
    turned.X = sp.csc_matrix(turned.X).astype(np.int64)
    np.testing.assert_allclose(trained.get_latent_representation(turned), z[::-1], atol=1e-5)
    obs, obsm = (
        cells.obs[["batch", "cluster", "lane", "score"]],
        {"protein_counts": cells.obsm["protein_counts"]},
    )
    plain = ad.AnnData(cells.X.toarray(), obs=obs, var=cells.var, obsm=obsm)
    keys = set(plain.obs), set(plain.uns)
    np.testing.assert_allclose(trained.get_latent_representation(plain), z, atol=1e-5)
    assert (set(plain.obs), set(plain.uns)) == keys


def test_new_cells_without_labels_and_with_unknown_categories(trained, cells):
    z = trained.get_latent_representation()
    plain = cells.copy()
    del plain.obs["cluster"]
    np.testing.assert_allclose(trained.get_latent_representation(plain), z, atol=1e-5)
    assert "cluster" not in plain.obs
    plain.obs["cluster"] = "never seen"
    np.testing.assert_allclose(trained.get_latent_representation(plain), z, atol=1e-5)
    for key, name in (("batch", "batch_7"), ("lane", "z")):
        other = cells.copy()
        other.obs[key] = [name, *other.obs[key].astype(str)[1:]]
        with pytest.raises(ValueError, match=rf"`adata.obs\['{key}'\]` holds .* never seen: {name}\. It"):
            trained.get_latent_representation(other)


def test_another_set_up_of_the_same_object_changes_nothing(trained, cells, quick):
    def codes_that_are_read():
        batches = trained.reader.tensors()
        keys = ("batch", "labels", "extra_categorical_covs", "extra_continuous_covs")
        return [{k: b[k].clone() for k in keys} for b in batches]

    (expected,) = codes_that_are_read()
    other = sa.AE if not isinstance(trained, sa.AE) else sa.VAE
    other.setup_anndata(cells)
    assert cells.obs["_scvi_batch"].nunique() == 1
    (again,) = codes_that_are_read()
    for key, codes in expected.items():
        torch.testing.assert_close(again[key], codes)
    other.setup_anndata(cells)
    trained.train(**quick)
    codes = cells.obs["_scvi_batch"]
    assert codes.nunique() == 2


def test_indices_that_are_not_there(trained):
    with pytest.raises(IndexError, match="whole numbers from -200 to 199"):
        trained.get_latent_representation(indices=[500])
    with pytest.raises(ValueError, match="selects no cells"):
        trained.get_elbo(indices=[])
    with pytest.raises(ValueError, match="mask of 3 for 200 cells"):
        trained.get_elbo(indices=[True, False, True])


@every
def test_training_twice_and_history(name, cells, quick):
    setup(name, cells)
    model = MODELS[name](cells)
    model.train(**quick)
    model.train(**quick)
    assert len(model.history["train_loss"]) == 4
    assert {"elbo_validation", "reconstruction_loss_train", "validation_loss"} <= set(model.history)
    terms = [k for k in model.history if k.startswith("kl_z")]
    assert bool(terms) == (not name.startswith("AE"))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # torch, of scvi-tools' loader
@every
def test_stock_scvi_data_module(name, cells, quick):
    """scvi-tools' own splitter (dense batches) trains every model too."""
    setup(name, cells)
    model = MODELS[name](cells)
    splitter = scvi.dataloaders.DataSplitter(model.adata_manager, batch_size=64)
    model.train(datamodule=splitter, **quick)
    assert np.isfinite(model.history["train_loss"].iloc[-1, 0])


def test_without_setup_says_so(cells, quick, caplog):
    model = sa.VAE(cells, **SMALL)
    assert "without `setup_anndata`: modelling `adata.X`" in caplog.text
    model.train(**quick)
    assert model.get_latent_representation().shape == (200, 4)


def test_setting_up_a_copy_leaves_the_original_usable(cells, quick):
    sa.VAE.setup_anndata(cells, batch_key="batch")
    copy = cells.copy()
    sa.VAE.setup_anndata(copy, batch_key="lane")
    first, second = sa.VAE(cells, **SMALL), sa.VAE(copy, **SMALL)
    assert (first.summary_stats.n_batch, second.summary_stats.n_batch) == (2, 4)
    first.train(**quick)
    assert first.get_latent_representation(copy).shape == (200, 4)


def test_layer_size_factor_and_odd_formats(cells, quick):
    cells.layers["counts"] = sp.csr_array(cells.X)
    cells.X = np.log1p(cells.X.toarray())
    cells.obs["size"] = cells.layers["counts"].sum(axis=1) * 1.5
    sa.VAE.setup_anndata(cells, layer="counts", size_factor_key="size")
    model = sa.VAE(cells, **SMALL)
    model.train(**quick)
    latent = model.get_normalized_expression(library_size="latent").sum(axis=1)
    np.testing.assert_allclose(latent, cells.obs["size"], rtol=1e-3)
    with pytest.raises(ValueError, match="but `size_factor_key` was registered"):
        sa.VAE(cells, gene_likelihood="constrained_poisson")


def test_a_batch_of_one_cell_and_unused_categories(cells, quick):
    names = np.array(["a"] * 199 + ["alone"])
    cells.obs["rare"] = pd.Categorical(names, categories=["a", "alone", "never"])
    sa.VAE.setup_anndata(cells, batch_key="rare")
    model = sa.VAE(cells, library="learned", **SMALL)
    model.train(**quick)
    assert np.isfinite(model.get_latent_representation()).all()


def test_continuous_data(quick):
    adata = sa.datasets.blobs(40)
    sa.VAE.setup_anndata(adata, allow_non_counts=True)
    model = sa.VAE(adata, gene_likelihood="normal", **SMALL)
    model.train(**quick)
    assert model.get_normalized_expression().shape == adata.shape


def test_values_outside_of_the_likelihood(cells):
    cells.X = cells.X.toarray() - 1
    sa.VAE.setup_anndata(cells, allow_non_counts=True)
    with pytest.raises(ValueError, match="needs values from 0, but the data go down to -1"):
        sa.VAE(cells)
    with pytest.raises(ValueError, match=r"needs values within \[0, 1\]"):
        sa.VAE(cells, gene_likelihood="bernoulli_given")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"n_latent": 0}, "`n_latent=0` must be above zero"),
        ({"norm": "bach"}, "`norm='bach'` is not known.*'batch'"),
        ({"library": "given"}, "`library='given'` is not known"),
        ({"gene_likelihood": "normall"}, "Did you mean 'normal'"),
    ],
)
def test_wrong_arguments(cells, argument, message):
    with pytest.raises(ValueError, match=message):
        sa.VAE(cells, **argument)
    with pytest.raises(ValueError, match="`beta=0` must be above zero"):
        sa.BetaVAE(cells, beta=0)


def test_untrained_model_warns(cells):
    model = sa.VAE(cells, **SMALL)
    with pytest.warns(UserWarning, match="untrained model"):
        model.get_latent_representation()


def test_names_are_loaded_on_first_use():
    assert {"VAE", "AE", "BetaVAE", "datasets", "pl"} <= set(dir(sa))
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        sa.nope  # noqa: B018
    assert torch.is_grad_enabled()


def test_the_identity_of_cells_is_their_own_across_classes(cells):
    """A copy that was set up for another class does not take the identity of the cells it was made from."""
    setup("VAE", cells)
    model = sa.VAE(cells)
    copy = cells.copy()
    sa.GMVAE.setup_anndata(copy, batch_key="lane")
    sa.GMVAE.setup_anndata(cells)
    assert model.get_anndata_manager(cells) is not None
    assert sa.GMVAE(cells).adata is cells
    assert sa.GMVAE(copy).registry["setup_args"]["batch_key"] == "lane"


def test_one_batch_where_one_is_taken(cells):
    setup("VAE", cells)
    model = sa.VAE(cells)
    two = list(cells.obs["batch"].unique()[:2])
    with pytest.raises(ValueError, match=r"names 2 batches\. Pass one"):
        model.posterior_predictive_sample(transform_batch=two)


def test_arguments_that_a_model_has_no_use_for(cells):
    for argument in ("condition_key", "unlabeled_category"):
        assert argument not in inspect.signature(sa.VAE.setup_anndata).parameters
        assert f"\n{argument}\n" not in sa.VAE.setup_anndata.__doc__
        assert f"\n{argument}\n" in sa.CGMDVAE.setup_anndata.__doc__
        with pytest.raises(TypeError, match=f"`{argument}` is no argument of `VAE.setup_anndata`.*CGMDVAE"):
            sa.VAE.setup_anndata(cells, **{argument: "condition"})
    sa.VAE.setup_anndata(cells, None, "batch", "cluster")  # by position, as scvi-tools has them
    assert sa.VAE(cells, **SMALL).registry["setup_args"]["labels_key"] == "cluster"


def test_annotations_take_the_options_that_a_model_has_a_use_for():
    use = {"GMVAE": {"n_clusters"}, "CGMDVAE": {"n_clusters", "level"}}
    for name in (name for name in MODELS if hasattr(sa, name)):
        for method in ("annotate", "write_annotations"):
            called = getattr(getattr(sa, name), method)
            taken = set(inspect.signature(called).parameters)
            options = {option for option in annotations.OPTIONS if f"\n{option}\n" in called.__doc__}
            assert taken & set(annotations.OPTIONS) == options == use.get(name, set())
            assert "\nkey_added\n    Text to use" in called.__doc__
            assert "\n\nExamples\n---" in called.__doc__


def test_an_option_that_a_model_has_no_use_for_is_refused(cells, tmp_path):
    sa.VAE.setup_anndata(cells)
    model = sa.VAE(cells, **SMALL)
    with pytest.raises(TypeError, match=r"`n_clusters` is no argument of `VAE.annotate`.*CGMDVAE"):
        model.annotate(n_clusters=3)
    with pytest.raises(TypeError, match=r"`level` is no argument of `VAE.write_annotations`"):
        model.write_annotations(tmp_path / "a.h5ad", level=0.5)
    with pytest.raises(ValueError, match="`option='depth'` is not known"):
        sa.models.Annotator(lambda *_: {}, lambda *_: {}, option="depth")


def test_an_annotator_of_ones_own_takes_an_option(cells):
    def written(n):
        return sa.models.Annotator(
            lambda model, batch, q: {"one": q["z"].mean[:, 0]},
            lambda model, key, found, names: {"obs": {f"{key}_n": np.full(len(names), n)}},
            option="n_clusters",
            asked=lambda model, given: written(given),
        )

    class Own(sa.VAE):
        annotators = (sa.models.LATENT, written(1))

    Own.setup_anndata(cells)
    model = Own(cells, **SMALL)
    assert (model.annotate(copy=True, key_added="a").obs["a_n"] == 1).all()
    assert (model.annotate(copy=True, key_added="a", n_clusters=7).obs["a_n"] == 7).all()
    with pytest.raises(TypeError, match=r"`level` is no argument of `Own.annotate`"):
        model.annotate(level=0.5)


def test_what_is_written_is_what_getters_return(trained, cells):
    """Though `annotate` encodes each cell once, and getters each by themselves."""
    key = trained.name
    trained.annotate()
    if hasattr(trained, "get_clusters"):
        found = trained.get_cluster_probabilities()
        np.testing.assert_allclose(cells.obsm[_keys.probabilities(key)], found, atol=1e-6)
        np.testing.assert_allclose(cells.obs[_keys.cluster_probability(key)], found.max(axis=1), atol=1e-6)
        assert list(cells.obs[_keys.cluster(key)].astype(str)) == list(trained.get_clusters().astype(str))
    if hasattr(trained, "predict_labels") and trained.labels:
        p = trained.predict_labels(soft=True)
        assert list(cells.obs[_keys.label(key)].astype(str)) == list(trained.predict_labels().astype(str))
        np.testing.assert_allclose(cells.obs[_keys.label_probability(key)], p.max(axis=1), atol=1e-6)
        np.testing.assert_allclose(cells.obs[_keys.unknown(key)], trained.get_unknown_score(), atol=1e-6)
    if hasattr(trained, "get_active"):
        np.testing.assert_allclose(cells.obsm[_keys.active(key)], trained.get_active(), atol=1e-6)
        np.testing.assert_allclose(cells.obs[_keys.sparsity(key)], trained.get_sparsity(), atol=1e-6)
    if hasattr(trained, "modalities"):
        for name in trained.modalities:
            code = trained.get_latent_representation(which=name)
            np.testing.assert_allclose(cells.obsm[_keys.latent(f"{key}_{name}")], code, atol=1e-5)
        second = trained.modalities[1]
        np.testing.assert_allclose(
            cells.obsm[_keys.completed(key, second)], trained.predict(second), rtol=1e-4
        )
