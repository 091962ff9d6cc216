"""Networks by name, against the same computations written out, and what users register."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalloy.blocks import network_kinds as kinds
from scalloy.blocks.image_networks import ImageDecoder, ImageEncoder
from scalloy.blocks.layers import Layer, Residual, Stack
from scalloy.blocks.networks import GaussianHead, NetworkSettings
from scalloy.kernels.csr import dense

pytestmark = pytest.mark.usefixtures("registries")
CATS = {"n_cats": (3,), "n_cont": 2}
IMAGE = {"kind": "conv", "shape": (5, 8), "channels": (4, 6)}
ENCODERS = ["mlp", "residual", IMAGE]
DECODERS = [*ENCODERS, "linear"]


def sees(n):
    """Codes and continuous covariates of some cells."""
    return [torch.arange(n) % 3], torch.linspace(-1, 1, 2 * n).reshape(n, 2)


# widths --------------------------------------------------------------------------------------------


def test_widths_are_those_of_each_layer_and_in_reverse_in_the_decoder():
    made = NetworkSettings([16, 8, 4], n_latent=3)
    encoder = made.encoder(20, GaussianHead(made.n_encoded, 3))
    assert [layer.linear.bias.shape[0] for layer in encoder.stack.layers] == [16, 8, 4]
    decoder = made.decoder(3, n_vars=20)
    assert [layer.linear.bias.shape[0] for layer in decoder.layers] == [4, 8, 16]
    assert (made.n_encoded, made.n_decoded(20)) == (4, 16)


def test_encoder_and_decoder_may_differ():
    made = NetworkSettings(
        [16, 8], n_latent=3, encoder_kind={"n_hidden": 7}, decoder_kind={"kind": "residual", "n_hidden": [5]}
    )
    assert made.encodes.widths == (7, 7)  # as many layers as there would be
    assert made.decodes.widths == (5,)
    assert isinstance(made.decoder(3), Residual)
    assert str(made) == "encoder mlp 7-7, decoder residual 5"
    assert str(NetworkSettings(16, n_layers=2)) == "n_hidden 16 x 2"
    assert str(NetworkSettings([16, 8], decoder_kind="linear")) == "encoder mlp 16-8, decoder linear"


def test_a_list_of_equal_widths_is_the_same_network():
    torch.manual_seed(0)
    one = NetworkSettings(6, n_layers=2).encoder(9, nn.Identity())
    torch.manual_seed(0)
    other = NetworkSettings([6, 6]).encoder(9, nn.Identity())
    x = torch.rand(4, 9)
    assert torch.equal(one.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_hidden": [8, 0]}, "must be above zero: pass whole numbers from 1, one for each layer"),
        ({"n_hidden": []}, "`n_hidden=[]` must be above zero"),
        ({"n_hidden": "64"}, "`n_hidden='64'` must be above zero"),
        ({"n_hidden": [8, 2.5]}, "`n_hidden=[8, 2.5]`"),
        ({"n_hidden": [8, 4], "n_layers": 3}, "has 2 layers, and `n_layers=3` says something else"),
        ({"encoder_kind": "residal"}, "Did you mean 'residual'?"),
        ({"encoder_kind": "linear"}, "`encoder='linear'` is not known. Pass one of: mlp, residual, conv"),
        ({"decoder_kind": {"kind": "mlp", "n_hidden": [0]}}, "`decoder['n_hidden']=[0]` must be above zero"),
        ({"decoder_kind": {"kind": "linear", "n_hidden": 3}}, "a linear decoder has no hidden layers"),
        ({"encoder_kind": "conv"}, "Pass a dictionary: `encoder={'kind': 'conv', 'shape': ...}`"),
        ({"encoder_kind": {"kind": "conv", "shap": (2, 2)}}, "Did you mean 'shape'?"),
        ({"encoder_kind": {"kind": "mlp", "norm": "layers"}}, "Did you mean 'layer'?"),
        ({"encoder_kind": {"kind": "mlp", "dropout_rate": 1.0}}, "`dropout_rate=1.0` is a share"),
        ({"encoder_kind": nn.Linear}, "`encoder` is Linear, which is not registered"),
        ({"encoder_kind": nn.Linear(2, 2)}, "which is a module that is made already"),
    ],
)  # fmt: skip
def test_wrong_networks_are_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NetworkSettings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": (5, 7)}, "`shape=(5, 7)` are 35 pixels, and there are 40 genes"),
        ({"shape": 40}, "`shape=40` is no shape of images"),
        ({"shape": (40,)}, "is no shape of images"),
        ({"shape": (5, 8.0)}, "is no shape of images"),
        ({"channels": ()}, "`channels=()` must be whole numbers"),
        ({"channels": (4, 0)}, "`channels=(4, 0)` must be whole numbers"),
    ],
)
def test_wrong_images_are_refused(wrong, message):
    settings = NetworkSettings(encoder_kind={**IMAGE, **wrong}, decoder_kind={**IMAGE, **wrong})
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.encoder(40, nn.Identity())
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.n_decoded(40)


# computations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODERS, ids=str)
def test_encoders_read_sparse_counts_as_dense_ones(kind):
    torch.manual_seed(0)
    made = NetworkSettings([12, 6], encoder_kind=kind)
    encoder = made.encoder(40, nn.Linear(made.n_encoded, 2), **CATS).eval()
    x = torch.poisson(torch.full((7, 40), 0.3))
    expected = encoder(x, *sees(7))
    torch.testing.assert_close(encoder(x.to_sparse_csr(), *sees(7)), expected)
    others = encoder(x, [torch.ones(7, dtype=torch.long)], sees(7)[1])
    assert not torch.allclose(others, expected)  # the covariates are seen


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
@pytest.mark.parametrize("kind", DECODERS, ids=str)
def test_samples_in_front_change_nothing(kind, norm):
    torch.manual_seed(0)
    made = NetworkSettings([12, 6], n_latent=4, decoder_kind=kind, norm=norm)
    decoder = made.decoder(4, n_vars=40, **CATS).eval()
    z = torch.randn(3, 5, 4)
    together = decoder(z, *sees(5))
    assert together.shape == (3, 5, made.n_decoded(40, **CATS))
    for one, each in zip(together, z, strict=True):
        torch.testing.assert_close(one, decoder(each, *sees(5)), rtol=1e-4, atol=1e-5)


def test_the_width_of_a_decoder_is_known_before_and_draws_nothing():
    torch.manual_seed(0)
    made = NetworkSettings([12, 6], n_latent=4, decoder_kind=IMAGE)
    before = torch.get_rng_state()
    assert made.n_decoded(40, **CATS) == 40
    assert NetworkSettings(12, n_latent=4, decoder_kind="linear").n_decoded(40, **CATS) == 4 + 3 + 2
    assert torch.equal(torch.get_rng_state(), before)


def test_residual_blocks_add_to_their_input():
    torch.manual_seed(0)
    made, x = Residual(5, (4, 4, 6), norm="none", **CATS), torch.randn(7, 5)
    cats, cont = sees(7)

    def layer(of, h):
        more = of.covariates.tables[0].weight[cats[0]] + cont @ of.covariates.slopes.weight.T
        return torch.relu(h @ of.linear.weight.T + of.linear.bias + more)

    h = layer(made.first, x)
    for i in range(3):
        skipped = h if i < 2 else h @ made.skips[2].weight.T
        h = skipped + layer(made.inner[i], h) @ made.outer[i].weight.T + made.outer[i].bias
    torch.testing.assert_close(made(x, cats, cont), h)
    assert made.n_out == 6


def test_convolutions_see_the_genes_as_pixels_row_by_row():
    """The first map at a pixel is the sum over its neighbours, computed one by one."""
    torch.manual_seed(0)
    made, x = ImageEncoder(40, (3,), shape=(5, 8), channels=(2,), norm="none"), torch.randn(1, 40)
    weight, bias = made.convolutions[0].weight.detach(), made.convolutions[0].bias.detach()
    expected = torch.zeros(2, 3, 4)
    for c in range(2):
        for i in range(3):
            for j in range(4):
                total = bias[c].clone()
                for di in range(3):
                    for dj in range(3):
                        row, column = 2 * i + di - 1, 2 * j + dj - 1
                        if 0 <= row < 5 and 0 <= column < 8:
                            total += weight[c, 0, di, dj] * x[0, 8 * row + column]
                expected[c, i, j] = total
    torch.testing.assert_close(made.convolutions[0](x.reshape(1, 1, 5, 8))[0], expected)
    linear = made.stack.layers[0].linear
    h = F.layer_norm(F.relu(expected).flatten() @ linear.weight.T + linear.bias, (3,))
    made.stack.layers[0].norm = nn.LayerNorm(3)
    torch.testing.assert_close(made(x)[0], F.relu(h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 8), (7, 7), (2, 4, 5), (1, 40)])
def test_images_come_out_in_the_size_in_which_they_go_in(shape):
    n, z = int(np.prod(shape)), torch.randn(6, 3)
    made = ImageDecoder(3, (5,), n_vars=n, shape=shape, channels=(4, 4, 4))
    assert made(z).shape == (6, n)
    assert ImageEncoder(n, (5,), shape=shape)(torch.randn(6, n)).shape == (6, 5)


def test_a_pixel_of_a_decoder_depends_on_what_is_near():
    """What is at one corner of the smallest map does not reach the far corner of the image."""
    torch.manual_seed(0)
    made = ImageDecoder(3, (5,), n_vars=400, shape=(20, 20), channels=(9, 9), norm="none")
    h = torch.rand(1, *made.first, requires_grad=True)
    image = made.convolutions(h)[0, 0]
    (gradient,) = torch.autograd.grad(image[0, 0], h)
    assert gradient[0, :, 0, 0].abs().sum() > 0
    assert gradient[0, :, 3:, 3:].abs().sum() == 0


@pytest.mark.parametrize("kind", ENCODERS, ids=str)
def test_gradients_reach_every_parameter(kind):
    torch.manual_seed(0)
    made = NetworkSettings([12, 6], n_latent=3, encoder_kind=kind, decoder_kind=kind)
    encoder = made.encoder(40, nn.Linear(made.n_encoded, 3), **CATS)
    decoder = made.decoder(3, n_vars=40, **CATS)
    x = torch.rand(30, 40)
    (decoder(encoder(x, *sees(30)), *sees(30)) * torch.randn(made.n_decoded(40))).sum().backward()
    for part in (encoder, decoder):
        for name, p in part.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name


def test_settings_of_the_model_reach_networks_and_may_be_set_apart():
    made = NetworkSettings(8, norm="batch", dropout_rate=0.3, encoder_kind=IMAGE)
    encoder = made.encoder(40, nn.Identity())
    assert any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    assert [m.p for m in encoder.modules() if isinstance(m, nn.Dropout)] == [0.3]
    apart = NetworkSettings(8, decoder_kind={"kind": "mlp", "norm": "none", "dropout_rate": 0.2}).decoder(3)
    assert isinstance(apart.layers[0].norm, nn.Identity)
    assert [m.p for m in apart.modules() if isinstance(m, nn.Dropout)] == [0.2]


# networks of the user ------------------------------------------------------------------------------


class Plain(nn.Module):
    """Knows no covariates, takes dense cells in two dimensions, and has a setting."""

    def __init__(self, n_in, widths, *, slope=0.1):
        super().__init__()
        self.map, self.slope = nn.Linear(n_in, widths[-1]), slope

    def forward(self, x):
        assert x.dim() == 2
        assert x.layout == torch.strided
        return F.leaky_relu(self.map(x), self.slope)


class Sees(nn.Module):
    def __init__(self, n_in, widths, *, n_cats, n_cont, n_vars=None):
        super().__init__()
        self.n_out = n_vars or 5
        self.layer = Layer(n_in, self.n_out, n_cats=n_cats, n_cont=n_cont)

    def forward(self, x, cats, cont):
        return self.layer(x, cats, cont)


class Wrong(Plain):
    def forward(self, x):
        return super().forward(x)[:, :-1]


def test_a_plain_module_is_followed_by_a_layer_that_sees_the_covariates():
    torch.manual_seed(0)
    kinds.register("plain", encoder=Plain, decoder=Plain)
    kind = {"kind": "plain", "slope": 0.5}
    made = NetworkSettings([9, 6], n_latent=4, encoder_kind=kind, decoder_kind=kind, norm="none")
    decoder, z = made.decoder(4, n_vars=40, **CATS).eval(), torch.randn(3, 5, 4)
    own = F.leaky_relu(z @ decoder.network.map.weight.T + decoder.network.map.bias, 0.5)
    torch.testing.assert_close(decoder(z, *sees(5)), decoder.layer(own, *sees(5)))
    assert decoder.network.slope == 0.5
    x = torch.rand(5, 40)
    encoder = made.encoder(40, nn.Identity(), **CATS).eval()
    torch.testing.assert_close(encoder(x.to_sparse_csr(), *sees(5)), encoder(x, *sees(5)))
    assert made.n_decoded(40) == 9


def test_a_network_may_see_covariates_itself_and_say_its_width():
    kinds.register("sees", encoder=Sees, decoder=Sees)
    made = NetworkSettings(7, n_latent=4, decoder_kind=Sees)
    assert made.decodes.name == "sees"
    assert made.n_decoded(40, **CATS) == 40  # `n_vars` is told
    assert isinstance(made.decoder(4, n_vars=40, **CATS), Sees)


def test_what_a_network_returns_is_checked_when_it_is_made():
    kinds.register("wrong", encoder=Wrong)
    made = NetworkSettings(7, encoder_kind="wrong", norm="none")
    with pytest.raises(
        ValueError, match=r"`encoder='wrong'` returned values of shape \(2, 6\).*Expected \(2, 7\)"
    ):
        made.encoder(40, nn.Identity())
    with pytest.raises(ValueError, match="`decoder='wrong'` is not known"):
        NetworkSettings(7, decoder_kind="wrong")


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="neither an `encoder` nor a `decoder` for 'mine'"):
        kinds.register("mine")
    with pytest.raises(TypeError, match="`encoder` is a int"):
        kinds.register("mine", encoder=3)
    with pytest.raises(TypeError, match="`decoder` does not take the right arguments"):
        kinds.register("mine", decoder=lambda: None)
    kinds.register("mine", encoder=Plain)
    with pytest.raises(ValueError, match="'mine' is registered already"):
        kinds.register("mine", encoder=Plain)


def test_a_small_network_of_the_settings_is_plain():
    made = NetworkSettings([9, 6], encoder_kind=IMAGE)
    small = made.encoder(40, nn.Identity(), n_layers=1)
    assert isinstance(small.stack, Stack)
    assert [layer.linear.bias.shape[0] for layer in small.stack.layers] == [9]


def test_layers_that_are_made_elsewhere_must_leave_some():
    made = NetworkSettings(8, n_layers=1, decoder_kind="residual")
    with pytest.raises(ValueError, match=r"`decoder='residual'` has no layers left.*`n_layers=2` or more"):
        made.decoder(8, skip=1)
    assert made.decodes.widths == (8,)
    assert len(NetworkSettings(8).decoder(8, skip=1).layers) == 0


def test_dense_and_sparse_are_told_by_the_network():
    x = torch.rand(3, 40).to_sparse_csr()
    assert NetworkSettings(8).encoder(40, nn.Identity()).takes_sparse
    assert not NetworkSettings(8, encoder_kind=IMAGE).encoder(40, nn.Identity()).takes_sparse
    assert dense(x).layout == torch.strided
