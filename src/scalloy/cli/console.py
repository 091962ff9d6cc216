"""Functions shared by all commands: reading and writing cells and models, settings files, error messages."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from scalloy.cli.paths import CELLS, Writes, checked

if TYPE_CHECKING:
    from anndata import AnnData

    from scalloy.models._core.base import ScalloyModel

INTERRUPTED = 130
LOGGERS = (
    "lightning.pytorch",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.callbacks.early_stopping",
    "lightning.fabric",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "scvi",
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
TRACEBACK = "SCALLOY_TRACEBACK"  # environment variable; if set, errors show Python's traceback

Data = Annotated[Path, typer.Argument(help="Cells: an h5ad or h5mu file, or a zarr store.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODELDIR", help="Folder of a model, written by `train` or `save`.")
]
_cells = typer.Option("--out", "-o", help="File of cells to write, ending in .h5ad, .h5mu or .zarr.")
Result = Annotated[Path, _cells, Writes("file of cells", CELLS, over=("data",))]
New = Annotated[Path, _cells, Writes("file of cells", CELLS)]
Text = str | None
Seed = Annotated[int, typer.Option(help="Random seed.")]
Within = Annotated[
    Text, typer.Option(help="Column of .obs, such as cell types, within whose values groups are compared.")
]
UseRep = Annotated[Text, typer.Option(help="Key of .obsm with the latent space; needed without a model.")]
Reference = Annotated[
    Text, typer.Option(help="Group with which the others are compared, instead of all pairs.")
]
Permutations = Annotated[int, typer.Option(help="Maximum number of permutations.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing results.")]
Key = Annotated[
    str | None, typer.Option("--key-added", help="Name used in the keys, instead of the model's name.")
]


class Commands(TyperGroup):
    """Command group that checks paths before work, and turns errors into one line and an exit code."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is not None and found.callback is not None and not hasattr(found, "commands"):
            found.callback = checked(found.callback)
        return found

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("stopped", err=True, fg="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            own = hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError)
            if own or os.environ.get(TRACEBACK):  # typer itself reports errors of usage
                raise
            say(f"error: {said(error)}", err=True, fg="red")
            raise typer.Exit(1) from None


def say(text: str, **style: Any) -> None:
    """Print a text, with control characters shown instead of obeyed by the terminal."""
    typer.secho(shown(text), **style)


def shown(text: str) -> str:
    """Escape control characters, which names of genes and cells may contain."""
    return OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def said(error: BaseException) -> str:
    """Return the message of an error in one line."""
    what: Any = error.args[0] if isinstance(error, LookupError) and error.args else error
    if isinstance(error, OSError) and error.strerror:  # without the error number
        what = error.strerror + (f": `{error.filename}`" if error.filename else "")
    text = " ".join(str(what).split())
    expected = isinstance(error, ValueError | LookupError | TypeError | OSError | RuntimeError | ImportError)
    if expected and text:
        return text
    return f"{type(error).__name__} {text} (set {TRACEBACK}=1 to see where)"


def warn_in_one_line() -> None:
    """Show warnings as one line, without their place in the code."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        say(f"warning: {' '.join(str(message).split())}", err=True, fg="yellow")

    warnings.showwarning = show


def read(path: Path) -> Any:
    """Read cells from an h5ad or h5mu file, or a zarr store."""
    from scalloy.data import read as read_cells

    return read_cells(path)


def is_model(path: Path) -> bool:
    """Tell whether a folder holds a model (and not cells)."""
    return any((path / name).is_file() for name in ("model.json", "model.pt"))


def load(path: Path) -> ScalloyModel:
    """Load a model, with its cells if they were saved with it."""
    from scalloy.models import load as load_model

    return load_model(path)


def attached(path: Path, data: Any) -> tuple[ScalloyModel, bool]:
    """Load a model; attach ``data`` if it was trained on these cells, and tell whether it was."""
    from scalloy.data.fingerprint import of_names

    model = load(path)
    same = model._data.get("cells") == of_names(data.obs_names)
    if same:  # even if cells were saved with the model: the columns of `data` may be newer
        model = type(model).load(path, data)
    return model, same


def check_alone(source: Path, data: Path | None) -> None:
    """Raise if cells were given for something that is no model."""
    if data is not None:
        msg = f"`{source}` is not a model, so that `{data}` cannot be its cells. Pass one path only."
        raise ValueError(msg)


def with_cells(model: ScalloyModel, source: Path) -> ScalloyModel:
    """Return a model, raising if it was saved without its cells."""
    if model.adata is None:
        msg = f"`{source}` was saved without its cells. Pass them as the second argument."
        raise ValueError(msg)
    return model


def write(data: Any, path: Path) -> None:
    """Write cells with their results, and say where."""
    from scalloy.files import anndata_files

    anndata_files.write(data, path)
    say(f"saved {path}")


def value(text: str) -> Any:
    """Parse a number, true, false, none or a list in brackets; return any other text unchanged."""
    if text.lower() in {"true", "false", "none"}:
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def bring_in(name: str) -> None:
    """Import a module, or run a file of Python, that registers things of the user's own."""
    from importlib import import_module, util

    if not name.endswith(".py"):
        import_module(name)
        return
    path = Path(name)
    if not path.is_file():
        msg = f"There is no file `{path}`."
        raise FileNotFoundError(msg)
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)


