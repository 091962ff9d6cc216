"""Comparisons of real donors: a response that is known, and halves of the controls, which is none."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from anndata import AnnData

from scalloy import compare
from scalloy.benchmark.donors import ABUNDANCE, ASK, DISCOVERY, EXPRESSION, LEVEL
from scalloy.benchmark.fit import load
from scalloy.compare.discoveries import adjusted

# Genes that interferon is known to raise: Schoggins et al., Nature 472 (2011), and reviews since.
# fmt: off
INTERFERON = (
    "ADAR", "APOBEC3A", "BST2", "CXCL10", "CXCL11", "DDX58", "DDX60", "EIF2AK2", "EPSTI1", "GBP1",
    "HERC5", "HERC6", "IFI16", "IFI27", "IFI35", "IFI44", "IFI44L", "IFI6", "IFIH1", "IFIT1", "IFIT2",
    "IFIT3", "IFIT5", "IFITM1", "IFITM3", "IRF7", "IRF9", "ISG15", "ISG20", "LGALS9", "LY6E", "MX1",
    "MX2", "OAS1", "OAS2", "OAS3", "OASL", "PARP9", "PLSCR1", "PSMB9", "RSAD2", "RTP4", "SAMD9",
    "SAMD9L", "SP100", "STAT1", "STAT2", "TAP1", "TNFSF10", "TRIM22", "UBE2L6", "USP18", "XAF1",
)
# fmt: on
TOP = 50  # genes of a type that are looked at


def kang(*, n_splits: int = 10, n_genes: int = 10_000) -> pd.DataFrame:
    """Compare halves of the control donors of Kang et al., which should not differ, by several tests.

    Donors do differ in some genes by sex and ancestry, so a division that happens to separate these is not
    quite null.

    Parameters
    ----------
    n_splits
        Maximum number of the 35 ways to divide eight donors into halves.
    n_genes
        Number of most variable genes that are kept.
    """
    adata = _cells(n_genes)
    names = sorted(adata.obs["donor"].unique())
    control = adata[adata.obs["group"] == "healthy"].copy()
    ways = [way for way in itertools.combinations(names, len(names) // 2) if names[0] in way]
    order = np.random.default_rng(0).permutation(len(ways))[:n_splits]
    rows = []
    for i in order:
        control.obs["group"] = np.where(control.obs["donor"].isin(ways[i]), "healthy", "sick")
        for name in ("ours", "propeller's test", "cells as replicates"):
            p = ABUNDANCE[name](control)
            rows.append({"what": "abundance", "test": name, **_summary([p])})
        for name in ("ours", "PyDESeq2", "cells as replicates (Wilcoxon)"):
            parts = [EXPRESSION[name](part) for part in _types(control)]
            rows.append({"what": "expression", "test": name, **_summary(parts)})
    return (
        pd.DataFrame(rows)
        .groupby(["what", "test"], sort=False)
        .mean()
        .reset_index()
        .assign(divisions=len(order))
    )


def interferon(*, n_genes: int = 10_000) -> pd.DataFrame:
    """Compare stimulated with control cells of Kang et al. by type, with ours and PyDESeq2.

    Parameters
    ----------
    n_genes
        Number of most variable genes that are kept.

    Returns
    -------
    One row per type: numbers of genes that are found by each, the share of ours that PyDESeq2 finds, too, the
    correlation of fold changes, and how many of the strongest fifty that rise are known to be raised by
    interferon.
    """
    rows = []
    for cells in _types(_cells(n_genes)):
        ours = compare.expression(cells, **ASK).set_index("gene")
        theirs = EXPRESSION["PyDESeq2"](cells).reindex(ours.index)
        q = pd.Series(adjusted(theirs.to_numpy()), index=ours.index)
        found = ours["padj"] <= DISCOVERY
        up = ours.index[ours["log2_fold_change"] > 0][:TOP]
        rows.append(
            {
                "cell_type": str(cells.obs["cell_type"].iloc[0]),
                "donors": int(ours["donors_a"].iloc[0]),
                "ours": int(found.sum()),
                "PyDESeq2": int((q <= DISCOVERY).sum()),
                "ours in PyDESeq2's": float((q[found] <= DISCOVERY).mean()),
                "correlation of ranks": float(ours["pvalue"].corr(theirs, method="spearman")),
                f"known among the first {TOP}": int(up.isin(INTERFERON).sum()),
                "known genes tested": int(ours.index.isin(INTERFERON).sum()),
            }
        )
    return pd.DataFrame(rows)


def _cells(n_genes: int) -> AnnData:
    """Return the cells of Kang et al., with donors, and conditions as groups."""
    adata = load("kang", n_genes)
    adata.obs["donor"] = adata.obs["batch"].astype(str)
    adata.obs["group"] = np.where(adata.obs["condition"].astype(str) == "control", "healthy", "sick")
    return adata


def _types(adata: AnnData) -> list[AnnData]:
    """Divide cells by type, and leave out samples with fewer than ten cells and types with too few donors."""
    parts = []
    for name in sorted(adata.obs["cell_type"].astype(str).unique()):
        part = adata[adata.obs["cell_type"].astype(str) == name]
        sample = part.obs["donor"].astype(str) + part.obs["group"].astype(str)
        part = part[sample.map(sample.value_counts()) >= 10]
        donors = part.obs.groupby("group", observed=True)["donor"].agg(lambda d: set(d.astype(str)))
        if len(donors) == 2 and donors["healthy"] & donors["sick"]:
            both = donors["healthy"] & donors["sick"]
            part = part[part.obs["donor"].isin(both)]
            donors = donors.map(lambda d, both=both: d & both)
        if len(donors) == 2 and donors.map(len).min() >= 2:
            parts.append(part.copy())
    return parts


def _summary(parts: list[pd.Series]) -> dict[str, float]:
    """Return the share of tests that reject, and the number of discoveries."""
    p = pd.concat(parts)
    found = sum(int((adjusted(part.to_numpy()) <= DISCOVERY).sum()) for part in parts)
    return {"tests": len(p), "rejected": float((p <= LEVEL).mean()), "found": found}
