"""What the documentation shows is run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import scalloy as sa

ROOT = Path(__file__).parents[1]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_screen_runs(page, monkeypatch):
    """The lines as they stand; only training is cut short and the data are fewer."""
    train = sa.VAE.train
    monkeypatch.setattr(sa.VAE, "train", lambda self: train(self, 1, enable_progress_bar=False))
    kang = sa.datasets.kang()[::20].copy()
    monkeypatch.setattr(sa.datasets, "kang", lambda: kang)
    exec(blocks(page)[0], {})
    assert kang.obsm["X_vae"].shape == (kang.n_obs, 10)
    assert "connectivities" in kang.obsp


def test_own_model_runs(cells, quick):
    names: dict = {}
    for code in blocks("docs/own_model.md"):
        exec(code, names)
    model_class = names["LinearVAE"]
    model_class.setup_anndata(cells, batch_key="batch")
    model = model_class(cells, n_latent=3)
    model.train(**quick)
    assert model.get_latent_representation().shape == (200, 3)
    assert model.get_marginal_ll(n_mc_samples=3) > model.get_elbo() - 5
    assert np.isfinite(model.get_normalized_expression().to_numpy()).all()


def test_every_plan_argument_is_documented():
    import inspect

    text = (ROOT / "docs" / "training.md").read_text()
    arguments = set(inspect.signature(sa.train.TermsPlan).parameters) - {"module"}
    assert not [a for a in arguments if f"`{a}`" not in text]


def test_every_likelihood_is_documented():
    from typing import get_args

    from scalloy.models._options import GeneLikelihood

    text = (ROOT / "docs" / "likelihoods.md").read_text()
    assert not [k for k in get_args(GeneLikelihood) if f'`"{k}"`' not in text]
