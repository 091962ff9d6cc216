"""Every command: each path that it writes against each that it reads, before any work is done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import scalloy as sa
from scalloy.cli import console, main, paths
from scalloy.cli.paths import CELLS, PAGES, PICTURES, TABLES, Writes
from scalloy.files import anndata_files as files

LIKE = {CELLS: ".h5ad", TABLES: ".csv", PAGES: ".html", PICTURES: ".png"}


def commands(group=None, before=()):
    """Every command with its words."""
    group = group or typer.main.get_command(main.app)
    ctx = typer.Context(group)
    for name in group.list_commands(ctx):
        found = group.get_command(ctx, name)
        if hasattr(found, "commands"):
            yield from commands(found, (*before, name))
        else:
            yield (*before, name), found


EVERY = dict(commands())
WRITING = {words: c for words, c in EVERY.items() if paths.outputs(c.callback)}
PAIRS = [
    (words, out, name)
    for words, c in WRITING.items()
    for out in paths.outputs(c.callback)
    for name in paths.inputs(c.callback)
    if name not in paths.outputs(c.callback)[out].over  # holds all that was read
]


def arguments(words, paths):
    """A call of a command with these paths; whatever else it needs has any value."""
    positional, options = [], []
    for parameter in EVERY[words].params:
        value = paths.get(parameter.name)
        if value is None and not parameter.required:
            continue
        value = str(value or "x")
        if parameter.param_type_name == "argument":
            positional.append(value)
        else:
            options += [parameter.opts[0], value]
    return [*words, *options, "--", *positional]


@pytest.fixture
def refused(monkeypatch):
    """A call that ends with an error of ours, before any work."""

    def worked(*_, **__):
        raise AssertionError

    for module in ("scalloy.data.read", "scalloy.models.load", "scalloy.benchmark.transfer"):
        monkeypatch.setattr(module, worked)

    def call(words, paths, *more, match):
        args = arguments(words, paths)
        done = CliRunner().invoke(main.app, [*args[: len(words)], *more, *args[len(words) :]])
        assert done.exit_code == 1, (args, done.output)
        assert match in done.stderr, done.stderr
        assert done.stderr.startswith("error: ")

    return call


def forced(words):
    return ("--force",) if any(p.name == "force" for p in EVERY[words].params) else ()


def test_every_path_is_read_or_written():
    """A command cannot be forgotten: what it writes is marked, or is here to be thought about."""
    assert {w[-1] for w in WRITING} >= {
        *("train", "embed", "annotate", "transfer", "compare", "report", "search", "demo", "speed", "scale"),
        *("abundance", "expression", "donors"),
    }
    found = {
        (words[-1], name)
        for words, command in EVERY.items()
        for name in paths.inputs(command.callback)
        if name not in {"data", "model"}
    }
    assert found == {
        *(("train", name) for name in ("config", "descriptors")),
        ("transfer", "trained_on"),
        *((command, "source") for command in ("compare", "abundance", "expression", "donors")),
    }


@pytest.mark.parametrize("link", ["itself", "symbolic link", "hard link", "dots", "zarr store"])
@pytest.mark.parametrize(("words", "out", "name"), PAIRS, ids=str)
def test_what_is_read_is_not_written_over(words, out, name, link, tmp_path, refused):
    mark = paths.outputs(EVERY[words].callback)[out]
    place = tmp_path / "folder" / f"cells{LIKE.get(mark.suffixes, '')}"
    place.parent.mkdir()
    place.write_text("mine")
    written = place
    if link == "symbolic link":
        written = tmp_path / f"link{place.suffix}"
        written.symlink_to(place)
    elif link == "hard link":
        written = tmp_path / f"link{place.suffix}"
        os.link(place, written)
    elif link == "dots":
        written = tmp_path / "folder" / ".." / "folder" / place.name
    elif link == "zarr store":
        place = tmp_path / "store.zarr"
        files.write(ad.AnnData(np.eye(3, dtype=np.float32)), place)
        written = place / f"inside{LIKE.get(mark.suffixes, '')}"
    lost = (
        "lies inside the other" if link == "zarr store" else "it would be lost" if mark.suffixes else "a file"
    )
    refused(words, {out: written, name: place}, *forced(words), match=lost)
    assert place.is_dir() or place.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "out"), [(w, o) for w, c in WRITING.items() for o in paths.outputs(c.callback)], ids=str
)
def test_names_are_of_their_kind(words, out, tmp_path, refused):
    mark = paths.outputs(EVERY[words].callback)[out]
    folder = tmp_path / f"folder{LIKE.get(mark.suffixes, '')}"
    if mark.suffixes:
        for suffix in {".h5ad", ".csv", ".html", ".png", ".txt", ""} - set(mark.suffixes):
            (tmp_path / f"a{suffix}").write_text("mine")
            refused(words, {out: tmp_path / f"a{suffix}"}, *forced(words), match="its name end in")
            assert (tmp_path / f"a{suffix}").read_text() == "mine"
        folder.mkdir()
        refused(words, {out: folder}, *forced(words), match="is a folder")
    else:
        folder.write_text("mine")
        for given in (folder, tmp_path / "a.h5ad", tmp_path / "a.html", tmp_path / "a.svg"):
            refused(words, {out: given}, *forced(words), match="Pass a folder")
        assert os.listdir(tmp_path) == ["folder"]
    below = tmp_path / "file"
    below.write_text("mine")
    given = below / f"a{LIKE.get(mark.suffixes, '')}"
    refused(words, {out: given}, *forced(words), match="is, or lies below, a file")


@pytest.mark.parametrize(
    ("words", "out"),
    [(w, o) for w, c in WRITING.items() for o, m in paths.outputs(c.callback).items() if not m.unasked],
    ids=str,
)
def test_what_is_there_is_not_written_over_unasked(words, out, tmp_path, refused):
    mark = paths.outputs(EVERY[words].callback)[out]
    place = tmp_path / f"a{LIKE.get(mark.suffixes, '')}"
    if mark.suffixes:
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "thesis.tex").write_text("mine")
    refused(words, {out: place}, match="exists. Pass `--force`")


def test_one_name_for_two_outputs(tmp_path, refused):
    given = tmp_path / "a.html"
    mark = Writes("page", PAGES, unasked=True)
    with pytest.raises(ValueError, match="is named twice, to be written by `--out` and `--html`"):
        paths.check(_two, {"out": given, "html": given})
    assert paths.outputs(_two)["html"] == mark


def _two(
    out: Annotated[Path, Writes("page", PAGES)], html: Annotated[Path, Writes("page", PAGES, unasked=True)]
): ...


@pytest.mark.parametrize("key", ["a/b", ".", "zarr.json", "a\\b", "_index", "x" * 300, "a\nb", " \x1b[31m"])
@pytest.mark.parametrize("words", [("embed",), ("annotate",)], ids=str)
def test_keys_that_files_cannot_hold(words, key, tmp_path, refused):
    given = {"out": tmp_path / "a.h5ad", "key_added": key}
    refused(words, given, match="cannot be part of a key in an h5ad")
    assert not any(tmp_path.iterdir())


def test_every_command_with_keys_is_tried():
    having = {words for words, c in EVERY.items() if any(p.name == "key_added" for p in c.params)}
    assert having == {("embed",), ("annotate",)}


def test_cells_may_take_the_place_of_those_that_were_read(tmp_path, cells, quick):
    """Annotated, they are all there; predicted, they are not."""
    place, model = tmp_path / "cells.h5ad", tmp_path / "model"
    cells.write_h5ad(place)
    place.chmod(0o600)
    sa.VAE.setup_anndata(cells)
    trained = sa.VAE(cells, n_hidden=8, n_latent=2)
    trained.train(**quick)
    trained.save(model)
    for command, key in (("embed", "X_vae"), ("annotate", "X_vae")):
        args = [command, str(model), str(place), "-o", str(place)]
        done = CliRunner().invoke(main.app, args)
        assert "exists. Pass `--force`" in done.stderr
        done = CliRunner().invoke(main.app, [*args, "--force"])
        assert done.exit_code == 0, done.output
        after = sa.data.read(place)
        assert key in after.obsm
        assert (after.X != cells.X).nnz == 0
    assert place.stat().st_mode & 0o777 == 0o600


def test_nothing_is_obeyed_by_the_terminal():
    text = console.shown("\x1b[31mred\x1b[0m \x07 \x9b2J \u202egnp.exe\nnext\tline é🙂")
    assert text == r"\x1b[31mred\x1b[0m \x07 \x9b2J \u202egnp.exe" + "\nnext\tline é🙂"


def test_every_command_prints_through_one_place():
    for path in Path(main.__file__).parent.glob("*.py"):
        if path.name == "demo.py":  # prints on the console that it is given
            continue
        printing = sum(path.read_text().count(word) for word in ("typer.echo(", "typer.secho(", "print("))
        assert printing == (path.name == "console.py"), path
