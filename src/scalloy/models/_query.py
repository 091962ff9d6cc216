"""A second study on a trained model, whose own cells stay exactly where they are.

Batches and covariates that the reference has never seen get rows of their own in the tables of the networks,
which begin at the mean of the known ones. Only these rows are trained: the gradient of everything else is
zero, nothing decays, and no running statistics move. So the reference's cells are read by the same numbers.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch import nn

from scalloy.data import checks
from scalloy.models import _options

UNKNOWN = "unknown"


def load_query_data(cls: Any, adata: AnnData, reference: Any) -> Any:
    """The body of :meth:`scalloy.CGMDVAE.load_query_data`."""
    reference = cls.load(reference) if isinstance(reference, str | Path) else reference
    if type(reference) is not cls:
        name = type(reference).__name__
        msg = f"`reference_model` is a {name}. Call `{name}.load_query_data`."
        raise TypeError(msg)
    reference._check_if_trained(warn=False, message="`reference_model` is not trained. Call `train()` first.")
    registry = deepcopy(reference.registry)
    given = registry["setup_args"]
    checks.check_object(adata)
    checks.check_same_genes(reference.get_var_names(), adata)
    if key := given.get("labels_key"):
        given["unlabeled_category"] = given.get("unlabeled_category") or UNKNOWN
        if key not in adata.obs:
            adata.obs[key] = given["unlabeled_category"]
        known = [*reference.labels, given["unlabeled_category"]]
        state = registry["field_registries"][REGISTRY_KEYS.LABELS_KEY]["state_registry"]
        state["categorical_mapping"] = np.array(known, dtype=object)
        for name in checks.find_column(adata.obs, "labels_key", key).astype(str).unique():
            _options.one_of(f"adata.obs[{key!r}]", name, known)
    if key := given.get("condition_key"):
        for name in checks.find_column(adata.obs, "condition_key", key).astype(str).unique():
            _options.one_of(f"adata.obs[{key!r}]", name, reference.conditions)
    args = {k: registry[k] for k in ("model_name", "setup_method_name", "setup_args")}
    cls._set_up(adata, args, source_registry=registry, extend_categories=True)
    query = cls(adata, **reference.init_params_["non_kwargs"])
    extend(query.module, reference.module.state_dict())
    query.module.prior.settle()
    query._plan_defaults = {**query._plan_defaults, "weight_decay": 0.0}
    query.is_trained_ = True
    return query


@torch.no_grad()
def extend(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Take over the weights of the reference; only rows that it lacks stay trainable."""
    own = module.state_dict()
    absent = {k: torch.zeros_like(v[:1]) for k, v in own.items() if k not in state}  # of a single batch
    state = {**state, **absent}
    whole = {k: _with_more_rows(v, len(own[k])) if own[k].shape != v.shape else v for k, v in state.items()}
    module.load_state_dict(whole)
    for name, parameter in module.named_parameters():
        n_known = len(state[name]) if state[name].dim() else 1
        if parameter.shape == state[name].shape:
            parameter.requires_grad_(False)
        else:
            mask = torch.arange(len(parameter), device=parameter.device) >= n_known
            parameter.register_hook(lambda grad, mask=mask: grad * mask.view(-1, *[1] * (grad.dim() - 1)))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = 0.0  # running statistics stay


def _with_more_rows(known: torch.Tensor, n: int) -> torch.Tensor:
    more = known.mean(0, keepdim=True).expand(n - len(known), *known.shape[1:])
    return torch.cat([known, more])
