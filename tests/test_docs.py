"""What the documentation shows is run."""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import scalloy as sa
from scalloy.models import ScalloyModel
from scalloy.models._core import training

ROOT = Path(__file__).parents[1]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_first_screen_runs(page, monkeypatch, short):
    """The lines as they stand; only training is cut short and the data are fewer."""
    kang = sa.datasets.kang()[::10].copy()
    monkeypatch.setattr(sa.datasets, "kang", lambda: kang)
    names: dict = {}
    exec(blocks(page)[0], names)
    assert kang.obsm["X_cgmdvae"].shape == (kang.n_obs, 10)
    assert {"cgmdvae_cluster", "cgmdvae_label", "cgmdvae_unknown"} <= set(kang.obs)
    assert "connectivities" in kang.obsp
    assert names["treated"].n_obs == names["b_cells"].n_obs > 10
    assert set(names["treated"].obs["condition"]) == {"stimulated"}


@pytest.fixture
def short(monkeypatch):
    """Training of every model ends after an epoch."""
    import matplotlib as mpl

    mpl.use("Agg")
    train = training.train
    quick = {"max_epochs": 1, "enable_progress_bar": False}

    def short(model, *args, **kwargs):
        train(model, *args, **{**kwargs, **quick})

    monkeypatch.setattr(ScalloyModel, "train", short)
    monkeypatch.setattr(training, "train", short)


def some_cells():
    """What pages take for granted: two types under two conditions, of some donors."""
    adata = sa.datasets.kang()
    adata = adata[adata.obs["cell_type"].isin(["B cells", "NK cells", "CD8 T cells"])][::2].copy()
    adata.obs["donor"] = adata.obs["batch"]
    adata.obs["cgmdvae_cluster"] = adata.obs["cell_type"]
    return adata


def for_pictures(names):
    import scanpy as sc

    adata = names["adata"]
    names["model"] = model = sa.VAE(adata)
    model.train()
    model.annotate()
    adata.var_names = ["CD3E", *adata.var_names[1:]] if "CD3E" not in adata.var_names else adata.var_names
    adata.obsm["X_umap"] = sc.pp.pca(adata.X, n_comps=2)
    names["found"] = sa.compare.groups(adata, "X_vae", groupby="condition", donor_key="donor")


def for_clusters(names):
    adata = names["adata"]
    adata.obs["known"] = adata.obs["cell_type"].astype(str).replace("B cells", "?")
    sa.CGMDVAE.setup_anndata(adata, labels_key="known", unlabeled_category="?")
    names["model"] = model = sa.CGMDVAE(adata, n_clusters=14)
    model.train()


def after_clusters(names):
    assert len(names["eight"].cat.categories) == 8
    assert len(names["tree"]) == 13
    assert names["adata"].obs["known"].notna().all()


def for_transfer(names):
    adata = names["adata"]
    names["controls"] = adata[adata.obs["condition"] == "control"].copy()


def for_searching(names):
    """Two trials instead of sixteen."""
    pytest.importorskip("ray", reason="the extra `search` is not installed")
    search = sa.search

    def smaller(adata, model="VAE", space=None, **given):
        space = {k: v[:1] for k, v in space.items()}
        return search(adata[::4].copy(), model, space, **{**given, "seeds": (0,)}, max_epochs=1)

    names["sa"] = SimpleNamespace(search=smaller, pl=sa.pl)


def for_conditions(names):
    """A smaller screen."""
    screen = sa.datasets.screen(700, 40, n_drugs=3, n_pairs=2)
    used = {name: getattr(sa, name) for name in ("CGMDVAE", "Conditions", "pl")}
    names["sa"] = SimpleNamespace(datasets=SimpleNamespace(screen=lambda: screen), **used)


def after_conditions(names):
    assert set(names["predicted"].obs["conditions"]) == {"drug_0 1"}
    assert set(names["curves"]["group"]) == set(names["adata"].obs["cell_type"])
    assert set(names["found"]["combination"]) <= set(names["model"].conditions)


def for_songs(names):
    """Fewer animals."""
    few = SimpleNamespace(songs=lambda: sa.datasets.songs(8))
    names["sa"] = SimpleNamespace(datasets=few, VAE=sa.VAE, compare=sa.compare, pl=sa.pl)


PREPARED = {
    "docs/conditions.md": for_conditions,
    "docs/pictures.md": for_pictures,
    "docs/report.md": for_pictures,
    "docs/models/cgmdvae.md": for_clusters,
    "docs/models/trvae.md": for_transfer,
    "docs/searching.md": for_searching,
    "docs/songs.md": for_songs,
    "docs/likelihoods.md": for_searching,
}


