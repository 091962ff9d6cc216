"""Size, power and speed of comparisons of donors, beside simpler tests and rivals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import stats

from scalloy import compare
from scalloy._arguments import one_of
from scalloy.benchmark.fit import QUIET
from scalloy.compare.count_models import squeeze
from scalloy.compare.discoveries import adjusted
from scalloy.datasets import cohort
from scalloy.models import VAE

DRAWS = 10  # samples of the posterior
LEVEL, DISCOVERY = 0.05, 0.1  # of single tests, and of false discoveries
ASK = {"groupby": "group", "donor_key": "donor"}
NULL: dict[str, dict[str, Any]] = {
    "6 + 6 donors": {},
    "3 + 3 donors": {"n_donors": 3},
    "5 donors in both": {"n_donors": 5, "paired": True},
    "unequal depth and size": {"depth": 1.0, "size": 1.0},
    "one donor with 20 times the cells": {"largest": 20.0},
}
Test = Callable[[AnnData], pd.Series]


def _samples(adata: AnnData) -> tuple[pd.Categorical, pd.Series, pd.Series]:
    """Return the sample of each cell, and by sample whether it is of the second group, and its donor."""
    obs = adata.obs.astype(str)
    sample = pd.Categorical(obs["donor"] + " " + obs["group"])
    of = obs.groupby(np.asarray(sample))[["group", "donor"]].first().loc[sample.categories]
    return sample, of["group"] == "sick", of["donor"]


def _sums(adata: AnnData) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Return numbers of cells of each type, the group and the donor, by sample."""
    sample, second, donor = _samples(adata)
    return pd.crosstab(np.asarray(sample), adata.obs["cell_type"].astype(str)), second, donor


def _t(
    values: pd.DataFrame, second: pd.Series, donor: pd.Series, *, moderated: bool, added: Any = 0.0
) -> pd.Series:
    """Return p-values of t tests of each column (paired if donors are in both groups), moderated or not.

    ``added`` is variance that comes on top of that between samples.
    """
    a, b = values[~second], values[second]
    if set(donor[second]) == set(donor[~second]):
        change = b.set_axis(donor[second]) - a.set_axis(donor[~second])
        mean, n, df = change.mean(), 1 / len(change), len(change) - 1
        variance = change.var()
    else:
        mean, n, df = b.mean() - a.mean(), 1 / len(a) + 1 / len(b), len(values) - 2
        variance = ((len(a) - 1) * a.var() + (len(b) - 1) * b.var()) / df
    own, freedom = (variance + added).to_numpy(), np.full(len(variance), float(df))
    if moderated:
        own, freedom = squeeze(own, freedom)
    t = np.abs(mean.to_numpy()) / np.sqrt(np.maximum(own * n, 1e-300))
    return pd.Series(2 * stats.t.sf(t, freedom), index=values.columns)


def _cells(adata: AnnData) -> pd.Series:
    """Test each type by Fisher's exact test of the cells."""
    table, second, _ = _sums(adata)
    sums = table.groupby(second.to_numpy()).sum()
    rest = sums.sum(axis=1)
    return pd.Series(
        {
            k: stats.fisher_exact([[sums.loc[g, k], rest[g] - sums.loc[g, k]] for g in (False, True)]).pvalue
            for k in table
        }
    )


def _logits(adata: AnnData, *, moderated: bool) -> pd.Series:
    """Test the log odds of shares, as propeller does if moderated (Phipson et al., Bioinformatics 2022)."""
    table, second, donor = _sums(adata)
    share = (table + 0.5).div(table.sum(axis=1) + 1, axis=0)
    return _t(np.log(share / (1 - share)), second, donor, moderated=moderated)


def _ours(adata: AnnData, **more: Any) -> pd.Series:
    return compare.abundance(adata, **ASK, by="cell_type", **more).set_index("cell_type")["pvalue"]


ABUNDANCE: dict[str, Test] = {
    "ours": _ours,
    "ours, shares of all cells": lambda adata: _ours(adata, unchanged=None),
    "ours, permutations": lambda adata: _ours(adata, test="permutation"),
    "propeller's test": lambda adata: _logits(adata, moderated=True),
    "t test of log odds": lambda adata: _logits(adata, moderated=False),
    "cells as replicates": _cells,
}


