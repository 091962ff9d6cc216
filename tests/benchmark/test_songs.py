"""The study of hearing and deaf animals: paths of animals, and what is found where it is or is not."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from scipy.stats import binom, binomtest
from typer.testing import CliRunner

from scalloy import datasets
from scalloy.benchmark.songs import STUDIES, answers, difference, embed, movements, songs, summary
from scalloy.cli import main

QUESTIONS = [
    "hearing and deaf",
    "first and last day",
    "first and last day, hearing",
    "first and last day, deaf",
    "consecutive days",
    "plasticity of the groups",
]


def pitched(seed, **given):
    """Song whose latent space is the truth, so that nothing needs to be trained."""
    adata = datasets.songs(**{"n_animals": 12, "n_days": 3, "n_syllables": 12, **given}, seed=seed)
    adata.obsm["X_vae"] = adata.obs[["pitch"]].to_numpy()
    return adata


def test_paths_equal_double_loops():
    rng = np.random.default_rng(0)
    n = 200
    obs = pd.DataFrame(
        {
            "animal": rng.choice(list("abcde"), n),
            "day": rng.integers(1, 4, n),
        },
        index=[f"s{i}" for i in range(n)],
    )
    obs["group"] = obs["animal"].isin(["a", "c"]).map({True: "deaf", False: "hearing"})
    z = rng.normal(size=(n, 4)) + obs["day"].to_numpy()[:, None] * [1.0, 0.5, 0, 0]
    adata = AnnData(np.zeros((n, 1), np.float32), obs=obs, obsm={"X_z": z})
    found = movements(adata, "X_z").set_index(["animal", "day"])
    assert len(found) == 5 * 3

    def mean(animal, day):
        return np.mean(
            [z[i] for i in range(n) if (obs["animal"].iloc[i], obs["day"].iloc[i]) == (animal, day)], 0
        )

    for animal in "abcde":
        path = sum(mean(other, 3) - mean(other, 1) for other in "abcde" if other != animal)
        for day in (1, 2, 3):
            expected = (mean(animal, day) - mean(animal, 1)) @ path / np.sqrt(path @ path)
            assert found.loc[(animal, day), "moved"] == pytest.approx(expected)
        assert found.loc[(animal, 3), "group"] == ("deaf" if animal in "ac" else "hearing")
    adata.obs["group"] = "hearing"
    np.testing.assert_array_equal(movements(adata, "X_z")["moved"], found["moved"])  # groups play no part


def test_noise_is_no_movement():
    """Lengths of paths are positive without any movement; what is measured is zero on average."""
    moved, lengths = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(80, 6))
        obs = pd.DataFrame({"animal": np.arange(80) // 10 % 8, "day": np.arange(80) % 2, "group": "hearing"})
        obs.index = obs.index.astype(str)
        made = AnnData(np.zeros((80, 1), np.float32), obs=obs, obsm={"z": z})
        moved.append(movements(made, "z").query("day == 1")["moved"].mean())
        lengths.append(np.linalg.norm(z[obs["day"] == 1].mean(0) - z[obs["day"] == 0].mean(0)))
    assert abs(np.mean(moved)) < 3 * np.std(moved) / np.sqrt(len(moved))
    assert np.mean(lengths) > 0.3


def test_animals_that_move_as_one_have_moved_so_far():
    adata = pitched(0, animal_sd=3.0, day_sd=0.0, n_syllables=400)
    last = movements(adata, "X_vae").query("day == 3")["moved"]
    np.testing.assert_allclose(last, 5.0, atol=0.6)


def test_difference_equals_enumeration():
    rng = np.random.default_rng(1)
    moved = rng.normal(size=9)
    group = np.array(["hearing"] * 5 + ["deaf"] * 4)
    frame = pd.DataFrame({"group": group, "day": 4, "moved": moved})
    before = frame.assign(day=1, moved=0.0)  # only the last day counts
    found = difference(pd.concat([before, frame]))
    all_ways = [set(c) for c in itertools.combinations(range(9), 5)]

    def apart(hearing):
        return moved[list(hearing)].mean() - moved[[i for i in range(9) if i not in hearing]].mean()

    stat = np.array([apart(c) for c in all_ways])
    own = apart(range(5))
    expected = min(1.0, 2 * min((stat >= own - 1e-12).mean(), (stat <= own + 1e-12).mean()))
    assert found["pvalue"] == pytest.approx(expected)
    sd = np.sqrt((4 * moved[:5].var(ddof=1) + 3 * moved[5:].var(ddof=1)) / 7)
    assert found["effect"] == pytest.approx(own / sd)


def test_what_is_planted_is_found_and_nothing_else():
    """In the true pitch: tests reject at 5 % where nothing is planted, the naive one far more often."""
    n, frames = 40, []
    for name in STUDIES:
        for seed in range(n if name in {"nothing", "plastic"} else 8):
            found = answers(pitched(seed, **STUDIES[name]), n_permutations=200, seed=seed)
            frames.append(found.assign(study=name, seed=seed))
    table = pd.concat(frames)
    assert table["question"].tolist() == QUESTIONS * (2 * n + 16)
    table["found"], table["fooled"] = table["pvalue"] <= 0.05, table["naive"] <= 0.05
    rate = table.groupby(["study", "question"])[["found", "fooled"]].mean()
    limit = binom.ppf(0.999, n, 0.05) / n
    planted = table.groupby(["study", "question"])["planted"].first()
    for study in ("nothing", "plastic"):
        for question in QUESTIONS:
            if not planted[study, question]:
                assert rate.loc[(study, question), "found"] <= limit, (study, question)
    assert rate.loc[("nothing", "hearing and deaf"), "fooled"] > 0.6
    assert planted[planted].index.tolist() == [("deaf lower", q) for q in sorted(QUESTIONS[:5])] + [
        ("deaf rigid", q) for q in sorted(set(QUESTIONS) - {QUESTIONS[3]})
    ] + [("plastic", q) for q in sorted(QUESTIONS[1:5])]
    assert rate.loc[("deaf lower", "hearing and deaf"), "found"] >= 0.7
    assert rate.loc[("plastic", "first and last day"), "found"] >= 0.9
    assert rate.loc[("deaf rigid", "plasticity of the groups"), "found"] >= 0.9


def test_each_answer_is_the_comparison_that_it_names():
    from scalloy import compare

    adata = pitched(2, n_days=4, deaf_effect=2.0)
    found = answers(adata, n_permutations=60, seed=7).set_index("question")
    obs, given = adata.obs, {"at_least": 5, "n_permutations": 60, "rng": 7}
    ends = ((obs["day"] == 1) | (obs["day"] == 4)).to_numpy()
    for question, cells, by, design in (
        ("hearing and deaf", ends | True, "group", "across donors"),
        ("first and last day", ends, "day", "within donors"),
        ("first and last day, hearing", ends & (obs["group"] == "hearing"), "day", "within donors"),
        ("first and last day, deaf", ends & (obs["group"] == "deaf"), "day", "within donors"),
    ):
        own = adata[np.asarray(cells)].copy()
        table = compare.groups(own, "X_vae", groupby=by, donor_key="animal", **given)
        naive = compare.groups(own, "X_vae", groupby=by, **given)
        assert (table["design"][0], naive["design"][0]) == (design, "cells")
        expected = (table["effect"][0], table["pvalue"][0], naive["pvalue"][0])
        assert tuple(found.loc[question, ["effect", "pvalue", "naive"]]) == pytest.approx(expected)
    expected = difference(movements(adata, "X_vae"))
    assert found.loc["plasticity of the groups", ["effect", "pvalue"]].to_dict() == expected


def test_consecutive_days_are_corrected_for_their_number():
    """Simes' p-value of three pairs of days, each tested by itself."""
    from scalloy import compare

    adata = pitched(3, n_days=4)
    found = answers(adata, n_permutations=100).set_index("question").loc["consecutive days"]
    each, effects = [], []
    for day in (1, 2, 3):
        two = adata[adata.obs["day"].isin([day, day + 1]).to_numpy()]
        given = {"groupby": "day", "donor_key": "animal", "at_least": 5, "n_permutations": 100}
        table = compare.groups(two, "X_vae", **given)
        assert table["design"][0] == "within donors"
        each.append(table["pvalue"][0])
        effects.append(table["effect"][0])
    simes = min(3 * p / rank for rank, p in enumerate(sorted(each), start=1))
    assert found["pvalue"] == pytest.approx(min(1.0, simes))
    assert found["effect"] == pytest.approx(np.mean(effects))


