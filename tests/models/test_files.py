"""Model files: whole or not there, of every format, and from strangers."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from contract.test_models import MODELS, setup
from safetensors.torch import load_file

import scalloy as sa
from scalloy.files import plain_json
from scalloy.files.reading import DamagedFileError
from scalloy.models._core import files

STORED = Path(__file__).parents[1] / "stored"


def strict(text):
    """JSON as other languages read it, without NaN."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


# formats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vae", "cgmdvae"])
@pytest.mark.parametrize("stored", sorted(p.name for p in STORED.iterdir()))
def test_every_format_of_every_stack(stored, kind, tmp_path):
    """Made with scvi-tools 1.4 on Python 3.11, and with 1.5 on 3.12: each is read on the other one, too."""
    folder = STORED / stored / kind
    expected = np.load(folder / "latent.npy")
    model = sa.load(folder)
    np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-5)
    assert len(model.history["train_loss"]) == 2
    rows = np.concatenate([model.train_indices, model.validation_indices])
    assert sorted(rows) == list(range(60))
    model.save(tmp_path / "again", save_anndata=True)  # in the newest format
    assert strict((tmp_path / "again" / "model.json").read_text())["format"] == files.FORMAT
    again = sa.load(tmp_path / "again")
    np.testing.assert_allclose(again.get_latent_representation(), expected, atol=1e-5)
    again.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")


@pytest.mark.parametrize("stored", [p.name for p in STORED.iterdir() if p.name < "format-3"])
def test_labels_of_models_that_knew_straight_boundaries_only(stored):
    weights = load_file(next((STORED / stored / "cgmdvae").glob("*.safetensors")))
    weight, bias = (
        next(v for k, v in weights.items() if k.endswith(f"readers.of_z.{of}")) for of in ("weight", "bias")
    )
    model = sa.load(STORED / stored / "cgmdvae")
    z = torch.tensor(model.get_latent_representation())
    torch.testing.assert_close(model.module.readers.of_z(z), torch.softmax(z @ weight + bias, -1))


@pytest.mark.parametrize("kind", ["cgmdvae_style", "cgmdvae_one"])
def test_models_of_format_3_that_are_made_otherwise_now(kind, tmp_path):
    """A learned prior of ``w``, in units of which its posterior was; and one cluster of 25 components."""
    folder = STORED / "format-3-python-3.11" / kind
    expected, model = np.load(folder / "expected.npz"), sa.load(folder)
    for again in (False, True):
        if again:
            model.save(tmp_path / "again", save_anndata=True)
            model = sa.load(tmp_path / "again")
        np.testing.assert_allclose(model.get_latent_representation(), expected["z"], atol=1e-5)
        np.testing.assert_allclose(model.get_cluster_probabilities(), expected["clusters"], atol=1e-5)
        if kind == "cgmdvae_style":
            mean, variance = model.get_latent_representation(which="w", return_dist=True)
            np.testing.assert_allclose(mean, expected["w"], atol=1e-5)
            np.testing.assert_allclose(variance, expected["w_var"], rtol=1e-4)
        else:
            assert model.cluster_names == ["0"]
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")


@pytest.mark.parametrize("kind", ["poisevae", "poisevae_gaussian"])
def test_models_of_two_modalities_of_format_5(kind, tmp_path):
    """Their weights have other names now; the bound is the same up to the samples of the latents."""
    folder = STORED / "format-5-python-3.11" / kind
    model, z = sa.load(folder), np.load(folder / "latent.npy")
    for again in (False, True):
        if again:
            model.save(tmp_path / "again", save_anndata=True)
            model = sa.load(tmp_path / "again")
        np.testing.assert_allclose(model.get_latent_representation(), z, atol=1e-5)
        assert model.get_marginal_ll(n_mc_samples=100) == pytest.approx(
            np.load(folder / "marginal.npy"), abs=1
        )
        found = model.predict("prot", from_="rna", n_samples=200).to_numpy()
        np.testing.assert_allclose(np.log(found / np.load(folder / "protein.npy")).mean(0), 0, atol=0.2)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")


def test_a_model_of_four_modalities_of_format_6():
    folder = STORED / "format-6-python-3.11" / "poisevae"
    model = sa.load(folder)
    assert model.modalities == ("rna", "prot", "atac", "clone")
    np.testing.assert_allclose(model.get_latent_representation(), np.load(folder / "latent.npy"), atol=1e-5)
    assert model.get_variables("atac")[3] == "peak 3"