def _rates(adata: AnnData) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Return log counts per million of each sample."""
    sums, second, donor = _pseudobulks(adata)
    return np.log(sums + 0.5).sub(np.log(sums.sum(axis=1) + 1), axis=0), second, donor


def _pseudobulks(adata: AnnData) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Return summed counts of genes with ten counts or more, the group and the donor, by sample."""
    sample, second, donor = _samples(adata)
    one = pd.get_dummies(sample).to_numpy(float)
    sums = pd.DataFrame(one.T @ adata.X, index=sample.categories, columns=adata.var_names)
    return sums.loc[:, sums.sum() >= 10], second, donor


def _deseq2(adata: AnnData) -> pd.Series:
    """Run PyDESeq2 on summed counts."""
    try:
        from pydeseq2.dds import DeseqDataSet
        from pydeseq2.ds import DeseqStats
    except ImportError as error:
        msg = "`benchmark donors` also runs PyDESeq2, which is not installed: pip install 'scalloy[bench]'."
        raise ImportError(msg) from error
    sums, second, donor = _pseudobulks(adata)
    about = pd.DataFrame({"group": np.where(second, "sick", "healthy"), "donor": donor}, index=sums.index)
    both = set(donor[second]) == set(donor[~second])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = DeseqDataSet(
            counts=sums.astype(int),
            metadata=about,
            design="~donor + group" if both else "~group",
            n_cpus=1,
            quiet=True,
        )
        made.deseq2()
        found = DeseqStats(made, contrast=["group", "sick", "healthy"], n_cpus=1, quiet=True)
        found.summary()
    return found.results_df["pvalue"]


def _wilcoxon(adata: AnnData) -> pd.Series:
    """Run scanpy's Wilcoxon test of cells, corrected for ties, on genes with ten counts or more."""
    often = np.asarray(adata.X.sum(0)).ravel() >= 10
    cells = AnnData(adata.X[:, often].copy(), obs=adata.obs, var=adata.var.loc[often, []])
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ask = {"groups": ["sick"], "reference": "healthy", "tie_correct": True}
        sc.tl.rank_genes_groups(cells, "group", method="wilcoxon", **ask)
    return sc.get.rank_genes_groups_df(cells, "sick").set_index("names")["pvals"]


def _denoised(adata: AnnData, *, uncertain: bool) -> pd.Series:
    """Test the mean denoised rates of each sample by a t test, with the posterior's variance added or not."""
    cells = adata.copy()
    VAE.setup_anndata(cells)
    model = VAE(cells, n_latent=10)
    model.train(**QUIET)
    sample, second, donor = _samples(cells)
    mean_of = pd.get_dummies(sample).to_numpy(float).T
    mean_of = mean_of / mean_of.sum(1, keepdims=True)
    drawn = model.get_normalized_expression(n_samples=DRAWS, return_mean=False, return_numpy=True, seed=0)
    rates = np.log(np.stack([mean_of @ draw for draw in drawn]))
    values = pd.DataFrame(rates.mean(0), index=sample.categories, columns=cells.var_names)
    added = pd.Series((1 + 1 / DRAWS) * rates.var(0, ddof=1).mean(0), cells.var_names) if uncertain else 0.0
    return _t(values, second, donor, moderated=True, added=added)


def _genes(adata: AnnData, **more: Any) -> pd.Series:
    return compare.expression(adata, **ASK, **more).set_index("gene")["pvalue"]


EXPRESSION: dict[str, Test] = {
    "ours": _genes,
    "ours, permutations": lambda adata: _genes(adata, test="permutation"),
    "PyDESeq2": _deseq2,
    "t test of log rates": lambda adata: _t(*_rates(adata), moderated=False),
    "cells as replicates (Wilcoxon)": _wilcoxon,
}
DENOISED: dict[str, Test] = {
    "VAE's rates, t test": lambda adata: _denoised(adata, uncertain=False),
    "VAE's rates and their uncertainty": lambda adata: _denoised(adata, uncertain=True),
}  # of which a model is trained for each study, so that they run only when asked for