def pairs(given: Iterable[str] | None, option: str, example: str = "") -> list[tuple[str, str]]:
    """Split texts of the form ``name=value`` into names and values."""
    out = []
    for text in given or ():
        name, sign, rest = text.partition("=")
        if not sign or not name.strip():
            such_as = f", such as {option} {example}" if example else ""
            msg = f"{option} {text!r} is not of the form NAME=VALUE{such_as}."
            raise typer.BadParameter(msg)
        out.append((name.strip(), rest.strip()))
    return out


def of_config(path: Path | None, known: Sequence[str]) -> dict[str, Any]:
    """Read settings from a TOML file; raise if a name is not among the ``known`` options."""
    if path is None:
        return {}
    import tomllib

    from scalloy._arguments import one_of

    if not path.is_file():
        msg = f"There is no file `{path}`."
        raise FileNotFoundError(msg)
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"`{path}` is not valid TOML: {error}."
        raise ValueError(msg) from None
    for name in given:
        one_of(f"{path.name}: setting", name, known)
    return given


def selected(adata: AnnData, where: Iterable[str] | None) -> AnnData:
    """Select cells by ``column=value``; several values of one column are alternatives."""
    import numpy as np

    from scalloy._arguments import one_of
    from scalloy.data.checks import find_column

    keep, wanted = np.ones(adata.n_obs, dtype=bool), dict[str, list[str]]()
    for column, name in pairs(where, "--where"):
        wanted.setdefault(column, []).append(name)
    for column, names in wanted.items():
        found = find_column(adata.obs, "where", column).astype(str)
        for name in names:
            one_of(f"where: {column}", name, sorted(found.unique()))
        keep &= found.isin(names).to_numpy()
    if not keep.any():
        msg = f"No cell has {' and '.join(f'{k} in {v}' for k, v in wanted.items())}. Pass another `--where`."
        raise ValueError(msg)
    return adata if keep.all() else adata[keep].copy()


def table(rows: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, rows))
    for name, what in rows.items():
        say(f"  {name:<{width}}  {what}")


def interrupted(model: Any) -> bool:
    """Tell whether Ctrl-C ended the training of a model."""
    callbacks = getattr(getattr(model, "trainer", None), "callbacks", ())
    return any(getattr(c, "asked", False) for c in callbacks)


def quiet() -> None:
    """Silence messages of other packages, and escape control characters in our own."""
    import logging

    def safely(record: logging.LogRecord) -> bool:
        record.msg, record.args = shown(record.getMessage()), ()
        return True

    logging.getLogger("scalloy").addFilter(safely)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*`?num_workers`? .*")
