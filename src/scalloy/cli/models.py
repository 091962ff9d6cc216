"""Commands for trained models: ``embed``, ``annotate``, ``transfer``, ``compare``, ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalloy.cli import console as files
from scalloy.cli.console import (
    Data,
    Force,
    Key,
    Model,
    New,
    Permutations,
    Reference,
    Result,
    Seed,
    Text,
    UseRep,
    Within,
)
from scalloy.cli.paths import PAGES, TABLES, Writes

if TYPE_CHECKING:
    from anndata import AnnData


def embed(model: Model, data: Data, out: Result, key_added: Key = None, force: Force = False) -> None:
    """Write the latent representation of cells.

    The result is a copy of the cells with the representation in `.obsm["X_<model>"]`.

    Examples:

      scalloy embed model cells.h5ad -o embedded.h5ad

      scalloy embed model cells.zarr -o embedded.zarr --key-added mine
    """
    from scalloy import _keys

    cells, trained = files.read(data), files.load(model)
    key = _keys.latent(key_added or trained.name)
    cells.obsm[key] = trained.get_latent_representation(cells)
    files.say(f'{cells.n_obs:,} cells x {cells.obsm[key].shape[1]} latents in .obsm["{key}"]')
    files.write(cells, out)


def annotate(
    model: Model,
    data: Data,
    out: Result,
    key_added: Key = None,
    n_clusters: Annotated[
        str | None,
        typer.Option(help="Number of clusters at which their tree is cut, 'coarse' or 'fine'."),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(help="Smallest probability of the deepest label, if labels are a tree (default 0.9)."),
    ] = None,
    force: Force = False,
) -> None:
    """Write everything that a model knows about cells: latent space, clusters, labels and others.

    The result is a copy of the cells with the new keys, which are printed.

    Examples:

      scalloy annotate model cells.h5ad -o annotated.h5ad

      scalloy annotate model cells.h5ad -o annotated.h5ad --n-clusters 8

      scalloy annotate model cells.h5ad -o annotated.h5ad --level 0.5
    """
    cells, trained = files.read(data), files.load(model)
    before = {name: set(getattr(cells, name)) for name in ("obs", "obsm", "uns")}
    trained.annotate(cells, key_added=key_added, **_options(trained, n_clusters, level))
    for name, known in before.items():
        for key in getattr(cells, name):
            if key not in known:
                files.say(f'.{name}["{key}"]')
    files.write(cells, out)


def _options(model: Any, n_clusters: str | None, level: float | None) -> dict[str, Any]:
    """Return the arguments of ``annotate`` that were given, if the model has a use for them."""
    given = {"--n-clusters": n_clusters, "--level": level}
    needs = {"--n-clusters": ("clusters", "get_cluster_tree"), "--level": ("labels", "predict_labels")}
    out: dict[str, Any] = {}
    for name, value in given.items():
        what, method = needs[name]
        if value is None:
            continue
        if not hasattr(model, method):
            msg = f"`{name}` needs a model with {what}, and this is a {type(model).__name__}."
            raise ValueError(msg)
        number = isinstance(value, str) and value.lstrip("-").isdigit()
        out[name[2:].replace("-", "_")] = int(value) if number else value
    return out


def transfer(
    model: Model,
    data: Data,
    out: New,
    to: Annotated[
        list[str],
        typer.Option(
            help="Condition under which to predict the cells: its name or, if the model knows doses, times "
            "or combinations, PART=DOSE or COLUMN=VALUE; may be repeated."
        ),
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(help="Use only cells with this value, such as 'cell_type=B cells'; may be repeated."),
    ] = None,
    route: Annotated[
        str, typer.Option(help="How to predict: auto or decoder; with CGMDVAE also transport or style.")
    ] = "auto",
    samples: Annotated[
        int | None,
        typer.Option(
            help="Number of samples of the code over which expectations are taken (default: its mean)."
        ),
    ] = None,
    library_size: Annotated[
        float | None, typer.Option(help="Total of the sampled counts of each cell, instead of its own.")
    ] = None,
    trained_on: Annotated[
        Path | None,
        typer.Option(help="Cells that the model was trained on, if they were not saved with it."),
    ] = None,
    own_context: Annotated[
        bool,
        typer.Option(help="Let each group start at its mean in DATA, such as a new patient or study."),
    ] = False,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Predict cells under another condition and write them.

    The result holds the expected log-normalised expression in `.X` and sampled counts in `.layers["counts"]`.
    Route "auto" needs the cells that the model was trained on: pass them as DATA or with `--trained-on`, or
    train the model with `--save-cells`.

    Examples:

      scalloy transfer model cells.h5ad -o treated.h5ad --to stimulated --where condition=control

      scalloy transfer model cells.h5ad -o treated.h5ad --to stimulated --where condition=control
      --where "cell_type=B cells"

      scalloy transfer model cells.h5ad -o treated.h5ad --to drug_1=0.5 --to drug_2=1 --where drug=DMSO
    """
    cells = files.read(data)
    trained: Any = files.attached(model, cells if trained_on is None else files.read(trained_on))[0]
    if not hasattr(trained, "transfer"):
        msg = f"{type(trained).__name__} knows no condition. Train a CGMDVAE or TRVAE with `--condition-key`."
        raise ValueError(msg)
    if trained.adata is None and route == "auto":
        msg = (
            "`--route auto` needs the cells that the model was trained on. Pass `--trained-on`, or another "
            "`--route`."
        )
        raise ValueError(msg)
    source = files.selected(cells, where)
    settings = {"n_samples": samples, "library_size": library_size, "seed": seed}
    made = trained.transfer(
        source, to=_asked(trained, to), route=route, context=source if own_context else None, **settings
    )
    by = [k for k in ("transfer_group", "transfer_from", "transfer_far") if k in made.obs]
    of_groups = made.obs.groupby(by, observed=True)
    table = of_groups.size().rename("cells").to_frame()
    if "transfer_skill" in made.obs:  # what to expect of them
        table["transfer_skill"] = of_groups["transfer_skill"].mean().round(2)
    files.say(table.reset_index().to_string(index=False))
    files.write(made, out)


