"""Embedded and simulated data."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import numpy as np
import pytest

import scalloy as sa
from scalloy import datasets


def test_embedded_kang_is_real_and_complete():
    adata = sa.datasets.kang()
    assert 5_000 < adata.n_obs < 8_000
    assert adata.obs["cell_type"].nunique() == 8
    assert set(adata.obs["condition"]) == {"control", "stimulated"}
    assert adata.obs["batch"].nunique() == 8
    assert adata.obs.groupby(["cell_type", "condition"], observed=True).size().min() >= 20
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.X.data.min() >= 1
    assert "GSE96583" in adata.uns["source"]
    assert (files("scalloy.data") / "kang_subset.h5ad").stat().st_size < 4 * 2**20
    monocytes = adata[adata.obs["cell_type"] == "CD14+ Monocytes"]
    isg15 = monocytes[:, "ISG15"].X.toarray().ravel()
    stimulated = (monocytes.obs["condition"] == "stimulated").to_numpy()
    assert isg15[stimulated].mean() > 10 * isg15[~stimulated].mean()  # interferon at work


def test_subset_agrees_with_the_full_set(benchmark_data, monkeypatch):
    monkeypatch.setenv("SCALLOY_DATA", str(benchmark_data))
    full, subset = sa.datasets.kang(full=True), sa.datasets.kang()
    assert full.shape == (16_412, 13_966)
    there = full[subset.obs_names, subset.var_names]
    assert (there.X != subset.X).nnz == 0
    totals = np.asarray(full[subset.obs_names].X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(totals, subset.obs["n_counts"])
    assert (there.obs["condition"].astype(str) == subset.obs["condition"].astype(str)).all()


def test_fetch_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALLOY_DATA", str(tmp_path))
    monkeypatch.delenv("SCALLOY_DATA_URL", raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"holds no kang_pbmc.h5ad.*SCALLOY_DATA_URL"):
        datasets.fetch("kang_pbmc.h5ad")
    with pytest.raises(ValueError, match=r"is not known. Pass one of: kang_pbmc"):
        datasets.fetch("nope")


@pytest.fixture
def server(tmp_path):
    """A folder served on the loopback address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_download_is_checked(monkeypatch, tmp_path, server):
    """A file of another content is refused by its checksum; the right one is kept."""
    folder, url = server
    (folder / "pbmc3k.h5ad").write_bytes(b"not it")
    monkeypatch.delenv("SCALLOY_DATA", raising=False)
    monkeypatch.setenv("SCALLOY_DATA_URL", url)
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache")
    with pytest.raises(ValueError, match="hash"):
        datasets.fetch("pbmc3k.h5ad")
    right = hashlib.sha256(b"not it").hexdigest()
    monkeypatch.setitem(datasets.DOWNLOADS, "pbmc3k.h5ad", right)
    assert datasets.fetch("pbmc3k.h5ad").read_bytes() == b"not it"


def test_simulated_truth():
    adata = sa.datasets.simulate(3000, 50, n_conditions=3, n_proteins=4, theta=3.0, seed=2)
    again = sa.datasets.simulate(3000, 50, n_conditions=3, n_proteins=4, theta=3.0, seed=2)
    assert (adata.X != again.X).nnz == 0
    mean, x = adata.layers["mean"], adata.X.toarray()
    assert np.abs(x.mean(0) / mean.mean(0) - 1)[mean.mean(0) > 1].max() < 0.15
    standardised = (x - mean) / np.sqrt(mean + mean**2 / 3.0)  # NB variance
    assert standardised.var() == pytest.approx(1, abs=0.1)
    control = (adata.obs["condition"] == "control").to_numpy()
    np.testing.assert_array_equal(adata.layers["mean_control"][control], mean[control])
    assert np.abs(adata.layers["mean_treated_1"] - adata.layers["mean_control"]).max() > 1
    np.testing.assert_allclose(adata.layers["mean_treated_2"].sum(1), mean.sum(1), rtol=1e-4)
    assert adata.obsm["protein_counts"].shape == (3000, 4)


def test_sources_toys():
    adata = sa.datasets.poisson_genes()
    assert adata.shape == (2000, 10)
    np.testing.assert_allclose(adata.X.toarray().mean(0), np.arange(1, 11), rtol=0.05)
    toy = sa.datasets.blobs()
    assert toy.shape == (3500, 16)
    assert (toy.obs.groupby(["cluster", "condition"], observed=True).size() == 350).all()
    groups = toy.to_df().groupby([toy.obs["cluster"], toy.obs["condition"]], observed=True).mean()
    shift = groups.xs("treated_1", level=1) - groups.xs("control", level=1)
    assert shift.to_numpy().mean() == pytest.approx(1.5, abs=0.2)


