"""The benchmark of labels with a hierarchy: its tasks, its rivals and its scores."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import scvi
from commands import run
from sklearn.linear_model import LogisticRegression

import scalloy as sa
from scalloy.benchmark.clustering import centred, principal_components
from scalloy.benchmark.fit import load
from scalloy.benchmark.label_tree import (
    UNKNOWN,
    Told,
    _cells,
    _deepest,
    _regressions,
    _scores,
    _task,
    summary,
)

CLASSES = {
    "CD4 T cells": "T cells",
    "CD8 T cells": "T cells",
    "CD14+ Monocytes": "Monocytes",
    "FCGR3A+ Monocytes": "Monocytes",
}


MODULE = import_module("scalloy.benchmark.label_tree")  # the package has the function of this name


@pytest.fixture(scope="module", autouse=True)
def fewer():
    """A quarter of the cells, for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "load", lambda *given: load(*given)[::4].copy())
        yield


@pytest.fixture(scope="module")
def kang():
    """Cells with the columns "class" and "leaf", and the name of their batches."""
    return _cells("kang_subset", 200)


@pytest.fixture(scope="module")
def task(kang):
    return _task(*kang, 0.2, 0.5, None, 0)


@pytest.fixture(scope="module")
def left_out(kang):
    return _task(*kang, 0.2, 0.5, "CD8 T cells", 0)


def test_some_cells_are_labelled_and_some_of_these_as_a_class_only(kang, task):
    truth = kang[0].obs["cell_type"].astype(str)
    assert kang[1] == "condition"
    np.testing.assert_array_equal(task.truth, truth)
    np.testing.assert_array_equal(task.cells.obs["class"], truth.replace(CLASSES))
    coarse, fine = task.cells.obs["coarse"], task.cells.obs["fine"]
    for name, own in truth.groupby(truth):
        known = coarse[own.index].notna()
        assert known.mean() == pytest.approx(0.2, abs=0.01)
        assert set(coarse[own.index][known]) == {CLASSES.get(name, name)}
        assert set(fine[own.index].dropna()) == {name}
        assert not (fine[own.index].notna() & ~known).any()
        assert fine[own.index].notna().sum() >= 2
    assert fine.notna().sum() / coarse.notna().sum() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(task.asked, coarse.isna())
    assert not task.new.any()
    assert task.tree.parents == CLASSES
    assert set(task.tree.leaves) == set(truth)


def test_a_type_that_is_left_out_has_no_label_and_is_not_in_the_tree(left_out):
    own = left_out.truth == "CD8 T cells"
    np.testing.assert_array_equal(left_out.new, own)
    assert left_out.cells.obs.loc[own, ["coarse", "fine"]].isna().all(axis=None)
    assert not (left_out.asked & own).any()
    assert "CD8 T cells" not in left_out.tree.nodes
    assert left_out.tree.parents["CD4 T cells"] == "T cells"


def test_regressions_along_the_tree_are_products_of_those_at_each_split(task):
    x = centred(principal_components(task.cells), task.cells.obs["condition"].astype(str))
    coarse, fine = (task.cells.obs[k].astype(object) for k in ("coarse", "fine"))

    def fitted(y):
        known = y.notna().to_numpy()
        model = LogisticRegression(max_iter=3000).fit(x[known], y[known].astype(str))
        return pd.DataFrame(model.predict_proba(x), task.cells.obs_names, model.classes_)

    root, expected = fitted(coarse), {}
    for name in root:
        below = fine.where(coarse == name).dropna().unique()
        split = fitted(fine.where(coarse == name)) if len(below) > 1 else None
        expected |= {k: root[name] * (1 if split is None else split[k]) for k in below}
    told = _regressions(task, tree=True)
    assert sorted(told.p) == sorted(expected)
    np.testing.assert_allclose(told.p, pd.DataFrame(expected)[list(told.p)], atol=0.01)
    flat = _regressions(task, tree=False).p
    leaf = fine.where(fine.notna(), coarse.where(coarse.isin(flat.columns)))
    np.testing.assert_allclose(flat, fitted(leaf)[list(flat)], atol=0.01)


