"""Benchmark of comparisons of donors: ``scalloy benchmark donors``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scalloy.cli.benchmark import Out, benchmark, show


@benchmark.command()
def donors(
    what: Annotated[
        str,
        typer.Option(
            help="abundance, neighbourhoods, expression, kang (halves of real donors), interferon or speed."
        ),
    ] = "abundance",
    simulations: Annotated[
        int | None,
        typer.Option(
            help="Number of simulated studies per row (default 500 of abundance, 100 of expression)."
        ),
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Name of a test in the table; may be repeated (default all).")
    ] = None,
    cells: Annotated[int, typer.Option(help="Number of cells, for speed.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Out = None,
) -> None:
    """Check the tests of which populations and genes differ between groups of donors.

    The table holds false positives where nothing changes, and power and false discoveries where something
    does, beside simpler tests and PyDESeq2. It may also hold what real donors show, or times beside those of
    Milo and PyDESeq2.

    Examples:

      scalloy benchmark donors --what abundance --simulations 100

      scalloy benchmark donors --what expression --test ours --test PyDESeq2 --out table.csv
    """
    from scalloy._arguments import one_of
    from scalloy.benchmark import donors as tasks
    from scalloy.benchmark.donors_kang import interferon, kang
    from scalloy.benchmark.donors_speed import speed
    from scalloy.benchmark.neighbourhoods import neighbourhoods

    one_of("what", what, ("abundance", "neighbourhoods", "expression", "kang", "interferon", "speed"))
    some: dict[str, Any] = {"seed": seed} | ({} if simulations is None else {"n_simulations": simulations})
    found = {
        "abundance": lambda: tasks.abundance(tests=test, **some),
        "expression": lambda: tasks.expression(tests=test, **some),
        "neighbourhoods": lambda: neighbourhoods(**some, **({"tests": test} if test else {})),
        "kang": kang,
        "interferon": interferon,
        "speed": lambda: speed(n_cells=cells, seed=seed),
    }
    show(found[what](), out)