def _measured(
    tests: Mapping[str, Test], cells: Callable[[int], AnnData], truth: Callable[[AnnData], pd.Series], n: int
) -> pd.DataFrame:
    """Run the tests on ``n`` studies; ``truth`` says what changes, by name."""
    rows = []
    for seed in range(n):
        adata = cells(seed)
        changes = truth(adata)
        for name, test in tests.items():
            p = test(adata)
            real = changes.loc[p.index].to_numpy(bool)
            found = adjusted(p.to_numpy()) <= DISCOVERY
            rejected = (p <= LEVEL).to_numpy()
            rows.append(
                {
                    "test": name,
                    "null": rejected[~real].mean(),
                    "power": found[real].mean() if real.any() else np.nan,
                    "false": (found & ~real).sum() / max(found.sum(), 1),
                }
            )
    by = pd.DataFrame(rows).groupby("test", sort=False)
    out = by.mean()
    out.insert(1, "se", by["null"].std() / np.sqrt(n))
    names = {"null": "rejected at 5 %", "power": "found at 10 %", "false": "false discoveries"}
    return out.assign(simulations=n).rename(columns=names).reset_index()


def _chosen(tests: Mapping[str, Test], names: Sequence[str] | None) -> Mapping[str, Test]:
    return tests if names is None else {one_of("tests", k, list(tests)): tests[k] for k in names}


def abundance(*, n_simulations: int = 500, seed: int = 0, tests: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure tests of abundance: how often they reject what does not change, and find what does.

    In the rows with changes, one of eight types grows to the given fold. The others keep their numbers, so
    that their shares fall.

    Parameters
    ----------
    n_simulations
        Number of studies per row.
    seed
        Random seed of the first study.
    tests
        Names of the tests; ``None`` runs all.

    Examples
    --------
    >>> found = sa.benchmark.donors.abundance(n_simulations=2, tests=["ours"])
    >>> found["test"].unique().tolist()
    ['ours']
    """
    changes = {f"one type {fold:g} times": {"folds": [fold, *[1] * 7]} for fold in (1.5, 2, 4)}
    shared = {"n_types": 8, "n_cells": 300, "n_vars": 1}
    return _table(_chosen(ABUNDANCE, tests), NULL | changes, shared, _types, n_simulations, seed)


def expression(
    *, n_simulations: int = 100, seed: int = 0, tests: Sequence[str] | None = None
) -> pd.DataFrame:
    """Measure tests of expression: how often they reject genes that do not change, and find those that do.

    All cells are of one type, and there are 300 genes. In the rows with changes, thirty of them go up or down
    by the given fold.

    Parameters
    ----------
    n_simulations
        Number of studies per row.
    seed
        Random seed of the first study.
    tests
        Names of the tests; ``None`` runs all but those of a model's rates, which train one for each study.

    Examples
    --------
    >>> found = sa.benchmark.donors.expression(n_simulations=1, tests=["ours"])
    >>> found["test"].unique().tolist()
    ['ours']
    """
    changes = {f"30 genes {fold:g} times": {"changed": 30, "fold": fold} for fold in (1.5, 2, 4)}
    shared = {"n_types": 1, "n_cells": 50, "n_vars": 300}
    known = EXPRESSION if tests is None else EXPRESSION | DENOISED
    return _table(_chosen(known, tests), NULL | changes, shared, _changed, n_simulations, seed)


def _types(adata: AnnData) -> pd.Series:
    return pd.Series(adata.uns["folds"] != 1, index=[f"type_{i}" for i in range(len(adata.uns["folds"]))])


def _changed(adata: AnnData) -> pd.Series:
    return adata.var["log2_fold"] != 0


def _table(
    tests: Mapping[str, Test],
    studies: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
    truth: Callable[[AnnData], pd.Series],
    n: int,
    seed: int,
) -> pd.DataFrame:
    """Run the tests on each kind of study."""
    parts = []
    for name, own in studies.items():
        settings: dict[str, Any] = {**shared, **own}
        frame = _measured(tests, lambda i, s=settings: cohort(seed=seed * n + i, **s), truth, n)
        frame.insert(0, "study", name)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)
