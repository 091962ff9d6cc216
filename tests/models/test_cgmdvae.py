"""CGMDVAE for users: clusters, labels, unknown types, another condition, generation, a second study."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy.stats import norm
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import scalloy as sa
from scalloy.models._core import generate

SMALL = {"n_hidden": 32, "n_latent": 5}
SHORT = {"max_epochs": 60, "enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def simulated():
    return sa.datasets.simulate(1000, 100, n_clusters=4, seed=2)


def fit(adata, *, short=SHORT, model=None, **setup):
    scvi.settings.seed = 0
    sa.CGMDVAE.setup_anndata(adata, **setup)
    made = sa.CGMDVAE(adata, **SMALL, **(model or {}))
    made.train(**short)
    scvi.settings.seed = None
    return made


@pytest.fixture(scope="module")
def labelled(simulated):
    """Half of the labels of three types are known, and none of the fourth's."""
    adata = simulated.copy()
    hidden = (adata.obs["cluster"] == "cluster_3") | (np.arange(adata.n_obs) % 2 == 0)
    adata.obs["label"] = np.where(hidden, "?", adata.obs["cluster"].astype(str))
    keys = {"labels_key": "label", "unlabeled_category": "?", "condition_key": "condition"}
    return fit(adata, batch_key="batch", **keys)


# clusters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_clusters", [4, None])
def test_clusters_are_found_without_labels(simulated, n_clusters):
    adata = simulated.copy()
    model = fit(adata, batch_key="batch", condition_key="condition", model={"n_clusters": n_clusters})
    found = model.get_clusters()
    assert adjusted_rand_score(adata.obs["cluster"], found) > 0.9
    assert found.index.equals(adata.obs_names)
    usage = model.get_usage()
    assert usage.sum() == pytest.approx(adata.n_obs, rel=1e-4)
    assert model.get_usage(by="condition").shape == (2, len(usage))
    assert 4 <= model.n_alive() <= 6


def test_more_clusters_than_needed_stay_empty_or_small(simulated):
    model = fit(simulated.copy(), condition_key="condition", model={"n_clusters": 12})
    assert len(model.cluster_names) == 12
    assert adjusted_rand_score(simulated.obs["cluster"], model.get_clusters()) > 0.4


def test_conditions_mix_in_z(simulated):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    model = fit(simulated.copy(), condition_key="condition")
    z, c = model.get_latent_representation(), simulated.obs["condition"]
    without = fit(simulated.copy())
    mixed, apart = (
        cross_val_score(LogisticRegression(max_iter=500), code, c).mean()
        for code in (z, without.get_latent_representation())
    )
    assert mixed < 0.65 < apart


# labels -----------------------------------------------------------------------------------------


def test_labels_of_unlabelled_cells_and_the_type_without_labels(labelled):
    adata = labelled.adata
    truth, unknown = adata.obs["cluster"].astype(str), adata.obs["label"] == "?"
    new = truth == "cluster_3"
    predicted = labelled.predict_labels()
    assert (predicted[unknown & ~new] == truth[unknown & ~new]).mean() > 0.9
    soft = labelled.predict_labels(soft=True)
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, rtol=1e-4)
    assert set(soft.columns) == {"cluster_0", "cluster_1", "cluster_2"}
    score = labelled.get_unknown_score()
    assert score.between(0, 1).all()
    assert roc_auc_score(new[unknown], score[unknown]) > 0.95


def test_the_known_label_of_a_cell_is_not_used_to_predict_it(labelled):
    lied = labelled.adata.copy()
    lied.obs["label"] = "cluster_0"
    pd.testing.assert_frame_equal(
        labelled.predict_labels(lied, soft=True), labelled.predict_labels(soft=True), atol=1e-4
    )


def test_annotate_writes_labels(labelled):
    out = labelled.annotate(copy=True)
    written = {"cluster", "cluster_probability", "label", "label_probability", "unknown"}
    assert {f"cgmdvae_{name}" for name in written} <= set(out.obs)
    assert out.obsm["cgmdvae_probabilities"].shape == (1000, len(labelled.cluster_names))
    assert out.obs["cgmdvae_cluster"].dtype == "category"


