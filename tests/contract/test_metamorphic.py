"""Every method that takes cells, asked about the same cells in every form: one answer by name.

A new model is a line in ``SETUPS`` (``tests/relations.py``), a new method a line in ``METHODS`` here, a new
form of cells a line in ``SAME_ORDER`` or ``OTHER_CELLS``.
"""

from __future__ import annotations

import inspect
import itertools
import os
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from relations import (
    EVERYWHERE,
    OTHER_CELLS,
    SAME_ORDER,
    SETUPS,
    class_of,
    frame,
    same,
    simulated,
    trained,
    without_noise,
)

from scalloy.models import MODELS

ALL = "SCALLOY_EVERY_FORM" in os.environ  # every method of every model in every form: some minutes
TAKES = {"adata", "cells", "mdata", "data", "adata_to_predict", "context"}
REGISTERS = {"setup_anndata", "setup_mudata", "original"}  # they say what the cells of a model are
REGISTERED = {  # of scvi-tools, about registrations
    "deregister_manager",
    "get_anndata_manager",
    "get_from_registry",
    "transfer_fields",
    "view_anndata_setup",
}
ELSEWHERE = {"dose_response"}  # of models with doses: tests/models/test_responses.py
BY_ROUTE = {f"transfer {route}": route for route in ("auto", "decoder", "transport", "style")}


@pytest.fixture(scope="module")
def cells():
    return simulated()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cells")


class Known(dict):
    """What is made once: models, and what they say of their own cells."""

    def __init__(self, cells, folder):
        self.cells, self.folder = cells, folder

    def model(self, name):
        if name not in self:
            self[name] = trained(name, self.cells.copy())
        return self[name]

    def expected(self, name, method, still):
        if (name, method, still) not in self:
            model = self.model(name)
            self[name, method, still] = METHODS[method](model, model.adata, self.folder)
        return self[name, method, still]


@pytest.fixture(scope="module")
def known(cells, folder):
    return Known(cells, folder)


# what is asked ----------------------------------------------------------------------------------


def latent(model, cells, _):
    mean, variance = model.get_latent_representation(cells, return_dist=True)
    out = {"mean": frame(mean, cells.obs_names), "variance": frame(variance, cells.obs_names)}
    return out | {"drawn": frame(model.get_latent_representation(cells, give_mean=False), cells.obs_names)}


def expression(model, cells, _):
    genes = list(model.get_var_names()[[3, 0]])
    some = model.get_normalized_expression(cells, gene_list=genes, library_size="latent", n_samples=2)
    return {"all": model.get_normalized_expression(cells), "some": some}


def sampled(model, cells, _):
    found = model.posterior_predictive_sample(cells)
    return {"counts": frame(found, cells.obs_names, model.get_var_names()).astype(float)}


def per_cell(name, **given):
    def asked(model, cells, _):
        try:
            found = getattr(model, name)(cells, **given)
        except NotImplementedError as error:  # an autoencoder has no evidence
            return {"error": str(error)}
        found = found if isinstance(found, dict) else {name: found}
        return {k: frame(v, cells.obs_names).astype(float) for k, v in found.items()}

    return asked


def named(name, **given):
    return lambda model, cells, _: {name: getattr(model, name)(cells, **given)}


def novel(model, cells, _):
    """Whether a cell is in a group at all; which one depends on the others."""
    return {"novel": model.get_novel(cells, threshold=0.2, min_cells=1).cells.notna().to_frame()}


def statistics(model, cells, _):
    return {} if model.name == "ae" else {"of genes": model.get_gene_statistics(cells)}


def along(model, cells, _):
    path = model.get_traversal(1, [-1.0, 0.5], adata=cells)
    genes = model.get_latent_genes(None, adata=cells).set_index(["latent", "gene"])
    return {"path": path.T, "genes": genes}


def active_cells(model, cells, _):
    return {"cells": model.get_latent_cells(1, cells, least=0.0)}


def differential(model, cells, _):
    groups = {"groupby": "batch", "group1": "batch_0", "group2": "batch_1"}
    table = model.differential_expression(cells, **groups, mode="change", silent=True)
    raw = [c for c in table if c.startswith(("raw", "non_zeros"))]
    return {"~estimates": table.drop(columns=raw), "observed": table[raw].astype(float)}


def about_cells(made, key):
    """What was written about cells, by name."""
    columns = [c for c in made.obs if c.startswith(key)]
    out = {c: made.obs[[c]] for c in columns}
    return out | {k: frame(v, made.obs_names) for k, v in made.obsm.items() if key in k}