def test_a_trial_has_the_truth_of_both_conditions():
    """Counts have the stated means; silent types do not respond, and others share a part of a response."""
    made = {"n_types": 4, "n_donors": 2, "silent": 1, "donor_response": 0.0, "seed": 3}
    adata = sa.datasets.trial(4000, 60, **made, theta=3.0)
    assert (adata.X != sa.datasets.trial(4000, 60, **made, theta=3.0).X).nnz == 0
    before, after = adata.layers["mean_control"], adata.layers["mean_treated"]
    treated = (adata.obs["condition"] == "treated").to_numpy()
    mean, x = np.where(treated[:, None], after, before), adata.X.toarray()
    standardised = (x - mean) / np.sqrt(mean + mean**2 / 3.0)  # NB variance
    assert standardised.var() == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(before.sum(1), after.sum(1), rtol=1e-4)
    of = {name: (adata.obs["cell_type"] == name).to_numpy() for name in ("type_0", "type_1", "type_3")}
    np.testing.assert_array_equal(after[of["type_3"]], before[of["type_3"]])
    change = {k: np.log(after[rows].mean(0) / before[rows].mean(0)) for k, rows in of.items()}
    assert 0.5 < np.corrcoef(change["type_0"], change["type_1"])[0, 1] < 0.99
    alone = sa.datasets.trial(500, 2000, n_types=2, shared=0.0, donor_response=0.0, seed=3)
    shift = alone.to_df("mean_treated") / alone.to_df("mean_control")
    shift = np.log(shift.groupby(alone.obs["cell_type"], observed=True).mean())
    assert abs(np.corrcoef(shift)[0, 1]) < 0.15


def test_donors_and_composition_of_a_trial():
    """Donors differ as much as asked, and the shares of types move as much as asked."""
    same = sa.datasets.trial(3000, 50, donor_effect=0.0, effect=0.0, composition=0.0, seed=1)
    apart = sa.datasets.trial(3000, 50, donor_effect=1.0, effect=0.0, composition=1.5, seed=1)

    def between_donors(adata):
        means = adata.to_df().groupby(adata.obs["donor"], observed=True).mean()
        return np.log(means + 0.1).std().mean()

    def moved(adata):
        shares = adata.obs.groupby("condition", observed=True)["cell_type"].value_counts(normalize=True)
        return (shares["treated"] - shares["control"]).abs().max()

    assert between_donors(apart) > 3 * between_donors(same)
    assert moved(apart) > 0.15 > 0.05 > moved(same)


SCREEN = {"n_types": 2, "n_drugs": 4, "n_unseen": 1, "n_pairs": 3, "doses": (1.0, 3.0, 10.0)}


def naive_mean(adata, n, parts, time):
    """Mean counts of one cell, written out gene by gene from what is stored."""
    curves, known = adata.uns["dose_curves"], adata.uns["screen"]
    k = int(adata.obs["cell_type"].iloc[n].removeprefix("type_"))
    times = known["times"]

    def strength(drug, dose):
        kind, m, h, onset = curves.loc[drug, ["kind", "halfway", "slope", "onset"]]
        of = {"hill": lambda d: d**h / (d**h + m**h), "log": lambda d: np.log(1 + d / m), "flat": lambda d: 1}
        s = of[kind](dose) / of[kind](10.0)
        return s * (1 - np.exp(-time / onset)) / (1 - np.exp(-times[-1] / onset)) if len(times) else s

    eta = []
    for g in range(adata.n_vars):
        value = np.log(adata.layers["mean_control"][n, g])
        if len(times):
            value += (time - times[0]) / (times[-1] - times[0]) * known["drift"][k, g]
        for drug, dose in parts.items():
            value += strength(drug, dose) * known["responses"][k, list(curves.index).index(drug), g]
        if len(parts) == 2:
            both = np.prod([strength(drug, dose) for drug, dose in parts.items()])
            value += both * adata.uns["interactions"].loc["+".join(sorted(parts))].iloc[g]
        eta.append(value)
    share = np.exp(eta) / np.exp(eta).sum()
    return adata.layers["mean_control"][n].sum() * share


