"""Hostile AnnData through what stands beside the models: comparisons, rivals, metrics, pictures, files."""

from __future__ import annotations

import inspect
import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hostile.cases import made, plain
from hostile.columns import ODD_KEYS
from hostile.rules import Refused, attempt, fingerprint
from hostile.strategies import SHORT, SMALL, mild, names, seeds, tried
from hypothesis import assume, given
from hypothesis import strategies as st

import scalloy as sa

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # odd cells are warned of

mpl.use("Agg")
#: Names of columns, most of which are right.
keys = st.sampled_from(["condition", "cluster", "donor", "batch", "lane", "score", *ODD_KEYS.values()])
KIND = {"condition_key": "condition", "labels_key": "cluster"}


@pytest.fixture
def _closed():
    yield
    plt.close("all")


# comparisons --------------------------------------------------------------------------------------

REPRESENTATIONS = {
    "as it is": lambda z: z,
    "NaN": lambda z: np.where(z > 1, np.nan, z),
    "inf": lambda z: np.where(z > 1, np.inf, z),
    "text": lambda z: z.astype(str),
    "object": lambda z: z.astype(object),
    "complex": lambda z: z + 1j,
    "sparse": sp.csr_matrix,
    "frame": pd.DataFrame,
    "frame with text": lambda z: pd.DataFrame(z).assign(a="x"),
    "constant": lambda z: 0 * z,
    "no columns": lambda z: z[:, :0],
    "one column": lambda z: z[:, :1],
    "three axes": lambda z: z[:, :, None],
    "half": lambda z: z.astype(np.float16),
    "bool": lambda z: z > 0,
    "int": lambda z: (10 * z).astype(int),
    "huge": lambda z: z * 1e300,
    "large": lambda z: z * 1e12,
    "masked": lambda z: np.ma.masked_greater(z, 1),
    "Fortran": np.asfortranarray,
    "reversed": lambda z: z[:, ::-1],
    "read-only": lambda z: (z.setflags(write=False), z)[1],
}
reps = st.sampled_from(list(REPRESENTATIONS))


def with_code(wrong, seed, rep):
    """A hostile object with another latent space, or ``None``."""
    adata = made(wrong, seed)[1]
    if adata is None or adata.is_view or rep == "as it is":
        return adata
    z = np.random.default_rng(seed).normal(size=(adata.n_obs, 4))
    with np.errstate(all="ignore"):
        code = REPRESENTATIONS[rep](z)
    if isinstance(code, pd.DataFrame):
        code.index, code.columns = adata.obs_names, code.columns.astype(str)
    adata.obsm["X_z"] = code
    return adata


@tried(150)
@given(names("given", n=2), seeds, reps, keys, st.sampled_from([None, "donor", 7, "score"]), st.data())
def test_groups(wrong, seed, rep, groupby, donor, data):
    adata = with_code(wrong, seed, rep)
    assume(adata is not None)
    before = fingerprint(adata)
    found = attempt(
        sa.compare.groups,
        adata,
        data.draw(st.sampled_from(["X_z", "X_z", "X_z", "nope", None, 7, ["X_z"]])),
        groupby=groupby,
        by=data.draw(st.sampled_from([None, None, "cluster", "score", 7])),
        donor_key=donor,
        test=data.draw(st.sampled_from(["mmd", "energy", "classifier"])),
        n_permutations=9,
        at_least=3,
    )
    assert fingerprint(adata) == before
    if not isinstance(found, Refused):
        p = found["pvalue"].dropna()
        assert ((p > 0) & (p <= 1)).all()
        assert not len(p) or np.isfinite(found.loc[p.index, "statistic"]).all()


@tried(100)
@given(names("given", n=2), seeds, reps, keys, st.sampled_from([*["donor"] * 5, "score", 7]), st.data())
def test_donors(wrong, seed, rep, covariate, donor, data):
    adata = with_code(wrong, seed, rep)
    assume(adata is not None)
    before = fingerprint(adata)
    found = attempt(
        sa.compare.donors,
        adata,
        "X_z",
        donor_key=donor,
        by=data.draw(st.sampled_from([None, None, "cluster", "score", 7])),
        covariates=data.draw(st.sampled_from([None, None, ["donor"], covariate, [covariate, "donor"]])),
        distance=data.draw(st.sampled_from(["energy", "mmd"])),
        n_permutations=9,
        at_least=3,
    )
    assert fingerprint(adata) == before
    if not isinstance(found, Refused):
        assert np.isfinite(found.distances).all(axis=None)
        assert np.isfinite(found.coordinates).all(axis=None)
        assert ((found.explained["pvalue"].dropna() > 0) & (found.explained["pvalue"].dropna() <= 1)).all()
        assert found.groups(2).nunique() == 2
        sa.pl.donors(found, next(iter(found.covariates), None))
        plt.close("all")


