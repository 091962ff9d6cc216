"""The model's own cells, changed in place after they were set up, are refused; what is harmless is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from relations import SMALL, same, simulated, stored_zeros, trained

import scalloy as sa
from scalloy.data import fingerprint

ORDER = np.random.default_rng(5).permutation
REFUSED = r"The model's own cells were changed in place after they were set up: {}\. Undo that, or pass"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small models on the disk, each of which is loaded with cells of its own."""
    made = {}
    for name in ("VAE", "CGMDVAE", "POISEVAE"):
        made[name] = tmp_path_factory.mktemp(name)
        trained(name, simulated()).save(made[name], overwrite=True)
    return made


@pytest.fixture
def fresh(folders):
    """A model by its name, with cells that may be changed."""
    return lambda name: sa.load(folders[name], simulated())


# changes ----------------------------------------------------------------------------------------


def one_entry(adata):
    adata.X.data[5] += 1


def one_value(adata, key="batch"):
    """Of one cell."""
    column = adata.obs[key].astype(str)
    column.iloc[7] = next(name for name in column.unique() if name != column.iloc[7])
    adata.obs[key] = column


def by_hand(adata):
    """As strings, which are changed where they lie."""
    adata.obs["lane"] = adata.obs["lane"].astype(object)
    adata.obs["lane"].array[3:40] = "a"


def rename(adata):
    adata.var_names = [f"symbol_{i}" for i in range(adata.n_vars)]


def nudge(adata):
    adata.obs["score"] = adata.obs["score"].to_numpy() + np.eye(1, adata.n_obs)[0]


def other_matrix(adata):
    adata.X = np.log1p(adata.X.toarray())


def without_a_column(adata):
    del adata.obs["batch"]


def all_of_one_batch(adata):
    adata.obs["batch"] = "batch_0"


def a_protein(adata):
    adata.obsm["protein_counts"].iloc[2, 1] += 1


def proteins(adata):
    adata.obsm["protein_counts"] = adata.obsm["protein_counts"].iloc[:, ::-1]


