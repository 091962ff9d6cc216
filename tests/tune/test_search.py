"""The search: what it refuses, what it finds, and that a killed one goes on without losing anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scalloy as sa
from scalloy.cli.main import app
from scalloy.tune import search as module

pytest.importorskip("ray", reason="the extra `search` is not installed")
SMALL = {"max_epochs": 4, "n_mc_samples": 5, "progress": False}
SPACE = {"n_latent": [2, 3], "n_clusters": [2, 4], "n_hidden": [8], "lr": [0.01]}
LONG = {**SMALL, "max_epochs": 60}


@pytest.fixture(scope="module")
def cells():
    return sa.datasets.simulate(300, 40, seed=1)


def test_every_combination_once_and_arguments_only_where_they_belong():
    trials = module._settings(["VAE", "GMVAE"], SPACE, None, (0, 1))
    assert len(trials) == (2 + 4) * 2
    assert all(("n_clusters" in t) == (t["model"] == "GMVAE") for t in trials)
    assert all({"lr", "n_hidden", "n_latent", "seed"} <= set(t) for t in trials)
    beta = module._settings("BetaVAE", {"beta": [1, 2], "n_latent": [5]}, None, (0,))
    assert [t["beta"] for t in beta] == [1, 2]


def test_networks_are_values_and_the_table_can_be_grouped_by_them():
    space = {"n_hidden": [[16, 8], 16], "decoder": ["mlp", {"n_hidden": [4]}]}
    trials = module._settings("VAE", space, None, (0, 1))
    assert len(trials) == 8

    class Result:
        def __init__(self, i):
            self.metrics, self.config = {module.JUDGE: -i, module.EARLY: i}, {"trial": i}
            self.checkpoint = self.error = None

    found = module._collected([Result(i) for i in range(8)], trials)
    assert found.best == {"model": "VAE", "n_hidden": [16, 8], "decoder": "mlp", "seed": 0}
    summary = found.summary()
    assert summary["seeds"].tolist() == [2, 2, 2, 2]
    assert summary.index[1] == ("VAE", "[16, 8]", "{'n_hidden': [4]}")


def test_drawn_settings():
    from ray import tune

    space = {"n_latent": range(2, 30), "lr": tune.loguniform(1e-3, 1e-2)}
    trials = module._settings("VAE", space, 20, (0,))
    assert trials == module._settings("VAE", space, 20, (0,))
    assert len({t["n_latent"] for t in trials}) > 8
    assert all(1e-3 <= t["lr"] <= 1e-2 for t in trials)
    with pytest.raises(ValueError, match="no list of values for lr"):
        module._settings("VAE", space, None, (0,))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "VEA"}, "`model='VEA'` is not known.*Did you mean 'VAE'"),
        ({"model": "AE"}, "`model='AE'` is not known"),
        ({"space": {"n_laten": [3]}}, "`space='n_laten'` is not known.*Did you mean 'n_latent'"),
        ({"space": {"n_clusters": [3]}}, "`space='n_clusters'` is not known"),
        ({"n_trials": 0}, "`n_trials=0` must be above zero"),
        ({"batch_key": "donor"}, "donor"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(cells, tmp_path, given, message):
    with pytest.raises((ValueError, KeyError), match=message):
        sa.search(cells, **{"folder": tmp_path / "s", **SMALL, **given})
    assert not (tmp_path / "s").exists()


def test_a_trial_tells_the_lowest_loss_of_validation(cells, monkeypatch):
    """That of the weights which it keeps, not that of its last epoch."""
    said = []
    monkeypatch.setattr("ray.tune.report", lambda figures, checkpoint=None: said.append(figures))
    given = [{"model": "VAE", "n_hidden": 8, "n_latent": 3, "lr": 0.1, "lr_schedule": "constant", "seed": 0}]
    module._trial({"trial": 0}, adata=cells, setup={}, epochs={"VAE": 12}, n_mc_samples=2, settings=given)
    *epochs, last = said
    assert [figures["progress"] for figures in epochs] == [1000 * k // 12 for k in range(1, 13)]
    assert last["progress"] < 3 * 334  # the scheduler ends no trial that is done
    losses = [figures["elbo_validation"] for figures in epochs]
    assert len(losses) == last["epochs"] == 12
    assert min(losses) < losses[-1]
    assert last["elbo_validation"] == pytest.approx(min(losses))


class Begins(Exception):
    """Raised where Ray would begin."""


class Trained(Exception):
    """Raised where training would begin."""


@pytest.fixture(scope="module")
def many():
    """So many cells that default numbers of epochs differ by model."""
    return sa.datasets.simulate(2560, 20, seed=1, n_proteins=3)


@pytest.mark.parametrize("name", ["VAE", "POISEVAE"])
@pytest.mark.parametrize(
    ("own", "of_search"), [({}, None), ({}, 7), ({"max_epochs": 5}, 7), ({"max_epochs": None}, 7)]
)
def test_epochs_of_a_trial(name, own, of_search, many, begins_with, monkeypatch):
    """Those in its settings, or else those of the search, or else what the model would choose."""
    trained = {}

    def train(self, **given):
        trained.update(given)
        raise Trained

    keys = {"protein_obsm_key": next(iter(many.obsm))} if name == "POISEVAE" else {}
    cls = getattr(sa, name)
    monkeypatch.setattr(cls, "train", train)
    epochs = begins_with(name, keys, of_search)
    given = [{"model": name, "n_hidden": 8, "seed": 0, **own}]
    with pytest.raises(Trained):
        module._trial({"trial": 0}, adata=many, setup=keys, epochs=epochs, n_mc_samples=2, settings=given)
    steps = many.n_obs * 0.9 / trained["batch_size"]
    expected = own.get("max_epochs") or of_search or min(200, np.ceil(cls._default_steps / steps))
    assert trained["max_epochs"] == expected


@pytest.fixture
def begins_with(many, tmp_path, monkeypatch):
    """The epochs that a search gives to its trials."""

    class Tune:
        def with_parameters(self, *_, **given):
            raise Begins(given["epochs"])

    monkeypatch.setattr(module, "ray_tune", Tune)

    def search(name, keys, epochs):
        given = {"folder": tmp_path / "s", **SMALL, "max_epochs": epochs}
        with pytest.raises(Begins) as stopped:
            sa.search(many, name, {"n_hidden": [8]}, **given, **keys)
        return stopped.value.args[0]

    return search


def test_trials_fall_behind_after_a_third_of_their_own_epochs(monkeypatch):
    from types import SimpleNamespace

    from scalloy.tune import trials

    said, ends = [], trials.scheduler()
    monkeypatch.setattr("ray.tune.report", said.append)

    def epochs_of(name, most, loss):
        """Number of epochs after which a trial is ended."""
        trial = SimpleNamespace(trial_id=name)
        ends.on_trial_add(None, trial)
        for epoch in range(most):
            seen = {"callback_metrics": {"elbo_validation": loss}, "sanity_checking": False}
            now = SimpleNamespace(**seen, current_epoch=epoch, max_epochs=most)
            trials.Reports().on_validation_end(now, None)
            if ends.on_trial_result(None, trial, said[-1]) != "CONTINUE":
                return epoch + 1
        return most

    assert [epochs_of(f"good {i}", 12, 1.0 - 0.01 * i) for i in range(4)] == [12] * 4
    assert epochs_of("bad", 12, 9.0) == 5
    assert epochs_of("bad and long", 60, 9.0) == 21
    assert epochs_of("bad and short", 3, 9.0) == 2
    assert epochs_of("best", 60, 0.1) == 60


SCRIPT = """
import sys, scalloy as sa
found = sa.search(
    sa.datasets.simulate(300, 40, seed=1), "GMVAE", {space}, folder=sys.argv[1], resume="resume" in sys.argv,
    stop_early=False, batch_key="batch", **{settings}
)
found.table.to_csv(sys.argv[2], index=False)
"""


@pytest.mark.slow
def test_a_killed_search_goes_on(cells, tmp_path):
    """Killed with all its processes when some trials are done: these stay as they are, the others follow."""
    script, folder, out = tmp_path / "search.py", tmp_path / "killed", tmp_path / "table.csv"
    script.write_text(SCRIPT.format(space=SPACE, settings=LONG))
    command = [sys.executable, str(script), str(folder), str(out)]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    finished = wait_for_a_trial(folder, process)
    kill_with_all_its_children(process)
    assert not out.exists()
    before = {t: (folder / t / "result.json").read_text() for t in finished}
    done = subprocess.run([*command, "resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    again = pd.read_csv(out).set_index("trial").sort_index()
    assert list(again.index) == [0, 1, 2, 3]
    assert (again["status"] == "finished").all()
    for name, text in before.items():
        assert (folder / name / "result.json").read_text() == text  # not trained twice
    with pytest.raises(FileExistsError, match="Pass `resume=True`"):
        sa.search(cells, "GMVAE", SPACE, folder=folder, **SMALL)
    for other in ({"space": {**SPACE, "n_latent": [2]}}, {"batch_key": None}):
        with pytest.raises(ValueError, match="holds another search"):
            sa.search(
                cells,
                "GMVAE",
                **{"space": SPACE, "batch_key": "batch", "folder": folder, **other, **LONG},
                resume=True,
            )
    whole = sa.search(
        cells, "GMVAE", SPACE, folder=tmp_path / "whole", stop_early=False, batch_key="batch", **LONG
    )
    expected = whole.table.set_index("trial").sort_index()
    np.testing.assert_allclose(again["marginal_ll"], expected["marginal_ll"], rtol=1e-6)
    assert whole.table["marginal_ll"].is_monotonic_decreasing
    assert whole.best == whole.trials[whole.table["trial"][0]]
    model = whole.load(adata=cells.copy())
    assert model.init_params_["non_kwargs"]["n_latent"] == whole.best["n_latent"]
    value = model.get_marginal_ll(n_mc_samples=200)
    assert value == pytest.approx(whole.table["marginal_ll"][0], abs=2 * whole.table["se"][0])
    assert list(whole.summary().columns) == [
        "marginal_ll",
        "sd",
        "seeds",
        "se",
        "elbo_validation",
        "epochs",
        "seconds",
    ]


@pytest.fixture
def begins(cells, tmp_path, monkeypatch):
    """A search that writes what it is, and stops before Ray begins; its folder is there."""

    class Tune:
        def __getattr__(self, name):
            raise Begins(name)

    monkeypatch.setattr(module, "ray_tune", Tune)

    def search(adata, **more):
        given = {"batch_key": "batch", "folder": tmp_path / "s", **SMALL, **more}
        with pytest.raises(Begins) as stopped:
            sa.search(adata, ["VAE", "CGMDVAE"], {"n_latent": [2]}, **given)
        return str(stopped.value)

    assert search(cells) == "with_parameters"
    return search


def other_counts(adata):
    adata.X[3, 3] += 1


def other_columns(adata):
    adata.obs["batch"] = np.roll(adata.obs["batch"].to_numpy(), 1)


def other_names_of_batches(adata):
    adata.obs["batch"] = "renamed " + adata.obs["batch"].astype(str)


def other_genes(adata):
    adata.var_names = adata.var_names[::-1]


def other_cells(adata):
    adata.obs_names = [f"other {name}" for name in adata.obs_names]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_counts, "counts"),
        (other_columns, "columns"),
        (other_names_of_batches, "columns"),
        (other_genes, "genes"),
        (other_cells, "cells"),
    ],
)
def test_a_search_goes_on_with_the_same_data_only(cells, begins, change, said):
    adata = cells.copy()
    change(adata)
    with pytest.raises(
        ValueError, match=rf"search\.json, where cells \({said}\) differ\. Pass the same cells"
    ):
        begins(adata, resume=True)


def test_a_search_goes_on_however_the_data_are_stored(cells, begins):
    for form in (lambda x: x.tocsc(), lambda x: x.toarray().astype("int64")):
        adata = cells.copy()
        adata.X = form(adata.X)
        adata.obs["batch"] = adata.obs["batch"].astype(str)
        adata.obs["more"] = 1.0  # is not registered
        assert begins(adata, resume=True) == "Tuner"
    with pytest.raises(ValueError, match=r"where setup, cells \(columns\) differ"):
        begins(cells.copy(), resume=True, batch_key=None)
    with pytest.raises(ValueError, match="where epochs differ"):
        begins(cells.copy(), resume=True, max_epochs=5)


def wait_for_a_trial(folder, process, seconds=200):
    for _ in range(seconds * 5):
        results = {p.parent.name: p.read_text() for p in folder.glob("trial_*/result.json")}
        finished = [t for t, text in results.items() if '"marginal_ll"' in text and text.endswith("\n")]
        if finished:
            time.sleep(1.2)  # the state of the search is written once a second
            return finished
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.2)
    pytest.fail("no trial ended")
    return []


def kill_with_all_its_children(process):
    """Ray's processes too, which have sessions of their own."""
    family = [process.pid]
    for pid in family:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
        family += [int(p) for p in children.stdout.split()]
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.mark.slow
def test_command_line_and_trials_that_fail_or_fall_behind(cells, tmp_path):
    file, out = tmp_path / "cells.h5ad", tmp_path / "table.csv"
    cells.write_h5ad(file)
    args = ["--set", "gene_likelihood=nb,zinb", "--set", "k_max=0,2", "--set", "n_hidden=8", "--epochs", "5"]
    done = CliRunner().invoke(
        app, ["search", str(file), *args, "--folder", str(tmp_path / "s"), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    failed = table[table["status"] == "failed"]
    assert failed[["gene_likelihood", "k_max"]].to_numpy().tolist() == [["zinb", 2]]
    assert (table["status"] == "finished").sum() >= 1
    behind = table[table["status"] == "stopped early"]
    assert (behind["epochs"] < 5).all()
    assert behind["marginal_ll"].isna().all()
    assert "best: {'model': 'VAE'" in done.output
    kept = json.loads((tmp_path / "s" / "trial_0" / "params.json").read_text())
    assert kept == {"trial": 0}


def test_a_missing_extra_names_itself(monkeypatch, cells):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'scalloy\[search\]'"):
        sa.search(cells)


def test_a_search_of_others_is_not_read_unasked(cells, tmp_path, monkeypatch):
    """Ray's state is a pickle: what somebody else has put there does not run."""
    import pickle
    from pathlib import Path

    from scalloy.tune import consent

    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    monkeypatch.setattr(consent, "known", lambda: tmp_path / "mine")
    folder = tmp_path / "search"
    given = {"space": {"n_hidden": [8], "n_latent": [2]}, "folder": folder, **SMALL, "max_epochs": 2}
    first = sa.search(cells, **given)
    again = sa.search(cells, resume=True, **given)
    pd.testing.assert_frame_equal(first.table.drop(columns="folder"), again.table.drop(columns="folder"))
    monkeypatch.setattr(consent, "known", lambda: tmp_path / "of another machine")
    state = (folder / "tuner.pkl").read_bytes()
    (folder / "tuner.pkl").write_bytes(pickle.dumps(Runs()))
    for token in (None, "", "../../etc", (folder / consent.TOKEN).read_text()):
        if token is None:
            (folder / consent.TOKEN).rename(tmp_path / "token")
        else:
            (folder / consent.TOKEN).write_text(token)
        with pytest.raises(ValueError, match=r"was not begun by you.*Pass `allow_pickle=True`"):
            sa.search(cells, resume=True, **given)
    assert not (tmp_path / "ran").exists()
    (folder / "tuner.pkl").write_bytes(state)
    asked = sa.search(cells, resume=True, allow_pickle=True, **given)
    assert list(asked.table["status"]) == ["finished"]
