"""Dose curves, interactions and similar conditions of models with structured conditions."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import scalloy as sa
from scalloy.models._core import responses
from scalloy.models._core.changes import shown
from scalloy.perturbation import condition_effects
from scalloy.perturbation.design import Content

QUIET = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}
ASKED = {"factors": "drug", "dose": "dose", "descriptors": "descriptors"}


def fitted(cells, cls=sa.CGMDVAE, labels="cell_type", **asked):
    cells = cells.copy()
    cls.setup_anndata(cells, conditions=sa.Conditions(**{**ASKED, **asked}), labels_key=labels)
    model = cls(cells, n_hidden=8, n_latent=3)
    model.train(**QUIET)
    return model


@pytest.fixture(scope="module", autouse=True)
def _soon():
    """Weights of covariances that are learned in few steps will do here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(condition_effects, "STEPS", 12)
        patched.setattr(condition_effects, "DILUTIONS", (0.0,))
        yield


@pytest.fixture(scope="module")
def screen():
    return sa.datasets.screen(
        1500, 40, n_types=2, n_drugs=4, n_unseen=1, n_pairs=3, doses=(0.1, 1.0), interaction=2.0, seed=1
    )


@pytest.fixture(scope="module", params=["CGMDVAE", "TRVAE"])
def model(request, screen):
    return fitted(screen, getattr(sa, request.param))


@pytest.fixture(scope="module")
def one(screen):
    return fitted(screen)


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


# dose curves --------------------------------------------------------------------------------------


def test_a_curve_has_a_row_for_each_group_dose_and_gene(model):
    genes, doses = ["gene_3", "gene_1"], [0.1, 0.4, 1, 30]
    found = quietly(model.dose_response, "drug_1", doses, genes=genes)
    assert list(found.columns) == ["group", "dose", "gene", "log_fold_change", "sd", "low", "high", "beyond"]
    groups = sorted(set(found["group"]))
    assert groups == ["type_0", "type_1"]
    assert len(found) == len(groups) * len(genes) * len(doses)
    assert found["gene"].tolist()[:2] == genes
    assert set(found["dose"][found["beyond"]]) == {30.0}
    half = stats.norm.ppf(0.95) * found["sd"]
    np.testing.assert_allclose(found["high"] - found["log_fold_change"], half)
    np.testing.assert_allclose(found["log_fold_change"] - found["low"], half)
    assert (found["sd"] > 0).all()
    both = quietly(model.dose_response, "drug_1", [0.4], genes=genes)
    same = found[found["dose"] == 0.4].reset_index(drop=True)
    pd.testing.assert_frame_equal(both, same)  # a dose is predicted the same whatever others are asked for


def test_at_dose_zero_nothing_changes(one):
    found = one.dose_response("drug_1", [0.0])
    assert not found[["log_fold_change", "sd", "low", "high"]].to_numpy().any()
    assert not found["beyond"].any()
    beside = quietly(one.dose_response, "drug_1", [0.0], beside={"drug_0": 1.0}, genes=["gene_2"])
    alone = quietly(one.dose_response, "drug_0", [1.0], genes=["gene_2"])
    np.testing.assert_allclose(beside["log_fold_change"], alone["log_fold_change"])


def test_doses_by_default(one):
    found = quietly(one.dose_response, "drug_2", genes=["gene_0"])
    doses = np.unique(found["dose"])
    assert len(doses) == responses.N_DOSES
    assert doses[-1] == pytest.approx(1.0)
    assert doses[0] == pytest.approx(0.05)


GROUPED = {"labels": "cell_type", "clusters": None, "no groups": None}


