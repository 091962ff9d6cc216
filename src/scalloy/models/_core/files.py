"""Model files: weights as safetensors, everything else as JSON. Nothing in them is executed.

A folder holds ``model.json``, which names the other files: ``weights-<digest>.safetensors`` and, if cells
were saved, ``cells-<digest>.h5ad``. ``model.json`` is put in place last and in one step. So even if writing
is interrupted, the folder holds either the old model or the new one, and a reader that finds a file gone
reads the new ``model.json``. Files are not trusted: names, sizes, shapes and values are checked before
memory of that size is allocated, and each file must match its digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from scvi.model._utils import parse_device_args

from scalloy.data.fingerprint import of_names
from scalloy.files import anndata_files, atomic_write, plain_json, reading
from scalloy.files.anndata_files import is_on_disk
from scalloy.files.staging import locked
from scalloy.models._core.files_format import (
    ABOUT,
    FORMAT,
    KIND,
    NAMES,
    NAMES_OF_1,
    PARTS,
    Tensors,
    check_names,
    check_sizes,
    finite,
    name_now,
    read_about,
)
from scalloy.models._core.query import own_cells
from scalloy.models._core.setup import fitting, method_args, set_up, set_up_defaults
from scalloy.vae.surgery import free_only

ModelClass = Any  # a class of models; their base class uses this file, so it cannot be named here
Known = Any  # a class of models, or several by their names

TRIES, PATIENT = 10, 3  # attempts to read a model that is being replaced, and those made without a lock


# writing ----------------------------------------------------------------------------------------


def save(model: Any, dir_path: str | Path, overwrite: bool = False, save_anndata: bool = False) -> None:
    """Save the model: weights as safetensors, everything else as JSON.

    Parameters
    ----------
    dir_path
        Folder to save in, which is created if it does not exist.
    overwrite
        Whether to replace a model that is in the folder.
    save_anndata
        Whether to save the cells of the model too, as an h5ad file.

    Examples
    --------
    >>> model.save(folder / "model")
    """
    path = Path(dir_path)
    if not overwrite and path.is_dir() and not atomic_write.is_empty(path):
        msg = f"`{path}` exists and is not empty. Pass `overwrite=True`, or another folder."
        raise FileExistsError(msg)
    if save_anndata and is_on_disk(model.adata):
        msg = (
            "`save_anndata=True` would copy the whole store into the model's folder. Leave it out, and load "
            "with `load(folder, adata=sa.data.open_store(...))`."
        )
        raise ValueError(msg)
    if save_anndata and model.adata is not None:
        model.reader.manager()  # raises an error if the cells were changed since the set-up
    with atomic_write.explained(path):
        path.mkdir(parents=True, exist_ok=True)
        contents: dict[str, tuple[str, atomic_write.Content]] = {
            "weights": (".safetensors", to_bytes(_tensors(model)))
        }
        if save_anndata and model.adata is not None:
            contents["cells"] = (".h5ad", partial(anndata_files.write_h5ad, model.adata))
        about = partial(_about, model)
        atomic_write.put_named(path, ABOUT, contents, about, NAMES, NAMES_OF_1.values())


def _about(model: Any, files: dict[str, str]) -> bytes:
    """Return the content of ``model.json``, which names the other files."""
    about = {
        "format": FORMAT,
        "model": type(model).__name__,
        "versions": {p: version(p) for p in ("scalloy", "scvi-tools", "torch", "anndata")},
        "init": model.init_params_["non_kwargs"],
        "registry": model.registry,
        "trained": model.is_trained_,
        "query": model.module.free is not None,
        "history": model.history_ or {},
        "data": model._data,
        "files": files,
    }
    return plain_json.dumps(about)


def _tensors(model: Any) -> Tensors:
    """Return the weights, masks of those that are free in a query, and the rows of the split of the cells."""
    out = {f"weights/{k}": v.detach().cpu().contiguous() for k, v in model.module.state_dict().items()}
    out |= {f"free/{k}": v.cpu() for k, v in (model.module.free or {}).items()}
    for part in PARTS:
        if (rows := getattr(model, f"{part}_indices_")) is not None:
            out[f"indices/{part}"] = torch.as_tensor(np.asarray(rows, dtype=np.int64))
    return out


# reading ----------------------------------------------------------------------------------------


def load_one(
    cls: Any,
    dir_path: str | Path,
    adata: AnnData | None = None,
    accelerator: str = "auto",
    device: int | str = "auto",
) -> Any:
    """Load a model of this class that :meth:`save` wrote.

    Parameters
    ----------
    dir_path
        Folder in which the model was saved.
    adata
        Cells to attach, with the genes of the model. ``None`` uses those that were saved with the model; if
        there are none, it works on new cells only.
    accelerator, device
        Hardware to put the model on; ``"auto"`` uses a GPU if there is one.

    Examples
    --------
    >>> model.save(folder / "model", overwrite=True)
    >>> again = sa.CGMDVAE.load(folder / "model", adata)
    """
    return load(cls, Path(dir_path), adata, accelerator=accelerator, device=device)


def load(
    known: Known,
    path: Path,
    adata: AnnData | None,
    *,
    accelerator: str = "auto",
    device: int | str = "auto",
) -> Any:
    """Load a model that :func:`save` wrote.

    Parameters
    ----------
    known
        Class of the model, or several classes by their names.
    path
        Folder in which the model was saved.
    adata
        Cells to attach; ``None`` uses those that were saved with the model, if any.
    accelerator, device
        Hardware to put the model on; ``"auto"`` uses a GPU if there is one.
    """
    cls, about, tensors, own = _read(known, path, with_cells=adata is None)
    registry, given = about["registry"], adata if own is None else own
    adata = given
    with nullcontext() if own is None else reading.refused(path, KIND):
        if adata is not None:
            brought = own_cells if about["query"] else fitting
            adata = brought(cls.layout, adata, registry, 0.99 if about["query"] else 0.0)
            set_up(cls, adata, method_args(registry), source_registry=registry)
        model = _made(cls, adata, about)
    if adata is not given:
        model.reader.given, model.reader.max_missing = given, 0.99 if about["query"] else 0.0
    model.module.load_state_dict(tensors["weights"])
    if about["query"]:
        free_only(model.module, tensors["free"])
    model.module.eval()
    model.reader.forget_table()
    model.is_trained_, model.history_, model._data = about["trained"], about["history"], about["data"]
    same = adata is None or about["data"].get("cells", of_names(adata.obs_names)) == of_names(adata.obs_names)
    for part in PARTS:
        rows = tensors["indices"].get(part)
        setattr(model, f"{part}_indices_", rows.numpy() if same and rows is not None else None)
    if (accelerator, device) != ("auto", "auto") or torch.cuda.is_available():
        chosen = {"accelerator": accelerator, "devices": device, "validate_single_device": True}
        *_, there = parse_device_args(**chosen, return_device="torch")
        model.to_device(there)
    return model


def take_weights(model: Any, path: Path) -> None:
    """Load saved weights of the same model into it.

    Parameters
    ----------
    model
        Model whose weights are replaced.
    path
        Folder in which it was saved.
    """
    _, _, tensors, _ = _read(type(model), path, with_cells=False)
    model.module.load_state_dict(tensors["weights"])


def _read(known: Known, path: Path, *, with_cells: bool) -> tuple[ModelClass, dict, dict, Any]:
    """Read all files of a model; start again if another process replaced them meanwhile."""
    for attempt in range(TRIES):
        late = attempt >= PATIENT  # replaced several times: take the lock, so that writers wait
        with locked(path, shared=True) if late else nullcontext():
            before = _stamp(path)
            try:
                return _read_once(known, path, with_cells=with_cells)
            except (reading.DamagedFileError, FileNotFoundError):
                if attempt == TRIES - 1 or _stamp(path) == before:
                    raise
    raise AssertionError


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return a stamp that differs for each ``model.json`` that is put in place; ``None`` without one."""
    try:
        now = (path / ABOUT).stat()
    except OSError:
        return None
    return now.st_ino, now.st_mtime_ns, now.st_size


