"""Every public method of every model works or says what to call instead, and refuses what makes no sense."""

from __future__ import annotations

import inspect
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scalloy as sa

NAMES = ("AE", "VAE", "BetaVAE", "BetaVSC", "GMVAE", "TRVAE", "CGMDVAE", "POISEVAE")
SMALL = {"n_hidden": 8, "n_latent": 3}
OURS = (ValueError, TypeError, KeyError, NotImplementedError)
WAY_OUT = r"\b(Pass|Call|Use|train with) |only an `scvi.model.SCVI`"
#: Refused by design: with a word on what to call instead.
REFUSED = {
    "differential_abundance",
    "update_setup_method_args",
    "convert_legacy_save",
    "from_scvi",
    "setup_annbatch",
    "dose_response",  # of conditions that are mere names, as those of all the others are
    "interactions",
    "get_nearest_conditions",
}


def refused(model):
    """Methods that say what to call instead; an AE has no prior, and its likelihood is not for counts."""
    return REFUSED | ({"get_gene_statistics", "get_marginal_ll"} if isinstance(model, sa.AE) else set())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small model of each class, trained for one epoch, with batches 0.0 and 1.0 and conditions 0 and 1."""
    made = {}
    for name in NAMES:
        adata = sa.datasets.simulate(120, 20, seed=1, n_proteins=3)
        adata.obs["batch"] = (np.arange(120) % 2).astype(float)
        adata.obs["dose"] = np.arange(120) // 2 % 2
        given = {"batch_key": "batch", "labels_key": "cluster"}
        cls = getattr(sa, name)
        known = inspect.signature(cls.setup_anndata).parameters
        given |= {"condition_key": "dose"} if "condition_key" in known else {}
        cls.setup_anndata(adata, **given)
        made[name] = cls(adata, **SMALL)
        made[name].train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
        made[name].save(tmp_path_factory.mktemp("saved") / name)
    return made


def calls(model, folder):
    """A call of every public method, by its name."""
    cells = model.adata[:30].copy()
    saved = folder / "model"
    cls = type(model)
    return {
        "annotate": lambda: model.annotate(copy=True),
        "convert_legacy_save": lambda: cls.convert_legacy_save("a", "b"),
        "data_registry": lambda: model.data_registry("batch"),
        "deregister_manager": lambda: model.deregister_manager(),
        "differential_abundance": lambda: model.differential_abundance(),
        "differential_expression": lambda: model.differential_expression(
            groupby="cluster", group1="cluster_0", group2="cluster_1"
        ),
        "get_anndata_manager": lambda: model.get_anndata_manager(model.adata),
        "get_elbo": lambda: model.get_elbo(cells),
        "get_from_registry": lambda: model.get_from_registry(cells, "batch"),
        "get_gene_statistics": lambda: model.get_gene_statistics(cells),
        "get_latent_genes": lambda: model.get_latent_genes(),
        "get_latent_representation": lambda: model.get_latent_representation(cells),
        "get_marginal_ll": lambda: model.get_marginal_ll(cells, n_mc_samples=2),
        "get_normalized_expression": lambda: model.get_normalized_expression(cells, transform_batch=1),
        "get_reconstruction_error": lambda: model.get_reconstruction_error(cells),
        "get_setup_arg": lambda: model.get_setup_arg("batch_key"),
        "get_state_registry": lambda: model.get_state_registry("batch"),
        "get_traversal": lambda: model.get_traversal(0),
        "get_var_names": lambda: model.get_var_names(),
        "held_out": lambda: model.held_out(),
        "load": lambda: cls.load(saved, model.adata),
        "load_query_data": lambda: cls.load_query_data(cells, model),
        "load_registry": lambda: cls.load_registry(saved),
        "posterior_predictive_sample": lambda: model.posterior_predictive_sample(cells, n_samples=2),
        "register_manager": lambda: cls.register_manager(model.adata_manager),
        "report": lambda: model.report(folder / "page.html", overwrite=True),
        "save": lambda: model.save(saved, overwrite=True),
        "setup_anndata": lambda: None,
        "setup_annbatch": lambda: cls.setup_annbatch(model.adata),
        "to_device": lambda: model.to_device("cpu"),
        "train": lambda: None,
        "transfer_fields": lambda: model.transfer_fields(cells),
        "update_setup_method_args": lambda: model.update_setup_method_args({}),
        "view_anndata_setup": lambda: model.view_anndata_setup(),
        "view_registry": lambda: model.view_registry(),
        "view_setup_args": lambda: cls.view_setup_args(saved),
        "view_setup_method_args": lambda: model.view_setup_method_args(),
        "write_annotations": lambda: model.write_annotations(folder / "a.h5ad", overwrite=True),
        # of some models
        "from_scvi": lambda: cls.from_scvi(model),
        "generate": lambda: model.generate(5),
        "get_cluster_probabilities": lambda: model.get_cluster_probabilities(cells),
        "get_clusters": lambda: model.get_clusters(cells),
        "get_coupling": lambda: model.get_coupling(),
        "get_cross_traversal": lambda: model.get_cross_traversal(0, of="rna"),
        "get_log_partition": lambda: model.get_log_partition(16, 2),
        "get_mixing": lambda: model.get_mixing(4, 8),
        "get_sparsity": lambda: model.get_sparsity(cells),
        "get_latent_cells": lambda: model.get_latent_cells(0),
        "get_latent_summary": lambda: model.get_latent_summary(),
        "n_alive": lambda: model.n_alive(),
        "get_active": lambda: model.get_active(cells),
        "get_unknown_score": lambda: model.get_unknown_score(cells),
        "get_novel": lambda: model.get_novel(cells),
        "get_transfer_groups": lambda: model.get_transfer_groups(cells),
        "get_cluster_tree": lambda: model.get_cluster_tree(),
        "get_usage": lambda: model.get_usage(),
        "get_variables": lambda: model.get_variables("prot"),
        "make_library_prior": lambda: model.make_library_prior("learned"),
        "make_likelihood": lambda: model.make_likelihood("nb", 4),
        "original": lambda: None,
        "predict": lambda: (
            model.predict("prot", adata=cells)
            if cls is sa.POISEVAE
            else model.predict(0, 1.0, adata_to_predict=cells[cells.obs["dose"] == 0].copy(), n_samples=1)
        ),
        "predict_labels": lambda: model.predict_labels(cells),
        "setup_mudata": lambda: None,
        "transfer": lambda: model.transfer(cells, to=1, n_samples=1),
        "dose_response": lambda: model.dose_response("1"),
        "interactions": lambda: model.interactions(),
        "get_nearest_conditions": lambda: model.get_nearest_conditions("1"),
        "write_transfer": lambda: model.write_transfer(
            folder / "t.h5ad", cells, to=1, n_samples=1, overwrite=True
        ),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_every_public_method_works_or_says_what_to_call(models, name, tmp_path, capsys):
    model = models[name]
    model.save(tmp_path / "model")
    given = calls(model, tmp_path)
    public = [k for k in dir(type(model)) if not k.startswith("_") and callable(getattr(type(model), k))]
    assert not set(public) - set(given), "a public method that nobody has looked at"
    for method in public:
        if method in refused(model):
            with pytest.raises(OURS, match=WAY_OUT):
                given[method]()
        else:
            given[method]()
    assert "dose" in capsys.readouterr().out or name not in ("TRVAE", "CGMDVAE")


@pytest.mark.parametrize("name", NAMES)
def test_attributes_can_be_read(models, name):
    model = models[name]
    for key in dir(model):
        if not key.startswith("_"):
            getattr(model, key)


def test_without_cells_what_was_registered_is_asked_for(models, tmp_path):
    models["VAE"].save(tmp_path / "model")
    alone = sa.load(tmp_path / "model")
    assert alone.get_setup_arg("batch_key") == "batch"
    assert sa.VAE.load_registry(tmp_path / "model")["setup_args"] == alone.registry["setup_args"]
    for call in (
        alone.view_registry,
        alone.view_anndata_setup,
        lambda: alone.data_registry("X"),
        lambda: alone.transfer_fields(models["VAE"].adata),
    ):
        with pytest.raises(ValueError, match="The model was loaded without its cells"):
            call()
    with pytest.raises(ValueError, match=r"`setup_arg='batch'` is not known.*Did you mean"):
        alone.get_setup_arg("batch")
    with pytest.raises(ValueError, match=r"`registry_key='btch'` is not known.*'batch'"):
        alone.get_state_registry("btch")
    with pytest.raises(ValueError, match=r"`adata` is not set up for VAE. Call `VAE.setup_anndata"):
        models["VAE"].view_anndata_setup(sa.datasets.simulate(50, 20))


# cells -------------------------------------------------------------------------------------------


class Collection:
    """As AnnCollection, CollectionAdapter and annbatch's loaders are: not an AnnData."""

    n_obs, n_vars, shape = 120, 20, (120, 20)

    def __init__(self, adata):
        self.obs, self.var, self.obs_names, self.var_names = (
            adata.obs,
            adata.var,
            adata.obs_names,
            adata.var_names,
        )
        self.X, self.uns = adata.X, {}

    def __len__(self):
        return 120


