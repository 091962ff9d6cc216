"""Simulated RNA, ATAC and proteins: the relations that were planted are in the counts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

import scalloy as sa

mudata = pytest.importorskip("mudata", reason="the extra `multimodal` is not installed")


@pytest.fixture(scope="module")
def cells():
    return sa.datasets.multiome(3000, 60, 240, n_proteins=15, n_types=4, seed=0)


def counts(mdata, name):
    return mdata[name].to_df()


def test_counts_are_sparse_whole_and_of_the_size_that_was_asked_for(cells):
    assert cells["rna"].shape == (3000, 60)
    assert cells["atac"].shape == (3000, 240)
    assert cells["prot"].shape == (3000, 15)
    for name in cells.mod:
        x = cells[name].X
        assert x.format == "csr"
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x.data, np.rint(x.data))
        assert x.data.min() >= 1
    assert cells["atac"].X.nnz < 0.2 * np.prod(cells["atac"].shape)
    assert set(cells.obs) == {"cell_type", "state", "batch"}
    assert cells.obs["cell_type"].nunique() == 4


def test_fragments_are_poisson_around_their_mean_and_genes_and_proteins_overdispersed(cells):
    """Pearson residuals have variance one under the right mean and dispersion, and not under another one."""
    for name, theta in (("atac", np.inf), ("rna", cells.uns["truth"]["theta"]), ("prot", 10.0)):
        mean, x = cells.obsm[f"mean_{name}"].to_numpy(), counts(cells, name).to_numpy()
        residual = np.square(x - mean) / (mean + np.square(mean) / theta)
        assert residual[mean > 0.01].mean() == pytest.approx(1, abs=0.04)
        assert abs((x - mean).mean()) < 0.02 * mean.mean()
    mean = cells.obsm["mean_rna"].to_numpy()
    assert (np.square(counts(cells, "rna").to_numpy() - mean) / mean).mean() > 2


def test_peaks_are_open_as_likely_as_type_and_state_say(cells):
    is_open, probability = cells.obsm["open"], cells.obsm["open_probability"]
    assert set(np.unique(is_open)) == {0, 1}
    kind = cells.obs["cell_type"]
    by_type, expected = (v.groupby(kind, observed=True).mean() for v in (is_open, probability))
    n = kind.value_counts().min()
    assert (by_type - expected).abs().to_numpy().max() < 5 * 0.5 / n**0.5
    assert (expected.max() - expected.min() > 0.3).mean() > 0.2  # many peaks tell types apart
    one = kind == "type_0"
    logit = np.log(probability[one] / (1 - probability[one]))
    slope = np.array([np.polyfit(cells.obs["state"][one], logit[c], 1)[0] for c in logit])
    others = np.array([np.polyfit(cells.obs["state"][~one], np.log(p / (1 - p))[~one], 1)[0]
                       for p in (probability[c] for c in logit)])  # fmt: skip
    assert ((slope != 0) & (np.abs(slope) > 1e-6)).mean() == pytest.approx(0.2, abs=0.08)
    assert np.corrcoef(slope, others)[0, 1] > 0.5


def test_open_peaks_have_fragments_and_closed_ones_few(cells):
    x, is_open = counts(cells, "atac").to_numpy(), cells.obsm["open"].to_numpy() == 1
    assert x[~is_open].mean() < 0.05 * x[is_open].mean()
    assert x[is_open].mean() == pytest.approx(cells.uns["truth"]["fragments"], rel=0.25)
    depth = (cells.obsm["mean_atac"] / (cells.obsm["open"] + cells.uns["truth"]["closed"])).to_numpy()
    np.testing.assert_allclose(depth / depth[:, :1], np.tile(depth[0] / depth[0, 0], (3000, 1)))  # d_n e_r
    assert np.corrcoef(depth[:, 0], x.sum(1))[0, 1] > 0.8
    assert np.log(depth[:, 0]).std() == pytest.approx(0.4, abs=0.03)


def test_weights_of_the_peaks_are_what_drives_the_genes(cells):
    """Least squares of the logarithms of the true means on open peaks gives the planted matrix."""
    rate = np.log(cells.obsm["mean_rna"].to_numpy())
    relative = rate - rate[:, :1]  # without the depth and the normaliser
    known = cells["rna"].varm["peaks"].to_numpy()
    design = np.c_[np.ones(3000), cells.obsm["open"].to_numpy()]
    found = np.linalg.lstsq(design, relative, rcond=None)[0][1:].T
    np.testing.assert_allclose(found, known - known[:1], atol=1e-3)
    assert ((known != 0).sum(1) == 3).all()
    assert 0.05 < (known[known != 0] < 0).mean() < 0.3
    assert np.abs(known[known != 0]).mean() == pytest.approx(1.0, abs=0.1)


def test_peaks_of_a_gene_lie_beside_it(cells):
    known = cells["rna"].varm["peaks"]
    place = cells["atac"].var["start"].to_numpy()
    for gene, row in known.iterrows():
        away = np.abs(place[row.to_numpy() != 0] - cells["rna"].var.loc[gene, "start"])
        assert away.max() <= 10 * 5000
    assert list(cells["atac"].var_names[:2]) == ["chr1:5000-5500", "chr1:10000-10500"]
    assert (cells["atac"].var["end"] - cells["atac"].var["start"] == 500).all()


def test_linked_counts_go_together_within_types(cells):
    """In the counts alone: a gene correlates with its own peaks, by the sign of the link."""
    rna, atac = counts(cells, "rna"), counts(cells, "atac")
    rate, known = np.log1p(1e4 * rna.div(rna.sum(axis=1), axis=0)), cells["rna"].varm["peaks"]
    kind = cells.obs["cell_type"]
    rate, seen = (v - v.groupby(kind, observed=True).transform("mean") for v in (rate, (atac > 0) * 1.0))
    r = np.corrcoef(rate.T, seen.T)[:60, 60:]
    raised, lowered, other = (
        r[f(known.to_numpy())] for f in (lambda w: w > 0, lambda w: w < 0, lambda w: w == 0)
    )
    assert raised.mean() > 0.04 > abs(other.mean()) * 10
    assert lowered.mean() < -0.02
    assert scipy.stats.mannwhitneyu(raised, other, alternative="greater").pvalue < 1e-20


def test_proteins_follow_their_genes(cells):
    rna, prot = counts(cells, "rna"), counts(cells, "prot")
    own = prot.columns.map(cells["prot"].var["gene"])
    assert own.is_unique
    share, amount = cells.obsm["mean_rna"], cells.obsm["mean_prot"]
    share = np.log(share.div(share.sum(axis=1), axis=0))
    r = np.corrcoef(np.log(amount).T, share.T)[:15, 15:]
    column = rna.columns.get_indexer(own)
    assert (r[np.arange(15), column] == r.max(1)).mean() > 0.9
    assert r[np.arange(15), column].mean() > 0.6
    seen = np.corrcoef(np.log1p(prot).T, np.log1p(rna).T)[:15, 15:]
    assert seen[np.arange(15), column].mean() > seen.mean() + 0.15


def test_without_links_nothing_drives_the_genes():
    cells = sa.datasets.multiome(500, 20, 80, link=0.0, library=800.0, seed=1)
    assert (cells["rna"].varm["peaks"].to_numpy() == 0).all()
    share = cells.obsm["mean_rna"].div(cells.obsm["mean_rna"].sum(axis=1), axis=0)
    assert share.std().max() < 1e-12
    assert cells.obsm["mean_rna"].sum(axis=1).median() == pytest.approx(800, rel=0.05)
    other = sa.datasets.multiome(500, 20, 80, library=800.0, seed=1)
    np.testing.assert_array_equal(counts(cells, "atac"), counts(other, "atac"))


def test_batches_shift_every_modality():
    cells = sa.datasets.multiome(1500, 30, 120, n_proteins=8, n_batches=3, batch_effect=0.8, link=0.0)
    first = cells.obs["batch"] == "batch_0"
    assert cells.obs["batch"].nunique() == 3
    for name in ("rna", "atac", "prot"):
        mean = cells.obsm[f"mean_{name}"]
        if name == "atac":
            mean = mean / (cells.obsm["open"] + cells.uns["truth"]["closed"])
        share = np.log(mean.div(mean.sum(axis=1), axis=0))
        shift = share[cells.obs["batch"] == "batch_1"].mean() - share[first].mean()
        assert shift.std() == pytest.approx(0.8, abs=0.35)
    none = sa.datasets.multiome(300, 30, 120, n_batches=3, batch_effect=0.0, link=0.0)
    share = none.obsm["mean_rna"].div(none.obsm["mean_rna"].sum(axis=1), axis=0)
    assert share.std().max() < 1e-12


def test_cells_that_lack_a_modality_keep_their_truth():
    lacking = {"rna": 0.3, "atac": 0.6}
    whole = sa.datasets.multiome(2000, 20, 80, n_proteins=4, seed=2)
    cells = sa.datasets.multiome(2000, 20, 80, n_proteins=4, lacking=lacking, seed=2)
    assert cells.n_obs == 2000
    assert cells["rna"].n_obs == pytest.approx(1400, abs=70)
    assert cells["atac"].n_obs == pytest.approx(800, abs=70)
    assert cells["prot"].n_obs == 2000
    for name in cells.mod:
        there = cells[name].obs_names
        np.testing.assert_array_equal(counts(cells, name), counts(whole, name).loc[there])
    np.testing.assert_array_equal(cells.obsm["open"], whole.obsm["open"].loc[cells.obs_names])
    assert (cells.obs == whole.obs.loc[cells.obs_names]).all(axis=None)
    hard = sa.datasets.multiome(500, 20, 80, lacking={"rna": 0.9, "atac": 0.9}, seed=2)
    there = hard["rna"].obs_names.union(hard["atac"].obs_names)
    assert len(there) == hard.n_obs == 500
    assert 0 < len(hard["rna"].obs_names.intersection(hard["atac"].obs_names)) < 30


def test_same_seed_same_cells_and_proteins_change_nothing_else():
    one, two = (sa.datasets.multiome(100, 20, 80, n_proteins=n, seed=5) for n in (0, 6))
    other = sa.datasets.multiome(100, 20, 80, seed=6)
    for name in ("rna", "atac"):
        np.testing.assert_array_equal(counts(one, name), counts(two, name))
        assert (counts(one, name) != counts(other, name)).any(axis=None)
    assert list(one.mod) == ["rna", "atac"]


def test_what_was_simulated_can_be_written(tmp_path):
    cells = sa.datasets.multiome(60, 10, 40, n_proteins=3, lacking={"prot": 0.5})
    cells.write(tmp_path / "cells.h5mu")
    again = mudata.read_h5mu(tmp_path / "cells.h5mu")
    np.testing.assert_array_equal(again.obsm["open"], cells.obsm["open"])
    np.testing.assert_array_equal(again["rna"].varm["peaks"], cells["rna"].varm["peaks"])
    assert again.uns["truth"]["theta"] == 4.0


def test_what_cannot_be_simulated_is_refused():
    with pytest.raises(ValueError, match="as each protein has a gene"):
        sa.datasets.multiome(50, 10, 40, n_proteins=11)
    with pytest.raises(ValueError, match=r"`n_links=3` must be from 1 to `n_peaks=2`"):
        sa.datasets.multiome(50, 10, 2)
    with pytest.raises(ValueError, match=r"`n_links=0` must be from 1"):
        sa.datasets.multiome(50, 10, 40, n_links=0)
    with pytest.raises(ValueError, match=r"`lacking={'prot': 0.5}`: pass shares from 0 to 1 of .* rna, atac"):
        sa.datasets.multiome(50, 10, 40, lacking={"prot": 0.5})
    with pytest.raises(ValueError, match=r"`lacking={'rna': 1.5}`: pass shares"):
        sa.datasets.multiome(50, 10, 40, lacking={"rna": 1.5, "atac": 0.1})
