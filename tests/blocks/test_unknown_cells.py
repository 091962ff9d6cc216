"""Signs of unknown types: against naive loops, exact ranks, and groups that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scalloy.blocks.consensus_clustering import gaussian_groups
from scalloy.blocks.unknown_cells import DOUBT, NEIGHBOURS, SHAPE, SHARE, Surroundings, UnknownCells


def naive_outlying(x, spots, own=None):
    """Log mean distance to the nearest cells, minus the mean of the same of these cells."""

    def nearest(v, skip):
        distance = sorted((float(np.linalg.norm(v - s)), j) for j, s in enumerate(spots) if j != skip)
        return distance[:NEIGHBOURS]

    reach = [np.log(np.mean([d for d, _ in nearest(s, j)])) for j, s in enumerate(spots)]
    out = []
    for i, v in enumerate(x):
        near = nearest(v, None if own is None else own[i])
        out.append(np.log(np.mean([d for d, _ in near])) - np.mean([reach[j] for _, j in near]))
    return np.array(out)


def test_surroundings_equal_a_naive_loop_and_an_exact_rank():
    rng = np.random.default_rng(0)
    spots, x = rng.standard_normal((60, 3)), rng.standard_normal((10, 3))
    made = Surroundings(3)
    made.fit(torch.tensor(spots, dtype=torch.float32))
    usual = np.sort(naive_outlying(spots, spots, range(60)))
    np.testing.assert_allclose(made.usual[:60], usual, atol=1e-4)
    evidence = made(torch.tensor(x, dtype=torch.float32)).numpy()
    log_p = (np.log(SHAPE) - evidence) / (1 - SHAPE)
    inside = (found := naive_outlying(x, spots)) < usual[-1]
    rank = np.interp(found, usual, np.log(np.arange(60, 0, -1) / 61))
    np.testing.assert_allclose(log_p[inside], rank[inside], atol=1e-3)


def test_ranks_of_cells_of_known_types_are_uniform_and_distance_counts():
    rng = np.random.default_rng(1)
    made = Surroundings(4)
    made.fit(torch.tensor(rng.standard_normal((1000, 4)), dtype=torch.float32))
    evidence = made(torch.tensor(rng.standard_normal((1000, 4)), dtype=torch.float32))
    p = np.exp((np.log(SHAPE) - evidence.numpy()) / (1 - SHAPE))
    assert stats.kstest(p, "uniform").statistic < 0.12  # those that it was fitted to have one neighbour less
    away = torch.zeros(6, 4)
    away[:, 0] = torch.tensor([5.0, 7, 10, 20, 50, 100])
    assert (made(away).diff() > 0).all()  # no ties, however far
    assert made(away)[-1] > 10


def test_dense_and_loose_types_count_alike():
    rng = np.random.default_rng(2)
    dense, loose = 0.1 * rng.standard_normal((300, 3)), 20 + rng.standard_normal((300, 3))
    made = Surroundings(3)
    made.fit(torch.tensor(np.r_[dense, loose], dtype=torch.float32))
    beside = torch.tensor([[0.6, 0, 0], [26.0, 20, 20]])  # six standard deviations from each
    first, second = made(beside)
    assert first > 2
    assert first == pytest.approx(second, abs=1.0)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_labelled_cells_say_nothing(n):
    made = Surroundings(2)
    made.fit(torch.randn(n, 2))
    assert (made(torch.randn(5, 2)) == 0).all()


def three_groups(labelled):
    """Two types of which a share is labelled, and one without labels."""
    rng = np.random.default_rng(3)
    z = rng.standard_normal((900, 4)).astype(np.float32)
    of = np.repeat([0, 1, 2], 300)
    z[:, 0] += 6 * (of == 1)
    z[:, 1] += 6 * (of == 2)
    y = np.where((of < 2) & (rng.random(900) < labelled), of, 2)
    return torch.tensor(z), torch.tensor(y), of


def fitted(z, y, x=None):
    made = UnknownCells(4, 4, 2, 3)
    made.fit(z, x, y, torch.bincount(y, minlength=3))
    return made


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_missing_labels_and_distance_tell_the_unknown_group(share):
    z, y, of = three_groups(share)
    made = fitted(z, y, z)
    r, covered = torch.zeros(900, 3), torch.ones(900)
    known = made.known(r, z, z, covered).numpy()
    assert ((known < 0.5) == (of == 2)).mean() > 0.92
    assert ((known >= 0) & (known <= 1)).all()
    without = made.known(r, z, None, covered)  # only the distance in z
    assert ((without < 0.5).numpy() == (of == 2)).mean() > 0.9


def test_without_unlabelled_cells_the_distance_decides():
    z, _, of = three_groups(1.0)
    seen = of < 2
    made = fitted(z[seen], torch.tensor(of[seen]), z[seen])
    assert not made.labelled.fitted
    known = made.known(torch.zeros(900, 3), z, z, torch.ones(900))
    expected = torch.sigmoid(
        -(made.of_z(z / made.scale) + made.of_x((z - made.middle) @ made.axes)) / 2
        - np.log(SHARE / (1 - SHARE))
    )
    torch.testing.assert_close(known, expected)
    assert ((known < 0.5).numpy() == ~seen).mean() > 0.9


def test_free_components_count_as_far_as_labels_are_missing_there():
    r = torch.tensor([[1.0, 0, 0]] * 40 + [[0, 1.0, 0]] * 30 + [[0, 0, 1.0]] * 30)
    known = torch.tensor([True, False] * 20 + [True, False] * 15 + [False] * 30)
    made = UnknownCells(2, 2, 1, 3)
    made.look_for_labels(r, known, torch.tensor([False, True, True]))
    rate = 35 / 100
    assert made.without_labels[0] == 0  # bound to the label
    assert made.without_labels[1] == 0  # as many labels as elsewhere, and more
    assert made.without_labels[2] == pytest.approx(1 - DOUBT / (30 * rate + DOUBT), rel=1e-5)
    made.look_for_labels(r, torch.ones(100, dtype=torch.bool), torch.tensor([False, True, True]))
    assert (made.without_labels == 0).all()  # nothing is unlabelled


@pytest.mark.parametrize("sizes", [(200,), (150, 80), (90, 60, 40)])
def test_groups_are_found_as_they_are(sizes):
    rng = np.random.default_rng(4)
    centres = 5 * rng.standard_normal((len(sizes), 6))
    z = np.concatenate([c + rng.standard_normal((n, 6)) for c, n in zip(centres, sizes, strict=True)])
    of = np.repeat(range(len(sizes)), sizes)
    found = gaussian_groups(z, 10)
    assert (found == of).mean() > 0.98  # the largest is the first
    assert (gaussian_groups(z, 1000) == -1).all()