def test_the_model_is_told_neither_animals_nor_groups_nor_days():
    adata = datasets.songs(4, 2, 20)
    blind = adata.copy()
    rng = np.random.default_rng(0)
    for column in ("animal", "group", "day"):
        blind.obs[column] = rng.permutation(blind.obs[column].to_numpy())
    before = scvi.settings.seed
    for cells in (adata, blind):
        model = embed(cells, n_latent=5, n_hidden=16, max_epochs=1, seed=3)
    np.testing.assert_array_equal(adata.obsm["X_vae"], blind.obsm["X_vae"])
    assert adata.obsm["X_vae"].shape == (adata.n_obs, 5)
    assert scvi.settings.seed == before
    assert model.init_params_["non_kwargs"]["gene_likelihood"] == "bernoulli_given"
    embed(blind, n_latent=5, n_hidden=16, max_epochs=1, seed=4)
    assert not np.allclose(adata.obsm["X_vae"], blind.obsm["X_vae"])


def test_summary_counts():
    rows = [("s", "q", True, 0.5, p, naive) for p, naive in ((0.01, 0.01), (0.05, 0.2), (0.2, 0.01))]
    frame = pd.DataFrame(rows, columns=["study", "question", "planted", "effect", "pvalue", "naive"])
    (row,) = summary(frame).to_dict("records")
    assert row["rejected"] == pytest.approx(2 / 3)
    assert row["naive"] == pytest.approx(2 / 3)
    assert (row["low"], row["high"]) == tuple(binomtest(2, 3).proportion_ci())
    assert row["simulations"] == 3
    assert np.isnan(summary(frame.assign(naive=np.nan))["naive"][0])


