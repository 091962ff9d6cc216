"""The page about a model: what it says is what was computed, nothing comes from outside, all can read it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import scalloy as sa
from scalloy.reports import checks, predictions
from scalloy.reports.page import Section, Table, Text, page
from scalloy.reports.write import _subject

mpl.use("Agg")
HOSTILE = "<script>alert('x')</script>&\"$"
SMALL = {"n_hidden": 8, "n_latent": 3}
MODELS = ("AE", "BetaVAE", "BetaVSC", "CGMDVAE", "GMVAE", "POISEVAE", "TRVAE", "VAE")
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Elements as they are nested; it fails where they are not."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.said = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def made(name, adata, quick, **more):
    cls = getattr(sa, name)
    keys = {"batch_key": "batch", "labels_key": "cluster"}
    if hasattr(cls, "transfer"):
        keys["condition_key"] = "condition"
    cls.setup_anndata(adata, **keys)
    model = cls(adata, **SMALL, **more)
    model.train(**quick)
    return model


def cell_of(reader_text, row, column):
    """Entry of a table in the page."""
    for table in re.findall(r"<table>.*?</table>", reader_text, flags=re.S):
        head = re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", table)
        found = re.search(rf"<tr><th scope=\"row\">{re.escape(row)}</th>(.*?)</tr>", table)
        if found and column in head:
            return re.findall(r"<td[^>]*>(.*?)</td>", found[1])[head.index(column) - 1]
    return None


@pytest.mark.parametrize("name", MODELS)
def test_page_of_every_model(name, cells, quick, tmp_path):
    cells.obs["cluster"] = cells.obs["cluster"].cat.rename_categories({"cluster_0": HOSTILE})
    cells.var_names = [HOSTILE, *cells.var_names[1:]]
    model = made(name, cells, quick)
    path = tmp_path / "page.html"
    found = model.report(path, title=HOSTILE)
    assert any(f.startswith("End of training: only 2 epochs") for f in found)
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    # nothing from outside, and no text of the user is code
    assert not reader.all("script")
    assert not reader.all("link")
    assert "alert(&#x27;x&#x27;)" in text
    for attrs in (attrs for _, attrs in reader.found):
        assert not [k for k in attrs if k.startswith("on")]
        assert not [v for k, v in attrs.items() if k in {"src", "href"} and not v.startswith(("#", "data:"))]
    assert "url(" not in text
    # all can read it
    assert len(reader.all("h1")) == 1
    assert all(len(a["alt"]) > 30 for a in reader.all("img"))
    assert len(reader.all("table")) == len(reader.all("caption"))
    anchors = [a["id"] for _, a in reader.found if "id" in a]
    assert len(set(anchors)) == len(anchors)
    assert {a["href"][1:] for a in reader.all("a")} <= set(anchors)
    assert ("Transfer, pairs seen in training" in text) == (name in {"CGMDVAE", "TRVAE"})
    assert ("the clusters are Leiden" in text) == (not hasattr(model, "get_clusters"))
    assert ("does not model counts, so" in text) == (not model.module.likelihood.draws_counts)


def test_numbers_of_the_page_are_those_of_the_model(cells, quick, tmp_path):
    model = made("CGMDVAE", cells, quick)
    path = tmp_path / "page.html"
    model.report(path)
    text = path.read_text()
    ari = adjusted_rand_score(cells.obs["cluster"], model.get_clusters())
    assert cell_of(text, "all cells", "ARI") == f"{ari:.4g}"
    best = model.history["validation_loss"].iloc[:, 0].astype(float).to_numpy().argmin()
    recon = float(model.history["reconstruction_loss_validation"].iloc[best, 0])
    assert cell_of(text, "reconstruction", "validation") == f"{recon:.4g}"
    assert f"{model._data['counts']}" in text
    model.report(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError, match=r"exists. Pass `overwrite=True`, or another path"):
        model.report(path)


def test_pairs_seen_beside_simple_ones(cells, quick):
    """Controls, truth and the mean shift of the others are what a naive loop over the counts gives."""
    model = made("CGMDVAE", cells, quick)
    seen = predictions.seen_pairs(_subject(model, None, None, 0))
    total = cells.X.sum(axis=1).A1[:, None]
    x = np.log1p(max(500, np.median(total)) * cells.X.toarray() / total)
    of, under = cells.obs["cluster"].astype(str), cells.obs["condition"].astype(str)
    mean = {
        (g, c): x[((of == g) & (under == c)).to_numpy()].mean(0)
        for g in set(of)
        for c in ("control", "treated_1")
    }
    assert [s.group for s in seen] == sorted(set(of))
    for pair in seen:
        np.testing.assert_allclose(pair.control, mean[pair.group, "control"], rtol=1e-4)
        np.testing.assert_allclose(pair.truth, mean[pair.group, "treated_1"], rtol=1e-4)
        shift = np.mean([mean[g, "treated_1"] - mean[g, "control"] for g in set(of) - {pair.group}], axis=0)
        simple = pair.predicted["mean shift"] - pair.control
        np.testing.assert_allclose(simple, shift, rtol=1e-3, atol=1e-4)
        assert pair.row()["no change"] == 0
        assert np.isfinite(pair.row()["CGMDVAE"])
        controls = cells[((of == pair.group) & (under == "control")).to_numpy()].copy()
        scale = max(500.0, float(np.median(total)))  # that of the truth
        alone = model.transfer(controls, "treated_1", route="decoder", target_sum=scale)
        np.testing.assert_allclose(pair.predicted["CGMDVAE"], alone.X.mean(0), rtol=1e-3, atol=1e-4)


def test_held_out_type_is_predicted_by_a_model_that_never_saw_it(cells, quick, tmp_path, monkeypatch):
    cells.obs["cluster"] = (
        cells.obs["cluster"].astype(str).replace({"cluster_4": "cluster_3"}).astype("category")
    )
    model = made("CGMDVAE", cells, quick, n_clusters=4)
    trained = []
    train = sa.CGMDVAE.train
    monkeypatch.setattr(
        sa.CGMDVAE, "train", lambda self, *a, **k: (trained.append(self), train(self, *a, **k))[1]
    )
    model.report(tmp_path / "page.html", held_out="cluster_3", max_epochs=1)
    (again,) = trained
    seen = again.adata.obs.groupby(["cluster", "condition"], observed=False).size()
    assert seen["cluster_3", "treated_1"] == 0
    assert seen["cluster_3", "control"] > 0
    assert again.init_params_["non_kwargs"] == model.init_params_["non_kwargs"]
    assert again.adata is not model.adata
    text = (tmp_path / "page.html").read_text()
    assert cell_of(text, "no change", "skill") == "0"
    assert cell_of(text, "CGMDVAE, decoder alone", "skill") is not None
    assert cell_of(text, "ceiling", "skill") is not None
    with pytest.raises(ValueError, match=r"`held_out='B'` is not known. Pass one of: cluster_0"):
        model.report(tmp_path / "2.html", held_out="B")
    with pytest.raises(ValueError, match=r"needs a model with conditions and labels, and the cells"):
        made("VAE", cells, quick).report(tmp_path / "2.html", held_out="cluster_3")


def test_new_cells_and_keys(cells, quick, tmp_path):
    model = made("VAE", cells, quick)
    model.save(tmp_path / "model")
    alone, other = sa.load(tmp_path / "model"), cells[:60, ::-1].copy()
    del other.obs["cluster"]
    before = set(other.obs), set(other.obsm), set(other.uns)
    alone.report(tmp_path / "page.html", other, keys=["lane", "gene_3"])
    assert (set(other.obs), set(other.obsm), set(other.uns)) == before
    text = (tmp_path / "page.html").read_text()
    assert "60 cells, by lane" in text
    assert "60 cells, by gene_3" in text
    assert "new cells" in text
    assert "No labels were registered" in text
    with pytest.raises(
        KeyError, match=r"`keys='lanes'` is not a column of `adata.obs`, nor a gene.*Did you mean"
    ):
        alone.report(tmp_path / "2.html", other, keys="lanes")
    with pytest.raises(ValueError, match="was loaded without its cells"):
        alone.report(tmp_path / "2.html")
    assert not (tmp_path / "2.html").exists()


# checks ---------------------------------------------------------------------------------------


def history(loss):
    return {"validation_loss": pd.DataFrame({"validation_loss": loss})}


def test_end_of_training():
    flat = [10, 5, 3, 2, 1.5, 1.2, 1.1, 1.05, 1.02, 1.01, 1.005] + [1.0] * 9
    assert checks.converged(history(flat)).good
    still = checks.converged(history(np.linspace(10, 1, 20)))
    assert not still.good
    assert "fell by 10.5%" in still.found  # 2 of 19 steps
    assert checks.converged({}).good is None


def test_zeros_and_variance_are_told_apart():
    """Poisson's expectations of overdispersed counts are found out, the true ones are not."""
    rng, n, theta = np.random.default_rng(0), 4000, 0.5
    mean = rng.uniform(0.3, 3, 200)
    x = rng.poisson(rng.gamma(theta, mean / theta, (n, 200)))
    seen = {"mean_observed": x.mean(0), "zeros_observed": (x == 0).mean(0), "variance_observed": x.var(0)}
    true = {"zeros_expected": (theta / (theta + mean)) ** theta, "variance_expected": mean + mean**2 / theta}
    poisson = {"zeros_expected": np.exp(-mean), "variance_expected": mean}
    for expected, good in ((true, True), (poisson, False)):
        genes = pd.DataFrame(seen | expected)
        assert checks.zeros(genes, n).good is good
        assert checks.variance(genes).good is good
    assert "too little expected" in checks.variance(genes).found


