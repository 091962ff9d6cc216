"""Groups of donors in the report: numbers are those of `sa.compare`, and what cannot be said is said."""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import pytest

import scalloy as sa
from scalloy.reports import donors
from scalloy.reports.write import _subject

mpl.use("Agg")
TITLE = '<h2 id="groups-of-donors">'
SETTINGS = {"groupby": "condition", "by": "cell_type", "donor_key": "donor", "reference": "control"}


@pytest.fixture(scope="module")
def trial():
    return sa.datasets.trial(500, 30, n_types=4, n_donors=5, composition=1.0)


def made(adata, name="CGMDVAE", **keys):
    cls = getattr(sa, name)
    cls.setup_anndata(adata, **keys)
    model = cls(adata, n_hidden=8, n_latent=2)
    model.train(1, enable_progress_bar=False, accelerator="cpu")
    return model


def section(model, adata=None, groupby=None, donor_key=None):
    subject = _subject(model, adata, None, 0)
    found = donors.groups_of_donors(subject, donors.columns(subject, groupby, donor_key))
    return found, [part.text for part in found.parts if isinstance(part, donors.Text)]


def tables(found):
    return [part for part in found.parts if isinstance(part, donors.Table)]


REGISTERED = {"condition_key": "condition", "labels_key": "cell_type"}


def test_numbers_are_those_of_the_comparisons(trial):
    model = made(trial.copy(), **REGISTERED, donor_key="donor")
    found, said = section(model)
    shares, genes = tables(found)
    expected = sa.compare.abundance(trial, **SETTINGS).set_index("cell_type")
    np.testing.assert_allclose(shares.frame["log2 fold"], expected["effect"])
    np.testing.assert_allclose(shares.frame["adjusted p"], expected["padj"])
    np.testing.assert_allclose(shares.frame["share, treated"], expected["share_b"])
    assert list(shares.frame.index) == list(expected.index)
    assert shares.frame.index.name == "cell_type"
    table = sa.compare.expression(trial, **SETTINGS)
    for name, row in genes.frame.iterrows():
        here = table[(table["cell_type"] == name) & (table["padj"] <= donors.GENES)]
        assert row["higher"] == (here["log2_fold_change"] > 0).sum()
        assert row["lower"] == (here["log2_fold_change"] < 0).sum()
        first = table[table["cell_type"] == name].iloc[0]
        both = [str(first["donors_b"]), str(first["donors_a"])]
        assert row["donors"] == (both[0] if both[0] == both[1] else " and ".join(both))
        clearest = [f"{row.gene} ({row.shrunken:+.1f})" for row in here.sort_values("pvalue").itertuples()]
        assert row["clearest (log2 fold change)"].startswith(
            clearest[0] if clearest else first["note"] or "none"
        )
    total = genes.frame["higher"].sum() + genes.frame["lower"].sum()
    assert total > 3
    assert said[2].startswith(f"{total} genes differ within populations (5% false discoveries)")
    significant = expected[expected["padj"] <= donors.SHARES].sort_values("pvalue")
    assert said[1].startswith(
        f"treated against control, 5 donors, each compared with itself. {len(significant)} of 4"
    )
    for name, effect in significant["effect"].items():
        assert f"{name} ({effect:+.2f})" in said[1]
    assert said[0].startswith(
        "Populations (cell_type) are compared between groups of donors (donor) that differ in condition: "
        "treated against control. Donors are the registered donors. Whatever else goes with"
    )


def test_nothing_significant_is_not_nothing(trial):
    adata = trial.copy()
    adata.obs["half"] = np.where(adata.obs["donor"].isin(["donor_0", "donor_2"]), "a", "b")
    model = made(adata, **REGISTERED, batch_key="donor")
    found, said = section(model, groupby="half")
    expected = sa.compare.abundance(adata, **{**SETTINGS, "groupby": "half", "reference": "b"})
    assert not (expected["padj"] <= donors.SHARES).any()
    assert said[1] == (
        "a against b, 2 donors against 3 others. No population differs in number by more than chance "
        "explains; small changes may be missed."
    )
    assert "If several of them come from one donor, name the donors by `donor_key`." in said[0]
    assert tables(found)[1].frame["donors"].tolist() == ["2 and 3"] * 4


def test_without_replicates_nothing_is_claimed(trial):
    adata = trial.copy()
    adata.obs["batch"] = adata.obs["condition"].astype(str)
    found, said = section(made(adata, **REGISTERED), donor_key="batch")
    assert not tables(found)
    assert len(found.parts) == 2
    assert re.match(
        r"treated against control: nothing can be tested \(.+\)\. Cells of one donor are no repl", said[1]
    )
    assert found.parts[1].note


def test_clusters_stand_in_for_labels_and_numbers_for_genes_are_left_out(trial):
    adata = trial.copy()
    adata.X = adata.X.log1p()
    sa.VAE.setup_anndata(adata, batch_key="donor", allow_non_counts=True)
    model = sa.VAE(adata, n_hidden=8, n_latent=2, gene_likelihood="normal")
    model.train(1, enable_progress_bar=False, accelerator="cpu")
    found, said = section(model, groupby="condition")
    assert "Clusters were found in these cells" in said[0]
    assert "nothing is said about genes" in said[1]
    (shares,) = tables(found)
    clusters = _subject(model, None, None, 0).clusters.astype(str)
    assert list(shares.frame.index) == sorted(clusters.unique())
    of = adata.obs["condition"] == "treated"
    mean = (clusters == "0")[of].groupby(adata.obs["donor"][of].astype(str)).mean().mean()
    np.testing.assert_allclose(shares.frame.loc["0", "share, treated"], mean)