def test_command_prints_p_values_and_shares(tmp_path):
    out = tmp_path / "songs.csv"
    sizes = ["--animals", "6", "--days", "2", "--syllables", "12", "--epochs", "1"]
    args = ["benchmark", "songs", "--study", "plastic", "--simulations", "2", *sizes, "--out", str(out)]
    done = CliRunner().invoke(main.app, args)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    assert table["question"].tolist() == QUESTIONS
    assert table["simulations"].eq(2).all()
    assert table["rejected"].between(table["low"], table["high"]).all()
    frame = songs(["plastic"], n_simulations=2, n_animals=6, n_days=2, n_syllables=12, max_epochs=1)
    pd.testing.assert_frame_equal(summary(frame), table)  # the same simulations again
    assert frame.loc[frame["seed"] == 0, "pvalue"].round(3).astype(str).iloc[0] in done.stdout


def test_studies_are_known_and_simulated():
    with pytest.raises(ValueError, match=r"`studies='deaf'` is not known. Pass one of: nothing, plastic"):
        songs(["deaf"], n_simulations=1)
    with pytest.raises(ValueError, match=r"`n_simulations=0` must be above zero"):
        songs(n_simulations=0)


@pytest.mark.slow
def test_command_draws(tmp_path):
    mpl.use("Agg")
    sizes = ["--animals", "4", "--days", "2", "--syllables", "12", "--epochs", "1"]
    args = ["benchmark", "songs", "--study", "nothing", "--simulations", "1", *sizes]
    done = CliRunner().invoke(main.app, [*args, "--pictures", str(tmp_path / "pictures")])
    assert done.exit_code == 0, done.output
    made = sorted((tmp_path / "pictures").iterdir())
    assert [p.name for p in made] == ["songs_latent.png", "songs_null.png", "songs_syllables.png"]
    assert all(p.stat().st_size > 10_000 for p in made)
    assert done.stdout.count("saved ") == 3
