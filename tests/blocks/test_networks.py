"""Networks: covariates equal one-hot codes, samples in front change nothing."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from scalloy.blocks import networks as net


def test_covariates_equal_one_hot_codes_beside_the_input():
    layer = net.Layer(4, 6, n_cats=(3, 1, 2), n_cont=2, norm="none")
    x, cont = torch.randn(5, 4), torch.randn(5, 2)
    cats = (torch.tensor([0, 2, 1, 1, 0]), torch.zeros(5, dtype=torch.long), torch.tensor([1, 0, 1, 1, 0]))
    one_hot = torch.cat([nn.functional.one_hot(c, k).float() for c, k in zip(cats, (3, 1, 2))], -1)
    tables = layer.covariates.tables
    weight = torch.cat(
        [layer.linear.weight, tables[0].weight.T, torch.zeros(6, 1), tables[2].weight.T,
         layer.covariates.slopes.weight], 1
    )  # fmt: skip
    expected = torch.relu(torch.cat([x, one_hot, cont], -1) @ weight.T + layer.linear.bias)
    torch.testing.assert_close(layer(x, cats, cont), expected)


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_samples_in_front_change_nothing(norm):
    stack = net.Stack(4, 6, 2, n_cats=(3,), norm=norm).eval()
    z, b = torch.randn(3, 5, 4), torch.tensor([0, 2, 1, 1, 0])
    together = stack(z, (b,))
    for one, each in zip(together, z, strict=True):
        torch.testing.assert_close(one, stack(each, (b,)))


def test_settings_reach_the_networks():
    """Each setting changes what it says, in encoders and decoders."""
    made = net.NetworkSettings(n_hidden=5, n_latent=2, n_layers=3, dropout_rate=0.25, norm="batch")
    encoder = made.encoder(7, net.GaussianHead(5, 2), n_cats=(3,), n_cont=1, hidden_rate=0.5)
    decoder = made.decoder(2, n_layers=1)
    shapes = [layer.linear.weight.shape for layer in encoder.stack.layers]
    assert shapes == [(7, 5), (5, 5), (5, 5)]  # the first one is stored genes first
    assert [layer.linear.weight.shape for layer in decoder.layers] == [(5, 2)]
    assert all(layer.dropout.p == 0.25 for layer in encoder.stack.layers)
    assert not any(isinstance(part, nn.Dropout) for part in decoder.modules())
    assert all(isinstance(layer.norm, nn.BatchNorm1d) for layer in (*encoder.stack.layers, *decoder.layers))
    assert all(layer.covariates.slopes is not None for layer in encoder.stack.layers)
    assert encoder.hidden_rate == 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_hidden": 0}, "`n_hidden=0` must be above zero"),
        ({"n_latent": 2.5}, "`n_latent=2.5` must be above zero: pass a whole number"),
        ({"n_layers": True}, "`n_layers=True`"),
        ({"dropout_rate": 1.0}, "`dropout_rate=1.0` is a share"),
        ({"norm": "layers"}, "Did you mean 'layer'?"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        net.NetworkSettings(**wrong)


def test_encoders_see_covariates_only_if_they_are_to():
    sizes, cats, cont = {"n_cats": (3,), "n_cont": 2}, [torch.tensor([0, 2])], torch.ones(2, 2)
    for sees in (True, False):
        settings = net.NetworkSettings(n_hidden=4, encode_covariates=sees)
        encoder = settings.encoder(5, nn.Identity(), **settings.sizes_encoded(sizes)).eval()
        h = encoder(torch.ones(2, 5), *settings.encoded(cats, cont))
        assert (h[0] - h[1]).abs().max() > 0 if sees else torch.equal(h[0], h[1])
        assert len(encoder.stack.layers[0].covariates.tables) == sees


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        net.NetworkSettings().n_hidden = 5
