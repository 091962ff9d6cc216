"""Commands for models: what they write is what Python computes, and every error is one line."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import error, ok, run
from typer.testing import CliRunner

import scalloy as sa
from scalloy.cli import console, main
from scalloy.files import anndata_files as files

DOCS = Path(__file__).parents[2] / "docs"
QUICK = ("--epochs", "1", "--no-progress", "--set", "n_hidden=8", "--set", "n_latent=3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Cells on the disk, and a small CGMDVAE of them."""
    folder = tmp_path_factory.mktemp("cli")
    adata = sa.datasets.simulate(200, 40, seed=1, n_proteins=3)
    adata.obs["donor"] = np.resize(["d1", "d2", "d3", "d4"], 200)
    adata.obs["half"] = np.where(np.arange(200) < 100, "first", "second")
    adata.obs["treated"] = (adata.obs["condition"] != "control").map({True: "yes", False: "no"})
    adata.write_h5ad(folder / "cells.h5ad")
    files.write(adata, folder / "cells.zarr")
    keys = ("--condition-key", "condition", "--labels-key", "cluster", "--batch-key", "batch")
    output = ok(
        "train",
        folder / "cells.h5ad",
        "-o",
        folder / "model",
        "--model",
        "CGMDVAE",
        *keys,
        *QUICK,
        "--seed",
        3,
    )
    assert re.search(r"CGMDVAE of 200 cells x 40 genes, seed 3\n  epochs +1 of at most 1 in", output)
    assert re.search(r"-ELBO, validation +[\d.]+ nats per cell", output)
    return folder


def test_training_is_that_of_python(place):
    loaded, adata = sa.load(place / "model"), sa.data.read(place / "cells.h5ad")
    keys = {"condition_key": "condition", "labels_key": "cluster", "batch_key": "batch"}
    sa.CGMDVAE.setup_anndata(adata, **keys)
    model = sa.CGMDVAE(adata, n_hidden=8, n_latent=3, seed=3)
    model.train(1, enable_progress_bar=False)
    z = loaded.get_latent_representation(sa.data.read(place / "cells.h5ad"))
    np.testing.assert_allclose(z, model.get_latent_representation(), rtol=1e-4, atol=1e-5)
    assert loaded.adata is None


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_embed_and_annotate(place, tmp_path, kind):
    data, out = place / f"cells.{kind}", tmp_path / f"out.{kind}"
    assert '200 cells x 3 latents in .obsm["X_mine"]' in ok(
        "embed", place / "model", data, "-o", out, "--key-added", "mine"
    )
    before, after = sa.data.read(data), sa.data.read(out)
    z = sa.load(place / "model").get_latent_representation(before)
    np.testing.assert_allclose(after.obsm["X_mine"], z, rtol=1e-6)
    assert (after.X != before.X).nnz == 0
    assert list(after.obs) == list(before.obs)
    said = ok("annotate", place / "model", data, "-o", out, "--force")
    after = sa.data.read(out)
    assert {"X_cgmdvae", "cgmdvae_probabilities"} <= set(after.obsm)
    assert '.obs["cgmdvae_cluster"]' in said
    assert '.uns["cgmdvae"]' in said
    assert list(after.obs["cgmdvae_label"]) == list(sa.load(place / "model").predict_labels(before))
    assert [p.name for p in tmp_path.iterdir()] == [out.name]  # nothing is left beside it


