"""Effects of conditions by Gaussian processes, against normal distributions and planted truth."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import approx_fprime

from scalloy.perturbation import condition_effects
from scalloy.perturbation.condition_effects import ConditionEffects, Observed, sizes, unlikelihood
from scalloy.perturbation.condition_kernel import Kernel
from scalloy.perturbation.design import Content, design_of

GENES = 60


def observed(contexts, truth, noise=0.05, shared=0.05, seed=0):
    """Changes with noise of their own, and noise of the controls, which all contexts of a group share."""
    rng = np.random.default_rng(seed)
    groups = np.array([group for group, _ in contexts])
    control = np.unique(groups, return_inverse=True)[1]
    of_control = rng.normal(0, np.sqrt(shared), (control.max() + 1, truth.shape[1]))
    change = truth + rng.normal(0, np.sqrt(noise), truth.shape) - of_control[control]
    return Observed(
        list(contexts),
        change,
        np.full(truth.shape, noise),
        np.full(truth.shape, shared),
        control,
        np.linspace(0, 1, truth.shape[1]),
    )


@pytest.fixture(scope="module")
def screen():
    """Two groups, three parts at two doses each, and a combination in one of the groups."""
    rng = np.random.default_rng(3)
    contents = [Content.of({p: dose}) for p in "ABC" for dose in (1.0, 10.0)]
    contexts = [(g, c) for g in ("T", "B") for c in contents] + [("T", Content.of({"A": 10.0, "B": 10.0}))]
    design = design_of([Content(), *contents, contexts[-1][1]], dosed=True)
    strength = design.strengths([c for _, c in contexts])
    truth = strength @ rng.normal(size=(3, GENES))
    seen = observed(contexts, truth)
    seen.noise[:] = rng.uniform(0.01, 0.2, truth.shape)  # each gene and context has its own
    seen.shared[:] = rng.uniform(0.01, 0.2, (2, GENES))[seen.control]
    return ConditionEffects(seen, design)


# against the normal distribution ------------------------------------------------------------------


def joint(effects, gene, ends):
    """Covariance of the effects at ends and of the changes that were seen, one entry at a time."""
    seen, kernel = effects.seen, effects.kernel
    every = [*ends, *seen.contexts]
    out = np.zeros((len(every), len(every)))
    for i, one in enumerate(every):
        for j, other in enumerate(every):
            parts = kernel.of([one], [other])[:, 0, 0]
            out[i, j] = effects.size[gene] * (effects.weights * parts).sum()
            a, b = i - len(ends), j - len(ends)
            if a >= 0 and b >= 0:
                if a == b:
                    out[i, j] += seen.noise[a, gene]
                if seen.contexts[a][0] == seen.contexts[b][0]:  # the same control cells
                    out[i, j] += np.sqrt(seen.shared[a, gene] * seen.shared[b, gene])
    return out


@pytest.mark.parametrize(
    ("group", "to"),
    [
        ("T", Content.of({"A": 3.0})),
        ("B", Content.of({"A": 10.0, "B": 10.0})),
        ("NK", Content.of({"C": 1.0})),
    ],
)
def test_predictions_are_conditional_normal_distributions(screen, group, to):
    found = screen.predict(group, to)
    np.testing.assert_array_equal(found.rows, np.arange(len(screen.seen.contexts)))
    for gene in (0, 7, GENES - 1):
        whole = joint(screen, gene, [(group, to)])
        within, between = whole[1:, 1:], whole[0, 1:]
        y = screen.seen.change[:, gene]
        assert found.mean[gene] == pytest.approx(between @ np.linalg.inv(within) @ y)
        variance = whole[0, 0] - between @ np.linalg.inv(within) @ between
        assert found.sd[gene] == pytest.approx(np.sqrt(variance))
        np.testing.assert_allclose(found.weight[gene], np.linalg.inv(within) @ between, atol=1e-8)


def test_a_change_between_two_conditions_is_the_difference_of_their_effects(screen):
    one, other = Content.of({"A": 10.0}), Content.of({"B": 1.0})
    found = screen.predict("T", one, other)
    to_one, to_other = screen.predict("T", one), screen.predict("T", other)
    np.testing.assert_allclose(found.mean, to_one.mean - to_other.mean)
    whole = joint(screen, 5, [("T", one), ("T", other)])
    d = np.array([1.0, -1.0])
    within, between = whole[2:, 2:], d @ whole[:2, 2:]
    variance = d @ whole[:2, :2] @ d - between @ np.linalg.inv(within) @ between
    assert found.sd[5] == pytest.approx(np.sqrt(variance))
    same = screen.predict("T", one, one)
    np.testing.assert_allclose(same.mean, 0, atol=1e-10)
    np.testing.assert_allclose(same.sd, 0, atol=1e-6)


def test_what_is_left_out_has_no_weight(screen):
    hidden = screen.seen.contexts[2]
    found = screen.predict("T", Content.of({"B": 1.0}), without=[hidden], genes=np.array([3, 8]))
    assert 2 not in found.rows
    assert found.mean.shape == found.sd.shape == (2,)
    keep = np.array([i for i in range(len(screen.seen.contexts)) if i != 2])
    whole = joint(screen, 8, [("T", Content.of({"B": 1.0}))])
    within, between = whole[1:, 1:][np.ix_(keep, keep)], whole[0, 1:][keep]
    assert found.mean[1] == pytest.approx(between @ np.linalg.inv(within) @ screen.seen.change[keep, 8])
    nothing = screen.predict("T", Content.of({"B": 1.0}), without=screen.seen.contexts)
    assert not nothing.mean.any()
    prior = screen.covariance([("T", Content.of({"B": 1.0}))], [("T", Content.of({"B": 1.0}))])[0, 0]
    np.testing.assert_allclose(nothing.sd, np.sqrt(screen.size * prior))


def test_the_control_does_not_change(screen):
    found = screen.predict("T", Content())
    assert not found.mean.any()
    assert not found.sd.any()


def test_many_contexts_are_cut_to_the_most_telling(screen, monkeypatch):
    to = Content.of({"A": 3.0})
    monkeypatch.setattr(condition_effects, "CONTEXTS", 5)
    monkeypatch.setattr(condition_effects, "CHUNK", 7)
    found = screen.predict("T", to)
    between = np.abs(screen.covariance([("T", to)], screen.seen.contexts)[0])
    assert set(found.rows) == set(np.argsort(-between, kind="stable")[:5])
    within = screen.seen.of(found.rows)
    np.testing.assert_allclose(found.mean, (found.weight * within.change.T).sum(1))


def test_the_noise_of_an_error_is_that_of_draws(screen):
    """What noise adds to (observed - predicted)^2, beside the error of the prediction itself."""
    rng, gene, left = np.random.default_rng(0), 4, 1
    found = screen.predict(*screen.seen.contexts[left], without=[screen.seen.contexts[left]])
    seen, n = screen.seen, 400_000
    own = rng.normal(size=(n, len(seen.contexts))) * np.sqrt(seen.noise[:, gene])
    control = rng.normal(size=(n, 2))[:, seen.control] * np.sqrt(seen.shared[:, gene])
    noise = own - control
    predicted = noise[:, found.rows] @ found.weight[gene]
    added = np.square(noise[:, left] - predicted).mean() - np.square(predicted).mean()
    assert screen.noise_of_error(found, left)[gene] == pytest.approx(added, abs=0.003)
    some = np.array([gene, 9])
    np.testing.assert_array_equal(
        screen.noise_of_error(
            screen.predict(*seen.contexts[left], without=[seen.contexts[left]], genes=some), left, some
        ),
        screen.noise_of_error(found, left)[some],
    )


# the marginal likelihood --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def likelihood(screen):
    genes = np.arange(0, GENES, 9)
    parts = screen.kernel.of(screen.seen.contexts, screen.seen.contexts)
    return parts, screen.seen.covariance(genes), screen.seen.change[:, genes].T, screen.size[genes]


def test_the_likelihood_is_that_of_the_normal_distribution(likelihood):
    parts, noise, y, size = likelihood
    weights = np.linspace(0.05, 1.5, len(parts))
    expected = [
        -stats.multivariate_normal.logpdf(one, cov=s * np.tensordot(weights, parts, 1) + of_gene)
        for one, of_gene, s in zip(y, noise, size, strict=True)
    ]
    found = unlikelihood(np.log(weights), *likelihood)[0]
    assert found + 0.5 * y.shape[1] * np.log(2 * np.pi) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_finite_differences(likelihood, seed):
    at = np.random.default_rng(seed).normal(-1, 1, len(likelihood[0]))
    numeric = approx_fprime(at, lambda w: unlikelihood(w, *likelihood)[0], 1e-6)
    np.testing.assert_allclose(unlikelihood(at, *likelihood)[1], numeric, atol=1e-5)


def test_the_weights_that_are_found_are_better_than_equal_ones(screen, likelihood):
    equal = np.full(len(screen.weights), 1 / len(screen.weights))
    found, start = (unlikelihood(np.log(w), *likelihood)[0] for w in (screen.weights, equal))
    assert found < start


def test_noise_is_shared_by_contexts_of_one_control(screen):
    seen = screen.seen
    covariance = seen.covariance(np.array([2]))[0]
    for i, j in combinations(range(len(seen.contexts)), 2):
        same = seen.control[i] == seen.control[j]
        assert covariance[i, j] == pytest.approx(
            np.sqrt(seen.shared[i, 2] * seen.shared[j, 2]) if same else 0
        )
    np.testing.assert_allclose(np.diag(covariance), seen.variance[:, 2])


# planted truth ------------------------------------------------------------------------------------


def planted(contents, effect, *, groups=("T", "B"), hide=(), described=None, noise=0.02, seed=0, **more):
    """A process fitted to all groups and contents but the hidden ones, and the truth of any condition."""
    contexts = [(g, c) for g in groups for c in contents if (g, c) not in hide and c not in hide]
    design = design_of([Content(), *(c for _, c in contexts)], described=described)
    truth = np.stack([effect(c) for _, c in contexts])
    return ConditionEffects(observed(contexts, truth, noise, noise, seed, **more), design)


def explained(predicted, truth):
    return 1 - np.square(predicted - truth).sum() / np.square(truth).sum()


@pytest.fixture(scope="module")
def of_parts():
    return dict(zip("ABCDEF", np.random.default_rng(1).normal(size=(6, GENES)), strict=True))


SINGLES = [Content.of({p: 1.0}) for p in "ABCDEF"]
PAIRS = [Content.of({p: 1.0, q: 1.0}) for p, q in combinations("ABCDEF", 2)]


def test_effects_that_add_up_are_found(of_parts):
    add = lambda c: sum(of_parts[p] for p, _ in c.parts)  # noqa: E731
    hidden = PAIRS[0]
    effects = planted([*SINGLES, *PAIRS[:8]], add, hide=[hidden])
    assert effects.kernel.dilution == 0
    found = effects.predict("T", hidden)
    assert explained(found.mean, add(hidden)) > 0.9
    inside = np.abs(found.mean - add(hidden)) < 1.64 * found.sd
    assert 0.7 < inside.mean() <= 1


def test_effects_that_are_less_together_are_found_by_dilution(of_parts):
    add = lambda c: sum(of_parts[p] for p, _ in c.parts) / np.sqrt(len(c.parts))  # noqa: E731
    hidden = PAIRS[0]
    effects = planted([*SINGLES, *PAIRS[:8]], add, hide=[hidden])
    assert effects.kernel.dilution >= 0.3
    assert explained(effects.predict("T", hidden).mean, add(hidden)) > 0.9


def test_an_interaction_that_was_seen_elsewhere_is_used(of_parts):
    rng = np.random.default_rng(5)
    own = {pair: rng.normal(size=GENES) for pair in PAIRS}
    effect = lambda c: sum(of_parts[p] for p, _ in c.parts) + own.get(c, 0)  # noqa: E731
    target = PAIRS[0]
    seen = planted([*SINGLES, *PAIRS[:6]], effect, hide=[("T", target)])  # in the other group it was seen
    never = planted([*SINGLES, *PAIRS[:6]], effect, hide=[target])
    by_both, by_sum = (explained(e.predict("T", target).mean, effect(target)) for e in (seen, never))
    assert by_both > 0.85
    assert by_both > by_sum + 0.15


def test_a_part_that_was_never_seen_has_what_is_common_and_with_descriptors_more():
    rng = np.random.default_rng(2)
    names = [f"p{i}" for i in range(16)]
    about = {name: rng.normal(size=2) / 1.4 for name in names}
    common, slopes = rng.normal(size=GENES), rng.normal(size=(2, GENES))
    effect = lambda c: sum(common + 1.2 * about[p] @ slopes for p, _ in c.parts)  # noqa: E731
    contents = [Content.of({name: 1.0}) for name in names]
    worth = []
    for new in contents:
        plain = planted(contents, effect, hide=[new], groups=("T",))
        unknown = design_of([Content(), *contents])  # the same process, which now knows of all parts
        plain.kernel = Kernel(unknown, np.ones(len(names)), 0.0)
        alike = plain.predict("T", new).mean
        assert np.corrcoef(alike, common)[0, 1] > 0.7
        told = planted(contents, effect, hide=[new], groups=("T",), described=about)
        worth.append([explained(f, effect(new)) for f in (told.predict("T", new).mean, alike)])
    by_description, by_common = np.median(worth, axis=0)
    assert by_description > by_common + 0.1


def test_a_new_group_has_what_groups_have_in_common(of_parts):
    effect = lambda c: sum(of_parts[p] for p, _ in c.parts)  # noqa: E731
    effects = planted(SINGLES, effect, groups=("T", "B", "NK"))
    found = effects.predict("Mono", SINGLES[2])
    assert explained(found.mean, of_parts["C"]) > 0.9


def test_sizes_of_genes_and_parts_are_found_without_the_noise():
    rng, n = np.random.default_rng(0), 300
    parts = list("abcdefghijkl")
    scale = np.repeat([0.5, 2.0], 6)
    of_gene = np.repeat([0.2, 1.0, 3.0], n // 3)
    contents = [Content.of({p: 1.0}) for p in parts]
    truth = scale[:, None] * of_gene * rng.normal(size=(12, n))
    seen = observed([(g, c) for g in "TBK" for c in contents], np.tile(truth, (3, 1)), noise=0.5, shared=0.2)
    seen.abundance = of_gene
    size, found = sizes(seen, design_of([Content(), *contents]))
    by_gene = [np.median(size[of_gene == k]) for k in (0.2, 1.0, 3.0)]
    expected = np.mean(scale**2) * np.array([0.2, 1.0, 3.0]) ** 2
    np.testing.assert_allclose(by_gene[1:], expected[1:], rtol=0.3)
    assert by_gene[0] < 2 * expected[0] + 0.1
    assert found[6:].mean() / found[:6].mean() == pytest.approx(4, rel=0.3)


def test_parts_that_were_never_seen_have_a_typical_size(of_parts):
    about = {p: [float(i)] for i, p in enumerate("ABCDEFG")}
    seen = observed([("T", c) for c in SINGLES], np.stack([of_parts[p] for p in "ABCDEF"]))
    _, found = sizes(seen, design_of([Content(), *SINGLES], described=about))
    assert found[6] == pytest.approx(1)
    assert (found[:6] > 0.3).all()


def test_where_nothing_changes_nothing_is_predicted():
    quiet = observed([(g, c) for g in "TB" for c in SINGLES], np.zeros((12, GENES)), 0.1, 0.1)
    effects = ConditionEffects(quiet, design_of([Content(), *SINGLES]))
    found = effects.predict("T", Content.of({"A": 1.0, "B": 1.0}))
    assert np.isfinite(found.mean).all()
    assert np.abs(found.mean).mean() < 0.5 * np.abs(quiet.change).mean()
    one = ConditionEffects(quiet.of(np.array([0])), design_of([Content(), SINGLES[0]]))
    assert np.isfinite(one.predict("T", SINGLES[0]).sd).all()


def test_sizes_of_genes_are_posterior_means_with_the_shares_that_fit_all_genes():
    rng = np.random.default_rng(5)
    contexts = [("T", Content.of({f"P{i}": 1.0})) for i in range(5)]
    truth = rng.normal(size=(5, 40)) * (np.arange(40) % 2)
    seen = observed(contexts, truth, noise=0.3, shared=0.1, seed=2)
    design = design_of([Content(), *(c for _, c in contexts)])
    effects = ConditionEffects(seen, design)
    before, _ = sizes(seen, design)
    noise = seen.variance.mean(0)
    top = 4 * max(before.max(), np.median(noise))
    steps = np.geomspace(1e-3 * np.median(noise), top, condition_effects.N_SIZES)
    grid, within = np.array([0.0, *steps]), effects.covariance(contexts, contexts)
    of_noise = np.full((5, 5), 0.1) + 0.3 * np.eye(5)
    likelihood = np.array(
        [[stats.multivariate_normal.pdf(y, cov=s * within + of_noise) for s in grid] for y in seen.change.T]
    )
    share = np.full(len(grid), 1 / len(grid))
    for _ in range(condition_effects.ROUNDS):
        each = likelihood * share / (likelihood @ share)[:, None]
        share = (each.sum(0) + 1) / (40 + len(grid))
    np.testing.assert_allclose(effects.size, each @ grid, rtol=1e-3)
    assert effects.size[1::2].mean() > 4 * effects.size[::2].mean()
