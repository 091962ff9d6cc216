"""Code that is compiled elsewhere, and other processes: none imports from the working folder."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scalloy
from scalloy.benchmark.speed import in_process
from scalloy.files import anndata_files, reading
from scalloy.kernels import cpu, threads

SOURCE = Path(scalloy.__file__).parent
HOSTILE = ("numba", "numpy", "torch", "h5py", "scalloy", "json", "llvmlite", "sitecustomize")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The working folder holds modules that leave a mark when they are imported."""
    folder, mark = tmp_path / "data", tmp_path / "ran"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")  # as in a notebook
    return mark


def test_hostile_modules_would_run(hostile):
    subprocess.run([sys.executable, "-c", "import numba"], check=False, capture_output=True)
    assert "numba" in hostile.read_text()


def test_compiling_elsewhere(hostile, monkeypatch):
    found = []
    run = subprocess.run

    def observed(*args, **kwargs):
        found.append(run(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(subprocess, "run", observed)
    threads._compile_elsewhere(cpu._nb)
    assert found[0].returncode == 0, found[0].stderr
    assert not hostile.exists()


def test_a_benchmark_in_its_own_process(hostile):
    with pytest.raises(RuntimeError, match="failed"):
        in_process({"kind": "none", "model": "none"})
    assert not hostile.exists()


def test_a_look_at_a_file(hostile, tmp_path):
    adata = scalloy.datasets.simulate(20, 5, seed=1)
    anndata_files.write(adata, tmp_path / "a.h5ad")
    assert reading.read(tmp_path / "a.h5ad").n_obs == 20
    assert not hostile.exists()


def test_every_process_of_python_leaves_the_working_folder_out():
    found = 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                assert ast.unparse(node.elts[1]) in {"'-P'", "'-I'"}, path
                found += 1
        assert "os.system(" not in path.read_text()
        assert "shell=True" not in path.read_text()
    assert found == 3
