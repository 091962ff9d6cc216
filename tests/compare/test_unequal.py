"""Warning of a small group that varies much more than a large one."""

from __future__ import annotations

import warnings

import anndata as ad
import pytest
from studies import counts, numbers

import scalloy as sa


def joined(small, large, names=("a", "b")):
    """Donors of two studies, as two groups."""
    parts = []
    for part, name in ((small, names[0]), (large, names[1])):
        own = part[part.obs["group"] == name].copy()
        own.obs["donor"] = own.obs["donor"].astype(str) + name
        parts.append(own)
    return ad.concat(parts, index_unique="-")


def unlike(n_small, n_large, small_sd, large_sd, seed=0):
    """Shares of types of donors, who vary as much as told in each group."""
    return joined(
        numbers(n_small, 2, sd=small_sd, cells=600, seed=seed),
        numbers(2, n_large, sd=large_sd, cells=600, seed=seed),
    )


def abundance(adata):
    return sa.compare.abundance(adata, groupby="group", by="type", donor_key="donor")


def expression(adata):
    return sa.compare.expression(adata, groupby="group", donor_key="donor")


def test_a_small_group_that_varies_more_is_warned_of():
    with pytest.warns(
        UserWarning, match="The 3 samples of the smaller group vary .* times as much as the 10"
    ):
        abundance(unlike(3, 10, 0.9, 0.1))
    uneven = joined(counts(3, 2, sd=0.9, changed=0), counts(2, 10, sd=0.1, changed=0))
    with pytest.warns(
        UserWarning, match="The 3 samples of the smaller group vary .* times as much as the 10"
    ):
        expression(uneven)


@pytest.mark.parametrize(
    ("sizes", "spreads"),
    [((3, 10), (0.1, 0.9)), ((6, 6), (0.9, 0.1)), ((3, 10), (0.3, 0.3)), ((2, 9), (0.5, 0.5))],
)
def test_others_are_not(sizes, spreads):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for seed in range(12):
            abundance(unlike(*sizes, *spreads, seed=seed))
        small = counts(sizes[0], 2, sd=spreads[0], changed=0, genes=60)
        expression(joined(small, counts(2, sizes[1], sd=spreads[1], changed=0, genes=60)))
