"""Names of any spelling: through models, files of each kind, tables and the terminal, and back again."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import scalloy as sa
from scalloy import _keys
from scalloy.cli import main
from scalloy.cli.benchmark import show
from scalloy.files import anndata_files as files

NAMES = [
    *("1", "2", "3", "30", "free 31", "True", "NA", "nan", "=1+1", " x ", "", "50%", "%-", "T%2FB"),
    *("T", "T/B", "T|B", "T B", "/", "//", "a/../b", "..", ".", ".zgroup", "zarr.json", "\\", "a\\b"),
    *("_x", "_index", "__categories", "a\nb", "tab\there", "\x1b[31mred\x1b[0m", "\x9b2J", '"quoted"'),
    *("🙂 cells", "Zellen, größere", "x" * 400, "x" * 401, "é" * 150),
]


@pytest.fixture(scope="module")
def adata():
    """Cells of each name, under conditions of odd names."""
    made = sa.datasets.simulate(4 * len(NAMES), 20, seed=1)
    made.obs = pd.DataFrame(index=made.obs_names)
    made.obs["type"] = pd.Categorical(np.repeat(NAMES, 4), categories=NAMES)
    made.obs["state"] = np.resize(["with/without", "\x1b[2J", "with/without", ""], made.n_obs)
    return made


@pytest.fixture(scope="module")
def model(adata):
    sa.CGMDVAE.setup_anndata(adata, condition_key="state", labels_key="type")
    made = sa.CGMDVAE(adata, n_hidden=8, n_latent=2)
    made.train(1, enable_progress_bar=False, accelerator="cpu")
    return made


def written(made, kind, tmp_path):
    """What comes back from a file."""
    files.write(made, tmp_path / f"a.{kind}")
    return sa.data.read(tmp_path / f"a.{kind}")


def as_text(column):
    return column.astype(str).tolist()


KINDS = pytest.mark.parametrize("kind", ["h5ad", "zarr"])


def test_clusters_have_names_of_their_own(model):
    names = model.cluster_names
    assert len(set(names)) == len(names)
    assert sorted(names[: len(NAMES)]) == sorted(NAMES)
    assert len(names) > len(NAMES)
    assert set(model.get_clusters().cat.categories) == set(names)
    assert list(model.get_usage().index) == list(model.get_cluster_probabilities().columns) == names
    free = names[-1]
    assert set(model.generate(5, cluster=free).obs["cluster"]) == {free}


@pytest.mark.parametrize(
    ("labels", "free"),
    [
        (["a", "b"], ["2", "3"]),
        (["1", "2", "3"], ["free 3", "free 4"]),
        (["1", "4", "x", "free 5"], ["free free 4", "free free 5"]),
        ([], ["0", "1"]),
    ],
)
def test_free_clusters_are_numbered_where_no_label_is_such_a_number(labels, free):
    n = len(labels)
    assert _keys.unique([str(n), str(n + 1)], labels) == free


def test_labels_that_are_numbers(tmp_path):
    """Clusters are numbered as well, and the number of labels is one of them."""
    cells = sa.datasets.simulate(60, 20, seed=1)
    cells.obs["leiden"] = pd.Categorical(np.resize(["1", "2", "3"], 60))
    sa.CGMDVAE.setup_anndata(cells, labels_key="leiden")
    made = sa.CGMDVAE(cells, n_hidden=8, n_latent=2)
    made.train(1, enable_progress_bar=False, accelerator="cpu")
    assert made.cluster_names[:4] == ["1", "2", "3", "free 3"]
    assert set(made.get_clusters()) <= set(made.cluster_names)
    made.annotate()
    made.report(tmp_path / "report.html")
    assert list(cells.obsm["cgmdvae_probabilities"]) == made.cluster_names


@KINDS
def test_annotations_come_back(model, adata, kind, tmp_path):
    made = model.annotate(adata, copy=True)
    back = written(made, kind, tmp_path)
    for column in ("type", "state", "cgmdvae_cluster", "cgmdvae_label"):
        assert as_text(back.obs[column]) == as_text(made.obs[column]), column
    assert list(back.uns["cgmdvae"]["clusters"]) == model.cluster_names
    frame, probabilities = back.obsm["cgmdvae_probabilities"], model.get_cluster_probabilities()
    np.testing.assert_allclose(frame.to_numpy(), probabilities.to_numpy())
    short = [name for name in model.cluster_names if len(name) < 100]
    assert [name for name in map(_keys.original, frame) if len(name) < 100] == short
    assert list(frame) == list(made.obsm["cgmdvae_probabilities"]) == list(map(_keys.safe, probabilities))
    path = tmp_path / f"b.{kind}"
    model.write_annotations(path, adata)
    in_pieces = sa.data.read(path) if kind == "h5ad" else ad.read_zarr(path)
    assert list(in_pieces.obsm["cgmdvae_probabilities"]) == list(frame)
    assert as_text(in_pieces.obs["cgmdvae_cluster"]) == as_text(made.obs["cgmdvae_cluster"])


@KINDS
def test_predictions_come_back(model, adata, kind, tmp_path):
    with pytest.warns(UserWarning, match="Far from"):
        made = model.transfer(adata[adata.obs["state"] == "with/without"].copy(), to="\x1b[2J", n_samples=1)
    back = written(made, kind, tmp_path)
    for column in ("type", "state", "transfer_group", "transfer_from"):
        assert as_text(back.obs[column]) == as_text(made.obs[column]), column
    pairs = {f"{name} from with/without" for name in NAMES}
    shift = back.uns["transfer"]["shift"]
    assert set(shift) == {_keys.safe(pair) for pair in pairs} == set(back.uns["transfer"]["learned_from"])
    assert len(set(shift)) == len(NAMES)
    model.write_transfer(tmp_path / f"b.{kind}", adata, to="", n_samples=1)
    assert as_text(sa.data.read(tmp_path / f"b.{kind}").obs["type"]) == as_text(adata.obs["type"])


@KINDS
def test_generated_cells_come_back(model, kind, tmp_path):
    made = model.generate(60)
    back = written(made, kind, tmp_path)
    assert as_text(back.obs["cluster"]) == as_text(made.obs["cluster"])
    assert list(back.uns["generated"]["clusters"]) == model.cluster_names


def test_models_come_back(model, adata, tmp_path):
    model.save(tmp_path / "m", save_anndata=True)
    again = sa.load(tmp_path / "m")
    assert again.cluster_names == model.cluster_names
    assert again.conditions == model.conditions
    assert as_text(again.get_clusters()) == as_text(model.get_clusters())
    assert as_text(again.adata.obs["type"]) == as_text(adata.obs["type"])


def test_tables_come_back(tmp_path, capsys):
    show(pd.DataFrame({"type": NAMES, "n": range(len(NAMES))}), tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        back = pd.read_csv(file, dtype={"type": str}, keep_default_na=False)
    assert list(back["type"]) == NAMES
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert r"\x1b[31mred" in shown


def test_the_terminal_obeys_nothing(model, adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    model.save(tmp_path / "m")
    calls = (
        ("transfer", "--to", "\x1b[2J", "--where", "state=with/without"),
        ("transfer", "--to", "nowhere"),
        ("transfer", "--to", "\x1b[2J", "--where", "type=nobody"),
        ("annotate",),
    )
    for command, *options in calls:
        args = [command, str(tmp_path / "m"), str(tmp_path / "cells.h5ad"), "-o", str(tmp_path / "o.h5ad")]
        done = CliRunner().invoke(main.app, [*args, *options, "--force"], color=True)
        assert "\x1b[31mred" not in done.output
        assert "\x1b[2J" not in done.output
        assert "\x9b" not in done.output
    groups = ("compare", str(tmp_path / "o.h5ad"), "--use-rep", "X_cgmdvae", "--groupby", "type")
    out = tmp_path / "a.csv"
    done = CliRunner().invoke(main.app, [*groups, "--permutations", "9", "--reference", "T", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    with out.open(newline="") as file:
        found = pd.read_csv(file, keep_default_na=False, dtype=str)
    assert set(NAMES) - {"T"} <= set(found.to_numpy().ravel())


# the spelling of keys -----------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), unique=True, max_size=20))
def test_keys_are_different_and_come_back(names):
    keys = [_keys.safe(name) for name in names]
    assert len(set(keys)) == len(names)
    assert [_keys.original(key) for key in keys] == names
    for key in keys:
        assert key
        assert not set(key) & set("/\\\0\n\x1b")
        assert key not in {".", "..", "_index", "zarr.json"}
        assert not key.startswith((".", "__"))


@settings(max_examples=100, deadline=None)
@given(st.text("abé🙂/%", min_size=150, max_size=400), st.text("abé🙂/%", min_size=150, max_size=400))
def test_long_keys_are_different_and_short(first, second):
    assert (_keys.safe(first) == _keys.safe(second)) == (first == second)
    assert len(_keys.safe(first).encode()) <= _keys.LONGEST


def test_names_that_files_can_hold_stay():
    for name in ("CD4 T cells", "T|B", "cluster_1", "_x", "50% of", "CD8+ (naïve)", "🙂", "NA", "1", "a.b"):
        assert _keys.safe(name) == name


def test_frames_are_left_as_they_are():
    frame = pd.DataFrame({"T/B": [1.0]}, index=pd.Index(["cell"], name="T/B"))
    made = _keys.storable({"f/g": frame, "n": 3})
    assert list(made) == ["f%2Fg", "n"]
    assert list(made["f%2Fg"]) == ["T%2FB"]
    assert list(frame) == ["T/B"]
    assert made["f%2Fg"].index.name is None
    assert made["n"] == 3


@pytest.mark.parametrize(
    "key", ["a/b", ".x", "zarr.json", "a\\b", "_index", "x" * 300, "a\nb", "\x1b[31m", 3]
)
def test_keys_are_looked_at_in_python(model, adata, key, tmp_path):
    error, match = (TypeError, "is a int") if key == 3 else (ValueError, "cannot be part of a key in an h5ad")
    before = set(adata.obs), set(adata.obsm), set(adata.uns)
    with pytest.raises(error, match=match):
        model.annotate(adata, key_added=key)
    with pytest.raises(error, match=match):
        model.write_annotations(tmp_path / "a.h5ad", adata, key_added=key)
    assert before == (set(adata.obs), set(adata.obsm), set(adata.uns))
    assert not any(tmp_path.iterdir())
