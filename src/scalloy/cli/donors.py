"""Commands that compare donors: ``abundance``, ``expression`` and ``donors``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalloy.cli import console as files
from scalloy.cli.console import Force, Permutations, Reference, Seed, Text, UseRep, Within
from scalloy.cli.paths import PICTURES, TABLES, Writes

if TYPE_CHECKING:
    import pandas as pd

Source = Annotated[Path, typer.Argument(metavar="DATA|MODELDIR", help="Cells with raw counts, or a model.")]
Own = Annotated[
    Path | None,
    typer.Argument(help="Cells that the model was trained on; needed if they were not saved with it."),
]
Groups = Annotated[str, typer.Option(help="Column of .obs with the groups.")]
Donors = Annotated[
    str, typer.Option(help="Column of .obs with donors, mice, or whatever else was assigned to a group.")
]
Covariates = Annotated[
    list[str] | None,
    typer.Option(
        "--covariate",
        help="Column of .obs with a property of donors or samples to account for, such as sex or age; may be "
        "repeated.",
    ),
]
Test = Annotated[str, typer.Option(help="model (regression) or permutation (of the groups of donors).")]
Fewest = Annotated[int, typer.Option(help="Minimum number of cells of a sample; smaller ones are left out.")]
Level = Annotated[float, typer.Option(help="Largest adjusted p-value that counts as significant.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="CSV file for the whole table; the clearest rows are printed."),
    Writes("table", TABLES),
]
Plot = Annotated[
    Path | None,
    typer.Option(help="Picture of the result, ending in .png, .pdf or .svg."),
    Writes("picture", PICTURES),
]
ROWS = 30  # rows that are printed
COLUMNS = 3  # panels side by side
DPI = 150


def abundance(
    source: Source,
    data: Own = None,
    groupby: Groups = ...,  # type: ignore[assignment]
    by: Annotated[
        str,
        typer.Option(
            help="Populations: a column of .obs, such as cell types; clusters or tree of a model; or "
            "neighbourhoods in a latent space."
        ),
    ] = ...,  # type: ignore[assignment]
    donor_key: Donors = ...,  # type: ignore[assignment]
    covariate: Covariates = None,
    reference: Reference = None,
    unchanged: Annotated[
        list[str] | None,
        typer.Option(
            help="Population that is taken not to change; may be repeated. Or auto, which finds them "
            "(default), or none, which compares shares of all cells."
        ),
    ] = None,
    test: Test = "model",
    use_rep: Annotated[
        Text, typer.Option(help="Key of .obsm with the latent space; for neighbourhoods without a model.")
    ] = None,
    permutations: Permutations = 1000,
    at_least: Fewest = 10,
    level: Level = 0.1,
    plot_by: Annotated[
        Text,
        typer.Option(help="Column of .obs, such as cell types, by which neighbourhoods are drawn."),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    plot: Plot = None,
    force: Force = False,
) -> None:
    """Test which populations of cells grow or shrink between groups of donors.

    The table holds mean shares, the log2 fold change with its interval, and p-values of each population.

    Examples:

      scalloy abundance cells.h5ad --groupby condition --by cell_type --donor-key donor -o table.csv
      --plot picture.png

      scalloy abundance model cells.h5ad --groupby condition --by neighbourhoods --donor-key donor
      --plot-by cell_type --plot picture.png
    """
    from scalloy import compare

    _check_drawn(by, plot, plot_by)
    cells = _given(source, data)
    frame = compare.abundance(
        cells,
        groupby=groupby,
        by=by,
        donor_key=donor_key,
        covariates=covariate,
        reference=reference,
        unchanged=_unchanged(unchanged),  # type: ignore[arg-type]
        test=test,  # type: ignore[arg-type]
        use_rep=use_rep,
        n_permutations=permutations,
        at_least=at_least,
        rng=seed,
    )
    _show(frame, out)
    if plot is None:
        return
    from scalloy import pl
    from scalloy.compare.populations import is_of_neighbourhoods

    pairs = list(dict.fromkeys(zip(frame["group_a"], frame["group_b"])))
    if is_of_neighbourhoods(frame):
        draws = [
            _of(pl.neighbourhoods, frame, cells, groupby=plot_by, groups=pair, level=level) for pair in pairs
        ]
    else:
        draws = [_of(pl.abundance, frame, groups=pair, level=level) for pair in pairs]
    _draw(draws, plot, (6.5, 1.6 + 0.3 * min(len(frame) // len(pairs), 40)), columns=1)


def expression(
    source: Source,
    data: Own = None,
    groupby: Groups = ...,  # type: ignore[assignment]
    by: Within = None,
    donor_key: Donors = ...,  # type: ignore[assignment]
    covariate: Covariates = None,
    interaction: Annotated[
        Text,
        typer.Option(help="Column of .obs, such as sex, that may change the difference between the groups."),
    ] = None,
    against: Annotated[
        Text,
        typer.Option(help="Level of the interaction with which others are compared, instead of the first."),
    ] = None,
    reference: Reference = None,
    test: Test = "model",
    layer: Annotated[Text, typer.Option(help="Layer with the counts, instead of .X.")] = None,
    permutations: Permutations = 1000,
    at_least: Fewest = 10,
    level: Level = 0.05,
    labels: Annotated[int, typer.Option(help="Largest number of genes to name in each panel.")] = 10,
    seed: Seed = 0,
    out: Out = None,
    plot: Plot = None,
    force: Force = False,
) -> None:
    """Test which genes differ between groups of donors, within each population.

    Counts of a donor's cells are summed. The table holds the log2 fold change with its interval, and p-values
    of each gene; the picture is a volcano plot of each population.

    Examples:

      scalloy expression cells.h5ad --groupby condition --by cell_type --donor-key donor -o genes.csv
      --plot volcanoes.png

      scalloy expression cells.h5ad --groupby condition --donor-key donor --covariate sex -o genes.csv
    """
    from scalloy import compare

    frame = compare.expression(
        _given(source, data),
        groupby=groupby,
        by=by,
        donor_key=donor_key,
        covariates=covariate,
        interaction=interaction,
        against=against,
        reference=reference,
        test=test,  # type: ignore[arg-type]
        layer=layer,
        n_permutations=permutations,
        at_least=at_least,
        rng=seed,
    )
    _show(frame, out)
    if plot is None:
        return
    from scalloy import pl

    draws, keys = [], list(frame.columns[: frame.columns.get_loc("gene")])
    for _, rows in frame.groupby(keys, sort=False):
        if rows["pvalue"].notna().any():
            draws.append(_of(pl.volcano, rows, level=level, n_labels=labels))
    if not draws:
        msg = f"Nothing can be drawn, as there are no p-values: {frame['note'].iloc[0]}. Leave out `--plot`."
        raise ValueError(msg)
    _draw(draws, plot, (4.4, 3.9), columns=COLUMNS)


def donors(
    source: Source,
    data: Own = None,
    donor_key: Donors = ...,  # type: ignore[assignment]
    use_rep: UseRep = None,
    by: Annotated[
        Text,
        typer.Option(help="Column of .obs, such as cell types, within whose values donors are compared."),
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option("--covariate", help="Column of .obs that may explain distances; may be repeated."),
    ] = None,
    distance: Annotated[str, typer.Option(help="energy or mmd.")] = "energy",
    permutations: Permutations = 1000,
    at_least: Fewest = 10,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="CSV file for the squared distances between donors."),
        Writes("table", TABLES),
    ] = None,
    plot: Plot = None,
    force: Force = False,
) -> None:
    """Measure how far donors are apart, and what explains it.

    It prints the variance that each covariate explains, and the donors, the farthest from the others first.
    The picture has the matrix of distances and a map, coloured by the first covariate.

    Examples:

      scalloy donors annotated.h5ad --use-rep X_vae --donor-key sample --by cell_type --covariate condition
      --plot donors.png
    """
    from scalloy import compare

    found = compare.donors(
        _given(source, data),
        use_rep,
        donor_key=donor_key,
        by=by,
        covariates=covariate,
        distance=distance,  # type: ignore[arg-type]
        n_permutations=permutations,
        at_least=at_least,
        rng=seed,
    )
    for table in (found.explained, found.outlying.reset_index()):
        if len(table):
            files.say(table.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    _save(found.distances, out, index=True)
    if plot is not None:
        from scalloy import pl

        _save_figure(pl.donors(found, covariate[0] if covariate else None)[0].figure, plot)


def _given(source: Path, data: Path | None) -> Any:
    """Return cells, or a model with the cells that it was trained on."""
    if not files.is_model(source):
        files.check_alone(source, data)
        return files.read(source)
    if data is None:
        return files.with_cells(files.load(source), source)
    trained, same = files.attached(source, files.read(data))
    if not same:
        msg = (
            f"`{data}` does not hold the cells that `{source}` was trained on. Run `scalloy annotate` on it, "
            "and pass its result in place of the model."
        )
        raise ValueError(msg)
    return trained


def _unchanged(given: list[str] | None) -> str | list[str] | None:
    """Return the argument that says which populations are taken not to change."""
    if given is None or given == ["auto"]:
        return "auto"
    return None if given == ["none"] else given


def _check_drawn(by: str, plot: Path | None, plot_by: str | None) -> None:
    """Raise if neighbourhoods are to be drawn and nothing says by what, before any work is done."""
    from scalloy.compare.populations import NEIGHBOURHOODS

    if plot is not None and by in NEIGHBOURHOODS and plot_by is None:
        msg = "`--plot` of neighbourhoods needs `--plot-by`, a column of .obs such as cell types."
        raise ValueError(msg)


def _show(frame: pd.DataFrame, out: Path | None) -> None:
    """Print the clearest rows, and write the whole table if a file is given."""
    shown = frame.sort_values("pvalue", kind="stable").head(ROWS)
    said = {name: frame[name].notna() & (frame[name].astype(str) != "") for name in ("smallest", "note")}
    empty = [name for name, known in said.items() if not known.any()]
    files.say(shown.drop(columns=empty).to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    if len(frame) > ROWS:
        files.say(f"and {len(frame) - ROWS:,} more rows")
    _save(frame, out, index=False)


def _save(frame: pd.DataFrame, out: Path | None, *, index: bool) -> None:
    """Write a table if a file is given."""
    from scalloy.files import atomic_write

    if out is not None:
        atomic_write.put(out, frame.to_csv(index=index).encode())
        files.say(f"saved {out}")


def _of(function: Callable[..., Any], *given: Any, **more: Any) -> Callable[[Any], Any]:
    """Return a function that draws into axes."""
    return lambda ax: function(*given, ax=ax, **more)


def _draw(draws: list[Callable[[Any], Any]], place: Path, size: tuple[float, float], *, columns: int) -> None:
    """Draw panels into one picture, and write it."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(columns, len(draws))
    rows = -(-len(draws) // columns)
    shape = (size[0] * columns, size[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=shape, layout="constrained", squeeze=False)
    for draw, ax in zip(draws, axes.ravel()):
        draw(ax)
    for ax in axes.ravel()[len(draws) :]:
        ax.remove()
    _save_figure(figure, place)


def _save_figure(figure: Any, place: Path) -> None:
    """Write a figure, and close it."""
    import io

    import matplotlib.pyplot as plt

    from scalloy.files import atomic_write

    buffer = io.BytesIO()
    figure.savefig(buffer, format=place.suffix[1:].lower(), dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    atomic_write.put(place, buffer.getvalue())
    files.say(f"saved {place}")
