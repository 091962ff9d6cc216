"""Benchmark of comparisons of donors: rivals against other means, and tables that say what they should."""

from __future__ import annotations

import builtins
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

import scalloy as sa
from scalloy.benchmark import donors, donors_kang, donors_speed
from scalloy.benchmark import neighbourhoods as hoods
from scalloy.cli import main


def shares(adata):
    return pd.crosstab(
        adata.obs["donor"].astype(str) + adata.obs["group"].astype(str), adata.obs["cell_type"]
    )


@pytest.mark.parametrize("paired", [False, True])
def test_t_test_of_log_odds_is_scipys(paired):
    adata = sa.datasets.cohort(5, 100, 1, paired=paired)
    table = shares(adata)
    share = (table + 0.5).div(table.sum(axis=1) + 1, axis=0)
    odds = np.log(share / (1 - share))
    sick = table.index.str.endswith("sick")
    test = stats.ttest_rel if paired else stats.ttest_ind
    found = donors.ABUNDANCE["t test of log odds"](adata)
    np.testing.assert_allclose(found, test(odds[sick], odds[~sick]).pvalue)
    moderated = donors.ABUNDANCE["propeller's test"](adata)
    assert 0.5 < np.corrcoef(np.log(found), np.log(moderated))[0, 1] < 1


def test_t_test_of_log_rates_is_scipys():
    adata = sa.datasets.cohort(4, 60, 30, n_types=1)
    sums = (
        pd.DataFrame(adata.X.toarray(), columns=adata.var_names).groupby(adata.obs["donor"].to_numpy()).sum()
    )
    rates = np.log(sums + 0.5).sub(np.log(sums.sum(axis=1) + 1), axis=0)
    of = adata.obs.groupby("donor", observed=True)["group"].first()[rates.index] == "sick"
    found = donors.EXPRESSION["t test of log rates"](adata)
    expected = stats.ttest_ind(rates[of.to_numpy()], rates[~of.to_numpy()]).pvalue
    np.testing.assert_allclose(found, pd.Series(expected, adata.var_names)[found.index], rtol=1e-4)


def test_cells_as_replicates_are_fishers_test():
    adata = sa.datasets.cohort(3, 50, 1)
    table = pd.crosstab(adata.obs["group"], adata.obs["cell_type"])
    expected = stats.fisher_exact([table["type_2"], table.sum(axis=1) - table["type_2"]]).pvalue
    assert donors.ABUNDANCE["cells as replicates"](adata)["type_2"] == pytest.approx(expected)


def test_wilcoxon_rejects_too_often_and_ours_does_not():
    found = donors.expression(n_simulations=3, tests=["ours", "cells as replicates (Wilcoxon)"])
    null = found[found["study"] == "6 + 6 donors"].set_index("test")["rejected at 5 %"]
    assert null["ours"] < 0.1 < 0.2 < null["cells as replicates (Wilcoxon)"]
    assert found["found at 10 %"].isna().tolist() == [True] * 10 + [False] * 6
    strong = found[found["study"] == "30 genes 4 times"].set_index("test")
    assert strong.loc["ours", "found at 10 %"] > 0.9
    assert strong.loc["ours", "false discoveries"] < 0.3


def test_pydeseq2_is_its_own_result():
    pytest.importorskip("pydeseq2")
    adata = sa.datasets.cohort(4, 60, 60, n_types=1, changed=6, fold=4.0)
    p = donors.EXPRESSION["PyDESeq2"](adata)
    assert (p[:6] < 0.05).mean() > 0.6
    assert (p[6:] < 0.05).mean() < 0.2


