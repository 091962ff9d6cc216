"""Placing and merging of components, against brute force and known groups."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from scalloy.blocks import consensus_clustering as module
from scalloy.blocks.cluster_tree import cut
from scalloy.blocks.consensus_clustering import disjoint, merged, partition, tree_of, within
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.mixtures import Components, Dirichlet


def groups(sizes, distance=8.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = distance * rng.normal(size=(len(sizes), 4))
    y = np.repeat(np.arange(len(sizes)), sizes)
    return centres[y] + rng.normal(size=(len(y), 4)), y


def entropy(r):
    return -(r * np.log(np.maximum(r, 1e-30))).sum()


@pytest.mark.parametrize("seed", range(5))
def test_each_merge_is_the_best_of_all_pairs(seed):
    r = np.random.default_rng(seed).dirichlet(np.array([2, 1, 1, 0.3, 0.1, 0.05]), 200)
    given, groups = r.copy(), [{k} for k in range(6)]

    def column(group):
        return r[:, sorted(group)].sum(1)

    def gain(pair):
        a, b = pair
        apart = np.column_stack([column(a), column(b)])
        return (entropy(apart) - entropy(column(a | b))) / apart.sum(0).min()

    while len(groups) > 2:
        one, other = max(combinations(groups, 2), key=gain)
        groups = [group for group in groups if group not in (one, other)] + [one | other]
        cluster_of = merged(r)[len(groups)]
        found = [set(np.flatnonzero(cluster_of == k)) for k in range(len(groups))]
        assert set(map(frozenset, found)) == set(map(frozenset, groups))
    assert (r == given).all()


def test_merging_joins_pieces_of_a_group():
    sure = np.eye(3)[np.repeat([0, 1, 2], [50, 80, 30])]
    r = np.column_stack([sure[:, 0], sure[:, 1] * 0.5, sure[:, 1] * 0.5, sure[:, 2]])
    assert merged(r)[3].tolist() == [0, 1, 1, 2]
    assert sorted(merged(r)) == [1, 2, 3, 4]
    assert disjoint(r).tolist() == [0, 1, 1, 2]  # none of the rest share cells


@pytest.mark.parametrize("little", [0, 1e-6])
def test_components_without_a_cell_keep_no_cluster(little):
    t = np.random.default_rng(0).beta(0.7, 0.7, 400)
    r = np.zeros((800, 5))
    r[:400, 0], r[:400, 1], r[400:600, 2], r[600:, 3] = t, 1 - t, 1, 1
    r = r * (1 - little)
    r[:, 4] += little
    for n_clusters in (4, 3):
        assert len(np.unique(merged(r)[n_clusters][r.argmax(1)])) == n_clusters
    assert len(np.unique(disjoint(r)[r.argmax(1)])) == 3


def test_one_component_for_each_cluster_begins_as_methods_agree_and_several_take_all():
    points, y = groups([80, 80, 80])
    r = partition(torch.tensor(points), torch.full((3,), -1), None, 0, 3)
    assert adjusted_rand_score(y, r.argmax(1)) == 1.0
    several = partition(torch.tensor(points), torch.full((9,), -1), None, 0, 3)
    assert (several.sum(0) > 0).all()


def test_components_within_clusters_follow_what_methods_agree_on():
    points, y = groups([40, 90, 60])
    centres = np.concatenate([points[y == k][:3] for k in range(3)])
    apart = np.square(points[:, None] - centres).sum(-1)
    r = np.eye(9)[apart.argmin(1)]  # no two components share cells: what is merged by overlap is chance
    assert adjusted_rand_score(y, merged(r)[3][r.argmax(1)]) < 0.9
    tree = tree_of(r, points, None, 3, places=True)
    assert adjusted_rand_score(y, cut(tree.merges.pairs, 3)[tree.leaf]) == 1.0
    assert tree_of(r, points, None, None, places=True).n_clusters == 3
    kept = tree_of(r, points, None, 3, places=False)
    assert (kept.leaf == r.argmax(1)).all()  # the given components
    assert adjusted_rand_score(y, cut(kept.merges.pairs, 3)[kept.leaf]) == 1.0


def test_clusters_get_components_by_their_sizes():
    points, y = groups([90, 60, 40])
    component, cluster_of = within(points, y, 9)
    assert (cluster_of[component] == y).all()
    assert np.bincount(cluster_of).tolist() == [4, 2, 1]
    assert np.bincount(component).min() > 0
    three = within(np.random.default_rng(0).normal(size=(600, 2)), np.repeat([0, 1, 2], [500, 98, 2]), 5)[1]
    assert np.bincount(three).tolist() == [3, 1, 1]


def test_cells_beyond_the_first_ones_belong_where_their_neighbours_do(monkeypatch):
    points, y = groups([90, 60, 40])
    order = np.random.default_rng(0).permutation(len(y))
    monkeypatch.setattr(module, "MOST", 80)
    r = partition(torch.tensor(points[order]), torch.full((3,), -1), None, 0, 3, torch.tensor(points[order]))
    assert adjusted_rand_score(y[order], r.argmax(1)) == 1.0


def test_a_small_group_without_labels_within_the_reach_of_a_label_gets_a_free_component():
    rng = np.random.default_rng(0)
    wide, small = rng.normal(0, 2, (1500, 2)), rng.normal((2.5, 2.5), 0.15, (150, 2))
    other = rng.normal((20, 0), 1, (500, 2))
    points = torch.tensor(np.concatenate([wide, small, other]))
    new = np.repeat([False, True, False], [1500, 150, 500])
    y = np.where(rng.random(2150) < 0.5, np.repeat([0, 2, 1], [1500, 150, 500]), 2)
    y[new] = 2
    label_of = torch.tensor([0, 1, -1])
    r = partition(points, label_of, torch.tensor(y), 2).argmax(1).numpy()
    assert (r[new] == 2).mean() > 0.95


def test_where_labels_lack_cells_are_not_typical_and_where_they_are_rare_everywhere_they_are():
    made, z, y = prior(3, n_components=3, n_labels=3)
    p_z = made(torch.zeros(180, dtype=torch.long))
    given = torch.tensor(np.where(y == 1, 3, y))  # the second group is bound, and has no labels
    made.measure(p_z, z, given)
    typical = made.typical(p_z, z)
    assert typical[y == 1].max() < 0.8 < typical[y != 1].median()
    few = torch.full((180,), 3)
    few[::60] = torch.tensor(y)[::60]
    made.measure(p_z, z, few)
    assert made.cover.min() > 0.6


def test_labels_hold_their_components_and_free_ones_take_the_unknown_group():
    points, y = groups([60, 60, 60])
    known = np.where((y < 2) & (np.arange(180) % 2 == 0), y, 2)  # the third group has no label
    r = partition(torch.tensor(points), torch.tensor([0, 1, -1]), torch.tensor(known), 2)
    assert (r.argmax(1).numpy() == y).mean() > 0.99


def prior(n_clusters, n_components=6, n_labels=0):
    made = MixturePrior(
        Components(n_components, 4), Dirichlet(n_components), n_labels=n_labels, n_clusters=n_clusters
    )
    points, y = groups([90, 60, 30])
    z = torch.tensor(points, dtype=torch.float32)
    labels = torch.tensor(y) if n_labels else None
    made.place(z, torch.full_like(z, 0.1), torch.zeros(180, dtype=torch.long), labels)
    return made, z, y


def test_components_left_out_have_no_weight_and_clusters_add_up(monkeypatch):
    monkeypatch.setattr(module, "MOST", 120)  # of 180 cells
    made, z, y = prior(3)
    c = torch.zeros(180, dtype=torch.long)

    def probabilities():
        p_z = made(c)
        return torch.softmax(p_z.log_pi + p_z.component_log_prob(z), -1)

    made.used[5] = False
    assert (probabilities()[:, 5] == 0).all()
    order = torch.randperm(180, generator=torch.Generator().manual_seed(0))
    variance = torch.full_like(z, 0.1)
    made.grow(probabilities()[order], z[order], variance, c, None, each=2.0, places=True)
    clusters = made.of_clusters(probabilities())
    assert clusters.shape == (180, 3)
    torch.testing.assert_close(clusters.sum(1), torch.ones(180))
    assert adjusted_rand_score(y, clusters.argmax(1)) > 0.98
    sizes = made.weights.log_gamma.exp() - made.weights.alpha
    torch.testing.assert_close(sizes.sum(), torch.tensor(360.0), rtol=1e-4, atol=0)


def test_cells_within_the_reach_of_a_label_are_typical_and_distant_ones_are_not():
    made, z, y = prior(3, n_components=3, n_labels=3)
    p_z = made(torch.zeros(180, dtype=torch.long))
    made.measure(p_z, z, torch.tensor(y))
    typical = made.typical(p_z, z)
    assert 0.93 <= (typical == 1).float().mean() <= 0.97  # the reach holds 95 %
    assert (made.typical(p_z, z + 50) < 0.01).all()
