"""The examples in docstrings are run, with the names that they take for granted."""

from __future__ import annotations

import doctest
import importlib
import inspect
import logging
import pkgutil

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scvi

import scalloy as sa

mpl.use("Agg")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
QUIET = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}
ROOMS = (
    sa,
    sa.metrics,
    sa.pl,
    sa.compare,
    sa.data,
    sa.baselines,
    sa.datasets,
    sa.benchmark,
    sa.models,
)


def examples():
    """Every docstring with an example, by the module that it is in."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages(sa.__path__, "scalloy."):
        module = importlib.import_module(found.name)
        for test in finder.find(module, found.name, module):
            if test.examples:
                yield test


EXAMPLES = list(examples())


def is_ours(thing):
    """Whether a function or class is defined in scalloy."""
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):
        return False
    return (thing.__module__ or "").partition(".")[0] == "scalloy"


def public_names(room):
    """What users see in a room: what it lists, or else what is defined there."""
    listed = getattr(room, "__all__", None)
    if listed is None:
        listed = [k for k, v in vars(room).items() if getattr(v, "__module__", None) == room.__name__]
    return sorted(k for k in listed if not k.startswith("_"))


def methods(cls):
    """Public methods and properties that scalloy defines, by name, also those that are inherited."""
    for name in dir(cls):
        found = inspect.getattr_static(cls, name)
        found = found.fget if isinstance(found, property) else getattr(cls, name)
        found = inspect.unwrap(getattr(found, "__func__", found))
        if not name.startswith("_") and is_ours(found):
            yield name, found


def public(rooms=ROOMS):
    """Public functions, classes and methods, by the names under which users find them."""
    for room in rooms:
        for name in public_names(room):
            thing = getattr(room, name)
            if is_ours(thing):
                place = f"{room.__name__}.{name}"
                yield place, thing
                if inspect.isclass(thing):
                    yield from ((f"{place}.{method}", found) for method, found in methods(thing))


def without_example(rooms=ROOMS):
    """Public names whose docstring has no example that is run."""
    run = {test.docstring for test in EXAMPLES}
    return [place for place, thing in public(rooms) if thing.__doc__ is None or thing.__doc__ not in run]


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
    screen = sa.datasets.screen(300, 30, n_types=2, n_drugs=3, n_pairs=3, doses=(0.1, 1.0), seed=0)
    asked = sa.Conditions("drug", control="control", dose="dose", descriptors="descriptors")
    sa.CGMDVAE.setup_anndata(screen, conditions=asked, labels_key="cell_type")
    screened = sa.CGMDVAE(screen, n_hidden=16)
    screened.train(**QUIET)
    made = {"model": model, "poisevae": poisevae, "betavsc": betavsc, "screened": screened}
    return {"sa": sa, "np": np, "adata": adata, **made}


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
@pytest.mark.filterwarnings("ignore")
def test_example_runs(test, names, tmp_path, monkeypatch, capsys, registries):
    monkeypatch.setattr(scvi.settings, "verbosity", logging.ERROR)
    monkeypatch.chdir(tmp_path)
    test.globs = {**test.globs, **names, "folder": tmp_path}
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append, clear_globs=False)
    plt.close("all")
    assert not said, "".join(said)


def test_everything_public_has_an_example():
    assert not without_example()


def test_a_missing_example_is_noticed(monkeypatch):
    class Bare:
        """A class with an example in its method only."""

        train = sa.VAE.train

        def predict(self):
            """Return nothing."""

    before = without_example()
    for part in (Bare, Bare.predict):
        monkeypatch.setattr(part, "__module__", "scalloy.baselines")
    monkeypatch.setattr(sa.baselines, "Bare", Bare, raising=False)
    monkeypatch.setattr(sa.baselines, "__all__", [*sa.baselines.__all__, "Bare"])
    added = set(without_example()) - set(before)
    assert added == {"scalloy.baselines.Bare", "scalloy.baselines.Bare.predict"}