@pytest.mark.parametrize("times", [(), (6.0, 24.0, 72.0)])
def test_a_screen_has_the_truth_of_every_condition(times):
    adata = sa.datasets.screen(2500, 30, **SCREEN, times=times, theta=3.0, seed=4)
    assert (adata.X != sa.datasets.screen(2500, 30, **SCREEN, times=times, theta=3.0, seed=4).X).nnz == 0
    mean, x = np.asarray(adata.layers["mean"], dtype=float), adata.X.toarray()
    standardised = (x - mean) / np.sqrt(mean + mean**2 / 3.0)  # NB variance
    assert standardised.var() == pytest.approx(1, abs=0.1)
    assert standardised.mean() == pytest.approx(0, abs=0.02)
    assert set(adata.obs) == {"cell_type", "drug", "dose", *(["time"] if times else [])}
    for n in (0, 1, 2, *np.flatnonzero(adata.obs["drug"].str.contains("+", regex=False))[:3]):
        drug, dose = adata.obs["drug"].iloc[n], adata.obs["dose"].iloc[n]
        time = adata.obs["time"].iloc[n] if times else 0.0
        split = () if drug == "control" else zip(drug.split("+"), map(float, dose.split("+")), strict=True)
        np.testing.assert_allclose(naive_mean(adata, n, dict(split), time), mean[n], rtol=1e-4)
    time = times[1] if times else 0.0
    never = [{"drug_4": 3.0}, {"drug_0": 30.0}, {"drug_1": 2.0}, {"drug_1": 10.0, "drug_2": 5.0}]
    for parts in never:  # a drug without cells, a dose beyond, an inner dose, doses of a combination
        found = sa.datasets.true_means(adata, parts, time=time if times else None)
        np.testing.assert_allclose(found[7], naive_mean(adata, 7, parts, time), rtol=1e-4)
    assert adata.obs["drug"].nunique() == 1 + 4 + 3


def test_true_changes_are_those_of_the_mean_rates_of_a_type():
    adata = sa.datasets.screen(400, 25, **SCREEN, seed=2)
    parts = {"drug_0": 3.0, "drug_2": 10.0}
    found = sa.datasets.true_changes(adata, parts)
    assert list(found.index) == ["type_0", "type_1"]
    before, after = (
        np.asarray(adata.layers["mean_control"], dtype=float),
        sa.datasets.true_means(adata, parts),
    )
    for name, change in found.iterrows():
        rows = np.flatnonzero(adata.obs["cell_type"] == name)
        rates = [np.mean([m[n] / m[n].sum() for n in rows], axis=0) for m in (before, after)]
        np.testing.assert_allclose(change, np.log(rates[1] / rates[0]), rtol=1e-6, atol=1e-9)
    nothing = sa.datasets.true_changes(adata, {})
    np.testing.assert_allclose(nothing, 0, atol=1e-9)


def test_pairs_of_a_screen_interact_on_few_genes():
    """A third of the pairs does: synergies go with the two drugs, antagonisms against them."""
    adata = sa.datasets.screen(300, 400, n_drugs=8, n_unseen=1, silent=1, seed=1)
    table = adata.uns["interactions"]
    assert table.shape == (9 * 8 / 2, 400)
    some = (table != 0).mean(axis=1)
    assert 0.15 < (some > 0).mean() < 0.4
    assert some[some > 0].between(0.05, 0.16).all()
    assert not some[table.index.str.contains("drug_7")].any()  # it is silent
    responses = adata.uns["screen"]["responses"].mean(0)
    agree = set()
    for name in table.index[some > 0]:
        a, b = (int(drug.removeprefix("drug_")) for drug in name.split("+"))
        both, own = responses[a] + responses[b], table.loc[name].to_numpy()
        agree |= set(np.sign(both * own)[both * own != 0]) if len(agree) < 2 else set()
        assert len(set(np.sign(both * own)[both * own != 0])) == 1
    assert agree == {-1.0, 1.0}
    assert not sa.datasets.true_changes(adata, {"drug_7": 10.0}).to_numpy().round(9).any()
    pairs = [d for d in adata.obs["drug"].unique() if "+" in d]
    assert len(pairs) == 6
    assert 0 < some[pairs].gt(0).sum() < 6


def test_described_drugs_of_a_screen_are_alike_as_far_as_asked():
    """Effects are a linear function of the descriptors, or have nothing to do with them."""
    for described, least, most in ((1.0, 0.999, 1.001), (0.0, -1.0, 0.3)):
        made = {"n_drugs": 60, "n_pairs": 0, "n_types": 1, "shared": 1.0, "doses": (1.0,)}
        adata = sa.datasets.screen(200, 100, **made, described=described, seed=5)
        d, r = adata.uns["descriptors"].to_numpy(), adata.uns["screen"]["responses"][0]
        missed = r - d @ np.linalg.lstsq(d, r, rcond=None)[0]
        assert least <= 1 - np.square(missed).sum() / np.square(r).sum() <= most
        assert adata.obs["dose"].dtype == float
        assert len(d) == 62