def test_rates_of_a_model_are_tested():
    adata = sa.datasets.cohort(3, 20, 12, n_types=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(donors, "QUIET", {"enable_progress_bar": False, "max_epochs": 1, "accelerator": "cpu"})
        plain, added = (test(adata) for test in donors.DENOISED.values())
    assert (added >= plain - 1e-12).all()  # more variance, unless moderation drew it down
    assert list(plain.index) == list(adata.var_names)


def test_table_of_abundance():
    found = donors.abundance(n_simulations=4, tests=["ours", "ours, permutations"])
    assert found["study"].nunique() == 8
    assert (found["simulations"] == 4).all()
    strong = found[found["study"] == "one type 4 times"].set_index("test")
    assert strong.loc["ours", "found at 10 %"] == 1
    again = donors.abundance(n_simulations=4, tests=["ours"])
    pd.testing.assert_frame_equal(again, found[found["test"] == "ours"].reset_index(drop=True))
    with pytest.raises(ValueError, match="`tests='theirs'` is not known"):
        donors.abundance(n_simulations=1, tests=["theirs"])


def test_truth_of_a_cohort():
    adata = sa.datasets.cohort(
        40, 400, 20, n_types=3, folds=[1, 1, 4], changed=2, fold=3.0, composition=0.1, donor_effect=0.05
    )
    table = shares(adata)
    sick = table.index.str.endswith("sick")
    ratio = (table[sick].mean() / table[~sick].mean()).to_numpy()
    np.testing.assert_allclose(ratio / ratio[0], adata.uns["folds"], rtol=0.15)
    log2 = adata.var["log2_fold"].to_numpy()
    np.testing.assert_allclose(log2[:3], [np.log2(3), -np.log2(3), 0])
    one = adata[adata.obs["cell_type"] == "type_0"]
    rate = one.X.toarray() / one.X.toarray().sum(1, keepdims=True)
    of = (one.obs["group"] == "sick").to_numpy()
    change = np.log2(rate[of].mean(0) / rate[~of].mean(0))
    np.testing.assert_allclose(change[:2] - change[2:].mean(), log2[:2], atol=0.25)
    many = sa.datasets.cohort(3, 50, 1, largest=10)
    assert many.obs["donor"].value_counts()["donor_0"] > 200
    assert (many.X.toarray() == sa.datasets.cohort(3, 50, 1, largest=10).X.toarray()).all()
    paired = sa.datasets.cohort(3, 50, 1, paired=True)
    assert (paired.obs.groupby("donor", observed=True)["group"].nunique() == 2).all()
    uneven = sa.datasets.cohort((2, 5), 50, 1)
    assert uneven.obs.groupby("group", observed=True)["donor"].nunique().tolist() == [2, 5]
    with pytest.raises(ValueError, match="`folds` has 2 values, but there are `n_types=3`"):
        sa.datasets.cohort(n_types=3, folds=[1, 2])


def few(monkeypatch):
    """Kang's cells that come with the package, in place of the whole set."""
    kang = sa.datasets.kang()
    kang = kang[kang.obs["cell_type"].isin(["B cells", "NK cells"])].copy()
    monkeypatch.setattr(donors_kang, "load", lambda *_: kang.copy())


def test_real_donors(monkeypatch):
    few(monkeypatch)
    monkeypatch.setitem(donors.EXPRESSION, "PyDESeq2", donors.EXPRESSION["t test of log rates"])
    found = donors_kang.kang(n_splits=3).set_index(["what", "test"])
    assert (found["divisions"] == 3).all()
    assert found.loc[("expression", "ours"), "rejected"] < 0.12
    naive = found.loc[("expression", "cells as replicates (Wilcoxon)"), "rejected"]
    assert naive > found.loc[("expression", "ours"), "rejected"]
    table = donors_kang.interferon().set_index("cell_type")
    assert table.index.tolist() == ["B cells", "NK cells"]
    assert (table["known among the first 50"] > 20).all()
    assert (table["donors"] == 8).all()
    assert (table["correlation of ranks"] > 0.2).all()


def test_speed(monkeypatch):
    monkeypatch.setattr(donors_speed, "milo", lambda _: time.sleep(0.5))
    monkeypatch.setitem(donors.EXPRESSION, "PyDESeq2", donors.EXPRESSION["t test of log rates"])
    found = donors_speed.speed(n_cells=600, n_donors=6, n_genes=30)
    assert found["task"].tolist()[:2] == ["abundance of types", "abundance of neighbourhoods"]
    assert found["rival / ours"][1] == pytest.approx(0.5 / found["seconds"][1], rel=0.2)
    assert (found["cells"] == 600 + 6).all()


def test_neighbourhoods_that_grow_are_told_from_others():
    found = hoods.neighbourhoods(n_simulations=2, tests=["ours"]).set_index("fold")
    assert found.loc[4, "found at 10 %"] > 0.6
    assert (found["false discoveries"] < 0.3).all()
    assert (found["time / ours"] == 1).all()
    grows = hoods.study(4.0, 0)
    z = grows.obsm["X_z"]
    last = (grows.obs["cell_type"] == "type_5").to_numpy()
    away = np.linalg.norm(z[last].mean(0) - z[(grows.obs["cell_type"] == "type_0").to_numpy()].mean(0))
    assert away == pytest.approx(hoods.NEAR, abs=0.3)


@pytest.mark.filterwarnings("ignore")
def test_milo_has_neighbourhoods_with_p_values():
    pytest.importorskip("pertpy", exc_type=ImportError)
    table, members = hoods.milo(hoods.study(4.0, 0, n_donors=4, n_cells=80))
    assert members.shape[1] == len(table)
    assert table["pvalue"].between(0, 1).all()


@pytest.mark.parametrize(
    ("name", "run", "text"),
    [
        ("pydeseq2.dds", lambda a: donors.EXPRESSION["PyDESeq2"](a), "also runs PyDESeq2, which is not"),
        ("pertpy", lambda a: hoods.milo(a), "also measures pertpy's Milo, which is not installed"),
    ],
)
def test_a_missing_rival_names_itself(monkeypatch, name, run, text):
    real = builtins.__import__

    def missing(module, *args, **kwargs):
        if module == name:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=text):
        run(sa.datasets.cohort(2, 30, 10))


def test_command(tmp_path):
    asked = ["benchmark", "donors", "--simulations", "1", "--test", "ours", "--out", str(tmp_path / "t.csv")]
    done = CliRunner().invoke(main.app, asked)
    assert done.exit_code == 0, done.output
    assert pd.read_csv(tmp_path / "t.csv")["test"].unique().tolist() == ["ours"]
    done = CliRunner().invoke(main.app, ["benchmark", "donors", "--what", "power"])
    assert done.exit_code == 1
    assert "`what='power'` is not known" in done.output