def after_comparing(names):
    assert set(names["found"]["design"]) == {"within donors"}
    assert set(names["cells"]["group"]) == {"control", "stimulated"}
    assert names["alike"].explained["permuted"].tolist() == ["donors within donor", "donors within condition"]


def after_songs(names):
    assert set(names["found"]["design"]) == {"across donors"}
    assert set(names["naive"]["design"]) == {"cells"}
    assert set(names["days"]["design"]) == {"within donors"}
    assert len(names["days"]) == 2
    assert set(names["moves"]["group"]) == {"hearing", "deaf"}
    assert 0 < names["apart"]["pvalue"] <= 1


def after_transfer(names):
    assert {"no change", "CGMDVAE", "ceiling"} <= set(names["table"]["method"])
    assert set(names["made"].obs["condition"]) == {"control", "stimulated"}


def after_report(names):
    assert names["found"][0].startswith("End of training: only 1 epochs")
    assert Path("report.html").is_file()


CHECKED = {
    "docs/models/cgmdvae.md": after_clusters,
    "docs/comparing.md": after_comparing,
    "docs/songs.md": after_songs,
    "docs/report.md": after_report,
    "docs/transfer.md": after_transfer,
    "docs/conditions.md": after_conditions,
}
MADE = ("docs/_build", "docs/generated", "docs/packaging")
EVERY_PAGE = (p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))
PAGES = sorted(p for p in EVERY_PAGE if not p.startswith(MADE))


