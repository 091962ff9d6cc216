"""Conversion of scvi-tools' ``SCVI`` into a :class:`scalloy.VAE`, which has the same networks.

scvi-tools puts one-hot codes beside the input of a layer; here each covariate has a table that is added to
its output, with the same numbers as the columns of the weight matrix there. The variance of the code is
``exp(.) + 1e-4`` in scvi-tools, and has no added constant here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from anndata import AnnData
from scvi.model import SCVI

from scalloy.blocks.layers import Layer
from scalloy.files.reading import DamagedFileError
from scalloy.kernels.csr import SparseLinear
from scalloy.models._core.setup import set_up, set_up_defaults

ONLY = {
    "latent_distribution": ("normal",),
    "use_observed_lib_size": (True,),
    "batch_representation": ("one-hot",),
    "deeply_inject_covariates": (True,),
    "log_variational": (True,),
    "use_layer_norm": ("none",),
    "use_batch_norm": ("both",),
    "dispersion": ("gene", "gene-batch"),
    "gene_likelihood": ("nb", "zinb", "poisson"),
}
DEFAULTS = {"encode_covariates": False}

Weights = dict[str, torch.Tensor]


def load_pickle(cls: Any, path: Path, adata: AnnData | None, *, allow_pickle: bool) -> Any:
    """Load an ``SCVI`` from the folder in which scvi-tools saved it, if the user allows pickles.

    Parameters
    ----------
    cls
        Class of the model to return.
    path
        Folder in which scvi-tools saved the model.
    adata
        Cells of the model; ``None`` uses those that were saved with it.
    allow_pickle
        Whether the user trusts the file, a pickle that can run any code.
    """
    if not allow_pickle:
        msg = (
            f"`{path}` holds a model.pt of scvi-tools, a pickle: it can run any code when it is read. If you "
            "trust who made it, pass `allow_pickle=True`."
        )
        raise DamagedFileError(msg)
    return from_scvi(cls, SCVI.load(str(path), adata))


def from_scvi(cls: Any, model: SCVI) -> Any:
    """Make a model from a :class:`scvi.model.SCVI`, with the same weights, history and cells.

    The mean code of each cell is the same, and so is what is decoded from a code; the variance of the code
    lacks the 1e-4 that scvi-tools adds to it.

    Parameters
    ----------
    model
        Model of scvi-tools, with its cells.

    Examples
    --------
    >>> vae = sa.VAE.from_scvi(scvi_model)  # doctest: +SKIP
    """
    if type(model) is not SCVI:
        msg = f"`model` is a {type(model).__name__}; only an `scvi.model.SCVI` can be taken over."
        raise TypeError(msg)
    if model.adata is None:
        msg = "`model` has no cells. Load it with `adata=`."
        raise ValueError(msg)
    more = (v for given in model.init_params_["kwargs"].values() for v in given.items())
    options = {**DEFAULTS, **model.init_params_["non_kwargs"], **dict(more)}
    for name, known in ONLY.items():
        if options.get(name, known[0]) not in known:
            msg = f"`{name}={options[name]!r}` of the SCVI has no counterpart here; only {list(known)} has."
            raise ValueError(msg)
    setup = model.registry["setup_args"]
    given = {k: setup.get(k, default) for k, default in set_up_defaults(cls, "setup_anndata").items()}
    args = {"model_name": cls.__name__, "setup_method_name": "setup_anndata", "setup_args": given}
    set_up(cls, model.adata, args, source_registry=model.registry)
    kept = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "gene_likelihood", "dispersion")
    made = cls(
        model.adata,
        **{k: options[k] for k in kept},
        encode_covariates=options["encode_covariates"],
        norm="batch",
    )
    theirs = {k: v.detach().cpu() for k, v in model.module.state_dict().items()}
    with torch.no_grad():
        _take_over(made.module, theirs)
    made.module.eval()
    made.to_device(model.device)
    made.is_trained_, made.history_ = model.is_trained_, model.history_
    for part in ("train", "validation", "test"):
        setattr(made, f"{part}_indices_", getattr(model, f"{part}_indices_", None))
    return made


def _take_over(module: Any, theirs: Weights) -> None:
    """Copy the weights of an ``SCVI`` into our module."""
    for i, layer in enumerate(module.enc_z.stack.layers):
        _layer(layer, theirs, f"z_encoder.encoder.fc_layers.Layer {i}", first=i == 0)
    _linear(module.enc_z.head.loc, theirs, "z_encoder.mean_encoder")
    _linear(module.enc_z.head.log_variance, theirs, "z_encoder.var_encoder")
    for i, layer in enumerate(module.dec_x.layers):
        _layer(layer, theirs, f"decoder.px_decoder.fc_layers.Layer {i}", first=i == 0)
    inflated = hasattr(module.likelihood, "gate")
    base = module.likelihood.base if inflated else module.likelihood
    _linear(base.head, theirs, "decoder.px_scale_decoder.0")
    if inflated:
        _linear(module.likelihood.gate, theirs, "decoder.px_dropout_decoder")
    if hasattr(base, "log_theta"):
        base.log_theta.copy_(theirs["px_r"].reshape(base.log_theta.shape[-1], -1).T)


def _layer(layer: Layer, theirs: Weights, name: str, *, first: bool) -> None:
    """Copy a hidden layer, whose columns are input, continuous covariates (first layer), one-hot codes."""
    weight, at = theirs[f"{name}.0.weight"], 0

    def columns(n: int) -> torch.Tensor:
        nonlocal at
        at += n
        return weight[:, at - n : at]

    own, turned = layer.linear.weight, isinstance(layer.linear, SparseLinear)
    own.copy_(columns(len(own)).T if turned else columns(own.shape[1]))
    layer.linear.bias.copy_(theirs[f"{name}.0.bias"])
    slopes = layer.covariates.slopes
    if slopes is not None:
        slopes.weight.copy_(columns(slopes.in_features) if first else torch.zeros_like(slopes.weight))
    for table in layer.covariates.tables:
        if isinstance(table, torch.nn.Embedding):
            table.weight.copy_(columns(table.num_embeddings).T)
    layer.norm.load_state_dict({k: theirs[f"{name}.1.{k}"] for k in layer.norm.state_dict()})


def _linear(layer: torch.nn.Linear, theirs: Weights, name: str) -> None:
    """Copy a linear layer."""
    layer.weight.copy_(theirs[f"{name}.weight"])
    layer.bias.copy_(theirs[f"{name}.bias"])