def test_cells_of_a_rare_label_are_trained_on(simulated):
    told = np.full(simulated.n_obs, "Unknown", dtype=object)
    rare, usual = [3, 170], slice(20, 70)
    told[usual], told[rare] = "usual", "rare"
    simulated.obs["told"] = told
    sa.CGMDVAE.setup_anndata(simulated, labels_key="told", unlabeled_category="Unknown")
    for seed in range(8):
        model = sa.CGMDVAE(simulated, n_hidden=8, seed=seed)
        model.train(max_epochs=1, train_size=0.5, enable_progress_bar=False)
        assert set(rare) <= set(model.train_indices)
        assert not set(range(20, 70)) <= set(model.train_indices)


def test_a_rare_label_is_repeated(simulated):
    adata = simulated.copy()
    rare = (adata.obs["cluster"] == "cluster_1") & (np.arange(adata.n_obs) % 40 != 0)
    adata.obs["label"] = np.where(rare, "?", adata.obs["cluster"].astype(str))
    sa.CGMDVAE.setup_anndata(adata, labels_key="label", unlabeled_category="?")
    model = sa.CGMDVAE(adata, **SMALL)
    loader = sa.data.batches.CellLoader(
        model.adata_manager, batch_size=100, shuffle=True, n_samples_per_label=50, n_labels=4
    )
    drawn = np.concatenate([batch["labels"][:, 0].numpy() for batch in loader])
    code = model.labels.index("cluster_1")
    n_rare = (adata.obs["label"] == "cluster_1").sum()
    assert 0 < n_rare < 50
    assert (drawn == code).sum() == 50
    assert len(drawn) == 1000 + 50 - n_rare
    model.train(max_epochs=1, n_samples_per_label=50, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(ValueError, match="`n_samples_per_label=5` needs labels"):
        fit(adata, short={"n_samples_per_label": 5, **SHORT})


def test_without_labels_there_are_none_to_predict(simulated):
    model = fit(simulated.copy(), short={**SHORT, "max_epochs": 1})
    with pytest.raises(ValueError, match="trained without labels"):
        model.predict_labels()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"n_clusters": 2}, "`n_clusters=2` is less than the 4 labels"),
        ({"conditioning": "shard"}, "Did you mean 'shared'"),
        ({"weights": "globe"}, "Did you mean 'global'"),
        ({"alpha": 0}, "`alpha=0` must be above zero"),
    ],
)
def test_wrong_arguments(simulated, argument, message):
    adata = simulated.copy()
    sa.CGMDVAE.setup_anndata(adata, labels_key="cluster")
    with pytest.raises(ValueError, match=message):
        sa.CGMDVAE(adata, **argument)


# another condition ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out():
    """Cells of one type are never seen treated."""
    adata = sa.datasets.simulate(2000, 150, n_clusters=6, n_batches=1, effect=1.5, seed=5)
    keep = ~((adata.obs["cluster"] == "cluster_2") & (adata.obs["condition"] == "treated_1"))
    train = adata[keep.to_numpy()].copy()
    return adata, fit(train, labels_key="cluster", condition_key="condition")


def log_mean(counts):
    x = np.asarray(counts)
    return np.log1p(1e4 * x / np.maximum(x.sum(1, keepdims=True), 1)).mean(0)


@pytest.mark.parametrize(("route", "least"), [("auto", 0.6), ("decoder", 0.0), ("transport", 0.0)])
def test_prediction_beats_no_change_and_counts_agree(held_out, route, least, tmp_path):
    adata, model = held_out
    of = adata.obs["cluster"] == "cluster_2"
    control = adata[(of & (adata.obs["condition"] == "control")).to_numpy()].copy()
    truth = log_mean(adata[(of & (adata.obs["condition"] == "treated_1")).to_numpy()].X.toarray())
    before = control.copy()
    out = model.transfer(control, to="treated_1", route=route)
    c = log_mean(control.X.toarray())
    skill = sa.metrics.skill(out.X.mean(0), truth, c)
    assert skill > least  # 0 is no change
    assert sa.metrics.skill(log_mean(out.layers["counts"].toarray()), truth, c) > skill - 0.15
    assert list(out.obs["transfer_of"]) == list(control.obs_names)
    assert (out.obs["condition"] == "treated_1").all()
    assert (out.obs["transfer_from"] == "control").all()
    assert (out.X >= 0).all()
    counts = out.layers["counts"]
    assert (counts.data == np.round(counts.data)).all()
    total = np.asarray(control.X.sum(1)).mean()
    assert np.asarray(counts.sum(1)).mean() == pytest.approx(total, rel=0.05)
    pd.testing.assert_frame_equal(control.obs, before.obs)
    out.write_h5ad(tmp_path / "predicted.h5ad")
    if route == "auto":
        assert len(out.uns["transfer"]["learned_from"]["cluster_2 from control"]) == 5
        sd = out.uns["transfer"]["sd"].iloc[:, 0].to_numpy()
        assert 0.7 < sa.metrics.coverage(out.X.mean(0), truth, sd) <= 1


