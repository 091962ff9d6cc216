"""Command line: ``scalloy demo``, ``scalloy search`` and ``scalloy benchmark``."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from scalloy import cli_scale, cli_transfer  # noqa: F401  (add their commands to the benchmarks)
from scalloy.cli_benchmark import Out, benchmark, show

app = typer.Typer(
    help="Deep generative models for single cells whose latent space is a mixture.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(benchmark, name="benchmark")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("scalloy_demo"),
    max_epochs: Annotated[int | None, typer.Option(help="Instead of the default number.")] = None,
) -> None:
    """Train on the embedded real data, print tables, save pictures (about two minutes)."""
    from rich.console import Console

    from scalloy.demo import demo as run

    run(out, Console(), max_epochs=max_epochs)


@app.command()
def search(
    data: Annotated[Path, typer.Argument(help="Cells, an h5ad file with raw counts.")],
    model: Annotated[list[str] | None, typer.Option(help="Names of models: VAE, GMVAE, ...")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="Argument and values: n_latent=10,20")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Draw so many, not all combinations.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of .obs.")] = None,
    layer: Annotated[str | None, typer.Option(help="With the counts.")] = None,
    folder: Annotated[Path, typer.Option(help="For trials and models.")] = Path("scalloy_search"),
    resume: Annotated[bool, typer.Option(help="Go on with the search in the folder.")] = False,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster.")] = None,
    out: Out = None,
) -> None:
    """Train many models side by side; which explains best cells that none of them has seen?"""
    import anndata

    from scalloy.train.search import search as run

    space = {k: [_value(v) for v in vs.split(",")] for k, _, vs in (s.partition("=") for s in values or [])}
    found = run(
        anndata.read_h5ad(data),
        model or "VAE",
        space or None,
        n_trials=trials,
        seeds=range(seeds),
        max_epochs=epochs,
        folder=folder,
        resume=resume,
        address=address,
        batch_key=batch_key,
        layer=layer,
    )
    show(found.table.drop(columns=["folder", "error"]), out)
    typer.echo(f"best: {found.best}, in {found.table.iloc[0]['folder']}")


def _value(text: str) -> int | float | str:
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main() -> None:
    """Entry point: errors that a user can mend are one line."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*`?num_workers`? .*")
    try:
        app(standalone_mode=True)
    except (ValueError, LookupError, TypeError, OSError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, LookupError) and error.args else error
        typer.secho(f"error: {text}", err=True, fg="red")
        sys.exit(1)
