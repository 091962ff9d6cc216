"""Commands for the benchmarks: ``scalloy benchmark NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalloy.cli.console import Commands, say
from scalloy.cli.paths import TABLES, Writes

if TYPE_CHECKING:
    import pandas as pd

benchmark = typer.Typer(
    help="Compare our models with their rivals in one run.", cls=Commands, no_args_is_help=True
)
_table, PICTURES = Writes("table", TABLES, unasked=True), Writes("folder for pictures", unasked=True)
Out = Annotated[
    Path | None, typer.Option(help="CSV file for the table, which is printed in any case."), _table
]


@benchmark.command()
def speed(
    data: Annotated[
        str, typer.Option(help="Data set: kang or pbmc3k (from $SCALLOY_DATA), or kang_subset.")
    ] = "kang",
    genes: Annotated[
        list[str] | None, typer.Option(help="Number of genes, or 'all'; may be repeated (default 2000, all).")
    ] = None,
    likelihood: Annotated[
        list[str] | None, typer.Option(help="nb or zinb; may be repeated (default both).")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Number of epochs at equal settings.")] = 4,
    repeats: Annotated[int, typer.Option(help="Number of measurements of each model.")] = 3,
    equal: Annotated[
        bool, typer.Option(help="Measure cells per second and memory at equal settings.")
    ] = True,
    defaults: Annotated[
        bool, typer.Option(help="Measure the time to SCVI's validation ELBO, each with its defaults.")
    ] = True,
    scvi_epochs: Annotated[
        int | None, typer.Option(help="Number of epochs of SCVI with --defaults, instead of its default.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Out = None,
) -> None:
    """Compare the speed of our VAE with scvi.model.SCVI.

    The table holds ratios of cells per second, of peak memory, and of the time to the same validation ELBO.
    """
    from scalloy.benchmark import speed as run

    n_genes = [None if g == "all" else int(g) for g in genes or ["2000", "all"]]
    frame = run(
        data,
        n_genes=n_genes,
        gene_likelihood=likelihood or ["nb", "zinb"],
        max_epochs=epochs,
        repeats=repeats,
        equal=equal,
        defaults=defaults,
        scvi_epochs=scvi_epochs,
        device=device,
    )
    show(frame, out)


@benchmark.command()
def fit(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Data set, such as kang_subset; may be repeated (default kang, pbmc3k)."),
    ] = None,
    likelihood: Annotated[str, typer.Option(help="nb or zinb.")] = "nb",
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    beta: Annotated[
        list[float] | None,
        typer.Option(help="Weight of the KL term in our training; may be repeated (default 1)."),
    ] = None,
    genes: Annotated[int, typer.Option(help="Number of most variable genes to keep.")] = 2000,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of our models, instead of the default.")
    ] = None,
    scvi_epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of SCVI, instead of its default.")
    ] = None,
    out: Out = None,
) -> None:
    """Compare how well our VAE and SCVI fit cells that neither has seen.

    The table holds reconstruction error, KL, ELBO and marginal log-likelihood in nats per cell.
    """
    from scalloy.benchmark import fit as run
    from scalloy.benchmark.fit import summary

    frame = run(
        data or ("kang", "pbmc3k"),
        gene_likelihood=likelihood,
        seeds=range(seeds),
        betas=beta or (1.0,),
        n_genes=genes,
        max_epochs=epochs,
        scvi_epochs=scvi_epochs,
    )
    show(frame, out, summary(frame))


@benchmark.command()
def likelihoods(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Data set; may be repeated (default kang, pbmc3k, zeisel_cortex)."),
    ] = None,
    likelihood: Annotated[
        list[str] | None, typer.Option(help="Name of a likelihood; may be repeated (default all).")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="VAE or GMVAE; may be repeated (default both).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    genes: Annotated[int, typer.Option(help="Number of most variable genes to keep.")] = 2000,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs, instead of the default.")
    ] = None,
    out: Out = None,
    folder: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures."), PICTURES] = None,
) -> None:
    """Compare likelihoods of counts (Poisson, NB, ZIP, ZINB and more) for VAE and GMVAE.

    The table holds the marginal log-likelihood of held-out cells, and its gain over the NB.
    """
    from scalloy.benchmark.likelihoods import likelihoods as run
    from scalloy.benchmark.likelihoods import pictures, summary

    frame = run(
        data or ("kang", "pbmc3k", "zeisel_cortex"),
        likelihood or None,
        models=model or ("VAE", "GMVAE"),
        seeds=range(seeds),
        n_genes=genes,
        max_epochs=epochs,
    )
    show(frame, out, summary(frame))
    if folder is not None:
        for path in pictures(folder, frame, n_genes=genes, max_epochs=epochs):
            say(f"saved {path}")


@benchmark.command()
def cost(
    what: Annotated[
        str,
        typer.Option(
            help="components (of GMVAE), conditional (CGMDVAE), autoencoders (VAEs against AE) or transfer "
            "(predictions under another condition)."
        ),
    ] = "components",
    data: Annotated[
        str | None,
        typer.Option(help="Data set (default pbmc4k_dcc, kang, pbmc3k or kang, in the order of --what)."),
    ] = None,
    clusters: Annotated[
        list[int] | None,
        typer.Option(help="Number of components, for components; may be repeated (default 1, 10, 50)."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Number of epochs of each measurement.")] = 6,
    repeats: Annotated[int, typer.Option(help="Number of measurements.")] = 3,
    out: Out = None,
) -> None:
    """Measure how long an epoch of our larger models takes, or a prediction.

    The table holds the processor time of GMVAE and CGMDVAE as a ratio to VAE's, of VAEs to AE's, or of a cell
    in a prediction to that of a cell in training.
    """
    from scalloy._arguments import one_of
    from scalloy.benchmark.cost import autoencoders, conditional, predictions
    from scalloy.benchmark.cost import cost as run

    settings = {"max_epochs": epochs, "repeats": repeats}
    if one_of("what", what, ("components", "conditional", "autoencoders", "transfer")) == "autoencoders":
        show(autoencoders(data or "pbmc3k", **settings), out)
    elif what == "conditional":
        show(conditional(data or "kang", **settings), out)
    elif what == "transfer":
        show(predictions(data or "kang", **settings), out)
    else:
        show(run(data or "pbmc4k_dcc", n_clusters=clusters or (1, 10, 50), **settings), out)


@benchmark.command()
def gpu(
    data: Annotated[str, typer.Option(help="Data set from which cells are drawn.")] = "kang_subset",
    device: Annotated[str, typer.Option(help="cuda, or cpu to check that the benchmark runs.")] = "cuda",
    cells: Annotated[int, typer.Option(help="Number of cells in the large epoch.")] = 1_000_000,
    steps: Annotated[int, typer.Option(help="Maximum number of steps per epoch in the comparison.")] = 100,
    out: Out = None,
) -> None:
    """Measure our models on a GPU.

    The table holds cells per second beside SCVI, the least possible time of an epoch, and where time goes.
    """
    from scalloy.benchmark.gpu import gpu as run

    show(run(data, device=device, n_cells=min(cells, 100_000), n_large=cells, steps=steps), out)


@benchmark.command()
def devices(
    processes: Annotated[int, typer.Option(help="Number of processes that train together.")] = 2,
    repeats: Annotated[int, typer.Option(help="Number of measurements.")] = 3,
    out: Out = None,
) -> None:
    """Compare training by several processes with training by one.

    The table holds ratios of cells per second and of the lowest validation loss.
    """
    from scalloy.benchmark.devices import devices as run

    show(run(processes=processes, repeats=repeats), out)


def show(frame: pd.DataFrame, out: Path | None, summary: pd.DataFrame | None = None) -> None:
    """Print a table and its summary if there is one, and write the table as CSV if ``out`` is given."""
    from scalloy.files import atomic_write

    say(frame.round(3).to_string(index=False))
    if out is not None:
        atomic_write.put(out, frame.to_csv(index=False).encode())
    if summary is not None:
        say(summary.to_string())
