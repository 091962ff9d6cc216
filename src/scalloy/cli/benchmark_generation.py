"""Command for the benchmark of generated cells."""

from __future__ import annotations

from typing import Annotated

import typer

from scalloy.cli.benchmark import Out, benchmark, show


@benchmark.command()
def generation(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Data set with cell types; may be repeated (default kang_subset and pbmc3k)."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 2,
    genes: Annotated[int, typer.Option(help="Number of most variable genes to keep.")] = 500,
    cells: Annotated[int, typer.Option(help="Maximum number of cells to leave out, and to generate.")] = 600,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of our models, instead of the default.")
    ] = None,
    out: Out = None,
) -> None:
    """Compare generated cells with real ones that no model has seen.

    The table holds how well a classifier tells them apart, and errors of means, variances, zeros and
    correlations, for our models, real cells, shuffled genes and a negative binomial for each type.
    """
    from scalloy.benchmark.generation import SETS, summary
    from scalloy.benchmark.generation import generation as run

    frame = run(data or SETS, seeds=range(seeds), n_genes=genes, n_cells=cells, max_epochs=epochs)
    show(frame, out, summary(frame))
