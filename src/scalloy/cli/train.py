"""Command for training: ``scalloy train``."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalloy.cli import console as files
from scalloy.cli.console import Data, Force
from scalloy.cli.paths import Writes

if TYPE_CHECKING:
    from scalloy.models._core.base import ScalloyModel

SET_UP = (
    "layer",
    "batch_key",
    "donor_key",
    "condition_key",
    "labels_key",
    "unlabeled_category",
    "label_parents",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
    "protein_obsm_key",
    "allow_non_counts",
)
CONDITIONS = ("condition", "control", "dose", "time", "separator", "descriptors")  # of `sa.Conditions`
TRAINING = ("epochs", "batch_size", "seed", "accelerator", "checkpoint_dir", "resume")
KINDS: dict[str, Any] = {
    "epochs": int,
    "batch_size": int,
    "seed": int,
    "resume": bool,
    "set": dict,
    "label_parents": (str, dict),
}


def column(help: str) -> Any:
    """Return an option that names a column of ``.obs``."""
    return typer.Option(help=f"Column of .obs with {help}.", rich_help_panel="What is where in the data")


Text = str | None
Number = int | None
_data, _training = "What is where in the data", "Training"


def train(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="MODELDIR", help="Folder for the model."), Writes("model")
    ],
    model: Annotated[
        Text,
        typer.Option(
            help="Model class: VAE (the default), BetaVAE, AE, GMVAE, CGMDVAE, TRVAE, BetaVSC or POISEVAE."
        ),
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="Argument of the model or its training: n_latent=20; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with these options by name; options on the command line take precedence."
        ),
    ] = None,
    layer: Annotated[
        Text, typer.Option(help="Layer with the counts, instead of .X.", rich_help_panel=_data)
    ] = None,
    batch_key: Annotated[Text, column("batches, which are removed from the latent space")] = None,
    donor_key: Annotated[
        Text, column("donors, which are removed too, and within which conditions are compared")
    ] = None,
    condition_key: Annotated[Text, column("conditions, which `transfer` can change")] = None,
    condition: Annotated[
        list[str] | None,
        column("perturbations, if conditions have doses, times or combinations; may be repeated"),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Value of --condition without a perturbation.", rich_help_panel=_data),
    ] = None,
    dose: Annotated[list[str] | None, column("doses of --condition")] = None,
    time: Annotated[Text, column("times")] = None,
    separator: Annotated[
        Text, typer.Option(help="Text between the parts of a combination (+).", rich_help_panel=_data)
    ] = None,
    descriptors: Annotated[
        Path | None,
        typer.Option(help="CSV file with numbers that describe each perturbation.", rich_help_panel=_data),
    ] = None,
    labels_key: Annotated[
        list[str] | None, column("cell types; if they are a tree, may be repeated, from coarse to fine")
    ] = None,
    unlabeled_category: Annotated[
        Text, typer.Option(help="Label of cells whose type is unknown.", rich_help_panel=_data)
    ] = None,
    label_parents: Annotated[
        Text,
        typer.Option(
            help="JSON file with the parent of each label, or the text between the parts of labels that are "
            "paths.",
            rich_help_panel=_data,
        ),
    ] = None,
    size_factor_key: Annotated[Text, column("library sizes")] = None,
    categorical_covariate_key: Annotated[list[str] | None, column("a categorical covariate")] = None,
    continuous_covariate_key: Annotated[list[str] | None, column("a numeric covariate")] = None,
    protein_obsm_key: Annotated[
        Text, typer.Option(help="Key of .obsm with proteins, for POISEVAE.", rich_help_panel=_data)
    ] = None,
    allow_non_counts: Annotated[
        bool | None,
        typer.Option("--allow-non-counts", help="Accept values that are not counts.", rich_help_panel=_data),
    ] = None,
    epochs: Annotated[
        Number, typer.Option(help="Maximum number of epochs.", rich_help_panel=_training)
    ] = None,
    batch_size: Annotated[
        Number, typer.Option(help="Number of cells per training step.", rich_help_panel=_training)
    ] = None,
    seed: Annotated[Number, typer.Option(help="Random seed (default 0).", rich_help_panel=_training)] = None,
    accelerator: Annotated[
        Text,
        typer.Option(help="cpu, gpu, ... (default: the best available).", rich_help_panel=_training),
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints.", rich_help_panel=_training),
        Writes("checkpoint", unasked=True),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume", help="Resume training from the checkpoint.", rich_help_panel=_training),
    ] = None,
    save_cells: Annotated[bool, typer.Option("--save-cells", help="Save the cells with the model.")] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
    force: Force = False,
) -> None:
    """Train a model on raw counts and save it.

    The model is saved in the folder MODELDIR, and epochs and ELBO are printed.

    Examples:

      scalloy train cells.h5ad -o model --batch-key donor

      scalloy train cells.h5ad -o model --model CGMDVAE --condition-key condition --labels-key cell_type
      --set n_latent=20 --epochs 50

      scalloy train cells.h5ad -o model --model CGMDVAE --condition drug --control DMSO --dose dose

      scalloy train cells.h5ad -o model --model CGMDVAE --labels-key class --labels-key subclass
      --unlabeled-category Unknown

      scalloy train cells.h5ad -o model --config settings.toml --checkpoint-dir run --resume
    """
    flags: dict[str, Any] = {k: v for k, v in locals().items() if v is not None}
    several = {f"{k}_covariate_keys": flags.get(f"{k}_covariate_key") for k in ("categorical", "continuous")}
    flags |= {k: v for k, v in several.items() if v is not None}
    if labels_key is not None and len(labels_key) == 1:
        flags["labels_key"] = labels_key[0]
    flags |= {k: str(flags[k]) for k in ("checkpoint_dir", "descriptors") if k in flags}
    known = ("model", *SET_UP, *CONDITIONS, *TRAINING, "set")
    given = settings(files.of_config(config, known), {k: v for k, v in flags.items() if k in known}, values)
    made, begun = build(files.read(data), given), perf_counter()
    fit(made, given, progress=progress)
    made.save(out, overwrite=force, save_anndata=save_cells)
    report(made, out, perf_counter() - begun)
    if files.interrupted(made):
        files.say("stopped before the end, with the best weights so far", err=True, fg="yellow")
        raise typer.Exit(files.INTERRUPTED)


def settings(config: dict[str, Any], flags: dict[str, Any], values: list[str] | None) -> dict[str, Any]:
    """Join the settings of the file with those of the command line, which take precedence."""
    for name, found in [*config.items(), *flags.items()]:
        kind = KINDS.get(name, (str, bool, list))
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            expected = kind.__name__ if isinstance(kind, type) else "text"
            msg = f"`{name} = {found!r}` is a {type(found).__name__}. Expected {expected}."
            raise TypeError(msg)
    chosen = {k: files.value(v) for k, v in files.pairs(values, "--set")}
    return {**config, **flags, "set": {**config.get("set", {}), **chosen}}


def build(data: Any, given: dict[str, Any]) -> ScalloyModel:
    """Set up the cells and return the untrained model."""
    from scalloy._arguments import one_of
    from scalloy.files.anndata_files import is_mudata
    from scalloy.models import MODELS
    from scalloy.models._core.setup import set_up_defaults
    from scalloy.tune.settings import PLAN, TRAIN, arguments, check_kinds, divided

    cls: Any = MODELS[one_of("model", given.get("model", "VAE"), MODELS)]
    for name in given["set"]:
        one_of("set", name, sorted(arguments(cls) | TRAIN | PLAN))
    check_kinds(cls, given["set"])
    method = "setup_mudata" if is_mudata(data) else "setup_anndata"
    if not hasattr(cls, method):
        msg = f"{cls.__name__} takes an AnnData, and the file holds a MuData. Pass `--model POISEVAE`."
        raise TypeError(msg)
    takes, wanted = set_up_defaults(cls, method), {k: given[k] for k in SET_UP if k in given}
    if str(wanted.get("label_parents", "")).endswith(".json"):
        wanted["label_parents"] = parents(Path(wanted["label_parents"]))
    if structure := conditions(given):
        wanted["conditions"] = structure
    if lacks := [k for k in wanted if k not in takes]:
        msg = f"{cls.__name__} has no {', '.join(f'`{k}`' for k in lacks)}. It takes: {', '.join(takes)}."
        raise ValueError(msg)
    getattr(cls, method)(data, **wanted)
    return cls(data, **{"seed": given.get("seed", 0), **divided(given["set"])[0]})


def parents(path: Path) -> dict[str, Any]:
    """Return the parent of each label from a JSON file, or all parents of one that has several."""
    import json

    from scalloy.files.reading import refused

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, above in found:
            out.setdefault(name, []).append(above)
        return {name: above[0] if len(above) == 1 else above for name, above in out.items()}

    with refused(path, "JSON file of labels"):
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pairs)


def conditions(given: dict[str, Any]) -> Any:
    """Return the conditions that the options describe; ``None`` if they describe none."""
    said = {k: given[k] for k in CONDITIONS if k in given}
    if not said:
        return None
    if "condition" not in said:
        msg = f"`{next(iter(said))}` needs `condition` as well: the column of .obs with the perturbations."
        raise ValueError(msg)
    import pandas as pd

    from scalloy.data.conditions import Conditions

    if "descriptors" in said:
        said["descriptors"] = pd.read_csv(said["descriptors"], index_col=0)
    return Conditions(said.pop("condition"), **said)


def fit(model: ScalloyModel, given: dict[str, Any], *, progress: bool) -> None:
    """Train a model with the given settings."""
    from scalloy.tune.settings import divided

    _, train, plan = divided(given["set"])
    named = {"epochs": "max_epochs"}
    train |= {named.get(k, k): given[k] for k in TRAINING if k in given and k != "seed"}
    model.train(plan_kwargs=plan, enable_progress_bar=progress, **train)


def report(model: ScalloyModel, out: Path, seconds: float) -> None:
    """Print the result of training in a few lines."""
    cells, history = model.adata, model.history
    files.say(f"{type(model).__name__} of {cells.n_obs:,} cells x {cells.n_vars:,} genes, seed {model.seed}")
    most = getattr(getattr(model, "trainer", None), "max_epochs", None)
    n = len(history["elbo_train"])
    rows: dict[str, Any] = {"epochs": f"{n} of at most {most} in {seconds:.0f} s"}
    best = None
    if "validation_loss" in history:
        best = history["validation_loss"].iloc[:, 0].astype(float).idxmin()
        rows["best epoch"] = int(best) + 1
    for part in ("train", "validation"):
        if (frame := history.get(f"elbo_{part}")) is not None:
            column = frame.iloc[:, 0].astype(float)
            shown = column.iloc[-1] if best is None else column.loc[best]
            rows[f"-ELBO, {part}"] = f"{shown:.1f} nats per cell"
    files.table({**rows, "saved in": out})
