"""Networks: covariates equal one-hot codes, samples in front change nothing."""

from __future__ import annotations

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