@tried(100)
@given(names("given", n=2), seeds, keys, keys, st.sampled_from([*["donor"] * 5, "score", 7]), st.data())
def test_abundance(wrong, seed, groupby, by, donor, data):
    adata = with_code(wrong, seed, "as it is")
    assume(adata is not None)
    before = fingerprint(adata)
    found = attempt(
        sa.compare.abundance,
        adata,
        groupby=groupby,
        by=data.draw(st.sampled_from([by, by, "neighbourhoods", "tree", 7])),
        donor_key=donor,
        covariates=data.draw(st.sampled_from([None, None, "donor", "score", [by], 7])),
        unchanged=data.draw(st.sampled_from(["auto", "auto", None, ["a"], 7])),
        paired=data.draw(st.sampled_from(["auto", "auto", True, False, 7])),
        test=data.draw(st.sampled_from(["model", "permutation"])),
        use_rep=data.draw(st.sampled_from(["X_z", None])),
        n_permutations=9,
        at_least=3,
    )
    assert fingerprint(adata) == before
    if not isinstance(found, Refused):
        p = found["pvalue"].dropna()
        assert ((p >= 0) & (p <= 1)).all()
        assert np.isfinite(found.loc[p.index, ["effect", "lower", "upper"]]).all(axis=None)


@tried(100)
@given(names("given", n=2), seeds, keys, st.sampled_from([*["donor"] * 5, "score", 7]), st.data())
def test_expression(wrong, seed, groupby, donor, data):
    adata = with_code(wrong, seed, "as it is")
    assume(adata is not None)
    before = fingerprint(adata)
    found = attempt(
        sa.compare.expression,
        adata,
        groupby=groupby,
        by=data.draw(st.sampled_from([None, None, "cluster", "score", 7])),
        donor_key=donor,
        covariates=data.draw(st.sampled_from([None, None, "donor", "score", 7])),
        interaction=data.draw(st.sampled_from([None, None, "cluster", "donor", "score", 7])),
        paired=data.draw(st.sampled_from(["auto", "auto", True, False, 7])),
        test=data.draw(st.sampled_from(["model", "model", "permutation"])),
        layer=data.draw(st.sampled_from([None, None, "counts", 7])),
        min_counts=1,
        n_permutations=9,
        at_least=3,
    )
    assert fingerprint(adata) == before
    if not isinstance(found, Refused):
        p = found["pvalue"].dropna()
        assert ((p >= 0) & (p <= 1)).all()
        assert np.isfinite(found.loc[p.index, ["log2_fold_change", "lower", "upper"]]).all(axis=None)


@tried(100)
@given(
    names("given", n=2),
    seeds,
    reps,
    keys,
    st.sampled_from([None, "donor"]),
    st.sampled_from([None, "counts", 7]),
)
def test_witness_and_genes(wrong, seed, rep, groupby, donor, layer):
    adata = with_code(wrong, seed, rep)
    assume(adata is not None)
    before = fingerprint(adata)
    levels = (
        tuple(pd.unique(plain(seed).obs[groupby].astype(str))[:2])
        if isinstance(groupby, str) and groupby in plain().obs
        else ("a", "b")
    )
    found = attempt(
        sa.compare.witness,
        adata,
        "X_z",
        groupby=groupby,
        groups=levels,
        donor_key=donor,
        n_permutations=9,
        at_least=3,
    )
    if not isinstance(found, Refused):
        assert np.isfinite(found[["witness", "zscore", "pvalue", "padj"]].to_numpy()).all()
        table = attempt(sa.compare.genes, adata, found, layer=layer)
        assert isinstance(table, Refused) or set(table.index) == set(adata.var_names)
    assert fingerprint(adata) == before


