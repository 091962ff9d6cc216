"""Model files: weights as safetensors, everything else as JSON. Nothing in them is executed.

A folder holds ``model.json``, which names the other files: ``weights-<digest>.safetensors`` and, if cells
were saved, ``cells-<digest>.h5ad``. It is put in place last and in one step, so that whatever stops the
writing, the folder holds the old model or the new one; who finds that a file has gone meanwhile reads the
new ``model.json``. What is read is not trusted: names, sizes, shapes and values are checked before anything
of that size is allocated, and each file must have its digest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from scvi.model._utils import parse_device_args

from scalloy.data import cells, plain, reading, writing
from scalloy.data.disk import is_on_disk
from scalloy.data.fingerprint import of_names
from scalloy.data.parts import locked
from scalloy.models._query import own_cells
from scalloy.vae.query import free_only

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._base import ScalloyModel

    Known = type[ScalloyModel] | Mapping[str, type[ScalloyModel]]

FORMAT = 4
ABOUT = "model.json"
NAMES = re.compile(r"(weights|cells)-[0-9a-f]{16}\.(safetensors|h5ad)")
NAMES_OF_1 = {"weights": "model.safetensors", "cells": "adata.h5ad"}
BENT = re.compile(r"readers\.of_[xz]\.(middle|axes|spots|gamma|bent_weight|bent_bias|share)")
PARTS = ("train", "validation", "test")
MUST_HAVE: dict[str, type] = {
    "model": str,
    "versions": dict,
    "init": dict,
    "registry": dict,
    "trained": bool,
    "query": bool,
    "history": dict,
    "data": dict,
    "files": dict,
}
SET_UPS = {"setup_anndata", "setup_mudata"}
KIND = "model of scalloy"
TRIES, PATIENT = 10, 3  # to read a model that other processes replace meanwhile, and those without a lock
Tensors = dict[str, torch.Tensor]


# writing ----------------------------------------------------------------------------------------


def save(model: ScalloyModel, path: Path, *, overwrite: bool, save_anndata: bool) -> None:
    """Write the model into the folder ``path``."""
    if not overwrite and path.is_dir() and not writing.is_empty(path):
        msg = f"`{path}` exists and is not empty. Pass `overwrite=True`, or another folder."
        raise FileExistsError(msg)
    if save_anndata and is_on_disk(model.adata):
        msg = (
            "`save_anndata=True` would copy the whole store into the model's folder. Leave it out, and load "
            "with `load(folder, adata=sa.data.open_store(...))`."
        )
        raise ValueError(msg)
    if save_anndata and model.adata is not None:
        model._own_manager()  # which are saved as the cells that it was set up with
    with writing.explained(path):
        path.mkdir(parents=True, exist_ok=True)
        contents: dict[str, tuple[str, writing.Content]] = {
            "weights": (".safetensors", to_bytes(_tensors(model)))
        }
        if save_anndata and model.adata is not None:
            contents["cells"] = (".h5ad", partial(cells.write_h5ad, model.adata))
        about = partial(_about, model)
        writing.put_named(path, ABOUT, contents, about, NAMES, NAMES_OF_1.values())


def _about(model: ScalloyModel, files: dict[str, str]) -> bytes:
    """Content of ``model.json``, which names the other files."""
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
    return plain.dumps(about)


def _tensors(model: ScalloyModel) -> Tensors:
    """Weights, which of them a query may change, and which rows of the data were trained on."""
    out = {f"weights/{k}": v.detach().cpu().contiguous() for k, v in model.module.state_dict().items()}
    out |= {f"free/{k}": v.cpu() for k, v in (model.module.free or {}).items()}
    for part in PARTS:
        if (rows := getattr(model, f"{part}_indices_")) is not None:
            out[f"indices/{part}"] = torch.as_tensor(np.asarray(rows, dtype=np.int64))
    return out


# reading ----------------------------------------------------------------------------------------


def load(
    known: Known,
    path: Path,
    adata: AnnData | None,
    *,
    accelerator: str = "auto",
    device: int | str = "auto",
) -> ScalloyModel:
    """Read a model that :func:`save` wrote: of one class, or of any of several by their names."""
    cls, about, tensors, own = _read(known, path, with_cells=adata is None)
    registry, given = about["registry"], adata if own is None else own
    adata = given
    with nullcontext() if own is None else reading.refused(path, KIND):
        if adata is not None:
            adata = own_cells(cls, adata, registry, 0.99) if about["query"] else cls._fitting(adata, registry)
            args = {k: registry[k] for k in ("model_name", "setup_method_name", "setup_args")}
            cls._set_up(adata, args, source_registry=registry)
        model = _made(cls, adata, about)
    if adata is not given:
        model._source, model._max_missing = given, 0.99 if about["query"] else 0.0
    model.module.load_state_dict(tensors["weights"])
    if about["query"]:
        free_only(model.module, tensors["free"])
    model.module.eval()
    model._cells = None
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


def take_weights(model: ScalloyModel, path: Path) -> None:
    """Give a model the weights of one that was saved of it."""
    _, _, tensors, _ = _read(type(model), path, with_cells=False)
    model.module.load_state_dict(tensors["weights"])


def _read(known: Known, path: Path, *, with_cells: bool) -> tuple[type[ScalloyModel], dict, dict, Any]:
    """All that the files hold; from the beginning if another process has replaced them meanwhile."""
    for attempt in range(TRIES):
        late = attempt >= PATIENT  # several times: now the others wait
        with locked(path, shared=True) if late else nullcontext():
            before = _stamp(path)
            try:
                return _read_once(known, path, with_cells=with_cells)
            except (reading.DamagedFileError, FileNotFoundError):
                if attempt == TRIES - 1 or _stamp(path) == before:
                    raise
    raise AssertionError


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes with each ``model.json`` that is put in place."""
    try:
        now = (path / ABOUT).stat()
    except OSError:
        return None
    return now.st_ino, now.st_mtime_ns, now.st_size