def test_a_file_cannot_say_that_it_is_older_than_it_is(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "m"))
    about = json.loads((folder / "model.json").read_text())
    weights = load_file(folder / about["files"]["weights"])
    assert about["format"] == 2
    assert not any("bent" in k for k in weights)
    for without in (True, "readers.*", ["readers"]):
        (folder / "model.json").write_text(json.dumps({**about, "format": 3, "without": without}))
        with pytest.raises(DamagedFileError, match="weights readers"):
            sa.load(folder)


@pytest.mark.parametrize("stored", sorted(p.name for p in STORED.iterdir()))
def test_every_format_without_cells(stored, tmp_path):
    folder = Path(shutil.copytree(STORED / stored / "vae", tmp_path / "m"))
    model = sa.load(folder)
    cells = model.adata.copy()
    model.save(tmp_path / "without")
    if stored == "format-1":
        (folder / "adata.h5ad").unlink()
        model = sa.load(folder)
    else:
        model = sa.load(tmp_path / "without")
    assert model.adata is None
    expected = np.load(folder / "latent.npy")
    np.testing.assert_allclose(model.get_latent_representation(cells), expected, atol=1e-5)


def test_what_is_written_is_plain(saved):
    about = strict((saved / "model.json").read_text())
    assert {"format", "versions", "init", "registry", "history", "data", "files"} <= set(about)
    assert about["data"]["n_cells"] == 60
    for name in about["files"].values():
        assert b"\x80\x04" not in (saved / name).read_bytes()[:2]  # no pickle
    tensors = load_file(saved / about["files"]["weights"])
    assert tensors["indices/train"].dtype == torch.int64


def test_odd_numbers_survive():
    value = {
        "a": [float("nan"), float("inf"), -float("inf"), 1.5],
        "b": np.array([1, 2]),
        "c": np.array(["x"]),
    }
    back = plain_json.loads(plain_json.dumps(value))
    np.testing.assert_array_equal(back["a"], value["a"])
    np.testing.assert_array_equal(back["b"], value["b"])
    assert back["c"].tolist() == ["x"]
    assert strict(plain_json.dumps(value))
    with pytest.raises(TypeError, match="A set cannot be written"):
        plain_json.dumps({1, 2})


def test_rows_of_other_data_are_forgotten(cells, quick, tmp_path):
    setup("VAE", cells)
    model = MODELS["VAE"](cells)
    model.train(**quick)
    model.save(tmp_path / "m")
    assert sa.load(tmp_path / "m", cells).train_indices is not None
    assert sa.load(tmp_path / "m", cells[::-1].copy()).train_indices is None


# writing ----------------------------------------------------------------------------------------

SAVER = textwrap.dedent(
    """
    import os, sys, time, scalloy as sa
    models = [sa.load(sys.argv[1]), sa.load(sys.argv[1])]
    models[1].module.enc_z.head.loc.bias.data += 1
    begun = time.perf_counter()
    for model in models:
        model.save(sys.argv[2], overwrite=True, save_anndata=True)
    print(time.perf_counter() - begun, flush=True)
    for line in sys.stdin:  # a child for each kill: it saves one model after the other
        child = os.fork()
        models.reverse()
        if child == 0:
            while True:
                for model in models:
                    model.save(sys.argv[2], overwrite=True, save_anndata=True)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)
    """
)
SAVED = STORED / "format-2-python-3.11" / "cgmdvae"


def test_killed_while_it_saves(tmp_path):
    """Whatever moment a process is killed at, the folder holds one of the two models, whole."""
    codes = [np.load(SAVED / "latent.npy") + shift for shift in (0, 1)]
    target, rng, seen = tmp_path / "target", random.Random(1), set()
    command = [sys.executable, "-c", SAVER, str(SAVED), str(target)]
    saver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert saver.stdin is not None
    assert saver.stdout is not None
    both = float(saver.stdout.readline())  # seconds that saving both takes
    for _ in range(int(os.environ.get("SCALLOY_KILLS", "15"))):
        print("go", file=saver.stdin, flush=True)
        child = int(saver.stdout.readline())
        signal.sigtimedwait([], rng.uniform(0, 3 * both))
        os.kill(child, signal.SIGKILL)
        assert saver.stdout.readline() == "dead\n"
        z = sa.load(target).get_latent_representation()
        which = [bool(np.allclose(z, code, atol=1e-5)) for code in codes]
        assert any(which)
        seen.add(which.index(True))
    saver.communicate()
    assert seen == {0, 1}
    for file in target.iterdir():
        os.utime(file, (0, 0))
    sa.load(SAVED).save(target, overwrite=True)
    assert len(list(target.iterdir())) == 2  # what the killed ones left is gone