def annotations(model, cells, _):
    copied = model.annotate(cells, key_added="said", copy=True)
    return about_cells(copied, "said")


def annotated(model, cells, _):
    copied = cells if cells is not model.adata else cells.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ad.ImplicitModificationWarning)
        model.annotate(copied, key_added="told")
    return about_cells(copied, "told")


def written(model, cells, folder):
    model.write_annotations(folder / "said.h5ad", cells, key_added="said", overwrite=True)
    return about_cells(ad.read_h5ad(folder / "said.h5ad"), "said")


def moved(made):
    """A prediction by the names of the cells that it was made of, and of genes."""
    names, genes = made.obs["transfer_of"].to_numpy(), made.var_names
    assert list(made.obs_names) == [f"{name}-treated_1" for name in names]
    out = {"expected": frame(made.X, names, genes)}
    out["obs"] = made.obs[["condition", "transfer_from", "transfer_group"]].set_axis(names)
    out["genes"] = made.var[["symbol"]]
    if "counts" in made.layers:
        out["~counts"] = frame(made.layers["counts"], names, genes).astype(float)
    tables = {k: v for k, v in made.uns["transfer"].items() if isinstance(v, pd.DataFrame)}
    return out | {f"~{k}": v for k, v in tables.items()}  # of the groups that there are


def transferred(route):
    def asked(model, cells, _):
        if route not in model.ROUTES or (route == "style" and model.module.enc_w is None):
            with pytest.raises(ValueError, match="`route="):
                model.transfer(cells, "treated_1", route=route)
            return {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Far from what was seen")
            return moved(model.transfer(cells, "treated_1", route=route))

    return asked


def in_context(model, cells, _):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Far from what was seen")
        made = model.transfer(None, "treated_1", context=cells)
    return {f"in context {k}": v for k, v in moved(made).items()}


def predicted(model, cells, _):
    out, change = model.predict("control", "treated_1", adata_to_predict=cells, route="decoder")
    return moved(out) | {"~change": change}


def write_transferred(route):
    def asked(model, cells, folder):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Far from what was seen")
            model.write_transfer(folder / "made.h5ad", cells, "treated_1", route=route, overwrite=True)
        return moved(ad.read_h5ad(folder / "made.h5ad"))

    return asked


def query(model, cells, _):
    given = cells.copy() if cells is model.adata else cells
    made = type(model).load_query_data(given, model)
    names = given.obs_names
    return {"own": frame(made.get_latent_representation(), names)} | latent(made, given, _)


def loaded(model, cells, folder):
    model.save(folder / "model", overwrite=True)
    given = cells.copy() if cells is model.adata else cells
    made = type(model).load(folder / "model", given)
    out = {"own": frame(made.get_latent_representation(), given.obs_names)} | latent(made, given, folder)
    return out | {"own expression": made.get_normalized_expression()}


def cross(model, cells, _):
    names, codes = cells.obs_names, model.get_latent_representation
    both = {name: frame(codes(cells, which=name), names) for name in model.modalities}
    more = {f"to {name}": model.predict(name, adata=cells, n_samples=2) for name in model.modalities}
    return both | more | {"from genes": model.predict("prot", from_="rna", adata=cells, n_samples=2)}


METHODS = {
    "get_latent_representation": latent,
    "get_normalized_expression": expression,
    "posterior_predictive_sample": sampled,
    "get_elbo": per_cell("get_elbo", return_mean=False),
    "get_reconstruction_error": per_cell("get_reconstruction_error", return_mean=False),
    "get_marginal_ll": per_cell("get_marginal_ll", return_mean=False, n_mc_samples=2),
    "get_gene_statistics": statistics,
    "get_traversal": along,
    "get_latent_genes": along,
    "get_clusters": named("get_clusters"),
    "get_cluster_probabilities": named("get_cluster_probabilities"),
    "get_cluster_probabilities with n": named("get_cluster_probabilities", n=2),
    "predict_labels": named("predict_labels", soft=True),
    "predict_labels with level": named("predict_labels", level=0.5),
    "get_unknown_score": named("get_unknown_score"),
    "get_novel": novel,
    "get_active": named("get_active"),
    "get_sparsity": named("get_sparsity"),
    "get_latent_cells": active_cells,
    "get_latent_summary": named("get_latent_summary", n_genes=2),
    "differential_expression": differential,
    "annotate": annotations,
    "annotate in place": annotated,
    "write_annotations": written,
    **{name: transferred(route) for name, route in BY_ROUTE.items()},
    "transfer in context": in_context,
    "get_transfer_groups": named("get_transfer_groups"),
    "predict": predicted,
    "write_transfer": write_transferred("decoder"),
    "write_transfer auto": write_transferred("auto"),
    "load_query_data": query,
    "load": loaded,
    "predict of a modality": cross,
}

OF_ALL = {
    "transfer in context",  # the answer is about the cells together
    "get_novel",
    "get_gene_statistics",
    "get_traversal",
    "get_latent_genes",
    "get_latent_summary",
    "differential_expression",
}
NEED_CONDITIONS = {"transfer in context", "predict", "write_transfer", "write_transfer auto", *BY_ROUTE}
REFUSED = {  # in our words
    ("load", "view"): "is a view of another AnnData",
    ("load", "view of a subset"): "is a view of another AnnData",
    ("annotate in place", "subset of backed"): "is a view of cells in the file .* Pass `copy=True`",
    ("load", "alone"): "a model needs at least two",
    ("load_query_data", "alone"): "a model needs at least two",
}


def can(name, method):
    """Whether a model has a method; two have the same name and different arguments."""
    attribute = method.split()[0]
    if method == "predict_labels with level" and "label_parents" not in SETUPS[name]:
        return False
    if attribute in {"predict_labels", "get_unknown_score", "get_novel"} and "labels_key" not in SETUPS[name]:
        return False
    if method in NEED_CONDITIONS and not {"condition_key", "conditions"} & {*SETUPS[name]}:
        return False
    if attribute == "predict" and hasattr(class_of(name), "modalities") != (method != "predict"):
        return False
    return hasattr(class_of(name), attribute)


PAIRS = [(name, method) for name, method in itertools.product(SETUPS, METHODS) if can(name, method)]


def asked(relations):
    """Models, methods and forms: each method of each model, and each code in more forms."""
    seen = set()
    for name, method in PAIRS:
        code = method, getattr(class_of(name), method.split()[0])
        for relation in relations:
            if method in OF_ALL and relation in OTHER_CELLS and relation != "cells reordered":
                continue  # an answer about other cells together is another answer
            if ALL or relation in EVERYWHERE or code not in seen:
                yield name, method, relation
        seen.add(code)


def check(known, name, method, relation, *, still=False):
    expected, model = known.expected(name, method, still), known.model(name)
    cells = (SAME_ORDER | OTHER_CELLS)[relation](known.cells, known.folder)
    if (method, relation) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[method, relation]):
            METHODS[method](model, cells, known.folder)
        return
    same(METHODS[method](model, cells, known.folder), expected, part=still)


