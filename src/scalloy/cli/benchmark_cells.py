"""Commands for benchmarks of latent spaces, clusters, labels, groups and modalities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scalloy.cli.benchmark import PICTURES, Out, benchmark, show
from scalloy.cli.console import say


@benchmark.command()
def latent(
    data: Annotated[
        list[str] | None, typer.Option(help="Data set with cell types; may be repeated (default five).")
    ] = None,
    latents: Annotated[
        list[int] | None,
        typer.Option(help="Number of latent dimensions; may be repeated (default 6, 10, 30)."),
    ] = None,
    likelihood: Annotated[
        list[str] | None, typer.Option(help="nb or mse; may be repeated (default both).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    genes: Annotated[int, typer.Option(help="Number of most variable genes to keep.")] = 2000,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs, instead of the default.")
    ] = None,
    bio: Annotated[bool, typer.Option(help="Compute scib-metrics' bio-conservation as well.")] = False,
    out: Out = None,
    folder: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures."), PICTURES] = None,
) -> None:
    """Compare the latent codes of AE, VAE, BetaVAE, BetaVSC and PCA.

    The table holds label recovery, reconstruction, sparsity and time.
    """
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
    show(frame, out, summary(frame))
    if folder is not None:
        for name in data or SETS:
            for path in pictures(folder, name, n_genes=genes, max_epochs=epochs):
                say(f"saved {path}")


@benchmark.command()
def sparse(
    what: Annotated[
        str, typer.Option(help="programs (recovery of sparse factors) or relaxation (gradient of gates).")
    ] = "programs",
    seeds: Annotated[int, typer.Option(help="Number of random seeds, for programs.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs for programs, instead of the default.")
    ] = None,
    out: Out = None,
) -> None:
    """Score sparse codes on simulated data with known truth.

    The table holds how well gene programs are recovered, or bias and spread of the gates' gradient.
    """
    from scalloy._arguments import one_of
    from scalloy.benchmark import sparse as tasks

    if one_of("what", what, ("programs", "relaxation")) == "relaxation":
        show(tasks.relaxation(), out)
        return
    frame = tasks.programs(seeds=range(seeds), max_epochs=epochs)
    show(frame, out, tasks.summary(frame))


@benchmark.command()
def compare(
    what: Annotated[str, typer.Option(help="size, power, speed or kang (real donors).")] = "size",
    simulations: Annotated[
        int | None, typer.Option(help="Number of simulations, for size (default 500) and power (100).")
    ] = None,
    cells: Annotated[
        list[int] | None, typer.Option(help="Number of cells, for speed; may be repeated.")
    ] = None,
    classifier: Annotated[
        bool, typer.Option(help="Measure the classifier's power as well (takes long).")
    ] = False,
    out: Out = None,
) -> None:
    """Check the permutation tests between groups of cells.

    The table holds false positives (size), power, time beside pertpy's, or p-values of real donors.
    """
    from scalloy._arguments import one_of
    from scalloy.benchmark import compare as tasks

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
    data: Annotated[
        list[str] | None, typer.Option(help="Data set with cell types; may be repeated (default five).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 5,
    scvi_epochs: Annotated[
        int, typer.Option(help="Number of epochs of SCVI as a rival; 0 leaves it out.")
    ] = 0,
    genes: Annotated[int, typer.Option(help="Number of most variable genes to keep.")] = 2000,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of our models, instead of the default.")
    ] = None,
    original: Annotated[bool, typer.Option(help="Run CGMDVAE.original as well.")] = False,
    out: Out = None,
) -> None:
    """Compare clusters that are found without labels with known cell types.

    The table holds ARI, NMI, macro-F1 and accuracy of our models, of k-means, GMM and Leiden on principal
    components, and of SCVI.
    """
    from scalloy.benchmark.clustering import SETS, summary
    from scalloy.benchmark.clustering import clustering as run

    settings = {"scvi_epochs": scvi_epochs, "n_genes": genes, "max_epochs": epochs, "original": original}
    frame = run(data or SETS, seeds=range(seeds), **settings)
    show(frame, out, summary(frame))


@benchmark.command()
def labels(
    task: Annotated[
        str,
        typer.Option(help="shift (control to stimulated), few (a small share of labels) or studies."),
    ] = "shift",
    data: Annotated[
        list[str] | None,
        typer.Option(help="Data set for shift (default kang) or few (may be repeated there)."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    leave_out: Annotated[
        bool, typer.Option(help="Also leave each type out of the reference in turn, for shift.")
    ] = True,
    scanvi: Annotated[bool, typer.Option(help="Run scANVI as a rival, for few and studies.")] = False,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of our model, instead of the default.")
    ] = None,
    out: Out = None,
) -> None:
    """Compare the transfer of labels to other cells with logistic regression, kNN and scANVI.

    The table holds accuracy, calibration error, and how well cells of unknown types are detected.
    """
    from scalloy._arguments import few, one_of
    from scalloy.benchmark import labels as tasks

    settings = {"seeds": range(seeds), "max_epochs": epochs}
    if one_of("task", task, ("shift", "few", "studies")) == "shift":
        if len(data or ()) > 1:
            msg = (
                f"`--data` was given {len(data)} times ({few(data)}), but `--task shift` takes one data set. "
                "Pass one of them, or `--task few`, which takes several."
            )
            raise ValueError(msg)
        frame = tasks.shift(*(data or ["kang"]), leave_out=leave_out, **settings)
    elif task == "studies":
        frame = tasks.studies(scanvi=scanvi, **settings)
    else:
        frame = tasks.few(data or ("pbmc4k_dcc", "zeisel_cortex"), scanvi=scanvi, **settings)
    show(frame, out, tasks.summary(frame))


@benchmark.command()
def unknown(
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Data sets, such as kang or pbmc3k (default eight)."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 1,
    query: Annotated[
        bool, typer.Option("--query", help="Train without the unlabelled cells, which are seen afterwards.")
    ] = False,
    types: Annotated[
        list[str] | None, typer.Option("--type", help="Type to leave out; may be repeated (default all).")
    ] = None,
    both: Annotated[bool, typer.Option("--both", help="Train with them, and once more without.")] = False,
    scanvi: Annotated[bool, typer.Option(help="Run scANVI as a rival, which is slow.")] = False,
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs of our model.")] = 25,
    out: Out = None,
) -> None:
    """Find cells of a type without a label, with each type of each data set left out in turn.

    The table holds AUROC, and precision and recall at 5 % false alarms, beside rivals on PCs.
    """
    from scalloy.benchmark.unknown import SETS, SITUATIONS, summary
    from scalloy.benchmark.unknown import unknown as run

    situations = SITUATIONS if both else ("query",) if query else ("mixed",)
    frame = run(
        data or SETS,
        seeds=range(seeds),
        situations=situations,
        types=types or None,
        scanvi=scanvi,
        max_epochs=epochs,
    )
    show(frame, out, summary(frame))


@benchmark.command()
def label_tree(
    data: Annotated[
        list[str] | None,
        typer.Option(help="zeisel_cortex (the default), pbmc_4study, pbmc3k or kang; may be repeated."),
    ] = None,
    share: Annotated[float, typer.Option(help="Share of the cells that are labelled.")] = 0.1,
    coarse: Annotated[float, typer.Option(help="Share of these that are known as a class only.")] = 0.5,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="Type to leave out of the labels; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    scanvi: Annotated[bool, typer.Option(help="Run scANVI as a rival.")] = False,
    scanvi_epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of SCVI, instead of its default.")
    ] = None,
    genes: Annotated[int, typer.Option(help="Number of most variable genes.")] = 2000,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of our models, instead of the default.")
    ] = None,
    out: Out = None,
) -> None:
    """Predict labels that are a tree, of cells of which many are known as a class only.

    The table compares CGMDVAE with and without the tree, and logistic regressions with and without it.
    """
    from scalloy.benchmark.label_tree import label_tree as run
    from scalloy.benchmark.label_tree import summary

    settings: dict[str, Any] = {
        "share": share,
        "coarse": coarse,
        "leave_out": leave_out or (),
        "seeds": range(seeds),
    }
    settings |= {"scanvi": scanvi, "scanvi_epochs": scanvi_epochs, "n_genes": genes, "max_epochs": epochs}
    frame = run(data or ("zeisel_cortex",), **settings)
    show(frame, out, summary(frame))


@benchmark.command()
def digits(
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    images: Annotated[int, typer.Option(help="Number of MNIST images.")] = 20_000,
    clusters: Annotated[int, typer.Option(help="Number of clusters without labels.")] = 20,
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs.")] = 60,
    out: Out = None,
) -> None:
    """Cluster handwritten digits without labels and with 5 % labelled, as in Kolb's thesis.

    The table holds purity and accuracy of the clusters, and accuracy of the predicted labels.
    """
    from scalloy.benchmark.published import digits as run

    show(run(seeds=range(seeds), n=images, n_clusters=clusters, max_epochs=epochs), out)


@benchmark.command()
def style(
    data: Annotated[
        str, typer.Option(help="Data set: kang_subset (ships with the package) or kang.")
    ] = "kang_subset",
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs, instead of the default.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures of w."), PICTURES] = None,
    out: Out = None,
) -> None:
    """Measure how well the style latent w tells conditions, with a standard and a learned prior.

    The table holds the accuracy with which neighbours in w and in z tell the condition, and the KL of w.
    """
    from scalloy.benchmark.published import style as run

    show(run(data, seeds=range(seeds), max_epochs=epochs, folder=pictures), out)