def test_a_screen_is_read_and_written(tmp_path):
    from scalloy.data.conditions import Conditions

    adata = sa.datasets.screen(600, 25, **SCREEN, times=(1.0, 2.0), seed=2)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = sa.data.read(tmp_path / "a.h5ad")
    asked = {"parts": {"drug_0": 2.0, "drug_4": 2.0}, "time": 1.5}
    found, back = (sa.datasets.true_changes(x, **asked) for x in (adata, again))
    np.testing.assert_allclose(found, back, rtol=1e-6)
    told = Conditions("drug", dose="dose", time="time", descriptors="descriptors")
    design = told.fitted(again)[0].design
    assert len(design.contents) == 2 * (1 + 4 * 3 + 3 * 2)
    assert "drug_4" in design.parts


def test_what_a_screen_does_not_have():
    adata = sa.datasets.screen(100, 25, **SCREEN)
    with pytest.raises(ValueError, match="`parts` has the drug 'aspirin', which the screen does not have"):
        sa.datasets.true_changes(adata, {"aspirin": 1.0})
    with pytest.raises(ValueError, match=r"`time=3.0` was given, and the screen has no times"):
        sa.datasets.true_means(adata, {"drug_0": 1.0}, time=3.0)
    with pytest.raises(ValueError, match="`adata` does not have all genes of the screen"):
        sa.datasets.true_changes(adata[:, 1:], {"drug_0": 1.0})


SONG = {"animal_sd": 0.0, "day_sd": 0.0, "noise": 0.0}


def images_of(adata, *kinds):
    """Spectrograms of types of syllables, and their rows of ``obs``."""
    of = adata.obs["syllable"].isin(kinds).to_numpy()
    return adata.X[of].reshape(-1, *adata.uns["shape"]).astype(float), adata.obs[of]


def test_songs_are_what_they_should_be():
    adata, again = (sa.datasets.songs(9, 3, 20, seed=1) for _ in range(2))
    np.testing.assert_array_equal(adata.X, again.X)
    assert adata.obs.equals(again.obs)
    assert adata.X.min() == 0 < adata.X.max() <= 1
    assert adata.shape[1] == adata.uns["shape"].prod() == len(adata.uns["frequency"]) * len(adata.uns["time"])
    one = adata.obs.groupby("animal", observed=True)["group"]
    assert one.nunique().eq(1).all()
    assert one.first().value_counts().to_dict() == {"hearing": 5, "deaf": 4}
    sizes = adata.obs.groupby(["animal", "day"], observed=True).size()
    assert len(sizes) == 9 * 3
    assert sizes.between(10, 30).all()
    other = sa.datasets.songs(9, 3, 20, seed=2)
    own = one.first() == other.obs.groupby("animal", observed=True)["group"].first()
    assert not own.all()  # who is deaf is chosen at random
    many = sa.datasets.songs(300, 4, 10, plasticity=0.0, seed=3).obs
    means = many.groupby(["animal", "day"], observed=True)["pitch"].mean().unstack()
    assert means.mean(axis=1).std() == pytest.approx(3.0, rel=0.15)
    assert np.sqrt(means.var(axis=1).mean() - 4.0 / 10) == pytest.approx(1.0, rel=0.1)  # 2 kHz of a syllable


def test_spectrograms_show_the_pitch_bandwidth_duration_and_type_that_are_stated():
    """Centre of mass, spread and extent of the loud pixels, found without the drawing's formula."""
    adata = sa.datasets.songs(20, 2, 40, noise=0.0, seed=1)
    frequency, time = adata.uns["frequency"], adata.uns["time"]
    x, obs = images_of(adata, "flat", "up", "down", "step")
    centre = (x.sum(2) @ frequency) / x.sum((1, 2))
    assert np.abs(centre - obs["pitch"]).max() < 1.5
    assert (centre - obs["pitch"]).mean() == pytest.approx(0, abs=0.1)
    x, obs = images_of(adata, "flat")
    middle = x[:, :, 15]
    at = middle @ frequency / middle.sum(1)
    spread = np.sqrt((middle * (frequency - at[:, None]) ** 2).sum(1) / middle.sum(1))
    np.testing.assert_allclose(spread, obs["bandwidth"], rtol=0.02)
    lasts = (x.sum(1) > 0.01).sum(1) * (time[1] - time[0])
    assert np.abs(lasts - obs["duration"]).max() <= time[1] - time[0]

    def heard(kind):
        """Mean frequency at the beginning, the middle and the end."""
        x, _ = images_of(adata, kind)
        columns = x.mean(0)[:, [10, 15, 21]]
        return frequency @ columns / columns.sum(0)

    begin, middle, end = heard("up")
    assert begin + 5 < middle < end - 5
    begin, middle, end = heard("down")
    assert begin - 5 > middle > end + 5
    begin, middle, end = heard("chevron")
    assert middle > max(begin, end) + 5
    assert begin == pytest.approx(end, abs=2)
    begin, _, end = heard("step")
    assert end - begin == pytest.approx(18, abs=1)
    x, obs = images_of(adata, "harmonic")
    low = frequency < np.array(obs["pitch"])[:, None]
    two = [(x.sum(2) * part) @ frequency / (x.sum(2) * part).sum(1) for part in (low, ~low)]
    assert np.median(two[1] / two[0]) == pytest.approx(2, abs=0.03)