X, BATCH = "`adata.X` holds other values", r"`adata.obs\['batch'\]` holds other values"
CHANGES = {
    "normalised": (lambda a: sc.pp.normalize_total(a, target_sum=1e4), X),
    "logarithm": (sc.pp.log1p, X),
    "another matrix": (other_matrix, X),
    "scaled": (lambda a: sc.pp.scale(a, zero_center=False), X),
    "one entry": (one_entry, X),
    "genes permuted": (lambda a: a._inplace_subset_var(ORDER(a.n_vars)), "the genes are in another order"),
    "genes filtered": (
        lambda a: a._inplace_subset_var(np.arange(a.n_vars) > 4),
        r"there were 24 genes, now there are 19 \(.* and 2 more missing\)",
    ),
    "genes renamed": (rename, r"there were 24 genes, now there are 24 \(.* missing; symbol_0, .* new\)"),
    "cells reordered": (lambda a: a._inplace_subset_obs(ORDER(a.n_obs)), "the cells are in another order"),
    "cells filtered": (
        lambda a: sc.pp.filter_cells(a, min_counts=1400),
        r"there were 90 cells, now there are \d+",
    ),
    "a column": (all_of_one_batch, BATCH),
    "one value": (one_value, BATCH),
    "no column": (without_a_column, r"`adata.obs\['batch'\]` is not there any more"),
}
OF_COLUMNS = {
    "values where they lie": (by_hand, r"`adata.obs\['lane'\]` holds other values"),
    "numbers": (nudge, r"`adata.obs\['score'\]` holds other values"),
}
OF_CONDITIONS = {
    "condition": (lambda a: one_value(a, "condition"), r"`adata.obs\['condition'\]` holds other values"),
    "labels": (lambda a: one_value(a, "cluster"), r"`adata.obs\['cluster'\]` holds other values"),
}
OF_PROTEINS = {
    "a protein": (a_protein, r"`adata.obsm\['protein_counts'\]` holds other values"),
    "proteins in another order": (proteins, r"`adata.obsm\['protein_counts'\]` holds other values"),
}
ASKED = {
    "get_latent_representation": lambda m: m.get_latent_representation(),
    "the object itself": lambda m: m.get_latent_representation(m.adata),
    "get_normalized_expression": lambda m: m.get_normalized_expression(indices=[3]),
    "posterior_predictive_sample": lambda m: m.posterior_predictive_sample(),
    "get_elbo": lambda m: m.get_elbo(),
    "get_reconstruction_error": lambda m: m.get_reconstruction_error(),
    "get_marginal_ll": lambda m: m.get_marginal_ll(),
    "get_gene_statistics": lambda m: m.get_gene_statistics(),
    "get_traversal": lambda m: m.get_traversal(0),
    "get_latent_genes": lambda m: m.get_latent_genes(),
    "differential_expression": lambda m: m.differential_expression(groupby="half", group1="x", silent=True),
    "annotate": lambda m: m.annotate(),
    "write_annotations": lambda m: m.write_annotations("never.h5ad"),
    "write_annotations of the object": lambda m: m.write_annotations("never.h5ad", m.adata),
    "train": lambda m: m.train(max_epochs=1, accelerator="cpu"),
    "save": lambda m: m.save("never", save_anndata=True),
    "report": lambda m: m.report("never.html"),
    "compare": lambda m: sa.compare.groups(m, groupby="half"),
    "generate": lambda m: m.generate(5),
    "pl.latent": lambda m: sa.pl.latent(m, "half", method="pca"),
    "pl.traversal": lambda m: sa.pl.traversal(m, 0),
    "pl.counts": lambda m: sa.pl.counts(m),
    "another model": lambda m: type(m)(m.adata, **SMALL),
}
OF_MIXTURES = {
    "get_clusters": lambda m: m.get_clusters(),
    "get_cluster_probabilities": lambda m: m.get_cluster_probabilities(),
    "predict_labels": lambda m: m.predict_labels(),
    "get_unknown_score": lambda m: m.get_unknown_score(),
    "get_novel": lambda m: m.get_novel(),
    "get_usage": lambda m: m.get_usage(by="half"),
    "n_alive": lambda m: m.n_alive(),
    "generate": lambda m: m.generate(5),
    "transfer": lambda m: m.transfer(to="treated_1"),
    "transfer of the object": lambda m: m.transfer(m.adata, to="treated_1", route="style"),
    "predict": lambda m: m.predict("control", "treated_1", "cluster_0"),
    "predict of the object": lambda m: m.predict("control", "treated_1", adata_to_predict=m.adata),
    "write_transfer": lambda m: m.write_transfer("never.h5ad", to="treated_1", route="decoder"),
    "write_transfer auto": lambda m: m.write_transfer("never.h5ad", to="treated_1"),
    "what others have shown": lambda m: m.transfer(simulated()[:20].copy(), to="treated_1"),
}
OF_PAIRS = {
    "predict": lambda m: m.predict("prot", from_="rna"),
    "get_cross_traversal": lambda m: m.get_cross_traversal(0, "rna"),
    "generate": lambda m: m.generate(5),
}
FEW = ("normalised", "genes permuted", "cells reordered", "no column")
SOME = {k: v for k, v in CHANGES.items() if k in FEW}
TOLD = {
    "VAE": (ASKED, CHANGES | OF_COLUMNS),
    "CGMDVAE": (OF_MIXTURES, SOME | OF_CONDITIONS),
    "POISEVAE": (ASKED | OF_PAIRS, SOME | OF_PROTEINS),
}


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, (_, changes) in TOLD.items() for c in changes])
def test_a_change_is_refused_by_every_method(fresh, name, change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods, (function, what) = TOLD[name][0], TOLD[name][1][change]
    model = fresh(name)
    model.adata.obs["half"] = np.resize(["x", "y"], model.adata.n_obs)
    function(model.adata)
    for asked, method in methods.items():
        with pytest.raises(ValueError, match=REFUSED.format(what)):
            print(asked, method(model))  # what is printed is not refused
    assert not list(tmp_path.iterdir())


def test_what_is_sampled_of_a_large_matrix(fresh, monkeypatch):
    """Of a matrix with more entries some rows are compared, and the total."""
    monkeypatch.setattr(fingerprint, "SAMPLED", 500)
    for change in ("normalised", "another matrix", "one entry", "genes permuted", "cells reordered"):
        function, what = CHANGES[change]
        model = fresh("VAE")
        model.get_latent_representation()
        function(model.adata)
        with pytest.raises(ValueError, match=REFUSED.format(what)):
            model.get_latent_representation()


def test_between_set_up_and_training():
    """The model was set up with counts; what it would be trained on are none."""
    adata = simulated()
    sa.VAE.setup_anndata(adata)
    sc.pp.normalize_total(adata)
    with pytest.raises(ValueError, match=REFUSED.format(X)):
        sa.VAE(adata, **SMALL)
    adata = simulated()
    sa.VAE.setup_anndata(adata)
    model = sa.VAE(adata, **SMALL)
    sc.pp.log1p(adata)
    with pytest.raises(ValueError, match=REFUSED.format(X)):
        model.train(max_epochs=1, accelerator="cpu")


def test_the_registered_layer_is_what_counts():
    adata = simulated()
    adata.layers["counts"] = adata.X.copy()
    model = trained("VAE", adata, layer="counts")
    z = model.get_latent_representation()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    np.testing.assert_array_equal(model.get_latent_representation(), z)
    adata.layers["counts"].data[0] += 1
    with pytest.raises(ValueError, match=REFUSED.format(r"`adata.layers\['counts'\]` holds other values")):
        model.get_latent_representation()
    del adata.layers["counts"]
    with pytest.raises(ValueError, match=r"`adata.layers\['counts'\]` is not there any more"):
        model.get_latent_representation()


# what is no change ------------------------------------------------------------------------------


def analysed(adata):
    """What scanpy writes into cells whose counts are to stay."""
    adata.layers["log"] = adata.X.copy()
    sc.pp.normalize_total(adata, layer="log")
    sc.pp.log1p(adata, layer="log")
    sc.pp.highly_variable_genes(adata, layer="log", n_top_genes=8)
    sc.pp.calculate_qc_metrics(adata, percent_top=None, inplace=True)
    sc.pp.pca(adata, layer="log", n_comps=4)
    sc.pp.neighbors(adata, n_neighbors=5, use_rep="X_pca")
    sc.tl.rank_genes_groups(adata, "batch", layer="log")


def as_matrix(convert):
    def change(adata):
        adata.X = convert(adata.X)

    return change


def as_categories(adata):
    """As scanpy makes them, here with the order turned and one that no cell has."""
    for key in ("batch", "lane", "condition", "cluster"):
        column = adata.obs[key].astype(str)
        adata.obs[key] = pd.Categorical(column, ["never", *sorted(set(column), reverse=True)])


def as_strings(adata):
    for key in ("batch", "lane", "condition", "cluster"):
        adata.obs[key] = adata.obs[key].astype(str)


def set_up_again(adata):
    sa.AE.setup_anndata(adata, batch_key="lane")
    sa.CGMDVAE.setup_anndata(adata, labels_key="lane", condition_key="batch")


def columns_chosen(adata):
    """The columns of the registration are gone."""
    adata.obs = adata.obs[[c for c in adata.obs if not c.startswith("_scvi")]].copy()


def without_uns(adata):
    adata.uns = {}


def more_columns(adata):
    adata.obs["half"] = "x"
    adata.var["symbol"] = "s"
    adata.obsm["X_mine"] = np.zeros((adata.n_obs, 2))
    adata.obs["more"] = np.arange(adata.n_obs)
    adata.obs["more"] = 3


def cells_renamed(adata):
    adata.obs_names = [f"a_{name}" for name in adata.obs_names]


HARMLESS = {
    "scanpy": analysed,
    "more columns": more_columns,
    "dense": as_matrix(lambda x: x.toarray()),
    "float64": as_matrix(lambda x: x.astype(np.float64)),
    "int64": as_matrix(lambda x: x.astype(np.int64)),
    "CSC": as_matrix(sp.csc_matrix),
    "CSR array": as_matrix(sp.csr_array),
    "stored zeros": as_matrix(stored_zeros),
    "categories": as_categories,
    "strings": as_strings,
    "set up again": set_up_again,
    "columns chosen": columns_chosen,
    "without uns": without_uns,
    "cells renamed": cells_renamed,
}


@pytest.mark.parametrize("change", HARMLESS)
@pytest.mark.parametrize(("name", "sampled"), [("VAE", 500), ("CGMDVAE", None), ("POISEVAE", None)])
def test_what_is_harmless(fresh, name, change, sampled, monkeypatch):
    monkeypatch.setattr(fingerprint, "SAMPLED", sampled or fingerprint.SAMPLED)
    model = fresh(name)
    codes, latent = columns_of(model), model.get_latent_representation()
    model.annotate()
    HARMLESS[change](model.adata)
    np.testing.assert_allclose(model.get_latent_representation(), latent, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.get_latent_representation(model.adata), latent, rtol=1e-5, atol=1e-6)
    for key, values in columns_of(model).items():
        np.testing.assert_array_equal(values, codes[key])
    model.annotate()


def columns_of(model):
    """What the model reads beside the counts."""
    return {k: v.numpy() for k, v in model.reader.table().columns.items()}


def test_labels_that_the_model_only_keeps_for_plots_may_change(fresh):
    model = fresh("VAE")
    latent = model.get_latent_representation()
    model.adata.obs["cluster"] = "another"
    np.testing.assert_array_equal(model.get_latent_representation(), latent)


def test_the_object_from_which_the_cells_were_made(folders):
    """Loaded with genes in another order, the model has cells of its own; the object may be passed still."""
    given = simulated()
    given = given[:, ::-1].copy()
    model = sa.load(folders["CGMDVAE"], given)
    before = pd.DataFrame(model.get_latent_representation(), index=given.obs_names)
    given._inplace_subset_obs(ORDER(given.n_obs))
    after = pd.DataFrame(model.get_latent_representation(given), index=given.obs_names)
    same({"z": after}, {"z": before.astype(float)})
    model.annotate()
    same({"z": pd.DataFrame(given.obsm["X_cgmdvae"], index=given.obs_names)}, {"z": before})
    sc.pp.log1p(given)
    with pytest.raises(ValueError, match="not whole numbers"):
        model.get_latent_representation(given)
    np.testing.assert_array_equal(model.get_latent_representation(), before)
