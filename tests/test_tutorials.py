"""The notebooks: what is stored is what the texts say, and every one of them runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import scalloy as sa
from scalloy.models import ScalloyModel
from scalloy.models._core import training

ROOT = Path(__file__).parents[1]
NAMES = sorted(p.stem for p in (ROOT / "scripts" / "tutorials").glob("*.py"))
EPOCHS, EVERY = 8, 4  # training is cut short, and of the cells each fourth is used


def stored(name):
    return json.loads((ROOT / "tutorials" / f"{name}.ipynb").read_text())["cells"]


@pytest.fixture
def text(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from make_tutorials import TEXTS, cells

    return lambda name: cells((TEXTS / f"{name}.py").read_text())


def test_each_text_has_a_notebook_and_a_line_in_the_docs():
    assert sorted(p.stem for p in (ROOT / "tutorials").glob("*.ipynb")) == NAMES
    page = (ROOT / "docs" / "tutorials.md").read_text()
    assert not [n for n in NAMES if f"tutorials/{n}.ipynb" not in page or f"\ntutorials/{n}\n" not in page]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_holds_its_text_with_outputs(name, text):
    found = [(c["cell_type"], "".join(c["source"])) for c in stored(name)]
    assert found == text(name), "run `make tutorials`"
    outputs = [o for c in stored(name) for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 1
    assert (ROOT / "tutorials" / f"{name}.ipynb").stat().st_size < 1.5e6
    assert not re.search(r"/(home|root|tmp|work)/", json.dumps(outputs))
    said = ["".join(v) for o in outputs for k, v in o.get("data", {}).items() if k.startswith("text/")]
    assert not re.search(r"(?<![\w.])-0\.0*(?!\d)", "\n".join(said))  # zero has no sign


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tutorial_runs(name, text, tmp_path, monkeypatch):
    """Its cells in order, on fewer data; pictures are drawn and not shown."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    train = training.train
    short = lambda model, *a, **k: train(model, *a, **{**k, "max_epochs": EPOCHS})  # noqa: E731
    monkeypatch.setattr(ScalloyModel, "train", short)
    monkeypatch.setattr(training, "train", short)
    for data in ("kang", "citeseq"):
        some = getattr(sa.datasets, data)()[::EVERY].copy()
        monkeypatch.setattr(sa.datasets, data, lambda full=False, some=some: some.copy())
    names: dict = {"__name__": "notebook"}
    for kind, source in text(name):
        if kind == "code":
            exec(compile(source, f"{name}.ipynb", "exec"), names)
    assert plt.get_fignums()
    plt.close("all")
    frames = [
        v for v in names.values() if isinstance(v, dict) and v and isinstance(next(iter(v.values())), dict)
    ]
    numbers = [x for frame in frames for row in frame.values() for x in row.values() if isinstance(x, float)]
    assert np.isfinite(numbers).all()
