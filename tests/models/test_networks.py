"""Every model takes every network: it is trained, saved, loaded, extended and searched with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import scalloy as sa
from scalloy.blocks import network_kinds
from scalloy.blocks.network_kinds import NETWORKS

pytestmark = pytest.mark.usefixtures("registries")
IMAGE = {"kind": "conv", "shape": (5, 8), "channels": (4, 6)}
MODELS = ["VAE", "BetaVAE", "AE", "GMVAE", "BetaVSC", "TRVAE", "CGMDVAE"]
KINDS = {
    "widths": {"n_hidden": [12, 6]},
    "residual": {"n_hidden": [12, 6], "encoder": "residual", "decoder": "residual"},
    "conv": {"n_hidden": 8, "n_layers": 2, "encoder": IMAGE, "decoder": IMAGE},
    "apart": {"n_hidden": 8, "encoder": {"n_hidden": [12, 7]}, "decoder": {"n_hidden": [5, 6, 7]}},
    "own": {"n_hidden": [12, 6], "encoder": "own", "decoder": "own"},
}
PARTS = {"CGMDVAE": {"n_clusters": 3, "n_w": 2, "assignment": "amortised"}, "GMVAE": {"n_clusters": 3}}


class Own(nn.Module):
    """A network that knows nothing of scalloy."""

    def __init__(self, n_in, widths, leak=0.1):
        super().__init__()
        self.maps = nn.Sequential(
            nn.Linear(n_in, widths[0]), nn.LeakyReLU(leak), nn.Linear(widths[0], widths[-1])
        )

    def forward(self, x):
        return self.maps(x)


def made(name, cells, kind, **more):
    cls = getattr(sa, name)
    keys = {"batch_key": "batch", **({"condition_key": "condition"} if hasattr(cls, "transfer") else {})}
    cls.setup_anndata(cells, **keys)
    return cls(cells, n_latent=3, **{**PARTS.get(name, {}), **KINDS[kind], **more})


def register():
    network_kinds.register("own", encoder=Own, decoder=Own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_trained_saved_loaded_and_extended(cells, quick, tmp_path, name, kind):
    register()
    model = made(name, cells, kind)
    model.train(**quick)
    code = model.get_latent_representation()
    assert np.isfinite(code).all()
    model.save(tmp_path / "model")
    again = sa.load(tmp_path / "model", cells)
    np.testing.assert_array_equal(again.get_latent_representation(), code)
    assert str(again.module) == str(model.module)
    query = cells[:60].copy()
    query.obs["batch"] = "another"
    extended = type(model).load_query_data(query, again)
    extended.train(**quick)
    np.testing.assert_array_equal(again.get_latent_representation(), code)
    old = cells[:60].copy()
    np.testing.assert_allclose(extended.get_latent_representation(old), code[:60], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["residual", "conv", "own"])
def test_batches_are_seen_by_the_decoder(cells, quick, kind):
    register()
    model = made("VAE", cells, kind)
    model.train(**quick)
    one, other = (
        model.get_normalized_expression(transform_batch=b) for b in sorted(cells.obs["batch"].unique())[:2]
    )
    assert np.abs(one - other).to_numpy().max() > 0


def test_a_list_of_equal_widths_is_the_same_model(cells):
    sa.VAE.setup_anndata(cells)
    one, other = (sa.VAE(cells, **given) for given in ({"n_hidden": 8, "n_layers": 2}, {"n_hidden": [8, 8]}))
    for a, b in zip(one.module.state_dict().values(), other.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_registered_class_is_saved_by_its_name(cells, tmp_path):
    register()
    model = made("VAE", cells, "own", encoder=Own, decoder={"kind": Own, "leak": 0.3})
    assert model.init_params_["non_kwargs"]["encoder"] == "own"
    model.save(tmp_path / "model")
    init = json.loads((tmp_path / "model" / "model.json").read_text())["init"]
    assert (init["encoder"], init["decoder"]) == ("own", {"kind": "own", "leak": 0.3})
    assert sa.load(tmp_path / "model").module.dec_x.network.maps[1].negative_slope == 0.3
    del NETWORKS["own"]
    with pytest.raises(ValueError, match=r"`encoder='own'` is not known.*or import what registers that name"):
        sa.load(tmp_path / "model", cells)


def test_sizes_in_a_file_must_agree_with_its_weights(cells, tmp_path):
    made("VAE", cells, "apart").save(tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    about = json.loads(file.read_text())
    for decoder, match in (
        ({"n_hidden": [5, 10**9]}, "`n_hidden=1000000000` does not agree with the size"),
        ({"n_hidden": [1] * 10_000}, "`n_hidden` has 10000 layers"),
    ):
        file.write_text(json.dumps({**about, "init": {**about["init"], "decoder": decoder}}))
        with pytest.raises(ValueError, match=match):
            sa.load(tmp_path / "model")


def test_the_shape_of_images_must_fit_the_genes(cells):
    sa.VAE.setup_anndata(cells)
    with pytest.raises(ValueError, match=r"`shape=\(7, 8\)` are 56 pixels, and there are 40 genes"):
        sa.VAE(cells, encoder={"kind": "conv", "shape": (7, 8)})


def test_the_summary_names_networks(cells):
    assert "encoder mlp 12-6, decoder mlp 6-12" in made("VAE", cells, "widths")._model_summary_string
    sa.VAE.setup_anndata(cells)
    assert "n_hidden 128 x 1" in sa.VAE(cells)._model_summary_string


def test_a_decoder_of_images_begins_with_its_pixels_as_they_are(cells):
    sa.VAE.setup_anndata(cells)
    for likelihood in ("nb", "zinb", "bernoulli"):
        model = sa.VAE(cells, decoder=IMAGE, gene_likelihood=likelihood)
        head = getattr(model.module.likelihood, "base", model.module.likelihood).head
        assert torch.equal(head.weight, torch.eye(40))
    square = sa.VAE(cells, n_hidden=40)  # as wide by chance
    assert not torch.equal(square.module.likelihood.head.weight, torch.eye(40))