def test_transport_to_the_own_condition_is_the_reconstruction(held_out):
    from scalloy.vae.base import Batch
    from scalloy.vae.routes import moved

    _, model = held_out
    tensors = next(model.reader.tensors(None, list(range(50))))
    batch = Batch.of(tensors)
    control = batch.c == model.conditions.index("control")
    q = model.module.encode(batch)
    latents = model.module.draw(q)
    z = moved(model.module, batch, model.conditions.index("control"), q, latents, "transport")["z"]
    torch.testing.assert_close(z[control], latents["z"][control], rtol=1e-4, atol=1e-4)


def test_labels_that_are_not_known_are_not_taken_for_the_first_one(held_out):
    """All cells of the model have labels: new ones without them must not count as of the first label."""
    adata, model = held_out
    some = adata[(adata.obs["cluster"] == "cluster_3").to_numpy()][:60].copy()
    bare = some.copy()
    del bare.obs["cluster"]
    lied = some.copy()
    lied.obs["cluster"] = "cluster_0"
    half = some.copy()
    half.obs["cluster"] = np.where(np.arange(60) % 2, "cluster_3", "of a new type")
    true, unknown, wrong, mixed = (
        model.get_elbo(cells, return_mean=False, seed=0) for cells in (some, bare, lied, half)
    )
    assert (unknown > wrong + 1).mean() > 0.9  # that they were of the first one explains them far worse
    assert (
        unknown >= true - 1e-3
    ).all()  # one of all components explains them as well as that of their label
    np.testing.assert_allclose(mixed[::2], unknown[::2], rtol=1e-5)
    np.testing.assert_allclose(mixed[1::2], true[1::2], rtol=1e-5)
    rows = [7, 2, 59, 3]
    again = model.get_elbo(half, indices=rows, return_mean=False, batch_size=3, seed=0)
    assert ((again - mixed[rows]) < 25).all()
    codes = torch.cat([t["labels"][:, 0] for t in model.reader.tensors(half, rows, 3)]).tolist()
    assert codes == [3, 6, 3, 3]


def test_same_seed_same_prediction_and_library_size(held_out):
    adata, model = held_out
    some = adata[adata.obs["condition"] == "control"][:40].copy()
    one, two = (model.transfer(some, to="treated_1", seed=1, library_size=500.0) for _ in range(2))
    np.testing.assert_array_equal(one.X, two.X)
    assert np.asarray(one.layers["counts"].sum(1)).mean() == pytest.approx(500, rel=0.1)


def test_wrong_transfer(held_out, simulated):
    adata, model = held_out
    with pytest.raises(ValueError, match=r"`to='treated'` is not known.*Did you mean 'treated_1'"):
        model.transfer(adata, to="treated")
    with pytest.raises(ValueError, match=r"the model has none\. Pass `n_w="):
        model.transfer(adata, to="treated_1", route="style")
    with pytest.raises(ValueError, match="knows no condition"):
        fit(simulated.copy(), short={**SHORT, "max_epochs": 1}).transfer(to="treated_1")


def test_style_route_gives_prototypes(simulated):
    model = fit(simulated.copy(), condition_key="condition", model={"n_w": 2, "conditioning": "shared"})
    out = model.transfer(to="treated_1", route="style")
    assert out.shape == simulated.shape
    assert np.isfinite(out.X).all()
    assert model.get_latent_representation(which="w").shape == (1000, 2)
    with pytest.raises(ValueError, match="`which='v'` is not known"):
        model.get_latent_representation(which="v")