class Lazy(ad.AnnData):
    """As ``anndata.experimental.read_lazy`` gives one: columns that are not in memory."""

    @property
    def obs(self):
        return Columns()

    @classmethod
    def of(cls, adata):
        made = adata.copy()
        made.__class__ = cls
        return made


class Columns:
    """As ``Dataset2D``."""


def foreign(adata):
    from anndata.experimental import AnnCollection

    return {
        "path": "cells.h5ad",
        "DataFrame": adata.to_df(),
        "array": adata.to_df().to_numpy(),
        "sparse": sp.csr_matrix(adata.X),
        "columns": Columns(),
        "collection": Collection(adata),
        "AnnCollection": AnnCollection({"a": adata}, join_vars="inner"),
        "lazy": Lazy.of(adata),
        "list": [adata],
    }


TAKE_CELLS = ("adata", "cells", "adata_to_predict")
BEFORE = {"path", "ctrl_key", "stim_key", "modality", "to", "registry_key", "latent"}


def with_cells(model, folder):
    """Public methods that take cells, as functions of them."""
    first = {
        "path": folder / "out.h5ad", "ctrl_key": 0, "stim_key": 1, "modality": "prot", "to": 1,
        "registry_key": "batch", "latent": 0, "reference_model": model,
    }  # fmt: skip
    for name in dir(type(model)):
        method = getattr(model, name)
        if name.startswith("_") or not callable(method) or name in {"load", "original", *refused(model)}:
            continue
        known = inspect.signature(method).parameters
        takes = [k for k in known if k in TAKE_CELLS]
        if name in ("differential_expression", "setup_anndata", "report", "transfer_fields") or takes:
            given = {k: v for k, v in first.items() if k in known}
            key = takes[0] if takes else "adata"
            if name == "differential_expression":
                given |= {"groupby": "batch"}
            if name == "report":
                given["path"] = given["path"].with_suffix(".html")
            if name == "deregister_manager":
                continue
            yield name, lambda x, m=method, g=given, k=key: m(**g, **{k: x})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_anndata_is_refused_in_our_words(models, name, tmp_path):
    model = models[name]
    tried = list(with_cells(model, tmp_path))
    assert {"annotate", "get_latent_representation", "get_elbo", "load_query_data"} <= {k for k, _ in tried}
    failed = []
    for method, call in tried:
        for kind, cells in foreign(model.adata).items():
            try:
                call(cells)
            except TypeError as error:
                said = str(error)
            except Exception as error:  # noqa: BLE001
                said = repr(error)
            else:
                said = "nothing"
            if not re.search(r"Expected an AnnData|was opened lazily|`mdata` is a .* Pass a MuData", said):
                failed.append((method, kind, said[:200]))
    assert not failed


