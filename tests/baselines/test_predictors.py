"""Baselines called as models are: each against its formula, and what none of them may see."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import Ridge

import scalloy as sa
from scalloy.baselines import METHODS, SHIFTS, Baseline, LatentShift, shifts, tuned
from scalloy.baselines.predictors import _others, with_mean_shift


@pytest.fixture(scope="module")
def data():
    adata = sa.datasets.simulate(900, 60, n_clusters=4, n_conditions=2, n_batches=1, seed=3)
    return adata[~((adata.obs["cluster"] == "cluster_0") & (adata.obs["condition"] == "treated_1"))].copy()


@pytest.fixture
def control(data):
    rows = (data.obs["cluster"] == "cluster_0") & (data.obs["condition"] == "control")
    return data[rows].copy()


def log(adata):
    x = adata.X.toarray()
    return np.log1p(1e4 * x / x.sum(1, keepdims=True))


def means(data):
    parts = {}
    for condition in ("control", "treated_1"):
        rows = [
            (data.obs["cluster"] == f"cluster_{k}") & (data.obs["condition"] == condition) for k in (1, 2, 3)
        ]
        parts[condition] = [log(data[r]) for r in rows]
    return parts["control"], parts["treated_1"]


def predicted(data, control, method, **more):
    made = Baseline(data, method, condition_key="condition", labels_key="cluster", **more)
    made.train()
    return made.transfer(control, "treated_1")


def test_shifts_by_hand(data, control):
    before, after = means(data)
    c, t = (np.stack([x.mean(0) for x in part]) for part in (before, after))
    x = log(control)
    by_hand = {
        "no change": x,
        "treated mean": np.tile(np.concatenate(after).mean(0), (len(x), 1)),
        "mean shift": (x + (t - c).mean(0)).clip(0),
        "pooled shift": (x + np.concatenate(after).mean(0) - np.concatenate(before).mean(0)).clip(0),
    }
    for method, expected in by_hand.items():
        np.testing.assert_allclose(predicted(data, control, method).X, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["no change", "mean shift", "multiplicative"])
def test_expression_is_scaled_to_the_total_that_is_asked_for(data, control, method):
    """Changing the scale is the same as changing it before: of one cell, and of means of logarithms."""
    made = Baseline(data, method, condition_key="condition", labels_key="cluster")
    out = made.transfer(control, "treated_1", target_sum=500.0)
    x = control.X.toarray()
    before = np.log1p(500 * x / x.sum(1, keepdims=True))
    if method == "no change":
        np.testing.assert_allclose(out.X, before, rtol=1e-4, atol=1e-5)
    elif method == "mean shift":
        c, t = (np.stack([np.log1p(np.expm1(v) / 20).mean(0) for v in part]) for part in means(data))
        np.testing.assert_allclose(out.X, (before + (t - c).mean(0)).clip(0), rtol=1e-3, atol=1e-4)
    else:  # a ratio does not depend on the scale
        np.testing.assert_allclose(
            out.X, np.log1p(np.expm1(made.transfer(control, "treated_1").X) / 20), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_predicts_all_cells_and_leaves_them_as_they_are(data, control, method):
    before = control.copy()
    out = predicted(data, control, method)
    assert out.shape == control.shape
    assert (out.obs["condition"] == "treated_1").all()
    assert np.isfinite(out.X).all()
    assert (out.X >= 0).all()
    assert (control.X != before.X).nnz == 0
    assert control.obs.equals(before.obs)
    both = predicted(data, data[data.obs["condition"] == "control"].copy(), method)
    np.testing.assert_allclose(both[control.obs_names].X.mean(0), out.X.mean(0), atol=0.15)


def test_a_mean_is_shifted_as_far_as_it_goes_and_not_below_zero():
    x = np.array([[0.0, 2.0, 1.0, 0.0], [1.0, 0.0, 3.0, 0.0]])
    out = with_mean_shift(x, shift := np.array([0.5, -0.25, -5.0, -1.0]))
    np.testing.assert_allclose(out.mean(0), (x.mean(0) + shift).clip(0))
    assert (out >= 0).all()
    np.testing.assert_array_equal(out[:, 1] == 0, x[:, 1] == 0)  # what falls is scaled


def test_added_and_thinned_counts_have_the_wanted_means_and_new_zeros(data, control):
    made = Baseline(data, "add and thin", condition_key="condition", labels_key="cluster")
    draws = [made.transfer(control, "treated_1", seed=s).layers["counts"].toarray() for s in range(20)]
    assert all((d == d.round()).all() for d in draws)
    fractions = np.mean(
        [
            (
                1e4 * d / control.X.sum(1).A1[:, None]
                if hasattr(control.X.sum(1), "A1")
                else 1e4 * d / np.asarray(control.X.sum(1))
            ).mean(0)
            for d in draws
        ],
        axis=0,
    )
    x = control.X.toarray()
    own = (1e4 * x / x.sum(1, keepdims=True)).mean(0)
    seen = _others(made._moments_at(1e4), "cluster_0", "control", "treated_1")
    weight = shifts.closeness(seen.control, log(control).mean(0))
    added = (own + weight @ (seen.fraction_treated - seen.fraction_control)).clip(0)
    ratio = np.log((seen.fraction_treated + 0.05) / (seen.fraction_control + 0.05))
    wanted = np.sqrt(added * ((own + 0.05) * np.exp(weight @ ratio) - 0.05).clip(0))
    np.testing.assert_allclose(fractions, wanted, rtol=0.15, atol=2)
    rises = (wanted > 2 * own + 5) & (x == 0).any(0)
    assert ((draws[0] > 0) & (x == 0))[:, rises].any()


def groups(n=7, g=30, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, g)), rng.normal(size=(n, g)), rng.normal(size=g)


def test_ridges_are_scikit_learns():
    control, shift, to = groups()
    middle = control.mean(0)
    axes = np.linalg.svd(control - middle, full_matrices=False)[2][:2]
    z = (control - middle) @ axes.T
    model = Ridge(alpha=0.05 * np.square(z).sum(0).mean()).fit(z, shift)
    expected = model.predict(((to - middle) @ axes.T)[None])[0]
    np.testing.assert_allclose(shifts.ridge_on_pcs(control, shift, to), expected, rtol=1e-8)
    by_gene = [
        Ridge(alpha=0.1).fit(control[:, [g]], shift[:, g]).predict([[to[g]]])[0]
        for g in range(control.shape[1])
    ]
    np.testing.assert_allclose(shifts.ridge_by_gene(control, shift, to), by_gene, rtol=1e-8)


def test_similarity_goes_from_the_mean_to_the_nearest():
    control, shift, _ = groups()
    to = control[3] + 0.01
    np.testing.assert_allclose(shifts.weighted_shift(control, shift, to, sharpness=0.0), shift.mean(0))
    np.testing.assert_allclose(shifts.weighted_shift(control, shift, to, sharpness=1e4), shift[3])
    np.testing.assert_allclose(shifts.nearest_type(control, shift, to), shift[3])


def test_settings_are_chosen_by_leaving_out_what_was_seen():
    rng = np.random.default_rng(0)
    control = rng.normal(size=(9, 40))
    linear = (control @ rng.normal(size=(40, 2)) / 6) @ rng.normal(size=(2, 40))
    unrelated = rng.normal(size=(9, 40))
    assert tuned("kernel ridge", control, unrelated)["ridge"] == 1.0
    assert tuned("mean shift", control, linear) == {}
    assert tuned("kernel ridge", control[:2], linear[:2]) == {}
    for name, (predict, grid) in SHIFTS.items():
        best = tuned(name, control, linear)
        assert set(best) == set(grid)

        def missed(settings, predict=predict):
            kept = [np.delete(np.arange(9), i) for i in range(9)]
            return sum(
                np.square(predict(control[k], linear[k], control[i], **settings) - linear[i]).sum()
                for i, k in enumerate(kept)
            )

        assert missed(best) <= missed({}) + 1e-9


def test_latent_shift_moves_by_the_matched_difference(data, control):
    made = LatentShift(data, condition_key="condition", labels_key="cluster", n_hidden=32, n_latent=5)
    made.train(max_epochs=30, enable_progress_bar=False)
    out = made.transfer(control, "treated_1")
    z = made.model.get_latent_representation()
    obs = data.obs.astype(str)
    parts = [
        [z[(obs["cluster"] == f"cluster_{k}") & (obs["condition"] == c)].mean(0) for k in (1, 2, 3)]
        for c in ("treated_1", "control")
    ]
    expected = np.mean(parts[0], axis=0) - np.mean(parts[1], axis=0)
    np.testing.assert_allclose(
        made.delta("control", "treated_1", "cluster_0"), expected, rtol=1e-4, atol=1e-5
    )
    shipped = LatentShift.__new__(LatentShift)
    shipped.__dict__.update({**made.__dict__, "matched": False})
    assert not np.allclose(shipped.delta("control", "treated_1", "cluster_0"), expected, atol=1e-3)
    assert out.X.shape == control.shape
    assert np.corrcoef(out.X.mean(0), log(control).mean(0))[0, 1] > 0.8


def test_messages(data, control):
    with pytest.raises(ValueError, match="`method='ridge'` is not known"):
        Baseline(data, "ridge", condition_key="condition", labels_key="cluster")
    with pytest.raises(KeyError, match="treatment"):
        Baseline(data, condition_key="treatment", labels_key="cluster")
    made = Baseline(data, condition_key="condition", labels_key="cluster")
    with pytest.raises(ValueError, match="`to='treated_9'`"):
        made.transfer(control, "treated_9")
    alone = data[data.obs["cluster"] == "cluster_1"].copy()
    made = Baseline(alone, condition_key="condition", labels_key="cluster")
    with pytest.raises(ValueError, match="No type other than"):
        made.transfer(alone[alone.obs["condition"] == "control"].copy(), "treated_1")
    odd = ad.AnnData(sp.csr_matrix(data.X) * 0.5, obs=data.obs.copy(), var=data.var.copy())
    with pytest.raises(ValueError, match="count"):
        Baseline(odd, condition_key="condition", labels_key="cluster")


@pytest.mark.parametrize("method", ["partial pooling", "learned pooling"])
def test_pooled_cells_have_the_pooled_mean_and_none_is_below_zero(data, control, method):
    before, after = means(data)
    c, t = (np.stack([x.mean(0) for x in part]) for part in (before, after))
    within = np.stack([x.var(0) for part in (before, after) for x in part]).mean(0)
    inverse_size = sum(np.array([1 / len(x) for x in part]) for part in (before, after))
    x, settings = log(control), {"within": within, "inverse_size": inverse_size}
    pool = {"partial pooling": sa.baselines.partial_pooling, "learned pooling": sa.baselines.learned_pooling}
    change = pool[method](c, t - c, x.mean(0), **settings).mean
    found = predicted(data, control, method).X
    np.testing.assert_allclose(found.mean(0), (x.mean(0) + change).clip(0), atol=1e-3)
    assert found.min() >= 0
    assert ((found == 0) >= (x == 0))[:, change <= 0].all()  # what is scaled leaves zeros as they are


def test_trvae_as_published_is_a_rival(data):
    from scalloy.benchmark.rivals import chosen

    (rival,) = chosen(["TRVAE, as published"]).values()
    assert rival.trained == {"batch_size": 512}
    made = rival.make(data.copy(), "condition", "cluster")
    assert made.init_params_["non_kwargs"]["n_hidden"] == 800
    assert made.init_params_["non_kwargs"]["kernel"] == "trvae"