def _read_once(known: Known, path: Path, *, with_cells: bool) -> tuple[ModelClass, dict, dict, Any]:
    """Return the class, the content of ``model.json``, the tensors by group, and the cells if wanted."""
    about, own = read_about(path), None
    cls = _class(known, path, about["model"])
    with reading.refused(path, KIND):
        about["registry"]["setup_args"] = _arguments(cls, about["registry"])
        tensors = _read_tensors(cls, path, about)
        if with_cells and "cells" in about["files"]:
            own = reading.read(_checked(path, about["files"]["cells"]))
    return cls, about, tensors, own


def _class(known: Known, path: Path, name: str) -> ModelClass:
    """Return the class of that name, which must be among the known ones."""
    if not isinstance(known, Mapping):
        if name != known.__name__:
            msg = f"`{path}` holds a {name}. Call `{name}.load({str(path)!r})`."
            raise ValueError(msg)
        return known
    if name not in known:
        msg = f"`{path}` holds a {name[:50]!r}, which is none of {', '.join(known)}."
        raise ValueError(msg)
    return known[name]


def _arguments(cls: ModelClass, registry: dict[str, Any]) -> dict[str, Any]:
    """Return the set-up arguments; those that did not exist when the model was saved get their defaults."""
    known = set_up_defaults(cls, registry["setup_method_name"])
    if unknown := set(registry["setup_args"]) - set(known):
        msg = f"`registry` in its {ABOUT} has the arguments {sorted(unknown)}"
        raise ValueError(msg)
    return {**known, **registry["setup_args"]}


