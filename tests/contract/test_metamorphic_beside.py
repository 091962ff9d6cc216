"""The same cells in every form through what stands beside the models' methods: one answer by name.

A new function that takes an AnnData is a line in ``FUNCTIONS``.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from relations import OTHER_CELLS, SAME_ORDER, frame, same, simulated, trained, turned, with_surplus
from typer.testing import CliRunner

import scalloy as sa
from scalloy.cli import main

mpl.use("Agg")
FORMS = {k: SAME_ORDER[k] for k in ("genes permuted", "genes in surplus", "view", "dense", "int64", "CSC")}
FORMS |= {
    "other categories": SAME_ORDER["other categories"],
    "cells reordered": OTHER_CELLS["cells reordered"],
}
TYPES = {"condition_key": "condition", "labels_key": "cluster"}


@pytest.fixture(scope="module")
def cells():
    adata = simulated()
    adata.obsm["X_z"] = np.random.default_rng(7).normal(size=(adata.n_obs, 2))
    adata.obsm["X_z"][:, 0] += 2.0 * (adata.obs["condition"] == "control").to_numpy()
    return adata


@pytest.fixture(scope="module")
def model(cells):
    return trained("CGMDVAE", cells.copy())


# functions --------------------------------------------------------------------------------------


def with_code(changed, cells):
    """The latent space goes along, also where cells were put together anew."""
    if "X_z" not in changed.obsm:
        changed.obsm["X_z"] = frame(cells.obsm["X_z"], cells.obs_names).loc[changed.obs_names].to_numpy()
    return changed


def groups(adata, _):
    table = sa.compare.groups(adata, "X_z", groupby="condition", by="cluster", at_least=5, n_permutations=50)
    table = table.set_index("cluster")
    return {"table": table[["statistic", "n_a", "n_b"]].astype(float), "~": table[["pvalue"]]}


def witness(adata):
    return sa.compare.witness(
        adata, "X_z", groupby="condition", groups=("control", "treated_1"), n_permutations=20
    )


def witnesses(adata, _):
    return {"witness": witness(adata)[["witness"]], "group": witness(adata)[["group"]]}


def genes(adata, cells):
    return {"genes": sa.compare.genes(adata, witness(cells)).astype(float)}


def donors(adata, _):
    found = sa.compare.donors(adata, "X_z", donor_key="lane", by="cluster", at_least=5)
    return {
        "distances": found.distances,
        "map": found.coordinates.abs(),
        "cells": found.outlying[["n_cells"]],
    }


def abundance(adata, _):
    ask = {"groupby": "batch", "by": "cluster", "donor_key": "lane", "at_least": 5}
    table = sa.compare.abundance(adata, **ask).set_index("cluster")
    return {"table": table[["share_a", "share_b", "effect"]].astype(float)}


def expression(adata, _):
    table = sa.compare.expression(adata, groupby="batch", donor_key="lane", at_least=5).set_index("gene")
    return {"table": table[["mean", "log2_fold_change", "pvalue"]].astype(float).sort_index()}


def bars(adata, _):
    ax = sa.pl.clusters(adata, "lane", "batch", kind="composition")
    heights = {box.get_label(): [bar.get_height() for bar in box] for box in ax.containers}
    lanes = [tick.get_text().split()[0] for tick in ax.get_xticklabels()]
    return {"shares": pd.DataFrame(heights, index=lanes)}


def confusion(adata, _):
    ax = sa.pl.confusion(adata.obs["batch"], adata.obs["lane"])
    lanes = [tick.get_text().split()[0] for tick in ax.get_xticklabels()]
    batches = [tick.get_text() for tick in ax.get_yticklabels()]
    return {"shares": pd.DataFrame(np.asarray(ax.images[0].get_array()), index=batches, columns=lanes).T}


def neighbourhoods(adata, cells):
    """Number and mean height of the dots of each label, and where the centres lie."""
    asked = {"groupby": "condition", "donor_key": "lane", "by": "neighbourhoods", "use_rep": "X_z"}
    found = sa.compare.abundance(cells, **asked, n_neighbors=30, at_least=1)
    pair = tuple(found[["group_a", "group_b"]].iloc[0])
    ax = sa.pl.neighbourhoods(found, adata, groupby="cluster", groups=pair)
    at = np.concatenate([np.asarray(dots.get_offsets()) for dots in ax.collections])
    names = np.array([tick.get_text() for tick in ax.get_yticklabels()])
    rows = pd.DataFrame({"label": names[np.round(at[:, 1]).astype(int)], "effect": at[:, 0]})
    ax = sa.pl.neighbourhoods(found, adata, basis="X_z", groups=pair)
    at = np.concatenate([np.asarray(dots.get_offsets()) for dots in ax.collections[1:3]])
    places = pd.DataFrame({"x": at[:, 0]}, index=[f"{x:.6f} {y:.6f}" for x, y in at])
    return {"rows": rows.groupby("label")["effect"].agg(["size", "mean"]).astype(float), "places": places}


def points(adata, _):
    gene = "gene_3"
    ax = sa.pl.latent(adata, gene, basis="X_z")
    drawn = ax.collections[0]
    at = [f"{x:.6f} {y:.6f}" for x, y in np.asarray(drawn.get_offsets())]
    return {"colour": pd.DataFrame({"value": np.asarray(drawn.get_array(), dtype=float)}, index=at)}


def joint(adata, cells):
    """What goes into the picture; the order of genes is that of the control."""
    treated = cells[cells.obs["condition"] == "treated_1"].copy()
    predicted = cells[:20].copy()
    shown = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sc.pp, "neighbors", lambda *_, **__: None)
        patch.setattr(sc.tl, "umap", lambda *_, **__: None)
        picture = import_module("scalloy.pl.transfer")  # the function has the same name
        patch.setattr(picture, "latent", lambda both, *_, **__: shown.update(both=both))
        sa.pl.joint(cells[cells.obs["condition"] == "control"].copy(), treated, adata_of(adata, predicted))
    both = shown["both"]
    codes = np.abs(both.obsm["X_pca"][:, :3])  # the sign of a component is free
    return {"codes": frame(codes, both.obs_names)}


def adata_of(changed, some):
    """These cells, in the form of the others."""
    return changed[some.obs_names].copy()


def baseline(adata, cells):
    made = sa.baselines.Baseline(cells.copy(), "mean shift", **TYPES).transfer(adata, "treated_1")
    return {"expected": frame(made.X, made.obs_names, made.var_names)}


def structured(adata, cells):
    told = {"conditions": sa.Conditions("condition"), "labels_key": "cluster"}
    made = sa.baselines.StructuredBaseline(cells.copy(), **told).transfer(adata, "treated_1")
    return {"expected": frame(made.X, made.obs_names, made.var_names)}


@cache
def shift():
    trained_once = sa.baselines.LatentShift(simulated(), **TYPES, n_hidden=8, n_latent=2)
    trained_once.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    return trained_once


def latent_shift(adata, _):
    made = shift().transfer(adata, "treated_1")
    return {"expected": frame(made.X, made.obs_names, made.var_names)}


def cross_modal(adata, cells):
    rival = sa.baselines.CrossModal(cells.copy(), "ridge")
    return {name: rival.predict(name, other, adata) for name, other in (("prot", "rna"), ("rna", "prot"))}


FUNCTIONS = {
    "compare.groups": groups,
    "compare.witness": witnesses,
    "compare.genes": genes,
    "compare.donors": donors,
    "compare.abundance": abundance,
    "compare.expression": expression,
    "pl.clusters": bars,
    "pl.confusion": confusion,
    "pl.latent": points,
    "pl.neighbourhoods": neighbourhoods,
    "pl.joint": joint,
    "baselines.Baseline": baseline,
    "baselines.StructuredBaseline": structured,
    "baselines.LatentShift": latent_shift,
    "baselines.CrossModal": cross_modal,
}


PAIRS = [(function, relation) for function in FUNCTIONS for relation in FORMS]
for name in ("compare.genes", "compare.expression"):
    PAIRS.remove((name, "genes in surplus"))  # other totals are other expression


@pytest.mark.parametrize(("function", "relation"), PAIRS)
def test_functions(cells, function, relation, tmp_path):
    expected = FUNCTIONS[function](cells.copy(), cells)
    changed = with_code(FORMS[relation](cells, tmp_path), cells)
    found = FUNCTIONS[function](changed, cells)
    same(found, expected, part=relation == "cells reordered")
    plt.close("all")


def test_every_function_that_takes_cells_is_asked():
    for room in ("compare", "pl", "baselines"):
        for name in getattr(sa, room).__all__:
            function = getattr(getattr(sa, room), name)
            parameters = inspect.signature(function).parameters if callable(function) else {}
            if any("AnnData" in str(p.annotation) for p in parameters.values()):
                assert f"{room}.{name}" in FUNCTIONS, f"{room}.{name} takes cells: add it to FUNCTIONS"


# files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory, cells, model):
    folder = tmp_path_factory.mktemp("cli")
    model.save(folder / "model", save_anndata=True)
    for name, made in {"plain": cells.copy(), "turned": with_code(turned(cells, None), cells)}.items():
        made.write_h5ad(folder / f"{name}.h5ad")
    more = with_code(with_surplus(cells), cells)[::-1].copy()
    more.write_h5ad(folder / "more.h5ad")
    return folder


def run(*args):
    done = CliRunner().invoke(main.app, [str(a) for a in args])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("form", ["turned", "more"])
def test_command_line(place, form, model, cells):
    """Cells of a file with genes in another order, and with more genes and other cells first."""
    z = {"z": frame(model.get_latent_representation(), cells.obs_names)}
    run("embed", place / "model", place / f"{form}.h5ad", "-o", place / "out.h5ad", "--force")
    made = ad.read_h5ad(place / "out.h5ad")
    same({"z": frame(made.obsm["X_cgmdvae"], made.obs_names)}, z)
    run("annotate", place / "model", place / f"{form}.h5ad", "-o", place / "out.h5ad", "--force")
    made = ad.read_h5ad(place / "out.h5ad")
    same({"z": frame(made.obsm["X_cgmdvae"], made.obs_names)}, z)
    same({"cluster": made.obs["cgmdvae_cluster"].rename("cluster")}, {"cluster": model.get_clusters()})
    for name in ("plain", form):
        args = ("--to", "treated_1", "--route", "decoder", "--force")
        run("transfer", place / "model", place / f"{name}.h5ad", "-o", place / f"{name}_made.h5ad", *args)
    first, second = (ad.read_h5ad(place / f"{name}_made.h5ad") for name in ("plain", form))
    made = [{"x": frame(a.X, a.obs_names, a.var_names), "genes": a.var[["symbol"]]} for a in (second, first)]
    same(*made)
    for name in ("plain", form):
        args = ("--groupby", "condition", "--permutations", 20)
        run("compare", place / "model", place / f"{name}.h5ad", *args, "-o", place / f"{name}.csv", "--force")
    first, second = (pd.read_csv(place / f"{name}.csv") for name in ("plain", form))
    np.testing.assert_allclose(second["statistic"], first["statistic"], rtol=1e-3)


def test_report(place, model, cells, tmp_path):
    """To the last byte."""
    pages = []
    for form in (cells.copy(), with_code(with_surplus(cells), cells), with_code(turned(cells, None), cells)):
        model.report(tmp_path / "page.html", form, title="page", overwrite=True)
        pages.append((tmp_path / "page.html").read_bytes())
    assert pages[0] == pages[1] == pages[2]


def by_name(made):
    return {"x": frame(made.X, made.obs_names, made.var_names)}


def test_a_model_loaded_with_cells_in_another_form(place, model):
    """What needs the model's own cells: generated cells, and what groups have shown."""
    expected = by_name(model.generate(6))
    for form in ("turned", "more"):
        loaded = sa.load(place / "model", ad.read_h5ad(place / f"{form}.h5ad"))
        if form == "turned":  # the same templates
            same(by_name(loaded.generate(6)), expected)
        usage = loaded.get_usage(by="lane")
        np.testing.assert_allclose(usage, model.get_usage(by="lane"), rtol=1e-4)
        given = simulated()[:10].copy()
        first, second = (m.transfer(given, "treated_1") for m in (model, loaded))
        same(by_name(second), by_name(first))