# rivals -------------------------------------------------------------------------------------------


@tried(120)
@given(
    names(n=2),
    names("given", n=2),
    seeds,
    st.sampled_from(list(sa.baselines.METHODS)),
    st.booleans(),
    st.data(),
)
def test_baseline(wrong, other, seed, method, odd_cells, data):
    case, adata = made(wrong if not odd_cells else [], seed)
    cells = made(other if odd_cells else [], seed + 1)[1]
    assume(adata is not None and cells is not None)
    before = fingerprint(adata), fingerprint(cells)
    given = KIND | {k: v for k, v in case.given.items() if k in {*KIND, "layer"}}
    rival = attempt(sa.baselines.Baseline, adata, method, **given)
    if not isinstance(rival, Refused):
        rival.train()
        to = data.draw(st.sampled_from(["stim", "stim", "nowhere", None, 3]))
        out = attempt(rival.transfer, cells, to=to)
        assert isinstance(out, Refused) or np.isfinite(out.X).all()
    assert (fingerprint(adata), fingerprint(cells)) == before


@pytest.fixture(scope="module")
def scgen():
    rival = sa.baselines.LatentShift(plain().adata(), **KIND, n_hidden=8, n_latent=3)
    rival.train(**SHORT)
    return rival


@tried(40)
@given(names("given", n=2), seeds)
def test_latent_shift_of_new_cells(scgen, wrong, seed):
    cells = made(wrong, seed)[1]
    assume(cells is not None)
    before = fingerprint(cells)
    out = attempt(scgen.transfer, cells, to="stim")
    assert isinstance(out, Refused) or np.isfinite(out.X).all()
    assert fingerprint(cells) == before


@tried(10)
@given(mild, seeds)
def test_latent_shift(wrong, seed):
    adata = made(wrong, seed)[1]
    assume(adata is not None)
    before = fingerprint(adata)
    rival = attempt(sa.baselines.LatentShift, adata, **KIND, **SMALL)
    if not isinstance(rival, Refused):
        attempt(rival.train, **SHORT)
        attempt(rival.transfer, adata, to="stim")
    assert fingerprint(adata) == before


@tried(60)
@given(
    names("given", n=2), seeds, st.sampled_from(["mean", "ridge", "knn", "cca", "pcca", "mlp"]), st.booleans()
)
def test_cross_modal(wrong, seed, method, odd_cells):
    odd = made(wrong, seed)[1]
    assume(odd is not None)
    adata, cells = (plain(seed).adata(), odd) if odd_cells else (odd, plain(seed).adata())
    before = fingerprint(odd)
    rival = attempt(sa.baselines.CrossModal, adata, method)
    done = rival if isinstance(rival, Refused) else attempt(rival.train)
    if not isinstance(done, Refused):
        for pair in (("prot", "rna"), ("rna", "prot")):
            out = attempt(rival.predict, *pair, adata=cells)
            assert isinstance(out, Refused) or np.isfinite(out.to_numpy()).all()
    assert fingerprint(odd) == before


# arrays -------------------------------------------------------------------------------------------

ARRAYS = {
    "as it is": lambda x: x,
    "NaN": lambda x: np.where(x > 1, np.nan, x),
    "inf": lambda x: np.where(x > 1, np.inf, x),
    "text": lambda x: x.astype(str),
    "shorter": lambda x: x[:-1],
    "empty": lambda x: x[:0],
    "one": lambda x: x[:1],
    "two": lambda x: x[:2],
    "transposed": lambda x: x.T,
    "constant": lambda x: 0 * x,
    "three axes": lambda x: x[..., None, None],
    "scalar": lambda x: 1.0,
    "list": lambda x: x.tolist(),
    "None": lambda x: None,
    "object": lambda x: x.astype(object),
    "complex": lambda x: x + 1j,
    "int": lambda x: (3 * x).astype(int),
    "half": lambda x: x.astype(np.float16),
    "matrix": lambda x: np.asmatrix(x),
    "sparse": lambda x: sp.csr_matrix(np.atleast_2d(x)),
    "frame": pd.DataFrame,
    "reversed": lambda x: x[::-1],
}
BY_GENE = ("skill", "pearson_delta", "resid_pearson_delta", "r2_mean", "r2_determination", "coverage")
LABELS = ("matched", "hungarian_accuracy", "purity")
LEFT_OUT = ("bio_conservation", "spearman_brown", "METRICS", "register")  # needs a package; not of arrays