def _made(cls: ModelClass, adata: AnnData | None, about: dict[str, Any]) -> Any:
    """Build the model as ``model.json`` describes it, with new weights."""
    given = {} if adata is not None else {"registry": about["registry"]}
    return cls(adata, **given, **about["init"])


def _checked(path: Path, name: Any) -> Path:
    """Return the path of a file beside ``model.json``, its digest verified; format 1 has no digests."""
    return path / name if name in NAMES_OF_1.values() else reading.digested(path, name, NAMES)


def _read_tensors(cls: ModelClass, path: Path, about: dict[str, Any]) -> dict[str, Tensors]:
    """Read weights and rows, after checking that names, shapes and types are those of such a model."""
    with safe_open(_checked(path, about["files"]["weights"]), "pt") as file:
        renamed = about.get("renamed", [])
        names = {name_now(k, renamed): k for k in file.keys()}  # noqa: SIM118
        shapes = {k: tuple(file.get_slice(name).get_shape()) for k, name in names.items()}
        check_sizes(about["init"], shapes)
        with torch.device("meta"):  # needs no memory, whatever the sizes
            module = _made(cls, None, about).module
        wanted = module.state_dict()
        newer = about.get("without", [])  # patterns of names that files of this format lack
        later = {k: v for k, v in wanted.items() if any(names.fullmatch(k) for names in newer)}
        check_names({k: v for k, v in wanted.items() if k not in later}, shapes)
        out = reading.grouped({key: file.get_tensor(name) for key, name in names.items()})
        out["weights"] |= {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in later.items()}
    parameters = dict(module.named_parameters())
    for of, value in out["weights"].items():
        if value.dtype != wanted[of].dtype:
            msg = f"weights {of} are {value.dtype} and not {wanted[of].dtype}"
            raise ValueError(msg)
        if value.is_floating_point() and not finite(value, infinite=of not in parameters):
            msg = f"weights {of} are not finite"
            raise ValueError(msg)
    of_format_1 = {k: rows for k, rows in about.get("indices", {}).items() if rows is not None}
    rows = {k: torch.as_tensor(np.asarray(rows, dtype=np.int64)) for k, rows in of_format_1.items()}
    return {"free": {}, **out, "indices": out.get("indices", {}) | rows}
