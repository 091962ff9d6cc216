"""Command line of the benchmarks: ``scalloy benchmark NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalloy.cli_files import Commands, say
from scalloy.cli_paths import TABLES, Writes

if TYPE_CHECKING:
    import pandas as pd

benchmark = typer.Typer(
    help="Measure our models and their rivals in one run.", cls=Commands, no_args_is_help=True
)
_table, _pictures = Writes("table", TABLES, unasked=True), Writes("folder for pictures", unasked=True)
Out = Annotated[Path | None, typer.Option(help="Write the table as CSV too."), _table]


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
    say(summary(frame).to_string())


@benchmark.command()
def likelihoods(
    data: Annotated[list[str] | None, typer.Option(help="Names of sets; see the documentation.")] = None,
    likelihood: Annotated[list[str] | None, typer.Option(help="Names, not all.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="VAE, GMVAE.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    genes: Annotated[int, typer.Option(help="Most variable genes that are kept.")] = 2000,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    out: Out = None,
    folder: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures."), _pictures] = None,
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
    say(summary(frame).to_string())
    if folder is not None:
        for path in pictures(folder, frame, n_genes=genes, max_epochs=epochs):
            say(f"saved {path}")


@benchmark.command()
def cost(
    what: Annotated[str, typer.Option(help="components, conditional or autoencoders.")] = "components",
    data: Annotated[str | None, typer.Option(help="Name of a set; see the documentation.")] = None,
    clusters: Annotated[list[int] | None, typer.Option(help="Numbers of components.")] = None,
    epochs: Annotated[int, typer.Option(help="Of each measurement.")] = 6,
    repeats: Annotated[int, typer.Option(help="How many.")] = 3,
    out: Out = None,
) -> None:
    """Time of an epoch of GMVAE by its components, or of CGMDVAE, as a ratio to VAE's; of VAEs to AE's."""
    from scalloy.benchmark.cost import autoencoders, conditional
    from scalloy.benchmark.cost import cost as run
    from scalloy.models._options import one_of

    settings = {"max_epochs": epochs, "repeats": repeats}
    if one_of("what", what, ("components", "conditional", "autoencoders")) == "autoencoders":
        show(autoencoders(data or "pbmc3k", **settings), out)
    elif what == "conditional":
        show(conditional(data or "kang", **settings), out)
    else:
        show(run(data or "pbmc4k_dcc", n_clusters=clusters or (1, 10, 50), **settings), out)


@benchmark.command()
def gpu(
    data: Annotated[str, typer.Option(help="Name of a set; see the documentation.")] = "kang_subset",
    device: Annotated[str, typer.Option(help="cuda, or cpu to try whether it runs.")] = "cuda",
    cells: Annotated[int, typer.Option(help="Of the large epoch.")] = 1_000_000,
    steps: Annotated[int, typer.Option(help="Of an epoch in the comparison.")] = 100,
    out: Out = None,
) -> None:
    """All that is to be known of a GPU in one run: speed beside SCVI, floors, where time goes."""
    from scalloy.benchmark.gpu import gpu as run

    show(run(data, device=device, n_cells=min(cells, 100_000), n_large=cells, steps=steps), out)


@benchmark.command()
def devices(
    processes: Annotated[int, typer.Option(help="Beside one.")] = 2,
    repeats: Annotated[int, typer.Option(help="How many.")] = 3,
    out: Out = None,
) -> None:
    """Several processes that train one model, beside one: cells per second, and validation loss."""
    from scalloy.benchmark.devices import devices as run

    show(run(processes=processes, repeats=repeats), out)


@benchmark.command()
def latent(
    data: Annotated[list[str] | None, typer.Option(help="Names of sets; see the documentation.")] = None,
    latents: Annotated[list[int] | None, typer.Option(help="Numbers of latents.")] = None,
    likelihood: Annotated[list[str] | None, typer.Option(help="nb, mse.")] = None,
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    genes: Annotated[int, typer.Option(help="Most variable genes that are kept.")] = 2000,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    bio: Annotated[bool, typer.Option(help="scib-metrics' bio-conservation too.")] = False,
    out: Out = None,
    folder: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures."), _pictures] = None,
) -> None:
    """AE, VAE, BetaVAE, BetaVSC and PCA: label recovery, reconstruction, sparsity, time."""
    from scalloy.benchmark.latent import SETS, pictures, summary
    from scalloy.benchmark.latent import latent as run

    frame = run(
        data or SETS,
        n_latent=latents or (6, 10, 30),
        gene_likelihood=likelihood or ("nb", "mse"),
        seeds=range(seeds),
        n_genes=genes,
        max_epochs=epochs,
        bio=bio,
    )
    show(frame, out)
    say(summary(frame).to_string())
    if folder is not None:
        for name in data or SETS:
            for path in pictures(folder, name, n_genes=genes, max_epochs=epochs):
                say(f"saved {path}")


@benchmark.command()
def sparse(
    what: Annotated[
        str, typer.Option(help="programs (true sparse factors) or relaxation (of gates).")
    ] = "programs",
    seeds: Annotated[int, typer.Option(help="How many.")] = 3,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    out: Out = None,
) -> None:
    """Sparse codes where the truth is known: programs recovered, bias of the gates' gradient."""
    from scalloy.benchmark import sparse as tasks
    from scalloy.models._options import one_of

    if one_of("what", what, ("programs", "relaxation")) == "relaxation":
        show(tasks.relaxation(), out)
        return
    frame = tasks.programs(seeds=range(seeds), max_epochs=epochs)
    show(frame, out)
    say(tasks.summary(frame).to_string())


