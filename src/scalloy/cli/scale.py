"""Command for the benchmark of large data: ``scalloy benchmark scale``."""

from __future__ import annotations

from typing import Annotated

import typer

from scalloy.cli.benchmark import Out, benchmark, show
from scalloy.cli.console import say


@benchmark.command()
def scale(
    what: Annotated[str, typer.Option(help="growth, shuffling, reading or inference.")] = "growth",
    data: Annotated[str, typer.Option(help="Data set to draw cells from: kang or kang_subset.")] = "kang",
    cells: Annotated[
        list[int] | None,
        typer.Option(help="Number of cells, not for shuffling; may be repeated for growth and inference."),
    ] = None,
    genes: Annotated[
        list[int] | None, typer.Option(help="Number of genes, for growth; may be repeated.")
    ] = None,
    components: Annotated[
        list[int] | None, typer.Option(help="Number of components of GMVAE, for growth; may be repeated.")
    ] = None,
    latents: Annotated[
        list[int] | None, typer.Option(help="Number of latent dimensions, for growth; may be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Size to vary, for growth: cells, genes, components or latents; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds, for shuffling.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Number of epochs of each training, instead of the default.")
    ] = None,
    out: Out = None,
) -> None:
    """Measure how time and memory grow with the data, in memory and from disk.

    The table holds time and memory by numbers of cells, genes, components and latents (growth), the quality
    of training from a shuffled store (shuffling), the speed of reading a store (reading), or time and memory
    of clusters and predictions (inference).
    """
    from scalloy._arguments import one_of
    from scalloy.benchmark.scale import inference, reading, shuffling, summary
    from scalloy.benchmark.scale import scale as run

    some = {} if epochs is None else {"max_epochs": epochs}
    if one_of("what", what, ("growth", "shuffling", "reading", "inference")) == "shuffling":
        frame = shuffling(data, seeds=range(seeds), **some)
        show(frame, out)
        say(frame.drop(columns="seed").groupby("from", sort=False).agg(["mean", "std"]).round(3).to_string())
    elif what == "reading":
        show(reading(data, **({"cells": cells[0]} if cells else {})), out)
    elif what == "inference":
        show(inference(data, **({"cells": cells} if cells else {}), **some), out)
    else:
        sizes = {"cells": cells, "genes": genes, "components": components, "latents": latents}
        for name in only or ():
            one_of("only", name, tuple(sizes))
        some |= {
            k: () if only and k not in only else v for k, v in sizes.items() if v or (only and k not in only)
        }
        frame = run(data, **some)
        show(frame, out)
        say(summary(frame).round(3).to_string(index=False))