def test_clusters_are_cut_at_a_number(place, tmp_path):
    data, out = place / "cells.h5ad", tmp_path / "out.h5ad"
    model, cells = sa.load(place / "model"), sa.data.read(data)
    for given, n in (("3", 3), ("fine", "fine")):
        ok("annotate", place / "model", data, "-o", out, "--n-clusters", given, "--force")
        expected = model.get_clusters(cells, n=n)
        assert list(sa.data.read(out).obs["cgmdvae_cluster"].astype(str)) == list(expected.astype(str))
    asked = ("annotate", place / "model", data, "-o", tmp_path / "no.h5ad", "--n-clusters")
    assert "`n=99` is more than the" in error(*asked, "99")
    assert "must be above zero" in error(*asked, "-2")
    assert "`n='some'` must be above zero" in error(*asked, "some")
    sa.VAE.setup_anndata(cells)
    sa.VAE(cells, n_hidden=4, n_latent=2).save(tmp_path / "vae")
    refused = error("annotate", tmp_path / "vae", data, "-o", tmp_path / "no.h5ad", "--n-clusters", 3)
    assert "needs a model with clusters, and this is a VAE" in refused
    refused = error("annotate", tmp_path / "vae", data, "-o", tmp_path / "no.h5ad", "--level", 0.5)
    assert "`--level` needs a model with labels, and this is a VAE" in refused
    assert not (tmp_path / "no.h5ad").exists()


def test_labels_are_cut_at_a_level(place, tmp_path):
    cells = sa.data.read(place / "cells.h5ad")
    out, parents = tmp_path / "out.h5ad", {"cluster_0": "A", "cluster_1": "A"}
    sa.CGMDVAE.setup_anndata(cells, labels_key="cluster", label_parents=parents)
    model = sa.CGMDVAE(cells, n_hidden=4, n_latent=2)
    model.train(1, enable_progress_bar=False)
    model.save(tmp_path / "model")
    ok("annotate", tmp_path / "model", place / "cells.h5ad", "-o", out, "--level", 0.3)
    written = sa.data.read(out)
    expected = model.predict_labels(level=0.3).astype(str)
    assert list(written.obs["cgmdvae_deepest_label"].astype(str)) == list(expected)
    assert written.uns["cgmdvae"]["level"] == 0.3
    asked = ("annotate", place / "model", place / "cells.h5ad", "-o", tmp_path / "no.h5ad")
    assert "needs a tree of labels" in error(*asked, "--level", 0.3)


def test_transfer(place, tmp_path):
    out, data = tmp_path / "out.h5ad", place / "cells.h5ad"
    where = ("--where", "condition=control", "--where", "cluster=cluster_1", "--where", "cluster=cluster_2")
    said = ok("transfer", place / "model", data, "-o", out, "--to", "treated_1", *where, "--samples", 2)
    assert re.search(r"cluster_1 +control +\w+ +\d+", said)
    made, adata = sa.data.read(out), sa.data.read(data)
    keep = (adata.obs["condition"] == "control") & adata.obs["cluster"].isin(["cluster_1", "cluster_2"])
    assert list(made.obs["transfer_of"]) == list(adata.obs_names[keep])
    assert set(made.obs["condition"]) == {"treated_1"}
    model = sa.load(place / "model", adata)
    same = model.transfer(adata[keep.to_numpy()].copy(), to="treated_1", n_samples=2)
    np.testing.assert_allclose(made.X, same.X, rtol=1e-4, atol=1e-5)
    # new cells
    new = sa.data.read(data)[:50].copy()
    new.write_h5ad(tmp_path / "new.h5ad")
    args = (
        "transfer",
        place / "model",
        tmp_path / "new.h5ad",
        "-o",
        tmp_path / "2.h5ad",
        "--to",
        "treated_1",
    )
    assert "needs the cells that the model was trained on. Pass `--trained-on`" in error(*args)
    ok(*args, "--trained-on", data, "--samples", 2)
    ok(*args, "--route", "decoder", "--samples", 2, "--force")
    assert sa.data.read(tmp_path / "2.h5ad").n_obs == 50


