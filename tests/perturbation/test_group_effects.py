"""What groups have shown, from moments that are made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scalloy.baselines import LearnedPooling, partial_pooling
from scalloy.perturbation.donors import AT_LEAST, Seen
from scalloy.perturbation.group_effects import BothScales, Shown, combined, trusted, weight
from scalloy.perturbation.group_moments import Moments
from scalloy.perturbation.pseudobulk import Pseudobulk, level

GENES, CELLS = 300, 200
rng = np.random.default_rng(0)
CONTROL = {f"type {k}": rng.gamma(1.0, 1.0, GENES) for k in range(6)}
EFFECT = {"a": rng.normal(0, 1, GENES), "b": rng.normal(0, 1, GENES)}


def moments(*groups, conditions=("a", "b")):
    found = {}
    for group in groups:
        found[group, "control"] = Moments(CONTROL[group], np.full(GENES, 0.5), CELLS)
        for c in conditions:
            found[group, c] = Moments(CONTROL[group] + EFFECT[c], np.full(GENES, 0.5), CELLS)
    return found


def cells_of(group, n=CELLS):
    noise = np.random.default_rng(1).normal(0, 0.7, (n, GENES))
    return CONTROL[group] + noise - noise.mean(0)


@pytest.mark.parametrize("n_others", [1, 3, 5])
def test_a_group_that_was_not_seen_changes_as_others_and_the_decoder_say(n_others):
    others = [f"type {k}" for k in range(1, 1 + n_others)]
    shown = Shown(moments(*others))
    cells = cells_of("type 0")
    for to, effect in EFFECT.items():  # each condition has its own
        shift = shown.shift(effect, cells, "type 0", "control", to)
        assert np.corrcoef(shift.mean, effect)[0, 1] > 0.99
        assert shift.others == others
        assert (shift.sd >= np.sqrt(2 * cells.var(0) / CELLS)).all()
        c = np.stack([CONTROL[g] for g in others])
        d, sizes = (c + effect) - c, np.full(n_others, 2 / CELLS)
        known = LearnedPooling(c, d, np.full(GENES, 0.5), sizes).predict(cells.mean(0))
        own = 3 * effect[::-1]  # a decoder that says something else
        found = shown.shift(own, cells, "type 0", "control", to).mean
        own = own * trusted(own, known.mean)
        kinship = shown.worth(others, "control", to).kinship
        share = weight(own, known.mean, np.square(known.sd).sum(), kinship)
        assert kinship == (0 if n_others == 5 else 1)  # five respond alike; few cannot tell
        np.testing.assert_allclose(found, known.mean + share * (own - known.mean))
        if n_others < 4:
            plain = partial_pooling(c, d, cells.mean(0), within=np.full(GENES, 0.5), inverse_size=sizes)
            np.testing.assert_array_equal(known.mean, plain.mean)
    assert len(shown._learned) == 2  # learned once for each condition


@pytest.mark.parametrize("kinship", [0.0, 0.4, 1.0])
def test_the_weight_of_the_decoder_has_the_smallest_error(kinship):
    """The decoder has the part of the others' error that nobody can know, half of the rest, and its own."""
    rng, n = np.random.default_rng(0), 200_000
    true, unknown, known, more = rng.normal(size=(4, n)) * [[1.0], [0.5], [0.5], [0.4]]
    missed = np.sqrt(1 - kinship) * unknown + np.sqrt(kinship) * known
    pooled, own = true + missed, true + np.sqrt(1 - kinship) * unknown + np.sqrt(kinship) * known / 2 + more
    shares = np.linspace(0, 0.5, 101)
    errors = [np.square(pooled + w * (own - pooled) - true).sum() for w in shares]
    found = weight(own, pooled, np.square(missed).sum(), kinship)
    assert found == pytest.approx(shares[np.argmin(errors)], abs=0.02)


def test_a_group_that_was_seen_changes_as_it_did():
    shown, cells = Shown(moments("type 0", "type 1")), cells_of("type 0")
    shift = shown.shift(0 * EFFECT["a"], cells, "type 0", "control", "a")
    np.testing.assert_allclose(shift.mean, EFFECT["a"])
    assert not shift.far
    np.testing.assert_allclose(shift.sd, np.sqrt(2 * cells.var(0) / CELLS))


def test_where_nothing_was_seen_the_decoder_is_all_there_is():
    shown, cells, own = Shown(moments("type 0", conditions=())), cells_of("type 0"), EFFECT["b"]
    shift = shown.shift(own, cells, "type 0", "control", "a")
    np.testing.assert_array_equal(shift.mean, own)
    assert shift.far
    assert np.isnan(shift.sd).all()
    assert not shown.shift(own, cells, "type 0", "control", "control").far


def test_a_group_unlike_all_others_is_flagged():
    shown = Shown(moments(*CONTROL))
    assert not shown.shift(EFFECT["a"], cells_of("type 0"), "new", "control", "a").far
    assert shown.shift(EFFECT["a"], 10 + cells_of("type 0"), "new", "control", "a").far