@pytest.mark.parametrize("groups", GROUPED)
def test_predictions_of_a_dose_are_those_of_transfer(groups, screen):
    """With whatever groups there are, also if a model knows none."""
    cls = sa.TRVAE if groups == "no groups" else sa.CGMDVAE
    one = fitted(screen, cls, GROUPED[groups])
    cells = one.adata[(one.adata.obs["drug"] == "control").to_numpy()].copy()
    for dose in (0.4, 3.0):
        made = quietly(one.transfer, cells, to={"drug_1": dose})
        found = quietly(one.dose_response, "drug_1", [dose])
        assert made.obs["transfer_far"].all() == found["beyond"].all() == (dose == 3.0)
        assert np.isfinite(made.obs["transfer_skill"]).all()
        names = sorted(set(found["group"]))
        assert names == sorted(made.obs["transfer_group"].unique())
        for group in names:
            said = np.log(made.uns["transfer"]["fold_change"][f"{group} from control"])
            sd = made.uns["transfer"]["log_fold_change_sd"][f"{group} from control"]
            rows = found[found["group"] == group].set_index("gene")
            np.testing.assert_allclose(rows["log_fold_change"], said[rows.index], atol=1e-6)
            np.testing.assert_allclose(rows["sd"], sd[rows.index], atol=1e-6)


def test_counts_change_as_the_curve_says(screen):
    """The counts of cells are drawn, so that their means have noise: by far most genes within four sds."""
    one = fitted(screen, sa.TRVAE, None)
    cells = one.adata[(one.adata.obs["drug"] == "control").to_numpy()].copy()
    made = quietly(one.transfer, cells, to={"drug_1": 0.4})
    found = quietly(one.dose_response, "drug_1", [0.4]).set_index("gene")["log_fold_change"]
    before, after = (np.asarray(x.sum(0)).ravel() for x in (cells.X, made.layers["counts"]))
    missed = np.log(after / before) - found[cells.var_names]
    assert np.mean(np.abs(missed) < 4 * np.sqrt(1 / before + 1 / after)) > 0.9


def test_a_curve_depends_neither_on_the_order_of_cells_nor_of_genes(one, screen):
    controls = screen[(screen.obs["drug"] == "control").to_numpy()].copy()
    some = ["gene_3", "gene_1"]
    curves = one.dose_response("drug_0", [0.3], cells=controls, genes=some)
    turned = controls[::-1, ::-1].copy()
    again = one.dose_response("drug_0", [0.3], cells=turned, genes=some)
    pd.testing.assert_frame_equal(curves, again, rtol=1e-4, atol=1e-5)


def test_from_another_condition_and_from_other_cells(one):
    found = quietly(one.dose_response, "drug_1", [0.4], source="drug_0 1", genes=["gene_2"])
    assert np.isfinite(found["log_fold_change"]).all()
    cells = one.adata[(one.adata.obs["cell_type"] == "type_1").to_numpy()].copy()
    assert set(quietly(one.dose_response, "drug_1", [0.4], cells=cells)["group"]) == {"type_1"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.dose_response("drug_9"), ValueError, "`part='drug_9' ?.*is not known"),
        (lambda m: m.dose_response("drug_1", [-1.0]), ValueError, "has -1.0 for 'drug_1'"),
        (lambda m: m.dose_response("drug_1", [np.nan]), ValueError, "has nan for 'drug_1'"),
        (lambda m: m.dose_response("drug_1", []), ValueError, "`doses` is empty"),
        (
            lambda m: m.dose_response("drug_1", [1], source="drug_8"),
            ValueError,
            "`source='drug_8'` is not known",
        ),
        (lambda m: m.dose_response("drug_1", [1], genes=["nope"]), KeyError, "does not know: nope"),
        (lambda m: m.dose_response("drug_1", [1], beside={"Z": 1}), ValueError, "has the part 'Z'"),
        (
            lambda m: m.dose_response(
                "drug_1", [1], cells=m.adata[(m.adata.obs["drug"] == "drug_1").to_numpy()].copy()
            ),
            ValueError,
            "No cell is under `source='control'`",
        ),
        (lambda m: m.interactions(["drug_0 1"]), ValueError, "'drug_0 1' is no combination that was seen"),
        (lambda m: m.interactions([{"drug_0": 1, "drug_9": 1}]), ValueError, "has the part 'drug_9'"),
        (
            lambda m: m.interactions([{"drug_0": 7, "drug_1": 1}]),
            ValueError,
            "is no combination that was seen",
        ),
        (lambda m: m.interactions(groups=["nobody"]), ValueError, "`groups='nobody'` is not known"),
        (lambda m: m.interactions([]), ValueError, "No combination was seen"),
        (lambda m: m.get_nearest_conditions("drug_9"), ValueError, "`to="),
        (lambda m: m.get_nearest_conditions("control", n=0), ValueError, "`n=0` must be above zero"),
    ],
)
def test_what_cannot_be_answered_is_refused(one, call, error, message):
    with pytest.raises(error, match=message):
        quietly(call, one)