def test_compare_of_cells_and_of_models(place, tmp_path):
    ok("embed", place / "model", place / "cells.h5ad", "-o", tmp_path / "z.h5ad")
    how = ("--groupby", "condition", "--by", "half", "--donor-key", "donor", "--permutations", 50)
    ok("compare", tmp_path / "z.h5ad", "--use-rep", "X_cgmdvae", *how, "-o", tmp_path / "1.csv")
    ok("compare", place / "model", place / "cells.h5ad", *how, "-o", tmp_path / "2.csv")
    first, second = (pd.read_csv(tmp_path / f"{i}.csv") for i in (1, 2))
    pd.testing.assert_frame_equal(first, second)
    asked = {"groupby": "condition", "by": "half", "donor_key": "donor", "n_permutations": 50}
    table = sa.compare.groups(sa.data.read(tmp_path / "z.h5ad"), "X_cgmdvae", **asked)
    np.testing.assert_allclose(first["statistic"], table["statistic"].astype(float))
    assert "saved without its cells" in error("compare", place / "model", "--groupby", "condition")
    assert "`--use-rep` is needed with cells" in error("compare", place / "cells.h5ad", "--groupby", "donor")


def test_two_modalities(tmp_path):
    mudata = pytest.importorskip("mudata", reason="the extra `multimodal` is not installed")
    import anndata as ad

    adata = sa.datasets.simulate(100, 20, seed=1, n_proteins=3)
    proteins = ad.AnnData(adata.obsm.pop("protein_counts").astype(np.float32), obs=adata.obs[[]].copy())
    with getattr(mudata, "set_options", lambda **_: nullcontext())(pull_on_update=False):  # gone in 0.4
        mdata = mudata.MuData({"rna": adata, "prot": proteins})
        mdata.write_h5mu(tmp_path / "cells.h5mu")
        ok("train", tmp_path / "cells.h5mu", "-o", tmp_path / "m", "--model", "POISEVAE", *QUICK)
        for kind in ("h5mu", "zarr"):
            out = tmp_path / f"out.{kind}"
            ok("annotate", tmp_path / "m", tmp_path / "cells.h5mu", "-o", out)
            assert sa.data.read(out).obsm["X_poisevae"].shape == (100, 6)
        said = error("embed", tmp_path / "m", tmp_path / "cells.h5mu", "-o", tmp_path / "out.h5ad")
        assert "cannot hold this MuData. Let its name end in .h5mu, .zarr" in said
        said = error("train", tmp_path / "cells.h5mu", "-o", tmp_path / "m2")
        assert "VAE takes an AnnData, and the file holds a MuData. Pass `--model POISEVAE`" in said


# settings ---------------------------------------------------------------------------------------


def test_config_and_flags(place, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text(
        'model = "GMVAE"\nbatch_key = "batch"\nepochs = 50\nseed = 5\n'
        "[set]\nn_hidden = 8\nn_clusters = 4\nlr = 1e-3\n"
    )
    args = ("train", place / "cells.h5ad", "-o", tmp_path / "m", "--config", config, *QUICK)
    ok(*args, "--set", "n_clusters=3")
    model = sa.load(tmp_path / "m")
    assert type(model).__name__ == "GMVAE"
    assert model.seed == 5
    assert len(model.history["elbo_train"]) == 1  # a flag
    assert model.registry["setup_args"]["batch_key"] == "batch"
    init = model.init_params_["non_kwargs"]
    assert (init["n_clusters"], init["n_hidden"], init["n_latent"]) == (3, 8, 3)
    for text, match in (
        ("epoch = 3", r"`settings.toml: setting='epoch'` is not known.*Did you mean 'epochs'"),
        ("epochs = 'many'", r"`epochs = 'many'` is a str. Expected int"),
        ("seed = true", r"`seed = True` is a bool. Expected int"),
        ("epochs =", r"is not valid TOML: "),
    ):
        config.write_text(text)
        assert re.search(match, error(*args, "--force"))
    config.unlink()
    missing = error(*args, "--force")
    assert "There is no file" in missing


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20),
        ("1e-3", 0.001),
        ("true", True),
        ("None", None),
        ("nb", "nb"),
        ("[0.2, 0.5]", [0.2, 0.5]),
        ("cell type", "cell type"),
    ],
)
def test_values(text, value):
    assert console.value(text) == value
    assert type(console.value(text)) is type(value)


