"""Each kind of thing is added from the outside, by one call, and is then known wherever such things are."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

import scalloy as sa
from scalloy._registry import Registry
from scalloy.blocks import gene_likelihoods, mixture_weights
from scalloy.blocks.distributions import CountDistribution, Rate, gaussian, standard_normal
from scalloy.blocks.gene_likelihoods import LIKELIHOODS
from scalloy.blocks.likelihoods import NB, Likelihood, ZeroInflated
from scalloy.blocks.mixture_weights import WEIGHTS
from scalloy.blocks.mixtures import Weights
from scalloy.models._core import factories
from scalloy.vae.base import Sizes, Terms, VAEModule

pytestmark = pytest.mark.usefixtures("registries")
KEYS = {"condition_key": "condition", "labels_key": "cluster"}
SMALL = {"n_hidden": 8, "n_latent": 3}


class Geometric(CountDistribution):
    """p(x) = mu^x / (1 + mu)^(x + 1)."""

    @property
    def variance(self):
        return self.mean + self.mean**2

    def log_pmf(self, value):
        return value * self.rate.log_mean - (value + 1) * torch.log1p(self.mean)

    def sample(self, sample_shape=()):
        return torch.distributions.Geometric(1 / (1 + self.mean)).sample(sample_shape)


class GeometricCounts(Likelihood):
    def forward(self, h, log_ell, b):
        return Geometric(Rate(self.head(h), log_ell))


class Floored(Weights):
    """Learned weights that do not fall below a tenth of an equal share."""

    def __init__(self, n_clusters):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(1, n_clusters))

    def forward(self, c):
        return (0.9 * self.logits.softmax(-1) + 0.1 / self.logits.shape[-1]).log()


class Linear(sa.models.ScalloyModel):
    """A model in a few lines."""

    annotators = (sa.models.LATENT,)

    @sa.models.repeatable
    def __init__(self, adata=None, registry=None, n_latent=3, gene_likelihood="nb", *, seed=None):
        super().__init__(adata, registry)
        likelihood = self.make_likelihood(gene_likelihood, n_latent)
        self.module = LinearModule(self.sizes.n_vars, likelihood, n_latent)
        self.init_params_ = self._get_init_params(locals())


class LinearModule(VAEModule):
    def __init__(self, n_vars, likelihood, n_latent):
        super().__init__()
        self.n_latent, self.likelihood = n_latent, likelihood
        self.to_z = torch.nn.Linear(n_vars, n_latent)

    def encode(self, batch):
        loc = self.to_z(self.likelihood.features(batch.x).to_dense())
        return {"z": gaussian(loc, torch.ones_like(loc))}

    def decode(self, batch, latents):
        z = latents["z"]
        return {"z": standard_normal(z), "x": self.likelihood(z, batch.log_ell, batch.b)}

    def terms(self, batch, q, latents, p):
        recon = -self.likelihood.log_prob(p["x"], batch.x)
        return Terms(recon, kl={"z": kl_divergence(q["z"], p["z"])})


def median_shift(control, shift, to, *, strength=1.0):
    return strength * np.median(shift, axis=0)


def largest_error(predicted, truth):
    return np.abs(predicted - truth).max()


@pytest.fixture
def responses():
    """Cells of four types under two conditions."""
    return sa.datasets.simulate(400, 30, n_clusters=4, n_conditions=2, n_batches=1, seed=0)


# likelihoods -------------------------------------------------------------------------------------


def test_a_likelihood(cells, quick, tmp_path):
    gene_likelihoods.register("geometric", GeometricCounts)
    sa.VAE.setup_anndata(cells, batch_key="batch")
    model = sa.VAE(cells, gene_likelihood="geometric", **SMALL)
    model.train(**quick)
    model.save(tmp_path / "model")
    again = sa.load(tmp_path / "model", cells)
    assert isinstance(again.module.likelihood, GeometricCounts)
    np.testing.assert_array_equal(again.get_latent_representation(), model.get_latent_representation())
    assert np.isfinite(again.get_elbo())
    expression = again.get_normalized_expression(library_size=1.0)
    np.testing.assert_allclose(expression.sum(axis=1), 1, rtol=1e-4)
    drawn = again.posterior_predictive_sample(n_samples=1)
    assert drawn.sum() == pytest.approx(cells.X.sum(), rel=0.2)  # means add up to the totals


@pytest.mark.parametrize("name", ["VAE", "GMVAE", "TRVAE", "CGMDVAE", "BetaVSC", "AE"])
def test_every_model_takes_a_likelihood(cells, quick, name):
    """NB with an inverse dispersion of one is geometric: both have the same reconstruction error."""
    gene_likelihoods.register("geometric", GeometricCounts)
    cls = getattr(sa, name)
    cls.setup_anndata(cells, **({"condition_key": "condition"} if hasattr(cls, "transfer") else {}))
    model, nb = (cls(cells, gene_likelihood=k, **SMALL, seed=0) for k in ("geometric", "nb"))
    nb.module.load_state_dict(model.module.state_dict(), strict=False)
    nb.module.likelihood.log_theta.data.zero_()
    expected = nb.get_reconstruction_error()
    assert model.get_reconstruction_error() == pytest.approx(expected, rel=1e-5)
    model.train(**quick)


def test_a_likelihood_gets_the_settings_that_it_takes():
    got = []

    def make(n_hidden, n_vars, *, library, n_batch):
        got.append((n_hidden, n_vars, library, n_batch))
        return GeometricCounts(n_hidden, n_vars)

    gene_likelihoods.register("mine", make)
    sizes = Sizes(n_vars=7, n_batch=2)
    factories.likelihood("mine", sizes, 4, library="none")
    factories.likelihood("mine", sizes, 4)
    assert got == [(4, 7, False, 2), (4, 7, True, 2)]
    with pytest.raises(ValueError, match="`dispersion='gene-cell'` has no meaning for `gene_l"):
        factories.likelihood("mine", sizes, 4, dispersion="gene-cell")
    with pytest.raises(ValueError, match="`k_max=3` with `gene_likelihood='mine'` has no meaning"):
        factories.likelihood("mine", sizes, 4, k_max=3)


def test_own_names_come_first_in_messages(cells):
    gene_likelihoods.register("geometric", GeometricCounts)
    mixture_weights.register("floored", Floored)
    with pytest.raises(ValueError, match=r"Pass one of: geometric, nb.*Did you mean 'geometric'"):
        sa.VAE(cells, gene_likelihood="geometrical")
    with pytest.raises(ValueError, match=r"`weights='flored'` is not known.*Did you mean 'floored'"):
        sa.CGMDVAE(cells, weights="flored")


def test_a_model_whose_likelihood_is_not_there_says_what_to_import(cells, tmp_path):
    gene_likelihoods.register("geometric", GeometricCounts)
    sa.VAE(cells, gene_likelihood="geometric", **SMALL).save(tmp_path / "model")
    del LIKELIHOODS["geometric"]
    match = r"`gene_likelihood='geometric'` is not known.*or import what registers that name"
    with pytest.raises(ValueError, match=match):
        sa.load(tmp_path / "model", cells)


def test_signatures_name_what_is_registered():
    """For completion in editors; and mathematics without names."""
    assert get_args(get_args(factories.GeneLikelihood)[0]) == tuple(LIKELIHOODS)
    assert get_args(get_args(factories.MixtureWeights)[0]) == tuple(WEIGHTS)
    made = factories.likelihood("zinb", Sizes(3), 4)
    assert isinstance(made, ZeroInflated)
    assert isinstance(made.base, NB)


# weights of a mixture ------------------------------------------------------------------------------


def test_weights_of_a_mixture(cells, quick, tmp_path):
    mixture_weights.register("floored", Floored)
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition")
    model = sa.CGMDVAE(cells, weights="floored", n_clusters=3, **SMALL)
    assert model.module.prior.weights.logits.shape == (1, factories.MANY)  # which are merged in the end
    model.train(**quick)
    model.save(tmp_path / "model")
    again = sa.CGMDVAE.load(tmp_path / "model", cells)
    assert isinstance(again.module.prior.weights, Floored)
    pi = again.module.prior.weights(torch.zeros(1, dtype=torch.long)).exp()
    assert float(pi.detach().sum()) == pytest.approx(1, abs=1e-5)
    assert again.get_clusters().nunique() <= 3


def test_weights_that_do_not_merge_and_what_they_are_given(cells):
    got = []

    def make(n_clusters, n_conditions, alpha):
        got.append((n_clusters, n_conditions, alpha))
        return Floored(n_clusters)

    mixture_weights.register("fixed", make, merges=False)
    sa.CGMDVAE.setup_anndata(cells, condition_key="condition")
    sa.CGMDVAE(cells, weights="fixed", n_clusters=3, alpha=0.5, **SMALL)
    sa.CGMDVAE(cells, weights="fixed", **SMALL)
    n = cells.obs["condition"].nunique()
    assert got == [(3, n, 0.5), (factories.FREE, n, 1.0)]


# baselines and metrics ------------------------------------------------------------------------------


def test_a_baseline(responses):
    sa.baselines.register("median shift", median_shift, strength=(0.0, 1.0))
    assert "median shift" in sa.baselines.SHIFTS
    assert list(sa.baselines.METHODS)[-1] == "median shift"
    control, shift = np.random.default_rng(0).random((2, 5, 8))
    assert sa.baselines.tuned("median shift", control, shift + 5) == {"strength": 1.0}
    simple = sa.baselines.Baseline(responses, "median shift", **KEYS)
    of = (responses.obs["condition"] == "control") & (responses.obs["cluster"] == "cluster_0")
    made = simple.transfer(responses[of.to_numpy()].copy(), to="treated_1")
    assert made.uns["transfer"]["model"] == "Baseline: median shift"
    asked = {"hold_out": "cluster_0", "n_genes": 30, "min_cells": 10, **KEYS}
    table = sa.benchmark.transfer(responses, ["no change", "median shift"], **asked).set_index("method")
    assert table.loc["median shift", "skill"] > table.loc["no change", "skill"] + 0.1


def test_a_baseline_is_in_reports(responses, quick):
    from scalloy.reports import predictions
    from scalloy.reports.subject import Subject

    sa.baselines.register("median shift", median_shift)
    sa.CGMDVAE.setup_anndata(responses, **KEYS)
    model = sa.CGMDVAE(responses, **SMALL)
    model.train(**quick)
    subject = Subject(model, responses, given=None, seed=0, asked=None)
    assert {"mean shift", "kernel ridge", "median shift"} <= set(predictions.seen_pairs(subject)[0].predicted)
    frame = predictions.held_out(subject, "cluster_0", max_epochs=1)
    assert {"median shift", "CGMDVAE", "learned pooling"} <= set(frame["method"])


@pytest.mark.parametrize("of", ["means", "cells", "pcs"])
def test_a_metric(responses, of):
    seen = []

    def metric(predicted, truth):
        seen.append((predicted.shape, truth.shape))
        return np.abs(predicted.mean(0) - truth.mean(0)).max()

    sa.metrics.register("mine", metric, of=of)
    asked = {"hold_out": "cluster_0", "n_genes": 30, "min_cells": 10, **KEYS}
    table = sa.benchmark.transfer(responses, ["no change", "mean shift"], **asked).set_index("method")
    assert (table.loc[["no change", "mean shift"], "mine"] > 0).all()
    n = int(((responses.obs["cluster"] == "cluster_0") & (responses.obs["condition"] == "treated_1")).sum())
    (shape, truth), *_ = seen
    assert truth == {"means": (30,), "cells": (n, 30), "pcs": (n, 30)}[of]
    assert len(shape) == len(truth)


def test_metrics_take_what_their_arguments_are_called():
    from scalloy.metrics.registered import VIEWS, scores

    views = {of: dict.fromkeys(names, np.arange(1.0, 4.0)) for of, names in VIEWS.items()}
    for name in list(sa.metrics.METRICS):
        del sa.metrics.METRICS[name]
    sa.metrics.register("all", lambda **given: len(given))
    sa.metrics.register("with sd", lambda predicted, sd: float(sd.sum()))
    sa.metrics.register("if sd", lambda predicted, sd=None: 0.0 if sd is None else 1.0)
    assert scores(views) == {"all": 5, "with sd": 6, "if sd": 1}
    del views["means"]["sd"]
    assert scores(views) == {"all": 4, "if sd": 0}
    sa.metrics.register("wrong", lambda predicted: predicted)
    with pytest.raises(ValueError, match=r"The metric 'wrong' returned values of shape \(3,\). Let"):
        scores(views)


# models and plots -----------------------------------------------------------------------------------


def test_a_model(cells, quick, tmp_path):
    assert sa.models.register(Linear) is Linear
    Linear.setup_anndata(cells)
    model = Linear(cells)
    model.train(**quick)
    model.annotate()
    assert cells.obsm["X_linear"].shape == (200, 3)
    model.save(tmp_path / "model")
    assert type(sa.load(tmp_path / "model", cells)) is Linear
    del sa.models.MODELS["Linear"]
    with pytest.raises(ValueError, match="holds a 'Linear', which is none of AE"):
        sa.load(tmp_path / "model", cells)


def test_a_model_defined_again_takes_the_place_of_the_first():
    def define():
        class Again(Linear):
            pass

        return Again

    first, second = define(), define()
    sa.models.register(first)
    assert sa.models.register(second) is second
    assert sa.models.MODELS["Again"] is second
    with pytest.raises(ValueError, match=r"'VAE' is registered already.*`del sa.models.MODELS\['VAE'\]`"):
        sa.models.register(type("VAE", (Linear,), {}))


# what is refused ------------------------------------------------------------------------------------

REGISTER = {
    "likelihood": (gene_likelihoods.register, GeometricCounts, "nb"),
    "weights": (mixture_weights.register, Floored, "global"),
    "baseline": (sa.baselines.register, median_shift, "kernel ridge"),
    "metric": (sa.metrics.register, largest_error, "skill"),
}
every = pytest.mark.parametrize("kind", REGISTER)


@every
def test_a_name_is_registered_once(kind):
    register, thing, built_in = REGISTER[kind]
    register("mine", thing)
    for name in ("mine", built_in):
        with pytest.raises(ValueError, match=rf"'{name}' is registered already. Use another.*`del "):
            register(name, thing)


@every
def test_the_way_out_in_the_message_works(kind):
    register, thing, _ = REGISTER[kind]
    register("mine", thing)
    with pytest.raises(ValueError, match="`del ") as found:
        register("mine", thing)
    line = str(found.value).split("`")[1]
    names = {"sa": sa, "scalloy": sa}
    exec(line, names)
    register("mine", thing)


@every
def test_what_is_no_name_or_no_function_is_refused(kind):
    register, thing, _ = REGISTER[kind]
    for name in (3, "", None):
        with pytest.raises(TypeError, match=r"is not a name. Pass a text"):
            register(name, thing)
    with pytest.raises(TypeError, match=r"is a int. Pass a function, or a class"):
        register("mine", 3)
    with pytest.raises(TypeError, match=r"does not take the right arguments \(missing.*(must|may) take"):
        register("mine", lambda one, two, three, four: None)


def test_names_of_other_methods_and_columns_are_not_free():
    with pytest.raises(ValueError, match=r"'no change' is the name of something else. Use another name"):
        sa.baselines.register("no change", median_shift)
    with pytest.raises(ValueError, match="'seed' is the name of something else"):
        sa.metrics.register("seed", largest_error)
    with pytest.raises(ValueError, match=r"`of='mean'` is not known.*Did you mean 'means'"):
        sa.metrics.register("mine", largest_error, of="mean")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'strengt'.*must take by name strengt"):
        sa.baselines.register("mine", median_shift, strengt=(1, 2))
    sa.baselines.register("median shift", median_shift)
    with pytest.raises(ValueError, match=r"`method='median'` is not known. Pass one of: median shift, no"):
        sa.baselines.Baseline(sa.datasets.simulate(50, 20), "median", **KEYS)


def test_a_registry_knows_what_was_added():
    found = Registry("here", {"a": 1, "b": 2})
    found.add("c", 3)
    assert found == {"a": 1, "b": 2, "c": 3}
    assert found.added == ["c"]
    assert found.one_of("letter", "c") == "c"
    with pytest.raises(ValueError, match=r"`letter='d'` is not known. Pass one of: c, a, b"):
        found.one_of("letter", "d")
