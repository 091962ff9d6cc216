"""Labels read by regression: against scikit-learn, with labels that lack, and which cells are read."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from scalloy.blocks import label_classifiers, label_readers
from scalloy.blocks.label_classifiers import Labelled, LabelReader
from scalloy.blocks.label_readers import Some


def cells(n_in, n_labels, n=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_labels, n)
    x = rng.normal(size=(n, n_in)) + 1.5 * rng.normal(size=(n_labels, n_in))[y]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


@pytest.mark.parametrize("n_labels", [2, 3])
@pytest.mark.parametrize("n_in", [4, 50])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_probabilities_are_those_of_scikit_learn(n_in, n_labels, share, monkeypatch):
    x, y = cells(n_in, n_labels)
    monkeypatch.setattr(label_classifiers, "SHARES", (share,))
    monkeypatch.setattr(label_classifiers, "STRAIGHT", (3.0,))
    monkeypatch.setattr(label_classifiers, "BENT", (30.0,))
    reader = LabelReader(n_in, n_labels)
    reader.fit(x, y, torch.bincount(y))
    values = x.double().numpy()
    values = PCA(30, random_state=0).fit_transform(values) if n_in > 30 else values / values.std(0)
    straight = LogisticRegression(C=3.0 if n_in <= 30 else 1.0).fit(values, y).predict_proba(values)
    kernel = rbf_kernel(values, gamma=0.5 / values.var(0).sum())
    # all 300 cells are compared: the regression is that on the kernel, with a ridge in its own geometry
    bent = LogisticRegression(C=30.0, max_iter=3000).fit(root(kernel), y).predict_proba(root(kernel))
    np.testing.assert_allclose(reader(x), (1 - share) * straight + share * bent, atol=0.01)
    assert float(reader.share) == share


def root(kernel):
    values, vectors = np.linalg.eigh(kernel)
    return vectors * np.sqrt(np.maximum(values, 0))


def test_penalty_of_few_labels():
    noise, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    sizes = np.full(3, 20)

    def strength(x, y, sizes=sizes):
        return Labelled(x, y, sizes).strength(label_classifiers.regression(), label_classifiers.STRAIGHT)

    x = 0.3 * noise + 2 * np.eye(4)[y]  # told without fail, so that a weak penalty is right
    assert strength(x, y) == max(label_classifiers.STRAIGHT)
    assert strength(noise, y) == min(label_classifiers.STRAIGHT)
    middle = 1.5 * noise + 2 * np.eye(4)[y]  # against the losses of folds by hand
    folds, loss = StratifiedKFold(5, shuffle=True, random_state=0), {}
    for c in label_classifiers.STRAIGHT:
        p = cross_val_predict(LogisticRegression(C=c), middle, y, cv=folds, method="predict_proba")
        loss[c] = -np.log(p[np.arange(60), y]).mean()
    assert strength(middle, y) == min(loss, key=loss.get)
    assert strength(x[:3], np.arange(3)) == 1  # each label once
    assert strength(x[:5], np.array([0, 0, 1, 1, 2])) in label_classifiers.STRAIGHT


def test_penalties_are_chosen_where_labelled_cells_are_few_and_vectors_short(monkeypatch):
    asked = []

    def strength(_, model, strengths):
        asked.append(strengths)
        return 7.0

    monkeypatch.setattr(Labelled, "strength", strength)
    for n_in, few, expected in (
        (4, 300, [label_classifiers.STRAIGHT, label_classifiers.BENT]),
        (50, 300, [label_classifiers.BENT]),
        (4, 299, []),
    ):
        monkeypatch.setattr(label_classifiers, "FEW", few)
        x, y = cells(n_in, 2)
        LabelReader(n_in, 2).fit(x, y, torch.bincount(y))
        assert asked == expected
        asked.clear()


def test_labels_of_a_single_cell_are_left_out_of_the_folds_and_the_others_stand_for_as_many():
    given = Labelled(np.arange(6.0)[:, None], np.array([0, 0, 1, 2, 2, 2]), np.array([10, 20, 30]))
    cells, folds = given._in_folds()
    assert cells.x[:, 0].tolist() == [0, 1, 3, 4, 5]
    assert cells.y.tolist() == [0, 0, 1, 1, 1]
    assert folds.n_splits == 2
    np.testing.assert_allclose(cells.weights["read__sample_weight"], np.repeat([5, 10], [2, 3]) / 8)


def test_bent_boundaries_are_believed_where_labels_lie_around_one_another():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    ring = rng.normal(size=(400, 2))
    ring *= ((1 + 2 * y) / np.linalg.norm(ring, axis=1))[:, None]
    x = torch.tensor(ring + 0.3 * rng.normal(size=(400, 2)), dtype=torch.float32)
    reader = LabelReader(2, 2)
    reader.fit(x[:200], torch.tensor(y[:200]), torch.tensor([100, 100]))
    assert reader.share > 0
    reader_of_few = LabelReader(2, 2)
    reader_of_few.fit(x[:199], torch.tensor(y[:199]), torch.tensor([100, 99]))
    assert reader_of_few.share == 0
    assert (reader(x[200:]).argmax(1).numpy() == y[200:]).mean() > 0.95
    apart = ring + 6 * y[:, None]  # a plane tells these for sure
    models = label_classifiers.regression(1000.0), label_classifiers.regression(1e-3, 1.0)
    assert Labelled(apart, y, np.array([200, 200])).share(*models) == 0


def test_some_of_the_cells_are_of_all_labels_and_stand_for_as_many():
    y = np.repeat([0, 1, 2], [50, 30, 2])
    some = Labelled(np.arange(82.0)[:, None], y, np.array([500, 300, 200])).some(12)
    assert np.bincount(some.y).tolist() == [5, 5, 2]
    assert (y[some.x[:, 0].astype(int)] == some.y).all()
    weights = some.weights["read__sample_weight"]
    np.testing.assert_allclose(np.bincount(some.y, weights), np.array([500, 300, 200]) * 12 / 1000)
    assert weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("tell", [1, 200])
def test_fewer_cells_than_components_and_nothing_is_left_of_what_was_learned_before(tell, monkeypatch):
    monkeypatch.setattr(label_classifiers, "SHARES", (0.5,))
    monkeypatch.setattr(label_classifiers, "TELL", tell)
    x, y = cells(50, 2, n=10)
    reader, fresh = LabelReader(50, 2), LabelReader(50, 2)
    reader.fit(*cells(50, 2, seed=1), torch.tensor([150, 150]))
    for made in (reader, fresh):
        made.fit(x, y, torch.bincount(y, minlength=3))
    assert (reader(x).argmax(1) == y).all()
    torch.testing.assert_close(reader(2 * x), fresh(2 * x))


def test_more_labels_than_cells_that_are_compared(monkeypatch):
    for name, value in {"SIMILAR": 20, "FEW": 10, "TELL": 60, "SHARES": (1.0,)}.items():
        monkeypatch.setattr(label_classifiers, name, value)
    x, _ = cells(4, 2, n=60)
    y = torch.arange(60) % 30
    reader = LabelReader(4, 30)
    reader.fit(x + 20 * y[:, None], y, torch.bincount(y))
    assert (reader(x + 20 * y[:, None]).argmax(1) == y).float().mean() > 0.9


def test_code_and_expression_have_one_say_each():
    both = label_readers.Readers(2, 3, 2)
    p, z, x = torch.tensor([[0.9, 0.1]]), torch.zeros(1, 2), torch.zeros(1, 3)
    torch.testing.assert_close(both.vote(p, z, x), p)  # nothing is fitted
    both.of_z.fitted.fill_(True)  # it says a half
    torch.testing.assert_close(both.vote(p, z, x), torch.tensor([[0.7, 0.3]]))
    both.of_x.fitted.fill_(True)
    torch.testing.assert_close(both.vote(p, z, x), torch.tensor([[0.6, 0.4]]))
    torch.testing.assert_close(both.vote(p, z, None), torch.tensor([[0.7, 0.3]]))


def test_cells_without_label_and_labels_without_cells():
    x, y = cells(4, 3)
    reader = LabelReader(4, 4)
    assert not reader.fitted
    reader.fit(x, torch.full_like(y, 4), torch.zeros(5))
    assert not reader.fitted  # nothing to learn from
    reader.fit(x, torch.where(y == 1, 4, y), torch.tensor([100, 0, 100, 0, 100]))
    p = reader(x)
    assert reader.fitted
    assert (p[:, [1, 3]] == 0).all()
    assert (p.argmax(1) == y)[y != 1].float().mean() > 0.9


def test_a_single_label_is_certain():
    x, y = cells(4, 1)
    reader = LabelReader(4, 2)
    reader.fit(x, y, torch.tensor([300, 0, 0]))
    torch.testing.assert_close(reader(x), torch.tensor([[1.0, 0.0]]).expand(300, -1))


def test_chosen_cells_stand_for_all_of_their_label(monkeypatch):
    monkeypatch.setattr(label_readers, "MOST", 20)
    some, y = Some(2, 10), torch.tensor([0] * 15 + [1] * 15 + [2] * 3)
    first, second = some.of(y), some.of(y)
    assert first.all()
    assert [int(second[y == k].sum()) for k in range(3)] == [5, 5, 3]
    assert some.sizes.tolist() == [30, 30, 6]
    x = torch.zeros(60, 1)  # cells that say nothing: the probabilities are the shares of the labels
    reader = LabelReader(1, 2)
    reader.fit(x, torch.arange(60) % 2, torch.tensor([900, 100]))
    torch.testing.assert_close(reader(x[:1]), torch.tensor([[0.9, 0.1]]), atol=1e-3, rtol=0)


def test_more_cells_without_label_are_chosen_if_memory_allows(monkeypatch):
    for name, value in {"MOST": 20, "UNLABELLED": 50, "ENTRIES": 3000}.items():
        monkeypatch.setattr(label_readers, name, value)
    y = torch.tensor([0] * 100 + [1] * 100)
    for n_vars, expected in {10: 50, 100: 30, 1000: 20}.items():
        chosen = Some(1, n_vars).of(y)
        assert [int(chosen[y == k].sum()) for k in (0, 1)] == [20, expected]
