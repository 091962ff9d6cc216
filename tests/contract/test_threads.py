"""Several threads at once: each gets the numbers that it would have got alone, and none waits for ever."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from contract.test_repeatable import bits, digits, fitted
from scipy.sparse import issparse

import scalloy as sa
from scalloy._seeds import seeded

SECONDS = 60
KEYS = {"condition_key": "condition", "labels_key": "cluster"}
NAMES = ("VAE", "CGMDVAE", "TRVAE", "POISEVAE")


def at_once(*calls):
    """Results of functions that begin together, each in a thread of its own."""
    start, n = threading.Barrier(len(calls)), torch.get_num_threads()

    def one(call):
        torch.set_num_threads(n)  # numba's OpenMP, in UMAP, changes those of the thread that began it
        start.wait(SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [done.result(SECONDS) for done in [pool.submit(one, call) for call in calls]]


def trained(name, cells, quick, seed):
    """A model of cells of its own, from the set-up to the end of training."""
    own, cls = cells.copy(), getattr(sa, name)
    cls.setup_anndata(own, **(KEYS if name in {"CGMDVAE", "TRVAE"} else {}))
    return fitted(name, own, quick, seed=seed)


@pytest.mark.parametrize("name", NAMES)
def test_two_trainings_give_the_models_that_they_give_alone(name, cells, quick):
    alone = [bits(trained(name, cells, quick, seed)) for seed in (3, 4)]
    assert alone[0] != alone[1]
    together = at_once(*(lambda s=s: bits(trained(name, cells, quick, s)) for s in (3, 4, 3)))
    assert together == [*alone, alone[0]]


def calls_of(model, cells):
    """Everything that a model draws when it is asked, by name."""
    control = cells[cells.obs["condition"] == "control"].copy()
    out = {
        "sample": lambda: model.get_latent_representation(give_mean=False),
        "expression": lambda: model.get_normalized_expression(n_samples=2, return_numpy=True),
        "predictive": lambda: model.posterior_predictive_sample(),
        "elbo": lambda: model.get_elbo(return_mean=False),
        "reconstruction": lambda: model.get_reconstruction_error(),
        "marginal": lambda: model.get_marginal_ll(n_mc_samples=3),
        "statistics": lambda: model.get_gene_statistics(),
        "differences": lambda: model.differential_expression(groupby="cluster", silent=True),
    }
    if isinstance(model, sa.CGMDVAE | sa.TRVAE):
        out["transfer"] = lambda: model.transfer(control, to="treated_1", seed=1).layers["counts"]
    if isinstance(model, sa.VAE | sa.TRVAE | sa.CGMDVAE):
        out["generate"] = lambda: model.generate(20, seed=1).X
    if isinstance(model, sa.CGMDVAE):
        out["labels"] = lambda: model.predict_labels(soft=True)
        out["clusters"] = lambda: model.get_cluster_probabilities()
    if isinstance(model, sa.POISEVAE):
        out["predict"] = lambda: model.predict("prot", "rna", n_samples=3)
        out["generate"] = lambda: model.generate(20, n_steps=5, seed=1).X
    return out


def said(value):
    return digits(value.toarray() if issparse(value) else value)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_while_another_model_trains_is_what_is_drawn_alone(name, cells, quick):
    """And the training is what it is alone, too."""
    model, expected = trained(name, cells, quick, 1), bits(trained("VAE", cells, quick, 2))
    calls = calls_of(model, cells)
    alone = {k: said(call()) for k, call in calls.items()}
    found, again, other = at_once(
        lambda: {k: said(call()) for k, call in calls.items()},
        lambda: bits(trained("VAE", cells, quick, 2)),
        lambda: {k: said(calls[k]()) for k in reversed(calls)},
    )
    assert found == alone
    assert other == alone
    assert again == expected


def test_the_global_states_are_what_they_were(cells, quick):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    at_once(*(lambda s=s: trained("VAE", cells, quick, s) for s in (1, 2)))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def draws(seed, n=200):
    """Numbers of torch and numpy, with pauses in which others could draw."""
    out = []
    with seeded(seed):
        for _ in range(n):
            out.append(float(torch.rand(())) + np.random.rand())
            time.sleep(0)
        with seeded(None, otherwise=9):
            out.append(float(torch.rand(())))
        with seeded(seed + 1):
            out.append(float(torch.rand(())))
    return out


def test_draws_of_many_threads():
    alone = [draws(seed) for seed in range(6)]
    assert at_once(*(lambda s=s: draws(s) for s in range(6))) == alone


def test_a_thread_begins_anew_whatever_another_one_draws():
    """`None` goes on with what this thread draws, not with what happens to be drawn elsewhere."""
    torch.manual_seed(7)
    expected = float(torch.rand(()))
    inside, done, found = threading.Event(), threading.Event(), []

    def holds():
        with seeded(1):
            inside.set()
            done.wait(0.3)

    def asks():
        with seeded(None, otherwise=7):
            found.append(float(torch.rand(())))

    first = threading.Thread(target=holds)
    first.start()
    inside.wait(SECONDS)
    second = threading.Thread(target=asks)
    second.start()
    for thread in (first, second):
        thread.join(SECONDS)
    assert found == [expected]


def test_an_error_lets_the_next_one_in():
    def fails():
        with seeded(1):
            raise KeyError

    def ends():
        with seeded(1):
            raise SystemExit  # how Ray ends a trial

    for broken, error in ((fails, KeyError), (ends, SystemExit)):
        with pytest.raises(error):
            broken()
        assert at_once(lambda: draws(3)) == [draws(3)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("where", ["within", "beside"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_does_not_wait(where):
    """Neither within draws by a seed nor while another thread draws: workers of loaders are forked so."""
    inside, done = threading.Event(), threading.Event()

    def holds():
        with seeded(1):
            inside.set()
            done.wait(SECONDS)

    other = threading.Thread(target=holds)
    if where == "beside":
        other.start()
        inside.wait(SECONDS)
        assert forked()
        done.set()
        other.join(SECONDS)
    else:
        with seeded(1):
            assert forked()


def forked():
    """Whether a child can draw by a seed, in its own thread and in another one."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with seeded(5):
                first = float(torch.rand(()))
            second = []
            thread = threading.Thread(target=lambda: second.append(draws(5, 1)))
            thread.start()
            thread.join(SECONDS)
            torch.manual_seed(5)
            code = int(first != float(torch.rand(())) or len(second) != 1)
        finally:
            os._exit(code)
    for _ in range(100 * 20):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def test_ctrl_c_ends_the_waiting():
    """The main thread waits for another one and hears of Ctrl-C all the same."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever others have left there
    try:
        _interrupted_while_it_waits()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted_while_it_waits():
    inside, done = threading.Event(), threading.Event()

    def holds():
        with seeded(1):
            inside.set()
            done.wait(SECONDS)

    other = threading.Thread(target=holds)
    other.start()
    inside.wait(SECONDS)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), seeded(2):
        pytest.fail("two threads draw at once")
    assert time.monotonic() - begin < SECONDS / 2
    done.set()
    other.join(SECONDS)
    assert at_once(lambda: draws(3)) == [draws(3)]


def test_who_waits_is_told_why(caplog):
    inside, done = threading.Event(), threading.Event()

    def holds():
        with seeded(1):
            inside.set()
            done.wait(SECONDS)

    other = threading.Thread(target=holds)
    other.start()
    inside.wait(SECONDS)
    threading.Timer(0.2, done.set).start()
    with caplog.at_level(logging.INFO, logger="scalloy"):
        draws(2, 1)
    other.join(SECONDS)
    assert "Another thread is making seeded draws" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scalloy"):
        draws(2, 1)
    assert not caplog.text


def test_workers_of_a_loader(cells, quick):
    """A data module of one's own, whose loader has processes that are forked within training."""
    from torch.utils.data import DataLoader

    class Forking(sa.data.splitter.CellSplitter):
        def train_dataloader(self):
            loader = super().train_dataloader()
            batches = list(loader)
            return DataLoader(batches, batch_size=None, num_workers=1, multiprocessing_context="fork")

    sa.VAE.setup_anndata(cells)
    dense = cells.copy()
    dense.X = dense.X.toarray() + 1.0  # sparse tensors do not travel between processes
    sa.VAE.setup_anndata(dense)
    model = sa.VAE(dense, n_hidden=8, n_latent=2)
    model._data_splitter_cls = Forking
    (found,) = at_once(lambda: model.train(**quick) or bits(model))
    assert found