@pytest.mark.parametrize(("name", "method", "relation"), list(asked(SAME_ORDER)))
def test_the_same_cells_in_another_form(known, name, method, relation):
    """To the last draw: what is drawn depends on the seed and on the order of the cells, no more."""
    check(known, name, method, relation)


@pytest.mark.parametrize(("name", "method", "relation"), list(asked(OTHER_CELLS)))
def test_other_cells(known, name, method, relation):
    """Without noise, what is said of a cell depends on this cell, wherever it stands and beside whom."""
    with without_noise():
        check(known, name, method, relation, still=True)


@pytest.mark.parametrize("method", [method for name, method in PAIRS if name == "CGMDVAE"])
def test_counts_in_a_layer(known, method):
    """Counts are read where the set-up has said that they are, whatever else there is."""

    def layered():
        cells = known.cells.copy()
        cells.layers["raw"], cells.X = cells.X, sp.csr_matrix(np.log1p(cells.X.toarray()[:, ::-1]))
        return cells

    if "in a layer" not in known:
        known["in a layer"] = trained("CGMDVAE", layered(), layer="raw")
    found = METHODS[method](known["in a layer"], layered(), known.folder)
    same(found, known.expected("CGMDVAE", method, False))


def test_every_method_that_takes_cells_is_asked():
    told = {(name.split("_")[0], method.split()[0]) for name, method in PAIRS}
    others = (*REGISTERS, *REGISTERED, *ELSEWHERE, "report")
    told |= {(name, method) for name in MODELS for method in others}
    for name, cls in MODELS.items():
        for method, function in inspect.getmembers(cls, callable):
            if method.startswith("_") or not function.__module__.startswith("scalloy"):
                continue
            if TAKES & set(inspect.signature(function).parameters):
                assert (name, method) in told, f"{name}.{method} takes cells: add it to METHODS"
