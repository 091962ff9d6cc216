"""Command line of the benchmarks of predictions under another condition."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalloy.cli_benchmark import Out, benchmark, show
from scalloy.cli_files import say
from scalloy.cli_paths import PAGES, Writes


@benchmark.command()
def transfer(
    data: Annotated[str, typer.Argument(help="kang, kang_all, kang_subset, or an h5ad file.")] = "kang",
    model: Annotated[list[str] | None, typer.Option(help="Names of models, not all.")] = None,
    types: Annotated[list[str] | None, typer.Option(help="Cell types to hold out, not all.")] = None,
    condition_key: Annotated[str, typer.Option(help="Column of .obs with conditions.")] = "condition",
    labels_key: Annotated[str, typer.Option(help="Column of .obs with cell types.")] = "cell_type",
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    genes: Annotated[int, typer.Option(help="Most variable genes that are kept.")] = 2000,
    median: Annotated[bool, typer.Option(help="Scale to the median count, not to 10,000.")] = False,
    at_once: Annotated[bool, typer.Option(help="Hold a type out under all conditions together.")] = False,
    unseen: Annotated[str | None, typer.Option(help="Also not trained on: batch=donor_1015")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    out: Out = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write the table as a page too."),
        Writes("page", PAGES, unasked=True),
    ] = None,
) -> None:
    """Prediction of a cell type under a condition in which it was never seen, beside the baselines."""
    from scalloy.benchmark import transfer as run
    from scalloy.benchmark.transfer import summary
    from scalloy.data import writing

    frame = run(
        data,
        model or None,
        condition_key=condition_key,
        labels_key=labels_key,
        hold_out=types or "each",
        at_once=at_once,
        unseen=None if unseen is None else dict([unseen.split("=", 1)]),
        seeds=range(seeds),
        n_genes=genes,
        target_sum=None if median else 1e4,
        max_epochs=epochs,
    )
    show(frame, out)
    table = summary(frame)
    say(table.to_string())
    if html is not None:
        writing.put(html, (table.to_html() + frame.round(3).to_html(index=False)).encode())


@benchmark.command()
def counterfactual(
    model: Annotated[list[str] | None, typer.Option(help="Names of models, not all.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    cells: Annotated[int, typer.Option(help="That are simulated.")] = 6000,
    conditions: Annotated[int, typer.Option(help="Their number.")] = 4,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    out: Out = None,
) -> None:
    """The same where the truth of each cell under each of several conditions is known, by simulation."""
    from scalloy.benchmark.counterfactual import counterfactual as run
    from scalloy.benchmark.counterfactual import summary

    settings = {"n_obs": cells, "n_conditions": conditions, "max_epochs": epochs}
    frame = run(model or None, seeds=range(seeds), **settings)
    show(frame, out)
    say(summary(frame).to_string())
