"""Cells in other forms, models to read them, and how answers are compared by name.

``tests/contract/test_metamorphic.py`` asks every method about the same cells in every form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import scalloy as sa

N, G = 90, 24
FEW = [17, 3, 58, 41, 66]  # rows of a subset, not in their order
SMALL = {"n_hidden": 8, "n_latent": 2}
BESIDE = {"batch_key": "batch", "labels_key": "cluster"}
COLUMNS = {"categorical_covariate_keys": ["lane"], "continuous_covariate_keys": ["score"]}
UNDER = {"condition_key": "condition"}
UNKNOWN = {"unlabeled_category": "unknown"}
TREE = {"label_parents": {"cluster_0": "T", "cluster_1": "T"}}
SETUPS: dict[str, dict[str, Any]] = {
    "AE": BESIDE,
    "VAE": BESIDE | COLUMNS,
    "BetaVAE": BESIDE | {"size_factor_key": "size"},
    "GMVAE": BESIDE,
    "BetaVSC": BESIDE,
    "TRVAE": BESIDE | UNDER,
    "CGMDVAE": BESIDE | UNDER | UNKNOWN | COLUMNS,
    "CGMDVAE_free": UNDER,
    "CGMDVAE_tree": BESIDE | UNKNOWN | TREE,
    "POISEVAE": BESIDE | {"protein_obsm_key": "protein_counts"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "VAE": {"gene_likelihood": "zinb"},
    "BetaVAE": {"beta": 3.0},
    "GMVAE": {"n_clusters": 3},
    "CGMDVAE": {"n_w": 2, "conditioning": "full"},
    "POISEVAE": {"n_chains": 16},
}


def simulated() -> ad.AnnData:
    """Cells with two batches, two conditions and unknown labels; no names are in alphabetical order."""
    adata = sa.datasets.simulate(N, G, n_clusters=3, seed=4, n_proteins=3)
    for layer in [k for k in adata.layers if k is not None]:  # which newer anndata has for `.X`
        del adata.layers[layer]
    rng = np.random.default_rng(0)
    adata.obs_names = [f"cell_{i}" for i in rng.permutation(N)]
    adata.var_names = [f"gene_{i}" for i in rng.permutation(G)]
    adata.var["symbol"] = [f"symbol of {name}" for name in adata.var_names]
    adata.obs["cluster"] = np.where(rng.random(N) < 0.2, "unknown", adata.obs["cluster"].astype(str))
    adata.obs["lane"] = np.resize(["a", "b", "c"], N)
    adata.obs["score"] = rng.normal(size=N)
    adata.obs["size"] = np.asarray(adata.X.sum(axis=1)).ravel() * rng.uniform(0.5, 2.0, N)
    return adata


def class_of(name: str) -> Any:
    return getattr(sa, name.split("_")[0])


def trained(name: str, adata: ad.AnnData, layer: str | None = None) -> Any:
    """A small model of these cells."""
    class_of(name).setup_anndata(adata, layer=layer, **SETUPS[name])
    model = class_of(name)(adata, **SMALL, **OPTIONS.get(name, {}))
    model.train(max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    return model


# the same cells in the same order ---------------------------------------------------------------


def in_file(adata: ad.AnnData, folder: Path) -> Path:
    file = folder / "cells.h5ad"
    if not file.exists():
        adata.write_h5ad(file)
    return file


def with_surplus(adata: ad.AnnData, _: Any = None) -> ad.AnnData:
    """Genes that no model knows between the others, and a protein."""
    rng = np.random.default_rng(1)
    var = pd.DataFrame({"symbol": [f"new_{i}" for i in range(4)]}, index=[f"extra_{i}" for i in range(4)])
    extra = ad.AnnData(sp.csr_matrix(rng.poisson(3.0, (adata.n_obs, 4)).astype(np.float32)), var=var)
    extra.obs_names = adata.obs_names
    bare = ad.AnnData(adata.X, obs=pd.DataFrame(index=adata.obs_names), var=adata.var)
    order = rng.permutation(adata.n_vars + 4)
    out = ad.concat([bare, extra], axis=1)[:, order].copy()
    out.obs, out.obsm["protein_counts"] = adata.obs.copy(), adata.obsm["protein_counts"].copy()
    out.obsm["protein_counts"]["more"] = 7.0
    return out


def turned(adata: ad.AnnData, _: Any) -> ad.AnnData:
    """Genes and proteins in another order."""
    out = adata[:, np.random.default_rng(2).permutation(adata.n_vars)].copy()
    out.obsm["protein_counts"] = out.obsm["protein_counts"].iloc[:, ::-1]
    return out


def with_matrix(convert: Callable[[Any], Any]) -> Callable[..., ad.AnnData]:
    def changed(adata: ad.AnnData, _: Any) -> ad.AnnData:
        out = adata.copy()
        out.X = convert(adata.X)
        return out

    return changed


def stored_zeros(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix, with zeros among its entries and columns of a row in no order."""
    full = sp.csr_matrix(np.ones(x.shape, dtype=np.float32))
    columns = np.argsort(np.random.default_rng(3).random(x.shape), axis=1)
    values = np.take_along_axis(x.toarray(), columns, axis=1)
    return sp.csr_matrix((values.ravel(), columns.ravel(), full.indptr), shape=x.shape)


