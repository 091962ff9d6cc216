"""The benchmark of unknown types: its scores, its tasks, and that nothing of the type is labelled."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_score, roc_auc_score

import scalloy as sa
from scalloy.benchmark.unknown import LABELLED, UNKNOWN, _tasks, detection, summary

SHORT = {"max_epochs": 1, "n_genes": 100}


def test_detection_equals_scikit_learn():
    rng = np.random.default_rng(0)
    new = rng.random(1000) < 0.1
    score = rng.random(1000) + new * rng.random(1000)
    found = detection(new, score)
    called = score > np.sort(score[~new])[int(np.ceil(0.95 * ((~new).sum() - 1)))]
    assert called[~new].mean() <= 0.05
    assert found["auroc"] == pytest.approx(roc_auc_score(new, score))
    assert found["precision"] == pytest.approx(precision_score(new, called))
    assert found["recall"] == pytest.approx(called[new].mean())


def test_no_cell_of_the_type_is_labelled_and_half_of_the_others_are():
    adata = sa.datasets.simulate(400, 20, n_clusters=3, n_conditions=1)
    adata.obs = adata.obs.rename(columns={"cluster": "cell_type"}).drop(columns="condition")
    tasks = list(_tasks(adata, 0, None))
    assert [t.out for t in tasks] == sorted(adata.obs["cell_type"].unique())
    for t in tasks:
        assert not (t.known & (t.truth == t.out)).any()
        assert ((t.cells.obs["given"] == UNKNOWN) == ~t.known).all()
        others = t.truth != t.out
        assert t.known[others].mean() == pytest.approx(LABELLED, abs=0.02)
        assert t.new.sum() == (t.truth[~t.known] == t.out).sum() > 0


def test_table_has_each_method_in_each_situation():
    run = {"types": ["B cells"], "situations": ("mixed", "query"), **SHORT}
    table = sa.benchmark.unknown(["kang_subset"], **run)
    methods = table.groupby("situation")["method"].agg(set)
    assert methods["mixed"] - methods["query"] == {"regression, labelled or not"}
    assert "CGMDVAE" in methods["query"]
    assert table["auroc"].between(0, 1).all()
    short = summary(table)
    row = short.loc[("mixed", "all", "CGMDVAE")]
    own = table[(table["method"] == "CGMDVAE") & (table["situation"] == "mixed")]
    assert row["worst"] == pytest.approx(own["auroc"].min(), abs=1e-3)


def test_situations_and_types_are_checked():
    with pytest.raises(ValueError, match="`situations='both'` is not known"):
        sa.benchmark.unknown(["kang_subset"], situations=["both"])
    with pytest.raises(ValueError, match="`types='B cell'` is not known"):
        sa.benchmark.unknown(["kang_subset"], types=["B cell"], **SHORT)
