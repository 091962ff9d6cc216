"""A run that dies and goes on is the same as one that does not; what ends training leaves a good model."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from contract.test_models import MODELS, each_class, setup

import scalloy as sa
from scalloy.data.fingerprint import Seal
from scalloy.files.reading import DamagedFileError
from scalloy.train.plan import NonFiniteLoss

RUN = {"max_epochs": 8, "enable_progress_bar": False, "accelerator": "cpu"}


class Death(pl.Callback):
    """Ends training in the middle of an epoch, as if the process had died."""

    def __init__(self, epoch, error=RuntimeError):
        self.epoch, self.error = epoch, error

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch and trainer.global_step % 3 == 1:
            raise self.error


def weights(model):
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@each_class
# before and after components are placed
@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_going_on_after_a_death(name, epoch, cells, tmp_path):
    setup(name, cells)
    whole = MODELS[name](cells)
    whole.train(**RUN)
    died = MODELS[name](cells)
    with pytest.raises(RuntimeError):
        died.train(checkpoint_dir=tmp_path / "run", callbacks=[Death(epoch)], **RUN)
    model = MODELS[name](cells)
    model.train(checkpoint_dir=tmp_path / "run", resume=True, **RUN)
    same(weights(model), weights(whole))
    for key, column in whole.history.items():
        np.testing.assert_array_equal(model.history[key].to_numpy(float), column.to_numpy(float))


def test_early_stopping_goes_on_where_it_was(cells, tmp_path):
    sa.VAE.setup_anndata(cells)
    run = {**RUN, "max_epochs": 60, "early_stopping_patience": 4, "plan_kwargs": {"lr": 0.05}}
    whole = sa.VAE(cells, n_hidden=8, n_latent=3)
    whole.train(**run)
    epochs = len(whole.history["train_loss"])
    assert 6 < epochs < 60
    model = sa.VAE(cells, n_hidden=8, n_latent=3)
    with pytest.raises(RuntimeError):
        model.train(checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=[Death(epochs - 2)], **run)
    model = sa.VAE(cells, n_hidden=8, n_latent=3)
    model.train(checkpoint_dir=tmp_path, checkpoint_every=2, resume=True, **run)
    assert len(model.history["train_loss"]) == epochs
    same(weights(model), weights(whole))


def test_checkpoints_of_other_runs_and_damaged_ones(cells, tmp_path):
    setup("VAE", cells)
    model = MODELS["VAE"](cells)
    model.train(checkpoint_dir=tmp_path, resume=True, **RUN)  # nothing there yet: begins
    with pytest.raises(FileExistsError, match="Pass `resume=True` to go on, or another `checkpoint_dir`"):
        MODELS["VAE"](cells).train(checkpoint_dir=tmp_path, **RUN)
    with pytest.raises(ValueError, match="a checkpoint of another run: max_epochs differ"):
        MODELS["VAE"](cells).train(checkpoint_dir=tmp_path, resume=True, **{**RUN, "max_epochs": 9})
    with pytest.raises(ValueError, match="settings differ"):
        sa.VAE(cells, n_hidden=17, n_latent=4).train(checkpoint_dir=tmp_path, resume=True, **RUN)
    other = cells.copy()
    other.X[0, 0] = 99
    setup("VAE", other)
    with pytest.raises(ValueError, match="data differ"):
        MODELS["VAE"](other).train(checkpoint_dir=tmp_path, resume=True, **RUN)
    with pytest.raises(ValueError, match="`resume=True` needs the folder of the checkpoint"):
        model.train(resume=True, **RUN)
    (state,) = tmp_path.glob("state-*")
    broken = bytearray(state.read_bytes())
    broken[len(broken) // 2] ^= 1
    state.write_bytes(broken)
    with pytest.raises(DamagedFileError, match="is not what was saved"):
        MODELS["VAE"](cells).train(checkpoint_dir=tmp_path, resume=True, **RUN)


SCRIPT = textwrap.dedent(
    """
    import sys, logging, numpy as np, scalloy as sa
    logging.getLogger("lightning.pytorch").setLevel(40)
    cells = sa.datasets.simulate(200, 40, seed=1)
    sa.CGMDVAE.setup_anndata(cells, batch_key="batch")
    model = sa.CGMDVAE(cells, n_hidden=16, n_latent=4)
    print("begins", flush=True)
    run = {"max_epochs": 40, "enable_progress_bar": False, "accelerator": "cpu"}
    model.train(checkpoint_dir=sys.argv[1], resume=True, **run)
    np.save(sys.argv[2], model.get_latent_representation())
    """
)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """A process that is killed at random moments, even while it writes, until it gets through."""
    script, out = tmp_path / "run.py", tmp_path / "z.npy"
    script.write_text(SCRIPT)
    rng, kills, n = random.Random(0), 0, int(os.environ.get("SCALLOY_KILLS", "4"))
    while not out.exists():
        command = [sys.executable, str(script), str(tmp_path / "run"), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        if kills < n:
            time.sleep(rng.uniform(0.05, 1.5))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
    whole = tmp_path / "whole.npy"
    subprocess.run([sys.executable, str(script), str(tmp_path / "other"), str(whole)], check=True)
    np.testing.assert_array_equal(np.load(out), np.load(whole))


# Ctrl-C -----------------------------------------------------------------------------------------


class Press(pl.Callback):
    """Presses Ctrl-C, once or more, at a step."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_with_the_best_weights(cells, caplog):
    before = signal.getsignal(signal.SIGINT)
    setup("VAE", cells)
    model = MODELS["VAE"](cells)
    seen = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, plan):
            seen.append((plan.best[0], {k: v.clone() for k, v in plan.best[1].items()}))

    model.train(**{**RUN, "max_epochs": 200}, callbacks=[Watch(), Press(38)])
    assert "Stopping with the best weights so far" in caplog.text
    assert len(model.history["train_loss"]) < 20
    assert model.is_trained_
    assert np.isfinite(model.get_latent_representation()).all()
    best = min(seen, key=lambda pair: pair[0])[1]
    same(weights(model), best)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_aborts(cells):
    before = signal.getsignal(signal.SIGINT)
    setup("VAE", cells)
    model = MODELS["VAE"](cells)
    with pytest.raises(KeyboardInterrupt):
        model.train(**RUN, callbacks=[Press(9, times=2)])
    assert signal.getsignal(signal.SIGINT) is before


