"""Metrics of predictions: against double loops, scipy, scikit-learn and what is known of samples."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, pearsonr, ttest_ind
from sklearn.metrics import r2_score

from scalloy import metrics


def cells(n, shift=0.0, seed=0, d=6):
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_energy_distance_is_the_double_loop(squared, unbiased):
    x, y = cells(7), cells(5, 0.5, 1)

    def d(a, b):
        return np.square(a - b).sum() if squared else np.linalg.norm(a - b)

    xx = [d(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if not unbiased or i != j]
    yy = [d(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if not unbiased or i != j]
    expected = 2 * np.mean([d(a, b) for a in x for b in y]) - np.mean(xx) - np.mean(yy)
    found = metrics.energy_distance(x, y, squared=squared, unbiased=unbiased)
    assert found == pytest.approx(expected, rel=1e-10)


def test_distances_of_the_same_distribution_are_zero_on_average():
    pairs = [(cells(30, seed=i), cells(40, seed=1000 + i)) for i in range(200)]
    for metric in (metrics.energy_distance, metrics.mmd):
        found = np.array([metric(*p) for p in pairs])
        assert abs(found.mean()) < 3.5 * found.std() / np.sqrt(len(found))
        assert metric(cells(30), cells(40, 1.0, 1)) > 5 * found.std()


def test_squared_energy_distance_is_twice_the_distance_of_means():
    x, y = cells(4000), cells(4000, 0.5, 1)
    assert metrics.energy_distance(x, y) == pytest.approx(2 * 6 * 0.25, abs=0.2)


def test_wilcoxon_is_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.poisson(1.0, (40, 8)).astype(float), rng.poisson(1.5, (60, 8)).astype(float)
    p = mannwhitneyu(x, y, axis=0, method="asymptotic", use_continuity=False).pvalue
    from scipy.stats import norm

    np.testing.assert_allclose(2 * norm.sf(np.abs(metrics.wilcoxon(x, y))), p, rtol=1e-8)
    assert metrics.wilcoxon(y + 5, x).min() > 0


def test_changed_genes_are_found_or_not():
    rng = np.random.default_rng(0)
    control, shift = rng.normal(size=(200, 60)), np.r_[np.full(10, 1.5), np.zeros(50)]
    truth, same, other = (rng.normal(size=(200, 60)) + s for s in (shift, shift, shift[::-1]))
    assert metrics.de_overlap(same, truth, control, k=10) == 1
    assert metrics.de_overlap(other, truth, control, k=10) == 0
    falls, again = (rng.normal(size=(200, 60)) - shift for _ in range(2))
    assert metrics.de_overlap(again, falls, control, k=10) == 1  # in either direction
    assert metrics.de_overlap(again, truth, control, k=10) == 1
    strict = {"fdr": 1e-6}  # so that no gene changes by chance
    assert metrics.de_auprc(same, truth, control, **strict) == pytest.approx(1)
    assert metrics.de_auprc(other, truth, control, **strict) < 0.3
    assert np.isnan(metrics.de_auprc(same, control, control))


def test_means_and_variances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 30)) * rng.gamma(2, size=30), rng.normal(size=(60, 30))
    assert metrics.r2_variance(x, y) == pytest.approx(pearsonr(x.var(0), y.var(0)).statistic ** 2)
    a, b = x.mean(0), y.mean(0)
    assert metrics.r2_determination(a, b) == pytest.approx(
        1 - np.square(a - b).sum() / np.square(b - b.mean()).sum()
    )
    assert metrics.r2_mean(2 * a + 1, a) == pytest.approx(1)
    assert metrics.r2_determination(2 * a + 1, a) < 0


def test_ceilings_are_what_the_noise_free_change_reaches():
    """In simulation the true means are known: they score what the ceiling says, halves do worse."""
    rng, found = np.random.default_rng(0), []
    for seed in range(20):
        mean, shift = rng.normal(size=300), rng.normal(0, 0.25, 300)
        control, truth = mean + rng.normal(size=(120, 300)), mean + shift + rng.normal(size=(120, 300))
        top = metrics.ceilings(truth, control, seed=seed)
        t, c = truth.mean(0), control.mean(0)
        reached = metrics.skill(mean + shift, t, c), np.corrcoef(shift, t - c)[0, 1]
        found.append((top["skill"] - reached[0], top["pearson_delta"] - reached[1]))
    assert np.abs(np.mean(found, 0)).max() < 0.02
    assert metrics.spearman_brown(0.5) == pytest.approx(2 / 3)


def test_all_genes_are_found_if_there_are_fewer_than_asked_for():
    x = np.arange(5.0) + np.random.default_rng(0).normal(size=(20, 5))
    assert metrics.de_overlap(x, x, np.zeros((20, 5))) == 1.0


def test_halves_that_disagree_have_no_reliability():
    """Each half shows a change of one gene: they correlate at -1, which the formula cannot divide by."""
    assert metrics.spearman_brown(-1.0) == -np.inf
    assert metrics.spearman_brown(1.0) == 1.0
    rng = np.random.default_rng(0)
    for seed in range(20):
        truth = np.eye(2)[rng.permutation([0, 1, 0, 1])]
        assert metrics.ceilings(truth, np.zeros((4, 2)), seed=seed)["pearson_delta"] >= 0


def test_values_that_mean_nothing_are_refused():
    one = np.ones(3)
    with pytest.raises(ValueError, match="`sd` goes down to -1"):
        metrics.coverage(one, one, -one)
    with pytest.raises(ValueError, match=r"`level=1\.5`"):
        metrics.coverage(one, one, one, level=1.5)
    with pytest.raises(ValueError, match="`confidence` holds probabilities, but goes from -3 to 5"):
        metrics.expected_calibration_error(np.array([1, 0]), np.array([5.0, -3.0]))
    with pytest.raises(ValueError, match="`sd` is the unit of the errors, but goes down to 0"):
        metrics.rmse_z(np.ones((2, 3)), np.ones((2, 3)), np.array([1.0, 0.0, 1.0]))
    assert np.isnan(metrics.skill(one, one, one))


def test_welch_is_scipys():
    x, y = cells(40), cells(25, seed=1) * 2 + np.array([3.0, 0.5, 0, 0, 0, -1])
    np.testing.assert_allclose(metrics.welch(x, y), ttest_ind(x, y, equal_var=False).statistic)
    assert metrics.welch(np.array([[1.0, 2.0]] * 3), np.array([[1.0, 5.0]] * 3)).tolist() == [0, 0]
    single = metrics.welch(np.array([[4.0]]), np.array([[0.0], [2.0]]))  # mean 1, squared standard error 1
    np.testing.assert_allclose(single, 3.0)


def test_weighted_r2_is_scikit_learns_with_weights_by_welch():
    control, truth = cells(40), cells(25, seed=1) * 2 + np.array([3.0, 0.5, 0, 0, 0, -1])
    predicted = control + np.array([2.0, 0.5, 0.1, 0, 0, -1])
    size = np.abs(ttest_ind(truth, control, equal_var=False).statistic)
    weight = np.square((size - size.min()) / (size.max() - size.min()))
    change = truth.mean(0) - control.mean(0), predicted.mean(0) - control.mean(0)
    expected = r2_score(*change, sample_weight=weight)
    assert metrics.weighted_r2(predicted, truth, control) == pytest.approx(expected)
    assert metrics.weighted_r2(truth, truth, control) == 1
    assert metrics.weighted_r2(control, truth, control) <= 0
    assert np.isnan(metrics.weighted_r2(control, control, control))
    # errors in genes that do not change hardly count
    off = np.where(np.arange(6) == weight.argmin(), 5.0, 0.0)
    assert metrics.weighted_r2(truth + off, truth, control) > 0.99