def test_checkpoints(place, tmp_path):
    args = ("train", place / "cells.h5ad", "-o", tmp_path / "m", "--checkpoint-dir", tmp_path / "run", *QUICK)
    ok(*args, "--epochs", 2)
    assert (tmp_path / "run" / "checkpoint.json").is_file()
    assert "Pass `resume=True` to go on" in error(*args, "--epochs", 2, "--force")
    ok(*args, "--epochs", 2, "--force", "--resume")


# errors -----------------------------------------------------------------------------------------


def test_input_that_cannot_be(place, tmp_path):
    data, model, out = place / "cells.h5ad", place / "model", tmp_path / "out.h5ad"
    whole = data.read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5ad").write_text("no HDF5")
    (tmp_path / "folder").mkdir()
    for given, match in (
        (tmp_path / "no.h5ad", "There is no file"),
        (tmp_path / "folder", "is a folder, but not a zarr store"),
        (tmp_path / "cut.h5ad", "is damaged, or not a valid h5ad file"),
        (tmp_path / "text.h5ad", "is damaged, or not a valid h5ad file"),
    ):
        assert match in error("train", given, "-o", tmp_path / "m")
        assert match in error("embed", model, given, "-o", out)
    assert "holds no model.json" in error("embed", tmp_path / "folder", data, "-o", out)
    assert "holds no model.json" in error("report", data, data, "-o", tmp_path / "r.html")
    train = ("train", data, "-o", tmp_path / "m", *QUICK)
    for more, match in (
        (("--batch-key", "bath"), "`batch_key='bath'` is not a column of `adata.obs`"),
        (("--layer", "no"), "is not in `adata.layers`"),
        (("--model", "VEA"), "`model='VEA'` is not known. Pass one of"),
        (("--set", "n_laten=3"), "`set='n_laten'` is not known"),
        (("--set", "n_latent=abc"), "`n_latent='abc'` is of kind str. Expected int"),
        (("--set", "n_latent=2.5"), "`n_latent=2.5` is of kind float. Expected int"),
        (("--set", "n_latent=-1"), "`n_latent=-1` must be above zero"),
        (("--set", "lr=fast"), "`lr='fast'` is of kind str. Expected float"),
        (("--set", "gene_likelihood=nbb"), "`gene_likelihood='nbb'` is not known"),
        (("--condition-key", "condition"), "VAE has no `condition_key`. It takes: "),
        (("--epochs", "0"), "`max_epochs=0` must be above zero"),
        (("--resume",), "needs the folder of the checkpoint"),
    ):
        assert match in error(*train, *more)
    assert not (tmp_path / "m").exists()
    transfer = ("transfer", model, data, "-o", out)
    for more, match in (
        (("--to", "drug"), "`to='drug'` is not known. Pass one of: control, treated_1"),
        (("--to", "control", "--where", "clust=1"), "`where='clust'` is not a column"),
        (("--to", "control", "--where", "cluster=1"), "`where: cluster='1'` is not known. Pass one of"),
        (("--to", "control", "--route", "air"), "`route='air'` is not known"),
    ):
        assert match in error(*transfer, *more)
    empty = ("--to", "control", "--where", "condition=control", "--where", "treated=yes")
    said = error(*transfer, *empty)
    assert "No cell has condition in ['control'] and treated in ['yes']. Pass another `--where`" in said
    assert not out.exists()


def test_results_are_not_written_over(place, tmp_path):
    data, model = place / "cells.h5ad", place / "model"
    for name in ("out.h5ad", "r.html"):
        (tmp_path / name).write_text("mine")
    commands = (
        ("embed", model, data, "-o", tmp_path / "out.h5ad"),
        ("annotate", model, data, "-o", tmp_path / "out.h5ad"),
        ("transfer", model, data, "-o", tmp_path / "out.h5ad", "--to", "control"),
        ("report", model, data, "-o", tmp_path / "r.html"),
        ("train", data, "-o", model),
    )
    for command in commands:
        assert "exists. Pass `--force` to write over it, or another `--out`" in error(*command)
    assert (tmp_path / "out.h5ad").read_text() == "mine"
    assert "is, or lies below, a file" in error("embed", model, data, "-o", tmp_path / "r.html" / "out.h5ad")
    said = error("embed", model, data, "-o", tmp_path / "out.txt")
    assert "has an ending that is not supported. Let its name end in .h5ad, .h5mu, .zarr" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written_to(place, tmp_path):
    tmp_path.chmod(0o500)
    said = error("embed", place / "model", place / "cells.h5ad", "-o", tmp_path / "out.h5ad")
    tmp_path.chmod(0o700)
    assert "may not be written to" in said