def test_effects_move_the_song_by_what_is_stated():
    """With the same seed nothing else differs, and the spectrograms move as far as the truth."""
    sizes = {"n_animals": 20, "n_days": 3, "n_syllables": 30, **SONG, "seed": 2}
    same, lower, still, rigid = (
        sa.datasets.songs(**sizes, **given)
        for given in ({}, {"deaf_effect": 6.0}, {"plasticity": 0.0}, {"deaf_plasticity": 0.0})
    )
    deaf, day = (same.obs["group"] == "deaf").to_numpy(), same.obs["day"].to_numpy()
    moved = same.obs["pitch"] - lower.obs["pitch"]
    np.testing.assert_allclose(moved, 6.0 * deaf)
    np.testing.assert_array_equal(same.X[~deaf], lower.X[~deaf])
    np.testing.assert_allclose(same.obs["pitch"] - still.obs["pitch"], 5.0 * (day - 1) / 2)
    ratio = same.obs["bandwidth"] / still.obs["bandwidth"]
    np.testing.assert_allclose(ratio, 0.97 ** (5.0 * (day - 1) / 2), rtol=0.02)
    np.testing.assert_array_equal(rigid.X[deaf], still.X[deaf])
    np.testing.assert_array_equal(rigid.X[~deaf], same.X[~deaf])
    assert rigid.uns["truth"] == {"deaf_effect": 0.0, "plasticity": 5.0, "deaf_plasticity": 0.0}

    def centre(adata, rows):
        x = adata.X[rows & adata.obs["syllable"].isin(["flat", "up", "down", "step"]).to_numpy()]
        x = x.reshape(-1, *adata.uns["shape"])
        return ((x.sum(2) @ adata.uns["frequency"]) / x.sum((1, 2))).mean()

    assert centre(same, day == 3) - centre(same, day == 1) == pytest.approx(5.0, abs=0.5)
    assert centre(still, day == 3) - centre(still, day == 1) == pytest.approx(0.0, abs=0.5)
    assert centre(lower, ~deaf) - centre(lower, deaf) == pytest.approx(6.0, abs=0.5)


def test_without_an_effect_deaf_animals_sing_like_hearing_ones():
    """Means of animals, which are independent, have the same distribution in both groups."""
    from scipy.stats import ks_2samp

    def pvalues(**given):
        adata = sa.datasets.songs(400, 2, 6, **given)
        columns = adata.obs[["pitch", "bandwidth", "duration"]].copy()
        columns["loudness"] = adata.X.sum(1)
        for kind in ("flat", "harmonic"):
            columns[kind] = adata.obs["syllable"] == kind
        first = adata.obs.groupby("animal", observed=True)["group"].first()
        means = columns.groupby(adata.obs["animal"], observed=True).mean()
        return {c: ks_2samp(means[c][first == "deaf"], means[c][first == "hearing"]).pvalue for c in means}

    assert min(pvalues(seed=5).values()) > 0.01
    found = pvalues(deaf_effect=3.0, seed=5)
    assert found["pitch"] < 1e-6
    assert found["duration"] > 0.01


@pytest.mark.parametrize("few", [{"n_animals": 1}, {"n_days": 0}, {"n_syllables": 0}])
def test_song_of_nobody_is_refused(few):
    with pytest.raises(ValueError, match=r"are too few. Pass two animals or more, a day and a syllable"):
        sa.datasets.songs(**few)


def test_songs_are_written_and_read(tmp_path):
    adata = sa.datasets.songs(2, 1, 3)
    adata.write_h5ad(tmp_path / "songs.h5ad")
    back = sa.data.read(tmp_path / "songs.h5ad")
    np.testing.assert_array_equal(back.X, adata.X)
    assert back.uns["truth"] == adata.uns["truth"]