def test_the_deepest_label_of_a_rival_reaches_the_level(task):
    leaves = task.tree.leaves
    p = np.random.default_rng(0).dirichlet(np.full(len(leaves), 0.05), 300)
    told = _deepest(task, pd.DataFrame(p, columns=list(leaves)))
    for row, found in zip(p, told.deepest, strict=True):
        said = dict(zip(leaves, row, strict=True))
        sums = {c: sum(v for k, v in said.items() if CLASSES.get(k) == c) for c in set(CLASSES.values())}
        fit = [k for k, v in said.items() if v >= 0.9] or [k for k, v in sums.items() if v >= 0.9]
        assert [found] == (fit or [UNKNOWN])
    assert {"T cells", "CD4 T cells", UNKNOWN} <= set(told.deepest)


def told_of(task, leaf, deepest, sure=1.0):
    """What a method says that gives all cells some leaf, with the same certainty."""
    leaves = list(task.tree.leaves)
    rest = (1 - sure) / (len(leaves) - 1)
    p = pd.DataFrame(rest, index=task.cells.obs_names, columns=leaves)
    for name in leaves:
        p.loc[leaf == name, name] = sure
    return Told(p, np.asarray(deepest, dtype=object))


def test_scores_of_what_is_known(task, left_out):
    right = _scores(task, told_of(task, task.truth, task.truth))
    assert right == {"hierarchical_f1": 1, "deepest_at_90": 1, "ece": 0, "given": 1, "right": 1, "leaves": 1}
    labelled = np.where(task.asked, task.truth, "B cells")  # what is said of labelled cells does not count
    assert _scores(task, told_of(task, labelled, labelled)) == right
    is_t = np.isin(task.truth, ["CD4 T cells", "CD8 T cells"])
    swapped = np.where(task.truth == "CD4 T cells", "CD8 T cells", task.truth)
    swapped = np.where(task.truth == "CD8 T cells", "CD4 T cells", swapped)
    found = _scores(task, told_of(task, swapped, np.where(is_t, "T cells", UNKNOWN), 0.8))
    asked = is_t[task.asked]
    two = np.isin(task.truth, list(CLASSES))[task.asked]  # cells whose leaf has a class above it
    assert found["hierarchical_f1"] == pytest.approx(
        (two.sum() * 2 + (~two).sum() - asked.sum()) / (two.sum() * 2 + (~two).sum())
    )
    assert found["ece"] == pytest.approx(abs(0.8 - (1 - asked.mean())))
    assert found["given"] == pytest.approx(asked.mean())
    assert (found["right"], found["leaves"]) == (1, 0)
    wrong = _scores(task, told_of(task, swapped, swapped))
    assert wrong["right"] == pytest.approx(1 - asked.mean())
    for said, kept in (("T cells", 1), (UNKNOWN, 1), ("CD4 T cells", 0), ("Monocytes", 0)):
        leaf = np.where(left_out.new, "CD4 T cells", left_out.truth)
        assert _scores(left_out, told_of(left_out, leaf, np.where(left_out.new, said, leaf)))["kept"] == kept


def test_table_has_each_method_and_each_type_that_is_left_out(tmp_path, monkeypatch):
    train = scvi.model.SCANVI.train
    monkeypatch.setattr(scvi.model.SCANVI, "train", lambda own, max_epochs, **more: train(own, 1, **more))
    asked = ("--data", "kang_subset", "--leave-out", "CD8 T cells", "--seeds", 1, "--genes", 100)
    out = tmp_path / "table.csv"
    short = ("--epochs", 1, "--scanvi", "--scanvi-epochs", 1, "--out", out)
    done = run("benchmark", "label-tree", *asked, *short)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    methods = {"CGMDVAE, tree", "CGMDVAE, flat", "regression, tree", "regression, flat", "scANVI"}
    for name, own in table.groupby("left out"):
        assert set(own["method"]) == methods
        assert own["kept"].notna().all() == (name == "CD8 T cells")
    assert table["deepest_at_90"].between(0, 1).all()
    assert summary(table).loc[("kang_subset", "-", "scANVI"), ("ece", "mean")] == pytest.approx(
        table.set_index(["left out", "method"]).loc[("-", "scANVI"), "ece"], abs=1e-3
    )


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="`data='paul15'` is not known"):
        sa.benchmark.label_tree(["paul15"])
    with pytest.raises(ValueError, match="`leave_out='T cells'` is not known"):
        sa.benchmark.label_tree(["kang_subset"], leave_out=["T cells"], seeds=[0], n_genes=50, max_epochs=1)
