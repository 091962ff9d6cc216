r"""Simulated cells with RNA, ATAC and proteins, in which genes are driven by their peaks.

    o_nr     ~ Bernoulli(sigmoid(a_r + B_kr + s_n C_r))         whether peak r is open in cell n of type k
    atac_nr  ~ Poisson(d_n e_r (o_nr + closed) exp(batch))      fragments
    eta_ng   = base_g + sum_r W_gr (o_nr - mean_r) + batch
    rna_ng   ~ NB(ell_n softmax_g(eta_n), theta)
    f_nj     = gain_j (eta_n,g(j) - mean) + batch
    prot_nj  ~ NB(h_n (ambient_j + exp(base_j + f_nj)), 10)     protein j, translated from the gene g(j)

``s_n`` is a state that varies continuously within types; ``d_n``, ``ell_n`` and ``h_n`` are the depth of a
cell in each modality. The peaks of a gene lie beside it on the chromosome; most of them raise its rate, some
lower it.

Li, Zhang, Squires, Chen & Zhang, "scMultiSim", Nature Methods 2025, drives genes by chromatin in a similar
way. Fragments follow a Poisson distribution as in Martens et al., Nature Methods 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy.datasets import draws

if TYPE_CHECKING:
    from mudata import MuData

Frames = dict[str, pd.DataFrame]
SPACING, WIDTH = 5000, 500  # base pairs from peak to peak, and of a peak
LOWERS = 0.15  # share of the peaks that lower the rate of their gene
CLOSED = 0.03  # fragments of a closed peak relative to an open one
THETA_PROTEIN = 10.0  # inverse dispersion of the counts of proteins


def multiome(
    n_obs: int = 1000,
    n_genes: int = 100,
    n_peaks: int = 400,
    *,
    n_proteins: int = 0,
    n_types: int = 5,
    n_batches: int = 1,
    n_links: int = 3,
    lacking: Mapping[str, float] | None = None,
    link: float = 1.0,
    batch_effect: float = 0.2,
    fragments: float = 0.5,
    library: float = 1500.0,
    theta: float = 4.0,
    seed: int = 0,
) -> MuData:
    """Simulate counts of RNA and fragments of ATAC in the same cells, with the peaks that drive each gene.

    The model is that of :mod:`scalloy.datasets.multiome`. With the same seed, genes and peaks are the same
    whatever ``n_proteins`` and ``lacking`` are.

    Parameters
    ----------
    n_obs, n_genes, n_peaks
        Number of cells, genes and peaks.
    n_proteins
        Number of proteins, each translated from a gene of its own; with 0 there is no third modality.
    n_types, n_batches
        Number of cell types and of batches.
    n_links
        Number of peaks that drive each gene.
    lacking
        Share of the cells that lack a modality, such as ``{"atac": 0.3}``. Each cell keeps at least one.
    link
        Mean effect of an open peak on the logarithm of the rate of its gene; at 0 nothing drives the genes.
    batch_effect
        Standard deviation of the effect of a batch on each gene, peak and protein, on the log scale.
    fragments
        Mean number of fragments of an open peak in a cell of median depth.
    library, theta
        Median library size of RNA, and inverse dispersion of its counts.
    seed
        Random seed.

    Returns
    -------
    MuData with raw counts in the modalities ``"rna"``, ``"atac"`` and, if asked for, ``"prot"``. ``obs`` has
    the columns ``cell_type``, ``state`` and ``batch``. The truth is known of every cell, also where it lacks
    the modality: ``obsm["open"]`` (0 or 1) and ``obsm["open_probability"]`` by peak, and the means of the
    counts in ``obsm["mean_rna"]``, ``obsm["mean_atac"]`` and ``obsm["mean_prot"]``.
    ``mdata["rna"].varm["peaks"]`` holds the effect of each peak on each gene, ``mdata["prot"].var["gene"]``
    the gene of each protein, and ``uns["truth"]`` the settings.

    Examples
    --------
    >>> mdata = sa.datasets.multiome(200, 20, 80, n_proteins=5)
    >>> list(mdata.mod)
    ['rna', 'atac', 'prot']
    >>> (mdata["rna"].varm["peaks"] != 0).sum(axis=1).unique().tolist()
    [3]
    """
    if not 1 <= n_links <= n_peaks or not 0 <= n_proteins <= n_genes:
        msg = (
            f"`n_links={n_links}` must be from 1 to `n_peaks={n_peaks}`, `n_proteins={n_proteins}` from 0 "
            f"to `n_genes={n_genes}`, as each protein has a gene. Pass such numbers."
        )
        raise ValueError(msg)
    of_cells, of_links, of_rna, of_atac, of_prot, of_lacking = np.random.default_rng(seed).spawn(6)
    names = pd.Index([f"cell_{i}" for i in range(n_obs)])
    k, b = of_cells.integers(n_types, size=n_obs), of_cells.integers(n_batches, size=n_obs)
    state = of_cells.normal(size=n_obs)

    def batches(rng: np.random.Generator, n: int) -> np.ndarray:
        effect = rng.normal(0, batch_effect, (n_batches, n))
        effect[0] = 0
        return effect[b]

    probability = _open_probability(of_atac, k, state, n_types, n_peaks)
    is_open = (of_atac.random(probability.shape) < probability).astype(np.int8)
    weights = _links(of_links, n_genes, n_peaks, n_links, link)
    eta = of_rna.normal(0, 1.0, n_genes) + (is_open - probability.mean(0)) @ weights.T
    eta += batches(of_rna, n_genes)
    mean = {
        "rna": draws.means(eta, library * of_rna.lognormal(0, 0.3, (n_obs, 1))),
        "atac": fragments
        * of_atac.lognormal(0, 0.4, (n_obs, 1))
        * of_atac.gamma(4.0, 0.25, n_peaks)
        * (is_open + CLOSED)
        * np.exp(batches(of_atac, n_peaks)),
    }
    counts = {"rna": draws.counts(of_rna, mean["rna"], theta), "atac": of_atac.poisson(mean["atac"])}
    var = {"rna": _places(n_genes, n_peaks, per_gene=True), "atac": _places(n_genes, n_peaks, per_gene=False)}
    if n_proteins:
        gene = np.sort(of_prot.choice(n_genes, n_proteins, replace=False))
        mean["prot"] = _proteins(of_prot, eta[:, gene], batches(of_prot, n_proteins))
        counts["prot"] = draws.counts(of_prot, mean["prot"], THETA_PROTEIN)
        var["prot"] = pd.DataFrame(
            {"gene": var["rna"].index[gene]}, index=[f"protein_{i}" for i in range(n_proteins)]
        )
    truth = {f"mean_{name}": pd.DataFrame(m, names, var[name].index) for name, m in mean.items()}
    truth["open"] = pd.DataFrame(is_open, names, var["atac"].index)
    truth["open_probability"] = pd.DataFrame(probability, names, var["atac"].index)
    obs = pd.DataFrame({"cell_type": _named("type", k), "state": state, "batch": _named("batch", b)}, names)
    mdata = _assembled(counts, var, obs, _there(of_lacking, n_obs, list(counts), lacking or {}), truth)
    mdata["rna"].varm["peaks"] = pd.DataFrame(weights, var["rna"].index, var["atac"].index)
    mdata.uns["truth"] = {"closed": CLOSED, "theta": theta, "fragments": fragments, "library": library}
    return mdata


def _open_probability(
    rng: np.random.Generator, k: np.ndarray, state: np.ndarray, n_types: int, n_peaks: int
) -> np.ndarray:
    """Return the probability that a peak is open in each cell, by its type and its state."""
    logit = rng.normal(-1.2, 0.8, n_peaks) + draws.sparse_effects(rng, n_peaks, n_types, 0.3, 2.0)[k]
    logit += state[:, None] * draws.sparse_effects(rng, n_peaks, 1, 0.2, 1.0)
    return 1 / (1 + np.exp(-logit))


def _links(rng: np.random.Generator, n_genes: int, n_peaks: int, n_links: int, link: float) -> np.ndarray:
    """Return the effect of each peak on each gene: on that of ``n_links`` of the peaks beside it."""
    weights = np.zeros((n_genes, n_peaks))
    reach = min(n_peaks, 3 * n_links)
    for g in range(n_genes):
        left = np.clip(g * n_peaks // n_genes - reach // 2, 0, n_peaks - reach)
        peaks = left + rng.choice(reach, n_links, replace=False)
        sign = np.where(rng.random(n_links) < LOWERS, -1.0, 1.0)
        weights[g, peaks] = link * sign * rng.gamma(9.0, 1 / 9.0, n_links)
    return weights


def _places(n_genes: int, n_peaks: int, *, per_gene: bool) -> pd.DataFrame:
    """Return the place of each gene, or of each peak, on the chromosome."""
    if per_gene:
        start = SPACING * (np.arange(n_genes) * n_peaks // n_genes) + SPACING // 2
        index = [f"gene_{i}" for i in range(n_genes)]
        return pd.DataFrame({"chromosome": "chr1", "start": start}, index=index)
    start = SPACING * np.arange(1, n_peaks + 1)
    index = [f"chr1:{s}-{s + WIDTH}" for s in start]
    return pd.DataFrame({"chromosome": "chr1", "start": start, "end": start + WIDTH}, index=index)


def _proteins(rng: np.random.Generator, eta: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return the mean counts of proteins, given the logarithms of the rates of their genes."""
    n, n_proteins = eta.shape
    gain = rng.uniform(0.8, 1.4, n_proteins)
    foreground = np.exp(rng.normal(2.5, 0.7, n_proteins) + gain * (eta - eta.mean(0)) + batch)
    return rng.lognormal(0, 0.3, (n, 1)) * (rng.gamma(4.0, 0.5, n_proteins) + foreground)