def test_full_disk_leaves_what_was_there(place, tmp_path, monkeypatch):
    import errno

    from scalloy.files import anndata_files

    out = tmp_path / "out.h5ad"
    out.write_text("mine")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(anndata_files, "write_h5ad", full)
    said = error("embed", place / "model", place / "cells.h5ad", "-o", out, "--force")
    assert "the disk or your quota is full" in said
    assert out.read_text() == "mine"


def test_usage(place):
    assert "No such command" in error("trian", code=2)
    assert "No such option" in error("embed", "--nope", code=2)
    assert "Missing" in error("embed", place / "model", code=2)
    assert "is not of the form NAME=VALUE" in error(
        "train", place / "cells.h5ad", "-o", place / "m2", "--set", "n_latent", code=2
    )
    assert "'--epochs'" in error("train", "x", "-o", "y", "--epochs", "many", code=2)


def test_errors_of_ours_say_where_to_look(place, monkeypatch):
    monkeypatch.setattr("scalloy.models.load", lambda *_: {}.attribute)
    said = error("embed", place / "model", place / "cells.h5ad", "-o", place / "never.h5ad")
    assert "AttributeError 'dict' object has no attribute 'attribute' (set SCALLOY_TRACEBACK=1" in said
    monkeypatch.setenv(console.TRACEBACK, "1")
    done = run("embed", place / "model", place / "cells.h5ad", "-o", place / "never.h5ad")
    assert isinstance(done.exception, AttributeError)


def test_every_command_has_help_with_an_example():
    several = ("embed", "annotate", "transfer", "compare", "abundance", "expression", "report")
    for name in ("demo", "train", *several, "search"):
        said = ok(name, "--help")
        assert "Examples:" in said
        assert f"scalloy {name} " in said


def test_import_is_quick():
    code = (
        "import sys, scalloy.cli; print(sorted({'torch', 'scanpy', 'numpy', 'anndata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Ctrl-C -----------------------------------------------------------------------------------------


def test_interrupted_training_keeps_the_best_weights(place, tmp_path, monkeypatch):
    from scalloy.train.plan import TermsPlan

    end = TermsPlan.on_train_epoch_end

    def interrupted(self):
        end(self)
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TermsPlan, "on_train_epoch_end", interrupted)
    args = ("train", place / "cells.h5ad", "-o", tmp_path / "m", *QUICK, "--epochs", 30)
    done = run(*args)
    assert done.exit_code == 130, done.output
    assert "stopped before the end, with the best weights so far" in done.stderr
    assert len(sa.load(tmp_path / "m").history["elbo_train"]) < 10


def test_interrupted_otherwise(place, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("scalloy.data.read", stop)
    assert (
        error("embed", place / "model", place / "cells.h5ad", "-o", place / "2.h5ad", code=130) == "stopped\n"
    )


# the page ---------------------------------------------------------------------------------------


def lines_of(page):
    for block in re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line)


