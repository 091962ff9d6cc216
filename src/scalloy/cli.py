"""Command line: ``scalloy demo``, ``train``, ``annotate``, ``transfer``, ``report`` and others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalloy import (
    cli_files,
    cli_models,
    cli_scale,  # noqa: F401  (likewise)
    cli_transfer,  # noqa: F401  (adds its commands to the benchmarks)
)
from scalloy.cli_benchmark import Out, benchmark, show
from scalloy.cli_paths import Writes
from scalloy.cli_train import train

app = typer.Typer(
    help="Deep generative models for single cells whose latent space is a mixture.",
    cls=cli_files.Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(benchmark, name="benchmark")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the pictures."), Writes("folder for pictures", unasked=True)
    ] = Path("scalloy_demo"),
    max_epochs: Annotated[int | None, typer.Option(help="Instead of the default number.")] = None,
) -> None:
    """Train on the embedded real data, print tables, save pictures (about two minutes).

    Examples:

      scalloy demo --out pictures
    """
    from rich.console import Console

    from scalloy.demo import demo as run

    run(out, Console(), max_epochs=max_epochs)


app.command()(train)
for command in ("embed", "annotate", "transfer", "compare", "report"):
    app.command()(getattr(cli_models, command))


@app.command()
def search(
    data: Annotated[Path, typer.Argument(help="Cells with raw counts, an h5ad file or a zarr store.")],
    model: Annotated[list[str] | None, typer.Option(help="Names of models: VAE, GMVAE, ...")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="Argument and values: n_latent=10,20")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Draw so many, not all combinations.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of .obs.")] = None,
    layer: Annotated[str | None, typer.Option(help="With the counts.")] = None,
    folder: Annotated[
        Path, typer.Option(help="For trials and models."), Writes("search", unasked=True)
    ] = Path("scalloy_search"),
    resume: Annotated[bool, typer.Option(help="Go on with the search in the folder.")] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Go on in a folder that was begun elsewhere."),
    ] = False,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster.")] = None,
    out: Out = None,
) -> None:
    """Train many models side by side; which explains best cells that none of them has seen?

    Examples:

      scalloy search cells.h5ad --model VAE --model GMVAE --set gene_likelihood=nb,zinb --set n_latent=10,20
    """
    from scalloy.train.search import search as run

    chosen = cli_files.pairs(values, "--set")
    space = {k: [cli_files.value(v) for v in several.split(",")] for k, several in chosen}
    found = run(
        cli_files.read(data),
        model or "VAE",
        space or None,
        n_trials=trials,
        seeds=range(seeds),
        max_epochs=epochs,
        folder=folder,
        resume=resume,
        allow_pickle=allow_pickle,
        address=address,
        batch_key=batch_key,
        layer=layer,
    )
    show(found.table.drop(columns=["folder", "error"]), out)
    cli_files.say(f"best: {found.best}, in {found.table.iloc[0]['folder']}")


def main() -> None:
    """Entry point."""
    cli_files.quiet()
    cli_files.warn_in_one_line()
    app()
