"""Predictions under another condition: what they rest on, what they leave alone, and when they warn."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import scalloy as sa
from scalloy.benchmark.fit import log_normalised
from scalloy.models._core.decoding import How, _noise, decode

RUN = {"max_epochs": 15, "enable_progress_bar": False, "accelerator": "cpu"}
TO, HELD = "treated_1", "cluster_0"


@pytest.fixture(scope="module")
def simulated():
    """Shallow cells (200 counts), so that one count is worth a lot on a scale of 10,000."""
    adata = sa.datasets.simulate(900, 60, n_clusters=4, n_batches=1, library=200.0, seed=0)
    adata.var["symbol"] = [f"symbol {g}" for g in adata.var_names]
    return adata


@pytest.fixture(scope="module")
def unseen(simulated):
    """A model that has not seen one cluster treated, and that cluster's controls."""
    held = (simulated.obs["cluster"] == HELD) & (simulated.obs["condition"] == TO)
    model = fit(sa.CGMDVAE, simulated[~held.to_numpy()].copy())
    return model, of(simulated, HELD)


def fit(cls, adata, labels="cluster", **run):
    cells = ad.AnnData(adata.X, obs=adata.obs, var=adata.var)
    cls.setup_anndata(cells, condition_key="condition", labels_key=labels)
    model = cls(cells, n_hidden=24, n_latent=4)
    model.train(**{**RUN, **run})
    return model


def of(adata, cluster, condition="control"):
    rows = (adata.obs["cluster"] == cluster) & (adata.obs["condition"] == condition)
    return adata[rows.to_numpy()].copy()