@pytest.mark.parametrize("seed", range(5))
def test_a_learned_prior_of_w_tells_conditions(seed):
    adata = sa.datasets.simulate(600, 100, n_clusters=3, seed=3)
    model = with_style(adata, seed)
    c = (adata.obs["condition"] != "control").to_numpy()
    m, s = model.module.prior_w.detach()[:, 0].numpy(), model.module.prior_w.detach()[:, 1].exp().numpy()
    mean, variance = (v[:, 0] for v in model.get_latent_representation(which="w", return_dist=True))
    told = norm.logpdf(mean, m[1], s[1]) > norm.logpdf(mean, m[0], s[0])
    new = model.validation_indices
    assert (told == c).mean() > 0.95
    assert (told == c)[new].mean() > 0.85
    for k in (0, 1):  # the prior has followed the posteriors
        of = c == k
        assert float(m[k]) == pytest.approx(float(mean[of].mean()), abs=0.2 * float(s[k]))
        moment = float((variance[of] + (mean[of] - m[k]) ** 2).mean())
        assert float(s[k]) ** 2 == pytest.approx(moment, rel=0.25)


def test_without_an_effect_the_priors_of_w_stay_together():
    model = with_style(sa.datasets.simulate(600, 100, n_clusters=3, effect=0.0, seed=3), 0)
    m, log_s = model.module.prior_w.detach().T
    assert (m[1] - m[0]).abs() < 0.1 * log_s.exp().mean()


def with_style(adata, seed):
    sa.CGMDVAE.setup_anndata(adata, condition_key="condition")
    few = {"n_clusters": 3, "weights": "uniform", "n_hidden": 16, "n_latent": 4}
    model = sa.CGMDVAE(adata, n_w=1, w_prior="condition", seed=seed, **few)
    model.train(**{**SHORT, "max_epochs": 80}, early_stopping=False)
    return model


def test_a_prior_of_w_needs_a_w(simulated):
    sa.CGMDVAE.setup_anndata(adata := simulated.copy(), condition_key="condition")
    with pytest.raises(ValueError, match=r"`w_prior='condition'` is the prior of `w`.*Pass `n_w=1`"):
        sa.CGMDVAE(adata, w_prior="condition")


@pytest.mark.parametrize(("n_clusters", "n_components"), [(2, 25), (16, 25), (18, 27), (40, 60)])
def test_clusters_are_made_of_half_as_many_components_more(simulated, n_clusters, n_components):
    """Of at least 25; weights whose components have prior numbers of their own are not merged."""
    sa.CGMDVAE.setup_anndata(adata := simulated.copy())
    assert len(sa.CGMDVAE(adata, n_clusters=n_clusters, **SMALL).module.prior.used) == n_components
    one_each = sa.CGMDVAE(adata, n_clusters=n_clusters, weights="uniform", **SMALL).module.prior
    assert len(one_each.used) == n_clusters
    assert not one_each.merges


def test_one_cluster_is_one_component(simulated):
    adata = simulated.copy()
    model = fit(adata, condition_key="condition", model={"n_clusters": 1}, short={**SHORT, "max_epochs": 5})
    prior = model.module.prior
    assert len(prior.components.loc) == 1
    assert model.cluster_names == ["0"]
    np.testing.assert_allclose(model.get_cluster_probabilities(), 1.0)
    assert float(model.history["kl_y_train"].abs().max().iloc[0]) < 1e-4
    assert float(model.history["kl_global_pi_train"].abs().max().iloc[0]) < 1e-4  # nothing to be known of it
    assert prior.is_placed


# generation -------------------------------------------------------------------------------------


COUNTS = ["nb", "zinb", "poisson", "zip", "constrained_poisson"]
OTHERS = ["gaussian", "mse", "normal", "bernoulli", "bernoulli_given"]


