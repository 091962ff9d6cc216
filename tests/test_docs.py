"""What the documentation shows is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

import scalloy as sa

ROOT = Path(__file__).parents[1]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_screen_runs(page, monkeypatch):
    """The lines as they stand; only training is cut short and the data are fewer."""
    train = sa.VAE.train
    monkeypatch.setattr(sa.VAE, "train", lambda self: train(self, 1, enable_progress_bar=False))
    kang = sa.datasets.kang()[::20].copy()
    monkeypatch.setattr(sa.datasets, "kang", lambda: kang)
    exec(blocks(page)[0], {})
    assert kang.obsm["X_vae"].shape == (kang.n_obs, 10)
    assert "connectivities" in kang.obsp


@pytest.mark.parametrize("page", ["docs/comparing.md", "docs/models/vsc.md", "docs/pictures.md"])
def test_pages_run(page, monkeypatch):
    """Code of a page as it stands; the objects that it takes for granted are small."""
    import matplotlib as mpl
    import scanpy as sc

    mpl.use("Agg")
    train = sa.VAE.train
    short = lambda self, *a, **k: train(self, 1, enable_progress_bar=False)  # noqa: E731
    for cls in (sa.VAE, sa.BetaVSC):
        monkeypatch.setattr(cls, "train", short)
    adata = sa.datasets.kang()
    adata = adata[adata.obs["cell_type"].isin(["B cells", "NK cells"])][::2].copy()
    adata.obs["donor"] = adata.obs["batch"]
    adata.obs["cgmdvae_cluster"] = adata.obs["cell_type"]
    names = {"sa": sa, "adata": adata}
    if page == "docs/pictures.md":
        names["model"] = model = sa.VAE(adata)
        model.train()
        model.annotate()
        adata.var_names = ["CD3E", *adata.var_names[1:]] if "CD3E" not in adata.var_names else adata.var_names
        adata.obsm["X_umap"] = sc.pp.pca(adata.X, n_comps=2)
        names["found"] = sa.compare.groups(adata, "X_vae", groupby="condition", donor_key="donor")
    for code in blocks(page):
        exec(code.replace("model, 3", "model, 0"), names)
    if page == "docs/comparing.md":
        assert set(names["found"]["design"]) == {"within donors"}
        assert set(names["cells"]["group"]) == {"control", "stimulated"}


def test_two_modalities_page_runs(monkeypatch):
    """As above, on fewer cells that have both."""
    pytest.importorskip("mudata", reason="the extra `multimodal` is not installed")
    import matplotlib as mpl

    mpl.use("Agg")
    train = sa.POISEVAE.train
    monkeypatch.setattr(sa.POISEVAE, "train", lambda self: train(self, 1, enable_progress_bar=False))
    cells = sa.datasets.citeseq()[::4].copy()
    monkeypatch.setattr(sa.datasets, "citeseq", cells.copy)
    adata = cells.copy()
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "first", "second")
    names = {"sa": sa, "np": np, "adata": adata}
    for code in blocks("docs/models/poisevae.md"):
        exec(code, names)
    rna_only, made, mdata = (names[k] for k in ("rna_only", "made", "mdata"))
    assert "protein_counts" not in rna_only.obsm
    assert rna_only.obsm["poisevae_prot"].shape == (125, 14)
    assert made.obsm["prot"].shape == (500, 14)
    assert mdata.obsm["X_poisevae"].shape == (625, 20)


def test_files_page_runs(cells, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = sa.VAE.train
    monkeypatch.setattr(sa.VAE, "train", lambda self, **k: train(self, **{**k, **quick}))
    sa.VAE.setup_anndata(cells, batch_key="batch")
    model = sa.VAE(cells, n_hidden=8, n_latent=3)
    model.train()
    query = cells.copy()
    query.obs["batch"] = "new"
    names = {"sa": sa, "model": model, "query": query, "new_adata": cells[:, ::-1].copy()}
    for code in blocks("docs/files.md"):
        exec(code, names)
    assert query.obsm["X_vae"].shape == (200, 3)
    assert (tmp_path / "run" / "checkpoint.json").is_file()


def test_large_page_runs(quick, tmp_path, monkeypatch):
    """As it stands, on two small files."""
    import anndata

    monkeypatch.chdir(tmp_path)
    train = sa.CGMDVAE.train
    monkeypatch.setattr(sa.CGMDVAE, "train", lambda self: train(self, **quick))
    kang = sa.datasets.kang()[::15].copy()
    kang[:200].write_h5ad("one.h5ad")
    kang[200:].write_h5ad("two.h5ad")
    names = {"sa": sa, "anndata": anndata}
    for code in blocks("docs/large.md"):
        exec(code, names)
    assert names["store"].obsm["X_cgmdvae"].shape == (kang.n_obs, 10)
    assert anndata.read_h5ad("annotated.h5ad").obsm["X_cgmdvae"].shape == (kang.n_obs, 10)
    treated = anndata.read_zarr("treated.zarr")
    assert treated.n_obs == (kang.obs["condition"] == "control").sum()
    assert set(treated.obs["condition"]) == {"stimulated"}


def test_own_model_runs(cells, quick):
    names: dict = {}
    for code in blocks("docs/own_model.md"):
        exec(code, names)
    model_class = names["LinearVAE"]
    model_class.setup_anndata(cells, batch_key="batch")
    model = model_class(cells, n_latent=3)
    model.train(**quick)
    assert model.get_latent_representation().shape == (200, 3)
    assert model.get_marginal_ll(n_mc_samples=3) > model.get_elbo() - 5
    assert np.isfinite(model.get_normalized_expression().to_numpy()).all()


def test_every_plan_argument_is_documented():
    import inspect

    text = (ROOT / "docs" / "training.md").read_text()
    arguments = set(inspect.signature(sa.train.TermsPlan).parameters) - {"module"}
    assert not [a for a in arguments if f"`{a}`" not in text]


SOURCE = Path(sa.__file__).parent
CHECKS = ("checks", "arrays", "align", "modalities")  # of which each message is in the table


def rendered(node):
    """Text of a message, a dot of its own for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "msg":
            yield rendered(node.value)
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", None) in {"warn", "warning"}
            and node.args
        ):
            yield re.sub("%[srd]", "…", rendered(node.args[0]))


def test_table_of_errors_and_code_agree():
    """Each message that the page quotes is in the code, and each one of the checks is on the page."""
    text = (ROOT / "docs" / "errors.md").read_text()
    rows = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| ")]
    quoted = [re.sub(r"^(`+)(.*?)\1.*$", r"\2", row).strip() for row in rows if row.startswith("``")]
    assert len(quoted) > 50
    patterns = {q: re.compile("…?.*?".join(map(re.escape, q.split("...")))) for q in quoted}
    said = {path: list(messages(path)) for path in SOURCE.rglob("*.py")}
    every = [m for found in said.values() for m in found]
    assert not [q for q, pattern in patterns.items() if not any(pattern.search(m) for m in every)]
    own = [m for name in CHECKS for m in said[SOURCE / "data" / f"{name}.py"]]
    assert len(own) > 30
    assert not [m for m in own if not any(pattern.search(m) for pattern in patterns.values())]


def test_every_likelihood_is_documented():
    from typing import get_args

    from scalloy.models._options import GeneLikelihood, SecondLikelihood

    text = (ROOT / "docs" / "likelihoods.md").read_text()
    known = (*get_args(GeneLikelihood), *get_args(SecondLikelihood))
    assert not [k for k in known if f'`"{k}"`' not in text]