@tried(400)
@given(st.sampled_from([m for m in sa.metrics.__all__ if m not in LEFT_OUT]), seeds, st.data())
def test_metrics(name, seed, data):
    function, rng = getattr(sa.metrics, name), np.random.default_rng(seed)
    arguments = {}
    for argument, p in inspect.signature(function).parameters.items():
        if p.default is not inspect.Parameter.empty:
            continue
        x = rng.normal(size=(30, 5))
        if name in BY_GENE or argument in {"sd", "correct", "confidence"}:
            x = np.abs(x[:5, 0] if argument == "sd" and name == "rmse_z" else x[:, 0])
        if name in LABELS or argument == "labels":
            x = rng.integers(3, size=30).astype(float)
        arguments[argument] = ARRAYS[data.draw(st.sampled_from(["as it is", *ARRAYS]))](x)
    with np.errstate(all="ignore"):
        attempt(function, **arguments)


@tried(60)
@given(seeds, st.data())
def test_probabilistic_cca(seed, data):
    rng = np.random.default_rng(seed)
    x, y, new = (
        ARRAYS[data.draw(st.sampled_from(["as it is", *ARRAYS]))](rng.normal(size=(30, g))) for g in (5, 4, 5)
    )
    rival = sa.baselines.ProbabilisticCCA(data.draw(st.sampled_from([1, 3, 4, 50, 0, -1, "a"])))
    if not isinstance(attempt(rival.fit, x, y), Refused):
        attempt(rival.predict, new)


# pictures -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_closed")
@tried(80)
@given(names("given", n=2), seeds, keys, keys, st.sampled_from(["confusion", "composition", "no"]))
def test_picture_of_clusters(wrong, seed, key, by, kind):
    adata = made(wrong, seed)[1]
    assume(adata is not None)
    before = fingerprint(adata)
    attempt(sa.pl.clusters, adata, key, by, kind=kind)
    plt.close("all")
    assert fingerprint(adata) == before


@pytest.mark.usefixtures("_closed")
@tried(100)
@given(
    names("given", n=2),
    seeds,
    reps,
    keys,
    st.booleans(),
    st.sampled_from(["right", "on data", "none"]),
    st.sampled_from([2, 3]),
)
def test_picture_of_a_latent_space(wrong, seed, rep, color, embeds, legend, n_dims):
    adata = with_code(wrong, seed, rep)
    assume(adata is not None)
    before = fingerprint(adata)
    place = {"use_rep": "X_z", "method": "pca"} if embeds else {"basis": "X_z"}
    if seed % 3 == 0:
        color = "gene_3"
    found = attempt(sa.pl.latent, adata, color, **place, legend=legend, n_dims=n_dims)
    if not isinstance(found, Refused):
        plt.gcf().canvas.draw()
    plt.close("all")
    assert fingerprint(adata) == before


@pytest.mark.usefixtures("_closed")
@tried(12)
@given(names("given", n=2), seeds)
def test_picture_of_a_prediction(wrong, seed):
    adata = made(wrong, seed)[1]
    assume(adata is not None)
    before = fingerprint(adata)
    attempt(sa.pl.joint, plain(seed).adata(), adata, plain(seed).adata())
    plt.close("all")
    assert fingerprint(adata) == before


# files --------------------------------------------------------------------------------------------


def test_files_that_hold_no_model(tmp_path):
    model = sa.VAE(plain().adata(), **SMALL)
    model.save(tmp_path / "m")
    about = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "a file").write_text("text")
    (tmp_path / "empty").mkdir()
    broken = {
        "text": "no json",
        "list": "[]",
        "number": "3",
        "nothing": "{}",
        "another model": json.dumps({**about, "model": "Nobody"}),
        "no name": json.dumps({k: v for k, v in about.items() if k != "model"}),
        "later": json.dumps({**about, "format": 99}),
    }
    for name, text in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(text)
    for place in ("nowhere", "a file", "empty", *broken):
        assert isinstance(attempt(sa.load, tmp_path / place), Refused), place
    for odd in (None, 3, b"m", ["m"], ""):
        assert isinstance(attempt(sa.load, odd), Refused), odd
