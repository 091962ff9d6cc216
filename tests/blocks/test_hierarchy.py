"""Trees of labels by their codes, what reads them, and their temperature."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from scalloy.blocks import label_classifiers
from scalloy.blocks.hierarchy import ROOT, Hierarchy
from scalloy.blocks.label_classifiers import LabelReader
from scalloy.blocks.label_readers import Readers, TreeReader
from scalloy.blocks.mixture_prior import MixturePrior
from scalloy.blocks.mixtures import Components, Dirichlet, GaussianMixture

# leaves: 0 naive, 1 memory, 2 CD8, 3 B, 4 mono; inner: 5 T, 6 CD4, 7 lymphoid
PARENTS = [6, 6, 5, 7, ROOT, 7, 5, ROOT]
BELOW = {5: {0, 1, 2}, 6: {0, 1}, 7: {0, 1, 2, 3}}


def tree():
    return Hierarchy(5, PARENTS)


def test_below_depths_and_splits_are_those_of_the_tree():
    made = tree()
    for node in range(8):
        assert set(np.flatnonzero(made.below[node])) == BELOW.get(node, {node})
    assert made.depth == [4, 4, 3, 2, 1, 2, 3, 1]
    assert made.path(0) == [7, 5, 6, 0]
    assert made.splits() == [ROOT, 7, 5, 6]
    assert set(made.at_or_below(5)) == {5, 6, 0, 1, 2}
    flat = Hierarchy(3)
    assert (flat.n_inner, flat.splits(), flat.depth) == (0, [ROOT], [1, 1, 1])


def test_probabilities_of_nodes_are_sums_and_the_deepest_is_found_as_by_hand():
    made, p = tree(), torch.rand(200, 5, generator=torch.manual_seed(0)).double() ** 3
    p = p / p.sum(-1, keepdim=True)
    nodes = made.of_nodes(p)
    for node in range(8):
        torch.testing.assert_close(nodes[:, node], p[:, sorted(BELOW.get(node, {node}))].sum(-1))
    possible = torch.rand(200, 8, generator=torch.manual_seed(1)) < 0.8
    found = made.deepest(nodes, possible, 0.6).tolist()
    for i in range(200):
        fit = [k for k in range(8) if nodes[i, k] >= 0.6 and possible[i, k]]
        assert found[i] == max(fit, key=lambda k: (made.depth[k], nodes[i, k]), default=ROOT)
    assert ROOT in found
    assert len(set(found)) > 4


def prior(n_labels, hierarchy=None, k=7):
    return MixturePrior(Components(k, 2), Dirichlet(k), n_labels=n_labels, hierarchy=hierarchy)


def test_components_that_a_label_allows():
    made = prior(5, tree())
    y = torch.tensor([*range(8), 8, 9])
    allowed = made.allowed(y)
    for code, row in zip(y.tolist(), allowed.tolist(), strict=True):
        expected = range(7) if code > 7 else BELOW.get(code, {code})
        assert {k for k, fits in enumerate(row) if fits} == set(expected)
    flat = prior(5)
    y = torch.arange(7)
    by_hand = (flat.label_of == y[:, None]) | (y >= 5)[:, None]
    assert torch.equal(flat.allowed(y), by_hand)
    assert "span" not in flat.state_dict()  # so that files of models without a tree are read as before


def test_spans_are_distances_between_siblings():
    made = prior(5, tree())
    loc = torch.tensor([[0.0, 0], [2, 0], [0, 5], [20, 0], [0, 90], [500, 500], [500, 500]])
    p_z = GaussianMixture(torch.zeros(7), loc, torch.ones_like(loc))
    made.measure(p_z, loc[:5].repeat_interleave(5, 0), torch.arange(5).repeat_interleave(5))
    # T: CD8 lies 5 from naive, CD4 (naive, memory) 5 and sqrt(29) from CD8; lymphoid: B lies 18 from memory
    torch.testing.assert_close(made.span, torch.tensor([29.0, 4.0, 400.0]), rtol=0.1, atol=0)
    near = made.near(p_z, torch.tensor([[1.0, 1.0], [-3.0, 0.0], [0.0, 80.0]]))
    assert near[0].min() == 1
    assert (near[1] >= torch.tensor([1.0, 0.0, 1.0])).all()
    assert near[1, 1] < 0.5  # farther from CD4 cells than these are from one another
    assert near[2].max() < 0.5


def drawn(n, n_in=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, n)
    x = rng.normal(size=(n, n_in)) + 2 * np.random.default_rng(9).normal(size=(5, n_in))[y]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def known_as(y, seed=0):
    """Labels of any depth: some of the leaves are known as T or lymphoid only."""
    rng, out = np.random.default_rng(seed), y.clone()
    out[torch.tensor(rng.random(len(y)) < 0.4) & (y < 3)] = 5
    out[torch.tensor(rng.random(len(y)) < 0.2) & (y < 4)] = 7
    return out


def test_a_tree_is_read_by_regressions_at_its_splits(monkeypatch):
    monkeypatch.setattr(label_classifiers, "STRAIGHT", (3.0,))
    monkeypatch.setattr(label_classifiers, "SHARES", (0.0,))
    x, leaf = drawn(400)
    y = known_as(leaf)
    reader = TreeReader(4, tree())
    reader.fit(x, y, torch.bincount(y, minlength=9))
    p = reader(x)
    torch.testing.assert_close(p.sum(-1), torch.ones(400))
    nodes, values = reader.of_nodes(x), x.numpy()
    for node, children in {ROOT: (4, 7), 7: (3, 5), 5: (2, 6), 6: (0, 1)}.items():
        sets = [
            {c, *BELOW.get(c, ()), *((6,) if c in (5, 7) else ()), *((5,) if c == 7 else ())}
            for c in children
        ]
        of = np.array([next((i for i, s in enumerate(sets) if int(k) in s), -1) for k in y])
        inside = np.isin(y, {6: [5, 7], 5: [7]}.get(node, [])) & (nodes[:, node].numpy() > 0.5)
        scaled = values / values[(of >= 0) | (y.numpy() == node) | inside | (node == ROOT)].std(0)
        expected = (
            LogisticRegression(C=3.0, max_iter=3000).fit(scaled[of >= 0], of[of >= 0]).predict_proba(scaled)
        )
        above = torch.ones(400, 1) if node == ROOT else nodes[:, node : node + 1]
        found, sure = nodes[:, list(children)] / above.clamp_min(1e-9), above[:, 0] > 0.1
        np.testing.assert_allclose(found[sure], expected[sure], atol=0.01)
    assert (p.argmax(-1) == leaf).float().mean() > 0.8


def test_labels_of_any_depth_are_learned_from():
    """With one cell of each leaf and many that are known as T, T is told from the others."""
    x, leaf = drawn(600, 60)
    y = torch.full_like(leaf, 8)
    y[:200] = torch.where(leaf < 3, 5, leaf)[:200]
    for k in range(5):
        y[torch.nonzero(leaf == k)[-4:, 0]] = k
    reader, flat = TreeReader(60, tree()), LabelReader(60, 5)
    reader.fit(x, y, torch.bincount(y, minlength=9))
    flat.fit(x, torch.where(y < 5, y, 5), torch.bincount(y.clamp_max(5), minlength=6))
    truth, new = leaf < 3, y == 8
    loss = [
        -(torch.where(truth, p, 1 - p)[new].clamp_min(1e-6)).log().mean()
        for p in (r(x)[:, :3].sum(-1) for r in (reader, flat))
    ]
    assert loss[0] < loss[1]


def test_held_out_probabilities_are_those_of_other_folds():
    x, y = drawn(90)
    y[:3] = 5
    reader = LabelReader(4, 5)
    reader.fit(x, y, torch.bincount(y, minlength=6))
    p = reader.crossed(x, y)
    torch.testing.assert_close(p[:3], reader(x)[:3])  # without a label
    values = ((x - reader.middle) @ reader.axes).double().numpy()
    ((_, model),) = reader.chosen
    for i in (7, 50):
        out = [
            model.fit(values[3:][keep], y[3:].numpy()[keep]).predict_proba(values[[i]])
            for keep in _without(i - 3, y[3:])
        ]
        assert min(np.abs(one - p[i].numpy()).max() for one in out) < 0.1
        assert (p[i] - reader(x)[i]).abs().max() > 1e-4
    alone = y.clone()
    alone[y == 4] = 5
    alone[torch.nonzero(y == 4)[0]] = 4
    assert reader.crossed(x, alone)[torch.nonzero(alone == 4)[:, 0]].isnan().all()


def _without(i, y):
    """Random four fifths of the cells without cell ``i``."""
    for seed in range(20):
        keep = np.random.default_rng(seed).random(len(y)) < 0.8
        keep[i] = False
        yield keep


def test_the_temperature_is_that_of_cells_that_were_not_seen():
    """Regressions that are far too sure are softened; what then is said with 90 % is so in 90 %."""
    rng = np.random.default_rng(0)
    y = torch.tensor(rng.integers(0, 3, 900))
    x = torch.tensor(rng.normal(size=(900, 4)), dtype=torch.float32) + 1.2 * torch.eye(3, 4)[y]
    readers = Readers(4, 4, 3, Hierarchy(3))
    known = torch.where(torch.arange(900) < 300, y, 3)
    readers.fit([(x, None, known)])
    sure = readers.of_z(x).clamp_min(1e-12).log() * 4
    readers.of_z.weight *= 4
    readers.of_z.bias *= 4
    truth = torch.arange(900) >= 300
    for temperature, calibrated in {
        float(readers.temperature): False,
        4 * float(readers.temperature): True,
    }.items():
        p = torch.softmax(sure / temperature, -1)[truth]
        best = p.max(-1)
        right = (best.indices == y[truth]).float().mean()
        assert (abs(float(best.values.mean() - right)) < 0.04) == calibrated
    assert 0.6 < float(readers.temperature) < 1.6


def test_without_labels_the_temperature_is_one():
    readers = Readers(4, 4, 5, tree())
    readers.fit([(torch.randn(20, 4), None, torch.full((20,), 8))])
    assert float(readers.temperature) == 1
    p = torch.softmax(torch.randn(6, 5), -1)
    torch.testing.assert_close(readers.calibrated(p), p)
    assert "temperature" not in Readers(4, 4, 5).state_dict()
