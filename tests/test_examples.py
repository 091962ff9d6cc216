"""The examples in docstrings are run, with the names that they take for granted."""

from __future__ import annotations

import doctest
import importlib
import logging
import pkgutil

import numpy as np
import pytest
import scvi

import scalloy as sa

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
QUIET = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}


def examples():
    """Every docstring with an example, by the module that it is in."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages(sa.__path__, "scalloy."):
        module = importlib.import_module(found.name)
        for test in finder.find(module, found.name, module):
            if test.examples:
                yield test


@pytest.fixture(scope="module")
def names():
    """Names that examples take for granted."""
    adata = sa.datasets.simulate(200, 40, seed=1, n_proteins=3)
    sa.CGMDVAE.setup_anndata(adata, condition_key="condition", labels_key="cluster", batch_key="batch")
    model = sa.CGMDVAE(adata, n_hidden=16)
    model.train(**QUIET)
    pairs, sparse = adata.copy(), adata.copy()
    sa.POISEVAE.setup_anndata(pairs)
    poisevae = sa.POISEVAE(pairs, n_hidden=16, n_chains=32)
    poisevae.train(**QUIET)
    sa.BetaVSC.setup_anndata(sparse)
    betavsc = sa.BetaVSC(sparse, n_hidden=16)
    betavsc.train(**QUIET)
    return {"sa": sa, "np": np, "adata": adata, "model": model, "poisevae": poisevae, "betavsc": betavsc}


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
@pytest.mark.filterwarnings("ignore")
def test_example_runs(test, names, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scvi.settings, "verbosity", logging.ERROR)
    monkeypatch.chdir(tmp_path)
    test.globs = {**test.globs, **names, "folder": tmp_path}
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)