def quietly(model, cells, to=TO, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.transfer(cells, to=to, **settings)


def total(counts):
    return np.asarray(counts.sum(axis=0), dtype=float).ravel()


# one cell alone, and among others ---------------------------------------------------------------


@pytest.mark.parametrize("route", ["auto", "decoder", "transport"])
def test_a_cell_is_predicted_alike_alone_and_among_others(unseen, route):
    model, controls = unseen
    whole = quietly(model, controls, route=route)
    mixed = of(model.adata, "cluster_1")
    for some in (controls[[7]], controls[::-1], controls[5:20], ad.concat([controls[:9], mixed])):
        part = quietly(model, some.copy(), route=route)
        names = [f"{name}-{TO}" for name in some.obs_names if name in controls.obs_names]
        assert names
        np.testing.assert_allclose(part[names].X, whole[names].X, rtol=1e-4, atol=1e-5)


def test_noise_of_a_cell_goes_by_its_name():
    names = np.array([f"cell {i}" for i in range(4000)], dtype=object)
    noise = _noise(names, 3, (0, 0, 0))
    np.testing.assert_array_equal(_noise(names[[5, 2]], 3, (0, 0, 0)), noise[[5, 2]])
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
    others = [_noise(names, 3, key) for key in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    every = np.hstack([noise, *others])
    assert np.abs(np.corrcoef(every.T) - np.eye(12)).max() < 0.08


# counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_sum", [1e4, 200.0])
def test_where_nothing_changes_counts_are_the_cells_own(unseen, target_sum):
    """To the last entry, under the condition in which the cells are, shallow as they are."""
    model, controls = unseen
    out = model.transfer(controls, to="control", target_sum=target_sum)
    assert (out.layers["counts"] != controls.X).nnz == 0
    assert not out.obs["transfer_far"].any()


def test_counts_of_several_groups_are_those_of_their_cells(unseen):
    """Groups lie mixed among each other; each is changed by itself and put back where it was."""
    model, _ = unseen
    controls = model.adata[(model.adata.obs["condition"] == "control").to_numpy()].copy()
    assert (controls.obs["cluster"].to_numpy()[1:] != controls.obs["cluster"].to_numpy()[:-1]).mean() > 0.5
    out = quietly(model, controls, to="control")
    assert (out.layers["counts"] != controls.X).nnz == 0
    made = quietly(model, controls).layers["counts"].toarray()  # what is not raised is still thinned
    own = [np.corrcoef(a, b)[0, 1] for a, b in zip(made, controls.X.toarray(), strict=True)]
    other = [np.corrcoef(a, b)[0, 1] for a, b in zip(made, controls.X.toarray()[::-1], strict=True)]
    assert np.mean(own) > np.mean(other) + 0.2


@pytest.mark.parametrize("target_sum", [1e4, 200.0])
def test_counts_of_each_gene_change_by_the_factor_that_is_said(unseen, target_sum):
    model, controls = unseen
    out = quietly(model, controls, target_sum=target_sum)
    factor = out.uns["transfer"]["fold_change"].iloc[:, 0].to_numpy()
    asked = factor * total(controls.X)
    some = np.isfinite(asked)
    assert some.sum() > 40
    missed = np.abs(total(out.layers["counts"]) - asked)[some]
    assert (missed <= 5 * np.sqrt(asked[some]) + 1e-6).all()
    assert np.abs(np.log(factor[some & (factor > 0)])).max() > 0.3


@pytest.mark.parametrize("target_sum", [1e4, 200.0])
def test_a_change_that_was_seen_is_the_change_of_rates(simulated, target_sum):
    """Counts of a group change by the ratio of its counts under both conditions, whatever the scale."""
    model = fit(sa.CGMDVAE, simulated, max_epochs=2)
    controls, treated = (of(simulated, "cluster_1", c) for c in ("control", TO))
    out = model.transfer(controls, to=TO, target_sum=target_sum)
    before, after = (total(x.X) / x.X.sum() for x in (controls, treated))
    asked = after / before * total(controls.X)
    some = before > 0
    missed = np.abs(total(out.layers["counts"]) - asked)[some]
    assert (missed <= 5 * np.sqrt(asked[some]) + 1e-6).all()


def test_a_condition_without_an_effect_leaves_counts_nearly_alone():
    """Cells of which half are called treated: shallow panels do not drift (audit: a mean ratio of -.08)."""
    adata = sa.datasets.simulate(1200, 40, n_clusters=4, n_batches=1, library=100.0, effect=0.0, seed=1)
    held = (adata.obs["cluster"] == HELD) & (adata.obs["condition"] == TO)
    model = fit(sa.CGMDVAE, adata[~held.to_numpy()].copy())
    controls = of(adata, HELD)
    out = quietly(model, controls)
    many = total(controls.X) > 100
    drift = np.log(total(out.layers["counts"])[many] / total(controls.X)[many])
    asked = np.log(out.uns["transfer"]["fold_change"].iloc[:, 0].to_numpy()[many])
    assert np.abs(drift - asked).mean() < 0.03
    assert abs(drift.mean()) < 0.03


# where a group begins ---------------------------------------------------------------------------


def test_means_begin_where_the_context_does(unseen):
    """The mean of the context, moved by the shift; other cells of the group have no say."""
    model, controls = unseen
    some = controls[:60].copy()
    out = quietly(model, some, context=some)
    observed = np.log1p(1e4 * some.X.toarray() / some.X.sum(1)).mean(0)
    shift = out.uns["transfer"]["shift"].iloc[:, 0].to_numpy()
    np.testing.assert_allclose(out.X.mean(0), (np.asarray(observed).ravel() + shift).clip(0), atol=1e-3)
    whole = quietly(model, some)
    assert np.abs(whole.X - out.X).max() > 1e-3
    np.testing.assert_allclose(quietly(model, controls, context=some)[:60].X, out.X, rtol=1e-4, atol=1e-5)


def test_cells_that_the_context_lacks_are_the_decoders_alone(unseen):
    model, controls = unseen
    others = of(model.adata, "cluster_1")
    with pytest.warns(UserWarning, match="Far from what was seen under 'treated_1': cluster_0 from control"):
        out = model.transfer(controls, to=TO, context=others)
    assert out.obs["transfer_far"].all()
    alone = model.transfer(controls, to=TO, route="decoder")
    np.testing.assert_allclose(out.X, alone.X, rtol=1e-5)
    own = total(controls.X)
    assert np.corrcoef(np.log1p(total(out.layers["counts"])), np.log1p(own))[0, 1] > 0.8


def test_without_groups_the_decoder_predicts_alone_and_says_so(simulated):
    """One mean over cells of all types would carry their composition into the effect."""
    model = fit(sa.TRVAE, simulated, labels=None)
    cells = of(simulated, HELD)
    with pytest.warns(UserWarning, match=r"knows no groups of cells.*Pass `labels_key=`"):
        out = model.transfer(cells, to=TO)
    assert (out.obs["transfer_group"] == "cells").all()
    assert out.obs["transfer_far"].all()
    np.testing.assert_allclose(out.X, model.transfer(cells, to=TO, route="decoder").X, rtol=1e-5)
    assert out.layers["counts"].sum() == pytest.approx(cells.X.sum(), rel=0.3)
    same = model.transfer(cells, to="control")
    assert (same.layers["counts"] != cells.X).nnz == 0
    assert not same.obs["transfer_far"].any()


# what is returned -------------------------------------------------------------------------------


def test_genes_keep_their_columns_and_cells_have_names_of_their_own(unseen):
    model, controls = unseen
    out = quietly(model, controls)
    assert list(out.var["symbol"]) == list(controls.var["symbol"])
    assert not set(out.obs_names) & set(controls.obs_names)
    both = ad.concat([controls, out])
    assert both.obs_names.is_unique
    assert list(out.obs["transfer_of"]) == list(controls.obs_names)


def test_what_was_computed_from_the_old_counts_is_dropped(unseen):
    model, controls = unseen
    cells = controls.copy()
    model.annotate(cells)
    model.annotate(cells, key_added="mine")
    stale = [
        "n_counts",
        "total_counts",
        "n_genes",
        "n_genes_by_counts",
        "log1p_total_counts",
        "pct_counts_mt",
    ]
    for name in stale:
        cells.obs[name] = 1.0
    cells.obs["sample"], cells.obs["n_counts_of_mine"] = "s", 2.0
    out = quietly(model, cells)
    left = set(out.obs)
    assert not left & set(stale)
    assert not [c for c in left if c.startswith(("cgmdvae_", "mine_", "_scvi"))]
    assert {"sample", "n_counts_of_mine", "cluster", "condition"} <= left
    assert set(stale) <= set(cells.obs)  # of the cells that were given nothing is taken


@pytest.mark.parametrize("layer", [None, "raw"])
def test_transferred_cells_go_back_into_the_model(simulated, layer, tmp_path):
    """As cells with the sampled counts and the new condition, also from a file."""
    cells = ad.AnnData(simulated.X, obs=simulated.obs, layers={"raw": simulated.X} if layer else None)
    sa.CGMDVAE.setup_anndata(cells, layer=layer, condition_key="condition", labels_key="cluster")
    model = sa.CGMDVAE(cells, n_hidden=16, n_latent=3)
    model.train(max_epochs=2, enable_progress_bar=False)
    out = model.transfer(cells[:80].copy(), to=TO)
    counts = ad.AnnData(out.layers["counts"], obs=out.obs[["condition", "cluster"]], var=cells.var)
    if layer:
        counts.layers[layer] = counts.X
    expected = model.get_latent_representation(counts)
    np.testing.assert_allclose(model.get_latent_representation(out), expected, rtol=1e-5)
    out.write_h5ad(tmp_path / "out.h5ad")
    again = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(model.get_latent_representation(again), expected, rtol=1e-5)
    back = model.transfer(again, to="control")
    assert (back.obs["transfer_from"] == TO).all()
    pd.testing.assert_index_equal(back.var_names, cells.var_names)


def test_what_was_found_of_the_models_cells_is_kept_until_its_weights_change():
    """A second prediction reads no cell of the training again, and says the same."""
    adata = sa.datasets.simulate(300, 30, seed=2, effect=1.0)
    sa.CGMDVAE.setup_anndata(adata, condition_key="condition", labels_key="cluster")
    model = sa.CGMDVAE(adata, n_hidden=16)
    model.train(max_epochs=2, enable_progress_bar=False)
    control = adata[adata.obs["condition"] == "control"].copy()
    first = model.transfer(control, to="treated_1")
    read, asked = model.reader.batches, []
    model.reader.batches = lambda cells=None, *a, **k: asked.append(cells) or read(cells, *a, **k)
    again = model.transfer(control, to="treated_1")
    assert asked
    assert not any(cells is None for cells in asked)
    np.testing.assert_array_equal(first.X, again.X)
    assert (first.layers["counts"] != again.layers["counts"]).nnz == 0
    model.train(max_epochs=1, enable_progress_bar=False)
    asked.clear()
    later = model.transfer(control, to="treated_1")
    assert any(cells is None for cells in asked)
    assert not np.array_equal(first.X, later.X)
    with torch.no_grad():
        next(model.module.parameters()).mul_(1.1)  # also by hand
    asked.clear()
    model.transfer(control, to="treated_1")
    assert any(cells is None for cells in asked)


def test_groups_that_respond_differently_are_warned_of():
    """Of five types that were seen, one does not respond, so another may not, either."""
    cells = sa.datasets.trial(1500, 80, n_types=5, silent=1, donor_effect=0.0, donor_response=0.0, seed=0)
    held = (cells.obs["cell_type"] == "type_0") & (cells.obs["condition"] == "treated")
    model = fit(sa.CGMDVAE, cells[~held.to_numpy()].copy(), labels="cell_type")
    controls = cells[
        ((cells.obs["cell_type"] == "type_0") & (cells.obs["condition"] == "control")).to_numpy()
    ]
    with pytest.warns(
        UserWarning, match=r"1 of 4 groups, left out in turn, would have been predicted worse than by no"
    ):
        out = model.transfer(controls.copy(), to="treated")
    known = out.uns["transfer"]["expected_skill"].iloc[0]
    assert (known["worse"], known["contexts"]) == (1, 4)
    alike = sa.datasets.trial(1500, 80, n_types=5, donor_effect=0.0, donor_response=0.0, seed=0)
    model = fit(sa.CGMDVAE, alike[~held.to_numpy()].copy(), labels="cell_type")
    out = model.transfer(controls.copy(), to="treated")  # a warning would be an error
    assert out.uns["transfer"]["expected_skill"]["worse"].tolist() == [0]


def test_a_change_that_was_seen_is_reached_on_the_scale_of_the_user(simulated, unseen):
    """Shifts are found at 500 counts per cell, and converted to the scale that is asked for."""
    model, _ = unseen
    before, after = of(simulated, "cluster_1"), of(simulated, "cluster_1", TO)
    for scale in (500.0, 2000.0):
        seen = log_normalised(after.X, scale).mean(0) - log_normalised(before.X, scale).mean(0)
        found = model.transfer(before, to=TO, target_sum=scale).uns["transfer"]["shift"].iloc[:, 0]
        rises = seen > 0.3  # only added counts can be spread such that both mean and mean logarithm are met
        assert rises.sum() >= 5
        assert np.abs(found - seen)[rises].mean() < 0.05


def test_the_mean_of_the_code_is_decoded_unless_samples_are_asked_for(unseen):
    model, cells = unseen
    first, second = (quietly(model, cells, route="decoder", seed=s).X for s in (0, 1))
    np.testing.assert_array_equal(first, second)
    one, other = (quietly(model, cells, route="decoder", seed=s, n_samples=1).X for s in (0, 1))
    assert np.abs(one - other).max() > 0.01
    many = quietly(model, cells, route="decoder", n_samples=200).X
    assert np.abs(many - first).mean() < np.abs(one - first).mean()


def test_a_promise_is_no_larger_than_the_uncertainty_leaves(unseen):
    model, cells = unseen
    out = quietly(model, cells, target_sum=500.0)
    said = out.uns["transfer"]
    known, shift, sd = said["expected_skill"].iloc[0], said["shift"].iloc[:, 0], said["sd"].iloc[:, 0]
    noise = 2 * log_normalised(cells.X, 500.0).var(0) / cells.n_obs  # sampling noise of the means, in sd
    unsure = (np.square(sd) - noise).clip(lower=0).sum()
    left = np.square(shift).sum() / (np.square(shift).sum() + unsure)
    assert known["mean"] == pytest.approx(min(left, known["left_out"]), abs=0.02)
    assert out.obs["transfer_skill"].unique().tolist() == [known["mean"]]
    assert left < known["left_out"]  # it is the uncertainty that counts here


def test_cells_are_decoded_before_and_after_and_in_the_middle(unseen):
    model, cells = unseen
    code = model.reader.conditions.index(TO)
    with torch.no_grad():
        made, scaled = decode(model, cells, code, How("auto", None, 1e4), scales=(500.0,))
        (brief,) = decode(model, cells, code, How("auto", None, 1e4), keep=frozenset({"share"}))
        sampled = decode(model, cells, code, How("auto", 1, 1e4))[0]
    for found, scale in ((made, 1e4), (scaled, 500.0)):
        np.testing.assert_allclose(found.middle, (found.before + found.after) / 2, rtol=1e-5)
        np.testing.assert_allclose(found.observed, log_normalised(cells.X, scale), rtol=1e-4, atol=1e-6)
    assert brief.middle.size == brief.after.size == 0
    np.testing.assert_allclose(brief.share, made.share)
    np.testing.assert_allclose(made.share.sum(1), 1, rtol=1e-4)
    np.testing.assert_allclose(made.share, sampled.share)  # counts are draws
    assert np.abs(made.after - sampled.after).max() > 0.01
