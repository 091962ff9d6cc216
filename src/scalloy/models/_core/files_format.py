"""Format of model files: names of the files, conversion of old formats, and checks of the content.

Files are not trusted: names, sizes, shapes and values are checked before memory of that size is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scalloy.files import plain_json, reading

FORMAT = 6
ABOUT = "model.json"
NAMES = re.compile(r"(weights|cells)-[0-9a-f]{16}\.(safetensors|h5ad)")
NAMES_OF_1 = {"weights": "model.safetensors", "cells": "adata.h5ad"}
BENT = re.compile(r"readers\.of_[xz]\.(middle|axes|spots|gamma|bent_weight|bent_bias|share)")
LATER = re.compile(r"prior\.(tree|evidence|agreement)|unknowns\..*")
OF_TWO = [  # names of the weights of POISEVAE when it had exactly two modalities, and now
    (r"likelihood\.(.*)", r"likelihoods.0.\1"),
    (r"likelihood2\.(.*)", r"likelihoods.1.\1"),
    (r"enc_z\.(.*)", r"encoders.0.\1"),
    (r"enc_z2\.(.*)", r"encoders.1.\1"),
    (r"dec_x\.(.*)", r"decoders.0.\1"),
    (r"dec_x2\.(.*)", r"decoders.1.\1"),
    (r"middle", r"middle_1"),
    (r"joint\.coupling\.(g11|log_g22|raw12|raw21)", r"joint.coupling.pairs.0.\1"),
    (r"joint\.coupling\.raw", r"joint.coupling.raw.0"),
    (r"joint\.coupling\.valid_at", r"joint.coupling.valid_at_0"),
    (r"joint\.coupling\.first", r"joint.coupling.chains_0"),
    (r"joint\.coupling\.second", r"joint.coupling.chains_1"),
]
TOTALS = re.compile(r"usual_totals")
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
Tensors = dict[str, torch.Tensor]


def read_about(path: Path) -> dict[str, Any]:
    """Return the content of ``model.json``, checked and in the newest format.

    Parameters
    ----------
    path
        Folder of the model.
    """
    file = path / ABOUT
    if not file.is_file():
        msg = f"`{path}` holds no {ABOUT}. Pass the folder that `model.save(folder)` wrote."
        raise FileNotFoundError(msg)
    with reading.refused(path, KIND):
        if file.stat().st_size > plain_json.MOST:
            msg = f"its {ABOUT} has {file.stat().st_size:,} bytes, more than any model needs"
            raise ValueError(msg)
        about = plain_json.loads(file.read_bytes())
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
    for key in ("without", "renamed"):  # in what older formats differ is said by their conversion
        about.pop(key, None)
    with reading.refused(path, KIND):
        while about["format"] < FORMAT:
            about = MIGRATIONS[about["format"]](about, path)
        _check_about(about)
    return about


def _from_1(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert format 1: file names without digests, rows of the data in the JSON, no queries."""
    files = {k: name for k, name in NAMES_OF_1.items() if (path / name).is_file()}
    return {**about, "format": 2, "query": False, "data": {}, "files": files}


def _from_2(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert format 2, whose label classifiers have straight boundaries only."""
    return {**about, "format": 3, "without": [BENT]}


def _from_3(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert format 3: with a learned prior, q(w) was in units of it; one cluster had 25 components."""
    init, setup = dict(about["init"]), about["registry"]["setup_args"]
    if init.get("w_prior") == "condition":
        init["w_prior"] = "relative"
    merged = about["model"] == "CGMDVAE" and init.get("weights") not in ("uniform", "local")
    if merged and init.get("n_clusters") == 1 and setup.get("labels_key") is None:
        init["n_clusters"] = None  # makes 25 components too; the saved weights merge them into one cluster
    return {**about, "format": 4, "init": init}


def _from_4(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert format 4: no tree of clusters, and unknown scores without a search for unlike cells."""
    return {**about, "format": 5, "without": [*about.get("without", []), LATER]}


def _from_5(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert format 5, whose POISEVAE had exactly two modalities."""
    if about["model"] != "POISEVAE":
        return {**about, "format": 6}
    return {**about, "format": 6, "renamed": OF_TWO, "without": [*about.get("without", []), TOTALS]}


MIGRATIONS: dict[int, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
    4: _from_4,
    5: _from_5,
}


def name_now(name: str, renamed: list[tuple[str, str]]) -> str:
    """Return the present name of weights, or of the mask of which are free, in a file of an older format."""
    group, slash, of = name.partition("/") if "/" in name else ("weights", "/", name)
    for old, new in renamed if group in ("weights", "free") else ():
        if re.fullmatch(old, of):
            return f"{group}{slash}{re.sub(old, new, of)}"
    return f"{group}{slash}{of}"


def _check_about(about: dict[str, Any]) -> None:
    """Check that everything is there with the right type, and that sizes agree with the names they count."""
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
    """Return how many names a field has of the kind that a size of it counts."""
    if key == "n_extra_categorical_covs":
        return len(state.get("field_keys", ()))
    if key == "n_extra_continuous_covs":
        return len(state.get("columns", ()))
    names = state.get("column_names", state.get("categorical_mapping", ()))
    return len(names)


def finite(value: torch.Tensor, *, infinite: bool) -> bool:
    """Return whether nothing is NaN, and nothing infinite unless allowed, as in buffers that hold bounds."""
    return not bool(value.isnan().any()) and (infinite or bool(value.isfinite().all()))


def check_sizes(init: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that no option asks for a larger model than the weights are of."""
    largest = max((int(np.prod(shape)) for shape in shapes.values()), default=0)
    for key, value in _flat(init):
        limit = len(shapes) if key == "n_layers" else max(largest, 10_000)
        if key != "seed" and isinstance(value, int) and abs(value) > limit:
            msg = f"`{key}={value}` does not agree with the size of the weights"
            raise ValueError(msg)
        if isinstance(value, list) and key in ("n_hidden", "channels") and len(value) > len(shapes):
            msg = f"`{key}` has {len(value)} layers, which does not agree with the number of weights"
            raise ValueError(msg)


def _flat(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each option with its name, and those within lists and dictionaries after them."""
    for key, value in given.items():
        yield key, value
        if isinstance(value, list):
            yield from _flat_list(key, value)
        elif isinstance(value, dict):
            yield from _flat(value)


def _flat_list(key: str, values: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each value of a list with the name of the list."""
    for value in values:
        yield from _flat({key: value})


def check_names(wanted: Tensors, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that the file has exactly the wanted weights, and besides only rows and masks of free weights."""
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