@benchmark.command()
def compare(
    what: Annotated[str, typer.Option(help="size, power, speed or kang.")] = "size",
    simulations: Annotated[int | None, typer.Option(help="Of size and power.")] = None,
    cells: Annotated[list[int] | None, typer.Option(help="Numbers of cells, of speed.")] = None,
    classifier: Annotated[bool, typer.Option(help="In power too (long).")] = False,
    out: Out = None,
) -> None:
    """The test of groups: its size and power with donors, its time beside pertpy's, real donors."""
    from scalloy.benchmark import compare as tasks
    from scalloy.models._options import one_of

    one_of("what", what, ("size", "power", "speed", "kang"))
    some = {} if simulations is None else {"n_simulations": simulations}
    found = {
        "size": lambda: tasks.size(**some),
        "power": lambda: tasks.power(classifier=classifier, **some),
        "speed": lambda: tasks.speed(**({"n_cells": cells} if cells else {})),
        "kang": tasks.kang,
    }
    show(found[what](), out)


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
    say(summary(frame).to_string())


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
    say(tasks.summary(frame).to_string())


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
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures of w."), _pictures] = None,
    out: Out = None,
) -> None:
    """Conditions in the style latent w under the standard prior and a learned one."""
    from scalloy.benchmark.published import style as run

    show(run(data, seeds=range(seeds), max_epochs=epochs, folder=pictures), out)


@benchmark.command()
def multimodal(
    what: Annotated[str, typer.Option(help="cross, panel or speed.")] = "cross",
    data: Annotated[str, typer.Option(help="citeseq, or citeseq_subset, which is embedded.")] = "citeseq",
    model: Annotated[list[str] | None, typer.Option(help="Names of models, not all.")] = None,
    totalvi: Annotated[bool, typer.Option(help="totalVI as a rival, for cross and panel.")] = False,
    folds: Annotated[int | None, typer.Option(help="Of five, not all; seeds of panel.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of ours, instead of the default.")] = None,
    totalvi_epochs: Annotated[int | None, typer.Option(help="Of totalVI, instead of its default.")] = None,
    out: Out = None,
) -> None:
    """RNA and protein from each other, a panel of which half is missing, time of an epoch; totalVI beside."""
    from scalloy.benchmark.multimodal import MODELS, panel, summary
    from scalloy.benchmark.multimodal import multimodal as run
    from scalloy.benchmark.multimodal import speed as run_speed
    from scalloy.models._options import one_of

    rival = ["totalVI"] if totalvi else []
    epochs_of = {"max_epochs": epochs, "totalvi_epochs": totalvi_epochs}
    if one_of("what", what, ("cross", "panel", "speed")) == "speed":
        show(run_speed(data), out)
    elif what == "panel":
        names = [*(model or ("POISEVAE", "product of experts")), *rival]
        show(panel(data, names, seeds=range(folds or 3), **epochs_of), out)
    else:
        frame = run(data, [*(model or MODELS), *rival], n_folds=folds, **epochs_of)
        show(frame, out)
        say(summary(frame).to_string())


@benchmark.command()
def coupling(
    what: Annotated[str, typer.Option(help="classes, sources or starvation.")] = "classes",
    joint: Annotated[list[str] | None, typer.Option(help="Of POISEVAE, not all.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    out: Out = None,
) -> None:
    """Two modalities where the truth is known: cross-generation, identifiability, a small modality."""
    from scalloy.benchmark import coupling as tasks
    from scalloy.models._options import one_of

    given = {"joints": joint, "seeds": seeds and range(seeds), "max_epochs": epochs}
    run = getattr(tasks, one_of("what", what, ("classes", "sources", "starvation")))
    frame = run(**{k: v for k, v in given.items() if v is not None})
    show(frame, out)
    by = [c for c in ("radius", "joint") if c in frame]
    say(frame.drop(columns="seed").groupby(by, sort=False).agg(["mean", "std"]).round(3).to_string())


def show(frame: pd.DataFrame, out: Path | None) -> None:
    """Print a table, and write it if asked."""
    from scalloy.data import writing

    say(frame.round(3).to_string(index=False))
    if out is not None:
        writing.put(out, frame.to_csv(index=False).encode())
