"""The rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import scalloy
from scalloy import _moved

SOURCE = Path(scalloy.__file__).parent
ROOT = Path(__file__).parents[2]
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {f: ast.parse(f.read_text()) for f in FILES}


def rel(path):
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=rel)
def test_files_are_short_and_begin_with_a_docstring(path):
    limit = 220 if path.parent.name == "vae" and path.name != "base.py" else 400
    assert len(path.read_text().splitlines()) <= limit
    assert ast.get_docstring(TREES[path])
    assert path.name != "utils.py"


def test_functions_are_short():
    lengths = [
        node.end_lineno - node.body[0].lineno + 1 - _docstring_lines(node)
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert np.quantile(lengths, 0.9) <= 30
    assert np.median(lengths) <= 10


def _docstring_lines(node):
    first = node.body[0]
    is_doc = isinstance(first, ast.Expr) and isinstance(getattr(first, "value", None), ast.Constant)
    return first.end_lineno - first.lineno + 1 if is_doc else 0


def test_public_functions_and_classes_have_docstrings():
    missing = [
        f"{rel(path)}:{node.name}"
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not (isinstance(node, ast.FunctionDef) and len(node.body) <= 3)
    ]
    assert not missing


def test_likelihood_names_are_compared_in_one_place_only():
    names = r"""["'](nb|zinb|zip|poisson|bernoulli|gaussian)["']"""
    pattern = re.compile(rf"(==|!=|\bin\b)\s*[\[{{(]?\s*{names}|{names}\s*(==|!=)")
    found = [rel(f) for f in FILES if pattern.search(f.read_text()) and f.name != "factories.py"]
    assert not found


def test_what_encoders_see_is_decided_in_one_place_only():
    found = [rel(f) for f in FILES if re.search(r"\bif .*\bencode_covariates else", f.read_text())]
    assert found == ["blocks/networks.py"]


def test_a_room_looks_only_at_rooms_below_it():
    """The contracts of import-linter in pyproject.toml: layers, no circles, no AnnData in the mathematics."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_room_has_its_place():
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0][
        "layers"
    ]
    placed = {name.removeprefix("scalloy.") for layer in layers for name in layer.split(" | ")}
    there = {p.stem if p.is_file() else p.name for p in SOURCE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert placed == there - {"__init__", "__pycache__"}


def test_two_levels_of_inheritance():
    """Every class is its own or has one base of ours; protocols only say what is needed."""
    deep = []
    for path in FILES:
        module = importlib.import_module("scalloy." + rel(path).removesuffix(".py").replace("/", "."))
        for name, cls in vars(module).items():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__:
                continue
            ours = [c for c in cls.__mro__ if c.__module__.startswith("scalloy") and not is_protocol(c)]
            if len(ours) > 2:
                deep.append(f"{rel(path)}: {name}, " + ", ".join(c.__name__ for c in ours))
    assert not deep


def is_protocol(cls):
    return getattr(cls, "_is_protocol", False)


def test_first_lines_of_docstrings_stand_alone():
    """A verb or a noun, not "Of ..." or "What ...", which refer to something that is not there."""
    said = [
        f"{rel(path)}: {doc.splitlines()[0]}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node))
        if doc.split()[0] in {"Of", "As", "What", "How", "Where", "Which", "That", "Likewise"}
    ]
    assert not said


def test_no_pickle_and_no_path_of_a_machine():
    for path in FILES:
        text = path.read_text()
        assert "import pickle" not in text
        assert "torch.load(" not in text
        assert not re.search(r"/(home|work|root|tmp)/", text), path


def test_import_is_quick():
    code = "import sys, scalloy; print(sorted({'torch', 'scanpy', 'scvi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["baselines", "benchmark", "metrics", "tune.search", "vae.base"])
def test_any_module_may_be_imported_first(name):
    done = subprocess.run([sys.executable, "-c", f"import scalloy.{name}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("old", "new"), _moved.MOVED.items())
def test_modules_that_moved_are_found_for_one_version(old, new):
    sys.modules.pop(f"scalloy.{old}", None)
    with pytest.warns(FutureWarning, match=f"import `scalloy.{new}`"):
        found = importlib.import_module(f"scalloy.{old}")
    assert found is importlib.import_module(f"scalloy.{new}")
