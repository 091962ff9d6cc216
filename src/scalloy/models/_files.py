"""Model files: weights as safetensors, everything else as JSON. Nothing in them is executed."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file

from scalloy.data.checks import check_same_genes

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._base import ScalloyModel

FORMAT = 1
WEIGHTS, ABOUT, CELLS = "model.safetensors", "model.json", "adata.h5ad"


def save(model: ScalloyModel, path: Path, *, overwrite: bool, save_anndata: bool) -> None:
    """Write the model into the folder ``path``."""
    if path.exists() and not overwrite and any(path.iterdir()):
        msg = f"`{path}` exists and is not empty. Pass `overwrite=True`, or another folder."
        raise FileExistsError(msg)
    path.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.module.state_dict().items()}
    save_file(state, path / WEIGHTS)
    about = {
        "format": FORMAT,
        "model": type(model).__name__,
        "versions": {p: version(p) for p in ("scalloy", "scvi-tools", "torch", "anndata")},
        "init": model.init_params_["non_kwargs"],
        "registry": model.registry,
        "trained": model.is_trained_,
        "history": model.history_ or {},
        "indices": {k: getattr(model, f"{k}_indices_") for k in ("train", "validation", "test")},
    }
    (path / ABOUT).write_text(json.dumps(to_json(about)))
    (path / CELLS).unlink(missing_ok=True)  # of a model that was here before
    if save_anndata and model.adata is not None:
        model.adata.write_h5ad(path / CELLS)


def load(cls: type[ScalloyModel], path: Path, adata: AnnData | None) -> ScalloyModel:
    """Read a model that :func:`save` wrote."""
    if not (path / ABOUT).is_file():
        msg = f"`{path}` holds no {ABOUT}. Pass the folder that `model.save(folder)` wrote."
        raise FileNotFoundError(msg)
    about = from_json(json.loads((path / ABOUT).read_text()))
    if about["format"] > FORMAT:
        msg = (
            f"`{path}` has file format {about['format']}, this scalloy reads up to {FORMAT}. "
            f"Install scalloy {about['versions']['scalloy']} or later."
        )
        raise ValueError(msg)
    if about["model"] != cls.__name__:
        msg = f"`{path}` holds a {about['model']}. Call `{about['model']}.load({str(path)!r})`."
        raise ValueError(msg)
    registry = about["registry"]
    if adata is None and (path / CELLS).is_file():
        import anndata

        adata = anndata.read_h5ad(path / CELLS)
    given = adata
    if adata is not None:
        adata = cls._joined(adata, registry)
        names = registry["field_registries"]["X"]["state_registry"]["column_names"]
        check_same_genes(names, adata)
        args = {k: registry[k] for k in ("model_name", "setup_method_name", "setup_args")}
        cls._set_up(adata, args, source_registry=registry)
    init = about["init"]
    model = cls(adata, **init) if adata is not None else cls(None, registry=registry, **init)
    model.module.load_state_dict(load_file(path / WEIGHTS))
    model.module.eval()
    model._cells = None
    model._source = None if adata is given else given
    model.is_trained_, model.history_ = about["trained"], about["history"]
    for key, rows in about["indices"].items():
        setattr(model, f"{key}_indices_", rows)
    return model


def to_json(value: Any) -> Any:
    """Plain types; arrays and frames are tagged so that :func:`from_json` restores them."""
    if isinstance(value, pd.DataFrame):
        columns = {str(k): to_json(value[k].tolist()) for k in value}
        return {"__frame__": columns, "index": to_json(value.index.tolist())}
    if isinstance(value, np.ndarray) or (hasattr(value, "__array__") and not np.isscalar(value)):
        array = np.asarray(value)
        kind = "str" if array.dtype.kind in "OUT" else array.dtype.str
        items = [str(v) for v in array.ravel()] if kind == "str" else array.ravel().tolist()
        return {"__array__": items, "shape": list(array.shape), "dtype": kind}
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "items"):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    msg = f"A {type(value).__name__} cannot be written into a model file."
    raise TypeError(msg)


def from_json(value: Any) -> Any:
    """What :func:`to_json` made, restored."""
    if isinstance(value, list):
        return [from_json(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        dtype = object if value["dtype"] == "str" else np.dtype(value["dtype"])
        return np.array(value["__array__"], dtype=dtype).reshape(value["shape"])
    if "__frame__" in value:
        index = pd.Index(value["index"], name="epoch")
        return pd.DataFrame(value["__frame__"], index=index)
    return {k: from_json(v) for k, v in value.items()}