@pytest.mark.parametrize("likelihood", COUNTS + OTHERS)
def test_generated_cells_are_observations_of_the_likelihood(simulated, likelihood, monkeypatch):
    """Of one code and one template: mean and variance of each gene are those of the likelihood there."""
    adata = simulated[:, :20].copy()
    if likelihood == "bernoulli_given":
        adata.X = (adata.X > 0).astype(np.float32)
    sa.CGMDVAE.setup_anndata(adata, allow_non_counts=likelihood in {"normal", "bernoulli_given"})
    model = sa.CGMDVAE(adata, gene_likelihood=likelihood, n_hidden=8, n_latent=3)
    model.train(**{**SHORT, "max_epochs": 2})
    z = torch.tensor([0.3, -0.5, 0.2])
    monkeypatch.setattr(model.module, "from_prior", lambda batch, k: {"z": z.expand(len(batch.b), -1)})
    monkeypatch.setattr(generate, "alike", lambda own, rows, *_: np.full_like(rows, 5))
    n = 4000
    made = model.generate(n).X.toarray()
    mean = model.generate(3, noise=False).X.toarray()
    with torch.no_grad():
        batch = next(model.reader.batches(None, [5]))
        p = model.module.decode(batch, {"z": z.unsqueeze(0)})["x"]
    np.testing.assert_allclose(mean, p.mean.expand(3, -1).numpy(), rtol=1e-4, atol=1e-5)
    variance = p.variance[0].numpy()
    error = np.sqrt(variance / n) + 1e-4
    assert (np.abs(made.mean(0) - mean[0]) < 5 * error).all()
    assert made.var(0).sum() == pytest.approx(variance.sum(), rel=0.15)
    if likelihood in COUNTS:
        assert (made == np.round(made)).all()
        assert (made >= 0).all()
    if likelihood.startswith("bernoulli"):
        assert set(np.unique(made)) <= {0.0, 1.0}


@pytest.mark.parametrize("size", [0, -1.0, np.inf, np.nan])
def test_library_sizes_that_are_none(labelled, size):
    with pytest.raises(ValueError, match=r"`library_size=.*`"):
        labelled.generate(3, library_size=size)


def test_generated_cells_have_the_moments_of_real_ones(held_out):
    adata, model = held_out
    made = model.generate(600, cluster="cluster_0", condition="control")
    assert (made.obs["cluster"] == "cluster_0").all()
    assert (made.obs["condition"] == "control").all()
    of = (adata.obs["cluster"] == "cluster_0") & (adata.obs["condition"] == "control")
    real, made = adata[of.to_numpy()].X.toarray(), made.X.toarray()
    assert np.corrcoef(log_mean(real), log_mean(made))[0, 1] > 0.97
    assert np.corrcoef(np.log1p(real.var(0)), np.log1p(made.var(0)))[0, 1] > 0.95
    assert np.corrcoef((real == 0).mean(0), (made == 0).mean(0))[0, 1] > 0.95


def test_generation_from_the_prior_follows_the_weights(held_out):
    _, model = held_out
    made = model.generate(1500, library_size=300.0)
    real = model.adata.obs["cluster"].value_counts(normalize=True)
    found = made.obs["cluster"].value_counts(normalize=True).reindex(real.index)
    assert (found - real).abs().max() < 0.06
    assert made.X.sum(1).mean() == pytest.approx(300, rel=0.05)
    with pytest.raises(ValueError, match="`cluster='cluster_9'` is not known"):
        model.generate(3, cluster="cluster_9")


# a second study ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("saved", [False, True])
def test_a_query_leaves_the_reference_exactly_where_it_is(simulated, norm, saved, tmp_path):
    first = (simulated.obs["batch"] == "batch_0").to_numpy() & (np.arange(simulated.n_obs) % 3 > 0)
    reference, query = simulated[first].copy(), simulated[~first].copy()  # some of the query's batch is known
    del query.obs["cluster"]
    model = fit(
        reference, labels_key="cluster", batch_key="batch", condition_key="condition", model={"norm": norm}
    )
    before = model.get_latent_representation()
    if saved:
        model.save(tmp_path / "reference")
    mapped = sa.CGMDVAE.load_query_data(query, tmp_path / "reference" if saved else model)
    start = mapped.get_latent_representation()
    mapped.train(**{**SHORT, "max_epochs": 5})
    assert not np.allclose(mapped.get_latent_representation(), start)
    again = mapped.get_latent_representation(reference.copy())
    np.testing.assert_array_equal(again, before)
    truth = simulated.obs["cluster"].astype(str)[query.obs_names]
    assert (mapped.predict_labels().astype(str) == truth).mean() > 0.85


