"""Sphinx."""

import re
import shutil
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
TUTORIALS = "tutorials"

project = "scalloy"
author = "The scalloy developers"
copyright = "2026, the scalloy developers"
release = version = metadata.version("scalloy")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch and Lightning are not ours
napoleon_google_docstring = False
templates_path = ["_templates"]
html_theme = "sphinx_book_theme"
html_title = "scalloy"
html_logo = html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "logo": {"text": "scalloy"},
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search is enough
}
toc_object_entries_show_parents = "hide"
exclude_patterns = ["_build", "**.ipynb_checkpoints", "packaging"]
copybutton_exclude = ".linenos, .gp, .go"


def copied_tutorials(*_) -> None:
    """Sphinx reads its own folder only, so notebooks are copied there."""
    target = HERE / TUTORIALS
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for notebook in (HERE.parent / TUTORIALS).glob("*.ipynb"):
        shutil.copy(notebook, target)


def followed_links(_app, name: str, source: list[str]) -> None:
    """Links between pages and notebooks, as they are in the repository, to those copies."""
    if name.startswith(f"{TUTORIALS}/"):
        source[0] = source[0].replace("](../docs/", "](../")
    else:
        source[0] = re.sub(rf"\]\(((?:\.\./)*)\.\./{TUTORIALS}/", rf"](\1{TUTORIALS}/", source[0])


def not_ours(_app, _what, name: str, obj, skip: bool, _options) -> bool | None:
    """What is inherited from scvi-tools, torch and others is documented there."""
    function = getattr(obj, "fget", obj)
    ours = (getattr(function, "__module__", None) or "scalloy").startswith("scalloy")
    return True if name.startswith("_") or not ours else None


def setup(app) -> None:
    app.connect("builder-inited", copied_tutorials, priority=100)
    app.connect("source-read", followed_links)
    app.connect("autodoc-skip-member", not_ours)