def _asked(model: Any, to: list[str]) -> str | dict[str, Any]:
    """Return a condition by its name, or by the values of its parts."""
    if len(to) == 1 and (to[0] in model.conditions or "=" not in to[0]):
        return to[0]
    return {name: files.value(text) for name, text in files.pairs(to, "--to", "drug=0.5")}


def compare(
    source: Annotated[Path, typer.Argument(metavar="DATA|MODELDIR", help="Cells, or a model.")],
    data: Annotated[
        Path | None, typer.Argument(help="Cells for a model; needed if it was saved without its own.")
    ] = None,
    groupby: Annotated[str, typer.Option(help="Column of .obs with the groups.")] = ...,  # type: ignore[assignment]
    by: Within = None,
    donor_key: Annotated[
        Text, typer.Option(help="Column of .obs with donors, which are permuted instead of cells.")
    ] = None,
    use_rep: UseRep = None,
    reference: Reference = None,
    test: Annotated[str, typer.Option(help="mmd, energy or classifier.")] = "mmd",
    permutations: Permutations = 1000,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="CSV file for the table, which is printed in any case."),
        Writes("table", TABLES),
    ] = None,
    force: Force = False,
) -> None:
    """Test whether groups of cells differ in a latent space, by permuting donors.

    The table holds the statistic, the effect and the p-value of each comparison.

    Examples:

      scalloy compare annotated.h5ad --use-rep X_vae --groupby condition --by cell_type --donor-key donor
      -o table.csv

      scalloy compare model cells.h5ad --groupby condition --donor-key donor
    """
    from scalloy.cli.benchmark import show
    from scalloy.compare import groups

    cells, key = _located(source, data, use_rep)
    frame = groups(
        cells,
        key,
        groupby=groupby,
        by=by,
        donor_key=donor_key,
        reference=reference,
        test=test,  # type: ignore[arg-type]
        n_permutations=permutations,
        rng=seed,
    )
    show(frame, out)
    if out is not None:
        files.say(f"saved {out}")


def _located(source: Path, data: Path | None, use_rep: str | None) -> tuple[AnnData, str]:
    """Return cells with a latent space, and the key of that space."""
    import anndata

    if not files.is_model(source):
        files.check_alone(source, data)
        if use_rep is None:
            msg = "`--use-rep` is needed with cells: the key of a latent space in .obsm."
            raise ValueError(msg)
        return files.read(source), use_rep
    if use_rep is not None:
        msg = "`--use-rep` is for cells; with a model its own latent space is used. Leave it out."
        raise ValueError(msg)
    trained = files.load(source)
    if data is None:
        files.with_cells(trained, source)
    cells = None if data is None else files.read(data)
    obs = (trained.reader.own if cells is None else cells).obs
    z = trained.get_latent_representation(cells)
    return anndata.AnnData(obs=obs.copy(), obsm={"latent": z}), "latent"


def report(
    model: Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Page to write, such as report.html."),
        Writes("page", PAGES),
    ],
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key", help="Column of .obs, or gene, to colour by; may be repeated (default registered)."
        ),
    ] = None,
    groupby: Annotated[
        Text, typer.Option(help="Column of .obs with groups of donors to compare (default conditions).")
    ] = None,
    donor_key: Annotated[
        Text, typer.Option(help="Column of .obs with donors (default the registered donors or batches).")
    ] = None,
    held_out: Annotated[
        Text,
        typer.Option(
            help="Cell type to predict after training again without it, for each condition but the control."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of that training, instead of the default.")
    ] = None,
    title: Annotated[Text, typer.Option(help="Title of the page.")] = None,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Write a report on a model as one self-contained HTML page.

    The page shows what to look at first, then training, latent space, clusters, groups of donors, transfer
    and fit. It needs no other files and no network. Findings are printed too.

    Examples:

      scalloy report model cells.h5ad -o report.html

      scalloy report model cells.h5ad -o report.html --key cell_type --key donor --held-out "B cells"
    """
    import matplotlib as mpl

    mpl.use("Agg")
    cells = files.read(data)
    trained, same = files.attached(model, cells)
    given = None if same else cells
    asked = {
        "keys": key,
        "groupby": groupby,
        "donor_key": donor_key,
        "held_out": held_out,
        "max_epochs": epochs,
        "title": title,
        "seed": seed,
    }
    for finding in trained.report(out, given, overwrite=force, **asked):  # type: ignore[arg-type]
        files.say(f"look: {finding}")
    files.say(f"saved {out}")
