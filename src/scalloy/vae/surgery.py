"""Extension of a trained model to a second study: old weights stay exactly as they are, new ones are learned.

Each category that the reference has never seen gets its own row in each table of the networks, or its own
column where one-hot codes lie beside the latent code. Only these are trained. All other weights have no
gradient and no weight decay, and running statistics do not move, so that cells of the reference are read by
the same numbers. An encoder that did not see categories sees them now, with rows of zeros for those that the
reference knew.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scalloy.blocks.layers import Beside
from scalloy.vae.base import VAEModule

Weights = dict[str, Tensor]


@torch.no_grad()
def extend(module: VAEModule, reference: VAEModule, n_cats: tuple[int, ...]) -> None:
    """Give ``module``, which has more categories, the weights of ``reference``, and free only the new ones.

    Parameters
    ----------
    module
        New model, built as the reference was but for data with more categories.
    reference
        Trained model.
    n_cats
        Number of categories that the reference knew: of the batch, of each covariate and of the condition.
    """
    known = reference.state_dict()
    module.to(next(iter(known.values())).device)
    own, whole = module.state_dict(), dict[str, Tensor]()
    parameters, free = dict(module.named_parameters()), dict[str, Tensor]()
    for key, value in own.items():
        is_new = torch.zeros(value.shape, dtype=torch.bool)
        if key not in known:
            whole[key] = torch.zeros_like(value)
            if ".tables." in key:
                n = (
                    n_cats[int(key.split(".tables.")[1].split(".")[0])]
                    if key.startswith(("enc_", "encoders."))
                    else 1
                )
                is_new[n:] = True
        elif known[key].shape == value.shape:
            whole[key] = known[key]
        elif known[key].shape[1:] == value.shape[1:]:
            n = len(known[key])
            is_new[n:] = True
            more = known[key].mean(0, keepdim=True).expand_as(value[n:]) if key in parameters else value[n:]
            whole[key] = torch.cat([known[key], more])
        else:
            whole[key], is_new = _beside(known[key], module, reference)
        if key in parameters and is_new.any():
            free[key] = is_new
    module.load_state_dict(whole)
    free_only(module, free)
    module.settle()


def _beside(known: Tensor, module: VAEModule, reference: VAEModule) -> tuple[Tensor, Tensor]:
    """Return weights on a code with one-hot codes beside it, and a mask of those that are new.

    The new weights start at the mean of the known ones.
    """
    new, old = module.dec_x, reference.dec_x
    assert isinstance(new, Beside)
    assert isinstance(old, Beside)
    blocks, is_new, begin = [], [], 0
    for n_new, n_old in zip(new.widths, old.widths, strict=True):
        block = known[:, begin : begin + n_old]
        begin += n_old
        if n_new > n_old == 0:  # a single category has no column
            block = known.new_zeros(len(known), 1)
        more = n_new - block.shape[1]
        if more:
            block = torch.cat([block, block.mean(1, keepdim=True).expand(-1, more)], 1)
        blocks.append(block)
        is_new.append(torch.arange(n_new) >= n_new - more)
    return torch.cat(blocks, 1), torch.cat(is_new).expand(len(known), -1).clone()


class Masked:
    """Hook that lets only the entries of a gradient under ``mask`` through."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, gradient: Tensor) -> Tensor:
        self.mask = self.mask.to(gradient.device)  # a transfer on the first call only
        return gradient * self.mask


def free_only(module: VAEModule, free: Mapping[str, Tensor]) -> None:
    """Train only those entries of the parameters that the masks in ``free`` select."""
    module.free = dict(free)
    for name, parameter in module.named_parameters():
        mask = free.get(name)
        if mask is None:
            parameter.requires_grad_(False)
        else:
            parameter.register_hook(Masked(mask))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            part.momentum = 0.0  # running statistics stay as they are
