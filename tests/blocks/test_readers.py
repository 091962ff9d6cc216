"""Labels read by regression: against scikit-learn, with labels that lack, and which cells are read."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from scalloy.blocks import readers
from scalloy.blocks.readers import LabelReader, Some


def cells(n_in, n_labels, n=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_labels, n)
    x = rng.normal(size=(n, n_in)) + 1.5 * rng.normal(size=(n_labels, n_in))[y]
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


@pytest.mark.parametrize("n_labels", [2, 3])
@pytest.mark.parametrize("n_in", [4, 50])
def test_probabilities_are_those_of_scikit_learn(n_in, n_labels):
    x, y = cells(n_in, n_labels)
    reader = LabelReader(n_in, n_labels)
    reader.fit(x, y, torch.bincount(y))
    values = x.double().numpy()
    values = PCA(30, random_state=0).fit_transform(values) if n_in > 30 else values / values.std(0)
    c = readers.chosen_strength(values, y.numpy(), np.ones(len(y))) if n_in <= 30 else 1.0
    expected = LogisticRegression(C=c, max_iter=3000).fit(values, y).predict_proba(values)
    np.testing.assert_allclose(reader(x), expected, atol=0.01)


def test_penalty_of_few_labels():
    noise, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    x = 0.3 * noise + 2 * np.eye(4)[y]  # told without fail, so that a weak penalty is right
    assert readers.chosen_strength(x, y, np.ones(60)) == max(readers.STRENGTHS)
    assert readers.chosen_strength(noise, y, np.ones(60)) == min(readers.STRENGTHS)
    middle = 1.5 * noise + 2 * np.eye(4)[y]  # against the losses of folds by hand
    folds, loss = StratifiedKFold(5, shuffle=True, random_state=0), {}
    for c in readers.STRENGTHS:
        p = cross_val_predict(LogisticRegression(C=c), middle, y, cv=folds, method="predict_proba")
        loss[c] = -np.log(p[np.arange(60), y]).mean()
    assert readers.chosen_strength(middle, y, np.ones(60)) == min(loss, key=loss.get)
    assert readers.chosen_strength(x[:3], np.arange(3), np.ones(3)) == 1  # each label once
    twice = np.array([0, 0, 1, 1, 2])
    assert readers.chosen_strength(x[:5], twice, np.ones(5)) in readers.STRENGTHS


def test_code_and_expression_have_one_say_each():
    both = readers.Readers(2, 3, 2)
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
    monkeypatch.setattr(readers, "MOST", 20)
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
        monkeypatch.setattr(readers, name, value)
    y = torch.tensor([0] * 100 + [1] * 100)
    for n_vars, expected in {10: 50, 100: 30, 1000: 20}.items():
        chosen = Some(1, n_vars).of(y)
        assert [int(chosen[y == k].sum()) for k in (0, 1)] == [20, expected]
