"""Changes are compared within donors, where donors are known; where they are not, strays are no change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scalloy as sa
from scalloy.perturbation import donors
from scalloy.perturbation.donors import Seen

GENES = 40
rng = np.random.default_rng(0)
OF_DONOR = {d: rng.normal(0, 1, GENES) for d in "uvwx"}
EFFECT = np.where(np.arange(GENES) < 10, 1.0, 0.0)


def seen(sizes, *, clusters=False, known=True):
    """Cells with exact expression: ``sizes[group, donor]`` are the numbers of controls and treated cells."""
    groups, of, under, x = [], [], [], []
    for (group, donor), numbers in sizes.items():
        for condition, n in zip(("control", "a"), numbers):
            mean = OF_DONOR[donor] + 3 * (group == "h") + EFFECT * (condition == "a")
            groups += [group] * n
            of += [donor] * n
            under += [condition] * n
            x.append(np.tile(mean, (n, 1)))
    pieces = [(np.concatenate(x), None)]
    return Seen.of(groups, of if known else None, under, pieces, clusters=clusters)


def change(shown, name):
    return shown.moments[name, "a"].mean - shown.moments[name, "control"].mean


def test_donors_in_other_proportions_are_no_change():
    """Nine of ten controls are of one donor, and nine of ten treated cells of another."""
    sizes = {("g", "u"): (90, 10), ("g", "v"): (10, 90)}
    naive = change(seen(sizes, known=False).by_group("control", "a"), "g")
    assert np.abs(naive - EFFECT).max() > 0.5
    np.testing.assert_allclose(change(seen(sizes).by_group("control", "a"), "g"), EFFECT, atol=1e-12)


def test_donors_under_one_condition_are_left_out():
    sizes = {("g", "u"): (50, 0), ("g", "v"): (0, 50), ("g", "w"): (20, 20)}
    shown = seen(sizes).by_group("control", "a")
    np.testing.assert_allclose(change(shown, "g"), EFFECT, atol=1e-12)
    assert shown.moments["g", "control"].n == pytest.approx(20)


def test_a_group_without_a_paired_donor_is_not_seen_if_others_have_one():
    sizes = {("g", "u"): (50, 0), ("g", "v"): (2, 50), ("h", "w"): (20, 20)}
    assert seen(sizes).by_group("control", "a").others("control", "a") == ["h"]


def test_where_no_donor_has_both_conditions_all_are_compared():
    sizes = {("g", "u"): (50, 0), ("g", "v"): (0, 50), ("h", "w"): (20, 0), ("h", "x"): (0, 30)}
    found = seen(sizes)
    assert not found.per_donor("g", "control", "a")
    shown = found.by_group("control", "a")
    assert set(shown.others("control", "a")) == {"g", "h"}
    np.testing.assert_allclose(change(shown, "g"), EFFECT + OF_DONOR["v"] - OF_DONOR["u"])


def test_units_are_learned_from_if_the_group_was_seen_in_other_donors():
    sizes = {("g", d): (60, 60) for d in "uvw"} | {("g", "x"): (60, 0), ("h", "u"): (60, 60)}
    found = seen(sizes)
    assert found.per_donor("g", "control", "a")
    assert not found.per_donor("g", "control", "control")
    shown, name = found.chosen("g", "x", "control", "a")
    assert name == "g of x"
    assert set(shown.others("control", "a")) == {"g of u", "g of v", "g of w", "h of u"}
    cells = np.tile(OF_DONOR["x"], (60, 1))
    shift = shown.shift(np.zeros(GENES), cells, name, "control", "a")
    assert not shift.seen
    assert np.square(shift.mean - EFFECT).sum() < 0.1 * np.square(EFFECT).sum()
    # a unit that was seen in many cells is taken as it is
    shown, name = found.chosen("g", "u", "control", "a")
    assert shown.shift(np.zeros(GENES), cells, name, "control", "a").seen
    # of a group that no donor has shown, other groups tell, for all donors at once
    assert not found.per_donor("new", "control", "a")
    shown, name = found.chosen("new", "", "control", "a")
    assert name == "new"
    assert set(shown.others("control", "a")) == {"g", "h"}


def test_units_of_the_same_name_are_kept_apart():
    """Cluster "g of u" of donor v, and cluster g of donor "u of v"."""
    OF_DONOR["u of v"] = OF_DONOR["w"]
    found = seen({("g of u", "v"): (60, 60), ("g", "u of v"): (60, 60), ("h", "x"): (60, 60)})
    names = found.by_donor("control", "a").others("control", "a")
    assert sorted(names) == ["g of u of v", "g of u of v'", "h of x"]
    for group, donor in (("g of u", "v"), ("g", "u of v")):
        shown, name = found.chosen(group, donor, "control", "a")
        np.testing.assert_allclose(shown.moments[name, "control"].mean, OF_DONOR[donor])


def test_a_unit_of_few_cells_is_pooled_with_others():
    """Its own change counts, but less than in full: here it is noise."""
    found = seen({("g", d): (60, 60) for d in "uvw"} | {("g", "x"): (12, 12)})
    shown, name = found.chosen("g", "x", "control", "a")
    odd = np.random.default_rng(3).normal(0, 1, GENES)
    few = shown.moments[name, "a"]
    for key, moments in shown.moments.items():  # noise of single cells
        shown.moments[key] = type(moments)(moments.mean, np.full(GENES, 4.0), moments.n)
    shown.moments[name, "a"] = type(few)(few.mean + odd, np.full(GENES, 4.0), few.n)
    shift = shown.shift(np.zeros(GENES), np.tile(OF_DONOR["x"], (12, 1)), name, "control", "a")
    assert not shift.seen
    assert np.square(shift.mean - EFFECT).sum() < 0.5 * np.square(odd).sum()


def test_many_units_are_learned_from_in_the_same_group(monkeypatch):
    found = seen({(g, d): (60, 60) for g in "gh" for d in "uvw"} | {("g", "x"): (60, 0)})
    monkeypatch.setattr(donors, "MOST_UNITS", 3)
    shown, _ = found.chosen("g", "x", "control", "a")
    assert set(shown.others("control", "a")) == {"g of u", "g of v", "g of w"}
    monkeypatch.setattr(donors, "MOST_APART", 5)
    assert not found.per_donor("g", "control", "a")


def test_a_cluster_with_hardly_any_treated_cells_is_not_seen():
    """The treated cells in the cluster of donor u are strays of others, whose clusters are complete."""
    strayed = {("g", "u"): (300, 0), ("g", "v"): (0, 12), ("h", "w"): (100, 100), ("i", "x"): (90, 100)}
    found = seen(strayed, clusters=True, known=False)
    assert found.strays("control", "a") == {"g": (300, 12)}
    assert set(found.by_group("control", "a").others("control", "a")) == {"h", "i"}
    # labels are believed, and so are clusters if there is nothing else
    assert not seen(strayed, known=False).strays("control", "a")
    assert not seen({("g", "u"): (300, 12)}, clusters=True, known=False).strays("control", "a")
    # clusters of one condition each have shown nothing
    apart = seen({("g", "u"): (300, 12), ("h", "v"): (11, 280)}, clusters=True, known=False)
    assert set(apart.strays("control", "a")) == {"g", "h"}
    assert not apart.by_group("control", "a").others("control", "a")
    # of two clusters the one that was well seen is believed
    two = seen({("g", "u"): (500, 500), ("h", "v"): (500, 11)}, clusters=True, known=False)
    assert set(two.strays("control", "a")) == {"h"}
    # fewer treated cells everywhere are no strays
    rare = {("g", "u"): (300, 15), ("h", "w"): (200, 12), ("i", "x"): (290, 14)}
    assert not seen(rare, clusters=True, known=False).strays("control", "a")


def patients(seed=0, controls=120):
    """Counts of four patients who differ more than the condition changes; of one no treated cell is known."""
    rng = np.random.default_rng(seed)
    rate = rng.dirichlet(np.full(80, 0.5), 4)
    up = np.where(np.arange(80) % 8 == 0, 4.0, 1.0)
    obs, x = [], []
    for p in range(4):
        for condition, factor in (("control", 1.0), ("treated", up)):
            r = rate[p] * factor / (rate[p] * factor).sum()
            n = controls if (p, condition) == (3, "control") else 120
            x.append(rng.poisson(400 * r * rng.gamma(4, 0.25, (n, 1)), (n, 80)))
            obs += [(f"patient {p}", condition)] * n
    import anndata as ad
    import pandas as pd

    obs = pd.DataFrame(obs, columns=["patient", "condition"]).set_axis([f"c{i}" for i in range(len(obs))])
    return ad.AnnData(np.concatenate(x).astype(np.float32), obs=obs)


def skill(out, cells, truth):
    def mean(x):
        return np.log1p(1e4 * np.asarray(x) / np.asarray(x).sum(1, keepdims=True)).mean(0)

    before, after, made = mean(cells.X), mean(truth.X), mean(out.layers["counts"].toarray())
    return 1 - np.square(after - made).sum() / np.square(after - before).sum()


@pytest.mark.parametrize("column", ["donor_key", "batch_key"])
@pytest.mark.parametrize("cls", [sa.CGMDVAE, sa.TRVAE])
def test_treated_cells_of_a_patient_are_predicted_from_other_patients(cls, column):
    """One cluster (or none) holds all patients, with the treated cells of three and controls of four."""
    every = patients()
    last = every.obs["patient"] == "patient 3"
    held = (last & (every.obs["condition"] == "treated")).to_numpy()
    cells = every[~held].copy()
    labels = {"labels_key": "kind"} if cls is sa.TRVAE else {}
    cells.obs["kind"] = "tumour"
    cls.setup_anndata(cells, condition_key="condition", **{column: "patient"}, **labels)
    settings = {} if cls is sa.TRVAE else {"n_clusters": 1}
    model = cls(cells, n_hidden=32, n_latent=4, **settings)
    model.train(max_epochs=30, enable_progress_bar=False)
    own = cells[(cells.obs["patient"] == "patient 3").to_numpy()].copy()
    out = model.transfer(own, to="treated")
    (pair,) = out.uns["transfer"]["shift"].columns
    assert (out.obs["transfer_pair"] == pair).all()
    assert pair.endswith(" of patient 3 from control")
    assert len(out.uns["transfer"]["learned_from"][pair]) == 3
    assert skill(out, own, every[held]) > 0.5
    assert out.obs["transfer_group"].nunique() == 1
    alone = model.transfer(own[:1].copy(), to="treated")
    np.testing.assert_allclose(alone.X, out.X[:1], rtol=1e-4)


def test_a_donor_with_two_cells_on_one_side_is_not_compared():
    sizes = {("g", "u"): (2, 60), ("g", "v"): (30, 30)}
    shown = seen(sizes).by_group("control", "a")
    assert shown.moments["g", "control"].n == shown.moments["g", "a"].n == pytest.approx(30)


def test_a_change_starts_at_the_donors_own_cells_and_its_interval_is_stretched(monkeypatch):
    from scalloy.models._core.changes import changes_of
    from scalloy.models._core.decoding import How
    from scalloy.models._core.targets import Target
    from scalloy.perturbation import group_effects

    every = patients()
    held = ((every.obs["patient"] == "patient 3") & (every.obs["condition"] == "treated")).to_numpy()
    cells = every[~held].copy()
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition", donor_key="patient")
    model = sa.CGMDVAE(cells, n_hidden=8, n_latent=2, n_clusters=1)
    model.train(max_epochs=2, enable_progress_bar=False)
    own = cells[(cells.obs["patient"] == "patient 3").to_numpy()].copy()
    found = []
    for factor in (1.0, 3.0):
        monkeypatch.setattr(group_effects, "stretch", lambda *_, k=factor: k)
        model._kept.clear()
        with torch.no_grad():
            change = changes_of(model, How("auto", 1, 1e4)).of("0", "patient 3", "control", Target("treated"))
        np.testing.assert_allclose(change.rates.before, own.X.sum(0) / own.X.sum(), rtol=1e-5)
        found.append((change.rates.sd, change.shift.sd, change.shift.uncertainty))
    np.testing.assert_allclose(found[1][0], 3 * found[0][0])
    np.testing.assert_allclose(found[1][2], 3 * found[0][2])
    noise = np.square(found[0][1]) - np.square(found[0][2])  # of the means, which stays
    np.testing.assert_allclose(found[1][1], np.sqrt(noise + np.square(found[1][2])))


def test_entries_of_the_same_name_are_kept_apart():
    import pandas as pd

    from scalloy.models._core.transfer import _of_donors

    found = seen({("g of u", "v"): (60, 60), ("g", "u of v"): (60, 60), ("h", "x"): (60, 60)})
    about = pd.DataFrame({"group": ["g of u", "g", "h", "g"], "donor": ["v", "u of v", "x", "u of v"]})
    made = _of_donors(about.assign(source="control"), found, "a")
    assert made["pair"].tolist() == [
        "'g of u' of 'v' from 'control'",
        "'g' of 'u of v' from 'control'",
        "h of x from control",
        "'g' of 'u of v' from 'control'",
    ]


def test_a_cluster_of_strays_is_named_in_a_warning():
    """Patients are far apart, so that clusters are patients; a few treated cells of others are mistaken."""
    every = patients(controls=240)
    last = (every.obs["patient"] == "patient 3").to_numpy()
    treated = (every.obs["condition"] == "treated").to_numpy()
    few = np.flatnonzero(last & treated)[:11]  # as many as are taken for a group
    cells = every[np.union1d(np.flatnonzero(~(last & treated)), few)].copy()
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition")
    model = sa.CGMDVAE(cells, n_hidden=32, n_latent=4, n_clusters=4)
    model.train(max_epochs=40, enable_progress_bar=False)
    own = cells[((cells.obs["patient"] == "patient 3") & (cells.obs["condition"] == "control")).to_numpy()]
    of = model.get_transfer_groups(own.copy()).mode()[0]
    with pytest.warns(
        UserWarning, match=f"Cluster '{of}' has .* cells under 'control' and 11 under 'treated'"
    ):
        model.transfer(own.copy(), to="treated")
    with pytest.warns(UserWarning, match="The fewer ones are taken for strays"):
        model.transfer(own.copy(), to="treated")  # every time
