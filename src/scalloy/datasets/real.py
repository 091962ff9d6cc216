"""Real data shipped with the package, and larger data sets to download."""

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
    "pbmc68k_1500.h5ad": "21d6745d73a259d937596fce9b393942860ecfa398a3aa498d6c7ec1cc2803e4",
    "pbmc68k_reduced_counts.h5ad": "30fe14200729b27bd3dd091a93e8ed52d8f28fb0800ce842b9428f979925cc3e",
    "pbmc10k_citeseq.h5ad": "0f425762d87215a570b68071650ea9ddeb63559a38117908e345ef8b05c90c28",
    "pbmc_4study.h5ad": "c3eec8263b11f225f1ad11162c02a5a60d3a312a3ec1011ec9a4bc1be3e0c930",
    "mixology_3tech.h5ad": "fe8682313543f16084a036bf14d8fadf58f8e37c2489d7791d36d0e072b654a5",
    "papalexi_299genes.h5ad": "e9ddb5f9d708c790fd957aad9686abb65084fc9214775cce0bfa2b57784a945d",
    "mouse_embryo_tal1.h5ad": "eb366f11047979c892ba6e976f117e52c5d21bffae38cbd5a9eb87be5c2c4584",
    "norman_dev.h5ad": "09ad53f17c01fa176f205b0588035d6d79e9d42187d19b2871e0e1da6edbfff9",
    "multiome_test_1000.h5mu": "ae7f6d9800c35f2a9a4792e187e9ab091c819ae5294088f8caf4210958dbffa9",
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
        ``"pbmc_4study"`` (12,588 PBMC of four studies), ``"mixology_3tech"`` (1,345 cells of three cell
        lines, three technologies) or ``"pbmc3k"``.

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
