"""Command for the benchmark of hearing and deaf animals: ``scalloy benchmark songs``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalloy.cli.benchmark import PICTURES, Out, benchmark, show
from scalloy.cli.console import say


@benchmark.command()
def songs(
    study: Annotated[
        list[str] | None,
        typer.Option(
            help="nothing, plastic, 'deaf lower' or 'deaf rigid'; may be repeated (default all four)."
        ),
    ] = None,
    simulations: Annotated[int, typer.Option(help="Number of simulations of each study.")] = 50,
    animals: Annotated[int, typer.Option(help="Number of animals, half of them deaf.")] = 16,
    days: Annotated[int, typer.Option(help="Number of days on which each animal is recorded.")] = 4,
    syllables: Annotated[int, typer.Option(help="Average number of syllables of an animal on a day.")] = 20,
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs of the VAE.")] = 20,
    out: Out = None,
    folder: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures."), PICTURES] = None,
) -> None:
    """Test whether deaf animals sing differently, in the latent space of a VAE of simulated spectrograms.

    The first table holds effects and p-values of one simulation of each study. The second holds how often
    each test finds a difference, beside the naive test that takes syllables for independent.
    """
    from scalloy.benchmark.songs import pictures, summary
    from scalloy.benchmark.songs import songs as run

    sizes = {"n_animals": animals, "n_days": days, "n_syllables": syllables}
    frame = run(study or None, n_simulations=simulations, max_epochs=epochs, **sizes)
    say(frame[frame["seed"] == 0].drop(columns="seed").round(3).to_string(index=False))
    show(summary(frame), out)
    if folder is not None:
        more = {"n_syllables": 2 * syllables, "max_epochs": 3 * epochs}
        for path in pictures(folder, **{**sizes, **more}):
            say(f"saved {path}")
