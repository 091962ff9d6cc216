"""Command line of the benchmark of size: ``scalloy benchmark scale``."""

from __future__ import annotations

from typing import Annotated

import typer

from scalloy.cli_benchmark import Out, benchmark, show
from scalloy.cli_files import say


@benchmark.command()
def scale(
    what: Annotated[str, typer.Option(help="growth, shuffling, reading or inference.")] = "growth",
    data: Annotated[str, typer.Option(help="Cells to draw from: kang, or kang_subset.")] = "kang",
    cells: Annotated[list[int] | None, typer.Option(help="Their numbers, not with shuffling.")] = None,
    genes: Annotated[list[int] | None, typer.Option(help="Numbers of genes (growth).")] = None,
    components: Annotated[list[int] | None, typer.Option(help="Of GMVAE (growth).")] = None,
    latents: Annotated[list[int] | None, typer.Option(help="Latent dimensions (growth).")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Vary only these sizes (growth).")] = None,
    seeds: Annotated[int, typer.Option(help="How many (shuffling).")] = 3,
    epochs: Annotated[int | None, typer.Option(help="Instead of the default.")] = None,
    out: Out = None,
) -> None:
    """Time and memory by cells, genes, components, latents; from the disk, and how well that shuffles."""
    from scalloy.benchmark.scale import inference, reading, shuffling, summary
    from scalloy.benchmark.scale import scale as run
    from scalloy.models._options import one_of

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