def test_two_modalities_by_name(cells):
    """A MuData whose modalities have their cells and variables in orders of their own."""
    model = trained("POISEVAE", cells.copy())
    expected = {
        "z": frame(model.get_latent_representation(), cells.obs_names),
        "prot": model.predict("prot", from_="rna"),
        "rna": model.predict("rna", from_="prot"),
    }
    rna = with_surplus(cells)[::-1].copy()
    frame_of_proteins = cells.obsm["protein_counts"].iloc[:, ::-1]
    prot = ad.AnnData(frame_of_proteins.to_numpy(dtype=np.float32), obs=cells.obs[[]].copy())
    prot.var_names = frame_of_proteins.columns
    mdata = mudata.MuData({"rna": rna, "prot": prot[np.random.default_rng(3).permutation(prot.n_obs)].copy()})
    found = {
        "z": frame(model.get_latent_representation(mdata), mdata.obs_names),
        "prot": model.predict("prot", from_="rna", adata=mdata).loc[cells.obs_names],
        "rna": model.predict("rna", from_="prot", adata=mdata).loc[cells.obs_names],
    }
    same({"z": found["z"]}, {"z": expected["z"]})
    for name in ("prot", "rna"):  # means over samples, which depend on the order of cells
        tables = found[name][expected[name].columns], expected[name]
        assert np.corrcoef(*(np.log1p(table.to_numpy()).ravel() for table in tables))[0, 1] > 0.98
