"""Real data that ship with the package, larger ones by download, and simulations whose truth is known."""

from __future__ import annotations

import gzip
import os
from importlib.resources import as_file, files
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

#: Larger data sets: file name and its sha256.
DOWNLOADS = {
    "kang_pbmc.h5ad": "affc6fe08ce9bfa5b4cba45b1a623cdecc28260234604cce034ed9bd76916c88",
    "pbmc3k.h5ad": "b7e72bf97c37151acbe9be49a0d4bf7c72194d23589a381bc6e071f2d91ab5c7",
    "pbmc4k_dcc.h5ad": "8bc5eedea15ae9a013c390f5b2a6612e5b67c3bf53eba11a884c80a74f0cd50f",
    "mouse_bladder_2746.h5ad": "fcd687ee2d7c1fca43de3b4f7fc17972f62b3f21f83fd5d774e5db9430dd9437",
    "zeisel_cortex.h5ad": "bb66c8f01973d891dd670754baa24013274f4b5caffdff42d7da0f7e81089675",
    "paul15.h5ad": "b43cb559ba3a6ec7956801693f3aa3ab36497cff5a74ea4c3083731d9afe3c7e",
    "pbmc10k_citeseq.h5ad": "0f425762d87215a570b68071650ea9ddeb63559a38117908e345ef8b05c90c28",
    "pbmc_4study.h5ad": "c3eec8263b11f225f1ad11162c02a5a60d3a312a3ec1011ec9a4bc1be3e0c930",
    "mnist/train-images-idx3-ubyte.gz": "7ff28fd295f802eefc6d40e461175dfe4b969b1842b2abc8c6dc8c20711cf79f",
    "mnist/train-labels-idx1-ubyte.gz": "81a978ae83d39ffdba0db3ce2fcaf80a8921e9629e874428996a2b03242d4b2a",
}


def kang(*, full: bool = False) -> AnnData:
    """PBMC of eight lupus patients, control and stimulated with interferon beta (Kang et al. 2018).

    The embedded subset has about 6,000 cells of all eight cell types, both conditions and all donors, and
    2,500 variable genes, as raw counts; ``scripts/make_kang_subset.py`` made it. Columns of ``.obs``:
    ``cell_type``, ``condition`` (control / stimulated), ``batch`` (donor), ``label_source`` and, in the
    subset, ``n_counts`` over all genes.

    Parameters
    ----------
    full
        All 16,412 cells and 13,966 genes: see :func:`fetch`.
    """
    if full:
        adata = ad.read_h5ad(fetch("kang_pbmc.h5ad"))
        adata.obs["condition"] = adata.obs["condition"].cat.rename_categories(
            {"ctrl": "control", "stim": "stimulated"}
        )
        return adata
    with as_file(files("scalloy.data") / "kang_subset.h5ad") as path:
        return ad.read_h5ad(path)


def citeseq(*, full: bool = False) -> AnnData:
    """PBMC with RNA and protein (10x Genomics, CITE-seq), raw counts of both.

    1,000 variable genes, and 14 proteins in ``.obsm["protein_counts"]``; ``.obs["cell_type"]`` has seven
    types named after their proteins. The embedded subset has 2,500 cells; ``scripts/make_citeseq_subset.py``
    made it.

    Parameters
    ----------
    full
        All 6,661 cells: see :func:`fetch`.
    """
    if full:
        return ad.read_h5ad(fetch("pbmc10k_citeseq.h5ad"))
    with as_file(files("scalloy.data") / "citeseq_subset.h5ad") as path:
        return ad.read_h5ad(path)


def pbmc3k() -> AnnData:
    """2,638 PBMC with nine cell types of Seurat's tutorial, raw counts of all genes; see :func:`fetch`."""
    return ad.read_h5ad(fetch("pbmc3k.h5ad"))


