"""Commands for benchmarks of several modalities: ``scalloy benchmark multimodal`` and ``coupling``."""

from __future__ import annotations

from typing import Annotated

import typer

from scalloy.cli.benchmark import Out, benchmark, show
from scalloy.cli.console import say


@benchmark.command()
def multimodal(
    what: Annotated[
        str,
        typer.Option(
            help="cross (each modality from the other), panel (half is missing), speed, coherence (of "
            "generated cells) or multiome (RNA and ATAC)."
        ),
    ] = "cross",
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set: citeseq (the default), or citeseq_subset (ships with the package); for "
            "multiome, simulated (the default) or multiome_test."
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Name of a model, except for speed; may be repeated.")
    ] = None,
    totalvi: Annotated[bool, typer.Option(help="Run totalVI as a rival, for cross and panel.")] = False,
    multivi: Annotated[bool, typer.Option(help="Run MULTIVI as a rival, for multiome.")] = False,
    folds: Annotated[
        int | None,
        typer.Option(help="Number of folds held out (default all five), or of seeds, for panel (3)."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of our models, instead of the default.")
    ] = None,
    totalvi_epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of totalVI, instead of its default.")
    ] = None,
    multivi_epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs of MULTIVI, instead of its default.")
    ] = None,
    cells: Annotated[int, typer.Option(help="Number of simulated cells, for multiome.")] = 3000,
    out: Out = None,
) -> None:
    """Compare POISEVAE with baselines, totalVI and MULTIVI on cells with two modalities.

    The table holds scores of predicting one modality from the other or the missing half of a panel, the time
    of an epoch, or how well the modalities of generated cells belong together.
    """
    from scalloy._arguments import one_of

    one_of("what", what, ("cross", "panel", "speed", "coherence", "multiome"))
    if what == "multiome":
        from scalloy.benchmark import multiome as atac

        names = [*(model or atac.MODELS), *(["MULTIVI"] if multivi else [])]
        epochs_of = {"max_epochs": epochs, "multivi_epochs": multivi_epochs}
        frame = atac.multiome(data or "simulated", names, n_obs=cells, n_folds=folds, **epochs_of)
        show(frame, out, atac.summary(frame))
        return
    rival = ["totalVI"] if totalvi else []
    _proteins(what, data or "citeseq", model or [], rival, folds, epochs, totalvi_epochs, out)


def _proteins(
    what: str,
    data: str,
    model: list[str],
    rival: list[str],
    folds: int | None,
    epochs: int | None,
    totalvi_epochs: int | None,
    out: Out,
) -> None:
    """Run a benchmark on RNA and protein."""
    from scalloy.benchmark import coherence as joint
    from scalloy.benchmark.multimodal import MODELS, multimodal, panel, speed, summary

    epochs_of = {"max_epochs": epochs, "totalvi_epochs": totalvi_epochs}
    if what == "speed":
        show(speed(data), out)
    elif what == "panel":
        names = [*(model or ("POISEVAE", "product of experts")), *rival]
        show(panel(data, names, seeds=range(folds or 3), **epochs_of), out)
    elif what == "coherence":
        frame = joint.coherence(data, model or tuple(joint.JOINTS), n_folds=folds, max_epochs=epochs)
        show(frame, out, joint.summary(frame))
    else:
        frame = multimodal(data, [*(model or MODELS), *rival], n_folds=folds, **epochs_of)
        show(frame, out, summary(frame))


@benchmark.command()
def coupling(
    what: Annotated[
        str,
        typer.Option(
            help="classes (cross-generation), sources (identifiability) or starvation (small modality)."
        ),
    ] = "classes",
    joint: Annotated[
        list[str] | None,
        typer.Option(help="Joint distribution of POISEVAE, such as poise; may be repeated."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of random seeds.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs, instead of the default.")
    ] = None,
    out: Out = None,
) -> None:
    """Score POISEVAE on two simulated modalities with known truth.

    The table holds how often the other modality is generated in the right class, how well true sources are
    recovered, or whether a small modality is learned beside a large one.
    """
    from scalloy._arguments import one_of
    from scalloy.benchmark import coupling as tasks

    given = {"joints": joint, "seeds": seeds and range(seeds), "max_epochs": epochs}
    run = getattr(tasks, one_of("what", what, ("classes", "sources", "starvation")))
    frame = run(**{k: v for k, v in given.items() if v is not None})
    show(frame, out)
    by = [c for c in ("radius", "joint") if c in frame]
    say(frame.drop(columns="seed").groupby(by, sort=False).agg(["mean", "std"]).round(3).to_string())