def _read_once(known: Known, path: Path, *, with_cells: bool) -> tuple[type[ScalloyModel], dict, dict, Any]:
    about, own = read_about(path), None
    cls = _class(known, path, about["model"])
    with reading.refused(path, KIND):
        about["registry"]["setup_args"] = _arguments(cls, about["registry"])
        tensors = _read_tensors(cls, path, about)
        if with_cells and "cells" in about["files"]:
            own = reading.read(_checked(path, about["files"]["cells"]))
    return cls, about, tensors, own


def _class(known: Known, path: Path, name: str) -> type[ScalloyModel]:
    if not isinstance(known, Mapping):
        if name != known.__name__:
            msg = f"`{path}` holds a {name}. Call `{name}.load({str(path)!r})`."
            raise ValueError(msg)
        return known
    if name not in known:
        msg = f"`{path}` holds a {name[:50]!r}, which is none of {', '.join(known)}."
        raise ValueError(msg)
    return known[name]


def _arguments(cls: type[ScalloyModel], registry: dict[str, Any]) -> dict[str, Any]:
    """Of the set-up; one that did not exist when the model was saved has its default."""
    known = set_up_defaults(cls, registry["setup_method_name"])
    if unknown := set(registry["setup_args"]) - set(known):
        msg = f"`registry` in its {ABOUT} has the arguments {sorted(unknown)}"
        raise ValueError(msg)
    return {**known, **registry["setup_args"]}


def set_up_defaults(cls: type[ScalloyModel], method: str) -> dict[str, Any]:
    """Arguments of a set-up beside the data, with their defaults."""
    arguments = inspect.signature(getattr(cls, method)).parameters.values()
    return {p.name: p.default for p in arguments if p.default is not p.empty}


def _made(cls: type[ScalloyModel], adata: AnnData | None, about: dict[str, Any]) -> ScalloyModel:
    given = {} if adata is not None else {"registry": about["registry"]}
    return cls(adata, **given, **about["init"])


def read_about(path: Path) -> dict[str, Any]:
    """What ``model.json`` says, in the newest format."""
    file = path / ABOUT
    if not file.is_file():
        msg = f"`{path}` holds no {ABOUT}. Pass the folder that `model.save(folder)` wrote."
        raise FileNotFoundError(msg)
    with reading.refused(path, KIND):
        if file.stat().st_size > plain.MOST:
            msg = f"its {ABOUT} has {file.stat().st_size:,} bytes, more than any model needs"
            raise ValueError(msg)
        about = plain.loads(file.read_bytes())
        if not isinstance(about, dict) or type(about.get("format")) is not int or about["format"] < 1:
            msg = f"its {ABOUT} does not say its format"
            raise ValueError(msg)
    if about["format"] > FORMAT:
        versions = about.get("versions")
        needs = versions.get("scalloy") if isinstance(versions, dict) else "of a later version"
        msg = (
            f"`{path}` has file format {about['format']}, this scalloy reads up to {FORMAT}. "
            f"Install scalloy {str(needs)[:20]} or later."
        )
        raise ValueError(msg)
    with reading.refused(path, KIND):
        while about["format"] < FORMAT:
            about = MIGRATIONS[about["format"]](about, path)
        _check_about(about)
    return about