def test_query_with_nothing_new_and_wrong_queries(simulated, caplog):
    model = fit(simulated.copy(), labels_key="cluster", condition_key="condition")
    other = simulated[:100].copy()
    mapped = sa.CGMDVAE.load_query_data(other, model)
    mapped.train(**SHORT)
    assert "Nothing to train" in caplog.text
    np.testing.assert_array_equal(
        mapped.get_latent_representation(), model.get_latent_representation(indices=range(100))
    )
    missing = r"lacks 30 of the 100 genes of the model \(at most 20% may be missing\)"
    with pytest.raises(ValueError, match=missing):
        sa.CGMDVAE.load_query_data(simulated[:100, 30:].copy(), model)
    with pytest.raises(TypeError, match=r"`reference_model` is a CGMDVAE\. Call"):
        sa.VAE.load_query_data(other, model)
    with pytest.raises(ValueError, match="`max_missing=1` is a share of the genes"):
        sa.CGMDVAE.load_query_data(other, model, max_missing=1)
    del other.obs["condition"]
    with pytest.raises(KeyError, match="`condition_key='condition'` is not a column"):
        sa.CGMDVAE.load_query_data(other, model)


# presets ----------------------------------------------------------------------------------------


def test_the_thesis(simulated):
    adata = simulated.copy()
    sa.CGMDVAE.setup_anndata(adata, condition_key="condition")
    model = sa.CGMDVAE.original(adata, n_clusters=6, n_hidden=32, n_latent=4)
    model.train(max_epochs=3, enable_progress_bar=False, accelerator="cpu")
    assert float(model.history["kl_weight"].iloc[0, 0]) == 1.0  # no warm-up
    assert model.get_latent_representation().shape == (1000, 4)
    assert np.abs(model.get_latent_representation()).max() <= 5
    assert len(model.cluster_names) == 6
    assert {"kl_w_train", "kl_y_train"} <= set(model.history)


def test_blobs_are_found_and_their_conditions_mix():
    """Kolb's toy set and size of the code: five clusters, and conditions cannot be told in ``z``."""
    from sklearn.neighbors import KNeighborsClassifier

    scvi.settings.seed = 0
    adata = sa.datasets.blobs()
    sa.CGMDVAE.setup_anndata(adata, condition_key="condition", allow_non_counts=True)
    model = sa.CGMDVAE(adata, n_clusters=5, gene_likelihood="normal", n_latent=2)
    model.train(enable_progress_bar=False, accelerator="cpu")
    scvi.settings.seed = None
    assert adjusted_rand_score(adata.obs["cluster"], model.get_clusters()) > 0.95
    z, c = model.get_latent_representation(), adata.obs["condition"].to_numpy()
    half = np.random.default_rng(0).random(len(z)) < 0.5
    accuracy = KNeighborsClassifier(15).fit(z[half], c[half]).score(z[~half], c[~half])
    assert accuracy < 0.6


def test_size_of_the_decoders_shift_is_that_of_others_or_up_to_twice_it():
    from scalloy.perturbation.group_effects import trusted

    others = np.array([1.0, -2.0, 0.5])
    for size, expected in ((0.25, 1.0), (1.0, 1.0), (1.7, 1.7), (2.0, 2.0), (8.0, 2.0)):
        own = size * others
        np.testing.assert_allclose(trusted(own, others) * own, expected * others)
    assert trusted(-others, others) == 0  # it says the opposite
    assert trusted(others, 0 * others) == 0  # nothing changes
    assert trusted(0 * others, others) >= 0
    across = others + np.array([2.0, 1.0, 0.0])  # of which a part is the others' direction
    along = trusted(across, others) * across @ others / (others @ others)
    assert 0 < along <= 2


def test_weight_of_the_decoder_is_the_one_that_misses_least_if_errors_are_as_taken():
    from scalloy.perturbation.group_effects import weight

    rng, n = np.random.default_rng(0), 200_000
    for own_sd in (1.0, 2.0, 4.0):  # errors of the decoder beside the half that it shares with the others
        both, alone, extra = (rng.normal(size=n) for _ in range(3))
        others = (both + alone) / np.sqrt(2)  # variance 1, covariance 1/2 with
        own = both / np.sqrt(2) + own_sd * extra
        tried = np.linspace(0, 1, 501)
        best = tried[np.argmin([np.square(others + w * (own - others)).mean() for w in tried])]
        assert weight(own, others, np.square(others).sum()) == pytest.approx(min(best, 0.5), abs=0.01)
    assert weight(others, others, 1.0) == 0.5
    assert weight(own, others, 0.0) == 0.0
