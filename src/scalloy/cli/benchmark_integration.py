"""Benchmark of the removal of batch effects: ``scalloy benchmark integration``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalloy.cli.benchmark import PICTURES, Out, benchmark, show
from scalloy.cli.paths import Writes

CODES = Writes("folder for codes", unasked=True)


@benchmark.command()
def integration(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="Data sets (default pbmc_4study, mixology_3tech, kang_pbmc), or kang_subset, which ships."
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Name of a method in the table; may be repeated (default all)."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    share: Annotated[float, typer.Option(help="Share of the cells that are labelled.")] = 0.1,
    cells: Annotated[int, typer.Option(help="Number of cells that are drawn from larger sets.")] = 3000,
    genes: Annotated[int, typer.Option(help="Number of most variable genes.")] = 2000,
    batch_key: Annotated[str, typer.Option(help="Column of the batch, such as condition.")] = "batch",
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of our models, instead of the default.")
    ] = None,
    scvi_epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of SCVI, instead of its default.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the codes of SCVI and SCANVI, to train them once."),
        CODES,
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for a UMAP of each method."), PICTURES] = None,
    out: Out = None,
) -> None:
    """Compare how well batches are mixed and cell types kept apart.

    The table holds the scores of scib-metrics for PCA, Harmony, SCVI, SCANVI and our models, with and without
    labels, and processor times relative to SCVI's.

    Examples:

      scalloy benchmark integration kang_subset --method PCA --method VAE --seeds 1 --pictures umaps
    """
    from scalloy.benchmark.integration import SETS, summary
    from scalloy.benchmark.integration import integration as run

    frame = run(
        data or SETS,
        methods=method or None,
        seeds=range(seeds),
        share=share,
        n_cells=cells,
        n_genes=genes,
        batch_key=batch_key,
        max_epochs=epochs,
        scvi_epochs=scvi_epochs,
        cache=cache,
        folder=pictures,
    )
    show(frame, out, summary(frame))