def test_page_runs(tmp_path, monkeypatch):
    """Every line of the page as it stands; cells are few, training and others' work are cut short."""
    import matplotlib as mpl

    from scalloy.cli import train

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    adata = sa.datasets.kang()
    adata = (
        adata[adata.obs["cell_type"].isin(["B cells", "NK cells", "CD4 T cells"])][::8].copy()[:, ::20].copy()
    )
    adata = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    adata.obs["donor"] = adata.obs["batch"]
    adata.write_h5ad("cells.h5ad")
    adata[:60].write_h5ad("new.h5ad")
    screen = sa.datasets.screen(300, 30, n_drugs=2, n_pairs=1)
    screen.obs["drug"] = [
        str(name).replace("control", "DMSO").replace("drug_0", "nutlin") for name in screen.obs["drug"]
    ]
    screen.write_h5ad("screen.h5ad")
    adata[adata.obs["condition"] == "control"][:40].write_h5ad("patient.h5ad")
    (toml,) = re.findall(r"```toml\n(.*?)```", (DOCS / "command_line.md").read_text(), flags=re.S)
    Path("settings.toml").write_text(toml)
    fit, report, asked = train.fit, sa.VAE.report, []
    short = lambda model, given, **_: fit(model, {**given, "epochs": 1}, progress=False)  # noqa: E731
    monkeypatch.setattr(train, "fit", short)
    few = lambda self, *a, **k: report(self, *a, **{**k, "max_epochs": 1})  # noqa: E731
    monkeypatch.setattr("scalloy.models._core.base.ScalloyModel.report", few)
    for slow in ("cli.demo.demo", "tune.search.search", "benchmark.transfer", "benchmark.multiome.multiome"):

        def stand_in(*args, slow=slow, **kwargs):
            asked.append(slow)
            raise RuntimeError(slow)

        monkeypatch.setattr(f"scalloy.{slow}", stand_in)
    for program, *args in lines_of("command_line.md"):
        assert program == "scalloy"
        done = run(*args)
        if args[0] in {"demo", "search", "benchmark"}:  # tested elsewhere: here that they are called
            assert done.stderr == f"error: {asked[-1]}\n"
        else:
            assert done.exit_code == 0, (args, done.output)
    assert len(asked) == 4
    assert sa.load("vae").init_params_["non_kwargs"]["n_latent"] == 20
    assert sa.load("gmvae").seed == 2
    assert "Transfer, held out" in Path("held_out.html").read_text()


def test_labels_with_a_hierarchy_are_those_of_python(tmp_path):
    """Parents in a file, columns from coarse to fine, and paths."""
    adata = sa.datasets.simulate(120, 30, n_clusters=3, seed=1)
    fine = adata.obs["cluster"].astype(str)
    adata.obs["class"] = fine.replace({"cluster_0": "A", "cluster_1": "A"})
    adata.obs["path"] = np.where(adata.obs["class"] == "A", "A/" + fine, fine)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    parents = tmp_path / "parents.json"
    parents.write_text('{"cluster_0": "A", "cluster_1": "A"}')
    made = {
        "file": ("--labels-key", "cluster", "--label-parents", parents),
        "columns": ("--labels-key", "class", "--labels-key", "cluster"),
        "paths": ("--labels-key", "path", "--label-parents", "/"),
    }
    for name, keys in made.items():
        ok("train", tmp_path / "cells.h5ad", "-o", tmp_path / name, "--model", "CGMDVAE", *keys, *QUICK)
        tree = sa.load(tmp_path / name).reader.tree
        assert tree.inner == ("A",)
        assert {leaf.rpartition("/")[2] for leaf in tree.leaves} == {"cluster_0", "cluster_1", "cluster_2"}
    ok("annotate", tmp_path / "file", tmp_path / "cells.h5ad", "-o", tmp_path / "out.h5ad")
    assert "cgmdvae_deepest_label" in sa.data.read(tmp_path / "out.h5ad").obs
    for text, said in {
        '{"cluster_0": "A", "cluster_0": "B"}': "gives 'cluster_0' 2 parents: 'A', 'B'",
        "{": "is damaged, or not a valid JSON file of labels",
    }.items():
        parents.write_text(text)
        args = ["train", tmp_path / "cells.h5ad", "-o", tmp_path / "no", "--model", "CGMDVAE", *made["file"]]
        done = CliRunner().invoke(main.app, [str(a) for a in args])
        assert done.exit_code == 1
        assert said in done.stderr
