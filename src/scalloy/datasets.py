"""Real data shipped with the package, larger data sets to download, and simulations with a known truth."""

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

#: Larger data sets: file names and their sha256.
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
    """Load PBMC of eight lupus patients, control and stimulated with interferon beta (Kang et al. 2018).

    The embedded subset (``scripts/make_kang_subset.py``) holds raw counts of 2,500 variable genes in about
    6,000 cells of all eight types, both conditions and all donors. Columns of ``.obs``: ``cell_type``,
    ``condition``, ``batch`` (donor), ``label_source`` and, in the subset, ``n_counts`` over all genes.

    Parameters
    ----------
    full
        Whether to load all 16,412 cells and 13,966 genes, found or downloaded by :func:`fetch`.

    Examples
    --------
    >>> sa.datasets.kang().obs["condition"].cat.categories.tolist()
    ['control', 'stimulated']
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
    """Load PBMC with raw counts of RNA and protein (10x Genomics, CITE-seq).

    There are 1,000 variable genes, and 14 proteins in ``.obsm["protein_counts"]``. ``.obs["cell_type"]`` has
    seven types, named after their proteins. The embedded subset, made by
    ``scripts/make_citeseq_subset.py``, has 2,500 cells.

    Parameters
    ----------
    full
        Whether to load all 6,661 cells, found or downloaded by :func:`fetch`.

    Examples
    --------
    >>> sa.datasets.citeseq().obsm["protein_counts"].shape
    (2500, 14)
    """
    if full:
        return ad.read_h5ad(fetch("pbmc10k_citeseq.h5ad"))
    with as_file(files("scalloy.data") / "citeseq_subset.h5ad") as path:
        return ad.read_h5ad(path)


def pbmc3k() -> AnnData:
    """Load raw counts of the 2,638 PBMC (nine cell types) of Seurat's tutorial; see :func:`fetch`.

    Examples
    --------
    >>> adata = sa.datasets.pbmc3k()  # doctest: +SKIP
    """
    return ad.read_h5ad(fetch("pbmc3k.h5ad"))


def labelled(name: str) -> AnnData:
    """Load a benchmark data set: raw counts with cell types in ``obs["cell_type"]``; see :func:`fetch`.

    Parameters
    ----------
    name
        Name of the data set: ``"pbmc4k_dcc"`` (4,271 PBMC, 8 types), ``"mouse_bladder_2746"`` (16 types),
        ``"zeisel_cortex"`` (3,005 cells, 7 classes), ``"paul15"`` (2,730 cells, 19 clusters of a continuum),
        ``"pbmc_4study"`` (12,588 PBMC of four studies) or ``"pbmc3k"``.

    Examples
    --------
    >>> adata = sa.datasets.labelled("paul15")  # doctest: +SKIP
    """
    return ad.read_h5ad(fetch(f"{name}.h5ad"))


def digits(n: int | None = None, *, seed: int = 0) -> AnnData:
    """Load handwritten digits (MNIST): grey levels of 28 x 28 pixels and ``obs["digit"]``; see :func:`fetch`.

    Values lie in [0, 1], so set up with ``allow_non_counts=True`` and model with
    ``gene_likelihood="bernoulli_given"``.

    Parameters
    ----------
    n
        Number of images to draw at random; ``None`` returns all 60,000.
    seed
        Random seed of the draw.

    Examples
    --------
    >>> adata = sa.datasets.digits(1000)  # doctest: +SKIP
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
    """Return the path of a larger data set, downloading it if necessary.

    The file is looked for in the folder ``$SCALLOY_DATA``, then in the cache of earlier downloads. If it is
    in neither, it is downloaded from ``$SCALLOY_DATA_URL``. The checksum of a downloaded file is verified.

    Parameters
    ----------
    name
        File name, a key of :data:`DOWNLOADS`.

    Examples
    --------
    >>> path = sa.datasets.fetch("pbmc3k.h5ad")  # doctest: +SKIP
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
    r"""Simulate negative binomial counts of clusters under conditions and in batches, with the true means.

    The mean is :math:`\ell_n\,\mathrm{softmax}_g(` gene + cluster + within-cluster factors + condition +
    cluster x condition + batch :math:`)`.

    Parameters
    ----------
    n_obs, n_vars
        Number of cells and genes.
    n_clusters, n_conditions, n_batches
        Number of clusters, conditions and batches, whose names are in ``obs``.
    n_proteins
        Number of features of a second modality in ``obsm["protein_counts"]``; there is none if 0.
    proportions
        Proportions of the clusters; ``None`` makes them equal.
    theta, library
        Inverse dispersion of the counts, and median library size.
    effect, batch_effect
        Standard deviation of a condition's effect (across the genes that respond) and of a batch's effect on
        the log scale.
    seed
        Random seed.

    Returns
    -------
    AnnData with the columns ``cluster``, ``condition`` and ``batch`` in ``obs``, the true mean of each cell
    in ``layers["mean"]``, its mean under each condition in ``layers["mean_<condition>"]``, and the true
    inverse dispersion in ``uns["theta"]``.

    Examples
    --------
    >>> "mean_treated_1" in sa.datasets.simulate(100, 20).layers
    True
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
    r"""Simulate negative binomial counts of cells in which only a few gene programs are on (sparse factors).

    The mean is :math:`\ell_n\,\mathrm{softmax}_g(` gene + activities x effects :math:`)`; each program acts
    on about a tenth of the genes.

    Parameters
    ----------
    n_obs, n_vars, n_programs
        Number of cells, genes and programs.
    active
        Probability that a program is on in a cell.
    signed
        Whether activities of programs that are on are standard normal and effects have either sign; otherwise
        activities are gamma distributed with mean 1 and variance 1/4, and effects are positive.
    theta, library
        Inverse dispersion of the counts, and median library size.
    seed
        Random seed.

    Returns
    -------
    AnnData with the activities (cells x programs) in ``obsm["programs"]`` and the effects (genes x programs)
    in ``varm["programs"]``.

    Examples
    --------
    >>> sa.datasets.programs(100, 50).obsm["programs"].shape
    (100, 8)
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
    """Simulate independent Poisson genes with ``var["rate"]`` 1, 2, ..., the check of the scVAE review.

    Parameters
    ----------
    n_obs, n_vars
        Number of cells and genes.
    seed
        Random seed.

    Examples
    --------
    >>> sa.datasets.poisson_genes(100, n_vars=3).var["rate"].tolist()
    [1.0, 2.0, 3.0]
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
    """Simulate Gaussian blobs whose centres move under each condition, the toy data of Kolb's thesis (2023).

    The data are continuous, so set up with ``allow_non_counts=True`` and model with
    ``gene_likelihood="normal"``.

    Parameters
    ----------
    n_per_group
        Number of points of each cluster under each condition.
    n_vars, n_clusters, n_conditions
        Number of dimensions, clusters and conditions.
    effect
        Mean shift of a treated cluster in each dimension.
    seed
        Random seed.

    Examples
    --------
    >>> sa.datasets.blobs(10, n_vars=2).shape  # 5 clusters under 2 conditions
    (100, 2)
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
