"""Command line: ``scalloy demo``, ``scalloy search`` and ``scalloy benchmark``."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="Deep generative models for single cells whose latent space is a mixture.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
benchmark = typer.Typer(help="Measure our models and their rivals in one run.", no_args_is_help=True)
app.add_typer(benchmark, name="benchmark")

Out = Annotated[Path | None, typer.Option(help="Write the table as CSV too.")]


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


@benchmark.command()
def speed(
    data: Annotated[str, typer.Option(help="kang, pbmc3k (from $SCALLOY_DATA) or kang_subset.")] = "kang",
    genes: Annotated[list[str] | None, typer.Option(help="Numbers of genes, or 'all'.")] = None,
    likelihood: Annotated[list[str] | None, typer.Option(help="nb, zinb.")] = None,
    epochs: Annotated[int, typer.Option(help="At equal settings.")] = 4,
    repeats: Annotated[int, typer.Option(help="Measurements of each.")] = 3,
    equal: Annotated[bool, typer.Option(help="Cells per second and memory at equal settings.")] = True,
    defaults: Annotated[bool, typer.Option(help="Also the time to SCVI's validation ELBO.")] = True,
    scvi_epochs: Annotated[int | None, typer.Option(help="Of SCVI there, not its default.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Out = None,
) -> None:
    """Our VAE against scvi.model.SCVI: cells per second, memory, time to the same ELBO."""
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
    data: Annotated[list[str] | None, typer.Option(help="kang, pbmc3k, kang_subset.")] = None,
    likelihood: Annotated[str, typer.Option(help="nb or zinb.")] = "nb",
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    beta: Annotated[list[float] | None, typer.Option(help="Weights of our KL in training.")] = None,
    genes: Annotated[int, typer.Option(help="Most variable genes that are kept.")] = 2000,
    epochs: Annotated[int | None, typer.Option(help="Of ours, instead of the default.")] = None,
    scvi_epochs: Annotated[int | None, typer.Option(help="Of SCVI, instead of its default.")] = None,
    out: Out = None,
) -> None:
    """Held-out reconstruction, ELBO and marginal log-likelihood of our VAE and of SCVI."""
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
    show(frame, out)
    typer.echo(summary(frame).to_string())


@benchmark.command()
def likelihoods(
    data: Annotated[list[str] | None, typer.Option(help="Names of sets; see the documentation.")] = None,
    likelihood: Annotated[list[str] | None, typer.Option(help="Names, not all.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="VAE, GMVAE.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    genes: Annotated[int, typer.Option(help="Most variable genes that are kept.")] = 2000,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    out: Out = None,
    folder: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures.")] = None,
) -> None:
    """Poisson, NB, ZIP, ZINB and more x VAE and GMVAE: evidence of held-out cells."""
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
    show(frame, out)
    typer.echo(summary(frame).to_string())
    if folder is not None:
        for path in pictures(folder, frame, n_genes=genes, max_epochs=epochs):
            typer.echo(f"saved {path}")


@benchmark.command()
def cost(
    data: Annotated[str, typer.Option(help="Name of a set; see the documentation.")] = "pbmc4k_dcc",
    clusters: Annotated[list[int] | None, typer.Option(help="Numbers of components.")] = None,
    epochs: Annotated[int, typer.Option(help="Of each measurement.")] = 6,
    repeats: Annotated[int, typer.Option(help="How many.")] = 3,
    out: Out = None,
) -> None:
    """Time of an epoch of GMVAE by its number of components, as a ratio to VAE's."""
    from scalloy.benchmark.cost import cost as run

    show(run(data, n_clusters=clusters or (1, 10, 50), max_epochs=epochs, repeats=repeats), out)