def test_models_without_structure_or_doses_say_so(screen):
    cells = screen.copy()
    cells.obs["state"] = np.where(cells.obs["drug"] == "control", "control", "treated")
    sa.CGMDVAE.setup_anndata(cells, condition_key="state", labels_key="cell_type")
    plain = sa.CGMDVAE(cells, n_hidden=8, n_latent=3)
    plain.train(**QUIET)
    for call in (
        lambda: plain.dose_response("treated"),
        lambda: plain.interactions(),
        lambda: plain.get_nearest_conditions("treated"),
    ):
        with pytest.raises(ValueError, match="The conditions of the model are mere names"):
            call()
    high = screen[(screen.obs["dose"].isin(["0", "1", "1+1"])).to_numpy()]
    undosed = fitted(high, dose=None)
    with pytest.raises(ValueError, match="The model knows no doses"):
        undosed.dose_response("drug_1")
    found = quietly(undosed.interactions)
    assert np.isfinite(found["interaction"]).all()
    singles = fitted(screen[(~screen.obs["drug"].astype(str).str.contains("+", regex=False)).to_numpy()])
    with pytest.raises(ValueError, match="No combination was seen"):
        singles.interactions()


def test_too_little_was_seen(screen):
    drug = screen.obs["drug"].astype(str)
    few = np.r_[np.flatnonzero(drug == "control")[:60], np.flatnonzero(drug == "drug_1")[:8]]
    model = fitted(screen[few])
    with pytest.raises(ValueError, match="No group of cells was seen both under the control"):
        model.get_nearest_conditions({"drug_1": 1.0})
    type_0 = (screen.obs["cell_type"] == "type_0") & (screen.obs["dose"].isin(["0", "1"]))
    single = fitted(screen[(type_0 & drug.isin(["control", "drug_1"])).to_numpy()])
    with pytest.warns(UserWarning, match="Only one condition was seen in one group"):
        assert single.get_nearest_conditions({"drug_1": 0.5}).shape == (1, 1)


# interactions -------------------------------------------------------------------------------------


def test_interactions_are_observed_changes_against_sums(one):
    found = quietly(one.interactions)
    structured = shown(one, 1e4)[2]
    seen, position = structured.effects("levels").seen, {}
    for i, context in enumerate(structured.contexts):
        position[context] = i
    assert set(found["combination"]) == {
        structured.design.name_of(c) for _, c in structured.contexts if len(c.parts) > 1
    }
    checked = 0
    for (group, name), rows in found.groupby(["group", "combination"]):
        content = structured.contents[name]
        parts = [position.get((group, Content((part,), content.time))) for part in content.parts]
        if None in parts:
            continue
        checked += 1
        whole = position[group, content]
        additive = sum(seen.change[p] for p in parts)
        np.testing.assert_allclose(rows["observed"], seen.change[whole])
        middle = np.median(seen.change[whole] - additive)  # what all genes have in common
        np.testing.assert_allclose(rows["additive"], additive + middle)
        np.testing.assert_allclose(rows["interaction"], seen.change[whole] - additive - middle)
        # y_ab - c - (y_a - c) - (y_b - c) = y_ab - y_a - y_b + c
        variance = sum(seen.noise[i] for i in (whole, *parts)) + seen.shared[whole]
        z = rows["interaction"].to_numpy() / np.sqrt(variance)
        wide = max(1, np.median(np.abs(z[z != 0])) / stats.norm.ppf(0.75))
        np.testing.assert_allclose(rows["se"], wide * np.sqrt(variance))
        least = min(structured.n_cells(*structured.contexts[i]) for i in (whole, *parts))
        np.testing.assert_allclose(rows["p_value"], 2 * stats.t.sf(np.abs(z) / wide, least - 1))
    assert checked
    np.testing.assert_allclose(found["q_value"], stats.false_discovery_control(found["p_value"]))