def labelled(name: str) -> AnnData:
    """A data set for benchmarks with ``obs["cell_type"]``, raw counts; see :func:`fetch`.

    Parameters
    ----------
    name
        ``"pbmc4k_dcc"`` (4,271 PBMC, 8 types), ``"mouse_bladder_2746"`` (16 types), ``"zeisel_cortex"``
        (3,005 cells, 7 classes), ``"paul15"`` (2,730 cells, 19 clusters of a continuum),
        ``"pbmc_4study"`` (12,588 PBMC of four studies), ``"pbmc3k"``.
    """
    return ad.read_h5ad(fetch(f"{name}.h5ad"))


def digits(n: int | None = None, *, seed: int = 0) -> AnnData:
    """Handwritten digits (MNIST): grey levels of 28 x 28 pixels and ``obs["digit"]``; see :func:`fetch`.

    Values lie in [0, 1]: ``allow_non_counts=True`` in set-up and ``gene_likelihood="bernoulli_given"``.

    Parameters
    ----------
    n
        How many of the 60,000, drawn at random; ``None`` is all.
    seed
        Of the draw.
    """
    pixels, labels = (
        np.frombuffer(gzip.decompress(fetch(f"mnist/train-{kind}-ubyte.gz").read_bytes()), np.uint8)[skip:]
        for kind, skip in (("images-idx3", 16), ("labels-idx1", 8))
    )
    rows = np.arange(len(labels))
    if n is not None:
        rows = np.sort(np.random.default_rng(seed).choice(rows, min(n, len(rows)), replace=False))
    grey = pixels.reshape(len(labels), -1)[rows].astype(np.float32) / 255
    obs = pd.DataFrame(
        {"digit": pd.Categorical(labels[rows].astype(str))}, index=[f"image_{i}" for i in rows]
    )
    return AnnData(sp.csr_matrix(grey), obs=obs, var=pd.DataFrame(index=[f"pixel_{i}" for i in range(784)]))


def fetch(name: str) -> Path:
    """Path of a larger data set.

    It is looked for in the folder ``$SCALLOY_DATA``, then in the cache of earlier downloads, and else
    downloaded from ``$SCALLOY_DATA_URL``; the checksum of what was downloaded is verified.

    Parameters
    ----------
    name
        A key of :data:`DOWNLOADS`.
    """
    if name not in DOWNLOADS:
        msg = f"`name={name!r}` is not known. Pass one of: {', '.join(DOWNLOADS)}."
        raise ValueError(msg)
    folder, url = os.environ.get("SCALLOY_DATA"), os.environ.get("SCALLOY_DATA_URL")
    if folder and (Path(folder) / name).is_file():
        return Path(folder) / name
    import pooch

    cached = pooch.os_cache("scalloy") / name
    if not url and not cached.is_file():
        where = f"`$SCALLOY_DATA={folder}` holds no {name}" if folder else "`$SCALLOY_DATA` is not set"
        msg = (
            f"{where}. Set it to a folder that holds {name} (sha256 {DOWNLOADS[name][:12]}...), or set "
            "`$SCALLOY_DATA_URL` to the address of a folder to download it from."
        )
        raise FileNotFoundError(msg)
    address = f"{(url or '').rstrip('/')}/{name}"
    return Path(pooch.retrieve(address, known_hash=DOWNLOADS[name], fname=cached.name, path=cached.parent))