def processes(tmp_path, rounds, what):
    command = [
        sys.executable,
        Path(__file__).parents[1] / "savers.py",
        SAVED,
        tmp_path / "m",
        str(rounds),
        what,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["savers", "reader"])
def test_several_processes_in_one_folder(tmp_path, what):
    """Two that save, or one that saves and one that loads: nothing is lost, nothing looks damaged."""
    assert processes(tmp_path, 12, what)["lost"] == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["savers", "reader"])
def test_several_processes_in_one_folder_many_times(tmp_path, what):
    assert processes(tmp_path, 200, what) == {"lost": [], "seen": [0, 1]}


def test_a_save_removes_what_it_replaced_and_no_more(copy):
    """Files that another process is about to name stay; those that nobody has named for long go."""
    model = sa.load(copy)
    before = {p.name for p in copy.glob("weights-*")}
    fresh, old = (copy / f"weights-{c * 16}.safetensors" for c in "ab")
    fresh.write_bytes(b"being saved")
    old.write_bytes(b"left")
    os.utime(old, (0, 0))
    model.module.enc_z.head.loc.bias.data += 1
    model.save(copy, overwrite=True)
    held = {p.name for p in copy.iterdir()}
    assert fresh.name in held
    assert old.name not in held
    assert not before & held
    assert not list(copy.glob("cells-*"))
    assert sa.load(copy).adata is None


def test_a_model_of_the_first_format_is_replaced(tmp_path):
    folder = Path(shutil.copytree(STORED / "format-1" / "vae", tmp_path / "m"))
    model = sa.load(folder)
    model.save(folder, overwrite=True, save_anndata=True)
    held = {p.name for p in folder.iterdir()}
    assert not held & set(files.NAMES_OF_1.values())
    assert sa.load(folder).adata.n_obs == 60


def test_modes_of_a_model_stay(copy):
    model = sa.load(copy)
    for file in copy.iterdir():
        file.chmod(0o600)
    model.save(copy, overwrite=True, save_anndata=True)
    named = [
        copy / n for n in (*json.loads((copy / "model.json").read_text())["files"].values(), "model.json")
    ]
    assert {p.stat().st_mode & 0o777 for p in named} == {0o600}


def test_what_a_dead_writer_left_does_not_make_a_folder_full(copy, tmp_path):
    model, folder = sa.load(copy), tmp_path / "new"
    (folder / f".{'0' * 16}.part").mkdir(parents=True)
    model.save(folder)
    assert len(list(folder.iterdir())) == 2


def test_a_file_that_lacks_is_said_at_once(copy):
    """Nobody has replaced the model: it is damaged, and reading it again would not help."""
    next(copy.glob("weights-*")).unlink()
    with pytest.raises(DamagedFileError, match="it lacks weights"):
        sa.load(copy)
    with pytest.raises(DamagedFileError, match="it lacks weights"):
        sa.CGMDVAE.load(copy)


def test_a_failure_leaves_what_was_there(copy, monkeypatch):
    model, before = sa.load(copy), {p.name: p.read_bytes() for p in copy.iterdir()}

    def fails(number):
        def fsync(_):
            raise OSError(number, os.strerror(number))

        return fsync

    full, refused = r"disk or your quota is full.*pass a folder on another disk", "may not be written to"
    for number, kind, message in (
        (errno.ENOSPC, OSError, full),
        (errno.EDQUOT, OSError, full),
        (errno.EROFS, PermissionError, refused),
        (errno.EACCES, PermissionError, refused),
    ):
        monkeypatch.setattr(os, "fsync", fails(number))
        with pytest.raises(kind, match=message) as caught:
            model.save(copy, overwrite=True, save_anndata=True)
        assert caught.value.errno == number
        assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    monkeypatch.undo()
    with pytest.raises(NotADirectoryError, match="is, or lies below, a file"):
        model.save(copy / "model.json" / "m")
    with pytest.raises(FileExistsError, match="Pass `overwrite=True`"):
        model.save(copy)


def test_a_file_that_may_not_grow(copy):
    """A real limit of the system, in a process of its own."""
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    code = textwrap.dedent(
        f"""
        import resource, signal, scalloy as sa
        model = sa.load({str(copy)!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            model.save({str(copy)!r}, overwrite=True, save_anndata=True)
        except OSError as error:
            print(error)
        """
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the disk or your quota is full, or the file too large" in found.stdout
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(copy):
    model = sa.load(copy)
    copy.chmod(0o500)
    with pytest.raises(PermissionError, match="may not be written to"):
        model.save(copy, overwrite=True)
    copy.chmod(0o700)