# losses that break ------------------------------------------------------------------------------


def test_a_broken_loss_names_term_cell_and_gene(cells, monkeypatch):
    """An entry that no likelihood can score, in one cell and one gene."""
    setup("VAE", cells)
    model = MODELS["VAE"](cells)
    cells.X[17, 5] = np.float32(3e38)  # after the checks, of which the last one looks for just this
    monkeypatch.setattr(Seal, "check", lambda *_: None)
    with pytest.raises(NonFiniteLoss, match=r"reconstruction_loss.*cell_17.*gene_5") as caught:
        model.train(**RUN, train_size=1.0)
    assert list(caught.value.rows) == [17]
    assert list(caught.value.genes) == [5]
    assert all(v.isfinite().all() for v in model.module.parameters())


@pytest.mark.parametrize("monitor", ["validation_loss", "kl_z_validation"])
def test_checkpoints_of_scvi_tools_are_loaded_in_the_end(cells, tmp_path, monitor):
    """The best by what the user watches, which need not be what the model restores by itself."""
    from scvi.train import SaveCheckpoint

    setup("VAE", cells)
    model = MODELS["VAE"](cells)
    asked = SaveCheckpoint(
        dirpath=str(tmp_path), monitor=monitor, load_best_on_end=True, check_nan_gradients=True
    )
    model.train(callbacks=[asked], **RUN)
    best = sa.load(asked.best_model_path, cells)
    same(weights(model), weights(best))
    assert asked.load_best_on_end
    assert asked.check_nan_gradients
    values = model.history[monitor].iloc[:, 0].astype(float)
    assert float(asked.best_model_score) == pytest.approx(values.min())
    assert model.is_trained
    model.get_latent_representation()


def test_a_broken_loss_is_named_beside_checkpoints_of_scvi_tools(cells, tmp_path, monkeypatch):
    from scvi.train import SaveCheckpoint

    setup("VAE", cells)
    model = MODELS["VAE"](cells)
    cells.X[17, 5] = np.float32(3e38)  # after the checks, of which the last one looks for just this
    monkeypatch.setattr(Seal, "check", lambda *_: None)
    asked = SaveCheckpoint(dirpath=str(tmp_path), load_best_on_end=True, check_nan_gradients=True)
    with pytest.raises(NonFiniteLoss, match=r"reconstruction_loss.*cell_17"):
        model.train(callbacks=[asked], **RUN)
    assert all(v.isfinite().all() for v in model.module.parameters())