def test_planted_interactions_are_found(screen, one):
    """And where there is none, p-values are about uniform."""
    found, truth = quietly(one.interactions), screen.uns["interactions"]
    parts = found["combination"].str.split("+").map(lambda v: "+".join(p.split()[0] for p in v))
    true = np.array([truth.loc[p, g] for p, g in zip(parts, found["gene"], strict=True)])
    quiet = np.array([not truth.loc[p].any() for p in parts])
    assert quiet.any()
    assert (found["p_value"][quiet] < 0.05).mean() < 0.12
    assert stats.spearmanr(found["interaction"][true != 0], true[true != 0]).statistic > 0.4


def test_some_combinations_groups_and_genes(one):
    name = one.interactions()["combination"].iloc[0]
    content = one.reader.structure.design
    parts = dict(dict(zip(content.names, content.contents, strict=True))[name].parts)
    every = quietly(one.interactions, [name], groups=["type_1"], genes=["gene_5", "gene_2"])
    assert list(every["gene"]) == ["gene_5", "gene_2"]
    assert set(every["group"]) == {"type_1"}
    for asked in (name, [parts], parts):  # a single one need not be in a list
        pd.testing.assert_frame_equal(
            quietly(one.interactions, asked, groups="type_1", genes=["gene_5", "gene_2"]), every
        )


def test_parts_that_were_not_seen_are_predicted_with_their_uncertainty(screen):
    drug, dose = screen.obs["drug"].astype(str), screen.obs["dose"].astype(str)
    pair = next(d for d in drug if "+" in d)
    part = pair.split("+")[1]
    model = fitted(screen[(~((drug == part) & (dose == "1"))).to_numpy()])
    content = Content.of({pair.split("+")[0]: 1.0, part: 1.0})
    found = quietly(model.interactions, [dict(content.parts)], groups=["type_0"])
    effects = shown(model, 1e4)[2].effects("levels")
    position = {c: i for i, c in enumerate(effects.seen.contexts)}
    whole, other = (position["type_0", c] for c in (content, Content.of({pair.split("+")[0]: 1.0})))
    hidden = [c for c in effects.seen.contexts if c[1] == content]
    expected = effects.predict("type_0", Content.of({part: 1.0}), without=hidden)
    additive = effects.seen.change[other] + expected.mean
    middle = np.median(effects.seen.change[whole] - additive)
    np.testing.assert_allclose(found["additive"], additive + middle)
    noise = effects.seen.noise  # that of the control is in both changes that were seen, and cancels
    se = np.sqrt(noise[whole] + noise[other] + expected.sd**2)
    np.testing.assert_allclose(found["se"] / se, (found["se"] / se).iloc[0])  # wider by one factor
    assert (found["se"] / se).iloc[0] >= 1 - 1e-9


# similar conditions -------------------------------------------------------------------------------


def test_nearest_conditions_share_parts_and_doses(model):
    found = quietly(model.get_nearest_conditions, {"drug_1": 0.9}, n=3)
    assert list(found.columns) == ["correlation"]
    assert found.index.name == "condition"
    assert found.index[0] == "drug_1 1"
    assert found["correlation"].is_monotonic_decreasing
    assert found["correlation"].between(-1 - 1e-9, 1 + 1e-9).all()
    seen = quietly(model.get_nearest_conditions, "drug_1 1", n=100)
    assert "drug_1 1" not in seen.index
    assert len(seen) == len({c for _, c in shown(model, 1e4)[2].contexts}) - 1
    assert quietly(model.get_nearest_conditions, {"drug_4": 1.0}).shape == (5, 1)  # by description only