# numbers -----------------------------------------------------------------------------------------

TOTALS = (0, -1, float("inf"), float("nan"), 1e300, "a lot", True, [1.0])
WHOLE = (0, -1, 1.5, float("inf"), float("nan"), "3", True, None)


@pytest.mark.parametrize("name", NAMES)
def test_totals_and_numbers_of_samples_that_make_no_sense_are_refused(models, name, tmp_path):
    model, tried = models[name], set()
    for method in dir(type(model)):
        call = getattr(model, method)
        if method.startswith("_") or not callable(call) or method in ("train", "load_query_data"):
            continue
        known = inspect.signature(call).parameters
        given = {"latent": 0, "of": "rna", "modality": "prot", "to": 1, "n": 3, "path": tmp_path / "a.h5ad"}
        given = {k: v for k, v in given.items() if k in known}
        numbers = {"library_size": TOTALS, "target_sum": TOTALS, "n_samples": WHOLE, "n_mc_samples": WHOLE}
        numbers |= dict.fromkeys(
            ("n_samples_overall", "n_steps", "n_genes", "n_chains", "n_sweeps", "n"), WHOLE
        )
        also = ("library_size", "target_sum", "n_samples") if method == "write_transfer" else ()
        for argument, values in numbers.items():
            if argument not in known and argument not in also:
                continue
            for value in values:
                optional = ("n_samples_overall", "n_genes", *(["n_samples"] if "to" in known else []))
                default = argument in known and known[argument].default is None
                if value is None and (default or argument in optional):
                    continue
                tried.add((method, argument))
                with pytest.raises(
                    ValueError, match=rf"`{argument}=.*(not a total of counts|must be above zero)"
                ):
                    call(**{**given, argument: value})
    assert {("get_normalized_expression", "library_size"), ("get_traversal", "n_steps")} <= tried
    assert name == "AE" or ("get_marginal_ll", "n_mc_samples") in tried
    if name == "CGMDVAE":
        more = {("transfer", "library_size"), ("generate", "library_size"), ("write_transfer", "target_sum")}
        assert more <= tried