def other_categories(adata: ad.AnnData, _: Any) -> ad.AnnData:
    """Columns as categories in another order, with some that no cell has."""
    out = adata.copy()
    for key in ("batch", "cluster", "condition", "lane"):
        names = sorted(out.obs[key].astype(str).unique(), reverse=True)
        out.obs[key] = pd.Categorical(out.obs[key].astype(str), categories=["never", *names])
    out.obs["more"] = np.arange(out.n_obs)
    out.obs = out.obs[out.obs.columns[::-1]]
    return out


def stored(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    if not (folder / "store.zarr").exists():
        sa.data.write_store(in_file(adata, folder), folder / "store.zarr")
    return sa.data.open_store(folder / "store.zarr")


SAME_ORDER: dict[str, Callable[[ad.AnnData, Path], ad.AnnData]] = {
    "genes permuted": turned,
    "genes in surplus": with_surplus,
    "copy": lambda adata, _: adata.copy(),
    "view": lambda adata, _: adata[:],
    "view of genes": lambda adata, _: with_surplus(adata)[:, adata.var_names[::-1]],
    "backed": lambda adata, folder: ad.read_h5ad(in_file(adata, folder), backed="r"),
    "CSC": with_matrix(sp.csc_matrix),
    "CSR array": with_matrix(sp.csr_array),
    "dense": with_matrix(lambda x: x.toarray()),
    "dense by columns": with_matrix(lambda x: np.asfortranarray(x.toarray())),
    "float64": with_matrix(lambda x: x.astype(np.float64)),
    "int64": with_matrix(lambda x: x.astype(np.int64)),
    "stored zeros": with_matrix(stored_zeros),
    "other categories": other_categories,
}

# other cells, or in another order ---------------------------------------------------------------

EVERYWHERE = (  # asked of each method of each model; the others of each method once, as the reading is one
    "genes in surplus",
    "backed",
    "other categories",
    "cells reordered",
    "subset of backed",
)
OTHER_CELLS: dict[str, Callable[[ad.AnnData, Path], ad.AnnData]] = {
    "cells reordered": lambda adata, _: adata[::-1].copy(),
    "subset": lambda adata, _: adata[FEW].copy(),
    "view of a subset": lambda adata, _: adata[FEW],
    "subset of backed": lambda adata, folder: ad.read_h5ad(in_file(adata, folder), backed="r")[sorted(FEW)],
    "alone": lambda adata, _: adata[FEW[0]].copy(),
}


@contextmanager
def without_noise() -> Iterator[None]:
    """Whatever torch draws is its middle, so that an answer about a cell depends on this cell only."""

    def middle(*size: Any, **about: Any) -> torch.Tensor:
        size = size[0] if isinstance(size[0], tuple | list | torch.Size) else size
        return torch.zeros(tuple(size), dtype=about.get("dtype"), device=about.get("device"))

    replaced = {
        (torch.distributions.normal, "_standard_normal"): lambda shape, dtype, device: torch.zeros(shape),
        (torch, "normal"): lambda mean, std=1.0, **_: mean + 0 * std,
        (torch, "randn"): middle,
        (torch, "randn_like"): lambda x, **_: torch.zeros_like(x),
        (torch, "rand"): lambda *size, **about: middle(*size, **about) + 0.5,
        (torch, "rand_like"): lambda x, **_: torch.full_like(x, 0.5),
        (torch, "poisson"): lambda rate, **_: rate.clone(),
        (torch, "_standard_gamma"): lambda shape, **_: shape.clone(),
        (torch, "bernoulli"): lambda p, **_: (p > 0.5).to(p),
        (torch, "multinomial"): lambda p, n, *_, **__: p.argmax(-1, keepdim=True).expand(*p.shape[:-1], n),
    }
    before = {where: getattr(*where) for where in replaced}
    try:
        for (module, name), function in replaced.items():
            setattr(module, name, function)
        yield
    finally:
        for (module, name), function in before.items():
            setattr(module, name, function)


# by name ----------------------------------------------------------------------------------------


def frame(values: Any, cells: Any, columns: Any = None) -> pd.DataFrame:
    """An array by the names of cells (and genes)."""
    values = values.toarray() if sp.issparse(values) else np.asarray(values)
    values = values.reshape(len(values), -1)
    return pd.DataFrame(values, index=pd.Index(cells).astype(str), columns=columns)


def same(found: dict[str, Any], expected: dict[str, Any], *, part: bool = False) -> None:
    """Each answer is the expected one by its names; with ``part`` about some of the cells only."""
    for key, wanted in expected.items():
        if part and key.startswith("~"):  # draws that depend on the order of cells
            continue
        given = found[key]
        if not isinstance(wanted, pd.DataFrame | pd.Series):
            assert given == wanted, key
            continue
        wanted, given = (pd.DataFrame(v) for v in (wanted, given))
        assert given.index.is_unique, key
        assert set(given.columns) == set(wanted.columns), key
        assert set(given.index) <= set(wanted.index), key
        assert part or len(given) == len(wanted), key
        wanted = wanted.loc[given.index, list(given.columns)]
        for name in given:
            a, b = given[name], wanted[name]
            if pd.api.types.is_float_dtype(b.dtype):
                np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=f"{key}: {name}")
            else:
                assert list(a.astype(str)) == list(b.astype(str)), f"{key}: {name}"
