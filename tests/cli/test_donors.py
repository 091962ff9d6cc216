"""Commands for groups of donors: tables are those of Python, and pictures are drawn from them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from commands import error, ok

import scalloy as sa
from scalloy.cli import donors

mpl.use("Agg")
ASKED = {"groupby": "condition", "donor_key": "donor"}
HOW = ("--groupby", "condition", "--donor-key", "donor")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("donors")
    adata = sa.datasets.trial(500, 25, n_types=4, n_donors=5, composition=1.0)
    donor = adata.obs["donor"].astype(str)
    adata.obs["sex"] = np.where(donor.isin(["donor_0", "donor_1"]), "f", "m")
    for name in ("mean_control", "mean_treated"):
        del adata.layers[name]
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_z"] = sa.pl.embedding(np.log1p(adata.X.toarray()), method="pca")
    adata.write_h5ad(folder / "cells.h5ad")
    adata[100:].write_h5ad(folder / "others.h5ad")
    sa.GMVAE.setup_anndata(adata, batch_key="donor")
    model = sa.GMVAE(adata, n_hidden=8, n_latent=2, n_clusters=3)
    model.train(1, enable_progress_bar=False, accelerator="cpu")
    model.save(folder / "model")
    model.save(folder / "whole", save_anndata=True)
    return folder


def same(path, table):
    found = pd.read_csv(path, keep_default_na=True)
    assert list(found) == list(table)
    for name in found:
        if pd.api.types.is_float_dtype(table[name]):
            np.testing.assert_allclose(found[name].astype(float), table[name], rtol=1e-6, atol=1e-12)
        else:
            text = [["" if pd.isna(v) else str(v) for v in own] for own in (found[name], table[name])]
            assert text[0] == text[1]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), {}),
        (("--unchanged", "none", "--reference", "treated"), {"unchanged": None, "reference": "treated"}),
        (("--unchanged", "type_0", "--unchanged", "type_2"), {"unchanged": ["type_0", "type_2"]}),
        (("--unchanged", "auto", "--at-least", "45"), {"at_least": 45}),
        (
            ("--test", "permutation", "--permutations", "20", "--seed", "3"),
            {"test": "permutation", "n_permutations": 20, "rng": 3},
        ),
    ],
)
def test_abundance_is_that_of_python(place, tmp_path, options, asked):
    out = tmp_path / "a.csv"
    said = ok("abundance", place / "cells.h5ad", *HOW, "--by", "cell_type", *options, "-o", out)
    table = sa.compare.abundance(sa.data.read(place / "cells.h5ad"), by="cell_type", **ASKED, **asked)
    same(out, table)
    assert "type_3" in said
    assert f"saved {out}" in said


def test_expression_is_that_of_python(place, tmp_path):
    cells, out = sa.data.read(place / "cells.h5ad"), tmp_path / "a.csv"
    said = ok("expression", place / "cells.h5ad", *HOW, "--by", "cell_type", "-o", out, "--at-least", 4)
    table = sa.compare.expression(cells, by="cell_type", at_least=4, **ASKED)
    same(out, table)
    assert f"and {len(table) - donors.ROWS} more rows" in said
    assert said.index(table.sort_values("pvalue")["gene"].iloc[0]) < said.index("more rows")
    more = ("--covariate", "sex", "--layer", "counts", "--reference", "control", "--force")
    ok("expression", place / "cells.h5ad", *HOW, *more, "-o", out)
    same(out, sa.compare.expression(cells, covariates=["sex"], layer="counts", reference="control", **ASKED))
    ok("expression", place / "cells.h5ad", *HOW, "--interaction", "cell_type", "--force", "-o", out)
    same(out, sa.compare.expression(cells, interaction="cell_type", **ASKED))
    ok(
        "expression",
        place / "cells.h5ad",
        *HOW,
        "--test",
        "permutation",
        "--permutations",
        9,
        "--force",
        "-o",
        out,
    )
    same(out, sa.compare.expression(cells, test="permutation", n_permutations=9, **ASKED))


def test_models_have_populations_of_their_own(place, tmp_path):
    out, whole = tmp_path / "a.csv", sa.load(place / "whole")
    for by in ("clusters", "tree", "neighbourhoods"):
        ok("abundance", place / "model", place / "cells.h5ad", *HOW, "--by", by, "-o", out, "--force")
        same(out, sa.compare.abundance(whole, by=by, **ASKED))
    ok("abundance", place / "whole", *HOW, "--by", "clusters", "-o", out, "--force")
    same(out, sa.compare.abundance(whole, by="clusters", **ASKED))
    ok("expression", place / "whole", *HOW, "-o", out, "--force")
    same(out, sa.compare.expression(whole, **ASKED))
    args = ("abundance", place / "model", *HOW, "--by", "clusters")
    assert "was saved without its cells. Pass them as the second argument" in error(*args)
    said = error("abundance", place / "model", place / "others.h5ad", *HOW, "--by", "clusters")
    assert "does not hold the cells that" in said
    assert "Run `scalloy annotate` on it" in said
    said = error("expression", place / "cells.h5ad", place / "others.h5ad", *HOW)
    assert "is not a model, so that" in said
    assert "needs a trained model" in error("abundance", place / "cells.h5ad", *HOW, "--by", "clusters")


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_pictures_are_of_their_kind(place, tmp_path, kind):
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    out = tmp_path / f"a.{kind}"
    said = ok("abundance", place / "cells.h5ad", *HOW, "--by", "cell_type", "--plot", out)
    assert f"saved {out}" in said
    assert out.read_bytes().startswith(begins)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    said = error("abundance", place / "cells.h5ad", *HOW, "--by", "cell_type", "--plot", out)
    assert "exists. Pass `--force`" in said


def test_pictures_show_every_comparison(place, tmp_path, monkeypatch):
    """Each panel is drawn by the function of `sa.pl`, with what was asked for."""
    drawn = []
    for name in ("abundance", "neighbourhoods", "volcano"):
        function = getattr(sa.pl, name)

        def counted(found, *given, name=name, function=function, **more):
            ax = function(found, *given, **more)
            drawn.append((name, {k: v for k, v in more.items() if k != "ax"}, ax.get_title()))
            return ax

        monkeypatch.setattr(sa.pl, name, counted)
    cells, out = place / "cells.h5ad", tmp_path / "a.svg"
    by_donor = ("--groupby", "cell_type", "--donor-key", "donor", "--by", "sex", "--reference", "type_0")
    ok("abundance", cells, *by_donor, "--plot", out, "--level", 0.2)
    pairs = [("type_0", f"type_{i}") for i in (1, 2, 3)]
    assert drawn == [("abundance", {"groups": pair, "level": 0.2}, "") for pair in pairs]
    drawn.clear()
    ok("abundance", cells, *HOW, "--by", "neighbourhoods", "--use-rep", "X_z", "--plot-by", "cell_type",
       "--plot", out, "--force")  # fmt: skip
    asked = {"groupby": "cell_type", "groups": ("control", "treated"), "level": 0.1}
    assert drawn == [("neighbourhoods", asked, "")]
    drawn.clear()
    ok(
        "expression",
        cells,
        *HOW,
        "--by",
        "cell_type",
        "--at-least",
        4,
        "--plot",
        out,
        "--labels",
        3,
        "--force",
    )
    assert drawn == [("volcano", {"level": 0.05, "n_labels": 3}, f"type_{i}") for i in range(4)]
    drawn.clear()
    monkeypatch.undo()


def test_pictures_that_cannot_be(place, tmp_path):
    cells, out = place / "cells.h5ad", tmp_path / "a.png"
    near = ("--by", "neighbourhoods", "--use-rep", "X_z", "--plot", out)
    assert "`--plot` of neighbourhoods needs `--plot-by`" in error("abundance", cells, *HOW, *near)
    said = error("expression", cells, *HOW, "--at-least", 100_000, "--plot", out)
    assert "Nothing can be drawn, as there are no p-values" in said
    assert "Let its name end in .png or .pdf or .svg" in error(
        "abundance", cells, *HOW, "--by", "sex", "--plot", tmp_path / "a.jpg"
    )
    assert not list(tmp_path.iterdir())


def test_donors_are_those_of_python(place, tmp_path):
    adata = sa.datasets.trial(500, 25, n_types=4, n_donors=5)
    adata.obsm["X_z"] = np.random.default_rng(0).normal(size=(500, 3))
    adata.obs["run"] = adata.obs["donor"].map(lambda d: "late" if d in {"donor_0", "donor_3"} else "early")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    args = ("--use-rep", "X_z", "--donor-key", "donor", "--by", "cell_type", "--covariate", "run")
    more = ("-o", tmp_path / "d.csv", "--plot", tmp_path / "d.png")
    said = ok("donors", tmp_path / "cells.h5ad", *args, "--at-least", 5, *more)
    found = sa.compare.donors(adata, "X_z", donor_key="donor", by="cell_type", covariates="run", at_least=5)
    written = pd.read_csv(tmp_path / "d.csv", index_col=0)
    np.testing.assert_allclose(written, found.distances, rtol=1e-6)
    assert list(written.index) == list(found.distances.index)
    assert "permuted" in said
    assert found.outlying.index[0] in said
    assert (tmp_path / "d.png").stat().st_size > 10_000
    assert "`use_rep=None` is not in" in error("donors", tmp_path / "cells.h5ad", "--donor-key", "donor")