def test_categories_are_given_by_name_or_by_value(models):
    vae, model = models["VAE"], models["TRVAE"]
    expected = vae.get_normalized_expression(transform_batch="1.0", seed=0)
    for same in (1, 1.0, np.float32(1), np.int64(1), np.array(1.0), [1], ("1.0",)):
        pd.testing.assert_frame_equal(vae.get_normalized_expression(transform_batch=same, seed=0), expected)
    assert not expected.equals(vae.get_normalized_expression(transform_batch=0, seed=0))
    for wrong in (2, 0.5, True, "one", float("nan")):
        with pytest.raises(ValueError, match=r"`transform_batch=.*is not known. Pass one of: 0.0, 1.0"):
            vae.get_normalized_expression(transform_batch=wrong)
    cells = model.adata[model.adata.obs["dose"] == 0].copy()
    out = [model.transfer(cells, to=to, n_samples=1) for to in ("1", 1, 1.0, np.int64(1))]
    for other in out[1:]:
        np.testing.assert_array_equal(other.X, out[0].X)
        assert (other.obs["dose"].astype(str) == "1").all()
    with pytest.raises(ValueError, match=r"`to=2` is not known. Pass one of: 0, 1"):
        model.transfer(cells, to=2)
    mixture = models["CGMDVAE"]
    made = [mixture.generate(5, condition=c, seed=1).X.toarray() for c in ("1", 1, 1.0)]
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
    with pytest.raises(ValueError, match=r"`condition=7` is not known. Pass one of: 0, 1"):
        mixture.generate(5, condition=7)


# loggers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["csv", "list", "true", "false", "own"])
def test_another_logger_leaves_the_history(which, tmp_path, monkeypatch):
    import scvi
    from lightning.pytorch.loggers import CSVLogger
    from scvi.train._logger import SimpleLogger

    monkeypatch.setattr(scvi.settings, "logging_dir", str(tmp_path))
    adata = sa.datasets.simulate(100, 20, seed=1)
    csv = CSVLogger(tmp_path / "csv", name="run")
    given = {"csv": csv, "list": [csv], "true": True, "false": False, "own": SimpleLogger()}[which]
    sa.VAE.setup_anndata(adata)
    model = sa.VAE(adata, **SMALL)
    with pytest.raises(ValueError, match=r"The model has no training history. Call `model.train\(\)` first"):
        sa.pl.history(model)
    model.train(max_epochs=2, enable_progress_bar=False, accelerator="cpu", logger=given)
    assert len(model.history["elbo_train"]) == 2
    written = list(tmp_path.rglob("metrics.csv"))
    assert bool(written) == (which in ("csv", "list", "true"))
    if written:
        assert "elbo_train" in pd.read_csv(written[0]).columns
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    assert len(model.history["elbo_train"]) == 3
    assert sa.pl.history(model).get_ylabel() == "-ELBO (nats per cell)"