def _named(what: str, codes: np.ndarray) -> pd.Categorical:
    return pd.Categorical([f"{what}_{i}" for i in codes])


def _there(
    rng: np.random.Generator, n_obs: int, modalities: list[str], lacking: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Choose the cells in which each modality was measured; every cell keeps at least one."""
    wrong = {k: v for k, v in lacking.items() if k not in modalities or not 0 <= v <= 1}
    if wrong:
        msg = f"`lacking={wrong}`: pass shares from 0 to 1 of modalities, which are {', '.join(modalities)}."
        raise ValueError(msg)
    limits = np.array([lacking.get(name, 0.0) for name in modalities])
    there = rng.random((n_obs, len(modalities))) >= limits
    kept = rng.integers(len(modalities), size=n_obs)
    none = ~there.any(axis=1)
    there[none, kept[none]] = True
    return dict(zip(modalities, there.T, strict=True))


def _assembled(
    counts: dict[str, np.ndarray], var: Frames, obs: pd.DataFrame, there: dict[str, np.ndarray], truth: Frames
) -> MuData:
    """Put the modalities together, each with its own cells, and the truth of all cells beside them."""
    import mudata

    mod = {
        name: AnnData(
            sp.csr_matrix(x[there[name]], dtype=np.float32),
            obs=pd.DataFrame(index=obs.index[there[name]]),
            var=var[name],
        )
        for name, x in counts.items()
    }
    with getattr(mudata, "set_options", lambda **_: nullcontext())(pull_on_update=False):  # gone in 0.4
        mdata = mudata.MuData(mod)
        mdata.obs = obs.reindex(mdata.obs_names)
    for key, frame in truth.items():
        mdata.obsm[key] = frame.reindex(mdata.obs_names)
    return mdata