def simulate(
    n_obs: int = 2000,
    n_vars: int = 200,
    *,
    n_clusters: int = 5,
    n_conditions: int = 2,
    n_batches: int = 2,
    n_proteins: int = 0,
    proportions: np.ndarray | None = None,
    theta: float = 4.0,
    library: float = 1500.0,
    effect: float = 1.0,
    batch_effect: float = 0.2,
    seed: int = 0,
) -> AnnData:
    r"""Negative binomial counts of clusters under conditions and in batches, with the truth beside them.

    The mean is :math:`\ell_n\,\mathrm{softmax}_g(` gene + cluster + within-cluster factors + condition +
    cluster x condition + batch :math:`)`.

    Parameters
    ----------
    n_obs, n_vars
        Cells and genes.
    n_clusters, n_conditions, n_batches
        Their numbers; ``obs`` names them.
    n_proteins
        Features of a second modality, in ``obsm["protein_counts"]``.
    proportions
        Of the clusters; equal unless given.
    theta
        Inverse dispersion of the counts.
    library
        Median library size.
    effect
        Standard deviation of the condition's effect on the genes that respond.
    batch_effect
        Standard deviation of the batch's effect.
    seed
        Of everything.

    Returns
    -------
    AnnData with ``obs`` ``cluster``, ``condition``, ``batch``; the true mean of each cell under each
    condition in ``layers["mean_<condition>"]``, its own in ``layers["mean"]``; and the true inverse
    dispersion in ``uns["theta"]``.
    """
    rng = np.random.default_rng(seed)
    shares = np.full(n_clusters, 1 / n_clusters) if proportions is None else np.asarray(proportions)
    k = rng.choice(n_clusters, n_obs, p=shares / shares.sum())
    c, b = rng.integers(n_conditions, size=n_obs), rng.integers(n_batches, size=n_obs)

    def sparse_effects(rows: int, share: float, scale: float) -> np.ndarray:
        return rng.normal(0, scale, (rows, n_vars)) * (rng.random((rows, n_vars)) < share)

    gene = rng.normal(0, 1.2, n_vars)
    cluster = sparse_effects(n_clusters, 0.3, 1.2)
    factors = rng.normal(size=(n_obs, 2)) @ sparse_effects(2, 0.3, 0.25)
    shift = sparse_effects(n_conditions, 0.15, effect)
    shift[0] = 0
    own = 0.3 * sparse_effects(n_clusters * n_conditions, 0.1, effect)
    own = own.reshape(n_clusters, n_conditions, n_vars)
    own[:, 0] = 0
    batch = rng.normal(0, batch_effect, (n_batches, n_vars))
    batch[0] = 0
    ell = library * rng.lognormal(0, 0.3, (n_obs, 1))

    def mean_under(code: np.ndarray) -> np.ndarray:
        eta = gene + cluster[k] + factors + shift[code] + own[k, code] + batch[b]
        eta = np.exp(eta - eta.max(axis=1, keepdims=True))
        return (ell * eta / eta.sum(axis=1, keepdims=True)).astype(np.float32)

    names = ["control", *[f"treated_{i}" for i in range(1, n_conditions)]]
    mean = mean_under(c)
    counts = rng.poisson(rng.gamma(theta, mean / theta))
    counts[counts.sum(axis=1) == 0, 0] = 1
    obs = pd.DataFrame(
        {
            "cluster": pd.Categorical([f"cluster_{i}" for i in k]),
            "condition": pd.Categorical([names[i] for i in c]),
            "batch": pd.Categorical([f"batch_{i}" for i in b]),
        },
        index=[f"cell_{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_vars)])
    adata = AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)
    adata.layers["mean"] = mean
    for code, name in enumerate(names):
        adata.layers[f"mean_{name}"] = mean_under(np.full(n_obs, code))
    adata.uns["theta"] = theta
    if n_proteins:
        protein = np.exp(rng.normal(2, 0.5, n_proteins) + rng.normal(0, 1.2, (n_clusters, n_proteins)))[k]
        protein = rng.poisson(rng.gamma(10.0, protein / 10.0))
        columns = [f"protein_{i}" for i in range(n_proteins)]
        adata.obsm["protein_counts"] = pd.DataFrame(protein, index=obs.index, columns=columns)
    return adata


def programs(
    n_obs: int = 3000,
    n_vars: int = 500,
    *,
    n_programs: int = 8,
    active: float = 0.2,
    signed: bool = False,
    theta: float = 4.0,
    library: float = 2000.0,
    seed: int = 0,
) -> AnnData:
    r"""Negative binomial counts of cells that use a few programs of genes each: truly sparse factors.

    The mean is :math:`\ell_n\,\mathrm{softmax}_g(` gene + activities x effects :math:`)`; a program acts on
    a tenth of the genes.

    Parameters
    ----------
    n_obs, n_vars
        Cells and genes.
    n_programs
        Number of programs.
    active
        Share of them that is on in a cell.
    signed
        Whether activities are standard normal where they are not zero, and effects of either sign; otherwise
        they are above zero (Gamma with mean 1 and variance 1/4), as of programs that are switched on.
    theta, library
        As in :func:`simulate`.
    seed
        Of everything.

    Returns
    -------
    AnnData with the activities in ``obsm["programs"]`` and the effects in ``varm["programs"]``.
    """
    rng = np.random.default_rng(seed)
    on = rng.random((n_obs, n_programs)) < active
    activity = on * (rng.normal(size=on.shape) if signed else rng.gamma(4.0, 0.25, on.shape))
    effect = rng.normal(0, 1.0, (n_programs, n_vars)) * (rng.random((n_programs, n_vars)) < 0.1)
    effect = effect if signed else 1.5 * np.abs(effect)
    eta = rng.normal(0, 1.2, n_vars) + activity @ effect
    eta = np.exp(eta - eta.max(axis=1, keepdims=True))
    mean = library * rng.lognormal(0, 0.3, (n_obs, 1)) * eta / eta.sum(axis=1, keepdims=True)
    counts = rng.poisson(rng.gamma(theta, mean / theta)).astype(np.float32)
    counts[counts.sum(axis=1) == 0, 0] = 1
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(n_obs)])
    adata = AnnData(
        sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"gene_{i}" for i in range(n_vars)])
    )
    adata.obsm["programs"], adata.varm["programs"] = activity, effect.T
    return adata