def test_neighbours_tell_what_was_lost_and_what_was_left():
    told = pd.DataFrame(
        {"latent space": [0.8, 0.9], "principal components": [0.9, 0.95], "chance": [0.2, 0.5]},
        index=["labels", "batch"],
    )
    lost = checks.over_corrected(told, corrected=True)
    assert lost.good is False
    assert "Over-corrected?" in lost.advice
    assert "Over-corrected?" not in checks.over_corrected(told, corrected=False).advice
    apart = checks.mixed(told)
    assert (apart.good, apart.found[-4:]) == (False, "0.80")
    told["latent space"] = [0.86, 0.6]
    assert checks.over_corrected(told, corrected=True).good
    assert checks.mixed(told).good
    assert checks.mixed(told.drop("batch")).good is None


def test_latents_and_clusters_in_use():
    z = np.random.default_rng(0).normal(size=(500, 3)) * [1, 0.5, 0.05]
    assert (checks.latents_used(z).good, checks.latents_used(z).found) == (False, "2 of 3")
    unseen = pd.DataFrame({"group": ["B", "T"], "to": ["drug"] * 2, "far": [True, False]})
    assert checks.far(unseen).found == "1 of 2 pairs: B under drug"
    assert checks.far(unseen[1:]).good


# the page -------------------------------------------------------------------------------------


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_contrast_in_light_and_dark():
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3) of every text on every ground that it stands on."""
    style = (files("scalloy.reports") / "style.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", style, flags=re.S)[:2]
    assert len(themes) == 2
    for theme in themes:
        of = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for text in ("text", "soft", "link"):
            for ground in ("page", "card"):
                a, b = sorted((luminance(of[text]), luminance(of[ground])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (text, ground)
        a, b = sorted((luminance(of["note"]), luminance(of["on-note"])))
        assert (b + 0.05) / (a + 0.05) >= 4.5
    assert (1.05) / (luminance("#505a64") + 0.05) >= 4.5  # captions on the white of figures


def test_texts_are_escaped_everywhere():
    frame = pd.DataFrame({HOSTILE: [HOSTILE, 1.0]}, index=[HOSTILE, "b"]).rename_axis(HOSTILE)
    parts = [
        Text(HOSTILE),
        Text(HOSTILE, note=True),
        Table(frame, HOSTILE),
        Table(frame, HOSTILE, folded=True),
    ]
    text = page(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [Section(HOSTILE, parts)], HOSTILE)
    reader = Reader(text)
    assert not reader.all("script")
    assert "".join(reader.said).count(HOSTILE) >= 15
