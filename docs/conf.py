"""Sphinx."""

from importlib import metadata

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
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
nb_execution_mode = "off"
autosummary_generate = True
autodoc_typehints = "none"
napoleon_google_docstring = False
html_theme = "sphinx_book_theme"
html_title = "scalloy"
html_static_path = ["_static"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
suppress_warnings = ["myst.xref_missing"]
