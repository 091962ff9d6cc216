"""Votes on clusters and the tree that they make, against scipy, naive loops and groups that are known."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from scipy.stats import norm
from sklearn.metrics import adjusted_rand_score

from scalloy.blocks import cluster_tree as tree
from scalloy.blocks import cluster_votes
from scalloy.blocks.cluster_votes import Votes, one_hot


def blobs(sizes=(90, 60, 40), distance=8.0, seed=0, d=4):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    return distance * rng.normal(size=(len(sizes), d))[y] + rng.normal(size=(len(y), d)), y


@pytest.mark.parametrize("seed", range(4))
def test_with_one_distance_at_all_levels_it_is_average_linkage(seed):
    rng = np.random.default_rng(seed)
    apart = squareform(rng.random(45))
    merges = tree.grow(np.ones(10), lambda _: apart)
    theirs = linkage(squareform(apart), "average")
    np.testing.assert_allclose(merges.apart, theirs[:, 2])
    for n in range(1, 11):
        assert adjusted_rand_score(cut_tree(theirs, n)[:, 0], tree.cut(merges.pairs, n)) == 1.0


def test_distances_of_each_level_decide_what_is_joined_there():
    near = {2: (0, 1), 1: (0, 2)}  # at two clusters components 0 and 1 belong together

    def apart(k):
        out = 1 - np.eye(3)
        i, j = near.get(k, (0, 1))
        out[i, j] = out[j, i] = 0.1 * k
        return out

    merges = tree.grow(np.array([5.0, 1.0, 9.0]), apart)
    assert merges.pairs.tolist() == [[0, 1], [2, 3]]  # the larger node first
    assert merges.apart[0] == apart(3)[0, 1]
    np.testing.assert_allclose(merges.apart[1], (5 * apart(2)[0, 2] + apart(2)[1, 2]) / 6)


def test_components_of_a_cluster_are_joined_before_clusters_are():
    apart = np.ones((4, 4)) - np.eye(4)
    apart[0, 2] = apart[2, 0] = 0.01
    merges = tree.grow(np.ones(4), lambda _: apart, np.array([0, 0, 1, 1]))
    found = tree.cut(merges.pairs, 2)
    assert adjusted_rand_score([0, 0, 1, 1], found) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_cuts_are_nested_and_clusters_keep_their_numbers(seed):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 50, 12).astype(float)
    pairs = tree.grow(size, lambda _: squareform(np.random.default_rng(seed).random(66))).pairs
    before = tree.cut(pairs, 1)
    assert (before == 0).all()
    for n in range(2, 13):
        after = tree.cut(pairs, n)
        changed = after != before
        assert (after[changed] == n - 1).all()  # only the new cluster has another number
        (of,) = np.unique(before[changed])
        assert size[after == of].sum() >= size[changed].sum()
        before = after
    assert sorted(before) == list(range(12))


def test_the_index_of_two_divisions_is_scikit_learns():
    rng = np.random.default_rng(0)
    for k in (1, 2, 5, 40):
        a, b = rng.integers(0, 3, 40), np.unique(rng.integers(0, k, 40), return_inverse=True)[1]
        assert tree.rand_index(a, b) == pytest.approx(adjusted_rand_score(a, b))
    assert tree.rand_index(a * 0, a * 0) == 1.0


def test_the_number_of_clusters_is_the_largest_with_nearly_the_best_agreement():
    agreement, apart = np.array([1, 1, 0.5, 0.9, 0.8, 0.6, 0.73]), np.array([1, 1, 1, 1, 0.6])
    gain = np.ones(5)
    assert tree.best_number(agreement, apart, gain) == 6
    gain[4] = 0.05  # it is no division
    assert tree.best_number(agreement, apart, gain) == 4
    gain[4], agreement[6] = 1.0, 0.71
    assert tree.best_number(agreement, apart, gain) == 4
    apart[2] = 0.4  # most methods do not put the fourth cluster apart
    assert tree.best_number(agreement, apart, gain) == 3
    assert tree.best_number(np.array([1.0, 1.0]), np.empty(0), np.empty(0)) == 1


def test_all_methods_find_groups_that_are_far_apart_and_agree():
    points, y = blobs()
    votes = Votes([points, points[:, :3]], 8, seed=1)
    for method in votes.at(3):
        assert len(method) == cluster_votes.GROUPINGS * 2
        for labels in method:
            assert adjusted_rand_score(y, labels) == 1.0
    assert tree.agreement(votes, 3) == 1.0 > tree.agreement(votes, 6)
    assert adjusted_rand_score(y, tree.divide(votes, 3)) == 1.0
    assert np.bincount(tree.divide(votes, 3)).tolist() == [90, 60, 40]  # the largest first
    agreement = np.array([tree.agreement(votes, k) if k > 1 else 1.0 for k in range(9)])
    assert agreement.argmax() in (0, 1, 3)


def test_cells_are_apart_by_the_share_of_the_votes():
    points, _ = blobs()
    components = {k: np.arange(len(points)) % k for k in range(1, 9)}
    votes = Votes([points], 8, components, seed=0)
    rng = np.random.default_rng(0)
    held = rng.dirichlet(np.ones(3), len(points))
    methods = votes.at(4)
    assert len(methods) == 4
    assert (methods[3][0] == components[4]).all()
    naive = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            weight = np.outer(held[:, a], held[:, b])
            each = [
                np.mean([(weight * (v[:, None] != v)).sum() / weight.sum() for v in method])
                for method in methods
            ]
            naive[a, b] = np.mean(each)
    np.testing.assert_allclose(votes.apart(held, 4), naive)


def test_the_same_seed_gives_the_same_votes_and_other_draws_stay_as_they_were():
    points, _ = blobs(distance=1.0)
    random.seed(3)
    expected = random.random()
    random.seed(3)
    one = Votes([points], 6, seed=5)
    assert random.random() == expected
    other = Votes([points], 6, seed=5)
    for a, b in zip(one.at(5), other.at(5), strict=True):
        assert all((v == w).all() for v, w in zip(a, b, strict=True))


def test_neighbours_join_what_touches_most_relative_to_the_smaller_one():
    shared = np.array([[0, 9.0, 4], [9, 0, 0], [4, 0, 0]])
    steps = dict(cluster_votes.joined(shared, np.array([100.0, 50, 10])))
    assert steps[2].tolist() == [0, 1, 0]  # 4 / 10 is more than 9 / 50
    assert steps[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("n", [2, 5, 12])
def test_few_cells_and_equal_cells_do_no_harm(n):
    points = np.repeat(np.random.default_rng(0).normal(size=(n, 3)), 2, axis=0)
    votes = Votes([points], 25)
    assert len(np.unique(tree.divide(votes, 2))) == 2


def test_what_is_mistaken_is_the_overlap_of_two_nodes():
    r = np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0.2, 0.8]])
    out = tree.mistaken(r, np.array([[0, 1], [3, 2]]))
    np.testing.assert_allclose(out, [0.5 / 0.7, 0.2 / 0.8])


def test_the_gain_is_that_of_two_gaussians_on_cells_that_were_not_fitted():
    rng = np.random.default_rng(0)
    z, leaf = rng.normal(size=(4000, 3)), np.repeat([0, 1], 2000)
    pairs = np.array([[0, 1]])
    assert abs(tree.gain(z, leaf, pairs)[0]) < 0.01  # one cloud, divided at random
    assert -0.1 < tree.gain(z, (z[:, 0] > 0).astype(int), pairs)[0] < 0.01  # and by where cells are
    z[leaf == 1, 0] += 4
    x = z[:, 0]
    log_two = np.logaddexp(norm.logpdf(x, 0, 1), norm.logpdf(x, 4, 1)) + np.log(0.5)
    truth = np.mean(log_two - norm.logpdf(x, 2, np.sqrt(5)))
    assert tree.gain(z, leaf, pairs)[0] == pytest.approx(truth, abs=0.02)
    scales = [1e-4, 30.0, 1.0]  # latents that are hardly used, or much
    assert tree.gain(z * scales, leaf, pairs)[0] == pytest.approx(truth, abs=0.05)
    assert tree.gain(z[:3], leaf[:3], pairs)[0] == 0.0


def test_one_hot():
    assert one_hot(np.array([0, 2, 1])).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
