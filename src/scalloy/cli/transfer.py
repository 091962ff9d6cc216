"""Commands for the benchmarks of predictions under another condition."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalloy.cli.benchmark import Out, benchmark, show
from scalloy.cli.console import pairs, say
from scalloy.cli.paths import PAGES, Writes


@benchmark.command()
def transfer(
    data: Annotated[
        str, typer.Argument(help="Data set: kang, kang_all, kang_subset, or an h5ad file of raw counts.")
    ] = "kang",
    model: Annotated[
        list[str] | None, typer.Option(help="Name of a model; may be repeated (default all).")
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option(help="Cell type to hold out; may be repeated (default each).")
    ] = None,
    condition_key: Annotated[str, typer.Option(help="Column of .obs with conditions.")] = "condition",
    labels_key: Annotated[str, typer.Option(help="Column of .obs with cell types.")] = "cell_type",
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    genes: Annotated[int, typer.Option(help="Number of most variable genes to keep.")] = 2000,
    median: Annotated[
        bool, typer.Option(help="Scale cells to the median total of counts, instead of 10,000.")
    ] = False,
    at_once: Annotated[
        bool, typer.Option(help="Hold a type out under all conditions together, instead of one by one.")
    ] = False,
    unseen: Annotated[
        str | None,
        typer.Option(help="Predict only cells with this value and never train on them: batch=donor_1015."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs, instead of the default.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Judge of predicted counts, instead of our scores: vcc2026 (needs cell-eval2), "
            "scperturbench or systema."
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            help="Run all data sets with settings of their own, real and simulated. Of the other options, "
            "only --model, --set, --seeds and --epochs apply then."
        ),
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Data set of --everything; may be repeated (default all)."),
    ] = None,
    out: Out = None,
    html: Annotated[
        Path | None,
        typer.Option(help="HTML page for the table."),
        Writes("page", PAGES, unasked=True),
    ] = None,
) -> None:
    """Compare predictions of cell types under a condition in which they were never seen.

    The table holds scores of our models and of the baselines for each held-out type.
    """
    from scalloy.benchmark import everywhere as of_all
    from scalloy.benchmark import transfer as run
    from scalloy.benchmark.everywhere import summary as summary_of_all
    from scalloy.benchmark.transfer import summary
    from scalloy.files import atomic_write

    if everything or sets:
        frame = of_all(model or None, sets=sets, seeds=range(seeds), max_epochs=epochs)
        table = summary_of_all(frame)
    else:
        frame = run(
            data,
            model or None,
            condition_key=condition_key,
            labels_key=labels_key,
            hold_out=types or "each",
            at_once=at_once,
            unseen=dict(pairs([] if unseen is None else [unseen], "--unseen", "batch=donor_1015")),
            seeds=range(seeds),
            n_genes=genes,
            target_sum=None if median else 1e4,
            max_epochs=epochs,
            judge=judge,
        )
        table = summary(frame)
    show(frame, out)
    say(table.to_string())
    if html is not None:
        atomic_write.put(html, (table.to_html() + frame.round(3).to_html(index=False)).encode())


@benchmark.command()
def counterfactual(
    model: Annotated[
        list[str] | None, typer.Option(help="Name of a model; may be repeated (default all).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 3,
    cells: Annotated[int, typer.Option(help="Number of cells to simulate.")] = 6000,
    conditions: Annotated[int, typer.Option(help="Number of conditions to simulate.")] = 4,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs, instead of the default.")
    ] = None,
    out: Out = None,
) -> None:
    """Compare predictions of simulated cells, whose truth under every condition is known.

    The table holds scores of the mean of a held-out cluster, and of its cells one by one.
    """
    from scalloy.benchmark.counterfactual import counterfactual as run
    from scalloy.benchmark.counterfactual import summary

    settings = {"n_obs": cells, "n_conditions": conditions, "max_epochs": epochs}
    frame = run(model or None, seeds=range(seeds), **settings)
    show(frame, out, summary(frame))


@benchmark.command()
def conditions(
    data: Annotated[
        str,
        typer.Argument(
            help="Data set: screen or time course (simulated), norman_dev, or an h5ad file of raw counts."
        ),
    ] = "screen",
    model: Annotated[
        list[str] | None, typer.Option(help="Name of a method; may be repeated (default all).")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="What is held out: combination, 'combination, one part seen', 'inner dose', 'largest dose', "
            "'inner time', 'latest time', type or perturbation; may be repeated (default all)."
        ),
    ] = None,
    most: Annotated[
        int | None, typer.Option(help="Largest number of hold-outs of each kind (default all).")
    ] = None,
    factor: Annotated[
        list[str] | None,
        typer.Option(help="Column of .obs with perturbations, for a file; may be repeated."),
    ] = None,
    control: Annotated[str, typer.Option(help="Value of that column for no perturbation.")] = "control",
    dose: Annotated[
        list[str] | None, typer.Option(help="Column of .obs with doses, one for each factor.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of .obs with times.")] = None,
    descriptors: Annotated[
        str | None, typer.Option(help="Key of .uns with what describes each perturbation.")
    ] = None,
    labels_key: Annotated[str | None, typer.Option(help="Column of .obs with cell types.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.")] = 1,
    min_cells: Annotated[
        int, typer.Option(help="Minimum number of cells of a condition that is scored.")
    ] = 30,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs, instead of the default.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Judge of predicted counts, instead of our scores: vcc2026 (needs cell-eval2), "
            "scperturbench or systema."
        ),
    ] = None,
    out: Out = None,
) -> None:
    """Compare predictions of combinations, doses, times and perturbations that were held out.

    The table holds scores of our models and of the baselines for each context.
    """
    from scalloy.benchmark.structured import conditions as run
    from scalloy.benchmark.structured import summary
    from scalloy.data.conditions import Conditions

    told = {"control": control, "dose": dose or None, "time": time, "descriptors": descriptors}
    frame = run(
        data,
        model or None,
        conditions=Conditions(factor, **told) if factor else None,
        labels_key=labels_key,
        kinds=kind or None,
        most=most,
        seeds=range(seeds),
        min_cells=min_cells,
        max_epochs=epochs,
        judge=judge,
    )
    show(frame, out, summary(frame))