def test_unlabelled_cells_and_missing_donors(trial):
    adata = trial.copy()
    types = adata.obs["cell_type"].astype(str)
    adata.obs["cell_type"] = types.mask(types == "type_1", "?")
    model = made(adata, **REGISTERED, unlabeled_category="?", batch_key="donor")
    adata.obs["person"] = adata.obs["donor"].astype(object).mask(adata.obs["donor"] == "donor_4")
    found, said = section(model, donor_key="person")
    assert sorted(tables(found)[0].frame.index) == ["?", "type_0", "type_2", "type_3"]
    assert "4 donors, each compared with itself" in said[1]
    assert "registered" not in said[0]
    known = adata[adata.obs["person"].notna()].copy()
    same_numbers(found, known, {**SETTINGS, "donor_key": "person"})


def same_numbers(found, cells, settings):
    """Shares and genes of the section are those of the comparisons of these cells."""
    shares, genes = tables(found)
    np.testing.assert_allclose(shares.frame["log2 fold"], sa.compare.abundance(cells, **settings)["effect"])
    table = sa.compare.expression(cells, **settings)
    for name, row in genes.frame.iterrows():
        here = table[table["cell_type"] == name]
        assert row["genes tested"] == here["pvalue"].notna().sum()
        clearest = here[here["padj"] <= donors.GENES].sort_values("pvalue")["gene"].tolist()
        assert row["higher"] + row["lower"] == len(clearest)
        assert all(gene in row["clearest (log2 fold change)"] for gene in clearest[: donors.NAMED])


def test_a_choice_of_cells_is_said(trial, monkeypatch):
    monkeypatch.setattr("scalloy.reports.subject.MOST", 400)
    model = made(trial.copy(), "VAE", labels_key="cell_type", batch_key="donor")
    found, said = section(model, groupby="condition")
    assert "400 cells were chosen at random; `sa.compare` uses all." in said[0]
    rows = np.sort(np.random.default_rng(0).choice(500, 400, replace=False))
    reference = said[1].split(", ")[0].split(" against ")[1]
    same_numbers(found, trial[rows].copy(), {**SETTINGS, "reference": reference})


def test_groups_beyond_the_largest_are_left_out(trial):
    adata = trial.copy()
    dose = np.random.default_rng(0).choice(
        ["a", "b", "c", "d", "e", "f"], adata.n_obs, p=[0.3, 0.25, 0.2, 0.15, 0.05, 0.05]
    )
    adata.obs["dose"] = dose
    model = made(adata, "VAE", labels_key="cell_type", batch_key="donor")
    found, said = section(model, groupby="dose")
    assert (
        "that differ in dose: b, c, d against a. Of 6 groups, those with the most cells are shown." in said[0]
    )
    assert [part.caption for part in tables(found)[::2]] == [
        f"Number of cells of each cell_type, {name} over a" for name in "bcd"
    ]
    expected = sa.compare.abundance(
        adata[np.isin(dose, list("abcd"))].copy(), **{**SETTINGS, "groupby": "dose", "reference": "a"}
    )
    np.testing.assert_allclose(
        np.concatenate([part.frame["log2 fold"] for part in tables(found)[::2]]), expected["effect"]
    )
    few, said = section(model, adata[dose == "a"].copy(), groupby="dose")
    assert said == ["All cells have the same dose, so there are no groups of donors to compare."]
    assert len(few.parts) == 1


def test_the_page_has_the_section_if_there_are_groups_and_donors(trial, tmp_path):
    path, adata = tmp_path / "page.html", trial.copy()
    alone = made(adata, "VAE", batch_key="donor", labels_key="cell_type")
    alone.report(path)
    assert TITLE not in path.read_text()
    alone.report(path, groupby="condition", overwrite=True)
    text = path.read_text()
    assert TITLE in text
    assert text.index(TITLE) > text.index('<h2 id="usage-of-components">')
    assert "Forest plot of the log2 fold change of each cell_type, treated over control" in text
    made(trial.copy(), **REGISTERED).report(path, overwrite=True)  # no donors
    assert TITLE not in path.read_text()


def test_columns_that_are_not_there(trial, tmp_path):
    path = tmp_path / "page.html"
    model = made(trial.copy(), "VAE")
    with pytest.raises(KeyError, match=r"`groupby='conditon'` is not a column of .*Did you mean 'condition'"):
        model.report(path, groupby="conditon", donor_key="donor")
    with pytest.raises(KeyError, match=r"`donor_key='doner'` is not a column"):
        model.report(path, groupby="condition", donor_key="doner")
    for given, match in (
        ({"groupby": "condition"}, "these are 'condition' and None. Pass both"),
        ({"donor_key": "donor"}, "these are None and 'donor'. Pass both"),
        ({"donor_key": "donor", "groupby": "donor"}, "these are 'donor' and 'donor'. Pass both"),
    ):
        with pytest.raises(ValueError, match=match):
            model.report(path, **given)
    assert not path.exists()
