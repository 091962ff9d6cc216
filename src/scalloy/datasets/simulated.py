"""Simulated data sets with a known truth."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scalloy.datasets import draws


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

    sparse_effects = partial(draws.sparse_effects, rng, n_vars)
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
        return draws.means(eta, ell).astype(np.float32)

    names = ["control", *[f"treated_{i}" for i in range(1, n_conditions)]]
    mean = mean_under(c)
    counts = draws.counts(rng, mean, theta)
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


def trial(
    n_obs: int = 3000,
    n_vars: int = 300,
    *,
    n_types: int = 6,
    n_donors: int = 4,
    effect: float = 1.0,
    shared: float = 0.8,
    silent: int = 0,
    donor_effect: float = 0.3,
    donor_response: float = 0.2,
    composition: float = 0.0,
    theta: float = 4.0,
    library: float = 1500.0,
    seed: int = 0,
) -> AnnData:
    r"""Simulate counts of a trial: cells of several donors with and without a treatment, with the true means.

    The mean is :math:`\ell_n\,\mathrm{softmax}_g(` gene + type + donor + within-type factors + response
    :math:`)`. About a seventh of the genes respond in all types, and another seventh in each single type.
    Every donor has cells under both conditions.

    Parameters
    ----------
    n_obs, n_vars
        Number of cells and genes.
    n_types, n_donors
        Number of cell types and donors, whose names are in ``obs``.
    effect
        Standard deviation of responses across the genes that respond, on the log scale.
    shared
        Share of the variance of a response that all types have in common; the rest is each type's own.
    silent
        Number of types that do not respond (the last ones).
    donor_effect
        Standard deviation across genes of the differences between donors, on the log scale.
    donor_response
        Standard deviation of the logarithm of the strength with which a donor responds.
    composition
        Standard deviation of the logarithm of the change of a type's share in the cells under treatment.
    theta, library
        Inverse dispersion of the counts, and median library size.
    seed
        Random seed.

    Returns
    -------
    AnnData with the columns ``cell_type``, ``donor`` and ``condition`` in ``obs``, and the mean of each cell
    under each condition in ``layers["mean_control"]`` and ``layers["mean_treated"]``.

    Examples
    --------
    >>> cells = sa.datasets.trial(200, 20, n_donors=2)
    >>> sorted(cells.obs["donor"].unique())
    ['donor_0', 'donor_1']
    """
    rng = np.random.default_rng(seed)
    before = rng.dirichlet(np.full(n_types, 5.0))
    after = before * np.exp(rng.normal(0, composition, n_types))
    treated, d = rng.random(n_obs) < 0.5, rng.integers(n_donors, size=n_obs)
    k = np.where(
        treated, rng.choice(n_types, n_obs, p=after / after.sum()), rng.choice(n_types, n_obs, p=before)
    )

    sparse_effects = partial(draws.sparse_effects, rng, n_vars)
    rest = rng.normal(0, 1.2, n_vars) + sparse_effects(n_types, 0.3, 1.2)[k]
    rest += rng.normal(0, donor_effect, (n_donors, n_vars))[d]
    rest += rng.normal(size=(n_obs, 2)) @ sparse_effects(2, 0.3, 0.25)
    response = np.sqrt(shared) * sparse_effects(1, 0.15, effect)
    response = response + np.sqrt(1 - shared) * sparse_effects(n_types, 0.15, effect)
    response[n_types - silent :] = 0
    strength = np.exp(rng.normal(0, donor_response, n_donors))[d]
    ell = library * rng.lognormal(0, 0.3, (n_obs, 1))

    def mean_under(treated: np.ndarray) -> np.ndarray:
        eta = rest + (treated * strength)[:, None] * response[k]
        return draws.means(eta, ell).astype(np.float32)

    counts = draws.counts(rng, mean_under(treated), theta)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type_{i}" for i in k]),
            "donor": pd.Categorical([f"donor_{i}" for i in d]),
            "condition": pd.Categorical(np.where(treated, "treated", "control")),
        },
        index=[f"cell_{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_vars)])
    adata = AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)
    for code, name in enumerate(("control", "treated")):
        adata.layers[f"mean_{name}"] = mean_under(np.full(n_obs, code))
    adata.uns["theta"] = theta
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
    mean = draws.means(eta, library * rng.lognormal(0, 0.3, (n_obs, 1)))
    counts = draws.counts(rng, mean, theta).astype(np.float32)
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
