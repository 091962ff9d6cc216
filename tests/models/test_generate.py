"""Cells that models generate, against the distributions that they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scalloy as sa
from scalloy.models._core import generate as generation

MODELS = ["VAE", "BetaVAE", "GMVAE", "BetaVSC", "TRVAE", "CGMDVAE"]
SMALL = {"n_hidden": 16, "n_latent": 3}
PARTS = {"GMVAE": {"n_clusters": 3}, "CGMDVAE": {"n_clusters": 3}}
SHORT = {"max_epochs": 30, "enable_progress_bar": False, "batch_size": 64}


@pytest.fixture(scope="module")
def data():
    """Cells of three types, which differ in their totals and in how common they are under two conditions."""
    return sa.datasets.simulate(600, 30, n_clusters=3, n_conditions=2, n_batches=2, seed=3)


@pytest.fixture(scope="module")
def models(data):
    return {name: made(name, data) for name in MODELS}


def made(name, data, **more):
    cls, cells = getattr(sa, name), data.copy()
    cls.setup_anndata(
        cells, batch_key="batch", **({"condition_key": "condition"} if hasattr(cls, "transfer") else {})
    )
    model = cls(cells, **{**SMALL, **PARTS.get(name, {}), **more}, seed=0)
    model.train(**SHORT)
    return model


def dense(x):
    return x.toarray() if hasattr(x, "toarray") else np.asarray(x)


# every model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["prior", "posterior"])
@pytest.mark.parametrize("name", MODELS)
def test_cells_have_what_was_asked_for(models, name, source):
    model = models[name]
    new = model.generate(40, from_=source, batch="batch_1", library_size=200.0, seed=1)
    assert new.shape == (40, 30)
    assert (new.obs["batch"] == "batch_1").all()
    assert new.uns["generated"]["from"] == source
    x = dense(new.X)
    assert (x == np.round(x)).all()
    assert (x >= 0).all()
    assert x.sum(1).mean() == pytest.approx(200, rel=0.25)
    np.testing.assert_array_equal(
        x, dense(model.generate(40, from_=source, batch="batch_1", library_size=200.0, seed=1).X)
    )
    assert (x != dense(model.generate(40, from_=source, batch="batch_1", library_size=200.0, seed=2).X)).any()
    means = dense(model.generate(40, from_=source, library_size=200.0, noise=False).X)
    np.testing.assert_allclose(means.sum(1), 200, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_usual_source_is_the_prior_where_it_is_learned(models, name):
    expected = "prior" if name in PARTS else "posterior"
    assert models[name].generate(3).uns["generated"]["from"] == expected


@pytest.mark.parametrize("name", MODELS)
def test_codes_from_the_prior_have_its_moments(models, name):
    """Of 20,000 codes: mean and variance of the prior, which is known in closed form."""
    module = models[name].module
    batch = next(models[name].reader.batches(None, np.zeros(4000, int)))
    torch.manual_seed(0)
    with torch.no_grad():
        z = torch.cat([module.from_prior(batch)["z"] for _ in range(5)])
        if name in PARTS:
            p = module.prior.density(batch.condition[:1])
            pi, loc, scale = p.log_pi.exp()[..., None], p.loc, p.scale
            mean = (pi * loc).sum(-2)[0]
            variance = (pi * (scale**2 + loc**2)).sum(-2)[0] - mean**2
        elif name == "BetaVSC":
            mean, variance = torch.zeros(3), module.alpha.expand(3)
            assert (z == 0).float().mean() == pytest.approx(1 - float(module.alpha), abs=0.01)
        else:
            mean, variance = torch.zeros(3), torch.ones(3)
    error = (variance / len(z)).sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * error).all()
    sd = 0.15 if name == "BetaVSC" else 0.06  # squares of what is mostly zero vary more
    torch.testing.assert_close(z.var(0), variance, rtol=sd, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_from_the_posterior_cells_are_near_to_their_templates(models, name):
    """With one template, cells have the moments of what the module draws for it."""
    model = models[name]
    n = 4000
    new = dense(model.generate(n, from_="posterior", indices=[7]).X)
    batch = next(model.reader.batches(None, np.full(n, 7)))
    torch.manual_seed(5)
    with torch.no_grad():
        expected = model.module.decode(batch, model.module.draw(model.module.encode(batch)))["x"]
        other = expected.sample().numpy()
    error = np.sqrt((new.var(0) + other.var(0)) / n) + 1e-3
    assert (np.abs(new.mean(0) - other.mean(0)) < 5 * error).all()
    assert new.var(0).sum() == pytest.approx(other.var(0).sum(), rel=0.2)


@pytest.mark.parametrize("name", MODELS)
def test_moments_and_zeros_are_those_of_real_cells(models, data, name):
    real, new = dense(data.X), dense(models[name].generate(1500).X)
    for of in (lambda x: np.log1p(x.mean(0)), lambda x: np.log1p(x.var(0))):
        assert np.corrcoef(of(real), of(new))[0, 1] > 0.98
    assert np.corrcoef((real == 0).mean(0), (new == 0).mean(0))[0, 1] > 0.85
    assert np.log(new.sum(1)).std() == pytest.approx(np.log(real.sum(1)).std(), rel=0.4)


# templates --------------------------------------------------------------------------------------------


def own(clusters, conditions, batches):
    return generation.Own(*(np.array(v) for v in (clusters, conditions, batches)))


def test_templates_are_what_was_asked_for_as_far_as_there_are_any():
    cells = own([0, 0, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 1, 1])

    def of(cluster=None, condition=None, batch=None, rows=range(5), source="prior"):
        asked = generation.Asked(cluster, condition, batch, {})
        return generation.templates(cells, asked, np.array(rows), source).tolist()

    assert of() == [0, 1, 2, 3, 4]
    assert of(cluster=1) == [2, 3, 4]
    assert of(cluster=1, condition=0) == [2, 3]
    assert of(cluster=1, condition=0, batch=1) == [3]
    assert of(cluster=0, batch=1) == [0, 1]  # no such cell: the batch is set, not found
    assert of(cluster=1, rows=[0, 4]) == [4]
    assert of(cluster=2) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"No cell is in that cluster.*`from_='prior'`"):
        of(cluster=2, source="posterior")


def test_clusters_are_drawn_with_the_weights_under_each_condition():
    class Prior:
        def shares(self, c):
            return torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.0, 0.1]])[c]

    module = type("Module", (), {"prior": Prior(), "device": "cpu"})
    conditions = np.repeat([0, 1], 20_000)
    drawn = generation.drawn_clusters(module, conditions, np.random.default_rng(0))
    for c, expected in ((0, [0.2, 0.5, 0.3]), (1, [0.9, 0.0, 0.1])):
        share = np.bincount(drawn[conditions == c], minlength=3) / 20_000
        np.testing.assert_allclose(share, expected, atol=0.015)
    assert not (drawn[conditions == 1] == 1).any()


def test_templates_of_drawn_clusters_are_cells_of_them():
    cells, rng = own([0, 0, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 1, 1]), np.random.default_rng(0)
    rows = np.repeat([0, 3], 500)
    found = generation.alike(cells, rows, np.repeat([1, 0], 500), np.arange(5), rng)
    assert set(found[:500]) == {2}  # the same condition in the same batch
    assert set(found[500:]) == {3}  # none is: the template stays
    assert rows.tolist() == [0] * 500 + [3] * 500
    kept = generation.alike(cells, rows, np.repeat([1, 0], 500), np.array([0, 1, 3, 4]), rng)
    assert set(kept[:500]) == {0}


@pytest.mark.parametrize("name", PARTS)
def test_totals_follow_the_clusters(data, name):
    """Cells of one type with four times the counts stay so, from the prior too."""
    cells = data.copy()
    deep = (cells.obs["cluster"] == "cluster_0").to_numpy()
    cells.X = np.where(deep[:, None], 4 * dense(cells.X), dense(cells.X))
    model = made(name, cells)
    new = model.generate(800, from_="prior")
    totals = np.log(dense(new.X).sum(1) + 1)
    real = np.log(dense(cells.X).sum(1) + 1)
    by_cluster = model.get_clusters()
    for cluster in by_cluster.unique():
        if (new.obs["cluster"] == cluster).sum() > 50:
            of = totals[new.obs["cluster"] == cluster]
            assert of.mean() == pytest.approx(real[by_cluster == cluster].mean(), abs=0.35)


def test_conditions_and_clusters(models):
    model = models["CGMDVAE"]
    for source in ("prior", "posterior"):
        name = model.get_clusters().value_counts().index[0]
        new = model.generate(30, from_=source, cluster=name, condition="treated_1")
        assert (new.obs["cluster"] == name).all()
        assert (new.obs["condition"] == "treated_1").all()
    assert set(models["TRVAE"].generate(60).obs["condition"]) == {"control", "treated_1"}
    assert "cluster" not in models["TRVAE"].generate(3).obs


def test_a_condition_changes_what_is_decoded(models):
    """The same templates under the other condition are another mean."""
    given = {"from_": "posterior", "noise": False, "indices": [3], "seed": 2}
    for name in ("TRVAE", "CGMDVAE"):
        one, other = (
            dense(models[name].generate(5, condition=c, **given).X) for c in ("control", "treated_1")
        )
        assert np.abs(one - other).max() > 1e-3


def test_learned_library_sizes_are_drawn(data):
    real = np.log(dense(data.X).sum(1))
    for name in ("VAE", "GMVAE"):
        model = made(name, data, library="learned")
        means = np.log(dense(model.generate(1500, from_="prior", noise=False).X).sum(1))
        assert means.mean() == pytest.approx(real.mean(), abs=0.05)  # the prior has these moments
        assert means.std() == pytest.approx(real.std(), rel=0.1)
        for source in ("prior", "posterior"):
            fixed = model.generate(20, from_=source, library_size=500.0, noise=False).X
            np.testing.assert_allclose(dense(fixed).sum(1), 500, rtol=1e-4)


def test_pseudo_inputs_are_a_prior_that_is_learned(data):
    model = made("BetaVSC", data, prior="pseudo", n_pseudo=5)
    assert model.generate(4).uns["generated"]["from"] == "prior"
    batch = next(model.reader.batches(None, np.zeros(4000, int)))
    with torch.no_grad():
        z = model.module.from_prior(batch)["z"]
        each = model.module.prior(z).components
    assert z.shape == (4000, 3)
    mean = each.mean.mean(0)
    error = 5 * (z.var(0) / 4000).sqrt() + 1e-3
    assert ((z.mean(0) - mean).abs() < error).all()


# what cannot be ---------------------------------------------------------------------------------------


def test_what_cannot_be_generated(models, data):
    vae, mixture = models["VAE"], models["CGMDVAE"]
    with pytest.raises(ValueError, match=r"`from_='posteror'` is not known.*Did you mean 'posterior'"):
        vae.generate(3, from_="posteror")
    with pytest.raises(
        ValueError, match=r"`cluster='1'`: the VAE knows no cluster. Use GMVAE or CGMDVAE, or pass `ind"
    ):
        vae.generate(3, cluster="1")
    with pytest.raises(ValueError, match="`condition='control'`: the VAE knows no condition"):
        vae.generate(3, condition="control")
    with pytest.raises(ValueError, match="`batch='batch_9'` is not known"):
        vae.generate(3, batch="batch_9")
    with pytest.raises(ValueError, match="`condition='treated'` is not known"):
        mixture.generate(3, condition="treated")
    with pytest.raises(ValueError, match="`indices` selects no cells"):
        vae.generate(3, indices=[])
    with pytest.raises(ValueError, match="`n=0` must be above zero"):
        vae.generate(0)
    cells = data.copy()
    sa.VAE.setup_anndata(cells)
    free = sa.VAE(cells, library="none", **SMALL)
    free.train(max_epochs=1, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"`library_size=100.0` has no meaning.*`library='none'`"):
        free.generate(3, library_size=100.0)
    with pytest.raises(ValueError, match=r"`batch='x'`: the VAE knows no batch.*pass `batch_key=`"):
        free.generate(3, batch="x")


def test_a_model_without_cells(models, tmp_path):
    models["VAE"].save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"loaded without them\. Pass `adata=`"):
        sa.load(tmp_path / "model").generate(3)