def poisson_genes(n_obs: int = 2000, *, n_vars: int = 10, seed: int = 0) -> AnnData:
    """Independent Poisson genes with rates 1, 2, ..., ``n_vars`` (``var["rate"]``), the scVAE review's check.

    Parameters
    ----------
    n_obs, n_vars
        Cells and genes.
    seed
        Of the draw.
    """
    rate = np.arange(1, n_vars + 1, dtype=float)
    counts = np.random.default_rng(seed).poisson(rate, (n_obs, n_vars)).astype(np.float32)
    counts[counts.sum(axis=1) == 0, 0] = 1
    var = pd.DataFrame({"rate": rate}, index=[f"gene_{i}" for i in range(1, n_vars + 1)])
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(n_obs)])
    return AnnData(sp.csr_matrix(counts), obs=obs, var=var)


def blobs(
    n_per_group: int = 350,
    *,
    n_vars: int = 16,
    n_clusters: int = 5,
    n_conditions: int = 2,
    effect: float = 1.5,
    seed: int = 0,
) -> AnnData:
    """Gaussian blobs whose centres move under each condition, the toy set of Kolb's thesis (2023).

    The data are continuous: set up with ``allow_non_counts=True`` and model with ``"normal"``.

    Parameters
    ----------
    n_per_group
        Points of each cluster under each condition.
    n_vars, n_clusters, n_conditions
        Their numbers.
    effect
        Mean shift of a treated cluster in each dimension.
    seed
        Of everything.
    """
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 10, (n_clusters, n_vars))
    spread = rng.uniform(0, 0.5, (n_clusters, n_vars))
    parts, rows = [], []
    for code in range(n_conditions):
        moved = code > 0
        shift = moved * (effect + 0.5 * rng.normal(size=(n_clusters, n_vars)))
        scale = np.abs(spread + moved * 0.01 * rng.normal(size=(n_clusters, n_vars)))
        for k in range(n_clusters):
            parts.append(rng.normal(centre[k] + shift[k], scale[k], (n_per_group, n_vars)))
            name = f"treated_{code}" if moved else "control"
            rows += [(f"cluster_{k}", name)] * n_per_group
    obs = pd.DataFrame(rows, columns=["cluster", "condition"], dtype="category")
    obs.index = [f"point_{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"x{i}" for i in range(n_vars)])
    return AnnData(np.concatenate(parts).astype(np.float32), obs=obs, var=var)