def test_moments_are_of_groups_with_enough_cells():
    import scalloy as sa

    adata = sa.datasets.simulate(400, 30, n_clusters=3, n_conditions=2, n_batches=1, seed=0)
    rare = (adata.obs["cluster"] == "cluster_0") & (adata.obs["condition"] == "treated_1")
    drop = np.flatnonzero(rare)[AT_LEAST - 1 :]
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), drop)].copy()
    sa.CGMDVAE.setup_anndata(adata, condition_key="condition", labels_key="cluster")
    model = sa.CGMDVAE(adata, n_hidden=8, n_latent=2)
    model.train(max_epochs=1, enable_progress_bar=False)
    from scalloy.models._core.changes import shown

    seen = shown(model, 1e4)[0]
    scale = seen.scale
    assert scale == max(500, np.median(np.asarray(adata.X.sum(1))))  # whatever the user's scale is
    found = seen.of_groups()
    assert ("cluster_0", "treated_1") not in found
    x = adata[(adata.obs["cluster"] == "cluster_1") & (adata.obs["condition"] == "control")].X.toarray()
    log = np.log1p(scale * x / x.sum(1, keepdims=True))
    one = found["cluster_1", "control"]
    np.testing.assert_allclose(one.bulk.rate, x.sum(0) / x.sum())
    np.testing.assert_allclose(one.mean, log.mean(0), rtol=1e-4)
    np.testing.assert_allclose(one.variance, log.var(0), rtol=1e-3, atol=1e-5)
    assert one.n == len(x)


def test_levels_are_pooled_with_the_noise_of_their_counts():
    """A change of levels that others share is predicted, and fewer counts make it less certain."""
    rng = np.random.default_rng(0)
    n, genes, cells = 6, 60, 80
    rate = rng.dirichlet(np.ones(genes), n + 1)
    effect = np.where(np.arange(genes) < 15, np.log(3.0), 0.0)
    groups, conditions, counts = [], [], []
    for g in range(n):
        for condition, up in (("control", 0.0), ("a", effect)):
            mean = 1000 * rate[g] * np.exp(up) * rng.gamma(4, 1 / 4, (cells, genes))
            counts.append(rng.poisson(mean).astype(float))
            groups += [f"group {g}"] * cells
            conditions += [condition] * cells
    x = np.concatenate(counts)
    pieces = ((np.log1p(v), v) for v in np.array_split(x, 7))
    shown = Seen.of(groups, None, conditions, pieces).by_group("control", "a")
    before, after = rate[-1], rate[-1] * np.exp(effect)
    before, expected = level(before), level(after / after.sum()) - level(before)
    mean, sd = shown.level_change(np.zeros(genes), before, "new", "control", "a")
    assert np.square(mean - expected).sum() < 0.15 * np.square(expected).sum()
    assert (np.abs(mean - expected) < 1.64 * sd + 0.02).mean() > 0.7
    assert shown.level_change(np.zeros(genes), before, "new", "control", "b") is None
    assert shown.level_change(np.zeros(genes), before, "new", "a", "a") is None
    now, uncertain = shown.seen_rates("group 0", "control", "a", rate[0])
    some = shown.moments["group 0", "control"].bulk.counts > 200
    change = effect - np.log(rate[0] @ np.exp(effect))
    np.testing.assert_allclose(np.log(now / rate[0])[some], change[some], atol=0.5)
    assert np.corrcoef(uncertain, rate[0])[0, 1] < 0  # more counts, less noise


def test_two_predictions_are_weighted_by_their_precision():
    one, two = np.array([1.0, 1.0, 0.0]), np.array([-1.0, 3.0, 0.0])
    change, sd = combined(one, two, np.array([1e-9, 1.0, 0.0]), np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(change, [1.0, 2.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(sd, [0.0, 1.0, 0.0], atol=1e-6)


def test_without_precision_the_share_is_the_weight():
    one, two = np.array([1.0, 1.0, 0.0]), np.array([-1.0, 3.0, 4.0])
    sds = np.array([1e-9, 1.0, 0.0]), np.array([1.0, 5.0, 0.0])
    for share in (0.0, 0.3, 1.0):
        change, sd = combined(one, two, *sds, share, by_precision=False)
        np.testing.assert_allclose(change, (1 - share) * one + share * two)
        np.testing.assert_allclose(sd, (1 - share) * sds[0] + share * sds[1])


def test_shifts_and_changes_of_levels_are_converted_there_and_back():
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(1, 1, 40) * rng.gamma(2, 0.5, (500, 1)))
    x[:, 0] += 1
    x[:, 39] = 0
    ell = x.sum(1, keepdims=True)
    log = np.log1p(1e4 * x / ell)
    bulk = Pseudobulk(x.sum(0).astype(float), float(ell.sum()), float(np.square(ell).sum()))
    control, genes = Moments(log.mean(0), log.var(0), len(x), bulk), np.r_[3:30, 39]
    scales = BothScales.of(control, genes, 1e4)
    assert not scales.levels(np.zeros(len(genes)))[0].any()
    assert np.abs(scales.shift(np.zeros(len(genes)))).max() < 1e-9
    shift = rng.normal(0, 0.3, len(genes)).clip(-0.5 * scales.mean, None)
    change, slope = scales.levels(shift)
    np.testing.assert_allclose(scales.shift(change), shift, atol=1e-9)
    assert (np.sign(change) == np.sign(shift)).all()
    small = 1e-6
    np.testing.assert_allclose(slope, (scales.levels(shift + small)[0] - change) / small, rtol=1e-3)
    gone, _ = scales.levels(np.full(len(genes), -100.0))  # no rate is below zero
    np.testing.assert_allclose(gone, -level(bulk.rate[genes]))