@benchmark.command()
def transfer(
    data: Annotated[str, typer.Argument(help="kang, kang_subset (embedded), or an h5ad file.")] = "kang",
    model: Annotated[list[str] | None, typer.Option(help="Names of models, not all.")] = None,
    types: Annotated[list[str] | None, typer.Option(help="Cell types to hold out, not all.")] = None,
    condition_key: Annotated[str, typer.Option(help="Column of .obs with conditions.")] = "condition",
    labels_key: Annotated[str, typer.Option(help="Column of .obs with cell types.")] = "cell_type",
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    genes: Annotated[int, typer.Option(help="Most variable genes that are kept.")] = 2000,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    out: Out = None,
    html: Annotated[Path | None, typer.Option(help="Write the table as a page too.")] = None,
) -> None:
    """Prediction of a cell type under a condition in which it was never seen, beside the baselines."""
    from scalloy.benchmark import transfer as run
    from scalloy.benchmark.transfer import summary

    frame = run(
        data,
        model or None,
        condition_key=condition_key,
        labels_key=labels_key,
        hold_out=types or "each",
        seeds=range(seeds),
        n_genes=genes,
        max_epochs=epochs,
    )
    show(frame, out)
    table = summary(frame)
    typer.echo(table.to_string())
    if html is not None:
        html.write_text(table.to_html() + frame.round(3).to_html(index=False))


@benchmark.command()
def clustering(
    data: Annotated[list[str] | None, typer.Option(help="Names of sets; see the documentation.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 5,
    scvi_epochs: Annotated[int, typer.Option(help="Of SCVI as a rival; 0 leaves it out.")] = 0,
    genes: Annotated[int, typer.Option(help="Most variable genes that are kept.")] = 2000,
    epochs: Annotated[int | None, typer.Option(help="Of ours, instead of the default.")] = None,
    original: Annotated[bool, typer.Option(help="CGMDVAE.original too.")] = False,
    out: Out = None,
) -> None:
    """Clusters without labels, beside k-means, GMM and Leiden on principal components, and SCVI."""
    from scalloy.benchmark.clustering import SETS, summary
    from scalloy.benchmark.clustering import clustering as run

    settings = {"scvi_epochs": scvi_epochs, "n_genes": genes, "max_epochs": epochs, "original": original}
    frame = run(data or SETS, seeds=range(seeds), **settings)
    show(frame, out)
    typer.echo(summary(frame).to_string())


@benchmark.command()
def labels(
    task: Annotated[str, typer.Option(help="shift (of condition), few (labels) or studies.")] = "shift",
    data: Annotated[list[str] | None, typer.Option(help="Names of sets; see the documentation.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    leave_out: Annotated[bool, typer.Option(help="Each type in turn, for shift.")] = True,
    scanvi: Annotated[bool, typer.Option(help="scANVI as a rival, for few and studies.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Of ours, instead of the default.")] = None,
    out: Out = None,
) -> None:
    """Labels carried to other cells, beside logistic regression: accuracy, calibration, unknown types."""
    from scalloy.benchmark import labels as tasks
    from scalloy.models._options import one_of

    settings = {"seeds": range(seeds), "max_epochs": epochs}
    if one_of("task", task, ("shift", "few", "studies")) == "shift":
        frame = tasks.shift(*(data or ["kang"]), leave_out=leave_out, **settings)
    elif task == "studies":
        frame = tasks.studies(scanvi=scanvi, **settings)
    else:
        frame = tasks.few(data or ("pbmc4k_dcc", "zeisel_cortex"), scanvi=scanvi, **settings)
    show(frame, out)
    typer.echo(tasks.summary(frame).to_string())


@benchmark.command()
def digits(
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    images: Annotated[int, typer.Option(help="Number of MNIST images.")] = 20_000,
    clusters: Annotated[int, typer.Option(help="Without labels.")] = 20,
    epochs: Annotated[int, typer.Option(help="Of training.")] = 60,
    out: Out = None,
) -> None:
    """Handwritten digits without labels and with 5 % of them, as in Kolb's thesis."""
    from scalloy.benchmark.published import digits as run

    show(run(seeds=range(seeds), n=images, n_clusters=clusters, max_epochs=epochs), out)


@benchmark.command()
def style(
    data: Annotated[str, typer.Option(help="kang_subset, which is embedded, or kang.")] = "kang_subset",
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures of w.")] = None,
    out: Out = None,
) -> None:
    """Conditions in the style latent w under the standard prior and a learned one."""
    from scalloy.benchmark.published import style as run

    show(run(data, seeds=range(seeds), max_epochs=epochs, folder=pictures), out)


def show(frame: pd.DataFrame, out: Path | None) -> None:
    """Print a table, and write it if asked."""
    typer.echo(frame.round(3).to_string(index=False))
    if out is not None:
        frame.to_csv(out, index=False)


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