def pages_to_run():
    """Pages with code that no other test runs."""
    tests = "".join(p.read_text() for p in Path(__file__).parent.rglob("test_*.py"))
    return [p for p in PAGES if blocks(p) and (p in {*PREPARED, *CHECKED} or f'"{p}"' not in tests)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # few cells, trained for a moment
@pytest.mark.parametrize("page", pages_to_run())
def test_page_runs(page, short, tmp_path, monkeypatch):
    """Code of a page as it stands; the objects that it takes for granted are small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")  # and not a cluster that happens to be there
    names: dict = {"sa": sa, "adata": some_cells()}
    if page in PREPARED:
        PREPARED[page](names)
    for code in blocks(page):
        exec(code.replace("model, 3", "model, 0"), names)
    if page in CHECKED:
        CHECKED[page](names)


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


@pytest.mark.filterwarnings("ignore:No cell has the label")  # all are labelled in the page
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


def test_own_model_runs(tmp_path):
    names: dict = {}
    for code in blocks("docs/own_model.md"):
        exec(code, names)
    names["test_linear_vae"](tmp_path / "model")


def test_extending_page_runs(tmp_path, monkeypatch, registries):
    """The page as it stands: each thing is known after its one line."""
    import matplotlib as mpl
    import numba

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)  # scanpy's functions set the threads of torch as well
    names: dict = {}
    try:
        for code in blocks("docs/extending.md"):
            exec(code, names)
    finally:
        numba.set_num_threads(threads)
    table = names["table"].set_index("method")
    assert table.loc["median shift", "largest_error"] < table.loc["no change", "largest_error"]
    assert type(names["model"].module.likelihood) is names["GeometricCounts"]
    assert type(names["mixture"].module.prior.weights) is names["Floored"]
    assert type(sa.load("linear")) is names["Linear"]
    assert names["gated"].module.dec_x.network.sharpness == 2.0
    assert len(names["axes"][0].patches) == 4


def test_every_plan_argument_is_documented():
    text = (ROOT / "docs" / "training.md").read_text()
    arguments = set(inspect.signature(sa.train.TermsPlan).parameters) - {"module"}
    assert not [a for a in arguments if f"`{a}`" not in text]


SOURCE = Path(sa.__file__).parent
CHECKS = (
    *("checks", "is_anndata", "roles", "arrays", "genes", "modalities"),
    *("conditions", "descriptors", "asked_conditions", "label_tree"),
)  # each message is in the table


def rendered(node):
    """Text of a message, a dot of its own for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages(path):
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(node.targets[0], "id", "") if isinstance(node, ast.Assign) else ""
        if name == "msg" or (name.isupper() and "`" in rendered(node.value)):
            yield rendered(node.value)
        function = getattr(node, "func", None)
        called = getattr(function, "attr", None) or getattr(function, "id", None)
        if called in {"warn", "warning"} and node.args:
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

    from scalloy.blocks.gene_likelihoods import LIKELIHOODS
    from scalloy.models._core.factories import OtherLikelihood

    text = (ROOT / "docs" / "likelihoods.md").read_text()
    known = (*LIKELIHOODS, *get_args(OtherLikelihood))
    assert not [k for k in known if f'`"{k}"`' not in text]


# links --------------------------------------------------------------------------------------


def prose():
    """Name and text of each page, README and notebook, without code."""
    for path in [ROOT / "README.md", *(ROOT / p for p in PAGES)]:
        yield path, re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def anchors(path):
    """Of the headings of a page, as GitHub and myst make them."""
    text = dict(prose())[path] if path.suffix in {".md", ".ipynb"} else ""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    named = set(re.findall(r"^\(([\w-]+)\)=$", text, flags=re.M))
    return named | {
        re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", t).lower()).strip().replace(" ", "-") for t in titles
    }


def test_links_between_pages_lead_somewhere():
    broken, seen = [], 0
    for path, text in prose():
        targets = re.findall(r"\]\(([^)\s]+)\)", text)
        targets += [f"{t}.md" for t in re.findall(r"\{doc\}`(?:[^`<]*<)?([\w/.]+)>?`", text)]
        targets += re.findall(r"^```\{image\} (\S+)", path.read_text(), flags=re.M)
        for target in targets:
            if re.match(r"https?://", target):
                continue
            seen += 1
            name, _, anchor = target.partition("#")
            to = (path.parent / name).resolve() if name else path
            if not to.exists() or (anchor and anchor not in anchors(to)):
                broken.append(f"{path.name}: {target}")
    assert seen > 80
    assert not broken


def test_every_page_is_in_a_table_of_contents():
    trees = re.findall(r"```\{toctree\}(.*?)```", "".join((ROOT / p).read_text() for p in PAGES), flags=re.S)
    listed = {line.strip() for tree in trees for line in tree.splitlines()}
    assert not [p for p in PAGES if p != "docs/index.md" and p[5:-3] not in listed]


# names --------------------------------------------------------------------------------------


def exported():
    """Each public object by the name under which users find it."""
    for name in sa.__all__:
        thing = getattr(sa, name)
        if not inspect.ismodule(thing):
            yield name, thing
            continue
        own = [k for k, v in vars(thing).items() if getattr(v, "__module__", None) == thing.__name__]
        for k in getattr(thing, "__all__", [k for k in own if not k.startswith("_")]):
            yield f"{name}.{k}", getattr(thing, k)


def test_every_public_object_has_a_docstring_and_is_in_the_api():
    text = (ROOT / "docs" / "api.md").read_text()
    listed = {
        getattr(import_module(f"scalloy.{where}") if where else sa, name)
        for where, _, name in (n.rpartition(".") for n in re.findall(r"^   ([\w.]+)$", text, flags=re.M))
    }
    objects = {k: v for k, v in exported() if inspect.isclass(v) or inspect.isfunction(v)}
    assert len(objects) > 80
    assert not [k for k, v in objects.items() if not inspect.getdoc(v)]
    assert not [k for k, v in objects.items() if v not in listed]


def test_every_method_of_the_models_has_a_docstring():
    missing = set()
    for cls in sa.models.MODELS.values():
        for name, thing in inspect.getmembers(cls):
            function = getattr(thing, "fget", getattr(thing, "__func__", thing))
            ours = str(getattr(function, "__module__", "")).startswith("scalloy")
            if ours and not name.startswith("_") and not inspect.isclass(thing) and not inspect.getdoc(thing):
                missing.add(f"{cls.__name__}.{name}")
    assert not missing


# drafts for other places -------------------------------------------------------------------


def test_drafts_say_what_the_package_says():
    yaml = pytest.importorskip("yaml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipe, entry = (
        yaml.safe_load((ROOT / "docs" / "packaging" / f"{n}.yaml").read_text()) for n in ("conda", "scverse")
    )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert recipe["context"]["version"] == entry["version"] == citation["version"] == project["version"]
    assert recipe["about"]["license"] == entry["license"] == citation["license"] == project["license"]
    there = {"torch": "pytorch", "igraph": "python-igraph", "matplotlib": "matplotlib-base"}
    wanted = {re.sub(r"^[\w-]+", lambda m: there.get(m[0], m[0]), d) for d in project["dependencies"]}
    assert wanted == {d.replace(" ", "") for d in recipe["requirements"]["run"]} - {"python>=${{python_min}}"}
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text()))