def _from_1(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Format 1: fixed names of files without digests, rows of the data in the JSON, no queries."""
    files = {k: name for k, name in NAMES_OF_1.items() if (path / name).is_file()}
    return {**about, "format": 2, "query": False, "data": {}, "files": files}


def _from_2(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Format 2: labels are read with straight boundaries only."""
    return {**about, "format": 3, "without": BENT}


def _from_3(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Format 3: a learned prior of ``w`` was the unit of its posterior; one cluster had 25 components."""
    init, setup = dict(about["init"]), about["registry"]["setup_args"]
    if init.get("w_prior") == "condition":
        init["w_prior"] = "relative"
    merged = about["model"] == "CGMDVAE" and init.get("weights") not in ("uniform", "local")
    if merged and init.get("n_clusters") == 1 and setup.get("labels_key") is None:
        init["n_clusters"] = None  # as many components, of which the weights say that they are one cluster
    return {**about, "format": 4, "init": init}


MIGRATIONS: dict[int, Callable[[dict[str, Any], Path], dict[str, Any]]] = {1: _from_1, 2: _from_2, 3: _from_3}


def _check_about(about: dict[str, Any]) -> None:
    """Everything is there and of its type, and numbers that give sizes agree with what they count."""
    for key, kind in MUST_HAVE.items():
        if not isinstance(about.get(key), kind):
            msg = f"`{key}` in its {ABOUT} is no {kind.__name__}"
            raise ValueError(msg)
    registry = about["registry"]
    if registry["setup_method_name"] not in SET_UPS or not isinstance(registry["setup_args"], dict):
        msg = f"`registry` in its {ABOUT} names no set-up"
        raise ValueError(msg)
    for name, field in registry["field_registries"].items():
        state = field["state_registry"]
        for key, n in field["summary_stats"].items():
            if type(n) is not int or (key != "n_cells" and n != _counted(state, key)):
                msg = f"`registry` in its {ABOUT} has {key}={n!r} of {name!r}, which is not what it names"
                raise ValueError(msg)
        if "n_cats_per_key" in state:
            sizes = [len(state["mappings"][key]) for key in state["field_keys"]]
            if sizes != [int(n) for n in state["n_cats_per_key"]]:
                msg = f"`registry` in its {ABOUT} has other numbers of categories of {name!r} than it names"
                raise ValueError(msg)


def _counted(state: dict[str, Any], key: str) -> int:
    """How many there are of what a number of a field counts."""
    if key == "n_extra_categorical_covs":
        return len(state.get("field_keys", ()))
    if key == "n_extra_continuous_covs":
        return len(state.get("columns", ()))
    names = state.get("column_names", state.get("categorical_mapping", ()))
    return len(names)


def _checked(path: Path, name: Any) -> Path:
    """A file beside ``model.json``; those of format 1 have no digests."""
    return path / name if name in NAMES_OF_1.values() else reading.digested(path, name, NAMES)


def _read_tensors(cls: type[ScalloyModel], path: Path, about: dict[str, Any]) -> dict[str, Tensors]:
    """Weights and rows, once their names, shapes and types are those that such a model has."""
    with safe_open(_checked(path, about["files"]["weights"]), "pt") as file:
        names = {k if "/" in k else f"weights/{k}": k for k in file.keys()}  # noqa: SIM118
        shapes = {k: tuple(file.get_slice(name).get_shape()) for k, name in names.items()}
        _check_sizes(about["init"], shapes)
        with torch.device("meta"):  # of any size, without memory
            module = _made(cls, None, about).module
        wanted = module.state_dict()
        later = {k: v for k, v in wanted.items() if about.get("without") is BENT and BENT.fullmatch(k)}
        _check_names({k: v for k, v in wanted.items() if k not in later}, shapes)
        out = reading.grouped({key: file.get_tensor(name) for key, name in names.items()})
        out["weights"] |= {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in later.items()}
    parameters = dict(module.named_parameters())
    for of, value in out["weights"].items():
        if value.dtype != wanted[of].dtype:
            msg = f"weights {of} are {value.dtype} and not {wanted[of].dtype}"
            raise ValueError(msg)
        if value.is_floating_point() and not _finite(value, infinite=of not in parameters):
            msg = f"weights {of} are not finite"
            raise ValueError(msg)
    of_format_1 = {k: rows for k, rows in about.get("indices", {}).items() if rows is not None}
    rows = {k: torch.as_tensor(np.asarray(rows, dtype=np.int64)) for k, rows in of_format_1.items()}
    return {"free": {}, **out, "indices": out.get("indices", {}) | rows}


def _finite(value: torch.Tensor, *, infinite: bool) -> bool:
    """Nothing is NaN; buffers may hold infinite bounds."""
    return not bool(value.isnan().any()) and (infinite or bool(value.isfinite().all()))


def _check_sizes(init: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """No option asks for more than the weights have: they were made with it."""
    largest = max((int(np.prod(shape)) for shape in shapes.values()), default=0)
    for key, value in init.items():
        limit = len(shapes) if key == "n_layers" else max(largest, 10_000)
        if key != "seed" and isinstance(value, int) and abs(value) > limit:
            msg = f"`{key}={value}` does not agree with the size of the weights"
            raise ValueError(msg)


def _check_names(wanted: Tensors, shapes: dict[str, tuple[int, ...]]) -> None:
    found = {k.removeprefix("weights/"): v for k, v in shapes.items() if k.startswith("weights/")}
    expected = {k: tuple(v.shape) for k, v in wanted.items()}
    if found != expected:
        differ = [k for k in {**found, **expected} if found.get(k) != expected.get(k)]
        msg = f"weights {differ[0]} have shape {found.get(differ[0])} and not {expected.get(differ[0])}"
        raise ValueError(msg)
    for key, shape in shapes.items():
        group, _, of = key.partition("/")
        rows = group == "indices" and of in PARTS and len(shape) == 1
        free = group == "free" and shape == expected.get(of)
        if group != "weights" and not rows and not free:
            msg = f"the weights hold {key[:100]!r}"
            raise ValueError(msg)
