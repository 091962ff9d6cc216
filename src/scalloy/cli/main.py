"""Entry point of the command line: ``scalloy demo``, ``train``, ``annotate``, ``transfer`` and others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalloy.cli import (
    benchmark_cells,  # noqa: F401 (adds its commands to the benchmarks)
    benchmark_donors,  # noqa: F401 (adds its command to the benchmarks)
    benchmark_generation,  # noqa: F401 (adds its command to the benchmarks)
    benchmark_integration,  # noqa: F401 (adds its command to the benchmarks)
    benchmark_modalities,  # noqa: F401 (adds its commands to the benchmarks)
    console,
    donors,
    models,
    scale,  # noqa: F401 (adds its command to the benchmarks)
    songs,  # noqa: F401 (adds its command to the benchmarks)
    transfer,  # noqa: F401 (adds its commands to the benchmarks)
)
from scalloy.cli.benchmark import Out, benchmark, show
from scalloy.cli.paths import Writes
from scalloy.cli.train import train

app = typer.Typer(
    help="Deep generative models for single cells whose latent space is a mixture.",
    cls=console.Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(benchmark, name="benchmark")


@app.callback()
def before(
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="FILE.py|MODULE",
            help="Python code that registers models, likelihoods, baselines or metrics; may be repeated.",
        ),
    ] = None,
) -> None:
    """Prepare for a command."""
    for name in own or ():
        console.bring_in(name)


@app.command()
def demo(
    out: Annotated[
        Path,
        typer.Option(help="Folder for the pictures and the cells."),
        Writes("folder for pictures", unasked=True),
    ] = Path("scalloy_demo"),
    max_epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs, instead of the default.")
    ] = None,
) -> None:
    """Try the package on real data that ship with it (about two minutes).

    It trains a VAE and a CGMDVAE, prints tables of their scores, and saves pictures and the annotated cells.

    Examples:

      scalloy demo --out pictures
    """
    from rich.console import Console

    from scalloy.cli.demo import demo as run

    run(out, Console(), max_epochs=max_epochs)


app.command()(train)
for command in ("embed", "annotate", "transfer", "compare", "report"):
    app.command()(getattr(models, command))
for command in ("abundance", "expression", "donors"):
    app.command()(getattr(donors, command))


@app.command()
def search(
    data: Annotated[Path, typer.Argument(help="Cells with raw counts: an h5ad file or a zarr store.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Model class: VAE, GMVAE, ...; may be repeated (default VAE).")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="Argument and the values to try: n_latent=10,20; may be repeated."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Number of settings to draw at random, instead of all combinations.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds for each setting.")] = 1,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of each trial, instead of the default.")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of .obs with batches.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with the counts, instead of .X.")] = None,
    folder: Annotated[
        Path, typer.Option(help="Folder for the trials and their models."), Writes("search", unasked=True)
    ] = Path("scalloy_search"),
    resume: Annotated[bool, typer.Option(help="Resume the search in the folder.")] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Resume even in a folder that was begun elsewhere. It can run code: trust who made it.",
        ),
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster, such as ray://host:10001.")
    ] = None,
    out: Out = None,
) -> None:
    """Search for the model and settings that best explain cells which no model has seen.

    The table of all trials is printed, and the models are kept in the folder.

    Examples:

      scalloy search cells.h5ad --model VAE --model GMVAE --set gene_likelihood=nb,zinb --set n_latent=10,20
    """
    from scalloy.tune.search import search as run

    chosen = console.pairs(values, "--set")
    space = {k: [console.value(v) for v in several.split(",")] for k, several in chosen}
    found = run(
        console.read(data),
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
    console.say(f"best: {found.best}, in {found.table.iloc[0]['folder']}")


def main() -> None:
    """Run the command line."""
    console.quiet()
    console.warn_in_one_line()
    app()
