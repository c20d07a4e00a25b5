"""How the pages are built: `make docs`, which ends at the first thing that Sphinx warns of."""

import sys
from pathlib import Path

import hume_jax

sys.path[:0] = [str(Path(__file__).parent / "extensions")]

project = "hume_jax"
author = "the authors of hume_jax"
copyright = "the authors of hume_jax, Apache-2.0"
version = release = hume_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "config_fields_directive",
    "docstrings",
    "mathml",
]
exclude_patterns = ["_build"]
# Pages are plain Markdown, so that they can be read where they lie too.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# The notebook is shown as it was run; tests/test_notebook.py runs it again.
nb_execution_mode = "off"

# Every reference to this package must lead somewhere. Other packages' pages are elsewhere, and the
# build asks for no network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!hume_jax).*"),
    # Fields, and names that a module imports, in signatures.
    ("py:.*", r"hume_jax\..*\._.*"),
]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

html_theme = "furo"
html_title = f"hume_jax {version}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b57a4", "color-brand-content": "#0b57a4"},
    "dark_css_variables": {"color-brand-primary": "#7db8f5", "color-brand-content": "#7db8f5"},
}
